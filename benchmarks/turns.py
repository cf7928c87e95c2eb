"""What the benchmarks share: the clock, contenders in turns, ratios with their range, and the words
for the machine.
"""

import argparse
import statistics
import time

import torch


def parser(doc: str, turns: int, device: bool = True) -> argparse.ArgumentParser:
    """A parser with the first line of the script's text, ``--turns`` and, where a GPU makes sense,
    ``--device``.
    """
    options = argparse.ArgumentParser(description=doc.splitlines()[0])
    options.add_argument("--turns", type=int, default=turns)
    if device:
        options.add_argument("--device", default="cpu")
    return options


def machine(device: str = "cpu") -> str:
    where = (
        torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"CPU, {torch.get_num_threads()} threads"
    )
    return f"{where}; torch {torch.__version__}"


def timed(step, device: str = "cpu"):
    """Seconds that ``step()`` takes, and what it returns."""
    sync = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    sync()
    start = time.perf_counter()
    result = step()
    sync()
    return time.perf_counter() - start, result


def take_turns(steps, turns: int, device: str = "cpu") -> list[list[float]]:
    """Seconds ``[turn][contender]`` after a warm-up of each: a busy machine slows all of a turn."""
    for step in steps:
        timed(step, device)
    return [[timed(step, device)[0] for step in steps] for _ in range(turns)]


def medians(seconds) -> list[float]:
    """Median seconds of each contender."""
    return [statistics.median(column) for column in zip(*seconds)]


def ratios(seconds, above: int, below: int) -> list[float]:
    """One ratio a turn, so that what slowed the turn cancels."""
    return [turn[above] / turn[below] for turn in seconds]


def spread(values, digits: int = 2) -> str:
    """``median (least to greatest)``."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({least:,.{digits}f} to {most:,.{digits}f})"
