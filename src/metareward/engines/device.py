"""What ``auto`` means for devices and number formats, without importing torch into this process.

Records name the resolved format, because bfloat16 and float32 give different texts.
"""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from pathlib import Path

_PROGRAM = "import torch; print(torch.cuda.device_count(), int(torch.backends.mps.is_available()))"


@lru_cache(maxsize=1)
def accelerators() -> tuple[int, bool]:
    """The number of CUDA devices, and whether Apple's MPS is available; a child process asks torch once."""
    command = [sys.executable, "-P", "-c", _PROGRAM]
    gpus, mps = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(gpus), mps == "1"


def surely_cpu(device: str) -> bool:
    """Whether ``device`` means the CPU, as far as can be told without asking torch."""
    return device == "cpu" or (device == "auto" and sys.platform == "linux" and not Path("/dev/nvidiactl").exists())


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
