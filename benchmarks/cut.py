"""What a Normalized Cut costs, with and without its gradient, beside ncut-pytorch and scikit-learn.

    python benchmarks/cut.py                       # everything, about half an hour on two cores;
        writes ctrace/data/benchmarks/cut.csv
    python benchmarks/cut.py --only gradient       # or: free, plain, landmarks
    python benchmarks/cut.py --device cuda --only free --sizes 16384 32768 65536

Every measurement runs in a process of its own, so that its peak memory is its own; contenders take
turns, so that a busy machine slows all of them. Times are medians over the turns with their range.
Memory is the peak above what the process held when its features were ready. Accuracy is measured
against float64: subspaces by the sine of the largest principal angle to `eigh`, gradients by the
relative distance to the gradient of the float64 run (whose distance to finite differences is 1e-8,
see tests/test_kway.py).
"""

import csv
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from turns import machine, parser, timed

from ctrace.stats import spearman

K, SEED = 10, 0
TABLE = (
    Path(__file__).parents[1] / "ctrace/data/benchmarks/cut.csv"
)  # in the package, so that chapter 03 finds it in Colab too
COLUMNS = [
    "task",
    "shape",
    "n",
    "c",
    "contender",
    "seconds",
    "low",
    "high",
    "peak_mb",
    "angle",
    "gradient_error",
    "ranking",
    "ari",
]


# ---- features ----


def clustered(n: int) -> torch.Tensor:
    """K Gaussian blobs in 384 channels, as far apart as they are wide."""
    torch.manual_seed(SEED)
    return torch.randn(n, 384) + torch.randn(K, 384)[torch.arange(n) % K]


def crowded(n: int, groups: int = 8) -> torch.Tensor:
    """Fewer blobs than eigenvectors: the last two stand in the crowd below the blobs, whose
    eigenvalues nearly touch.
    """
    torch.manual_seed(SEED)
    return torch.randn(n, 384) + torch.randn(groups, 384)[torch.arange(n) % groups]


def photograph(n: int) -> torch.Tensor:
    """Filter-bank features of one photograph on a square grid of n cells."""
    from ctrace import filter_bank, load_photo

    side = round(n**0.5)
    features = filter_bank([load_photo("coffee")], grid=(side, side)).features
    assert len(features) == n, f"{n} is not a square"
    return features.float()


def tokens(n: int) -> torch.Tensor:
    """Patch tokens of photographs in a ViT with random weights, seeded."""
    import timm

    from ctrace import load_photo, photo_names

    torch.manual_seed(SEED)
    vit = timm.create_model("vit_small_patch16_224", pretrained=False, dynamic_img_size=True).eval()
    side, found = 448, []
    with torch.no_grad():
        for name in photo_names():
            image = (
                torch.from_numpy(
                    np.array(load_photo(name).convert("RGB").resize((side, side)))
                ).permute(2, 0, 1)[None]
                / 127.5
                - 1
            )
            found.append(vit.forward_features(image)[0, vit.num_prefix_tokens :])
            if sum(map(len, found)) >= n:
                return torch.cat(found)[:n].contiguous()
    raise ValueError(
        f"{len(found)} photographs of {side} px give {sum(map(len, found))} tokens, fewer than {n}."
    )


SHAPES = {"clustered": clustered, "crowded": crowded, "photograph": photograph, "tokens": tokens}


def width(x: torch.Tensor, shape: str) -> float:
    """One number as bandwidth, the same for every contender: the median distance, a third of it for
    the photograph, three tenths for the crowd: there the gap after the last eigenvalue is 1e-4.
    """
    from ctrace import bandwidth

    share = {"photograph": 1 / 3, "crowded": 0.3}.get(shape, 1)
    return float(bandwidth(x, "median")) * share


# ---- contenders ----


def score(Z: torch.Tensor) -> torch.Tensor:
    """Mean magnitude of the first segment's score inside that segment."""
    return Z[Z.argmax(1) == 0, 0].abs().mean()


