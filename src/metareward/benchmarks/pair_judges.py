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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from metareward.benchmarks.asking import Asked, Desk, ask
from metareward.benchmarks.label_judge import SAMPLING, FirstShare, LabelPrompt, read_label
from metareward.evaluation import Oracle
from metareward.expected import TOP_LOGPROBS, expected_reading
from metareward.render import conversation
from metareward.rubric import Rubric
from metareward.scores import TOLERANCE
from metareward.seeds import derive
from metareward.types import Completion, Prompt, Sampling, Scored

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
    """How an engine grades: rubric, N judgments of each output, sampling; ``expected`` as in `metareward.expected`."""

    rubric: Rubric
    n: int
    sampling: Sampling
    expected: bool = False

    def score(self, written: Completion) -> float | None:
        """The score of one judgment, None without a readable one."""
        read = self.rubric.read(written.text, written.finish)
        reading = expected_reading(written, self.rubric) if self.expected else read
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
            "scale": [rubric.low, rubric.high],
            "system": rubric.system,
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
            _place(pair.prompt, text): Prompt(_place(pair.prompt, text), self.grading.rubric.ask(pair.prompt, text))
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
