"""Which of two outputs is better, by judges of several kinds behind one interface.

* `LabelJudge` reads both outputs and names one: AlpacaEval's own question.
* `ScoringJudge` knows only its rubric. It grades each output alone, N times, and the preference is what a random one of
  its judgments of each would say: the share of the N x N pairs of scores that the output wins, equal scores half.
* `GradedJudge` is the same with scores that are there already.
* `TrueJudge` asks an oracle: all, half or nothing.

The last three see one output at a time, so the place of an output means nothing to them, and two models that change
places turn every preference p into 1 - p.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args

from metareward.data.files import read_text
from metareward.data.prompts import digest_prompts
from metareward.engines.base import Engine
from metareward.errors import UserError
from metareward.evaluation.held_out import Oracle
from metareward.evaluation.judge_quality.data import Comparison, Item
from metareward.generation.progress import JUDGMENTS, SILENT, Progress
from metareward.generation.runner import run_tasks
from metareward.method.judge import TOP_LOGPROBS, Rubric, expected_score
from metareward.method.scores import TOLERANCE
from metareward.method.template import conversation, fill, require
from metareward.seeds import derive
from metareward.storage.serialization import replace_surrogates
from metareward.storage.store import RecordStore
from metareward.types import ChatRole, Completion, Message, Messages, Prompt, Sampling, Scored, Tied, TopLogprob, Won

# --- A judge is asked many questions at once, and no answer is paid for twice.
#
# Every question is a `Prompt` with an id of its own; its document goes into a record store as soon as it is there,
# under
# the id and a digest of the words. A stopped evaluation goes on where it was, questions may be added later, and changed
# ones are asked again. A question that the engine can't serve (`EngineError`) is a refusal: counted, shown, and tried
# again by the next call. It never turns into a score.


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
    keyed = {
        question.id: replace(question, id=f"{question.id} {digest_prompts([question])[:16]}") for question in questions
    }

    async def document(question: Prompt) -> str:
        told = json.dumps(await work(question), ensure_ascii=False)
        desk.progress.advance(role, 1)
        return told

    with RecordStore.open(desk.records, {"judge": desk.judge, "seed": desk.seed, **desk.manner, **settings}) as store:
        owed, most = list(keyed.values()), {role: 1}
        await run_tasks(document, owed, store, desk.progress, stage, most, desk.in_flight)
        kept = dict(store.documents())
    found = {name: json.loads(kept[each.id]) for name, each in keyed.items() if each.id in kept}
    return Asked(found, frozenset(keyed.keys() - found.keys()))


def kept_text(written: Completion) -> str:
    """A completion's text as a store can keep it: half of a surrogate pair, which some servers send, becomes "?"."""
    return replace_surrogates(written.text)


# --- The pairwise question of AlpacaEval 2 and the reading of its answer: which output is better, "m" or "M".
#
# The prompt text is the user's copy of ``alpaca_eval_clf.txt`` (tatsu-lab/alpaca_eval, evaluators_configs): ChatML with
# ``{instruction}``, ``{output_1}`` (named m) and ``{output_2}`` (named M). It is cut into messages before it is filled,
# so an output that holds ChatML marks can't open a message of its own. The judge writes one token. Where the engine
# gives
# token probabilities, the share of the first output is P(m) / (P(m) + P(M)); where it doesn't, the label that was drawn
# decides. A text that is neither label is no preference.


FIRST, SECOND = "m", "M"

# One token, at temperature 1, with the five most probable ones: the setting of weighted_alpaca_eval_gpt4_turbo.
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=1, top_logprobs=5)

Mode = Literal["token probabilities", "sampled label", "scores of each alone", "truth"]

