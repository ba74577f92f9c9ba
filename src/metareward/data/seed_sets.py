"""Builds the IFT, EFT and held-out sets from human-ranked answers (Self-Rewarding section 3.1).

    ranked answers ──► IFT: the best answer to each prompt
                   ├─► held out, to evaluate judges
                   └─► judged N times ──► the first agreeing set ──► no score too often ──► EFT

The n-th judgments of a prompt's answers are a set. The first set whose scores order the answers as the human ranks do
is kept whole; the others would train a wrong judge. With many sets some agree by chance: a judge that tosses coins over
two answers agrees on half of all prompts with one set, and on nearly all with eight. Left open by the paper: the number
of sets, and ties of the judge where ranks differ (they disagree unless ``allow_ties``, which still wants one pair
ordered and none wrongly).

ift.jsonl and eft.jsonl are in TRL's conversational prompt-completion format, for `metareward sft`. Only judging needs
a model; its records are in judgments.sqlite, and everything else is computed from them in a second.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from metareward.data.prompts import chat_turns
from metareward.data.ranked import RankedAnswer, RankedPrompt, RankedSet
from metareward.engines.base import Engine, run_concurrently
from metareward.errors import UserError
from metareward.generation.annotate import AnnotationSettings, annotation_fingerprint, judge_answer
from metareward.generation.progress import JUDGMENTS, Progress
from metareward.generation.runner import run_tasks
from metareward.method.stats import pairwise_accuracy
from metareward.seeds import derive
from metareward.storage.atomic import write_atomic
from metareward.storage.serialization import canonical_json, fingerprint_of, json_lines
from metareward.storage.store import RecordStore
from metareward.types import Judgment, Message, Messages, Prompt, Scored

IFT, EFT, META_EFT, HELD_OUT = "ift.jsonl", "eft.jsonl", "meta_eft.jsonl", "held_out.jsonl"
HELD_OUT_PAIRS = "held_out_pairs.jsonl"
RECORDS = "judgments.sqlite"
# Prompts that can't be judged (too long for the model, say) are skipped, unless they are more than this share.
_MAX_FAILED_SHARE = 0.5

RejectReason = Literal["unreadable", "disagrees", "failed", "one_label", "unbalanced"]


@dataclass(frozen=True, slots=True)
class SeedSettings:
    """How seed sets are built.

    ``annotation`` says how the judge is prompted, and how many sets of judgments there are. ``ift_share`` is a share of
    the prompts, ``held_out_share`` of those that aren't in IFT; the defaults are the paper's (3,200 prompts in IFT,
    2,171 in EFT of which a quarter is held out). ``max_score_share`` is the largest share of EFT that one score may
    have; the paper discards examples with the over-represented score 4 without giving a limit.
    """

    annotation: AnnotationSettings
    seed: int
    ift_share: float = 0.5
    held_out_share: float = 0.25
    allow_ties: bool = False
    max_score_share: float = 0.4


@dataclass(frozen=True, slots=True)
class SeedSplit:
    """Prompts by use, without a conversation in common; ``unused`` prompts have nothing to compare."""

    ift: tuple[RankedPrompt, ...]
    eft: tuple[RankedPrompt, ...]
    held_out: tuple[RankedPrompt, ...]
    unused: tuple[RankedPrompt, ...]


@dataclass(frozen=True, slots=True)
class JudgedAnswers:
    """The judgments of a prompt's answers: ``judgments_AN[a][n]`` is judgment n of answer a."""

    judgments_AN: tuple[tuple[Judgment, ...], ...]


@dataclass(frozen=True, slots=True)
class EftExample:
    """A judgment to train on: of answer ``index`` of a prompt, which humans gave ``rank``; ``request`` asks for it.

    With ``kind`` ``meta_eft`` a meta-judgment of two judgments of the answer, whose label is ``score``; ``part`` says
    where the right one is shown, ``first`` or ``second``.
    """

    prompt_id: str
    index: int
    request: Messages
    judgment: str
    rank: float
    score: float
    kind: Literal["eft", "meta_eft"] = "eft"
    part: str = ""

    @property
    def id(self) -> str:
        """Unique among all examples."""
        return "/".join([self.prompt_id, self.kind, str(self.index), *([self.part] if self.part else [])])


