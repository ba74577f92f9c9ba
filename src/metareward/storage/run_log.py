"""A run's log (one JSON object a line), the seconds spent in each stage over all starts, and the machine it ran on."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from metareward.errors import UserError
from metareward.storage import manifest
from metareward.storage.atomic import write_atomic
from metareward.storage.lock import require_held
from metareward.storage.run_dir import LAYOUT, RunDir, package_version

PACKAGES = ("metareward", "torch", "transformers", "trl", "accelerate", "tokenizers", "datasets", "numpy", "pyarrow")


def log_event(run: RunDir, event: str, **facts: object) -> None:
    """Append a line to the log and write it to standard error. Raises `UserError` when the disk is full."""
    require_held(run.log)
    entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **facts}
    try:
        with run.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{run.log}: can't be written: {error.strerror}; fix: free space, then run again") from None
    sys.stderr.write(" ".join([event, *(f"{name}={_printable(value)}" for name, value in facts.items())]) + "\n")


def _printable(value: object) -> str:
    """A number with four digits; text on one line, without control characters."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(each if each.isprintable() else " " for each in text)


@contextmanager
def timed(run: RunDir, t: int, stage: str) -> Iterator[None]:
    """Add the time spent in this context to ``stage`` of iteration ``t``; a resumed stage continues its count."""
    start = time.monotonic()
    try:
        yield
    finally:
        path = run.iteration(t).seconds
        try:
            seconds = _read_seconds(path)
        except ValueError:
            path.replace(path.with_name(f"{path.name}.damaged"))
            seconds = {}
        seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - start, 2)
        with manifest.changing(run, path):
            write_atomic(path, json.dumps(seconds) + "\n")


def stage_seconds(run: RunDir, t: int) -> dict[str, float]:
    """Seconds by stage of iteration ``t`` so far; a damaged file counts as none, with a warning on standard error."""
    try:
        return _read_seconds(run.iteration(t).seconds)
    except ValueError as error:
        sys.stderr.write(f"warning: {_printable(error)}; the times of iteration {t} count from zero\n")
        return {}


def _read_seconds(path: Path) -> dict[str, float]:
    """The content of ``path``, empty if there is no file. Raises `ValueError` naming a damaged file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: can't be read ({error})") from None
    if not isinstance(content, dict) or not all(
        isinstance(value, int | float) and 0 <= value < math.inf for value in content.values()
    ):
        raise ValueError(f"{path}: not a number of seconds for each stage")
    return dict(content)


def environment() -> dict[str, object]:
    """Versions of the packages that affect results, the processor, and the time the run began (UTC)."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "layout": LAYOUT,
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def environment_text() -> str:
    """What ``environment.json`` holds."""
    return json.dumps(environment(), indent=2) + "\n"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n") if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
