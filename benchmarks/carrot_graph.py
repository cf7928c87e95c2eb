"""What the two shortcuts of the region graph save: all single-region removals in one call, and
diffusion without a matrix exponential.

    python benchmarks/carrot_graph.py
    python benchmarks/carrot_graph.py --regions 196 --tokens 4096 --channels 64 384

Float64 throughout. Both sides of a comparison must agree to 1e-8 or the script stops. Removal:
rebuilding takes, for each region, the remaining tokens, their graph at the same bandwidths, its
diffusion by torch's matrix exponential, the mean readout and the head; a second opponent starts
from the stored weights and diffuses one vector only, which is the best that a loop can do.
Expected: at least 100 times faster than rebuilding, and at least 10 times faster than
torch.linalg.matrix_exp on 4,096 tokens of 64 channels. The advantage shrinks as channels grow: the
exponential costs the same for any number of them, the action is proportional to it.
"""

from functools import partial

import torch
from turns import machine, parser, spread, timed

from ctrace.carrot.attribution import remove_nodes
from ctrace.carrot.diffusion import DiffusionOperator, GraphReadout
from ctrace.carrot.graph import RegionGraph, RegionGraphBuilder, RegionSet
from ctrace.world.tokens import patch_centers

AGREE = 1e-8


def square_regions(n, c, seed=0):
    """Random tokens on a square grid, smooth enough to be tied to their neighbours."""
    side = round(n**0.5)
    coarse = torch.randn(
        1,
        c,
        side // 4 + 2,
        side // 4 + 2,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.double,
    )
    H = (
        torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
        .flatten(2)
        .transpose(1, 2)
    )
    return RegionSet(H, patch_centers((side, side))[None], torch.arange(n)[None], (side, side))


def several(step, turns):
    """Seconds of each turn and the answer, after one warm-up."""
    step()
    seconds, answers = zip(*(timed(step) for _ in range(turns)))
    return seconds, answers[-1]


def without(regions, i):
    """The image's regions but one, as `RegionGraphBuilder` takes them."""
    keep = torch.arange(regions.m) != i
    return RegionSet(
        regions.H[:, keep],
        regions.P[:, keep],
        torch.arange(regions.m - 1)[None],
        (1, regions.m - 1),
    )


def rebuild(regions, graph, operator, readout, theta):
    """One region after another: graph, matrix exponential, readout, head."""
    builder, logits = RegionGraphBuilder(sigma_s=graph.sigma_s, sigma_f=graph.sigma_f), []
    for i in range(regions.m):
        rest = without(regions, i)
        part = builder.build(rest)
        logits.append(readout(operator(rest.H, part), rest.H, part) @ theta)
    return torch.stack(logits, 1)


def loop_over_vectors(regions, graph, operator, readout, theta):
    """One region after another, from the stored weights, diffusing the readout's weights instead of
    the tokens.
    """
    HW, logits = regions.H @ theta, []
    for i in range(regions.m):
        keep = torch.arange(regions.m) != i
        part = RegionGraph.from_weights(graph.W[:, keep][:, :, keep])
        logits.append((operator(readout.weights(part.d)[..., None], part) * HW[:, keep]).sum(1))
    return torch.stack(logits, 1)


def removal(m, c, t, turns):
    regions, readout, theta = (
        square_regions(m, c),
        GraphReadout("mean"),
        torch.randn(c, 200, dtype=torch.double),
    )
    graph = RegionGraphBuilder().build(regions)
    ours, logits = several(
        lambda: remove_nodes(regions.H, graph, DiffusionOperator(t), readout, theta), turns
    )
    print(
        f"\nall {m} single-region removals, c = {c}, 200 classes, t = {t:g}: "
        f"one call {spread([1e3 * s for s in ours], 1)} ms\n\n"
        "| against | time | its time / one call |\n|---|---|---|"
    )
    for name, loop, method in (
        ("rebuilding", rebuild, "matrix_exp"),
        ("one vector each", loop_over_vectors, "action"),
    ):
        theirs, slow = timed(
            partial(loop, regions, graph, DiffusionOperator(t, method), readout, theta)
        )
        assert (slow - logits).abs().max() < AGREE * slow.abs().max(), "the two disagree"
        times = [theirs / s for s in ours]
        print(f"| {name} | {theirs:.3f} s | {spread(times, 1)} |", flush=True)


def diffusion(n, channels, t, turns):
    regions = {c: square_regions(n, c) for c in channels}
    graphs = {c: RegionGraphBuilder().build(r) for c, r in regions.items()}
    exponential, heat = timed(lambda: torch.linalg.matrix_exp(-t * graphs[channels[0]].L[0]))
    print(
        f"\ndiffusion of {n} tokens, t = {t:g}: matrix_exp {exponential:.2f} s, "
        "and a product with the tokens\n\n"
        "| channels | action, s | matrix_exp / action |\n|---|---|---|"
    )
    for c in channels:
        H, graph = regions[c].H, graphs[c]
        product, reference = timed(partial(torch.matmul, heat, H))
        ours, diffused = several(partial(DiffusionOperator(t), H, graph), turns)
        if c == channels[0]:
            assert (reference - diffused).abs().max() < AGREE * reference.abs().max(), (
                "the two disagree"
            )
        times = [(exponential + product) / s for s in ours]
        print(f"| {c} | {spread(ours, 3)} | {spread(times, 1)} |", flush=True)


def main():
    options = parser(__doc__, turns=5, device=False)
    options.add_argument("--regions", type=int, default=196)
    options.add_argument("--tokens", type=int, default=4096)
    options.add_argument("--channels", type=int, nargs="+", default=[64, 384])
    options.add_argument("--t", type=float, default=2.0)
    args = options.parse_args()
    print(f"{machine()}; float64; median of {args.turns} turns for the short side")
    for c in args.channels:
        removal(args.regions, c, args.t, args.turns)
    diffusion(args.tokens, args.channels, args.t, args.turns)


if __name__ == "__main__":
    main()
