"""What ParchGrad costs beside the bare model, and its class tests beside scipy.

    python benchmarks/parchgrad.py                       # resnet18 and the bundled ResNet on the
        CPU
    python benchmarks/parchgrad.py --device cuda --model resnet50 --size 224

Contenders take turns, so that a busy machine slows all of them; ratios are taken within a turn, and
the tables show their median and range. The loop over scipy is run on a sample of channels and
classes and scaled to all of them. Expected: statistics at most 1.2 of a forward pass, an edited
backward at most 1.3 of a plain one, class tests at least 1,000 times faster than the loop.
"""

import timm
import torch
from scipy import stats
from turns import machine, medians, parser, ratios, spread, take_turns, timed

from ctrace.look.activations import Moments, welch_greater
from ctrace.look.channel_statistics import ChannelStatistics
from ctrace.look.hooks import find_layers
from ctrace.look.parchgrad import ParchGrad
from ctrace.look.partition import default_convs
from ctrace.world.models import BUNDLED, build_bundled


def row(name, seconds):
    """Medians of both contenders and the median and range of second over first."""
    (first, second), ratio = medians(seconds), ratios(seconds, 1, 0)
    times = f"{first * 1e3:.1f} | {second * 1e3:.1f}"
    return f"| {name} | {times} | {spread(ratio)} |"


def statistics_row(name, model, images, labels, turns, device, batches=6):
    """A pass over some batches, everything that comes once in a pass included."""

    def bare():
        with torch.no_grad():
            for _ in range(batches):
                model(images)

    collect = lambda: ChannelStatistics.collect(model, [(images, labels)] * batches, progress=False)
    layers = len(find_layers(model, kind=torch.nn.Conv2d))
    return row(
        f"{name}, {layers} layers, {batches * len(images)} images",
        take_turns([bare, collect], turns, device),
    )


def backward_rows(name, model, images, labels, turns, device):
    """The backward pass alone (its graph built before the clock starts), and forward and backward
    together.
    """
    half = torch.arange(len(labels), device=device) % 2
    parch = ParchGrad(
        model,
        ChannelStatistics.collect(model, [(images, half), (images.flip(0), half)], progress=False),
    )
    chosen = half[:, None]  # the two classes that have statistics
    x = images.clone().requires_grad_()
    backward = lambda logits: torch.autograd.grad(logits.gather(1, chosen).sum(), x)
    plain, edited, both = [], [], []
    for turn in range(turns + 1):
        built, logits = timed(lambda: model(x), device)
        one, _ = timed(lambda: backward(logits), device)
        with parch.partition("cls", quantile=0.1):
            built_inside, logits = timed(lambda: model(x), device)
            two, _ = timed(lambda: backward(logits), device)
        if turn:  # the first is a warm-up
            plain.append(one), edited.append(two), both.append((built + one, built_inside + two))
    where = f"{name}, {len(default_convs(model))} layers edited"
    return [
        row(f"{where}, backward", list(zip(plain, edited))),
        row(f"{where}, forward and backward", both),
    ]


def class_test_rows(turns, channels=512, classes=1000, per_class=20, sampled=(4, 3)):
    """All tests of a layer at once, against scipy one test at a time, and against scipy all
    channels at a time.
    """
    generator = torch.Generator().manual_seed(0)
    values, group = (
        torch.rand(classes * per_class, channels, generator=generator),
        torch.arange(classes * per_class) % classes,
    )
    moments = Moments.of_groups(values, group, classes)
    some_classes, some_channels = (
        range(0, classes, classes // sampled[0]),
        range(0, channels, channels // sampled[1]),
    )
    raw, worst = values.double().numpy(), 0.0
    _, p = welch_greater(moments, moments.all_but_one())

    def test(k, c):
        return stats.ttest_ind(
            raw[group == k, c], raw[group != k, c], equal_var=False, alternative="greater"
        ).pvalue

    for k in some_classes:
        worst = max([worst] + [abs(test(k, c) - p[k, c].item()) for c in some_channels])
    ours = lambda: welch_greater(moments, moments.all_but_one())
    loop = lambda: [test(k, c) for k in some_classes for c in some_channels]
    columns = lambda: [test(k, slice(None)) for k in some_classes]
    seconds = take_turns([ours, loop, columns], turns)
    tests = len(some_classes) * len(some_channels)
    looped = [(a, b * channels * classes / tests) for a, b, _ in seconds]
    by_columns = [(a, c * classes / len(some_classes)) for a, _, c in seconds]
    name = f"{channels} channels x {classes:,} classes, {len(values):,} images"
    return [
        row(f"{name}; scipy in a loop, scaled from {tests} tests", looped),
        row(f"{name}; scipy by columns, scaled from {len(some_classes)} classes", by_columns),
        f"\nlargest difference from scipy on these tests: {worst:.1e}",
    ]


def main():
    options = parser(__doc__, turns=9)
    options.add_argument("--model", nargs="+", default=["resnet18", "aviary-resnet-0"])
    options.add_argument("--size", type=int, default=96)
    options.add_argument("--batch", type=int, default=32)
    args = options.parse_args()
    print(
        f"{machine(args.device)}; {args.batch} images of {args.size} px; "
        f"median of {args.turns} turns, range in brackets\n"
    )
    print("| | bare, ms | ctrace, ms | ctrace / bare |\n|---|---|---|---|")
    for name in args.model:
        model = (
            (build_bundled(name) if name in BUNDLED else timm.create_model(name))
            .eval()
            .to(args.device)
        )
        images = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
        labels = torch.arange(args.batch)
        outputs = model.num_classes
        print(
            statistics_row(
                f"{name}: statistics", model, images, labels % outputs, args.turns, args.device
            ),
            flush=True,
        )
        for line in backward_rows(
            name, model, images, labels.to(args.device), args.turns, args.device
        ):
            print(line, flush=True)
    print("\n| class tests | ctrace, ms | scipy, ms | scipy / ctrace |\n|---|---|---|---|")
    for line in class_test_rows(args.turns):
        print(line, flush=True)


if __name__ == "__main__":
    main()
