"""Weights spread over two processes by PyTorch's `fully_shard`, on gloo, under the trainer's own loss."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="gloo")]
SCRIPT = Path(__file__).parents[1] / "support" / "sharded_process.py"


def run(folder: Path, control: str, *launcher: str) -> None:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    asked = [sys.executable, *launcher, str(SCRIPT), str(folder), control]
    done = subprocess.run(asked, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]


def test_sharded_steps_are_those_of_one_process(tmp_path: Path) -> None:
    run(tmp_path, "sharded", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    run(tmp_path, "alone")
    sharded, alone = (load_file(tmp_path / f"{name}.safetensors") for name in ("sharded", "alone"))
    assert sharded.keys() == alone.keys()
    assert max(float((sharded[name] - alone[name]).abs().max()) for name in alone) < 1e-4
