"""The judge client: a judge by name, opened to an engine, asked many questions at once, every reply stored.

A judge's name is ``itself`` (the evaluated model), ``oracle`` (the pocket or constraint world's), ``pocket``, a model
folder, a recipe file, a server as ``URL#MODEL``, or ``package.module:name``: an object of the user's, an `Engine` or a
`Judge`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from metareward.data.prompts import digest_prompts
from metareward.engines.base import Engine, EngineError, LazyEngine
from metareward.errors import UserError
from metareward.generation.progress import JUDGMENTS, SILENT, Progress
from metareward.generation.runner import TooManyFailuresError, run_tasks
from metareward.generation.verdicts import RubricGrader
from metareward.seeds import derive
from metareward.storage.serialization import fingerprint_of
from metareward.storage.store import RecordStore
from metareward.text import one_line, replace_surrogates
from metareward.types import Completion, Judge, Messages, Prompt, Reading, Sampling, Scored

T = TypeVar("T")


OpenJudge = Callable[[str], Awaitable[Engine | Judge]]
JudgeKind = Literal["itself", "oracle", "server", "recipe", "object", "model"]
_OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def judge_kind(name: str) -> JudgeKind:
    """What the name of a judge stands for; every other name is a model's."""
    if name == "itself":
        return "itself"
    if name == "oracle":
        return "oracle"
    if name.startswith(("http://", "https://")):
        return "server"
    if name.endswith((".yaml", ".yml")):
        return "recipe"
    return "object" if _OBJECT.fullmatch(name) else "model"


class JudgeUnavailableError(UserError):
    """The judge can't be opened, or fails on everything. What it has said is stored; the rest can be asked later."""


def judge_name(name: str) -> str:
    """The judge without the address where it is: of a server the model alone."""
    return f"#{name.partition('#')[2]}" if judge_kind(name) == "server" else name


@dataclass(frozen=True, slots=True)
class JudgeClient:
    """An open judge: an engine or a `Judge`, and the file that stores its replies.

    ``cache_key`` is what decides the replies besides the judge's name, the seed and the query, such as room to think.
    """

    backend: Engine | Judge
    name: str
    records: Path
    seed: int = 0
    max_concurrency: int = 64
    progress: Progress = SILENT
    cache_key: Mapping[str, object] = field(default_factory=dict)

    @property
    def engine(self) -> Engine:
        """The engine. Raises `UserError` for a judge that only grades."""
        return _engine(self.backend, self.name)


@dataclass(frozen=True, slots=True)
class JudgeSpec:
    """A judge by name that isn't open yet, and the function that opens it."""

    name: str
    open: OpenJudge
    seed: int = 0
    progress: Progress = SILENT
    cache_key: Mapping[str, object] = field(default_factory=dict)

    async def run(self, records: Path, work: Callable[[JudgeClient], Awaitable[T]]) -> T:
        """``work`` with the judge, whose replies are stored in ``records``; it is closed whatever happens.

        Where there are records already, it is opened at the first question that they don't answer. Raises
        `JudgeUnavailableError` when it can't be opened or fails on too many queries.
        """
        resumed = records.is_file() and judge_kind(self.name) != "object"
        backend = LazyEngine(self._open_engine) if resumed else await self._open()
        try:
            client = JudgeClient(
                backend, self.name, records, self.seed, progress=self.progress, cache_key=self.cache_key
            )
            return await work(client)
        except TooManyFailuresError as error:
            raise JudgeUnavailableError(str(error)) from error
        finally:
            if not isinstance(backend, Judge):
                await backend.aclose()

    async def _open(self) -> Engine | Judge:
        try:
            return await self.open(self.name)
        except (UserError, EngineError) as error:
            raise JudgeUnavailableError(str(error)) from error

    async def _open_engine(self) -> Engine:
        return _engine(await self._open(), self.name)


def _engine(judge: Engine | Judge, name: str) -> Engine:
    if isinstance(judge, Judge):
        raise UserError(f"judge {name}: only grades answers; fix: leave the benchmark's judge prompt out")
    return judge


# "I'm sorry, I can't judge this": an apology or none, then that the judge can't do what it was asked.
_REFUSAL = re.compile(
    r"(?:(?:i['’]m|i am) (?:very )?sorry|sorry|i apologi[sz]e|my apologies|unfortunately|as an ai(?: [a-z]+)*)?"
    r"[,.!:; ]*(?:but )?(?:i (?:can['’]t|cannot|can not|won['’]t|will not)|(?:i['’]m|i am) (?:not able|unable) to) "
    r"(?:judge|grade|rate|score|evaluate|assess|compare|assist|comply|continue|fulfill?|provide|do (?:that|this|so)|"
    r"help(?! but)|answer (?:that|this)|engage)\b",
    re.IGNORECASE,
)
_LONGEST_REFUSAL = 300  # characters; a longer reply discusses what it was asked


def is_refusal(text: str) -> bool:
    """Whether a judge's reply declines in plain words, and does nothing else.

    Short, without a digit or a bracketed label, and it begins by saying that it can't judge, help or comply. Any other
    reply without a verdict is unreadable.
    """
    flat = " ".join(text.split())
    plain = len(flat) <= _LONGEST_REFUSAL and not re.search(r"\d|\[\[", flat)
    return plain and _REFUSAL.match(flat.lstrip("*_#\"'“ ")) is not None


async def ask_judge(engine: Engine, messages: Messages, sampling: Sampling, n: int = 1) -> Sequence[Completion]:
    """``n`` replies of a judge, a refusal without its text, so that no score or verdict is read in it.

    Raises `EngineError` as the engine does, and when the judge refuses all of them, marked or in words (`is_refusal`).
    """
    found = await engine.complete(messages, sampling, n, "judge")
    replies = [replace(reply, refused=reply.refused or is_refusal(reply.text)) for reply in found]
    if all(reply.refused for reply in replies):
        raise EngineError(f"the judge refuses to answer: {one_line(replies[0].text, 80) or 'content_filter'}")
    return [replace(reply, text="") if reply.refused else reply for reply in replies]


