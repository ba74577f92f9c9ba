"""What ``auto`` means is the same without torch as with it."""

from __future__ import annotations

import pytest
import torch

from metareward.engines.device import accelerators, described_machine, device_kind, resolved_dtype
from metareward.engines.local.checkpoint import choose_device, choose_dtype
from metareward.errors import UserError


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_auto_is_resolved_as_the_engine_resolves_it(device: str) -> None:
    chosen = choose_device(device)
    assert device_kind(device) == chosen.type
    assert choose_dtype("auto", chosen) == getattr(torch, resolved_dtype("auto", device))


def test_an_explicit_dtype_is_kept() -> None:
    assert (resolved_dtype("float32", "cuda:3"), resolved_dtype("auto", "cuda:3")) == ("float32", "bfloat16")
    assert resolved_dtype("auto", "mps") == "float32"


def test_torch_is_asked_for_its_devices() -> None:
    gpus, mps = accelerators()
    assert (len(gpus), mps) == (torch.cuda.device_count(), torch.backends.mps.is_available())


def test_a_machine_can_be_described() -> None:
    assert described_machine("8x80").gpus == (80 * 10**9,) * 8
    assert described_machine("24 GB") == described_machine("1x24")
    assert str(described_machine("1 x 24GB")) == "1 GPU of 24 GB"
    cluster = described_machine("2x8x80")
    assert (cluster.nodes, len(cluster.gpus), str(cluster)) == (2, 8, "2 machines, each 8 GPUs of 80 GB")
    for text in ("", "0x80", "0x8x80", "2x0x80", "8x", "eight", "1x8x80x2"):
        with pytest.raises(UserError, match="--machine"):
            described_machine(text)
