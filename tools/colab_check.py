"""Run every notebook the way Colab does: the .ipynb alone, in an empty folder, in an environment
without `ctrace`.

    python tools/colab_check.py            a new environment, everything from the package registry
    python tools/colab_check.py --borrow   torch and the other dependencies come from this
        environment: minutes less

The install cell at the top of each notebook does its real work. Only its address is redirected: git
fetches the last commit of this checkout in place of the published repository, so what is tested is
what would be published.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNNER = """
import sys, time
from pathlib import Path
import nbclient, nbformat

for path in sorted(Path(".").glob("*.ipynb")):
    started = time.time()
    notebook = nbformat.read(path, 4)
    nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3").execute()
    print(f"{path.name}: {time.time() - started:.0f} s", flush=True)

import ctrace
if not Path(ctrace.__file__).is_relative_to(sys.prefix):
    sys.exit(f"ctrace came from {ctrace.__file__}, not from the install cell")
"""


def repository_url() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def redirected_environment(folder: Path) -> dict[str, str]:
    """Environment variables under which git takes this checkout for the published repository."""
    hidden = (
        "PYTHONPATH",
        "PYTHONHOME",
        "VIRTUAL_ENV",
    )  # each could let the checkout's ctrace through
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    settings = {f"url.file://{ROOT}.insteadOf": repository_url(), "safe.directory": "*"}
    environment["GIT_CONFIG_COUNT"] = str(len(settings))
    for number, (key, value) in enumerate(settings.items()):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return environment | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{environment['PATH']}",
        "JUPYTER_PREFER_ENV_PATH": "1",
    }


def make_environment(folder: Path, borrow: bool, environment: dict[str, str]) -> Path:
    """A new virtual environment with what Colab has and `ctrace` is not part of. Returns its
    python.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    if borrow:
        site = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            text=True,
            env=environment,
        )
        # A path in a .pth file does not have its own .pth files read, so an editable ctrace stays
        # behind.
        (Path(site.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    else:
        subprocess.check_call(
            [python, "-m", "pip", "install", "-q", "nbclient", "ipykernel"], env=environment
        )
    if (
        subprocess.run(
            [python, "-c", "import ctrace"], cwd=folder, capture_output=True, env=environment
        ).returncode
        == 0
    ):
        sys.exit("ctrace is importable before the install cell has run: this would test nothing")
    return python


def run_notebooks(borrow: bool) -> None:
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    if not notebooks:
        sys.exit("notebooks/ holds no notebook")
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "content"
        empty.mkdir()
        for path in notebooks:
            shutil.copy(path, empty)
        environment = redirected_environment(Path(folder) / "env")
        python = make_environment(Path(folder) / "env", borrow, environment)
        if subprocess.run([python, "-c", RUNNER], cwd=empty, env=environment).returncode:
            sys.exit("a notebook does not run on its own")
    print(f"{len(notebooks)} notebooks run on their own")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--borrow", action="store_true")
    run_notebooks(parser.parse_args().borrow)
