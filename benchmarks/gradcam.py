"""What a batch of Grad-CAM maps costs, beside one forward and one backward pass of the bare model
and beside grad-cam.

    python benchmarks/gradcam.py                       # resnet18 and a small ViT on the CPU
    python benchmarks/gradcam.py --device cuda --model resnet50 --size 224

The three take turns, so that a busy machine slows all of them; ratios are taken within a turn, and
the table shows their median and range. Expected: at most 1.1 of the bare model, and less than
grad-cam.
"""

import timm
import torch
from pytorch_grad_cam import GradCAM as PeerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from turns import machine, medians, parser, ratios, spread, take_turns

from ctrace.look.gradcam import GradCAM
from ctrace.world.tokens import tokens_to_map


def bare(model, images, targets):
    """One forward and one backward pass, gradients to all parameters, as in a training step."""

    def step():
        model.zero_grad(set_to_none=True)
        model(images).gather(1, targets[:, None]).sum().backward()

    return step


def ours(model, images, targets):
    cam = GradCAM(model)

    def step():
        model.zero_grad(
            set_to_none=True
        )  # hand the memory back, so that no contender pays for another's
        cam.explain(images, target=targets).heatmap()

    return step


def peer(model, images, targets):
    """The same layer, device and targets, through the package's own public call."""
    layer = dict(model.named_modules())[GradCAM(model).target_layer_name]
    turn = (
        (lambda tokens: tokens_to_map(tokens, model, images.shape[2:]))
        if hasattr(model, "num_prefix_tokens")
        else None
    )
    chosen = [ClassifierOutputTarget(k) for k in targets.tolist()]

    def step():
        with PeerCAM(model, [layer], reshape_transform=turn) as cam:
            cam(images, chosen)

    return step


def measure(name, size, batch, turns, device):
    """Seconds ``[turn][bare, ctrace, grad-cam]``."""
    settings = dict(img_size=size) if "vit" in name else {}
    model = timm.create_model(name, **settings).eval().to(device)
    images, targets = (
        torch.randn(batch, 3, size, size, device=device),
        torch.arange(batch, device=device),
    )
    return take_turns([make(model, images, targets) for make in (bare, ours, peer)], turns, device)


def line(name, size, batch, seconds):
    against_bare, against_peer = ratios(seconds, 1, 0), ratios(seconds, 1, 2)
    cells = " | ".join(f"{s:7.3f}" for s in medians(seconds))
    against = f"{spread(against_bare)} | {spread(against_peer)}"
    return f"| {name} {size} px x {batch} | {cells} | {against} |"


def main():
    options = parser(__doc__, turns=9)
    options.add_argument("--model", nargs="+", default=["resnet18", "vit_tiny_patch16_224"])
    options.add_argument("--size", type=int, default=128)
    options.add_argument("--batch", type=int, default=32)
    args = options.parse_args()
    print(f"{machine(args.device)}; median of {args.turns} turns, range in brackets\n")
    print(
        "| batch | bare forward + backward, s | ctrace, s | grad-cam, s "
        "| ctrace / bare | ctrace / grad-cam |"
    )
    print("|---|---|---|---|---|---|")
    for name in args.model:
        print(
            line(
                name,
                args.size,
                args.batch,
                measure(name, args.size, args.batch, args.turns, args.device),
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
