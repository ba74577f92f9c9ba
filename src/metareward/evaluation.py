"""How good a model is now, on held-out prompts that nothing was ever trained on.

Each model answers and judges its own answers. To tell a better judge from easier answers, every model also judges
the same *anchors*: the answers of M0, and M0's judgments of them (as Meta-Rewarding section 3.3 measures judges on
answers of the seed model). Where an oracle knows the truth, it scores all three roles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pydantic import TypeAdapter

from metareward.engines.engine import Engine
from metareward.progress import ANSWERS, JUDGMENTS, META, SILENT, Progress
from metareward.seeds import derive
from metareward.store import RecordStore
from metareward.sweep import SweepOutcome, sweep_with
from metareward.types import Candidate, Judgment, MetaJudgment, Prompt, PromptRecord, Scored
from metareward.unit import UnitSettings, judge_answer, meta_judge_pair, run_prompt, together


class Oracle(Protocol):
    """Truth that no role can see, where there is any."""

    def answer_score(self, prompt: Prompt, answer: str) -> float:
        """The true score of an answer, on the rubric's scale."""
        ...

    def judgment_error(self, prompt: Prompt, answer: str, judgment: str, score: float) -> tuple[float, ...]:
        """How wrong a judgment is: smaller is better, equal is equally good."""
        ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two of M0's judgments of its answer ``candidate``, compared in one order."""

    candidate: int
    meta: MetaJudgment


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What one model did on one held-out prompt.

    ``own`` are its answers with its judgments; ``anchors_K`` are M0's answers with this model's judgments;
    ``comparisons`` are this model's meta-judgments of M0's judgments.
    """

    prompt: Prompt
    own: tuple[Candidate, ...]
    anchors_K: tuple[Candidate, ...]
    comparisons: tuple[Comparison, ...]


_CODEC = TypeAdapter(HeldOut)


async def evaluate(
    engine: Engine,
    prompts: Sequence[Prompt],
    settings: UnitSettings,
    meta_pairs: int,
    store: RecordStore,
    anchors: Mapping[str, HeldOut] | None,
    progress: Progress,
    in_flight: int = 64,
) -> SweepOutcome:
    """Do all that is measured on every prompt that the store lacks; ``anchors`` None: this model is M0 itself."""

    async def measure(prompt: Prompt) -> str:
        found = await _measure(engine, prompt, settings, meta_pairs, anchors[prompt.id] if anchors else None, progress)
        return _CODEC.dump_json(found).decode()

    judged = settings.k * settings.n * (1 if anchors is None else 2)
    most = {ANSWERS: settings.k, JUDGMENTS: judged, META: 2 * meta_pairs}
    return await sweep_with(measure, prompts, store, progress, "evaluating", most, in_flight)


async def _measure(
    engine: Engine,
    prompt: Prompt,
    settings: UnitSettings,
    meta_pairs: int,
    anchor: HeldOut | None,
    progress: Progress = SILENT,
) -> HeldOut:
    acting = replace(settings, meta_judge=False, seed=derive(settings.seed, "own"))
    judging = replace(settings, seed=derive(settings.seed, "anchors"))
    own = _every_sample(await run_prompt(engine, prompt, acting, progress))
    if anchor is None:
        given = anchors = own
    else:
        given = anchor.own
        anchors = await judged_again(engine, prompt, given, judging, progress)
    pairs = _pairs_to_compare(given, meta_pairs, derive(judging.seed, prompt.id, "pairs"))
    comparisons = await together(
        _compare(engine, prompt, candidate, first, second, judging, progress) for candidate, first, second in pairs
    )
    return HeldOut(prompt, own, anchors, tuple(comparisons))


def _every_sample(record: PromptRecord) -> tuple[Candidate, ...]:
    """All K answers as they were drawn, repeats included: a mean over distinct answers would flatter a sure model."""
    by_index = {candidate.index: candidate for candidate in record.candidates_K}
    repeats = [replace(by_index[repeat.of], index=repeat.index) for repeat in record.duplicates]
    return tuple(sorted((*record.candidates_K, *repeats), key=lambda candidate: candidate.index))


async def judged_again(
    engine: Engine, prompt: Prompt, given: Sequence[Candidate], settings: UnitSettings, progress: Progress
) -> tuple[Candidate, ...]:
    """The ``given`` answers to a prompt with judgments by ``engine`` in the place of theirs."""
    judged = await together(
        judge_answer(engine, prompt, answer.index, answer.text, settings, progress) for answer in given
    )
    return tuple(replace(answer, judgments_N=judgments_N) for answer, judgments_N in zip(given, judged, strict=True))


def _pairs_to_compare(
    given: Sequence[Candidate], count: int, seed: int
) -> Iterator[tuple[Candidate, Judgment, Judgment]]:
    """Both orders of ``count`` pairs of readable judgments with different texts, drawn by ``seed``."""
    pairs = [
        (answer, first, second)
        for answer in given
        for position, first in enumerate(answer.judgments_N)
        for second in answer.judgments_N[position + 1 :]
        if _readable(first) and _readable(second) and first.text != second.text
    ]
    pairs.sort(key=lambda pair: derive(seed, pair[0].index, pair[1].index, pair[2].index))
    for answer, first, second in pairs[:count]:
        yield answer, first, second
        yield answer, second, first


def _readable(judgment: Judgment) -> bool:
    return isinstance(judgment.reading, Scored)


async def _compare(
    engine: Engine,
    prompt: Prompt,
    answer: Candidate,
    first: Judgment,
    second: Judgment,
    settings: UnitSettings,
    progress: Progress,
) -> Comparison:
    # The answer's number belongs in the seed: judgments of different answers share their numbers.
    seeded = replace(settings, seed=derive(settings.seed, "compare", answer.index))
    return Comparison(answer.index, await meta_judge_pair(engine, prompt, answer.text, first, second, seeded, progress))


def held_out_records(store: RecordStore) -> tuple[HeldOut, ...]:
    """What the store holds, by prompt id."""
    return tuple(_CODEC.validate_json(document) for _, document in store.documents())
