"""`make gpu` begins here: where torch sees no GPU, its tests and pages would pass on the CPU."""

import sys

import torch


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit(
            f"make gpu: torch {torch.__version__} sees no CUDA device, so nothing was run.\n"
            "Likely cause: no GPU, no driver (nvidia-smi), or a torch built for the CPU (see "
            "TORCH_INDEX in the Makefile). Without a GPU: make test, make book, make stand-in."
        )
    device = torch.cuda.get_device_properties(0)
    print(f"{device.name}, {device.total_memory / 2**30:.0f} GiB, torch {torch.__version__}")


if __name__ == "__main__":
    main()
