"""What each of two gloo processes does in the test of the distributed head; apart, so that a new process imports little."""

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from ctrace.carrot.head import RidgeHead


def training_images(n=40, c=6, k=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=generator) + 5, torch.arange(n) % k


def fit_share(rank: int, folder: str) -> None:
    """Unequal shares of the images, with and without an intercept, and attributions of each share."""
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    try:
        G, y = training_images()
        mine, result = slice(0, 9) if rank == 0 else slice(9, None), {}
        for intercept in (False, True):
            head = RidgeHead(0.1, "n", intercept).fit(G[mine], y[mine])
            result |= {f"{intercept} weights": head.weights, f"{intercept} bias": head.bias, f"{intercept} loo": head.leave_one_out(G[:2])}
            result |= {f"{intercept} {view}": head.training_contributions(G[:2], view) for view in ("weight", "dual")}
        save_file({name: value.contiguous() for name, value in result.items()}, f"{folder}/{rank}.safetensors")
    finally:
        dist.destroy_process_group()
