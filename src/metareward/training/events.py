"""What a training process tells while it runs: one JSON object a line, in the log file and on standard output.

The first is ``start`` (what is trained on), then one ``step`` for each optimiser step, and ``end`` last of all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TextIO

from metareward.errors import UserError

Event = Mapping[str, object]
Report = Callable[[Event], None]


class EventLog:
    """Writes events to a new file at ``path`` and to ``out``, each at once. Raises `UserError` on a full disk."""

    def __init__(self, path: Path, out: TextIO) -> None:
        self._path = path
        self._out = out
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise self._refused(error) from None

    def __call__(self, event: Event) -> None:
        """Write one event."""
        line = json.dumps(event) + "\n"
        try:
            self._file.write(line.encode())
        except OSError as error:
            raise self._refused(error) from None
        self._out.write(line)
        self._out.flush()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def _refused(self, error: OSError) -> UserError:
        return UserError(f"{self._path}: can't be written: {error.strerror}; fix: free space or rights, then run again")
