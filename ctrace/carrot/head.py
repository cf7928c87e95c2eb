"""A ridge regression head in closed form, and what each training image has to do with its answers:
no gradient, no optimiser.

``W = (G^T G + r I)^-1 G^T Y`` makes every logit a weighted sum over training images, ``logits(g) =
sum_i S_i(g) Y_i`` with ``S_i(g) = g^T (G^T G + r I)^-1 g_i``. Everything else follows from S: two
exact decompositions, and what happens without an image.

    >>> G, y = torch.eye(3, dtype=torch.double), torch.tensor([0, 1, 1])
    >>> head = RidgeHead(lam=1.0).fit(G, y)
    >>> head.predict(G[1]).tolist()
    [0.0, 0.5]
    >>> head.leave_one_out(G[1], target=1).tolist()  # without image 1 nothing there speaks for class 1
    [0.0, -0.5, 0.0]
"""

import torch
import torch.distributed as dist
from torch import Tensor

from ctrace.carrot.ridge_sums import RidgeSums

__all__ = ["RidgeHead", "one_hot", "penalty", "training_contribution", "training_set"]

SCALES, VIEWS, FORMS = ("none", "n"), ("weight", "dual"), ("auto", "primal", "dual")
LEAST_ROOM = 1e-10  # 1 - leverage below this has lost ten digits of sixteen to the subtraction
LEAST_PIVOT = 1e-12  # smallest over largest: below this the solution has lost twelve


