"""Write constraints.txt from the environment that just passed `make test book`.

The pins cover what builds and tests the book. torch and the packages that follow its build (CUDA,
triton) stay free, so that the same file serves a laptop without a GPU, a Mac and a CUDA machine; so
do the peers in the `bench` extra.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLLOWS_TORCH = re.compile(r"^(torch|torchvision|triton|nvidia-.*|cuda-.*)$")
HEADER = """\
# What builds and tests the book, as last seen to pass.
# Rewritten by: python tools/freeze_constraints.py
# torch, torchvision and the CUDA packages are not pinned: they depend on the machine.
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements_of(name: str, extras: tuple[str, ...] = ()) -> list[tuple[str, tuple[str, ...]]]:
    """Names, with their extras, that `name[extras]` asks for on this machine."""
    from packaging.requirements import Requirement

    wanted = []
    for line in distribution(name).requires or []:
        requirement = Requirement(line)
        environments = [{"extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(
            requirement.marker.evaluate(env) for env in environments
        ):
            wanted.append((canonical(requirement.name), tuple(sorted(requirement.extras))))
    return wanted


def closure(start: str, extras: tuple[str, ...]) -> dict[str, str]:
    """Every installed distribution that `start[extras]` reaches, with its version."""
    todo, seen, versions = [(canonical(start), extras)], set(), {}
    while todo:
        name, asked = todo.pop()
        if (name, asked) in seen or FOLLOWS_TORCH.match(name):
            continue
        seen.add((name, asked))
        try:
            versions[name] = distribution(name).version
        except PackageNotFoundError:
            sys.exit(
                f"{name} is needed but not installed. Run `make test` first, then freeze what "
                "passed."
            )
        todo += requirements_of(name, asked)
    del versions[canonical(start)]
    return versions


def main() -> None:
    pins = closure("ctrace", ("book", "test"))
    body = "".join(f"{name}=={version.split('+')[0]}\n" for name, version in sorted(pins.items()))
    (ROOT / "constraints.txt").write_text(HEADER + body)
    print(f"constraints.txt: {len(pins)} pins")


if __name__ == "__main__":
    main()
