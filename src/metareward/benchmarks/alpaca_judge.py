"""A judge of one's own for AlpacaEval 2: every output against the baseline's, and annotations in upstream's format.

The judge is any of `metareward.benchmarks.pair_judges`. Identical outputs are not judged: they draw. What an engine
answers is kept beside the annotations, so the same call again asks only what is owed. A row without a readable
preference has null and says why in ``outcome``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metareward.benchmarks.alpaca_files import Output
from metareward.benchmarks.alpaca_order import LEADERBOARD_SEED, model_first, preference
from metareward.benchmarks.asking import Desk
from metareward.benchmarks.label_judge import FirstShare, LabelPrompt
from metareward.benchmarks.pair_judges import LabelJudge, PairJudge, Shown, Unjudged
from metareward.types import Message, Prompt


@dataclass(frozen=True, slots=True)
class Meeting:
    """The baseline's output and the model's to the same instruction, whose number is ``index``.

    ``prompt`` is what the judge sees of the instruction; its id is unique among the meetings.
    """

    index: int
    prompt: Prompt
    base: Output
    own: Output


def meetings(baseline: Sequence[Output], outputs: Sequence[Output]) -> tuple[Meeting, ...]:
    """One for every instruction of ``baseline`` that ``outputs`` answers, numbered and in order as there."""
    by_instruction = {output.instruction: output for output in outputs}
    return tuple(
        Meeting(index, _prompt(index, base.instruction), base, by_instruction[base.instruction])
        for index, base in enumerate(baseline)
        if base.instruction in by_instruction
    )


def _prompt(index: int, instruction: str) -> Prompt:
    return Prompt(str(index), (Message("user", instruction),))


async def annotate(
    desk: Desk, prompt: LabelPrompt, baseline: Sequence[Output], outputs: Sequence[Output]
) -> tuple[dict[str, object], ...]:
    """The annotations of the desk's judge, asked the benchmark's question. Raises `UserError` as `ask` does."""
    return await annotated_by(label_judge(desk, prompt), meetings(baseline, outputs))


def label_judge(desk: Desk, prompt: LabelPrompt) -> LabelJudge:
    """The judge of the benchmark."""
    return LabelJudge(desk, prompt, {"order": LEADERBOARD_SEED})


async def annotated_by(judge: PairJudge, met: Sequence[Meeting]) -> tuple[dict[str, object], ...]:
    """A row for every meeting, in their order. Raises `UserError` as the judge does."""
    shares = await judge.shares([_shown(each) for each in met if each.base.output != each.own.output])
    return tuple(_row(each, judge.name) | _told(each, shares.get(each.prompt.id)) for each in met)


def _shown(each: Meeting) -> Shown:
    base, own = each.base.output, each.own.output
    return Shown(each.prompt, *((own, base) if model_first(each.base.instruction) else (base, own)))


def _row(each: Meeting, judge: str) -> dict[str, object]:
    return {
        "index": each.index,
        "instruction": each.base.instruction,
        "dataset": each.base.dataset,
        "output_1": each.base.output,
        "generator_1": each.base.generator,
        "output_2": each.own.output,
        "generator_2": each.own.generator,
        "annotator": judge,
    }


def _told(each: Meeting, share: FirstShare | Unjudged | None) -> dict[str, object]:
    if share is None:
        return {"preference": 1.5, "outcome": "identical"}
    if not isinstance(share, FirstShare):
        return {"preference": None, "outcome": share}
    gained = preference(share.share, model_first(each.base.instruction))
    return {"preference": 1 + gained, "outcome": "judged", "mode": share.mode}
