"""The judge's rubric prompt and the score of its judgments (Self-Rewarding section 2.2, Meta-Rewarding section 2.1).

`metareward.method.score_reader` reads the score from the judge's completion. `expected_score` replaces the sampled
score by its mean under the token probabilities. `Reasoning` separates a reasoning model's thinking from its answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from metareward.errors import UserError
from metareward.method.criteria import Criterion, all_questions, criterion_request, load_criteria, names_criteria
from metareward.method.score_reader import Found, find_score
from metareward.method.template import Template, conversation, load_template, render, with_system
from metareward.method.verdict_format import Kind, VerdictFormat, score_format
from metareward.types import Completion, Message, Messages, Prompt, Reading, Scored, Step, Truncated

Finish = Literal["stop", "length"]
ChatMessages = list[dict[str, str]]

# Top log-probabilities to request: all whole scores of a rubric, with and without a leading space, fit easily.
TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Rubric:
    """How answers are scored: the judge's prompt text, the range of scores (inclusive), and a system prompt.

    ``kind`` and ``words`` say how the prompt asks for the score; no words: `SCORE_WORDS`. With ``criteria`` the text
    asks one of their questions, and the score is made of the answers (`metareward.method.criteria`).
    """

    template: Template
    min_score: float = 0.0
    max_score: float = 5.0
    system_prompt: str | None = None
    kind: Kind = "label"
    words: tuple[str, ...] = ()
    criteria: tuple[Criterion, ...] = ()

    def __post_init__(self) -> None:
        """Raise `UserError` when the text lacks a slot or the range is empty."""
        self.template.require("question", "answer", *(["criterion"] if self.criteria else []))
        if not self.min_score < self.max_score:
            scores = f"min_score {self.min_score:g} must be below max_score {self.max_score:g}"
            raise UserError(f"rubric {self.template.name!r}: {scores}")

    @classmethod
    def load(
        cls,
        name_or_path: str,
        *,
        min_score: float = 0.0,
        max_score: float = 5.0,
        system_prompt: str | None = None,
        kind: Kind = "label",
        words: Sequence[str] = (),
    ) -> Rubric:
        """The rubric with the packaged text of that name (``judge``), or with the ``.txt`` file at that path.

        A ``.yaml`` file, or the packaged name ``criteria``, is a list of criteria. Raises `UserError` when there is no
        such text, when it lacks a slot, when a criterion can't be read, or when the range is empty.
        """
        if names_criteria(name_or_path):
            template, criteria = load_criteria(name_or_path)
            return cls(template, min_score, max_score, system_prompt, criteria=criteria)
        return cls(load_template(name_or_path), min_score, max_score, system_prompt, kind, tuple(words))

    @property
    def verdict(self) -> VerdictFormat:
        """How the score is written, read and masked."""
        return score_format(self.kind, self.words, self.min_score, self.max_score)

    def messages(self, prompt: str, answer: str) -> ChatMessages:
        """The judge's prompt about ``answer`` as chat messages, dicts of ``role`` and ``content``."""
        return as_dicts(self.render(single_turn(prompt), answer))

    def render(self, prompt: Prompt, answer: str) -> Messages:
        """The judge's prompt about ``answer``: one user turn, even if ``prompt`` has several.

        Whatever could be read as a score is masked in the question and in the answer, so that a judge that quotes it
        does not score by it. Raises `UserError` for a list of criteria, which has `requests` instead.
        """
        if self.criteria:
            why = "a list of criteria gives no written judgments, which this needs"
            raise UserError(f"rubric {self.template.name!r}: {why}; fix: name a text as rubric")
        mask = self.verdict.mask
        slots = {"question": mask(conversation(prompt.messages)), "answer": mask(answer)}
        return with_system(self.system_prompt, (Message("user", render(self.template, slots)),))

    def different(self, n: int) -> int:
        """How many of ``n`` judgments of one answer can differ: one by criteria, whose probabilities are the same."""
        return 1 if self.criteria else n

    def requests(self, prompt: Prompt, answer: str) -> tuple[Messages, ...]:
        """Everything that the judge is asked about ``answer``: `render`, or a request for each question of criteria."""
        if not self.criteria:
            return (self.render(prompt, answer),)
        asked = all_questions([each for each in self.criteria if each.program is None], prompt)
        return tuple(criterion_request(prompt, answer, each, self.template, self.system_prompt) for _, each in asked)

    def read(self, text: str, finish: Finish = "stop") -> Reading:
        """The score of a judgment: `Scored` with a ``score``, or `Unparsed` or `Truncated` with a ``reason``."""
        return Truncated() if finish == "length" else self.find(text).reading

    def find(self, text: str) -> Found:
        """The score of a complete judgment, and where its number is."""
        return find_score(text, self.verdict, self.min_score, self.max_score)