@dataclass(frozen=True, slots=True)
class RejectedPrompt:
    """A prompt that gave no EFT examples, and why; ``detail`` gives the numbers."""

    id: str
    reason: RejectReason
    detail: str


@dataclass(frozen=True, slots=True)
class SeedSets:
    """The contents of the files, the prompts that gave no EFT examples, and all counts.

    ``held_out_pairs``: held-out prompts with a better and a worse answer, where their lengths are balanced.
    """

    ift: tuple[RankedPrompt, ...]
    eft: tuple[EftExample, ...]
    held_out: tuple[RankedPrompt, ...]
    rejected: tuple[RejectedPrompt, ...]
    summary: Mapping[str, object]
    meta: tuple[EftExample, ...] = ()
    held_out_pairs: tuple[tuple[RankedPrompt, RankedAnswer, RankedAnswer], ...] = ()


_JUDGED = TypeAdapter(JudgedAnswers)


# --- splitting ---


def split_prompts(prompts: Sequence[RankedPrompt], settings: SeedSettings) -> SeedSplit:
    """Split ``prompts`` by conversation: ``ift_share`` for IFT, ``held_out_share`` of the rest held out, the rest EFT.

    Conversations without answers to compare go to IFT first, since a judge can't be trained on them.
    """
    groups: dict[tuple[str, ...], list[RankedPrompt]] = {}
    for each in prompts:
        groups.setdefault(each.group, []).append(each)
    order = sorted(groups, key=lambda group: (derive(settings.seed, "seed sets", *group), group))
    order.sort(key=lambda group: any(each.is_comparable for each in groups[group]))
    ift_count = round(settings.ift_share * len(order))
    ift = set(order[:ift_count])
    comparable = [group for group in order[ift_count:] if any(each.is_comparable for each in groups[group])]
    held_out = set(comparable[: round(settings.held_out_share * len(comparable))])
    rest = [each for each in prompts if each.group not in ift]
    return SeedSplit(
        ift=tuple(each for each in prompts if each.group in ift),
        eft=tuple(each for each in rest if each.is_comparable and each.group not in held_out),
        held_out=tuple(each for each in rest if each.is_comparable and each.group in held_out),
        unused=tuple(each for each in rest if not each.is_comparable),
    )


# --- judging ---


async def judge_prompts(
    engine: Engine,
    ranked: Sequence[RankedPrompt],
    settings: SeedSettings,
    folder: Path,
    model: Mapping[str, object],
    progress: Progress,
) -> None:
    """Judge the answers of ``ranked`` into ``folder``; ``model`` has what decides the engine's text but the settings.

    Raises `UserError` when the records in ``folder`` were made with other settings, when most prompts can't be judged,
    or when the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    annotation = settings.annotation
    answers = {each.prompt.id: [answer.text for answer in each.answers] for each in ranked}
    texts = {
        each.prompt.id: canonical_json([chat_turns(each.prompt.messages), answers[each.prompt.id]]) for each in ranked
    }
    fingerprint = {**annotation_fingerprint(annotation), "answers": None, "ranked": fingerprint_of(texts), **model}

    async def task(prompt: Prompt) -> str:
        judgments_AN = await run_concurrently(
            judge_answer(engine, prompt, index, text, annotation, progress)
            for index, text in enumerate(answers[prompt.id])
        )
        return _JUDGED.dump_json(JudgedAnswers(tuple(judgments_AN))).decode()

    totals = {JUDGMENTS: annotation.n * max(map(len, answers.values()), default=0)}
    prompts = [each.prompt for each in ranked]
    with RecordStore.open(folder / RECORDS, fingerprint) as store:
        result = await run_tasks(task, prompts, store, progress, "judging ranked answers", totals)
    if len(result.failed) > _MAX_FAILED_SHARE * len(ranked):
        prompt_id, error = result.failed[0]
        raise UserError(
            f"{folder}: {len(result.failed)} of {len(ranked)} prompts could not be judged, the first ({prompt_id}) "
            f"with: {error}; fix: correct that and run again"
        )


def read_judged(store: RecordStore, prompt_id: str) -> JudgedAnswers | None:
    """A prompt's judgments in the store; None when there are none."""
    document = store.get(prompt_id)
    return None if document is None else _JUDGED.validate_json(document)


