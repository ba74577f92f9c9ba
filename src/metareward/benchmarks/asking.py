"""A judge is asked many questions at once, and no answer is paid for twice.

Every question is a `Prompt` with an id of its own; its document goes into a record store as soon as it is there, under
the id and a digest of the words. A stopped evaluation goes on where it was, questions may be added later, and changed
ones are asked again. A question that the engine can't serve (`EngineError`) is a refusal: counted, shown, and tried
again by the next call. It never turns into a score.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from metareward.engines.engine import Engine
from metareward.progress import JUDGMENTS, SILENT, Progress
from metareward.prompts import digest
from metareward.store import RecordStore
from metareward.sweep import sweep_with
from metareward.types import Completion, Prompt

T = TypeVar("T")

OpenEngine = Callable[[str], Awaitable[Engine]]


@dataclass(frozen=True, slots=True)
class Desk:
    """Where a judge is asked: its engine, its name, and the file that keeps what it answered.

    ``manner`` is what else decides its answers, such as room to think.
    """

    engine: Engine
    judge: str
    records: Path
    seed: int = 0
    in_flight: int = 64
    progress: Progress = SILENT
    manner: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Door:
    """A judge by name, not opened yet."""

    judge: str
    open: OpenEngine
    seed: int = 0
    progress: Progress = SILENT
    manner: Mapping[str, object] = field(default_factory=dict)

    async def at_desk(self, records: Path, work: Callable[[Desk], Awaitable[T]]) -> T:
        """``work`` done with the engine, which is closed whatever happens."""
        engine = await self.open(self.judge)
        try:
            return await work(Desk(engine, self.judge, records, self.seed, progress=self.progress, manner=self.manner))
        finally:
            await engine.aclose()


@dataclass(frozen=True, slots=True)
class Asked:
    """The documents of the questions that were answered, by question id; the others were refused."""

    documents: Mapping[str, Any]
    refused: frozenset[str]


async def ask(
    desk: Desk,
    questions: Sequence[Prompt],
    work: Callable[[Prompt], Awaitable[Mapping[str, object]]],
    settings: Mapping[str, object],
    stage: str = "asking the judge",
    role: str = JUDGMENTS,
) -> Asked:
    """``work`` done on every question that the desk's records lack; ``stage`` and ``role`` are told as progress.

    ``settings`` is what decides the documents beside the judge, the seed and the questions. Raises `UserError` when the
    records were made with others, or when the judge refuses everything or 20 in a row.
    """
    keyed = {question.id: replace(question, id=f"{question.id} {digest([question])[:16]}") for question in questions}

    async def document(question: Prompt) -> str:
        told = json.dumps(await work(question), ensure_ascii=False)
        desk.progress.advance(role, 1)
        return told

    with RecordStore.open(desk.records, {"judge": desk.judge, "seed": desk.seed, **desk.manner, **settings}) as store:
        owed, most = list(keyed.values()), {role: 1}
        await sweep_with(document, owed, store, desk.progress, stage, most, desk.in_flight)
        kept = dict(store.documents())
    found = {name: json.loads(kept[each.id]) for name, each in keyed.items() if each.id in kept}
    return Asked(found, frozenset(keyed.keys() - found.keys()))


def kept_text(written: Completion) -> str:
    """A completion's text as a store can keep it: half of a surrogate pair, which some servers send, becomes "?"."""
    return written.text.encode("utf-8", "replace").decode()