def ctrace_gradient(x, sigma, memory_limit=2**30):
    from ctrace import Graph, kway_ncut, ncut_eigenvectors

    x = x.clone().requires_grad_()
    U, _ = ncut_eigenvectors(Graph(x, sigma, memory_limit=memory_limit), K)
    Z = kway_ncut(U)
    score(Z).backward()
    return U.detach(), Z.detach(), x.grad


def ctrace_matrix_free(x, sigma):
    return ctrace_gradient(x, sigma, memory_limit=0)


def peer_gradient(x, sigma):
    from ncut_pytorch import Ncut, kway_ncut

    x = x.clone().requires_grad_()
    U = Ncut(n_eig=K, sigma=sigma, exact_gradient=True, device=str(x.device)).fit_transform(x)
    Z = kway_ncut(U, device=str(x.device))
    score(Z).backward()
    return U.detach(), Z.detach(), x.grad


def ctrace_plain(x, sigma):
    from ctrace import Graph, kway_ncut, ncut_eigenvectors

    U, _ = ncut_eigenvectors(Graph(x, sigma), K)
    return U, kway_ncut(U), None


def peer_plain(x, sigma):
    from ncut_pytorch import Ncut, kway_ncut

    U = Ncut(n_eig=K, sigma=sigma, device=str(x.device)).fit_transform(x)
    return U, kway_ncut(U, device=str(x.device)), None


def sklearn_embedding(x, sigma):
    from sklearn.manifold import spectral_embedding

    from ctrace import rbf_affinity

    W = rbf_affinity(x, x, torch.tensor(sigma)).numpy()
    U = spectral_embedding(W, n_components=K, drop_first=False, random_state=SEED)
    return torch.linalg.qr(torch.from_numpy(U * np.sqrt(W.sum(1))[:, None]))[0], None, None


def sklearn_clustering(x, sigma):
    from sklearn.cluster import SpectralClustering

    fitted = SpectralClustering(
        K, gamma=1 / (2 * sigma**2), assign_labels="cluster_qr", random_state=SEED
    ).fit(x.numpy())
    return None, torch.nn.functional.one_hot(torch.from_numpy(fitted.labels_).long(), K), None


CONTENDERS = {
    "gradient": {"ctrace": ctrace_gradient, "ncut-pytorch": peer_gradient},
    "free": {"ctrace matrix-free": ctrace_matrix_free},
    "plain": {
        "ctrace": ctrace_plain,
        "ncut-pytorch": peer_plain,
        "sklearn spectral_embedding": sklearn_embedding,
        "sklearn SpectralClustering": sklearn_clustering,
    },
}
SIZES = {
    "gradient": [
        ("clustered", 4096),
        ("crowded", 4096),
        ("photograph", 4096),
        ("tokens", 4096),
        ("clustered", 8192),
        ("photograph", 8100),
        ("tokens", 8192),
    ],
    "free": [("clustered", n) for n in (2500, 5000, 10000, 20000, 40000)],
    "plain": [("clustered", 4096), ("photograph", 4096), ("tokens", 4096)],
}


# ---- one measurement, alone ----


