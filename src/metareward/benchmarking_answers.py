"""M_t answers a benchmark's questions, and its answers are written in the benchmark's own format.

Greedy by default. Where the model thinks first, its thinking is no part of the answer. A question that the engine can't
serve has no answer, and is counted as missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from metareward.benchmarking_entries import Entry
from metareward.benchmarks import arena_files, mt_bench_files
from metareward.benchmarks.asking import Desk, ask, kept_text
from metareward.engines.engine import Engine
from metareward.errors import UserError
from metareward.progress import ANSWERS, Progress
from metareward.prompts import load_prompts
from metareward.recipe import BenchmarkSettings, engine_fingerprint
from metareward.render import conversation
from metareward.rubric import with_system
from metareward.rundir import json_lines, write_atomic
from metareward.seeds import derive
from metareward.training.lineage import fingerprint_model
from metareward.types import Message, Messages, Prompt, Sampling


async def answer(entry: Entry, engine: Engine, progress: Progress) -> None:
    """Write the answers, asking for those that aren't kept yet. Raises `UserError` for a file that can't be read."""
    entry.folder.mkdir(parents=True, exist_ok=True)
    desk = Desk(engine, entry.model, entry.folder / "answers.sqlite", entry.seed, progress=progress)
    questions = questions_of(entry.local)
    written = await _written(entry, desk, questions)
    if not written:
        raise UserError(f"benchmarks.{entry.name}: {entry.model} answered none of {entry.asked.questions}")
    rows = [_row(entry, prompt, written[prompt.id]) for prompt in questions if prompt.id in written]
    alpaca = entry.asked.kind == "alpaca"
    write_atomic(entry.answers, json.dumps(rows, ensure_ascii=False, indent=1) + "\n" if alpaca else json_lines(rows))


def questions_of(asked: BenchmarkSettings) -> Sequence[Prompt]:
    """The questions of a file; those of MT-Bench have one message to a turn of the user.

    Raises `UserError` when it can't be read.
    """
    path = Path(str(asked.questions))
    if asked.kind == "alpaca":
        return load_prompts(path)
    if asked.kind == "arena":
        return [Prompt(each.id, (Message("user", each.text),)) for each in arena_files.read_questions(path)]
    turns = mt_bench_files.read_questions(path).values()
    return [Prompt(str(each.id), tuple(Message("user", turn) for turn in each.turns)) for each in turns]


async def _written(entry: Entry, desk: Desk, questions: Sequence[Prompt]) -> Mapping[str, Sequence[str]]:
    """What the model wrote in each turn, by question id."""
    recipe = entry.of.recipe
    sampling = Sampling(entry.asked.temperature, recipe.answers.top_p, recipe.answers.max_tokens)
    talk = _Talk(desk, sampling, recipe.answers.system, turn_by_turn=entry.asked.kind == "mt-bench")
    decided: dict[str, object] = {
        "model": fingerprint_model(entry.of.model(entry.t)),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "system": recipe.answers.system,
        **engine_fingerprint(recipe.engine),
    }
    asked = await ask(desk, questions, talk.answered, decided, f"{entry.model} answers {entry.name}", ANSWERS)
    return {key: document["turns"] for key, document in asked.documents.items()}


@dataclass(frozen=True, slots=True)
class _Talk:
    """A conversation with the model."""

    desk: Desk
    sampling: Sampling
    system: str | None
    turn_by_turn: bool

    async def answered(self, question: Prompt) -> dict[str, object]:
        parts = [(each,) for each in question.messages] if self.turn_by_turn else [question.messages]
        said: Messages = ()
        turns: list[str] = []
        for number, part in enumerate(parts):
            said = with_system(self.system, (*said, *part))
            seed = derive(self.desk.seed, "answer", question.id, number)
            (reply,) = await self.desk.engine.complete(said, replace(self.sampling, seed=seed), 1, "actor")
            turns.append(kept_text(reply))
            said = (*said, Message("assistant", turns[-1]))
        return {"turns": turns}


def _row(entry: Entry, prompt: Prompt, turns: Sequence[str]) -> dict[str, object]:
    if entry.asked.kind == "alpaca":
        told = {"instruction": conversation(prompt.messages), "output": turns[0], "generator": entry.model}
        return {"id": prompt.id, **told}
    if entry.asked.kind == "arena":
        return arena_row(entry.model, prompt.id, turns[0])
    return {"question_id": int(prompt.id), "model_id": entry.model, "choices": [{"index": 0, "turns": turns}]}


def arena_row(model: str, question: str, text: str) -> dict[str, object]:
    """An answer as Arena-Hard's files have it."""
    return {"question_id": question, "model_id": model, "choices": [{"turns": [{"content": text}]}]}
