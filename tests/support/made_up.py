"""Small files of the benchmarks' formats, and engines that judge them, for tests that need no stored data."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metareward.engines.base import Engine, ScriptedEngine
from metareward.evaluation.alpaca_eval.data import Annotation
from metareward.evaluation.arena_hard.data import Match, Verdict
from metareward.evaluation.base import EvaluateSession
from metareward.evaluation.judges import JudgeClient, JudgeSpec
from metareward.types import Completion, Messages, Sampling, Step, TopLogprob

LABEL_PROMPT = """<|im_start|>system
You pick the better output.
<|im_end|>
<|im_start|>user
Instruction: {instruction}
Output m: {output_1}
Output M: {output_2}
Which one is better, {m} or {M}?
<|im_end|>
"""


def json_file(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text(json.dumps(list(rows)), encoding="utf-8")
    return path


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def comparisons(shares: Sequence[float | None], lengths: Sequence[tuple[int, int]]) -> tuple[Annotation, ...]:
    """One row to each share; lengths are (baseline's, model's)."""
    both = zip(shares, lengths, strict=True)
    return tuple(Annotation(row, share, base, own) for row, (share, (base, own)) in enumerate(both))


def swapped(rows: Sequence[Annotation]) -> tuple[Annotation, ...]:
    """The same with model and baseline in each other's place."""
    return tuple(
        Annotation(
            each.row, None if each.preference is None else 1 - each.preference, each.model_chars, each.baseline_chars
        )
        for each in rows
    )


def match(question: str, model: str, *games: Verdict | None, category: str = "") -> Match:
    return Match(question, category, model, "base", (games[0], games[1]))


def token(text: str, **top_logprobs: float) -> Completion:
    """A completion of one token, with the probabilities of others at its place."""
    others = tuple(TopLogprob(name, math.log(chance)) for name, chance in top_logprobs.items())
    return Completion(text, "length", 1, (Step(text, others),))


def judge_client(engine: Engine, records: Path, seed: int = 0) -> JudgeClient:
    return JudgeClient(engine, "scripted", records, seed)


def judge_spec(reply: Callable[[Messages, Sampling, int], str | Completion], name: str = "scripted") -> JudgeSpec:
    async def opened(_: str) -> Engine:
        return ScriptedEngine(reply)

    return JudgeSpec(name, opened)


def session(
    reply: Callable[[Messages, Sampling, int], str | Completion] | None = None,
    reference: Callable[[Messages, Sampling, int], str | Completion] | None = None,
    name: str = "scripted",
) -> EvaluateSession:
    """What ``metareward evaluate`` gives its commands: a judge, and the judge behind every other name."""

    def judge_named(name: str) -> JudgeSpec:
        assert reference is not None
        return judge_spec(reference, name)

    return EvaluateSession(None if reply is None else judge_spec(reply, name), judge_named)


def ranked_trees(path: Path, trees: int = 12) -> Path:
    """A file in the form of OpenAssistant's rankings: a tree has a first question and a later one, three answers each.

    Longer answers have better ranks in two of three rows, so a judge that counts characters is right about as often as
    on the real trees.
    """
    rows = []
    for number in range(2 * trees):
        tree = number // 2
        turns = [{"role": "prompter", "text": f"How does machine {tree} work?"}]
        if number % 2:
            turns += [{"role": "assistant", "text": "Slowly."}, {"role": "prompter", "text": f"And part {number}?"}]
        lengths = [40 + (number * 37 + place * 211) % 700 for place in range(3)]
        by_length = sorted(lengths, reverse=True)
        ranks = [(by_length.index(length) + (number % 3 == 2)) % 3 for length in lengths]
        responses = [{"text": "x" * length, "rank": rank} for length, rank in zip(lengths, ranks, strict=True)]
        rows.append({"id": f"q{number}", "tree_id": f"t{tree}", "conversation": turns, "responses": responses})
    return lines(path, rows)