class RidgeHead:
    """Least squares with a penalty on the weights, solved exactly; it keeps the training
    embeddings, to answer for itself.

    Computed in float64 where the embeddings are. With fewer images than channels the ``(n, n)``
    system is solved, otherwise the ``(c, c)`` one; the answers are the same. Under
    ``torch.distributed`` each process passes its own share of the images to `fit`:
    the weights are then those of all images, and the attributions are about the share, still exact.

    Args:
        lam: size of the penalty, above 0.
        scale: "none" penalises by ``r = lam``; "n" by ``r = n lam``, so that lam means the same for
            any number of images. Removing images leaves ``r`` as it is, ``n lam`` of the full set:
            a penalty that shrank with them would be a second change.
        intercept: add a constant, which is not penalised.
        form: "primal", "dual", or "auto" for the smaller system.

    Attributes:
        weights: ``(c, k)``, after `fit` like all that follow.
        bias: ``(k,)``, zero without intercept.
        penalty: ``r``.
        residuals: target minus logit of each training image ``(n, k)``.
        alpha: dual coefficients ``(n, k)``, the residuals over ``r``; ``weights = G^T alpha``.
        leverage: how much each training image decides its own logit ``(n,)``, between 0 and 1.
    """

    def __init__(
        self, lam: float, scale: str = "none", intercept: bool = False, form: str = "auto"
    ):
        penalty(lam, scale, 1)
        if form not in FORMS:
            raise ValueError(f"form: expected one of {', '.join(FORMS)}, received {form!r}.")
        self.lam, self.scale, self.intercept, self.form = float(lam), scale, bool(intercept), form

    def __repr__(self) -> str:
        return f"RidgeHead(lam={self.lam:g}, scale={self.scale!r}, intercept={self.intercept})"

    def fit(self, G: Tensor, y: Tensor, num_classes: int | None = None) -> "RidgeHead":
        """Solve for the weights, and return the head.

        Args:
            G: embeddings ``(n, c)``.
            y: class numbers ``(n,)``, or any targets ``(n, k)``.
            num_classes: of the class map; the training labels may lack its last classes.

        Raises:
            ValueError: shapes or labels that do not fit, values that are not finite, too few
                images.
            ArithmeticError: lam is lost in the rounding of the system.
        """
        G, Y = training_set(G, y, num_classes)
        shared = dist.is_available() and dist.is_initialized()
        sums = RidgeSums.of(G, Y)
        sums = sums.all_reduce() if shared else sums
        if sums.count < 1 + self.intercept:
            raise ValueError(
                f"fit: expected at least {1 + self.intercept} training images, received {sums.count}."
            )
        self.penalty = penalty(self.lam, self.scale, sums.count)
        self._share = self.intercept / sums.count  # what the intercept gives to each image
        self._g_mean, self._y_mean = sums.mean_g * self.intercept, sums.mean_y * self.intercept
        self._G, self._Y = G - self._g_mean, Y  # (n, c), (n, k)
        dual = self.form == "dual" or (self.form == "auto" and len(G) < G.shape[1])
        self._solve_dual() if dual and not shared else self._solve_primal(sums)
        self.bias = self._y_mean - self._g_mean @ self.weights  # (k,)
        self.alpha = self.residuals / self.penalty
        self.leverage = 1 - self._room
        return self

    def predict(self, g: Tensor) -> Tensor:
        """Logits ``(k,)`` of one embedding ``(c,)``, or ``(m, k)`` of several ``(m, c)``."""
        return self._centred(g) @ self.weights + self._y_mean

    def smoother(self, g: Tensor) -> Tensor:
        """``S_i(g)`` ``(n,)`` or ``(m, n)``: ``predict(g) = S(g) Y``, whatever the targets Y are."""
        return self._centred(g) @ self._smooth + self._share

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
        """
        if view not in VIEWS:
            raise ValueError(f"view: expected one of {', '.join(VIEWS)}, received {view!r}.")
        if view == "weight":
            return _each(self.smoother(g), self._Y, target)
        equal = torch.full_like(g[..., :1].double(), self._share).expand(
            *g.shape[:-1], len(self._Y)
        )  # (..., n)
        return _each(self._centred(g) @ self._G.T, self.alpha, target) + _each(
            equal, self._Y, target
        )

    def leave_one_out(self, g: Tensor, target=None) -> Tensor:
        """Change of each logit of ``g`` when one training image is removed, for each of them: equal
        to fitting again without it.

        ``-S_i(g) (Y_i - logits(g_i)) / (1 - S_i(g_i))``, at the same penalty ``r``. Negative: the
        image was helpful to the logit. Arguments and shapes as in `training_contributions`.

        Raises:
            ArithmeticError: an image whose leverage is 1 to rounding.
        """
        return _each(-self.smoother(g), self.loo_residuals(), target)

    def loo_residuals(self) -> Tensor:
        """Target minus the logit that the fit *without* the image gives it ``(n, k)``: large where
        a label surprises the rest.
        """
        room, at = self._room.min(0)
        if room < LEAST_ROOM:
            raise ArithmeticError(
                f"leave-one-out: training image {int(at)} has leverage 1 to rounding (1 - {float(room):.0e}), so nothing else fixes its "
                "logit. The penalty is tiny beside the embeddings: raise lam."
            )
        return self.residuals / self._room[:, None]

    def leave_out(self, g: Tensor, group) -> Tensor:
        """Change of the logits ``(k,)`` or ``(m, k)`` when a group of training images is removed
        together, at the same penalty.

        Exact (Woodbury); the sum of the single effects is not, because the images of a group stand
        in for each other.

        Args:
            g: ``(c,)``, or several ``(m, c)``.
            group: image numbers, or a mask ``(n,)``.

        Raises:
            ValueError: a number twice or outside the training set.
            ArithmeticError: what remains does not fix the logits.
        """
        group = self._numbers(group)
        own = self._G[group] @ self._smooth[:, group] + self._share  # (s, s)
        factor, failed = torch.linalg.cholesky_ex(
            torch.eye(len(group), dtype=own.dtype, device=own.device) - (own + own.T) / 2
        )
        if (
            failed or factor.diagonal().square().min() < LEAST_ROOM
        ):  # rounding may leave a pivot that should be zero just above it
            raise ArithmeticError(
                f"leave_out: without these {len(group)} images nothing fixes the logits. Keep some, or raise lam."
            )
        return -self.smoother(g)[..., group] @ torch.cholesky_solve(self.residuals[group], factor)

    def _solve_primal(self, sums: RidgeSums) -> None:
        gg, gy = (sums.gg, sums.gy) if self.intercept else sums.raw()
        factor = _cholesky(gg, self.penalty)
        self.weights = torch.cholesky_solve(gy, factor)  # (c, k)
        self._smooth = torch.cholesky_solve(self._G.T, factor)  # (c, n)
        self.residuals = self._Y - self._y_mean - self._G @ self.weights
        self._room = 1 - self._share - (self._G * self._smooth.T).sum(1)  # (n,)

    def _solve_dual(self) -> None:
        products, n = self._G @ self._G.T, len(self._G)  # (n, n)
        # Centred embeddings know no constant: its eigenvalue, 0, may be any other, and a middling
        # one keeps the digits of the rest.
        constant = float(products.trace()) / n * self.intercept
        inverse = torch.cholesky_inverse(_cholesky(products + constant / n, self.penalty))
        self._smooth = self._G.T @ inverse  # (c, n)
        # Residuals and room by multiplication: as differences they would lose the digits of a small
        # penalty.
        self.residuals = self.penalty * inverse @ (self._Y - self._y_mean)
        self._room = self.penalty * (inverse.diagonal() - self._share / (constant + self.penalty))
        self.weights = self._G.T @ self.residuals / self.penalty

    def _centred(self, g: Tensor) -> Tensor:
        if not hasattr(self, "weights"):
            raise ValueError("this head has no weights yet: call fit(G, y) first.")
        if g.ndim not in (1, 2) or g.shape[-1] != len(self.weights):
            c = len(self.weights)
            raise ValueError(
                f"g: expected ({c},) or (m, {c}), received {tuple(g.shape)}. Another backbone or readout than in fit?"
            )
        return g.to(self.weights) - self._g_mean

    def _numbers(self, group) -> Tensor:
        group, n = torch.as_tensor(group, device=self._G.device), len(self._G)
        group = (
            group.nonzero()[:, 0] if group.dtype == torch.bool and group.shape == (n,) else group
        )
        if (
            group.ndim != 1
            or group.dtype == torch.bool
            or len(group.unique()) != len(group)
            or (len(group) and not 0 <= int(group.min()) <= int(group.max()) < n)
        ):
            raise ValueError(
                f"group: expected different image numbers from 0 to {n - 1}, or a mask ({n},), received {group.dtype} {tuple(group.shape)}."
            )
        return group.long()


def training_contribution(g_test: Tensor, G_train: Tensor, alpha: Tensor) -> Tensor:
    """``alpha_ic <g_i, g>``, the dual view as a function: shares of training images in the logits
    ``g W`` when ``W = G^T alpha``.

    Args:
        g_test: ``(c,)``, or several ``(m, c)``.
        G_train: ``(n, c)``.
        alpha: dual coefficients ``(n, k)``, such as `RidgeHead.alpha` of a head without intercept.

    Returns:
        ``(n, k)`` or ``(m, n, k)``.
    """
    return _each(g_test @ G_train.T, alpha, None)


def one_hot(y: Tensor, num_classes: int | None = None) -> Tensor:
    """Class numbers ``(n,)`` as targets ``(n, k)`` in float64; ``k`` is the largest label plus one
    unless it is given.

    >>> one_hot(torch.tensor([1, 0]), 3).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    lowest, highest = (int(y.min()), int(y.max())) if len(y) else (0, -1)
    k = highest + 1 if num_classes is None else num_classes
    if not 0 <= lowest or not highest < k:
        raise ValueError(
            f"labels: classes run from 0 to {k - 1}, received {lowest} to {highest}. Is there one class map for all splits?"
        )
    return torch.eye(k, dtype=torch.double, device=y.device)[y.long()]  # (n, k)


