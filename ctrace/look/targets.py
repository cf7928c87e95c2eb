"""What is asked: one score per image, from the model's output.

A classifier is asked for a class, an embedding model for a similarity. Every method that follows
gradients asks through here, so that a question without an answer is recognised once, in the same
words: a saturated score has no gradient to follow.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrace.arguments import warn
from ctrace.check import as_tensor, at_least_float32, check_classes, one_of

# of embeddings (b, 1, d) to references (b, r, d); the euclidean is squared: the same map up to a
# factor, and no kink where the distance is 0
SIMILARITIES = {
    "cosine": lambda e, references: F.cosine_similarity(e, references, dim=-1),
    "dot": lambda e, references: (e * references).sum(-1),
    "euclidean": lambda e, references: -(e - references).square().sum(-1),
}


@dataclass(frozen=True, eq=False)
class Target:
    """One question per image; calling it with the model's output ``(b, d)`` gives the scores
    ``(b,)``.

    Attributes:
        kind: ``"class"``, ``"norm"``, ``"callable"`` or a key of `SIMILARITIES`.
        words: per image, the question in words.
        index: class per image ``(b,)``.
        references, baselines: ``(b, r, d)``; the score is the mean similarity to the first minus
            that to the second.
        function: the caller's own.
    """

    kind: str
    words: list[str]
    index: Tensor | None = None
    references: Tensor | None = None
    baselines: Tensor | None = None
    function: Callable | None = None

    def __call__(self, output: Tensor) -> Tensor:
        if self.kind == "callable":
            return _one_score_each(self.function(output), output)
        if self.kind == "class":
            return output.gather(1, self.index[:, None])[:, 0]
        e = at_least_float32(output)
        if self.kind == "norm":
            return e.norm(dim=1)
        likeness = SIMILARITIES[self.kind]
        score = likeness(e[:, None], self.references).mean(1)
        if self.baselines is None:
            return score
        return score - likeness(e[:, None], self.baselines).mean(1)

    def of(self, i: int, copies: int = 1) -> "Target":
        """The question for image ``i``, asked of ``copies`` versions of it."""
        each = {name: getattr(self, name) for name in ("index", "references", "baselines")}
        rows = {name: x[[i] * copies] for name, x in each.items() if x is not None}
        return replace(self, words=[self.words[i]] * copies, **rows)


def make_target(
    output: Tensor, target=None, target_embedding=None, baseline_embedding=None
) -> Target:
    """The question for this output.

    Args:
        output: ``(b, d)``, logits or embeddings.
        target: a class index for all images, one per image (sequence or tensor ``(b,)``),
            ``"predicted"``, ``"norm"``, or a callable from the output to ``(b,)``. With
            ``target_embedding``: ``"cosine"`` (default), ``"dot"`` or ``"euclidean"``.
        target_embedding: ``(d,)`` for all images, ``(b, d)`` one per image, ``(b, r, d)`` or ``(1,
            r, d)``: r references each, whose similarities are averaged; for a single image ``(r,
            d)`` too.
        baseline_embedding: the same shapes; its similarity is subtracted (contrast).

    Raises:
        ValueError: with what was expected, what came, and what to do.

    >>> make_target(torch.eye(3), [2, 0, 1])(torch.arange(9.0).view(3, 3))
    tensor([2., 3., 7.])
    """
    b = len(output)
    if target_embedding is None and baseline_embedding is not None:
        raise ValueError("baseline_embedding: a contrast with what? no target_embedding came.")
    if target is None and target_embedding is None:
        target = "norm"
        norm = "no target: explaining the norm of the output; target='norm' says so"
        others = "A classifier takes a class or 'predicted', a pair target_embedding"
        warn(f"{norm}. {others}.")
    if target_embedding is None and callable(target):
        words = getattr(target, "__name__", "callable")
        return Target("callable", [words] * b, function=target)
    if output.ndim != 2:
        how = "Classes and embeddings are rows (b, d). Pass a callable to one score per image"
        raise ValueError(f"the model's output has shape {tuple(output.shape)}. {how}.")
    if target_embedding is not None:
        return _similarity_target(output, target, target_embedding, baseline_embedding)
    if isinstance(target, str):
        words = "target (a class, a callable, or a similarity with a target_embedding)"
        if one_of(words, target, ("norm", "predicted")) == "norm":
            return Target("norm", ["norm of the output"] * b)
        target = output.argmax(1)
    index = check_classes(target, b, output.shape[1]).to(output.device)
    return Target("class", [f"class {k}" for k in index.tolist()], index=index)


def _similarity_target(output: Tensor, kind, target_embedding, baseline_embedding) -> Target:
    words = "target (with a target_embedding it names the similarity)"
    kind = one_of(words, "cosine" if kind is None else kind, SIMILARITIES)
    references = _references(target_embedding, output, kind, "target_embedding")
    words, baselines = f"{kind} similarity to {references.shape[1]} reference(s)", None
    if baseline_embedding is not None:
        baselines = _references(baseline_embedding, output, kind, "baseline_embedding")
        words += f" minus {kind} similarity to {baselines.shape[1]} baseline(s)"
    return Target(kind, [words] * len(output), references=references, baselines=baselines)


def _references(given, output: Tensor, kind: str, name: str) -> Tensor:
    """``(b, r, d)`` from the shapes `make_target` accepts."""
    given = as_tensor(name, given, device=output.device).detach().to(at_least_float32(output).dtype)
    (b, d), shape = output.shape, tuple(given.shape)
    if given.ndim == 1:
        given = given[None, None]
    elif given.ndim == 2:
        given = given[None] if b == 1 else given[:, None]
    if given.ndim != 3 or len(given) not in (1, b) or given.shape[1] == 0 or given.shape[2] != d:
        wanted = f"({d},) for all images, ({b}, {d}) one per image, or (1, r, {d}), gallery[None]"
        raise ValueError(f"{name}: expected {wanted}; received {shape}. Is it from another model?")
    lost = kind == "cosine" and bool((given.norm(dim=2) == 0).any())
    if lost or not bool(torch.isfinite(given).all()):
        raise ValueError(f"{name}: NaN, infinity or a zero vector, which has no direction.")
    return given.expand(b, -1, -1)


def _one_score_each(score, output: Tensor) -> Tensor:
    expected = (len(output),)
    if not isinstance(score, Tensor) or score.shape != expected:
        got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
        wanted = f"one score per image, shape {expected}"
        raise ValueError(f"target: the callable must return {wanted}; it returned {got}.")
    if output.requires_grad and not score.requires_grad:
        raise ValueError("target: the callable's score does not come from the output (.item()?).")
    return score


def saturation(output: Tensor, score: Tensor, target: Target, pull: Callable) -> list[str]:
    """Per image, why the score cannot change, or ``""`` where it can.

    Two causes. The score is flat at the output: a pair of equal embeddings, two equal references, a
    probability of exactly 1. Or its slope points along the embedding only, and the model holds the
    length of its embedding fixed (it normalises), so that no input can follow: then the radial
    direction, pulled back through the model, is rounding noise beside any other.

    Args:
        pull: from a cotangent ``(b, d)`` at the output to its gradient at the place of interest,
            first axis ``b``.
    """
    (slope,) = torch.autograd.grad(score.sum(), output, retain_graph=True, allow_unused=True)
    slope = torch.zeros_like(output) if slope is None else slope
    slope, e = (at_least_float32(x.detach()).flatten(1) for x in (slope, output))  # (b, d)
    if target.kind in ("class", "callable"):
        flat = slope.norm(dim=1) == 0
    else:
        # references are stored in float32 as a rule
        coarsest = torch.float32 if output.dtype == torch.float64 else output.dtype
        tolerance = torch.finfo(coarsest).eps ** 0.5
        flat = slope.norm(dim=1) <= tolerance * _natural_slope(target, e)
        unit = e / e.norm(dim=1, keepdim=True).clamp_min(torch.finfo(e.dtype).tiny)
        tangent = slope - (slope * unit).sum(1, keepdim=True) * unit
        radial_only = ~flat & (tangent.norm(dim=1) <= tolerance * slope.norm(dim=1))
        if bool(radial_only.any()):
            flat = flat | (radial_only & _length_is_fixed(unit, output, pull, tolerance))
    return [_reason(target, i) if stuck else "" for i, stuck in enumerate(flat.tolist())]


def _natural_slope(target: Target, e: Tensor) -> Tensor:
    """What the slope of this score at the embedding would be away from saturation ``(b,)``."""
    if target.kind == "norm":
        return torch.ones_like(e[:, 0])
    if target.kind == "cosine":
        return 1 / e.norm(dim=1)
    return target.references.norm(dim=2).mean(1)


def _length_is_fixed(unit: Tensor, output: Tensor, pull: Callable, tolerance: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    other = torch.randn(unit.shape[1], generator=generator, dtype=torch.float32).to(unit)
    other = (other / other.norm()).expand_as(unit)
    along, across = (pull(v.to(output.dtype)).flatten(1).norm(dim=1) for v in (unit, other))
    return along <= tolerance * across


def _reason(target: Target, i: int) -> str:
    if target.kind == "norm":
        why = "the model normalises, so the norm has no gradient. Ask for a similarity."
    elif target.kind not in SIMILARITIES:
        why = "the score does not respond to the output (a probability of 0 or 1?). Use the logit."
    elif target.baselines is not None:
        why = "the two sides cancel: are they the same? Contrast two different identities."
    else:
        why = "at the same embedding (or opposite, or 0) it is flat. Compare two different images."
    return f"{target.words[i]}: {why}"
