"""Does training on EFT improve the judge? Measured against the pocket world's oracle, before and after.

The ranked answers are synthetic: faulty answers to pocket instructions, ranked by their true scores. The pocket model
judges them, EFT is built from its judgments (`metareward.data.seed_sets`), and the same model is trained on EFT, on as
many unfiltered judgments of the same answers, and on IFT and EFT together. Evaluated on held-out instructions: the
judge on faulty answers, the actor on its own answers.

    python bench/seeding.py [PROMPTS] [SEED] [JUDGMENT_SETS]

Prints a table and writes bench/results/seeding.json.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from metareward.config.schema import load_recipe
from metareward.data.ranked import RankedAnswer, RankedPrompt, RankedSet, read_ranked
from metareward.data.seed_sets import RECORDS, EftExample, SeedSets, read_judged, write_eft
from metareward.engines.local.engine import LocalEngine
from metareward.generation.progress import SILENT
from metareward.method.stats import PairwiseAccuracy, pairwise_accuracy, spearman
from metareward.pipeline.seeding import SeedOptions, build_seed_sets, train_sft
from metareward.pocket.build import FAULTY
from metareward.pocket.demonstrations import RUBRIC, answer
from metareward.pocket.tasks import draw_instructions, parse_instruction
from metareward.pocket.world import MODEL, check_answer
from metareward.seeds import derive
from metareward.storage.run_log import environment
from metareward.storage.serialization import json_lines
from metareward.storage.store import RecordStore
from metareward.training.config import SftSettings
from metareward.types import Message, Prompt, Sampling, Scored

ANSWERS, EVAL_PROMPTS, EVAL_JUDGMENTS = 3, 300, 3
SHARES = SeedOptions(ift_share=0.3, held_out_share=0.0)
SFT = SftSettings(
    learning_rate=2e-4, min_lr=2e-5, num_train_epochs=3, batch_size=16, max_length=256, dropout=0.0, device="cpu"
)


def ranked(count: int, seed: int, held_out: bool) -> Iterator[RankedPrompt]:
    """Instructions with `ANSWERS` faulty answers of different true scores; rank 0 is the best."""
    rng = random.Random(seed)
    for number, instruction in enumerate(draw_instructions(count, seed, held_out)):
        scores: dict[int, str] = {}
        while len(scores) < ANSWERS:
            text = answer(parse_instruction(instruction), FAULTY, rng)
            scores.setdefault(check_answer(instruction, text).score, text)
        order = sorted(scores, reverse=True)
        answers = [RankedAnswer(scores[score], order.index(score)) for score in scores]
        yield RankedPrompt(Prompt(f"p{number:04d}", (Message("user", instruction),)), tuple(answers))


def write_ranked(path: Path, rows: Sequence[RankedPrompt]) -> None:
    """Write a file for `metareward seed build`."""
    path.write_text(
        json_lines(
            {
                "id": each.prompt.id,
                "prompt": each.prompt.messages[0].content,
                "answers": [one.text for one in each.answers],
                "ranks": [one.rank for one in each.answers],
            }
            for each in rows
        ),
        encoding="utf-8",
    )


def unfiltered(given: RankedSet, folder: Path, like: SeedSets, seed: int) -> Iterator[EftExample]:
    """As many judgments as EFT has, of the same prompts' answers: the first readable one of each."""
    examples: list[EftExample] = []
    with RecordStore.read(folder / RECORDS) as store:
        for each in given.prompts:
            found = read_judged(store, each.prompt.id)
            for place, of_answer in enumerate(found.judgments_AN if found else ()):
                read = [(one, one.reading.score) for one in of_answer if isinstance(one.reading, Scored)]
                for one, score in read[:1]:
                    question = RUBRIC.render(each.prompt, each.answers[place].text)
                    examples.append(EftExample(each.prompt.id, place, question, one.text, 0.0, score))
    return iter(sorted(examples, key=lambda each: derive(seed, each.id))[: len(like.eft)])


