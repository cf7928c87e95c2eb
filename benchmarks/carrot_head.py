"""Leave-one-out of every training image in closed form, beside fitting again without it.

    python benchmarks/carrot_head.py                       # 2,000 images, 768 channels, on the CPU
    python benchmarks/carrot_head.py --device cuda --channels 64

Contenders take turns, so that a busy machine slows both; ratios are taken within a turn, and the
table shows their median and range. Refits are timed on a sample of the images and scaled to all of
them. "Downdated" is the shortest loop there is: it keeps the products of all images and subtracts
those of one, so that only the solve is left. Expected: at least 100 times faster than refits;
beside downdating the more the wider the embedding.
"""

import torch
from turns import machine, medians, parser, ratios, spread, timed

from ctrace.carrot.head import RidgeHead
from ctrace.carrot.ridge import one_hot


def refit(head, G, Y, g, i):
    """Change of the logits of ``g`` without image i, by a fit on all others."""
    rest = torch.arange(len(G), device=G.device) != i
    return RidgeHead(head.penalty).fit(G[rest], Y[rest]).predict(g) - head.predict(g)


def downdate(head, gg, gy, G, Y, g, i):
    """The same, from the products of all images less those of one."""
    factor = torch.linalg.cholesky(gg - G[i].outer(G[i]))
    return g @ torch.cholesky_solve(gy - G[i].outer(Y[i]), factor) - head.predict(g)


def sampled(args):
    """The images whose refits are timed."""
    return range(0, args.images, args.images // args.sample)


def measure(c, args):
    """Seconds ``[turn][closed form, refits, downdated]`` for all images, and the largest difference
    between their answers.
    """
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(args.images, c, generator=generator, dtype=torch.double).to(args.device)
    y = (torch.arange(args.images) % args.classes).to(args.device)
    g, Y, rows = G[: args.test] + 0.1, one_hot(y), sampled(args)
    head, scale = RidgeHead(1.0).fit(G, y), args.images / len(rows)
    gg, gy = G.T @ G + head.penalty * torch.eye(c, device=G.device, dtype=G.dtype), G.T @ Y
    seconds, worst = [], 0.0
    for turn in range(args.turns + 1):
        closed, change = timed(
            lambda: RidgeHead(1.0).fit(G, y).leave_one_out(g), args.device
        )  # the fit is part of the price
        fitted, again = timed(lambda: [refit(head, G, Y, g, i) for i in rows], args.device)
        fast, short = timed(lambda: [downdate(head, gg, gy, G, Y, g, i) for i in rows], args.device)
        for i, a, b in zip(rows, again, short):
            worst = max(
                worst, float((change[:, i] - a).abs().max()), float((change[:, i] - b).abs().max())
            )
        if turn:  # the first is a warm-up
            seconds.append((closed, fitted * scale, fast * scale))
    return seconds, worst


def row(c, seconds, worst):
    (closed, fitted, _), refits, downdated = (
        medians(seconds),
        ratios(seconds, 1, 0),
        ratios(seconds, 2, 0),
    )
    cells = (f"{closed:.3f}", f"{fitted:.1f}", spread(refits, 0), spread(downdated, 0))
    return f"| {c} | {' | '.join(cells)} | {worst:.0e} |"


def main():
    options = parser(__doc__, turns=7)
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--channels", type=int, nargs="+", default=[64, 768])
    options.add_argument("--classes", type=int, default=14)
    options.add_argument("--test", type=int, default=32)
    options.add_argument("--sample", type=int, default=6, help="refits that are timed in a turn")
    args = options.parse_args()
    print(
        f"{machine(args.device)}; {args.images} training images, {args.classes} classes, "
        f"logits of {args.test} test images; refits and downdates scaled from "
        f"{len(sampled(args))} images\n"
    )
    print(
        "| channels | closed form, s | refits, s | refits / closed form "
        "| downdated / closed form | largest difference |"
    )
    print("|---|---|---|---|---|---|")
    for c in args.channels:
        print(row(c, *measure(c, args)), flush=True)


if __name__ == "__main__":
    main()
