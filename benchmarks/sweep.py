"""No shape that stalls: the solver beside LAPACK over points, eigenvectors, precisions and spectra.

    python benchmarks/sweep.py                  # some twenty-five minutes on one core;
        writes ctrace/data/benchmarks/sweep.csv
    python benchmarks/sweep.py --sizes 2 50 600 --turns 1

Each graph is given, with its weights; timed is what follows. A turn times the solver,
`torch.linalg.eigh` and `scipy.linalg.eigh(subset_by_index=)`, all in the graph's precision, one
after the other, in seconds of one core; the ratio is the solver over the better of the two, the
median over the turns. What a busy machine adds is thus left out or slows all three. Times below
`LEAST`, where calls cost more than arithmetic, count as `LEAST`. The answer is held against `eigh`
in float64.
"""

import csv
import statistics
import time
import warnings
from datetime import date
from pathlib import Path

import scipy.linalg
import torch
from threadpoolctl import threadpool_limits

from ctrace import Graph
from ctrace.cut.eigenvectors import Spectrum, solve

TABLE = Path(__file__).parents[1] / "ctrace/data/benchmarks/sweep.csv"
SIZES = 2, 3, 10, 50, 200, 400, 512, 520, 800, 1000, 1500, 2000, 3000
MANY = 1000  # points beyond which fewer numbers of eigenvectors are tried, once each
LEAST = 5e-3
# |S u - lam u| that the solver promises
ACCURACY = {torch.float32: 1e-5, torch.float64: 1e-10}


# ---- spectra: features and a bandwidth for n points ----


def clusters(n, groups, spread, random):
    centres = torch.randn(groups, 16, generator=random)
    return spread * centres[torch.arange(n) % groups] + torch.randn(n, 16, generator=random)


def heavy_tailed(n, random):
    return torch.randn(n, 6, generator=random) / torch.rand(n, 1, generator=random)


