"""What a batch of Grad-CAM maps costs, beside one forward and one backward pass of the bare model and beside grad-cam.

    python benchmarks/gradcam.py                       # resnet18 and a small ViT on the CPU
    python benchmarks/gradcam.py --device cuda --model resnet50 --size 224

The three take turns, so that a busy machine slows all of them; ratios are taken within a turn, and the table shows their
median and range. Expected: at most 1.1 of the bare model, and less than grad-cam.
"""

import argparse
import statistics
import time

import timm
import torch
from pytorch_grad_cam import GradCAM as PeerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from ctrace.gradcam import GradCAM
from ctrace.tokens import tokens_to_map

BAR = 1.1


def bare(model, images, targets):
    """One forward and one backward pass, gradients to all parameters, as in a training step."""

    def step():
        model.zero_grad(set_to_none=True)
        model(images).gather(1, targets[:, None]).sum().backward()

    return step


def ours(model, images, targets):
    cam = GradCAM(model)

    def step():
        model.zero_grad(set_to_none=True)  # hand the memory back, so that no contender pays for another's
        cam.explain(images, target=targets).heatmap()

    return step


def peer(model, images, targets):
    """The same layer, device and targets, through the package's own public call."""
    layer = dict(model.named_modules())[GradCAM(model).target_layer]
    turn = (lambda tokens: tokens_to_map(tokens, model, images.shape[2:])) if hasattr(model, "num_prefix_tokens") else None
    chosen = [ClassifierOutputTarget(k) for k in targets.tolist()]

    def step():
        with PeerCAM(model, [layer], reshape_transform=turn) as cam:
            cam(images, chosen)

    return step


def timed(step, device):
    sync = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    sync()
    start = time.perf_counter()
    step()
    sync()
    return time.perf_counter() - start


def measure(name, size, batch, turns, device):
    """Seconds per turn of each contender, after one warm-up each."""
    settings = dict(img_size=size) if "vit" in name else {}
    model = timm.create_model(name, **settings).eval().to(device)
    images, targets = torch.randn(batch, 3, size, size, device=device), torch.arange(batch, device=device)
    steps = [make(model, images, targets) for make in (bare, ours, peer)]
    for step in steps:
        timed(step, device)
    return [[timed(step, device) for step in steps] for _ in range(turns)]


def line(name, size, batch, seconds):
    against_bare = [cam / base for base, cam, _ in seconds]
    against_peer = [cam / other for _, cam, other in seconds]
    middle = [statistics.median(column) for column in zip(*seconds)]
    spread = lambda ratios: f"{statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    met = "met" if statistics.median(against_bare) <= BAR and statistics.median(against_peer) < 1 else "MISSED"
    cells = " | ".join(f"{s:7.3f}" for s in middle)
    return f"| {name} {size} px x {batch} | {cells} | {spread(against_bare)} | {spread(against_peer)} | {met} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["resnet18", "vit_tiny_patch16_224"])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}; torch {torch.__version__}; median of {args.turns} turns, range in brackets\n")
    print("| batch | bare forward + backward, s | ctrace, s | grad-cam, s | ctrace / bare | ctrace / grad-cam | <= 1.1 and < 1 |")
    print("|---|---|---|---|---|---|---|")
    for name in args.model:
        print(line(name, args.size, args.batch, measure(name, args.size, args.batch, args.turns, args.device)), flush=True)


if __name__ == "__main__":
    main()
