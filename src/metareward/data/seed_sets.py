"""From ranked answers to seed sets: split, judge, keep what agrees, thin, write.

    ranked answers ──► IFT: the best answer to each prompt
                   ├─► held out, to measure judges on
                   └─► judged N times ──► the first set in people's order ──► no score too often ──► EFT

Only the judging costs anything; it is kept in judgments.sqlite, and the rest is made anew from it in a second.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from metareward.data.prompts import turns_of
from metareward.data.ranked import Ranked, RankedSet
from metareward.engines.base import Engine
from metareward.errors import UserError
from metareward.generation.progress import JUDGMENTS, Progress
from metareward.generation.runner import SweepOutcome, sweep_with
from metareward.generation.unit import UnitSettings, fingerprint, judge_answer, together
from metareward.method.judge import Rubric
from metareward.method.stats import pairwise_accuracy
from metareward.seeds import derive
from metareward.storage.atomic import write_atomic
from metareward.storage.serialization import canonical_json, fingerprint_of, json_lines
from metareward.storage.store import RecordStore
from metareward.types import Judgment, Message, Messages, Prompt, Scored

# --- What the seed sets look like on the disk.
#
# ift.jsonl and eft.jsonl are in TRL's conversational prompt-completion format, with ids, kinds, scores and ranks
# beside:
# `metareward sft` takes them, and so does TRL. held_out.jsonl keeps ranked answers for measuring judges.


IFT, EFT, HELD_OUT = "ift.jsonl", "eft.jsonl", "held_out.jsonl"
Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class EftExample:
    """A judgment to learn: of the answer at ``place`` among those to a prompt, which people gave ``rank``."""

    prompt_id: str
    place: int
    question: Messages
    judgment: str
    rank: float
    score: float

    @property
    def id(self) -> str:
        """Tells it from every other example."""
        return f"{self.prompt_id}/eft/{self.place}"


def ift_rows(ranked: Iterable[Ranked]) -> Iterator[Row]:
    """Prompts with the answers that people like best."""
    for each in ranked:
        yield {
            "id": f"{each.prompt.id}/ift",
            "kind": "ift",
            "prompt": turns_of(each.prompt.messages),
            "completion": turns_of((Message("assistant", each.best.text),)),
            "prompt_id": each.prompt.id,
            "rank": each.best.rank,
        }


def eft_rows(examples: Iterable[EftExample]) -> Iterator[Row]:
    """The judge's question about an answer, with the judgment that is to be learned."""
    for each in examples:
        yield {
            "id": each.id,
            "kind": "eft",
            "prompt": turns_of(each.question),
            "completion": turns_of((Message("assistant", each.judgment),)),
            "prompt_id": each.prompt_id,
            "rank": each.rank,
            "score": each.score,
        }


def held_out_rows(ranked: Iterable[Ranked]) -> Iterator[Row]:
    """Rankings, as Open Assistant's flat export has them."""
    for each in ranked:
        yield {
            "id": each.prompt.id,
            "conversation": [_turn(message) for message in each.prompt.messages],
            "responses": [{"text": answer.text, "rank": answer.rank} for answer in each.answers],
        }


def _turn(message: Message) -> dict[str, str]:
    return {"role": "prompter" if message.role == "user" else message.role, "text": message.content}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write ``rows`` as JSON Lines, all or nothing."""
    write_atomic(path, json_lines(rows))


# --- The model judges the ranked answers, each N times; what is judged is kept, and a killed run goes on.


# Prompts under way at once: as many as fill batches, since one prompt has only a few answers.
_IN_FLIGHT = 64


@dataclass(frozen=True, slots=True)
class Judged:
    """The judgments of a prompt's answers: ``judgments_AN[a][n]`` is judgment n of answer a."""

    judgments_AN: tuple[tuple[Judgment, ...], ...]


_CODEC = TypeAdapter(Judged)


