"""What works on the CPU works on another device, without a GPU at hand: see `stand_in.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def lines():
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot take a device written in Python")
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, HERE / "paths_on_stand_in.py"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return [line for line in run.stdout.splitlines() if line.startswith(("ok ", "failed "))]


def test_every_public_path_gives_the_same_numbers_on_another_device(lines):
    assert [line for line in lines if line.startswith("failed")] == []
    assert len(lines) > 35


def test_the_stand_in_refuses_tensors_of_the_cpu(lines):
    assert "ok refuses_to_mix" in lines
