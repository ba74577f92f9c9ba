"""The experiments of docs/results.md: runs them (``make experiment``), stores their figures, makes the page's tables.

    python bench/experiments.py [NAME ...] [--jobs N] [--out DIR]

Each is a file in experiments/; its main figures of every model and seed go to bench/results/experiments/NAME.csv.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from metareward.pipeline.arms import ArmsExperiment, load_experiment
from metareward.report.arms import (
    MAIN,
    ArmDifference,
    ArmFigure,
    difference_tables,
    differences,
    figures_csv,
    interval_text,
    read_figures_csv,
)
from metareward.report.benchmark_tables import Cells

ROOT = Path(__file__).parents[1]
FILES = ROOT / "experiments"
RESULTS = ROOT / "bench/results/experiments"


@dataclass(frozen=True, slots=True)
class Claim:
    """What a paper says of ``second`` against ``first``, and the figure that tells: it should be ``expected``."""

    claim: str
    paper: str
    experiment: str
    first: str
    second: str
    metric: str
    expected: str

    def row(self) -> tuple[str, ...]:
        """Claim, the paper's number, ours with its interval, the verdict, which needs all seeds of the experiment."""
        found = self._difference()
        if found is None:
            return self.claim, self.paper, "not run yet", "–"
        planned = len(load_experiment(FILES / f"{self.experiment}.yaml", Path("runs")).file.seeds)
        verdict = {self.expected: "holds", "can't tell": "can't tell"}.get(found.verdict, "doesn't hold")
        if found.seeds < planned:
            verdict = f"not finished: {found.seeds} of {planned} seeds"
        return self.claim, self.paper, f"{found.model}, {found.seeds} seeds: {interval_text(found)}", verdict

    def _difference(self) -> ArmDifference | None:
        found = [
            each
            for each in differences(stored(self.experiment), ((self.first, self.second),))
            if each.metric == self.metric and each.model != "M0"
        ]
        return max(found, key=lambda each: each.model, default=None)


_META = ("meta-against-self", "self-rewarding", "meta-rewarding")
_EQUAL = ("meta-against-self", "self-rewarding-more-judgments", "meta-rewarding")
CLAIMS = (
    Claim(
        "Judge pairs from the meta-judge make the judge better",
        "agreement with GPT-4 52.97 to 57.44 %, with humans 61.48 to 62.96 % (Meta-Rewarding, tables 3 and 7)",
        *_META,
        "judgment_exact",
        "higher",
    ),
    Claim(
        "… and the answers, at equal iterations",
        "LC win rate 35.49 to 39.44 % (table 1)",
        *_META,
        "answer_quality",
        "higher",
    ),
    Claim("The judge is better at equal compute, too", "not tried", *_EQUAL, "judgment_exact", "higher"),
    Claim("… and the answers", "not tried", *_EQUAL, "answer_quality", "higher"),
)


def stored(name: str) -> tuple[ArmFigure, ...]:
    """The stored figures of an experiment; none if it has not been run."""
    path = RESULTS / f"{name}.csv"
    return read_figures_csv(path.read_text(encoding="utf-8")) if path.is_file() else ()


def claims_rows() -> list[Cells]:
    """A table of the claims, its heading first."""
    return [("Claim", "Paper, iteration 4", "Here", "Verdict"), *(claim.row() for claim in CLAIMS)]


def sections() -> Iterator[tuple[str, list[Cells]]]:
    """The text and the rows of a table for each pair of arms of every experiment that has stored figures."""
    for path in sorted(FILES.glob("*.yaml")):
        experiment, figures = load_experiment(path, Path("runs") / path.stem), stored(path.stem)
        seeds = ", ".join(map(str, sorted({each.seed for each in figures})))
        changed = "".join(f", `{key}={value}`" for key, value in experiment.file.set.items())
        recipe = f"Recipe `{experiment.file.recipe}`{changed}; seeds {seeds}."
        text = f"## {experiment.title}\n\n{experiment.file.description}\n\n{recipe}\n\n"
        for table in difference_tables(differences(figures, experiment.pairs)):
            yield f"{text}### {table.title}\n", [table.columns, *table.rows]
            text = ""


def run(experiment: ArmsExperiment, jobs: int) -> None:
    """Run it, or go on with it, and store its main figures; ends the program if a run did not finish."""
    program = "from metareward.cli.main import main; main()"
    words = ["experiment", str(experiment.path), "--out", str(experiment.out), f"--jobs={jobs}"]
    if code := subprocess.run([sys.executable, "-P", "-c", program, *words], check=False).returncode:
        sys.exit(code)
    store(experiment)


def store(experiment: ArmsExperiment) -> None:
    """Store the main figures of the experiment's ``figures.csv``."""
    found = read_figures_csv((experiment.out / "figures.csv").read_text(encoding="utf-8"))
    RESULTS.mkdir(parents=True, exist_ok=True)
    main = [each for each in found if each.metric in MAIN or each.model == "run"]
    (RESULTS / f"{experiment.path.stem}.csv").write_text(figures_csv(main), encoding="utf-8")


def main() -> None:
    """Run the named experiments, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    given, there = parser.parse_args(), sorted(each.stem for each in FILES.glob("*.yaml"))
    for name in given.names or there:
        if name not in there:
            parser.error(f"no experiment is called {name}: name one of {', '.join(there)}")
        run(load_experiment(FILES / f"{name}.yaml", given.out / name), given.jobs)


if __name__ == "__main__":
    main()
