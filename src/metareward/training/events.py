"""What a training process tells while it runs: one JSON object a line, in the log file and on standard output.

The first is ``start`` (what is trained on), then one ``step`` for each optimiser step, and ``end`` last of all. A run
taken up again after a kill tells the steps that count once more, then ``resume``, and goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from metareward.errors import UserError

Event = Mapping[str, object]
Report = Callable[[Event], None]


class EventLog:
    """Writes events to a file at ``path`` and to ``out``, each at once. Raises `UserError` on a full disk.

    Of what the file holds, the events up to the optimiser step ``kept`` stay and are told again; of a new run, none.
    """

    def __init__(self, path: Path, out: TextIO, kept: int = 0) -> None:
        self._path = path
        self._out = out
        before = _events(path, kept) if kept else []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise self._refused(error) from None
        for event in before:
            self(event)

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


def _events(path: Path, last: int) -> list[dict[str, Any]]:
    """The start and the steps up to ``last`` in a log that a kill may have cut off; none when there is no log."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # the torn last line
            continue
        if event["event"] == "start" or (event["event"] == "step" and event["step"] <= last):
            found.append(event)
    return found
