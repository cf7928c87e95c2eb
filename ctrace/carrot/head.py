"""A ridge regression head in closed form, and what each training image has to do with its answers:
no gradient, no optimiser.

``Theta = (G^T G + r I)^-1 G^T Y`` makes every logit a weighted sum over training images,
``logits(g) = sum_i S_i(g) Y_i`` with ``S_i(g) = g^T (G^T G + r I)^-1 g_i``. Everything else follows
from S: two exact decompositions, and what happens without an image. Whether such an attribution
says what refits do is what `linear_datamodeling_scores` measures.

    >>> G, y = torch.eye(3, dtype=torch.double), torch.tensor([0, 1, 1])
    >>> head = RidgeHead(lam=1.0).fit(G, y)
    >>> head.predict(G[1]).tolist()
    [0.0, 0.5]
    >>> head.leave_one_out(G[1], target=1).tolist()  # nothing else there speaks for class 1
    [0.0, -0.5, 0.0]
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ctrace.arguments import Count, Features, Numbers, Positive, check_places, checked, real
from ctrace.carrot import ridge
from ctrace.check import one_of
from ctrace.cut.affinity import in_plain_mode
from ctrace.stats import spearman

DUAL_GAP = 1e-4  # relative; G^T alpha further from theta than this is a sum that misses the logit


class RidgeHead:
    """Least squares with a penalty on the weights, solved exactly, in float64.

    With fewer images than channels the ``(n, n)`` system is solved, otherwise the ``(c, c)`` one;
    the answers are the same. Under ``torch.distributed`` each process passes its own share of the
    images to `fit`: the weights are then those of all images, and the attributions are about the
    share, still exact.

    Args:
        lam: size of the penalty, above 0.
        scale: "none" penalises by ``r = lam``; "n" by ``r = n lam``, so that lam means the same for
            any number of images. Removing images leaves ``r`` as it is, ``n lam`` of the full set:
            a penalty that shrank with them would be a second change.
        intercept: add a constant, which is not penalised.

    Attributes:
        G, Y: training embeddings ``(n, c)`` and targets ``(n, k)``, after `fit` like the rest.
        theta: weights ``(c, k)``.
        bias: ``(k,)``, zero without intercept.
        penalty: ``r``.
        residuals: target minus logit of each training image ``(n, k)``.
        alpha: dual coefficients ``(n, k)``, the residuals over ``r``; ``theta = G^T alpha``.
        leverage: how much each training image decides its own logit ``(n,)``, between 0 and 1.
    """

    def __init__(self, lam: Positive = 1.0, scale: str = "none", intercept: bool = False):
        ridge.penalty(lam, scale, 1)
        self.lam, self.scale, self.intercept = float(lam), scale, bool(intercept)

    def __repr__(self) -> str:
        return f"RidgeHead(lam={self.lam:g}, scale={self.scale!r}, intercept={self.intercept})"

    @in_plain_mode
    @checked
    def fit(self, G: Features, y: Numbers, num_classes: Count | None = None) -> "RidgeHead":
        """Solve for the weights, and return the head; a fit that is refused leaves it as it was.

        Args:
            G: embeddings ``(n, c)``.
            y: class numbers ``(n,)``, or any targets ``(n, k)``.
            num_classes: of the class map; the training labels may lack its last classes.

        Raises:
            ValueError: shapes or labels that do not fit, values that are not finite, too few
                images.
            ArithmeticError: lam is lost in the rounding of the system.
        """
        G, Y = ridge.training_set(G, y, num_classes)
        shared = dist.is_available() and dist.is_initialized()
        count = int(ridge.over_processes(G.new_tensor(len(G))))
        if count < 1 + self.intercept:
            raise ValueError(
                f"fit: expected at least {1 + self.intercept} training images, received {count}."
            )
        r, share = ridge.penalty(self.lam, self.scale, count), self.intercept / count
        if shared:
            _check_one_class_map(G, Y)
        g_mean, y_mean = (share * ridge.over_processes(rows.sum(0)) for rows in (G, Y))
        solve = ridge.solve_dual if len(G) < G.shape[1] and not shared else ridge.solve_primal
        theta, smooth, residuals, room = solve(G - g_mean, Y - y_mean, r, share)
        alpha = residuals / r
        missed = ridge.over_processes((G - g_mean).T @ alpha) - theta
        self._dual_gap = float(missed.abs().max() / theta.abs().max().clamp_min(1e-300))
        self._g_mean, self._y_mean, self._share = g_mean, y_mean, share
        self._smooth, self._room = smooth, room  # (c, n), (n,)
        self.G, self.Y = G, Y
        self.theta, self.bias, self.penalty = theta, y_mean - g_mean @ theta, r
        self.residuals, self.alpha, self.leverage = residuals, alpha, 1 - room
        return self

    @checked
    def predict(self, g: Tensor) -> Tensor:
        """Logits ``(k,)`` of one embedding ``(c,)``, or ``(m, k)`` of several ``(m, c)``."""
        return self._centred(g) @ self.theta + self._y_mean

    @checked
    def smoother(self, g: Tensor) -> Tensor:
        """``S_i(g)`` ``(n,)`` or ``(m, n)``: ``predict(g) = S(g) Y``, whatever Y is."""
        return self._centred(g) @ self._smooth + self._share

    @checked
    def training_contributions(self, g: Tensor, view: str = "weight", target=None) -> Tensor:
        """The share of each training image in each logit of ``g``; over the images they sum to the
        logit.

        Neither view says what would happen without an image: for that ask `leave_one_out`.

        Args:
            g: ``(c,)``, or several ``(m, c)``.
            view: "weight" is ``S_i(g) Y_i``, zero outside the image's own class; "dual" is
                ``alpha_i <g_i, g>``. With an intercept both products are taken about the mean
                embedding, and each image carries ``Y_i / n`` besides.
            target: a class number, or one for each of the several ``(m,)``; None for all classes.

        Returns:
            ``(n, k)`` or ``(m, n, k)``; with a target ``(n,)`` or ``(m, n)``.

        Raises:
            ArithmeticError: dual coefficients that a tiny penalty has lost to rounding.
        """
        one_of("view", view, ("weight", "dual"))
        if view == "weight":
            return ridge.each(self.smoother(g), self.Y, target)
        products = self._centred(g) @ self._centred(self.G).T  # (..., n)
        if self._dual_gap > DUAL_GAP:
            raise ArithmeticError(
                f"dual view: the penalty {self.penalty:.1e} loses alpha in rounding, its sums miss "
                f"the logits by {self._dual_gap:.0e} of theta. Raise lam."
            )
        equal = torch.full_like(products, self._share)
        return ridge.each(products, self.alpha, target) + ridge.each(equal, self.Y, target)

    @checked
    def leave_one_out(self, g: Tensor, target=None) -> Tensor:
        """Change of each logit of ``g`` when one training image is removed, for each of them: equal
        to fitting again without it.

        ``-S_i(g) (Y_i - logits(g_i)) / (1 - S_i(g_i))``, at the same penalty ``r``. Negative: the
        image was helpful to the logit. Arguments and shapes as in `training_contributions`.

        Raises:
            ArithmeticError: an image whose leverage is 1 to rounding.
        """
        return ridge.each(-self.smoother(g), self.loo_residuals(), target)

    def loo_residuals(self) -> Tensor:
        """Target minus the logit that the fit *without* the image gives it ``(n, k)``: large where
        a label surprises the rest.
        """
        room, at = self._room.min(0)
        if room < ridge.LEAST_ROOM:
            raise ArithmeticError(
                f"leave-one-out: training image {int(at)} has leverage 1 to rounding, nothing else "
                "fixes its logit. The penalty is tiny beside the embeddings: raise lam."
            )
        return self.residuals / self._room[:, None]

    @checked
    def leave_out(self, g: Tensor, group) -> Tensor:
        """Change of the logits ``(k,)`` or ``(m, k)`` when a group of training images is removed
        together, at the same penalty: exact (Woodbury), unlike the sum of the single effects,
        because the images of a group stand in for each other.

        Args:
            g: ``(c,)``, or several ``(m, c)``.
            group: image numbers, or a mask ``(n,)``.

        Raises:
            ValueError: a number twice or outside the training set.
            ArithmeticError: what remains does not fix the logits.
        """
        group = self._numbers(group)
        own = self.smoother(self.G[group])[:, group]  # (s, s)
        factor, failed = torch.linalg.cholesky_ex(
            torch.eye(len(group), dtype=own.dtype, device=own.device) - (own + own.T) / 2
        )
        # rounding may leave a pivot that should be zero just above it
        if failed or factor.diagonal().square().min() < ridge.LEAST_ROOM:
            raise ArithmeticError(
                f"leave_out: without these {len(group)} nothing fixes the logits. Keep some images."
            )
        return -self.smoother(g)[..., group] @ torch.cholesky_solve(self.residuals[group], factor)

    @checked
    def refit(self, kept: Numbers) -> "RidgeHead":
        """A new head of some of the training images, their numbers or a mask, at the same penalty
        ``r``: the slow way to what `leave_out` says.
        """
        head = RidgeHead(self.penalty, "none", self.intercept)
        kept = check_places("kept", kept, len(self.G), "image numbers").to(self.G.device)
        return head.fit(self.G[kept], self.Y[kept])

    def _centred(self, g: Tensor) -> Tensor:
        if not hasattr(self, "theta"):
            raise ValueError("this head has no weights yet: call fit(G, y) first.")
        c = len(self.theta)
        if g.ndim not in (1, 2) or g.shape[-1] != c:
            raise ValueError(
                f"g: expected ({c},) or (m, {c}), received {tuple(g.shape)}. Another readout?"
            )
        return g.to(self.theta) - self._g_mean

    def _numbers(self, group) -> Tensor:
        return check_places("group", group, len(self.G), "image numbers").to(self.G.device)


@checked
def training_contribution(
    g_test: real("c|m c"), G_train: real("n c"), alpha: real("n k")
) -> Tensor:
    """``alpha_ic <g_i, g>``, the dual view as a function: shares ``(n, k)`` or ``(m, n, k)`` of the
    training images ``G_train (n, c)`` in the logits ``g Theta`` of ``g_test (c,)`` or ``(m, c)``,
    when ``Theta = G^T alpha`` with dual coefficients ``alpha (n, k)``.
    """
    alpha = alpha.to(G_train.device)
    return ridge.each(g_test.to(alpha) @ G_train.to(alpha).T, alpha, None)


def training_scores(head: RidgeHead, g: Tensor, target: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """What each training image is said to add to the target logit of each test image, ``(m, n)`` by
    method.

    Leave-one-out with its sign turned (what the presence of an image adds), both exact
    decompositions, neighbourhood (the cosine, negative for images of other classes), and chance.
    """
    alike, generator = cosine_to_training(head.G, g), torch.Generator().manual_seed(seed)
    return {
        "leave-one-out": -head.leave_one_out(g, target),
        "weight view": head.training_contributions(g, "weight", target),
        "dual view": head.training_contributions(g, "dual", target),
        "neighbours": torch.where(head.Y.T[target] == 1, alike, -alike),
        "random": torch.randn(alike.shape, generator=generator, dtype=torch.double),
    }


def cosine_to_training(G: Tensor, g: Tensor) -> Tensor:
    """Cosines ``(m, n)`` of ``g (m, c)`` with the training embeddings ``G (n, c)``, about their
    mean.
    """
    mean = G.double().mean(0)
    return F.normalize(g.double() - mean, dim=1) @ F.normalize(G.double() - mean, dim=1).T


def linear_datamodeling_scores(
    scores, head: RidgeHead, g: Tensor, target: Tensor, removed: float, subsets=100, seed=0
) -> dict[str, Tensor]:
    """How well sums of scores foretell logits of heads fitted again on subsets (TRAK:
    Park, Georgiev, Ilyas, Leclerc and Madry 2023):
    ``(m,)`` rank correlations by method, 0 where a sum never changes; one for each test image and
    never a mean alone, for `ctrace.stats.bootstrap`.

    Every subset is a real fit at the same penalty. For each test image: Spearman's correlation,
    over subsets, of the sum of the scores of the images kept with the logit that came out.

    Args:
        scores: ``(m, n)`` by method, as from `training_scores`.
        g: test embeddings ``(m, c)``.
        target: class explained of each ``(m,)``.
        removed: share of the training images that is left out of a subset.
        subsets: number of fits.

    Raises:
        ValueError: a share that takes no image, or all.
    """
    n, generator = len(head.G), torch.Generator().manual_seed(seed)
    gone = round(removed * n)
    if not 0 < gone < n:
        raise ValueError(
            f"removed: expected a share that takes 1 to {n - 1} of the {n} images, not {removed}."
        )
    kept = torch.stack([torch.randperm(n, generator=generator)[gone:] for _ in range(subsets)])
    logits = torch.stack([head.refit(rows).predict(g) for rows in kept], 1)  # (m, s, k)
    truth = logits[torch.arange(len(g)), :, target]  # (m, s)
    inside = torch.zeros(subsets, n, dtype=torch.double).scatter(1, kept, 1)  # (s, n)
    return {
        name: torch.from_numpy(spearman(score.double() @ inside.T, truth, constant=0))
        for name, score in scores.items()
    }


def _check_one_class_map(G: Tensor, Y: Tensor) -> None:
    kinds = [None] * dist.get_world_size()
    dist.all_gather_object(kinds, (G.shape[1], Y.shape[1]))
    if len(set(kinds)) > 1:
        raise ValueError(
            f"torch.distributed: every process needs the same channels and classes, they have "
            f"{kinds}. Pass num_classes."
        )
