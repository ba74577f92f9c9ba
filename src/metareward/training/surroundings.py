"""What a training process must set before any of its heavy libraries is imported: they read it only then.

No network, no progress bars, no trackers but those asked for, and every cache inside the folder of this run instead of
the user's home.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

from metareward.training.job import DpoJob
from metareward.training.trackers import places

_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it matrix products on a GPU may differ from run to run
}
# Threads of libgomp that spin while they wait stop everything once another process wants the same cores: two
# threads on two busy cores were over 50 times slower than one. This bounds the spinning.
_SPIN = "1000"


def settle(environment: MutableMapping[str, str], job: DpoJob, scratch: Path) -> None:
    """Set ``environment`` (the process's own) for training ``job`` with its caches in ``scratch``, which exists."""
    environment.update(_QUIET)
    environment.setdefault("GOMP_SPINCOUNT", _SPIN)
    for name, value in places(job).items() if job.trackers else ():
        environment.setdefault(name, value)
    environment["OMP_NUM_THREADS"] = str(job.threads_each)
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TMPDIR"):
        environment[name] = str(scratch.resolve())
    if "LOCAL_RANK" not in environment:  # not under a launcher: one process, so one GPU
        environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
