"""What works on the CPU works on another device, without a GPU at hand: see `stand_in.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

HERE = Path(__file__).parent


def said(script: str, *arguments, **environment) -> list[str]:
    """The lines of a program that uses the stand-in, run in a process of its own."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot take a device written in Python")
    run = subprocess.run(
        [sys.executable, HERE / script, *arguments],
        env=os.environ | {"PYTHONPATH": str(HERE.parent)} | environment,
        capture_output=True,
        text=True,
    )
    lines = [line for line in run.stdout.splitlines() if line.startswith(("ok ", "failed "))]
    assert lines, run.stderr
    return lines


@pytest.fixture(scope="module")
def lines():
    return said("paths_on_stand_in.py", CUDA_VISIBLE_DEVICES="")


def test_every_public_path_gives_the_same_numbers_on_another_device(lines):
    assert [line for line in lines if line.startswith("failed")] == []
    assert len(lines) > 35


def test_the_stand_in_refuses_tensors_of_the_cpu(lines):
    assert "ok refuses_to_mix" in lines


@pytest.mark.gpu
def test_every_public_path_gives_the_same_numbers_on_a_gpu():
    lines = said("paths_on_stand_in.py", "--cuda")
    assert [line for line in lines if line.startswith("failed")] == []
    assert len(lines) > 35


def test_a_page_that_leaves_a_tensor_on_the_cpu_is_stopped(tmp_path):
    page = (
        '# %%\nimport torch\n\ndevice = "cuda" if torch.cuda.is_available() else "cpu"\n\n'
        "# %%\nx = torch.ones(3).to(device)\n\n# %%\nx + torch.ones(3){}\n"
    )
    (tmp_path / "00_left.py").write_text(page.format(""))
    (tmp_path / "01_moved.py").write_text(page.format(".to(device)"))
    left, moved = said("pages_on_stand_in.py", "--folder", str(tmp_path))
    assert left.startswith("failed 00_left, cell 2: RuntimeError") and "one device" in left
    assert moved.startswith("ok 01_moved")
