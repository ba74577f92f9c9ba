"""The judge's question and the reading of its answer (Self-Rewarding section 2.2, Meta-Rewarding section 2.1).

Only the judge's own completion is read, never the prompt. The last anchor (``Score:``) decides, and what follows it is
taken widely and then validated: if it is no clear number on the rubric's scale, the outcome says so, and an earlier
mention is never used instead. The actor is trained against this reading, so a lenient guess here is a reward to hack.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from metareward.errors import UserError
from metareward.method.template import Template, conversation, mask_label, render
from metareward.types import (
    Completion,
    Message,
    Messages,
    Prompt,
    Reading,
    Sampling,
    Scored,
    Step,
    TopLogprob,
    Truncated,
    Unparsed,
)

Finish = Literal["stop", "length"]

# What may stand around a verdict without being part of it.
MARKS = " \t\u00a0*_`\"'“”‘’()[]{}【】「」『』$"
MARK = rf"[\s{re.escape(MARKS)}]"
_TAG = re.compile(r"</?(?!judge?ment)[a-z][^<>]*>", re.IGNORECASE)
_ANGLES = re.compile(r"<([^<>]*)>")


def anchor(word: str) -> re.Pattern[str]:
    """``word`` and a colon, marked up or not (``Score:``, ``**score** :``, ``"score"：``), but not ``z-score:``."""
    return re.compile(rf"(?<![^\W_])(?<!\w-){word}[ \t\u00a0*_`\"']*[:：]", re.IGNORECASE)


SCORE = anchor("score")


@dataclass(frozen=True, slots=True)
class Tail:
    """What follows the last anchor. When it stands on the next line it counts only if it is alone there."""

    text: str
    must_be_alone: bool


def last_tail(text: str, pattern: re.Pattern[str]) -> Tail | None:
    """The rest of the line after the last anchor, or the next line with words if there is no rest; None: no anchor."""
    starts = [match.end() for match in pattern.finditer(text)]
    if not starts:
        return None
    lines = [unwrapped(line) for line in text[starts[-1] :].splitlines()]
    told = (number for number, line in enumerate(lines) if line.strip(MARKS))
    number = next(told, None)
    return Tail("", False) if number is None else Tail(lines[number], number > 0)


def unwrapped(line: str) -> str:
    """``<b>4</b>`` and ``<4>`` are 4: some judges copy the angle brackets of the asked form."""
    return _ANGLES.sub(r"\1", _TAG.sub("", line))


@dataclass(frozen=True, slots=True)
class Rubric:
    """How answers are graded: the judge's prompt text, the ends of its scale, both allowed, and a system prompt."""

    template: Template
    low: float = 0.0
    high: float = 5.0
    system: str | None = None

    def __post_init__(self) -> None:
        """Raise `UserError` when a slot is missing or the scale is empty."""
        self.template.require("question", "answer")
        if not self.low < self.high:
            raise UserError(f"rubric {self.template.name!r}: low {self.low:g} must be below high {self.high:g}")

    def ask(self, prompt: Prompt, answer: str) -> Messages:
        """The judge's question about ``answer``: one user turn, also when the prompt has several.

        A line of the answer that looks like a verdict is defanged: a judge that quotes it doesn't score by that.
        """
        slots = {"question": conversation(prompt.messages), "answer": mask_label(answer, "Score")}
        return with_system(self.system, (Message("user", render(self.template, slots)),))

    def read(self, text: str, finish: Finish) -> Reading:
        """`read` on this rubric's scale."""
        return read(text, finish, self.low, self.high)


def with_system(system: str | None, messages: Messages) -> Messages:
    """``messages`` with a system prompt before them, if there is one to give and they have none of their own."""
    if system is None or messages[0].role == "system":
        return messages
    return (Message("system", system), *messages)


_LEAD = re.compile(rf"{MARK}*")
_NUMBER = r"[+\-−–]?(?:\d+(?:[.,]\d+)*|\.\d+)"
_SCALE = rf"(?:{MARK}|points?\b|pts\b)*(?:/|(?:out\s+)?of\b)[^\d\n]{{0,24}}?(?P<scale>\d+(?:\.\d+)?)"
_GRADE = re.compile(rf"(?P<number>{_NUMBER})(?:{_SCALE}|\s*(?P<percent>[%％]))?", re.IGNORECASE)
_PLAIN = re.compile(r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)")
_ALONE = re.compile(rf"{MARK}*(?:points?|pts)?{MARK}*", re.IGNORECASE)


def read(text: str, finish: Finish, low: float = 0.0, high: float = 5.0) -> Reading:
    """The score that a judge's completion ends in, or why there is none. Never raises; a score is in [low, high].

    Accepted after the last ``Score:``: ``4``, ``4.5``, ``**4**``, ``<4>``, ``4/5``, ``4 out of 5``, also alone on the
    next line, and with any words after it that name no other number. Otherwise `Unparsed`: ``contradictory`` when the
    line holds two different numbers or no plain one (``3 or 4``, ``4-5``, ``4.5.2``, ``4,5``, ``4½``, ``4+``),
    ``out_of_range`` when the number is off the scale or given on another scale (``4/10``, ``80%``), else ``missing``
    (``four``, ``about 4``).
    A text cut off by the token limit is `Truncated`, whatever it ends in.
    """
    if finish == "length":
        return Truncated()
    tail = last_tail(text, SCORE)
    return Unparsed("missing") if tail is None else _grade(tail, low, high)


