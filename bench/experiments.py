"""The experiments of docs/results.md: run them (``make experiment``), store their figures, write the page's tables.

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
        """Claim, the paper's number, ours with its interval, the verdict."""
        found = self._difference()
        if found is None:
            return self.claim, self.paper, "not run yet", "can't tell"
        verdict = {self.expected: "holds", "can't tell": "can't tell"}.get(found.verdict, "doesn't hold")
        told = f"{found.model}, {found.seeds} seeds: {interval_text(found)}"
        return self.claim, self.paper, told, verdict

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
        "agreement with GPT-4 56.9 to 58.4 %, with humans less clear (Meta 2407.19594, table 7)",
        *_META,
        "judgment_exact",
        "higher",
    ),
    Claim(
        "… and the answers, at equal iterations",
        "LC win rate 35.5 to 39.4 % (table 1)",
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


def claims_table() -> str:
    """Every claim as a row of Markdown."""
    return _markdown([("Claim", "Paper", "Here", "Verdict"), *(claim.row() for claim in CLAIMS)])


def experiments_text() -> str:
    """A section for every experiment that has stored figures: what it compares, its tables."""
    return "\n".join(_sections())


def _sections() -> Iterator[str]:
    for path in sorted(FILES.glob("*.yaml")):
        experiment, figures = load_experiment(path, Path("runs") / path.stem), stored(path.stem)
        if not figures:
            continue
        seeds = sorted({each.seed for each in figures})
        changed = ", ".join(f"`{key}={value}`" for key, value in experiment.file.set.items())
        yield f"## {experiment.title}\n\n{experiment.file.text}\n"
        yield f"Recipe `{experiment.file.recipe}`{f' with {changed}' if changed else ''}; seeds {_list(seeds)}.\n"
        for table in difference_tables(differences(figures, experiment.pairs)):
            yield f"### {table.title}\n\n{_markdown([table.columns, *table.rows])}"


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _markdown(rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def run(experiment: ArmsExperiment, jobs: int) -> None:
    """Run it, or go on with it, and store its main figures. Raises `CalledProcessError` if a run did not finish."""
    program = "from metareward.cli.main import main; main()"
    words = ["experiment", str(experiment.path), "--out", str(experiment.out), f"--jobs={jobs}"]
    subprocess.run([sys.executable, "-P", "-c", program, *words], check=True)
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
    given = parser.parse_args()
    for name in given.names or sorted(each.stem for each in FILES.glob("*.yaml")):
        run(load_experiment(FILES / f"{name}.yaml", given.out / name), given.jobs)


if __name__ == "__main__":
    main()