def single_turn(text: str) -> Prompt:
    """``text`` as a prompt of one user turn, without an id."""
    return Prompt("", (Message("user", text),))


def as_dicts(messages: Messages) -> ChatMessages:
    """``messages`` as the list of dicts that chat templates and chat APIs take."""
    return [{"role": message.role, "content": message.content} for message in messages]


# The expected score: the sampled score replaced by its mean under the token probabilities.


def expected_score(completion: Completion, rubric: Rubric) -> Reading:
    """The judgment's score replaced by sum_s p(s) s over the whole scores s in the rubric's range, p normalised.

    p(s) are the probabilities of the tokens at the position of the score; other tokens are left out. The sampled score
    is kept when the engine gave no probabilities and when it has several tokens, such as 4.5. A judgment without a
    valid score has none here either.
    """
    if completion.finish == "length":
        return Truncated()
    found = rubric.find(completion.text)
    weights = _score_weights(completion, found, rubric)
    total = math.fsum(weights.values())
    if total <= 0:
        return found.reading
    return mean_score({score: weight / total for score, weight in weights.items()})


def mean_score(probabilities: Mapping[float, float]) -> Scored:
    """The mean of the scores by their ``probabilities``, which sum to 1, with its standard deviation."""
    mean = math.fsum(score * each for score, each in probabilities.items())
    variance = math.fsum((score - mean) ** 2 * each for score, each in probabilities.items())
    return Scored(mean, deviation=math.sqrt(variance))


def score_distribution(completion: Completion, rubric: Rubric) -> dict[float, float]:
    """The p(s) of `expected_score`; empty where the sampled score is kept or there is none."""
    if completion.finish == "length":
        return {}
    weights = _score_weights(completion, rubric.find(completion.text), rubric)
    total = math.fsum(weights.values())
    return {score: weight / total for score, weight in weights.items()} if total > 0 else {}


def _score_weights(completion: Completion, found: Found, rubric: Rubric) -> dict[float, float]:
    """The probabilities of the whole scores at the score's position, not normalised."""
    if not isinstance(found.reading, Scored) or found.span is None:
        return {}
    step = _score_step(completion, found.span[0])
    if step is None or _whole_score(step.text) != found.reading.score:
        return {}
    weights: dict[float, float] = {}
    for each in step.top_logprobs:
        score = _whole_score(each.text)
        if score is not None and rubric.min_score <= score <= rubric.max_score:
            weights[score] = weights.get(score, 0.0) + math.exp(each.logprob)
    return weights


def _whole_score(token: str) -> float | None:
    """The whole number that ``token`` is, ignoring white space around it."""
    return float(token) if token.strip().isdecimal() else None


def _score_step(completion: Completion, position: int) -> Step | None:
    """The step that wrote the character at ``position``, which is counted from the end of the text."""
    left = len(completion.text) - position
    for step in reversed(completion.steps):
        left -= len(step.text)
        if left <= 0:
            return step
    return None


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The tags around a reasoning model's thinking. Some chat templates write the start tag, so it may be missing.

    Judges see, parsers read and length control counts the answer only; the thinking is stored beside it, because DPO
    trains on the whole completion.
    """

    start: str = "<think>"
    end: str = "</think>"

    def split(self, text: str) -> tuple[str, str]:
        """``(thinking, answer)``, which joined are ``text``: the answer follows the last end tag and white space.

        Thinking without an end tag leaves an empty answer; a text without tags is all answer.
        """
        position = text.rfind(self.end)
        if position < 0:
            return (text, "") if self.start in text else ("", text)
        answer = text[position + len(self.end) :].lstrip()
        return text[: len(text) - len(answer)], answer
