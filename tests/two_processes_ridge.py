"""What each of two gloo processes does in the tests of the distributed head and pipeline; apart, so
that a new process imports little.
"""

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import Subset

from ctrace.carrot.head import RidgeHead
from ctrace.carrot.pipeline import Carrot
from ctrace.world.datasets import aviary_splits
from ctrace.world.tokens import TimmViTPatchBackbone


def training_images(n=40, c=6, k=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=generator) + 5, torch.arange(n) % k


def fit_share(rank: int, folder: str) -> None:
    """Unequal shares of the images, with and without intercept, and attributions of each share."""
    dist.init_process_group(
        "gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2
    )
    try:
        G, y = training_images()
        mine, result = slice(0, 9) if rank == 0 else slice(9, None), {}
        for intercept in (False, True):
            head = RidgeHead(0.1, "n", intercept).fit(G[mine], y[mine])
            result |= {
                f"{intercept} weights": head.theta,
                f"{intercept} bias": head.bias,
                f"{intercept} loo": head.leave_one_out(G[:2]),
            }
            result |= {
                f"{intercept} {view}": head.training_contributions(G[:2], view)
                for view in ("weight", "dual")
            }
        save_file(
            {name: value.contiguous() for name, value in result.items()},
            f"{folder}/{rank}.safetensors",
        )
    finally:
        dist.destroy_process_group()


def birds():
    return aviary_splits(train=23, test=4, size=32)


def small_carrot():
    """A seeded ViT under a pipeline with a fixed penalty."""
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=12, depth=1, num_heads=2, num_classes=0
    ).eval()
    return Carrot(TimmViTPatchBackbone(vit), lam=1e-3, preprocess=lambda images: 4 * images - 2)


def fit_pipeline(rank: int, folder: str) -> None:
    """Each process embeds its share of the images only; the logits of new images must not know
    that.
    """
    dist.init_process_group(
        "gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2
    )
    try:
        data = birds()
        carrot = small_carrot().fit(
            Subset(data["train"], range(rank, 23, 2)), num_classes=14, progress=False
        )
        logits = carrot.predict(torch.stack([image for image, _ in data["test"]]))
        save_file(
            {"logits": logits.contiguous(), "labels": carrot.train.labels},
            f"{folder}/{rank}.safetensors",
        )
    finally:
        dist.destroy_process_group()
