"""One benchmark after one iteration: whether it is due there, whom M_t is compared with, and where its files are.

    iter-<t>/eval/<name>/   outputs.json or answers.jsonl   annotations.json or judgments.jsonl   result.json   *.sqlite

The stores keep every answer and verdict as it comes; ``result.json`` is written last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from metareward.benchmarks.hub import HUB, located
from metareward.experiment import Experiment
from metareward.recipe import BenchmarkSettings
from metareward.seeds import derive

_FILES = {"questions", "prompt", "references", "difficulty", "gamed", "against"}


@dataclass(frozen=True)
class Entry:
    """Benchmark ``name`` of the recipe and M_t."""

    of: Experiment
    t: int
    name: str

    @property
    def asked(self) -> BenchmarkSettings:
        """Its settings."""
        return self.of.recipe.benchmarks[self.name]

    @property
    def local(self) -> BenchmarkSettings:
        """Its settings with paths for names of files on the hub, which are fetched.

        Raises `UserError` when the recipe doesn't allow that, or it fails.
        """
        named = self.asked.model_dump(include=_FILES)
        network = self.of.recipe.prompts.network
        paths = {key: str(located(name, network)) for key, name in named.items() if name and name.startswith(HUB)}
        return self.asked.model_copy(update=paths)

    @property
    def model(self) -> str:
        """What M_t is called."""
        return f"M{self.t}"

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.of.run.iteration(self.t).evaluation / self.name

    @property
    def answers(self) -> Path:
        """M_t's answers to questions of a file, in the benchmark's own format."""
        return self.folder / ("outputs.json" if self.asked.kind == "alpaca" else "answers.jsonl")

    @property
    def result(self) -> Path:
        """The numbers."""
        return self.folder / "result.json"

    @property
    def seed(self) -> int:
        """Every random choice of the benchmark follows from it; the same after each iteration."""
        return derive(self.of.recipe.seed, "benchmarks", self.name)

    @property
    def baseline(self) -> Entry | None:
        """The earlier model that M_t is compared with; None where a file is named, or nothing is compared."""
        if self.asked.kind not in ("alpaca", "arena") or self.asked.against not in ("m0", "previous"):
            return None
        return replace(self, t=0 if self.asked.against == "m0" else self.t - 1)

    @property
    def due(self) -> bool:
        """Whether M_t is measured: it was chosen, and what it is compared with isn't itself."""
        chosen = not self.asked.models or self.t in self.asked.models
        alone = self.asked.kind == "judge" and self.asked.questions is None  # its answers against M0's
        return chosen and (self.t > 0 or (self.baseline is None and not alone))

    @property
    def answering(self) -> bool:
        """Whether M_t answers questions of a file: for itself, or because a later model is compared with it."""
        if self.asked.questions is None or self.asked.kind == "judge":
            return False
        later = (replace(self, t=t) for t in range(self.t + 1, self.of.last + 1))
        return self.due or any(each.due and each.baseline == self for each in later)

    @property
    def graded(self) -> bool:
        """Whether all that the numbers rest on was asked when the model was measured on the held-out prompts."""
        held_out = self.asked.questions is None and self.asked.prompt is None
        against_first = self.asked.kind == "judge" or self.asked.against == "m0"
        return held_out and against_first and self.asked.judge == "itself"

    @property
    def owes_answers(self) -> bool:
        """Whether M_t has not answered."""
        return self.answering and not self.answers.is_file()

    @property
    def owes_result(self) -> bool:
        """Whether M_t has no numbers yet."""
        return self.due and not self.result.is_file()

    @property
    def asks_itself(self) -> bool:
        """Whether M_t's engine is the judge."""
        return self.asked.judge == "itself" and not self.graded


def entries(of: Experiment, t: int) -> tuple[Entry, ...]:
    """Every benchmark of the recipe, with M_t."""
    return tuple(Entry(of, t, name) for name in of.recipe.benchmarks)
