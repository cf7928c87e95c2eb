"""What each of two gloo processes does in the test of distributed statistics; apart, so that a new
process imports little.
"""

from pathlib import Path

import torch.distributed as dist

from ctrace.look.channel_statistics import ChannelStatistics
from tests.reference_parchgrad import dead_channel_net, labelled_images


def batches():
    images, labels = labelled_images(30)
    return list(zip(images.split(3), labels.split(3)))


def collect_share(rank: int, folder: str) -> None:
    """Unequal shares; then once more with no image at all for the first process."""
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        share = batches()[:2] if rank == 0 else batches()[2:]
        ChannelStatistics.collect(dead_channel_net(), share).save(f"{folder}/{rank}.safetensors")
        try:
            ChannelStatistics.collect(dead_channel_net(), share if rank else [], progress=False)
        except ValueError as error:
            Path(f"{folder}/{rank}.txt").write_text(str(error))
    finally:
        dist.destroy_process_group()
