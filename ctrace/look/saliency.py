"""Input attributions: how each pixel and colour channel moves a score. Raw, signed, ``(b, c,
height, width)``.

All take the targets of `ctrace.look.targets.make_target` and follow whatever gradient the model
gives, so that inside `ctrace.look.hooks.edit_gradient` they follow the edited one. A batch equals
one by one: every image sees the same noise.
"""

from functools import partial

import torch
from torch import Tensor, nn

from ctrace.arguments import Count, Numbers, Seed, checked, warn, within
from ctrace.check import (
    at_least_float32,
    check_gradients_on,
    check_ready,
    one_output,
    prepare_images,
)
from ctrace.look.hooks import is_edited
from ctrace.look.targets import Target, make_target, saturation

AT_ONCE = 32  # points per forward pass, so that memory does not grow with samples or steps


@checked
def gradient(model: nn.Module, image: Tensor, target=None, **embeddings) -> Tensor:
    """The derivative of the score with respect to the input (Simonyan et al. 2014, eq. 3, with its
    sign).

    Args:
        model: in eval mode.
        image: ``(3, height, width)`` or ``(b, 3, height, width)``.
        target: as in `ctrace.look.targets.make_target`.
        **embeddings: ``target_embedding`` and ``baseline_embedding`` of the same.

    Raises:
        ValueError: bad input, or a saturated target.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    >>> bool((gradient(net, torch.rand(3, 2, 2), target=1)[0].flatten() == net[1].weight[1]).all())
    True
    """
    return _ask(model, image, target, embeddings)[2]


@checked
def input_x_gradient(model: nn.Module, image: Tensor, target=None, **embeddings) -> Tensor:
    """Input times `gradient` (Shrikumar et al. 2017): sums to the score where the model is linear
    without bias.
    """
    images, _, slope = _ask(model, image, target, embeddings)
    return images * slope


@checked
def smoothgrad(
    model: nn.Module,
    image: Tensor,
    target=None,
    samples: Count = 25,
    noise: within(at_least=0) = 0.15,
    seed: Seed = 0,
    **embeddings,
) -> Tensor:
    """Mean `gradient` over noisy copies of the image (Smilkov et al. 2017, section 3).

    Args:
        noise: standard deviation, in units of the image's own range (maximum minus minimum).
        seed: the global random state is neither read nor changed.
    """
    images, question, _ = _ask(model, image, target, embeddings)
    maps = []
    for i, x in enumerate(images):
        spread, generator = noise * float(x.max() - x.min()), torch.Generator().manual_seed(seed)
        drawn = torch.randn(samples, *x.shape, generator=generator, dtype=torch.float32)
        offsets = (spread * drawn).to(x)
        slopes, _ = _slopes(model, x + offsets, question, i)
        maps.append(slopes.mean(0))
    return torch.stack(maps)


@checked
def integrated_gradients(
    model: nn.Module,
    image: Tensor,
    target=None,
    steps: Count = 64,
    baseline: Numbers = 0.0,
    **embeddings,
) -> Tensor:
    """Mean `gradient` along the straight line from a baseline, times the difference (Sundararajan
    et al. 2017, eq. 1).

    Trapezoid rule with ``steps`` intervals, so the sum tends to score(image) - score(baseline)
    (completeness). An edited gradient has no such sum.

    Args:
        baseline: an image, or one number for all pixels.

    Warns:
        UserWarning: the sum misses that difference by more than 5%: more steps are needed.
    """
    images, question, _ = _ask(model, image, target, embeddings)
    start = torch.as_tensor(baseline, dtype=images.dtype, device=images.device)
    if start.ndim and start.shape[-3:] != images.shape[1:]:
        wanted, came = tuple(images.shape[1:]), tuple(start.shape)
        raise ValueError(f"baseline: expected a finite number or image {wanted}, received {came}.")
    along = torch.linspace(0, 1, steps + 1).to(images)[:, None, None, None]
    share = torch.ones_like(along)
    share[0] = share[-1] = 0.5
    maps = []
    for i, (x, origin) in enumerate(zip(images, start.expand_as(images))):
        slopes, scores = _slopes(model, origin + along * (x - origin), question, i)
        maps.append((x - origin) * (share * slopes).sum(0) / steps)
        if not is_edited(model):
            _check_complete(maps[-1], float(scores[-1] - scores[0]), i)
    return torch.stack(maps)


def _ask(model: nn.Module, image: Tensor, target, embeddings) -> tuple[Tensor, Target, Tensor]:
    """The images as a batch, the question asked of them, and the gradient; refuses a question whose
    answer is flat.
    """
    check_gradients_on()
    check_ready(model)
    images = prepare_images(model, image).requires_grad_()
    output = one_output(model(images), len(images))
    question = make_target(output.detach(), target, **embeddings)
    score = question(output)

    pull = partial(torch.autograd.grad, output, images, retain_graph=True)
    reasons = enumerate(saturation(output, score, question, lambda v: pull(v)[0]))
    refused = [f"image {i}: saturated_target: {reason}" for i, reason in reasons if reason]
    if refused:
        raise ValueError("\n".join(refused))
    slope = at_least_float32(torch.autograd.grad(score.sum(), images)[0])
    for i in (slope == 0).flatten(1).all(1).nonzero()[:, 0].tolist():
        why = "the gradient is exactly zero at every pixel: ReLUs shut all paths, or underflow."
        warn(f"image {i}: {why}")
    return images.detach(), question, slope


def _slopes(model: nn.Module, points: Tensor, question: Target, i: int) -> tuple[Tensor, Tensor]:
    """Gradient and score at each of n points ``(n, c, height, width)``, all asked what image ``i``
    is asked.
    """
    slopes, scores = [], []
    for x in points.split(AT_ONCE):
        x = x.detach().requires_grad_()
        score = question.of(i, len(x))(model(x))
        slopes += torch.autograd.grad(score.sum(), x)
        scores.append(score.detach())
    return at_least_float32(torch.cat(slopes)), torch.cat(scores)


def _check_complete(attribution: Tensor, difference: float, i: int) -> None:
    total, size = float(attribution.sum()), float(attribution.abs().sum())
    # a difference near zero needs a scale of its own
    if abs(total - difference) > 0.05 * max(abs(difference), 0.1 * size):
        sums = f"integrated gradients sum to {total:.4g}, the score changed by {difference:.4g}"
        warn(f"image {i}: {sums}. Raise steps until they agree.")