def copies(n, random):
    few = max(n // 40, 2)
    return torch.randn(few, 6, generator=random)[torch.arange(n) % few]


def nearly_degenerate(n, random):
    """Four copies of one cloud, far from each other, moved by a thousandth."""
    cloud = torch.randn(-(-n // 4), 8, generator=random).repeat(4, 1)[:n]
    cloud[:, 0] += 20.0 * (torch.arange(n) // -(-n // 4))
    return cloud + 1e-3 * torch.randn(n, 8, generator=random)


SPECTRA = {
    "three clusters": lambda n, random: (clusters(n, 3, 3.0, random), "local"),
    "forty clusters": lambda n, random: (clusters(n, 40, 3.0, random), "local"),
    "bulk": lambda n, random: (torch.randn(n, 100, generator=random), "median"),
    "near-degenerate": lambda n, random: (nearly_degenerate(n, random), 3.0),
    "heavy-tailed scales": lambda n, random: (heavy_tailed(n, random), "local"),
    "few rows, many copies": lambda n, random: (copies(n, random), 1.0),
    "path": lambda n, random: (torch.arange(n)[:, None].float(), 1.0),
    "too narrow": lambda n, random: (torch.randn(n, 3, generator=random), 0.1),
}


def eigenvector_counts(n: int) -> list[int]:
    counts = (2, 10, n // 8) if n > MANY else (1, 2, 10, n // 20, n // 8, n // 4, n // 2, n)
    return sorted({k for k in counts if 1 <= k <= n})


# ---- one graph ----


def timed(step):
    """Seconds of this process's cores, and what ``step()`` returns."""
    start = time.process_time()
    result = step()
    return time.process_time() - start, result


def normalized(graph: Graph) -> torch.Tensor:
    root = graph.degree.rsqrt()[:, None]
    return root * graph.rows() * root.T


def lapack_subset(S: torch.Tensor, k: int):
    span = [len(S) - k, len(S) - 1]
    return scipy.linalg.eigh(S.numpy(), subset_by_index=span, check_finite=False)


def flaws(graph: Graph, U: torch.Tensor, spectrum: Spectrum, truth) -> list[str]:
    """What is wrong with an answer beside ``eigh`` in float64; nothing, if all is well."""
    (eigval, V), k, allowed = truth, U.shape[1], ACCURACY[U.dtype]
    found = []
    error = float((spectrum.eigval.double() - eigval[:k]).abs().max())
    if not error <= allowed:
        found.append(f"eigenvalues off by {error:.1e}")
    gap = float(eigval[k - 1] - eigval[k]) if k < len(V) else 2.0
    outside = U.double() - V[:, :k] @ (V[:, :k].T @ U.double())
    angle = float(torch.linalg.matrix_norm(outside, 2))  # Davis and Kahan: residual over gap
    if gap > 100 * allowed and not angle <= 10 * allowed / gap:
        found.append(f"subspace off by {angle:.1e} at a gap of {gap:.1e}")
    return found


def truth(graph: Graph) -> tuple[torch.Tensor, torch.Tensor]:
    root = graph.degree.double().rsqrt()[:, None]
    eigval, V = torch.linalg.eigh(root * graph.rows().double() * root.T)
    return eigval.flip(0), V.flip(1)


def graphs(n: int):
    """Name, precision and graph of each spectrum; those that `Graph` refuses are left out."""
    for name, make in SPECTRA.items():
        x, sigma = make(n, torch.Generator().manual_seed(n))
        for dtype in (torch.float32, torch.float64):
            try:
                yield name, dtype, Graph(x.to(dtype), sigma)
            except ValueError as refused:  # two points that are the same, and the like
                print(f"{n} {name}: {refused}", flush=True)


def measure(n: int, turns: int):
    for name, dtype, graph in graphs(n):
        known, S = truth(graph), normalized(graph)
        for k in eigenvector_counts(n):
            taken = []
            for _ in range(1 if n > MANY else turns):
                mine, (U, spectrum) = timed(lambda: solve(graph, k))
                whole, _ = timed(lambda: torch.linalg.eigh(S))
                subset, _ = timed(lambda: lapack_subset(S, k))
                taken.append((mine, whole, subset))
            ratio = statistics.median(max(a, LEAST) / max(min(b, c), LEAST) for a, b, c in taken)
            mine, whole, subset = (statistics.median(column) for column in zip(*taken))
            yield {
                "n": n,
                "spectrum": name,
                "dtype": str(dtype)[6:],
                "n_eig": k,
                "seconds": f"{mine:.4g}",
                "eigh": f"{whole:.4g}",
                "subset": f"{subset:.4g}",
                "ratio": f"{ratio:.2f}",
                "columns": spectrum.forward,
                "flaws": "; ".join(flaws(graph, U, spectrum, known)),
            }


def write(rows, where: str):
    with TABLE.open("w", newline="") as lines:
        lines.write(f"# {where}; {date.today()}\n")
        writer = csv.DictWriter(lines, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main():
    from turns import machine, parser  # beside this file; the tests import the file from above

    options = parser(__doc__, turns=3, device=False)
    options.add_argument("--sizes", type=int, nargs="+", help="only these; the table stays")
    args = options.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)  # scipy's too: two that wait for each other cost a hundred times the work
    warnings.simplefilter("ignore")  # closed gaps are part of the sweep
    rows = []
    for n in args.sizes or SIZES:
        for row in measure(n, args.turns):
            rows.append(row)
            if row["flaws"] or float(row["ratio"]) > 2:
                print(row, flush=True)
        slowest = max(float(row["ratio"]) for row in rows if row["n"] == n)
        print(f"{n} points: at most {slowest:.2f} times LAPACK", flush=True)
        if not args.sizes:
            write(rows, f"{machine()}; {args.turns} turns, 1 beyond {MANY} points")
    ratios = sorted(float(row["ratio"]) for row in rows)
    wrong, slow = sum(bool(row["flaws"]) for row in rows), sum(ratio > 2 for ratio in ratios)
    middle = ratios[len(rows) // 2]
    print(f"{len(rows)} cases, {wrong} wrong, {slow} above twice LAPACK; median {middle}")


if __name__ == "__main__":
    main()