def verdict_store(folder: Path, judge: JudgeSpec, grader: RubricGrader) -> Path:
    """The file in ``folder`` of a judge's scores by a rubric; another judge, rubric or sampling has another file.

    Scores are stored by the answer's words (`Output.of`), so one file can serve all models of a run, and several runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"judge": judge_name(judge.name), "seed": judge.seed, **judge.cache_key, **grader.settings}
    return folder / f"{fingerprint_of(settings)[:16]}.sqlite"


@dataclass(frozen=True, slots=True)
class QueryResults:
    """The documents of the queries that were answered, by query id; the others were refused."""

    documents: Mapping[str, Any]
    refused: frozenset[str]


async def cached_queries(
    client: JudgeClient,
    queries: Sequence[Prompt],
    work: Callable[[Prompt], Awaitable[Mapping[str, object]]],
    settings: Mapping[str, object],
    stage: str = "asking the judge",
    role: str = JUDGMENTS,
) -> QueryResults:
    """``work`` done on every query that the client's records lack; ``stage`` and ``role`` are shown as progress.

    Each document is stored as soon as it is there, under the query's id and a digest of its text: a stopped evaluation
    resumes, and changed queries are asked again. A query that the engine can't serve (`EngineError`) is a refusal:
    counted, shown, tried again by the next call, and never a score. ``settings`` is what decides the documents besides
    the client and the queries. Raises `UserError` when the records were made with other settings, or when the judge
    refuses everything or 20 queries in a row.
    """
    keyed = {query.id: replace(query, id=f"{query.id} {digest_prompts([query])[:16]}") for query in queries}

    async def document(query: Prompt) -> str:
        text = json.dumps(await work(query), ensure_ascii=False)
        client.progress.advance(role, 1)
        return text

    fingerprint = {"judge": judge_name(client.name), "seed": client.seed, **client.cache_key, **settings}
    with RecordStore.open(client.records, fingerprint) as store:
        pending, most = list(keyed.values()), {role: 1}
        await run_tasks(document, pending, store, client.progress, stage, most, client.max_concurrency)
        stored = dict(store.documents())
    found = {name: json.loads(stored[each.id]) for name, each in keyed.items() if each.id in stored}
    return QueryResults(found, frozenset(keyed.keys() - found.keys()))


@dataclass(frozen=True, slots=True)
class Output:
    """An answer to be graded. ``id`` is unique among the outputs of one call."""

    id: str
    prompt: Prompt
    text: str

    @classmethod
    def of(cls, prompt: Prompt, text: str) -> Output:
        """An answer named by its words, so that its scores don't depend on who wrote it or where it is shown."""
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        return cls(f"{prompt.id} {digest[:16]}", prompt, text)

    def query(self, grader: RubricGrader) -> Prompt:
        """What a judge is asked about it, as one conversation."""
        return Prompt(self.id, tuple(chain.from_iterable(grader.rubric.requests(self.prompt, self.text))))


async def grade(
    client: JudgeClient, grader: RubricGrader, outputs: Sequence[Output], purpose: str = "scores"
) -> QueryResults:
    """N judgments of every output: documents with ``scores``, None for each judgment without a readable one.

    ``outcomes`` say how each was read (``scored``, or why not), ``texts`` and ``tokens`` what was written. If the
    scores are expected ones, ``distributions`` has the probabilities of the possible scores of every judgment, as pairs
    (score, probability); none where the engine gave none. ``purpose`` tells the seeds of one use from another's.
    Raises `UserError` as `cached_queries` does.
    """
    by_id = {output.id: output for output in outputs}

    async def work(query: Prompt) -> dict[str, object]:
        distributions: list[dict[float, float]] = [{}] * grader.n
        output = by_id[query.id.rpartition(" ")[0]]
        if isinstance(client.backend, Judge):
            judgments_N = await client.backend.judge(output.prompt, output.text, grader.n)
        else:
            asking = partial(ask, client.backend, query, distributions)
            judgments_N = await grader.judge(asking, output.prompt, output.text)
        document: dict[str, object] = {
            "scores": [_score(judgment.reading) for judgment in judgments_N],
            "outcomes": [_outcome(judgment.reading) for judgment in judgments_N],
            "texts": [replace_surrogates(judgment.text) for judgment in judgments_N],
            "tokens": [judgment.tokens for judgment in judgments_N],
        }
        if grader.expected and not grader.rubric.criteria:
            document["distributions"] = [list(each.items()) for each in distributions]
        return document

    async def ask(
        engine: Engine,
        query: Prompt,
        distributions: list[dict[float, float]],
        messages: Messages,
        sampling: Sampling,
        n: int,
        *of: str | int,
    ) -> Sequence[Completion]:
        seeded = replace(sampling, seed=derive(client.seed, purpose, query.id, *of))
        replies = await ask_judge(engine, messages, seeded, n)
        if grader.rubric.criteria:
            return replies
        for place, reply in enumerate(replies):
            index = int(of[1]) if of else place  # a retry or a verdict names its judgment's
            distributions[index] = grader.distribution(reply, drawn=bool(sampling.choices))
        return replies

    return await cached_queries(client, [output.query(grader) for output in outputs], work, grader.settings)


def _score(reading: Reading) -> float | None:
    return reading.score if isinstance(reading, Scored) else None


def _outcome(reading: Reading) -> str:
    return reading.kind if isinstance(reading, Scored) else reading.reason
