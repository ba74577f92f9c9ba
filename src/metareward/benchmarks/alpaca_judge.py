"""A judge of one's own for AlpacaEval 2: every output against the baseline's, and annotations in upstream's format.

Identical outputs are not judged: they draw. What the judge answers is kept beside the annotations, so the same call
again asks only what is owed. A row without a readable preference has null and says why in ``outcome``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from metareward.benchmarks.alpaca_files import Output
from metareward.benchmarks.alpaca_order import LEADERBOARD_SEED, model_first, preference
from metareward.benchmarks.asking import Asked, Desk, ask
from metareward.benchmarks.label_judge import SAMPLING, LabelPrompt, read_label
from metareward.seeds import derive
from metareward.types import Prompt


async def annotate(
    desk: Desk, prompt: LabelPrompt, baseline: Sequence[Output], outputs: Sequence[Output]
) -> tuple[dict[str, object], ...]:
    """A row for every instruction of ``baseline`` that ``outputs`` answers, in the baseline's order with its ``index``.

    Raises `UserError` as `ask` does.
    """
    by_instruction = {output.instruction: output for output in outputs}
    pairs = {
        index: (base, by_instruction[base.instruction])
        for index, base in enumerate(baseline)
        if base.instruction in by_instruction
    }
    asked = await _asked(desk, prompt, pairs)
    return tuple(_row(index, base, own, desk.judge, asked) for index, (base, own) in pairs.items())


async def _asked(desk: Desk, prompt: LabelPrompt, pairs: Mapping[int, tuple[Output, Output]]) -> Asked:
    questions = [
        Prompt(str(index), prompt.ask(base.instruction, *_shown(base, own)))
        for index, (base, own) in pairs.items()
        if base.output != own.output
    ]

    async def work(question: Prompt) -> dict[str, object]:
        seeded = replace(SAMPLING, seed=derive(desk.seed, "alpaca", question.id))
        (written,) = await desk.engine.complete(question.messages, seeded, 1)
        told = read_label(written)
        return {} if told is None else {"first_share": told.share, "mode": told.mode}

    return await ask(desk, questions, work, {"prompt": prompt.sha256, "order": LEADERBOARD_SEED})


def _shown(base: Output, own: Output) -> tuple[str, str]:
    return (own.output, base.output) if model_first(base.instruction) else (base.output, own.output)


def _row(index: int, base: Output, own: Output, judge: str, asked: Asked) -> dict[str, object]:
    row: dict[str, object] = {
        "index": index,
        "instruction": base.instruction,
        "dataset": base.dataset,
        "output_1": base.output,
        "generator_1": base.generator,
        "output_2": own.output,
        "generator_2": own.generator,
        "annotator": judge,
    }
    return row | _told(base, own, asked.documents.get(str(index)))


def _told(base: Output, own: Output, document: Mapping[str, object] | None) -> dict[str, object]:
    if base.output == own.output:
        return {"preference": 1.5, "outcome": "identical"}
    if document is None:
        return {"preference": None, "outcome": "refused"}
    share = document.get("first_share")
    if not isinstance(share, float):
        return {"preference": None, "outcome": "unparsable"}
    gained = preference(share, model_first(base.instruction))
    return {"preference": 1 + gained, "outcome": "judged", "mode": document["mode"]}
