"""How far a stage is, told per role: bars on a terminal, a line every few seconds anywhere else.

Totals are upper bounds: repeated answers aren't judged and unreadable judgments aren't compared. So a stage that got
through all its prompts ends with totals set to what it really took.
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
# The role in which the model writes each kind of completion.
MODEL_ROLES: Mapping[str, ModelRole] = {ANSWERS: "actor", JUDGMENTS: "judge", META: "meta_judge"}
_SECONDS_BETWEEN_LINES = 5.0


class Progress(Protocol):
    """Where work tells how far it is. One stage at a time."""

    def start(self, stage: str, total: Mapping[str, int]) -> None:
        """A stage begins; ``total`` says how much of each role to expect, at most."""
        ...

    def advance(self, role: str, n: int) -> None:
        """``n`` more of ``role`` are done. A role that `start` didn't name isn't shown."""
        ...

    def finish(self) -> None:
        """The stage is over, complete or not."""
        ...


class SilentProgress:
    """Says nothing."""

    def start(self, stage: str, total: Mapping[str, int]) -> None:
        """Nothing."""

    def advance(self, role: str, n: int) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


SILENT = SilentProgress()


def terminal_progress(stream: TextIO | None = None) -> Progress:
    """Bars when ``stream`` (standard error if not given) is a terminal, else plain lines."""
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
        self._began = self._told = 0.0

    def start(self, stage: str, total: Mapping[str, int]) -> None:
        """Begin to count; the first line comes after ``every`` seconds."""
        self._stage = stage
        self._total = dict(total)
        self._done = dict.fromkeys(total, 0)
        self._began = self._told = self._clock()

    def advance(self, role: str, n: int) -> None:
        """Count, and tell if it is time to."""
        if role not in self._done:
            return
        self._done[role] += n
        self._total[role] = max(self._total[role], self._done[role])
        if self._clock() - self._told >= self._every:
            self._told = self._clock()
            self._tell(self._left())

    def finish(self) -> None:
        """Tell the end, with the time it took."""
        self._total = settled(self._done, self._total)
        self._tell(f"ended after {_span(self._clock() - self._began)}")
        self._done = {}

    def _tell(self, last: str) -> None:
        seconds = self._clock() - self._began
        parts = [f"{role} {done}/{self._total[role]} ({_rate(done, seconds)})" for role, done in self._done.items()]
        self._stream.write(f"{self._stage}: {', '.join([*parts, last])}\n")
        self._stream.flush()

    def _left(self) -> str:
        """The time the slowest role still needs at its mean rate so far."""
        seconds = self._clock() - self._began
        waits = [(self._total[role] - done) * seconds / done for role, done in self._done.items() if done]
        return f"about {_span(max(waits))} left" if waits else "time left not known yet"


class BarProgress:
    """A bar for each role, with its rate and the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def start(self, stage: str, total: Mapping[str, int]) -> None:
        """Draw the bars under the name of the stage."""
        self._console.print(stage, markup=False, highlight=False)
        name = TextColumn("  {task.description}", markup=False)
        self._bars = Bars(
            name, BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn(), console=self._console
        )
        self._tasks = {role: self._bars.add_task(role, total=count) for role, count in total.items()}
        self._bars.start()

    def advance(self, role: str, n: int) -> None:
        """Lengthen the role's bar."""
        if self._bars is not None and role in self._tasks:
            self._bars.advance(self._tasks[role], n)

    def finish(self) -> None:
        """Leave the bars on the screen as they ended."""
        if self._bars is None:
            return
        tasks = {task.description: task for task in self._bars.tasks}
        done = {role: int(task.completed) for role, task in tasks.items()}
        total = settled(done, {role: int(task.total or 0) for role, task in tasks.items()})
        for role, task in tasks.items():
            self._bars.update(task.id, total=total[role])
        self._bars.stop()
        self._bars = None


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.1f}/s" if task.speed else "-/s")


def settled(done: Mapping[str, int], total: Mapping[str, int]) -> dict[str, int]:
    """The totals a stage ends with: what was done if every prompt was gone through, else as they were."""
    complete = PROMPTS in total and done[PROMPTS] >= total[PROMPTS]
    return dict(done) if complete else dict(total)


def _rate(done: int, seconds: float) -> str:
    return f"{done / seconds:,.1f}/s" if seconds > 0 else "-/s"


def _span(seconds: float) -> str:
    """Seconds as ``12 s``, ``3 min 20 s``, ``5 h 07 min`` or ``2 d 03 h``."""
    whole = round(seconds)
    for size, unit, small, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small:02d} {name}"
    return f"{whole} s"