def _grade(tail: Tail, low: float, high: float) -> Reading:
    grades = list(_GRADE.finditer(tail.text))
    if not grades or not _begins(tail, grades[0]):
        return Unparsed("missing")
    numbers = {_number(grade["number"]) for grade in grades}
    if len(numbers) > 1 or None in numbers or _goes_on(tail.text[grades[0].end("number") :]):
        return Unparsed("contradictory")
    score = numbers.pop()
    if score is None or any(_other_scale(grade, high) for grade in grades) or not low <= score <= high:
        return Unparsed("out_of_range")
    return Scored(score)


def _begins(tail: Tail, grade: re.Match[str]) -> bool:
    """Whether the line begins with this number, not glued to letters, and is alone if it must be."""
    lead = _LEAD.match(tail.text)
    glued = tail.text[grade.end("number") :][:1]
    alone = not tail.must_be_alone or _ALONE.fullmatch(tail.text[grade.end() :]) is not None
    return lead is not None and lead.end() == grade.start() and alone and not (glued.isascii() and glued.isalpha())


def _number(token: str) -> float | None:
    """The plain decimal that ``token`` is; None for ``4.5.2`` and for ``4,5``, which may be two numbers."""
    plain = token.replace("−", "-").replace("–", "-")
    return float(plain) + 0.0 if _PLAIN.fullmatch(plain) else None  # + 0.0 turns -0.0 into 0.0


def _goes_on(rest: str) -> bool:
    """Whether the number isn't whole: ``4+``, ``4½``, ``4 ²``."""
    following = rest.lstrip()[:1]
    return rest[:1] == "+" or (following != "" and unicodedata.category(following) == "No")


def _other_scale(grade: re.Match[str], high: float) -> bool:
    return grade["percent"] is not None or (grade["scale"] is not None and float(grade["scale"]) != high)


# --- Models that think before they answer: where the thinking ends and the answer begins.
#
# What such a model thinks is no part of its answer. Judges see, parsers read and length control counts the answer
# alone;
# the thinking is kept beside it, because DPO trains on all that was written.


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The marks around the thinking. Some chat templates write the opening one themselves, so it may be missing."""

    opening: str = "<think>"
    closing: str = "</think>"

    def split(self, text: str) -> tuple[str, str]:
        """``(thinking, answer)``: the answer is what follows the last closing mark, without leading white space.

        The two joined are ``text``. Thinking that was begun and not ended leaves an empty answer; a text without
        marks is all answer.
        """
        place = text.rfind(self.closing)
        if place < 0:
            return (text, "") if self.opening in text else ("", text)
        answer = text[place + len(self.closing) :].lstrip()
        return text[: len(text) - len(answer)], answer


# --- The score of one judgment as a mean over the tokens that could have stood at the score's place.
#
# A single judgment names one score; the model's probabilities at that place say how near the others were. Where an
# engine
# gives them, their mean says more than the one score that was drawn, at no further cost (docs/log.md compares them).


# Number of top log-probabilities to ask for: all whole scores of a rubric and their spellings with a space fit easily.
TOP_LOGPROBS = 20
_DIGITS = re.compile(r"\d+(?:\.\d+)?")


def expected_reading(written: Completion, rubric: Rubric) -> Reading:
    """The reading of a judgment, its score replaced by the expected one.

    Tokens that are no whole number on the rubric's scale are left out and the others' probabilities normalised. A
    text that can't be read stays what it is. A score of several tokens, such as 4.5, stays as it was drawn: its first
    token's most probable alternatives stand for other numbers.
    """
    reading = rubric.read(written.text, written.finish)
    if not isinstance(reading, Scored):
        return reading
    step = _score_step(written)
    if step is None or _score_number(step.text) != reading.score:
        return reading
    weights = {
        score: 0.0 for score in map(_score_number, (each.text for each in step.top_logprobs)) if score is not None
    }
    for score, weight in _weights(step.top_logprobs, rubric):
        weights[score] += weight
    total = math.fsum(weights.values())
    return Scored(math.fsum(score * weight for score, weight in weights.items()) / total) if total > 0 else reading


def _weights(top_logprobs: tuple[TopLogprob, ...], rubric: Rubric) -> Iterator[tuple[float, float]]:
    for each in top_logprobs:
        score = _score_number(each.text)
        if score is not None and rubric.low <= score <= rubric.high:
            yield score, math.exp(each.logprob)


def _score_number(text: str) -> float | None:
    """The whole number that a token is, with white space around it or not."""
    return float(text) if text.strip().isdecimal() else None


def _score_step(written: Completion) -> Step | None:
    """The step that wrote the first digit after the last anchor; places are counted from the end of the text."""
    anchors = list(SCORE.finditer(written.text))
    digit = _DIGITS.search(written.text, anchors[-1].end()) if anchors else None
    if digit is None:
        return None
    left = len(written.text) - digit.start()
    for step in reversed(written.steps):
        left -= len(step.text)
        if left <= 0:
            return step
    return None


@dataclass(frozen=True, slots=True)
class RubricGrader:
    """How answers are graded: the rubric, N judgments of each answer, their sampling, and how their scores are read.

    ``expected``: a judgment's score is the mean over the tokens possible at its place (`expected_reading`).
    """

    rubric: Rubric
    n: int
    sampling: Sampling
    expected: bool = False

    def sampling_with(self, seed: int) -> Sampling:
        """The sampling of one request; expected scores need the tokens' top log-probabilities."""
        return replace(self.sampling, seed=seed, top_logprobs=TOP_LOGPROBS if self.expected else 0)

    def read(self, judgment: Completion) -> Reading:
        """The score of one judgment, or why there is none."""
        if self.expected:
            return expected_reading(judgment, self.rubric)
        return self.rubric.read(judgment.text, judgment.finish)

    @property
    def settings(self) -> dict[str, object]:
        """What decides the scores, for the fingerprint of stored ones."""
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
