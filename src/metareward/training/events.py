"""What a training process reports: events while it runs, and one line on why it failed.

Events are JSON objects, one a line, in the log file and on standard output: ``start`` (what is trained on), a ``step``
for each optimizer step, and ``end``. A resumed run repeats the steps before its resume state, then reports ``resume``.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from metareward.errors import UserError

Event = Mapping[str, object]
Report = Callable[[Event], None]

USER_ERROR = 2  # the child's exit status for an error of the user's, whose message is one line
_ERROR_LINE = re.compile(r"^(?:\[rank\d+\]: )?(?!\S*ChildFailedError)[\w.]*(Error|Exception|Interrupt)\b")
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|MemoryError|Cannot allocate memory", re.IGNORECASE)


def is_main_process() -> bool:
    """Whether this process writes and reports: it is alone, or the first of those that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


class EventLog:
    """Writes events to a file at ``path`` and to ``out``, unbuffered. Raises `UserError` on a full disk.

    A resumed run keeps and repeats the file's events up to optimizer step ``resumed_step``; a new run begins it anew.
    """

    def __init__(self, path: Path, out: TextIO, resumed_step: int = 0) -> None:
        self._path = path
        self._out = out
        before = _events_until(path, resumed_step) if resumed_step else []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise self._not_writable(error) from None
        for event in before:
            self(event)

    def __call__(self, event: Event) -> None:
        """Write one event."""
        line = json.dumps(event) + "\n"
        try:
            self._file.write(line.encode())
        except OSError as error:
            raise self._not_writable(error) from None
        self._out.write(line)
        self._out.flush()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def _not_writable(self, error: OSError) -> UserError:
        return UserError(f"{self._path}: can't be written: {error.strerror}; fix: free space or rights, then run again")


def _events_until(path: Path, last: int) -> list[dict[str, Any]]:
    """The start and the steps up to ``last`` in a log whose last line a kill may have cut off."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event["event"] == "start" or (event["event"] == "step" and event["step"] <= last):
            found.append(event)
    return found


def error_line(stderr: str) -> str:
    """The line of a child's standard error that names the error."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if _ERROR_LINE.match(line)), lines[-1] if lines else "no message")


def exit_reason(status: int, stderr: Path, output: Path) -> str:
    """One line on why a training process ended with ``status`` (negative: by that signal), from its ``stderr`` file."""
    lines = [line for line in stderr.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if status == USER_ERROR and lines:
        return lines[-1]
    error = error_line("\n".join(lines))
    if _DISK_FULL.search(error):
        return f"{output.parent}: the disk is full; fix: free space, then run again"
    if status == -signal.SIGKILL or _OUT_OF_MEMORY.search(error):
        why = "was killed, most likely for want of memory" if status < 0 else "ran out of memory"
        lower = "per_device_train_batch_size or max_length, or set gradient_checkpointing"
        return f"training {why}; fix: lower {lower} ({stderr})"
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    return f"training ended {how}: {error}; the whole message is in {stderr}"
