"""A run's log, one JSON object a line, and its clock: what the stages of each iteration took, over all its starts."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from metareward.errors import UserError
from metareward.storage.atomic import write_atomic
from metareward.storage.run_dir import RunDir


def tell(run: RunDir, event: str, **facts: object) -> None:
    """Add a line to the log, and say it on standard error. Raises `UserError` when the disk is full."""
    entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **facts}
    try:
        with run.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{run.log}: can't be written: {error.strerror}; fix: free space, then run again") from None
    sys.stderr.write(" ".join([event, *(f"{name}={_short(value)}" for name, value in facts.items())]) + "\n")


def _short(value: object) -> str:
    """A figure of four digits; a text on one line, without what would drive a terminal."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(each if each.isprintable() else " " for each in text)


@contextmanager
def timed(run: RunDir, t: int, stage: str) -> Iterator[None]:
    """Count the time spent inside towards ``stage`` of iteration ``t``; a stage that is resumed goes on counting."""
    began = time.monotonic()
    try:
        yield
    finally:
        spent = seconds(run, t)
        spent[stage] = round(spent.get(stage, 0.0) + time.monotonic() - began, 2)
        write_atomic(_path(run, t), json.dumps(spent) + "\n")


def seconds(run: RunDir, t: int) -> dict[str, float]:
    """Seconds by stage of iteration ``t`` so far."""
    path = _path(run, t)
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _path(run: RunDir, t: int) -> Path:
    return run.iteration(t).path / "seconds.json"


# --- What a run ran on: versions and machine, for the record.


PACKAGES = ("metareward", "torch", "transformers", "trl", "accelerate", "tokenizers", "datasets", "numpy", "pyarrow")


def environment() -> dict[str, object]:
    """Versions of what bears on the results, the processor, and when the run began (UTC)."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n"):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