async def measured(folder: Path, eval_set: Sequence[RankedPrompt]) -> dict[str, float | None]:
    """The judge's accuracy on faulty answers, and the quality of the actor's own answers."""
    engine = LocalEngine.open(folder, device="cpu", dtype="auto", max_num_seqs=176, deterministic=False)
    sampling = Sampling(1.0, 0.95, 48)
    asked = [(each, one) for each in eval_set for one in each.answers]
    judging = (
        engine.complete(RUBRIC.render(each.prompt, one.text), replace(sampling, seed=place), EVAL_JUDGMENTS)
        for place, (each, one) in enumerate(asked)
    )
    acting = (engine.complete(each.prompt.messages, replace(sampling, seed=n), 1) for n, each in enumerate(eval_set))
    judgments, answers = await asyncio.gather(*judging), await asyncio.gather(*acting)
    await engine.aclose()
    truth = [float(check_answer(each.prompt.messages[0].content, one.text).score) for each, one in asked]
    read = [[RUBRIC.read(one.text, one.finish) for one in written] for written in judgments]
    scores = [[one.score for one in readings if isinstance(one, Scored)] for readings in read]
    own = [
        check_answer(each.prompt.messages[0].content, one.text).score
        for each, (one,) in zip(eval_set, answers, strict=True)
    ]
    return {**_judge(scores, truth), "answer_quality": sum(own) / len(own)}


def _judge(scores: Sequence[Sequence[float]], truth: Sequence[float]) -> dict[str, float | None]:
    each = [(score, true) for of_answer, true in zip(scores, truth, strict=True) for score in of_answer]
    means = [sum(of_answer) / len(of_answer) if of_answer else None for of_answer in scores]
    known = [(mean, true) for mean, true in zip(means, truth, strict=True) if mean is not None]
    pairs = PairwiseAccuracy(0, 0, 0)
    for first in range(0, len(truth), ANSWERS):
        of_prompt = [place for place in range(first, first + ANSWERS) if means[place] is not None]
        pairs += pairwise_accuracy([means[place] or 0.0 for place in of_prompt], [truth[place] for place in of_prompt])
    return {
        "readable": len(each) / (len(truth) * EVAL_JUDGMENTS),
        "exact": sum(score == true for score, true in each) / len(each),
        "pairwise_accuracy": pairs.accuracy,
        "rank_correlation": spearman([mean for mean, _ in known], [true for _, true in known]),
        "mean_score": sum(score for score, _ in each) / len(each),
        "true_mean_score": sum(truth) / len(truth),
    }


def main() -> None:
    """Build, train, evaluate, print, write."""
    given_words = [int(word) for word in sys.argv[1:]]
    count, seed, judgment_sets = (*given_words, *(300, 1, 1)[len(given_words) :])
    eval_set = tuple(ranked(EVAL_PROMPTS, derive(seed, "exam"), held_out=True))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_ranked(folder / "ranked.jsonl", tuple(ranked(count, derive(seed, "ranked"), held_out=False)))
        given = read_ranked(folder / "ranked.jsonl")
        recipe = load_recipe("pocket", [f"seed={seed}", "engine.workers=1"])
        sets = build_seed_sets(recipe, given, folder / "sets", replace(SHARES, judgment_sets=judgment_sets), SILENT)
        write_eft(folder / "sets/unfiltered.jsonl", unfiltered(given, folder / "sets", sets, seed))
        found = {"M0": asyncio.run(measured(MODEL, eval_set))}
        for name, files in (("EFT", ["eft"]), ("unfiltered", ["unfiltered"]), ("IFT + EFT", ["ift", "eft"])):
            data = [folder / f"sets/{file}.jsonl" for file in files]
            trained = train_sft("pocket", data, folder / name, SFT, SILENT, seed)
            found[name] = asyncio.run(measured(trained.output, eval_set))
    table = Table(
        "model",
        *next(iter(found.values())),
        title=f"{count} ranked prompts, seed {seed}, {judgment_sets} judgment sets",
    )
    for name, values in found.items():
        table.add_row(name, *(f"{value:.3f}" for value in values.values()))
    console = Console(width=160)
    console.print(sets.summary)
    console.print(table)
    path = Path(__file__).parent / "results" / "seeding.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    known[f"{count} prompts, seed {seed}, {judgment_sets} judgment sets"] = {
        "sets": sets.summary,
        "training": SFT.model_dump(exclude_unset=True),
        "measured": found,
    }
    path.write_text(json.dumps({**known, **environment()}, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