_MESSAGE = re.compile(r"<\|im_start\|>[ \t]*(\w+)[^\n]*\n(.*?)<\|im_end\|>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class LabelPrompt:
    """The messages with their slots, and the digest of the file they come from."""

    messages: Messages
    sha256: str

    def ask(self, instruction: str, first: str, second: str) -> Messages:
        """The question, ``first`` shown first."""
        slots = {"instruction": instruction, "output_1": first, "output_2": second}
        return tuple(replace(message, content=fill(message.content, slots)) for message in self.messages)


@dataclass(frozen=True, slots=True)
class FirstShare:
    """How much of the preference the output shown first got, in [0, 1], and how that was read."""

    share: float
    mode: Mode


def load_label_prompt(path: Path) -> LabelPrompt:
    """The judge's prompt from a ChatML file. Raises `UserError` when it holds no messages or lacks a slot."""
    text = read_text(path)
    require(text, str(path), "instruction", "output_1", "output_2")
    messages = tuple(_message(role, content, path) for role, content in _MESSAGE.findall(text))
    if not messages:
        raise UserError(f"{path}: no <|im_start|> messages in it; fix: name the evaluator's alpaca_eval_clf.txt")
    return LabelPrompt(messages, hashlib.sha256(text.encode()).hexdigest())


def _message(role: str, content: str, path: Path) -> Message:
    known: ChatRole | None = next((each for each in get_args(ChatRole) if each == role), None)
    if known is None:
        raise UserError(f"{path}: a message of role {role!r}; fix: use system, user or assistant")
    return Message(known, content.strip())


def read_label(written: Completion) -> FirstShare | None:
    """What the judge's token says; None when neither label is there."""
    if written.steps:
        share = _label_share(written.steps[0].top_logprobs)
        return None if share is None else FirstShare(share, "token probabilities")
    label = written.text.strip()
    return FirstShare(float(label == FIRST), "sampled label") if label in (FIRST, SECOND) else None


def _label_share(top_logprobs: Sequence[TopLogprob]) -> float | None:
    """P(m) / (P(m) + P(M)); a label that is not among them has probability 0."""
    for cut in (str, str.strip):  # forms with a space count only where no other form of a label is there
        first, second = (
            math.fsum(math.exp(each.logprob) for each in top_logprobs if cut(each.text) == label)
            for label in (FIRST, SECOND)
        )
        if first + second > 0:
            return first / (first + second)
    return None


Unjudged = Literal["refused", "unparsable"]
Scores = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Shown:
    """Two outputs to one prompt, in the order in which they are shown. Ids of prompts are unique among the pairs."""

    prompt: Prompt
    first: str
    second: str


class PairJudge(Protocol):
    """Anyone who compares two outputs."""

    @property
    def name(self) -> str:
        """What the judge is called in annotations."""
        ...

    async def shares(self, pairs: Sequence[Shown]) -> Mapping[str, FirstShare | Unjudged]:
        """By prompt id: how much of the preference the output shown first gets, or why there is none.

        Raises `UserError` as `metareward.benchmarks.asking.ask` does.
        """
        ...


@dataclass(frozen=True, slots=True)
class LabelJudge:
    """The engine of ``desk``, asked AlpacaEval's question."""

    desk: Desk
    prompt: LabelPrompt
    settings: Mapping[str, object]

    @property
    def name(self) -> str:
        """The desk's judge."""
        return self.desk.judge

    async def shares(self, pairs: Sequence[Shown]) -> Mapping[str, FirstShare | Unjudged]:
        """Each pair is one question of one token."""
        questions = [
            Prompt(pair.prompt.id, self.prompt.ask(conversation(pair.prompt.messages), pair.first, pair.second))
            for pair in pairs
        ]

        async def work(question: Prompt) -> dict[str, object]:
            seeded = replace(SAMPLING, seed=derive(self.desk.seed, "alpaca", question.id))
            (written,) = await self.desk.engine.complete(question.messages, seeded, 1, "judge")
            told = read_label(written)
            return {} if told is None else {"first_share": told.share, "mode": told.mode}

        asked = await ask(self.desk, questions, work, {"prompt": self.prompt.sha256, **self.settings})
        return {pair.prompt.id: _told(asked.documents.get(pair.prompt.id)) for pair in pairs}


def _told(document: Mapping[str, object] | None) -> FirstShare | Unjudged:
    if document is None:
        return "refused"
    share = document.get("first_share")
    if not isinstance(share, float):
        return "unparsable"
    return FirstShare(share, "token probabilities" if document["mode"] == "token probabilities" else "sampled label")


@dataclass(frozen=True, slots=True)
class Grading:
    """How an engine grades: rubric, N judgments of each output, sampling, and whether scores are expected scores."""

    rubric: Rubric
    n: int
    sampling: Sampling
    expected: bool = False

    def score(self, written: Completion) -> float | None:
        """The score of one judgment, None without a readable one."""
        read = self.rubric.read(written.text, written.finish)
        reading = expected_score(written, self.rubric) if self.expected else read
        return reading.score if isinstance(reading, Scored) else None

    async def asked(self, desk: Desk, questions: Sequence[Prompt]) -> Asked:
        """The judge of ``desk`` asked each of the rubric's ``questions``: documents with its ``scores``, N each.

        Raises `UserError` as `ask` does.
        """

        async def work(question: Prompt) -> dict[str, object]:
            seed = derive(desk.seed, "scores", question.id)
            seeded = replace(self.sampling, seed=seed, top_logprobs=TOP_LOGPROBS if self.expected else 0)
            written_N = await desk.engine.complete(question.messages, seeded, self.n, "judge")
            return {"scores": [self.score(written) for written in written_N]}

        return await ask(desk, questions, work, self.settings)

    @property
    def settings(self) -> dict[str, object]:
        """What decides the scores."""
        rubric, sampling = self.rubric, self.sampling
        return {
            "rubric": rubric.template.sha256,
            "scale": [rubric.min_score, rubric.max_score],
            "system": rubric.system_prompt,
            "n": self.n,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "expected": self.expected,
        }


@dataclass(frozen=True, slots=True)
class ScoringJudge:
    """The engine of ``desk``, which grades every output once, however many pairs it is in."""

    desk: Desk
    grading: Grading

    @property
    def name(self) -> str:
        """The desk's judge."""
        return self.desk.judge

    async def shares(self, pairs: Sequence[Shown]) -> Mapping[str, FirstShare | Unjudged]:
        """What the scores of both outputs come to."""
        questions = {
            _place(pair.prompt, text): Prompt(_place(pair.prompt, text), self.grading.rubric.render(pair.prompt, text))
            for pair in pairs
            for text in (pair.first, pair.second)
        }
        asked = await self.grading.asked(self.desk, list(questions.values()))
        scores = {key: tuple(document["scores"]) for key, document in asked.documents.items()}
        return {
            pair.prompt.id: _share(*(scores.get(_place(pair.prompt, text)) for text in (pair.first, pair.second)))
            for pair in pairs
        }


def _place(prompt: Prompt, text: str) -> str:
    """An output by its words, so that its scores don't depend on where it is shown or by whom it is."""
    return f"{prompt.id} {hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:16]}"


def _share(first: Scores | None, second: Scores | None) -> FirstShare | Unjudged:
    if first is None or second is None:
        return "refused"
    one, other = ([score for score in each if score is not None] for each in (first, second))
    if not one or not other:
        return "unparsable"
    won = sum(_point(a, b) for a in one for b in other)
    return FirstShare(won / (len(one) * len(other)), "scores of each alone")


def _point(a: float, b: float) -> float:
    return 0.5 if abs(a - b) <= TOLERANCE else float(a > b)


@dataclass(frozen=True, slots=True)
class GradedJudge:
    """Scores that are there already, by prompt id and the output's text."""

    name: str
    scores_N: Mapping[tuple[str, str], Scores]

    async def shares(self, pairs: Sequence[Shown]) -> Mapping[str, FirstShare | Unjudged]:
        """What the scores of both outputs come to; an output without any is refused."""
        return {
            pair.prompt.id: _share(*(self.scores_N.get((pair.prompt.id, text)) for text in (pair.first, pair.second)))
            for pair in pairs
        }


@dataclass(frozen=True, slots=True)
class TrueJudge:
    """The truth, where an oracle knows it."""

    oracle: Oracle
    name: str = "oracle"

    async def shares(self, pairs: Sequence[Shown]) -> Mapping[str, FirstShare | Unjudged]:
        """1 for the better output, one half for equal ones."""
        return {pair.prompt.id: FirstShare(self._share(pair), "truth") for pair in pairs}

    def _share(self, pair: Shown) -> float:
        return _point(*(self.oracle.answer_score(pair.prompt, text) for text in (pair.first, pair.second)))


# --- Scores and comparisons that an engine is asked for: the judge under test grades, a reference judge compares.
#
# Grading uses this project's rubrics, N judgments to an answer; only readable ones become scores. Comparing uses the
# label question of AlpacaEval in both orders; the output with more than half of the preference wins.


async def score_responses(
    desk: Desk, rubric: Rubric, items: Sequence[Item], n: int, sampling: Sampling
) -> tuple[Item, ...]:
    """``items`` with ``n`` scores to every response, None for an unreadable one. Raises `UserError` as `ask` does."""
    questions = [
        Prompt(_judge_place(item, i), rubric.render(Prompt(item.id, item.messages), response.text))
        for item in items
        for i, response in enumerate(item.responses)
    ]

    async def work(question: Prompt) -> dict[str, object]:
        seeded = replace(sampling, seed=derive(desk.seed, "judge quality", question.id))
        written_N = await desk.engine.complete(question.messages, seeded, n, "judge")
        readings = [rubric.read(written.text, written.finish) for written in written_N]
        return {"scores": [reading.score if isinstance(reading, Scored) else None for reading in readings]}

    settings = {
        "rubric": rubric.template.sha256,
        "n": n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    asked = await ask(desk, questions, work, settings)
    return tuple(_scored(item, asked) for item in items)


def _judge_place(item: Item, i: int) -> str:
    return f"{item.id} answer {i}"


def _scored(item: Item, asked: Asked) -> Item:
    responses = [
        replace(response, scores_N=tuple(document["scores"]), refused=False)
        if (document := asked.documents.get(_judge_place(item, i))) is not None
        else replace(response, scores_N=(), refused=True)
        for i, response in enumerate(item.responses)
    ]
    return replace(item, responses=tuple(responses))


async def compare_responses(
    desk: Desk, prompt: LabelPrompt, items: Sequence[Item], chosen: Mapping[str, tuple[int, int]]
) -> tuple[Item, ...]:
    """``items`` with the reference judge's verdicts, in both orders, on the two responses that ``chosen`` names.

    Raises `UserError` as `ask` does.
    """
    by_id = {item.id: item for item in items}
    orders = {
        f"{name} {first} {second}": (by_id[name], first, second)
        for name, (one, other) in chosen.items()
        for first, second in ((one, other), (other, one))
    }
    questions = [
        Prompt(key, prompt.ask(conversation(item.messages), item.responses[first].text, item.responses[second].text))
        for key, (item, first, second) in orders.items()
    ]

    async def work(question: Prompt) -> dict[str, object]:
        seeded = replace(SAMPLING, seed=derive(desk.seed, "reference", question.id))
        (written,) = await desk.engine.complete(question.messages, seeded, 1, "judge")
        told = read_label(written)
        return {"first_share": None if told is None else told.share}

    asked = await ask(desk, questions, work, {"prompt": prompt.sha256})
    found: dict[str, list[Comparison]] = {}
    for key, (item, first, second) in orders.items():
        found.setdefault(item.id, []).append(_comparison(asked.documents.get(key), first, second))
    return tuple(replace(item, comparisons=tuple(_merged(item, found))) for item in items)


def _merged(item: Item, found: Mapping[str, Iterable[Comparison]]) -> list[Comparison]:
    """The new verdicts, and stored ones about other responses."""
    new = list(found.get(item.id, ()))
    told = [{each.first, each.second} for each in new]
    return new + [each for each in item.comparisons if {each.first, each.second} not in told]


def _comparison(document: Mapping[str, object] | None, first: int, second: int) -> Comparison:
    share = None if document is None else document.get("first_share")
    if not isinstance(share, float):
        return Comparison(first, second, None)
    verdict = Tied() if share == 0.5 else Won(first if share > 0.5 else second)
    return Comparison(first, second, verdict)
