"""Does EFT from labels teach the judge more than length? Measured in the pocket world, before and after.

The pocket model's own answers are labelled by the oracle (`metareward.pipeline.labelling`). The model is trained on
templated judgments with balanced lengths, or on those of which only the labels are balanced. Each judges pairs of
held-out instructions' answers in which length tells nothing.

    python bench/eft_labels.py [PROMPTS HELD_OUT_PROMPTS SEED ...]

Prints a table and writes bench/results/eft_labels.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from metareward.config.schema import load_recipe
from metareward.generation.progress import SILENT
from metareward.pipeline.judge_check import check_recipe
from metareward.pipeline.labelling import AnswerSource, LabelledAnswers, LabelSource, gather_labelled
from metareward.pipeline.seeding import SeedOptions, build_seed_sets, train_sft
from metareward.storage.run_log import environment
from metareward.training.config import SftSettings

SFT = SftSettings(
    learning_rate=2e-4, min_lr=2e-5, num_train_epochs=3, batch_size=16, max_length=256, dropout=0.0, device="cpu"
)
Row = Mapping[str, object]


def measured(model: str, pairs: Path, count: int, seed: int) -> dict[str, dict[str, float] | None]:
    """The judge ``model`` on the pairs, beside length, with 95 % intervals."""
    changes = [f"model={model}", f"seed={seed}", f"judge_check.pairs={pairs}", f"judge_check.count={count}"]
    found = check_recipe(load_recipe("pocket", [*changes, *JUDGING, *ENGINE]), SILENT)
    figures = {
        "right": found.judge.right,
        "right_if_longer": found.judge.right_if_longer,
        "right_if_shorter": found.judge.right_if_shorter,
        "prefers_longer": found.judge.prefers_longer,
        "length_only": found.longer.right,
        "readable": found.readable,
        "meta_first_position": found.first_position,
        "meta_flips": found.position_flips,
    }
    return {
        name: None if each is None else {"value": each.value, "low": each.low, "high": each.high, "n": each.n}
        for name, each in figures.items()
    }


# Templated judgments teach verdicts without reasons, so all judges give verdicts of the rubric's values.
JUDGING = ("judgments.n=3", "judgments.min_valid=1", "judgments.verdict=constrained")
ENGINE = ("engine.workers=1", "engine.threads=1", "engine.device=cpu", "engine.deterministic=false")


def one_seed(count: int, held_out: int, seed: int, folder: Path) -> Iterator[tuple[str, Row]]:
    """(What was trained, the figures) of one seed."""
    recipe = load_recipe("pocket", [f"seed={seed}", *ENGINE])
    wanted = AnswerSource(count=count, held_out=held_out)
    labelled = gather_labelled(recipe, folder, LabelSource(verifier="oracle"), wanted, SILENT)
    assert isinstance(labelled, LabelledAnswers)
    summaries = {}
    for name, balance in (("balanced", True), ("unbalanced", False)):
        options = SeedOptions(ift_share=0.0, templated=True, meta_judge=True, balance=balance)
        sets = build_seed_sets(recipe, labelled.ranked, folder / name, options, SILENT, labelled.held_out)
        summaries[name] = sets.summary
    pairs = folder / "balanced/held_out_pairs.jsonl"
    most = held_out * 4 // 3
    yield "untrained", measured("pocket", pairs, most, seed)
    for name, sets_name in (("EFT, balanced", "balanced"), ("EFT, labels only balanced", "unbalanced")):
        data = [folder / sets_name / "eft.jsonl"]
        trained = train_sft("pocket", data, folder / name.replace(" ", "-"), SFT, SILENT, seed, threads=1)
        yield name, measured(str(trained.output), pairs, most, seed)
    yield "sets", summaries


def main() -> None:
    """Build, train, evaluate, print, write."""
    count, held_out, *seeds = [int(word) for word in sys.argv[1:]] or [600, 300, 1, 2, 3]
    found: dict[str, dict[str, Row]] = {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            for name, figures in one_seed(count, held_out, seed, Path(folder)):
                found.setdefault(name, {})[str(seed)] = figures
    table = Table(
        "judge", "right on", *("right_if_longer", "right_if_shorter", "prefers_longer", "meta_first_position")
    )
    for name, by_seed in found.items():
        if name != "sets":
            columns = (_shown(by_seed, each) for each in ("right", *(str(c.header) for c in table.columns[2:])))
            table.add_row(name, *columns)
    Console(width=180).print(table)
    path = Path(__file__).parent / "results" / "eft_labels.json"
    result = {
        "prompts": count,
        "held_out": held_out,
        "training": SFT.model_dump(exclude_unset=True),
        "seeds": found,
        **environment(),
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


def _shown(by_seed: Mapping[str, Row], figure: str) -> str:
    values = [each["value"] for figures in by_seed.values() if isinstance(each := figures.get(figure), Mapping)]
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "-"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