class PeakMemory:
    """Peak of the process's resident memory above what it held on entry, in MB; on a GPU, of what
    torch allocated there.
    """

    def __init__(self, device: str):
        self.cuda = device.startswith("cuda")

    def __enter__(self):
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.before, self.mark, self.peak, self.over = (
                self._resident(),
                self._high_water(),
                0,
                threading.Event(),
            )
            self.thread = threading.Thread(target=self._watch)
            self.thread.start()
        return self

    def __exit__(self, *_):
        if self.cuda:
            self.peak = torch.cuda.max_memory_allocated()
        else:
            self.over.set()
            self.thread.join()
            if (
                self._high_water() > self.mark
            ):  # it sees what falls between two looks, but also what came before entry
                self.peak = self._high_water()
        self.mb = (self.peak - self.before) / 2**20

    def _watch(self):
        while not self.over.wait(0.005):
            self.peak = max(self.peak, self._resident())

    def _high_water(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _resident(self) -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def alone(task, shape, n, contender, device):
    """Runs one contender once, after a warm-up on few points, and prints what it took as JSON."""
    run = CONTENDERS[task][contender]
    x = SHAPES[shape](n)
    sigma = width(x, shape)
    x = x.to(device)
    run(
        clustered(600).to(device), width(clustered(600), "clustered")
    )  # imports, thread pools, kernels
    with PeakMemory(device) as memory:
        seconds, (U, Z, grad) = timed(lambda: run(x, sigma), device)
    saved = {
        name: value.cpu()
        for name, value in (("U", U), ("Z", Z), ("grad", grad))
        if value is not None
    }
    return {"seconds": seconds, "peak_mb": memory.mb}, saved


def in_a_process(task, shape, n, contender, device, folder):
    result = Path(folder) / f"{task}-{shape}-{n}-{contender}.pt".replace(" ", "-")
    command = [
        sys.executable,
        __file__,
        "--alone",
        json.dumps([task, shape, n, contender, device, str(result)]),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:200]}, {}
    return json.loads(done.stdout.splitlines()[-1]), torch.load(result)


# ---- accuracy ----


def truth(shape: str, n: int, gradient: bool):
    """Leading eigenvectors by `eigh` and the gradient, both in float64."""
    import scipy.linalg

    from ctrace import rbf_affinity

    x = SHAPES[shape](n)
    sigma, x = width(x, shape), x.double()
    W = rbf_affinity(x, x, torch.tensor(sigma, dtype=torch.float64))
    root = W.sum(1).rsqrt()
    _, U = scipy.linalg.eigh(
        (root[:, None] * W * root).numpy(), subset_by_index=[n - K, n - 1], overwrite_a=True
    )
    del W
    _, Z, grad = ctrace_gradient(x, sigma) if gradient else ctrace_plain(x, sigma)
    return torch.from_numpy(U), Z, grad


def accuracy(found: dict, known) -> dict:
    U, Z, grad = known
    out = {}
    if "U" in found:
        mine = torch.linalg.qr(found["U"].double())[0]
        out["angle"] = float(
            (U - mine @ (mine.T @ U)).norm(2)
        )  # sine of the largest principal angle
    if "Z" in found:
        out["ari"] = adjusted_rand_score(Z.argmax(1), found["Z"].argmax(1))
    if "grad" in found and grad is not None:
        out["gradient_error"] = float((found["grad"].double() - grad).norm() / grad.norm())
    return out


# ---- tables ----


def measure(task, sizes, turns, device, folder):
    for shape, n in sizes:
        known = truth(shape, n, task == "gradient") if task != "free" and device == "cpu" else None
        runs = {name: [] for name in CONTENDERS[task]}
        for _ in range(turns if n <= 5000 else min(turns, 2)):  # the large ones take minutes
            for name in runs:
                runs[name].append(in_a_process(task, shape, n, name, device, folder))
        for name, results in runs.items():
            failed = [r["error"] for r, _ in results if "error" in r]
            row = {
                "task": task,
                "shape": shape,
                "n": n,
                "c": SHAPES[shape](n).shape[1],
                "contender": name,
            }
            if failed:
                print(f"{row} FAILED: {failed[0]}", flush=True)
                continue
            seconds = [r["seconds"] for r, _ in results]
            row |= {
                "seconds": statistics.median(seconds),
                "low": min(seconds),
                "high": max(seconds),
                "peak_mb": max(r["peak_mb"] for r, _ in results),
            }
            row |= accuracy(results[-1][1], known) if known else {}
            print(
                {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()}, flush=True
            )
            yield row