def read_all_judged(folder: Path, ranked: Iterable[RankedPrompt]) -> dict[str, JudgedAnswers]:
    """The judgments in ``folder`` of all of ``ranked`` that have been judged, by prompt id."""
    with RecordStore.read(folder / RECORDS) as store:
        found = {each.prompt.id: read_judged(store, each.prompt.id) for each in ranked}
    return {name: judged for name, judged in found.items() if judged is not None}


# --- selecting ---


def agrees_with_ranks(scores: Sequence[float], ranks: Sequence[float], allow_ties: bool = False) -> bool:
    """Whether ``scores`` (higher is better) order as ``ranks`` (lower is better) do, where the ranks differ."""
    pairs = pairwise_accuracy(scores, [-rank for rank in ranks])
    return pairs.right > 0 and pairs.wrong == 0 and (allow_ties or pairs.tied == 0)


def agreeing_set(
    ranked: RankedPrompt, judged: JudgedAnswers, allow_ties: bool = False
) -> tuple[Judgment, ...] | RejectedPrompt:
    """The first set of judgments, one for each answer, that agrees with the ranks; or why there is none."""
    ranks = [answer.rank for answer in ranked.answers]
    sets = list(zip(*judged.judgments_AN, strict=True))
    readable = 0
    for judgments in sets:
        scores = [judgment.reading.score for judgment in judgments if isinstance(judgment.reading, Scored)]
        if len(scores) < len(ranks):
            continue
        readable += 1
        if agrees_with_ranks(scores, ranks, allow_ties):
            return judgments
    detail = f"{len(ranks)} answers, {len(sets)} sets, {readable} readable, none agrees with the ranks"
    return RejectedPrompt(ranked.prompt.id, "disagrees" if readable else "unreadable", detail)


def score_bin(score: float) -> int:
    """The integer nearest to ``score`` (a judge may give 4.5); halves round up."""
    return math.floor(score + 0.5)


def max_per_score(counts: Sequence[int], share: float) -> int:
    """How many examples each score may keep, from the positive numbers c_k of examples by score: the largest m with

    min(c_k, m) <= max(share, 1 / number of scores) * sum_k min(c_k, m)     for every k
    """
    allowed = max(share, 1 / len(counts))
    downwards = range(max(counts), 0, -1)  # m = 1 always fits
    return next(m for m in downwards if m <= allowed * sum(min(count, m) for count in counts) + 1e-9)


def limit_scores(examples: Sequence[tuple[str, float]], share: float, seed: int) -> frozenset[str]:
    """The ids kept of (id, score), so that no score has more than ``share``; ``seed`` decides which."""
    if not examples:
        return frozenset()
    counts = Counter(score_bin(score) for _, score in examples)
    limit = max_per_score(tuple(counts.values()), share)
    kept: list[str] = []
    for bin_ in counts:
        ids = (name for name, score in examples if score_bin(score) == bin_)
        kept += sorted(ids, key=lambda name: (derive(seed, "thinning", name), name))[:limit]
    return frozenset(kept)