async def judge_ranked(
    engine: Engine, ranked: Sequence[Ranked], settings: UnitSettings, store: RecordStore, progress: Progress
) -> SweepOutcome:
    """See that every prompt that the store lacks is judged, as `metareward.sweep.sweep_with` says."""
    answers = {each.prompt.id: each.answers for each in ranked}

    async def work(prompt: Prompt) -> str:
        judged = await together(
            judge_answer(engine, prompt, index, answer.text, settings, progress)
            for index, answer in enumerate(answers[prompt.id])
        )
        return _CODEC.dump_json(Judged(tuple(judged))).decode()

    most = {JUDGMENTS: settings.n * max(map(len, answers.values()), default=0)}
    prompts = [each.prompt for each in ranked]
    return await sweep_with(work, prompts, store, progress, "judging ranked answers", most, _IN_FLIGHT)


def judged(store: RecordStore, prompt_id: str) -> Judged | None:
    """What the store has of a prompt; None when it has nothing."""
    document = store.get(prompt_id)
    return None if document is None else _CODEC.validate_json(document)


# --- Judgments that put answers in people's order (Self-Rewarding section 3.1): the others teach a wrong judge.
#
# The n-th judgments of a prompt's answers are a set. The first set whose scores order the answers as people did is
# kept,
# whole; a set with an unreadable judgment is no set. Of many sets some agree by chance: a judge that tosses coins over
# two answers gets half of all prompts through in one try, and nearly all of them in eight.
#
# What the papers leave open is how many tries there are, and a tie of the judge where people see a difference: it
# disagrees, unless ties are allowed, and then some pair must still be ordered, and none wrongly.


Why = Literal["unreadable", "disagrees", "failed"]


@dataclass(frozen=True, slots=True)
class Agreeing:
    """A judgment that is kept: of the answer at ``place`` in the prompt's answers. ``text`` is all that was written."""

    place: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A prompt of which no judgments are kept, and why; ``detail`` gives the numbers."""

    id: str
    reason: Why
    detail: str


def agrees(scores: Sequence[float], ranks: Sequence[float], ties: bool = False) -> bool:
    """Whether ``scores`` (more is better) order as ``ranks`` (less is better) do; pairs that people tie don't count."""
    pairs = pairwise_accuracy(scores, [-rank for rank in ranks])
    return pairs.right > 0 and pairs.wrong == 0 and (ties or pairs.tied == 0)


def agreeing_set(ranked: Ranked, judged: Judged, ties: bool = False) -> tuple[Agreeing, ...] | Refused:
    """One judgment for each answer, in the order of the answers; or why there is no such set."""
    ranks = [answer.rank for answer in ranked.answers]
    sets = [_readable(each) for each in zip(*judged.judgments_AN, strict=True)]
    whole = [each for each in sets if len(each) == len(ranks)]
    for each in whole:
        if agrees([one.score for one in each], ranks, ties):
            return each
    detail = f"{len(ranks)} answers, {len(sets)} sets, {len(whole)} readable, none in people's order"
    return Refused(ranked.prompt.id, "disagrees" if whole else "unreadable", detail)


def _readable(judgments: Sequence[Judgment]) -> tuple[Agreeing, ...]:
    """Those of a set that have a score."""
    return tuple(
        Agreeing(place, judgment.reasoning + judgment.text, judgment.reading.score)
        for place, judgment in enumerate(judgments)
        if isinstance(judgment.reading, Scored)
    )


# --- Which prompts are for IFT, for EFT, and held out: by groups, so that no prompt is in two of them.
#
# Self-Rewarding has 3,200 prompts in IFT and 2,171 in EFT, a quarter of which evaluate the judge, without overlap.


Group = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """Three lots of prompts without a group in common, and those ``left_over``, which teach nothing where they are."""

    ift: tuple[Ranked, ...]
    eft: tuple[Ranked, ...]
    held_out: tuple[Ranked, ...]
    left_over: tuple[Ranked, ...]