def penalty(lam: float, scale: str, n: int) -> float:
    """``r = lam`` or ``n lam``."""
    if not 0 < float(lam) < float("inf"):
        raise ValueError(
            f"lam: expected a finite number above 0, received {lam}. Next to no penalty: a tiny number, such as 1e-9."
        )
    if scale not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, received {scale!r}.")
    return float(lam) * (n if scale == "n" else 1)


def training_set(G: Tensor, y: Tensor, num_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Embeddings ``(n, c)`` and targets ``(n, k)`` in float64, checked."""
    if G.ndim != 2 or not G.is_floating_point():
        raise ValueError(f"G: expected embeddings (n, c), received {G.dtype} {tuple(G.shape)}.")
    if y.ndim not in (1, 2) or len(y) != len(G) or (y.ndim == 1) == y.is_floating_point():
        raise ValueError(
            f"y: expected {len(G)} class numbers (n,) or targets (n, k), received {y.dtype} {tuple(y.shape)}."
        )
    Y = one_hot(y, num_classes) if y.ndim == 1 else y
    G, Y = G.detach().double(), Y.detach().to(G.device, torch.double)
    for name, values in (("G", G), ("y", Y)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(
                f"{name}: {int((~torch.isfinite(values)).any(1).sum())} of {len(values)} rows hold NaN or infinity."
            )
    return G, Y


def _each(weights: Tensor, values: Tensor, target) -> Tensor:
    """``weights (..., n)`` times ``values (n, k)``: ``(..., n, k)``, or only the target class of
    each ``(..., n)``.
    """
    return weights[..., None] * values if target is None else weights * values.T[target]


def _cholesky(products: Tensor, r: float) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(
        products + r * torch.eye(len(products), dtype=products.dtype, device=products.device)
    )
    pivots = factor.diagonal()
    if failed or (pivots.min() / pivots.max()) ** 2 < LEAST_PIVOT:
        raise ArithmeticError(
            f"the penalty {r:.1e} is lost in the rounding of embeddings whose products reach {float(products.diagonal().max()):.1e}, and "
            "they are too alike to do without. Raise lam, or scale the embeddings."
        )
    return factor