def select_sets(ranked: RankedSet, split: SeedSplit, settings: SeedSettings, folder: Path | None) -> SeedSets:
    """The three sets, with EFT from the judgments in ``folder``, or without EFT if there is no folder."""
    agreeing: list[EftExample] = []
    rejected: list[RejectedPrompt] = []
    readings: Counter[str] = Counter()
    if folder is not None:
        with RecordStore.read(folder / RECORDS) as store:
            failures = store.failures()
            for each in split.eft:
                judged = read_judged(store, each.prompt.id)
                if judged is None:
                    error = failures.get(each.prompt.id, "not judged yet")
                    rejected.append(RejectedPrompt(each.prompt.id, "failed", error))
                    continue
                readings.update(one.reading.kind for judgments in judged.judgments_AN for one in judgments)
                found = agreeing_set(each, judged, settings.allow_ties)
                if isinstance(found, RejectedPrompt):
                    rejected.append(found)
                    continue
                for index, (answer, judgment) in enumerate(zip(each.answers, found, strict=True)):
                    assert isinstance(judgment.reading, Scored)
                    request = settings.annotation.rubric.render(each.prompt, answer.text)
                    text, score = judgment.reasoning + judgment.text, judgment.reading.score
                    agreeing.append(EftExample(each.prompt.id, index, request, text, answer.rank, score))
    kept = limit_scores([(each.id, each.score) for each in agreeing], settings.max_score_share, settings.seed)
    eft = tuple(each for each in agreeing if each.id in kept)
    failed = sum(each.reason == "failed" for each in rejected)
    summary = {
        "read": {"prompts": len(ranked.prompts), "answers": sum(len(each.answers) for each in ranked.prompts)},
        "skipped": {**ranked.skipped, "nothing to compare": len(split.unused)},
        "ift": len(split.ift),
        "held_out": len(split.held_out),
        "judged": len(split.eft) - failed if folder else 0,
        "judgments": dict(readings),
        "agreeing": len({each.prompt_id for each in agreeing}),
        "rejected": dict(Counter(each.reason for each in rejected)),
        "scores_agreeing": _count_scores(agreeing),
        "scores_kept": _count_scores(eft),
        "eft": len(eft),
    }
    return SeedSets(split.ift, eft, split.held_out, tuple(rejected), summary)


def _count_scores(examples: Iterable[EftExample]) -> dict[str, int]:
    counts = Counter(score_bin(each.score) for each in examples)
    return {str(score): number for score, number in sorted(counts.items())}


# --- writing ---


def write_seed_sets(folder: Path, sets: SeedSets) -> None:
    """Write ift.jsonl, held_out.jsonl, eft.jsonl, dropped.jsonl (prompts without EFT examples) and, last, summary.json.

    If nothing was judged, existing eft.jsonl and dropped.jsonl stay.
    """
    ift = (
        {
            "id": f"{each.prompt.id}/ift",
            "kind": "ift",
            "prompt": chat_turns(each.prompt.messages),
            "completion": chat_turns((Message("assistant", each.best.text),)),
            "prompt_id": each.prompt.id,
            "rank": each.best.rank,
        }
        for each in sets.ift
    )
    # Rankings in the form of Open Assistant's flat export.
    held_out = (
        {
            "id": each.prompt.id,
            "conversation": _flat(each.prompt),
            "responses": [{"text": answer.text, "rank": answer.rank} for answer in each.answers],
        }
        for each in sets.held_out
    )
    pairs = (
        {
            "id": f"{each.prompt.id}/{number}",
            "conversation": _flat(each.prompt),
            "output_1": (better, worse)[number % 2].text,
            "output_2": (worse, better)[number % 2].text,
            "label": 1 + number % 2,
        }
        for number, (each, better, worse) in enumerate(sets.held_out_pairs)
    )
    write_atomic(folder / IFT, json_lines(ift))
    write_atomic(folder / HELD_OUT, json_lines(held_out))
    if sets.held_out_pairs:
        write_atomic(folder / HELD_OUT_PAIRS, json_lines(pairs))
    else:
        (folder / HELD_OUT_PAIRS).unlink(missing_ok=True)
    if sets.eft or sets.rejected:
        write_eft(folder / EFT, sets.eft)
        if sets.meta:
            write_eft(folder / META_EFT, sets.meta)
        else:
            (folder / META_EFT).unlink(missing_ok=True)
        write_atomic(folder / "dropped.jsonl", json_lines(asdict(each) for each in sets.rejected))
    write_atomic(folder / "summary.json", json.dumps(sets.summary, indent=2) + "\n")


def _flat(prompt: Prompt) -> list[dict[str, str]]:
    return [
        {"role": "prompter" if message.role == "user" else message.role, "text": message.content}
        for message in prompt.messages
    ]


def write_eft(path: Path, examples: Iterable[EftExample]) -> None:
    """Write ``examples`` as JSON Lines for `metareward sft`: the judge's request, and the judgment to train on."""
    rows = (
        {
            "id": each.id,
            "kind": each.kind,
            "prompt": chat_turns(each.request),
            "completion": chat_turns((Message("assistant", each.judgment),)),
            "prompt_id": each.prompt_id,
            "rank": each.rank,
            "score": each.score,
        }
        for each in examples
    )
    write_atomic(path, json_lines(rows))
