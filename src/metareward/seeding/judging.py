"""The model judges the ranked answers, each N times; what is judged is kept, and a killed run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from metareward.engines.engine import Engine
from metareward.progress import JUDGMENTS, Progress
from metareward.seeding.ranked import Ranked
from metareward.store import RecordStore
from metareward.sweep import SweepOutcome, sweep_with
from metareward.types import Judgment, Prompt
from metareward.unit import UnitSettings, judge_answer, together

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
