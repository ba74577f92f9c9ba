"""From ranked answers to seed sets: split, judge, keep what agrees, thin, write.

    ranked answers ──► IFT: the best answer to each prompt
                   ├─► held out, to measure judges on
                   └─► judged N times ──► the first set in people's order ──► no score too often ──► EFT

Only the judging costs anything; it is kept in judgments.sqlite, and the rest is made anew from it in a second.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from metareward.engines.engine import Engine
from metareward.errors import UserError
from metareward.progress import Progress
from metareward.prompts import turns_of
from metareward.rubric import Rubric
from metareward.rundir import canonical, fingerprint_of, write_atomic
from metareward.seeding.agreeing import Agreeing, Refused, agreeing_set
from metareward.seeding.files import EFT, HELD_OUT, IFT, EftExample, eft_rows, held_out_rows, ift_rows, write_rows
from metareward.seeding.judging import judge_ranked, judged
from metareward.seeding.ranked import Ranked
from metareward.seeding.ranked_files import RankedSet
from metareward.seeding.split import Parts, split
from metareward.seeding.thinning import score_class, thinned
from metareward.store import RecordStore
from metareward.unit import UnitSettings, fingerprint

RECORDS = "judgments.sqlite"
# Prompts that the model can't judge (too long for it, say) are told and left behind, unless they are most of them.
_MOST_FAILED = 0.5


@dataclass(frozen=True, slots=True)
class SeedSettings:
    """How seed sets are made.

    ``unit`` says how the judge is asked, and how often. ``ift_share`` and ``held_out_share`` are shares of the prompts,
    the second of those that aren't IFT's. ``ties``: a tie of the judge is no disagreement. ``most_share``: of the
    judgments kept, none but this share may give one score. The papers' shares follow from their numbers of examples
    (`metareward.seeding.split`); a limit on one score they don't give.
    """

    unit: UnitSettings
    seed: int
    ift_share: float = 0.5
    held_out_share: float = 0.25
    ties: bool = False
    most_share: float = 0.4


@dataclass(frozen=True, slots=True)
class SeedSets:
    """What goes into the three files, why prompts gave no EFT examples, and the numbers of everything."""

    ift: tuple[Ranked, ...]
    eft: tuple[EftExample, ...]
    held_out: tuple[Ranked, ...]
    refused: tuple[Refused, ...]
    summary: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class _Examined:
    """The examples that agree, why prompts gave none, and how the readings of all judgments ended."""

    examples: tuple[EftExample, ...]
    refused: tuple[Refused, ...]
    read: Mapping[str, int]


def parts_of(ranked: RankedSet, settings: SeedSettings) -> Parts:
    """Which prompt is for what."""
    return split(ranked.ranked, settings.ift_share, settings.held_out_share, settings.seed)


async def judge(
    engine: Engine,
    parts: Parts,
    settings: SeedSettings,
    folder: Path,
    made_by: Mapping[str, object],
    progress: Progress,
) -> None:
    """Judge what EFT is made of; ``made_by`` is what decides the engine's texts beside the settings.

    Raises `UserError` when the records in ``folder`` were made otherwise, when most of the prompts can't be
    judged, or when the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = {**fingerprint(settings.unit), "answers": None, "ranked": _digest(parts.eft), **made_by}
    with RecordStore.open(folder / RECORDS, asked) as store:
        outcome = await judge_ranked(engine, parts.eft, settings.unit, store, progress)
    if len(outcome.failed) > _MOST_FAILED * len(parts.eft):
        prompt, error = outcome.failed[0]
        raise UserError(
            f"{folder}: {len(outcome.failed)} of {len(parts.eft)} prompts could not be judged, the first ({prompt}) "
            f"with: {error}; fix: mend that and run again"
        )


def _digest(ranked: Sequence[Ranked]) -> str:
    """Changes with any prompt or answer that is judged."""
    texts = [[turns_of(each.prompt.messages), [answer.text for answer in each.answers]] for each in ranked]
    return fingerprint_of({each.prompt.id: canonical(text) for each, text in zip(ranked, texts, strict=True)})


def seed_sets(ranked: RankedSet, parts: Parts, settings: SeedSettings, folder: Path | None) -> SeedSets:
    """The three sets, from the judgments in ``folder``; without a folder there is no EFT yet."""
    found = _examined(parts.eft, settings, folder) if folder else _Examined((), (), {})
    scores = [(each.id, each.score) for each in found.examples]
    chosen = thinned(scores, settings.most_share, settings.seed)
    eft = tuple(each for each in found.examples if each.id in chosen)
    summary = {
        "read": {"prompts": len(ranked.ranked), "answers": sum(len(each.answers) for each in ranked.ranked)},
        "passed_over": {**ranked.passed_over, "nothing to compare": len(parts.left_over)},
        "ift": len(parts.ift),
        "held_out": len(parts.held_out),
        "judged": len(parts.eft) - sum(each.reason == "failed" for each in found.refused) if folder else 0,
        "judgments": found.read,
        "agreeing": len({each.prompt_id for each in found.examples}),
        "refused": dict(Counter(each.reason for each in found.refused)),
        "scores_agreeing": _by_score(found.examples),
        "scores_kept": _by_score(eft),
        "eft": len(eft),
    }
    return SeedSets(parts.ift, eft, parts.held_out, found.refused, summary)


def _examined(ranked: Sequence[Ranked], settings: SeedSettings, folder: Path) -> _Examined:
    examples: list[EftExample] = []
    refused: list[Refused] = []
    read: Counter[str] = Counter()
    with RecordStore.read(folder / RECORDS) as store:
        failures = store.failures()
        for each in ranked:
            found = judged(store, each.prompt.id)
            if found is None:
                refused.append(Refused(each.prompt.id, "failed", failures.get(each.prompt.id, "not judged yet")))
                continue
            read.update(one.reading.kind for of_answer in found.judgments_AN for one in of_answer)
            outcome = agreeing_set(each, found, settings.ties)
            if isinstance(outcome, Refused):
                refused.append(outcome)
            else:
                examples += (_example(each, one, settings.unit.rubric) for one in outcome)
    return _Examined(tuple(examples), tuple(refused), dict(read))


def _example(ranked: Ranked, kept: Agreeing, rubric: Rubric) -> EftExample:
    answer = ranked.answers[kept.place]
    question = rubric.ask(ranked.prompt, answer.text)
    return EftExample(ranked.prompt.id, kept.place, question, kept.text, answer.rank, kept.score)


def _by_score(examples: Iterable[EftExample]) -> dict[str, int]:
    counts = Counter(score_class(each.score) for each in examples)
    return {str(score): number for score, number in sorted(counts.items())}


def write_seed_sets(folder: Path, sets: SeedSets) -> None:
    """Write ift.jsonl, held_out.jsonl, eft.jsonl, dropped.jsonl (why prompts gave no EFT) and, last, summary.json.

    Where nothing was judged, what is there of the judged ones stays.
    """
    write_rows(folder / IFT, ift_rows(sets.ift))
    write_rows(folder / HELD_OUT, held_out_rows(sets.held_out))
    if sets.eft or sets.refused:
        write_rows(folder / EFT, eft_rows(sets.eft))
        write_rows(folder / "dropped.jsonl", (asdict(each) for each in sets.refused))
    write_atomic(folder / "summary.json", json.dumps(sets.summary, indent=2) + "\n")
