"""Progress of a stage by kind of completion: bars on a terminal, a line every few seconds elsewhere.

Totals are upper bounds, since duplicate answers aren't judged and unreadable judgments aren't compared. So a stage that
finishes all its prompts ends with its totals set to the actual counts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from metareward.types import ModelRole

PROMPTS, ANSWERS, JUDGMENTS, META = "prompts", "answers", "judgments", "meta-judgments"
# The role that generates each kind of completion.
MODEL_ROLES: Mapping[str, ModelRole] = {ANSWERS: "actor", JUDGMENTS: "judge", META: "meta_judge"}
_SECONDS_BETWEEN_LINES = 5.0


class Progress(Protocol):
    """Receives the progress of one stage at a time."""

    def start(self, stage: str, total: Mapping[str, int]) -> None:
        """A stage begins; ``total`` gives the largest count of each kind."""

    def advance(self, kind: str, n: int) -> None:
        """``n`` more of ``kind`` are done. A kind that `start` didn't name isn't shown."""

    def finish(self) -> None:
        """The stage is over, complete or not."""


class SilentProgress:
    """Shows nothing."""

    def start(self, stage: str, total: Mapping[str, int]) -> None:
        """Nothing."""

    def advance(self, kind: str, n: int) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


SILENT = SilentProgress()


def terminal_progress(stream: TextIO | None = None) -> Progress:
    """Bars if ``stream`` (by default standard error) is a terminal, else plain lines."""
    stream = stream or sys.stderr
    console = Console(file=stream)
    return BarProgress(console) if stream.isatty() and not console.is_dumb_terminal else LineProgress(stream)


class LineProgress:
    """One plain line at most every ``every`` seconds, and one at the end."""

    def __init__(
        self, stream: TextIO, every: float = _SECONDS_BETWEEN_LINES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._every = every
        self._clock = clock
        self._stage = ""
        self._total: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._first: dict[str, tuple[float, int]] = {}  # when each kind was counted first, and how many
        self._began = self._written = 0.0

    def start(self, stage: str, total: Mapping[str, int]) -> None:
        """Start counting; the first line is written after ``every`` seconds."""
        self._stage = stage
        self._total = dict(total)
        self._done = dict.fromkeys(total, 0)
        self._first = {}
        self._began = self._written = self._clock()

    def advance(self, kind: str, n: int) -> None:
        """Count, and write a line if one is due."""
        if kind not in self._done:
            return
        self._done[kind] += n
        self._total[kind] = max(self._total[kind], self._done[kind])
        now = self._clock()
        if n:
            self._first.setdefault(kind, (now, self._done[kind]))
        if now - self._written >= self._every:
            self._written = now
            self._write(self._time_left(now))

    def _time_left(self, now: float) -> str:
        """What the slowest kind of work needs at its rate since it began; "more than" that if a kind has no rate yet.

        Prompts count only if nothing else is left, because a prompt ends when all its work does.
        """
        open_kinds = [kind for kind, total in self._total.items() if self._done[kind] < total]
        kinds = [kind for kind in open_kinds if kind != PROMPTS] or open_kinds
        waits = []
        for kind in kinds:
            began, first = self._first.get(kind, (now, 0))
            if self._done[kind] > first and now > began:
                waits.append((self._total[kind] - self._done[kind]) * (now - began) / (self._done[kind] - first))
        if not waits and kinds:
            return "time left not known yet"
        return f"{'about' if len(waits) == len(kinds) else 'more than'} {_span(max(waits, default=0.0))} left"

    def finish(self) -> None:
        """Write the last line, with the time taken."""
        self._total = final_totals(self._done, self._total)
        self._write(f"ended after {_span(self._clock() - self._began)}")
        self._done = {}

    def _write(self, last: str) -> None:
        seconds = self._clock() - self._began
        rates = {kind: f"{done / seconds:,.1f}/s" if seconds > 0 else "-/s" for kind, done in self._done.items()}
        parts = [f"{kind} {done}/{self._total[kind]} ({rates[kind]})" for kind, done in self._done.items()]
        self._stream.write(f"{self._stage}: {', '.join([*parts, last])}\n")
        self._stream.flush()


class BarProgress:
    """A bar for each kind, with its rate and the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def start(self, stage: str, total: Mapping[str, int]) -> None:
        """Draw the bars under the stage's name."""
        self._console.print(stage, markup=False, highlight=False)
        name = TextColumn("  {task.description}", markup=False)
        columns = (name, BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn())
        self._bars = Bars(*columns, console=self._console)
        self._tasks = {kind: self._bars.add_task(kind, total=count) for kind, count in total.items()}
        self._bars.start()

    def advance(self, kind: str, n: int) -> None:
        """Advance the kind's bar."""
        if self._bars is not None and kind in self._tasks:
            self._bars.advance(self._tasks[kind], n)

    def finish(self) -> None:
        """Leave the final bars on the screen."""
        if self._bars is None:
            return
        done = {task.description: int(task.completed) for task in self._bars.tasks}
        total = {task.description: int(task.total or 0) for task in self._bars.tasks}
        for kind, count in final_totals(done, total).items():
            self._bars.update(self._tasks[kind], total=count)
        self._bars.stop()
        self._bars = None


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.1f}/s" if task.speed else "-/s")


def final_totals(done: Mapping[str, int], total: Mapping[str, int]) -> dict[str, int]:
    """The totals that a stage ends with: the counts if every prompt is done, else unchanged."""
    complete = PROMPTS in total and done[PROMPTS] >= total[PROMPTS]
    return dict(done) if complete else dict(total)


def _span(seconds: float) -> str:
    """Seconds as ``12 s``, ``3 min 20 s``, ``5 h 07 min`` or ``2 d 03 h``."""
    whole = round(seconds)
    for size, unit, small, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small:02d} {name}"
    return f"{whole} s"