def landmarks(device, n=8100, counts=(250, 500, 1000, 2000, 4000), million=1_000_000):
    """What landmarks change: eigenvectors, segments and channel ranking of a photograph against the
    exact answer; and a million points.
    """
    x = photograph(n).to(device)
    sigma = width(x, "photograph")
    U, Z, grad = (t.cpu() for t in ctrace_gradient(x, sigma))
    where = Z.argmax(1) == 0
    effect = grad[where].sum(0)  # of raising each channel inside the segment
    for m in counts:
        mine, segment, seconds = through_landmarks(x, sigma, m, where, device)
        ranking = float(spearman(effect[None], mine["grad"][segment].sum(0)[None])[0])
        yield report(
            "photograph",
            x,
            m,
            seconds,
            accuracy(mine, (U.double(), Z, None)) | {"ranking": ranking},
        )
    x = clustered(million).to(device)
    mine, _, seconds = through_landmarks(
        x, width(x, "clustered"), 1000, torch.arange(million) % K == 0, device
    )
    yield report(
        "clustered",
        x,
        1000,
        seconds,
        {"ari": adjusted_rand_score(torch.arange(million) % K, mine["Z"].argmax(1))},
    )


def through_landmarks(x, sigma, m, where, device):
    """Cut and gradient through m landmarks, the segment that covers most of ``where``, and what the
    cut without gradient took.
    """
    from ctrace import Ncut, kway_ncut

    solver = Ncut(K, sigma, track_grad=True, max_exact=m, n_landmarks=m)
    seconds, _ = timed(lambda: kway_ncut(solver.fit_transform(x)), device)
    x = x.clone().requires_grad_()
    U = solver.fit_transform(x)
    Z = kway_ncut(U)
    labels = Z.detach().argmax(1).cpu()
    j = int(torch.bincount(labels[where], minlength=K).argmax())
    Z[(labels == j).to(device), j].abs().mean().backward()
    return (
        {"U": U.detach().cpu(), "Z": Z.detach().cpu(), "grad": x.grad.cpu()},
        labels == j,
        seconds,
    )


def report(shape, x, m, seconds, quality):
    row = {
        "task": "landmarks",
        "shape": shape,
        "n": len(x),
        "c": x.shape[1],
        "contender": f"{m} landmarks",
        "seconds": seconds,
    } | quality
    print(row, flush=True)
    return row


def versions(device) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("ncut-pytorch", "scikit-learn"))
    python = f"Python {platform.python_version()}"
    return f"{platform.machine()} {machine(device)}; {python}; {packages}; {date.today()}"


def main():
    options = parser(__doc__, turns=3)
    options.add_argument("--only", choices=[*CONTENDERS, "landmarks"])
    options.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        help="only these numbers of points; other rows of the table stay",
    )
    options.add_argument(
        "--alone", help="used by the script itself: one measurement in this process"
    )
    args = options.parse_args()
    if args.alone:
        *what, result = json.loads(args.alone)
        took, saved = alone(*what)
        torch.save(saved, result)
        print(json.dumps(took))
        return
    rows, tasks = [], [args.only] if args.only else [*CONTENDERS, "landmarks"]
    print(versions(args.device), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            sizes = [
                (shape, n) for shape, n in SIZES.get(task, []) if not args.sizes or n in args.sizes
            ]
            if task == "free" and args.sizes:
                sizes = [("clustered", n) for n in args.sizes]
            rows += (
                landmarks(args.device)
                if task == "landmarks"
                else measure(task, sizes, args.turns, args.device, folder)
            )
    known = lambda row: (row["task"], row["shape"], str(row["n"]))
    again, kept = {known(row) for row in rows}, []
    if TABLE.exists():
        with TABLE.open() as lines:
            next(lines)
            kept = [row for row in csv.DictReader(lines) if known(row) not in again]
    with TABLE.open("w", newline="") as lines:
        lines.write(f"# {versions(args.device)}\n")
        writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
        writer.writeheader()
        table = kept + [
            {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        ]
        writer.writerows(
            sorted(
                table,
                key=lambda row: ([*CONTENDERS, "landmarks"].index(row["task"]), int(row["n"])),
            )
        )


if __name__ == "__main__":
    main()