def split(ranked: Sequence[Ranked], ift_share: float, held_out_share: float, seed: int) -> Parts:
    """``ift_share`` of the groups for IFT, and of the others ``held_out_share`` held out; both 0 to 1, by ``seed``.

    Groups in which nothing can be compared go to IFT first, since the judge learns nothing from them.
    """
    groups: dict[Group, list[Ranked]] = {}
    for each in ranked:
        groups.setdefault(each.group, []).append(each)
    order = sorted(groups, key=lambda group: (derive(seed, "seed sets", *group), group))
    order.sort(key=lambda group: any(each.comparable for each in groups[group]))
    count = round(ift_share * len(order))
    ift, rest = order[:count], order[count:]
    usable = [group for group in rest if any(each.comparable for each in groups[group])]
    held = round(held_out_share * len(usable))
    chosen = {
        **dict.fromkeys(ift, "ift"),
        **dict.fromkeys(usable[:held], "held_out"),
        **dict.fromkeys(usable[held:], "eft"),
    }
    lots: dict[str, list[Ranked]] = {"ift": [], "eft": [], "held_out": [], "": []}
    for each in ranked:
        lot = chosen.get(each.group, "")
        lots[lot if lot == "ift" or each.comparable else ""].append(each)
    return Parts(tuple(lots["ift"]), tuple(lots["eft"]), tuple(lots["held_out"]), tuple(lots[""]))


# --- Scores that are given too often are thinned, or the judge learns to give nothing else.
#
# Self-Rewarding (section 3.1) found one score, 4, over-represented, and discarded some of its examples; how many it
# doesn't say. Here no score may stand in more than a share s of the examples that are kept: each score keeps at most
# m of
# its c_k examples, with the largest m for which
#
#     min(c_k, m) <= max(s, 1 / number of different scores) * sum_k min(c_k, m)     for every k
#
# Scores count as the whole number next to them: a judge may give 4.5.


def score_class(score: float) -> int:
    """The whole number next to ``score``; halves go up."""
    return math.floor(score + 0.5)


def most_of_each(counts: Sequence[int], share: float) -> int:
    """The largest m of the rule above, for the numbers of examples by score (all above 0)."""
    allowed = max(share, 1 / len(counts))
    downwards = range(max(counts), 0, -1)  # m = 1 always fits
    return next(m for m in downwards if m <= allowed * sum(min(count, m) for count in counts) + 1e-9)


def thinned(examples: Sequence[tuple[str, float]], share: float, seed: int) -> frozenset[str]:
    """Of examples (id, score), the ids that are kept; which ones of a score, ``seed`` decides, not their order."""
    if not examples:
        return frozenset()
    counts = Counter(score_class(score) for _, score in examples)
    most = most_of_each(tuple(counts.values()), share)
    kept: list[str] = []
    for wanted in counts:
        ids = (name for name, score in examples if score_class(score) == wanted)
        kept += sorted(ids, key=lambda name: (derive(seed, "thinning", name), name))[:most]
    return frozenset(kept)


RECORDS = "judgments.sqlite"
# Prompts that the model can't judge (too long for it, say) are told and left behind, unless they are most of them.
_MOST_FAILED = 0.5


@dataclass(frozen=True, slots=True)
class SeedSettings:
    """How seed sets are made.

    ``unit`` says how the judge is asked, and how often. ``ift_share`` and ``held_out_share`` are shares of the prompts,
    the second of those that aren't IFT's. ``ties``: a tie of the judge is no disagreement. ``most_share``: of the
    judgments kept, none but this share may give one score. The papers' shares follow from their numbers of examples
    (`metareward.data.seed_sets`); a limit on one score they don't give.
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
    return fingerprint_of({each.prompt.id: canonical_json(text) for each, text in zip(ranked, texts, strict=True)})


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
    question = rubric.render(ranked.prompt, answer.text)
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
