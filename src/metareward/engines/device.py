"""The machine's devices, and what ``auto`` means for them and for number formats, without importing torch here.

Records name the resolved format, because bfloat16 and float32 give different texts.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from metareward.engines.process_group import dying_with_parent
from metareward.errors import UserError

_PROGRAM = """\
import json, torch
gpus = [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]
print(json.dumps([gpus, torch.backends.mps.is_available()]))
"""
# Where Linux has a driver that torch could use: Nvidia's own, Nvidia's in WSL2, ROCm's.
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
_DESCRIBED = re.compile(r"(?:(?:(\d+) *x *)?(\d+) *x *)?(\d+(?:\.\d+)?) *(?:GB)?", re.IGNORECASE)
_GB = 10**9


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to compute with: the memory of each GPU that torch finds, and the machine's own, in bytes.

    ``ram`` is None where it isn't known. ``described``: by the user, not the one that this runs on. ``nodes``: as many
    of these are a Ray cluster.
    """

    gpus: tuple[int, ...]
    ram: int | None = None
    mps: bool = False
    described: bool = False
    nodes: int = 1

    def __str__(self) -> str:
        """In a few words, such as ``8 GPUs of 80 GB``."""
        if self.gpus:
            count = f"{len(self.gpus)} GPUs" if len(self.gpus) > 1 else "1 GPU"
            each = f"{count} of {min(self.gpus) / _GB:.0f} GB"
            return f"{self.nodes} machines, each {each}" if self.nodes > 1 else each
        memory = "" if self.ram is None else f", {self.ram / _GB:.0f} GB of memory"
        return f"{'Apple GPU' if self.mps else 'no GPU'}{memory}"


def described_machine(text: str) -> Machine:
    """What ``text`` describes: ``8x80`` is 8 GPUs of 80 GB, ``24`` one of 24 GB, ``2x8x80`` two such machines.

    Raises `UserError`.
    """
    match = _DESCRIBED.fullmatch(text.strip())
    nodes, gpus = (int(match[1] or 1), int(match[2] or 1)) if match else (0, 0)
    if match is None or not nodes * gpus:
        fix = "write GPUs x GB, such as 8x80 for 8 GPUs of 80 GB, or for a Ray cluster machines x GPUs x GB: 2x8x80"
        raise UserError(f"--machine {text}: fix: {fix}")
    return Machine((round(float(match[3]) * _GB),) * gpus, described=True, nodes=nodes)


def this_machine() -> Machine:
    """The machine that this runs on. Asks torch, in a child process, only if there may be a GPU."""
    gpus, mps = ((), False) if surely_cpu("auto") else accelerators()
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    return Machine(gpus, ram, mps)


@lru_cache(maxsize=1)
def accelerators() -> tuple[tuple[int, ...], bool]:
    """The memory of each CUDA (or ROCm) device in bytes, and whether Apple's MPS is there; a child asks torch once."""
    command = dying_with_parent([sys.executable, "-P", "-c", _PROGRAM])
    gpus, mps = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return tuple(gpus), bool(mps)


def surely_cpu(device: str) -> bool:
    """Whether ``device`` means the CPU, as far as can be told without asking torch."""
    return device == "cpu" or (
        device == "auto" and sys.platform == "linux" and not any(Path(each).exists() for each in _DRIVERS)
    )


def device_kind(device: str) -> str:
    """``cpu``, ``cuda`` or ``mps``: what ``auto``, ``cuda:1`` and so on mean on this machine."""
    if surely_cpu(device):
        return "cpu"
    if device != "auto":
        return device.partition(":")[0]
    gpus, mps = accelerators()
    return "cuda" if gpus else "mps" if mps else "cpu"


def default_dtype(kind: str) -> str:
    """The number format that ``auto`` means on a kind of device: bfloat16 where the hardware multiplies it fast."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if kind == "cpu" and cpuinfo.exists() else []
    return "bfloat16" if kind == "cuda" or "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def resolved_dtype(dtype: str, device: str) -> str:
    """``dtype``, or what ``auto`` means on ``device``."""
    return default_dtype(device_kind(device)) if dtype == "auto" else dtype
