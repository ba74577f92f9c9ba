"""The judge's rubric prompt and the parser of its judgments (Self-Rewarding section 2.2, Meta-Rewarding section 2.1).

The parser reads the judge's completion only. The last ``Score:`` decides: what follows it is matched widely and then
validated, with no fallback to an earlier mention, because the actor is trained against this parser and a lenient guess
can be exploited. `expected_score` replaces the sampled score by its mean under the token probabilities. `Reasoning`
separates a reasoning model's thinking from its answer.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from metareward.errors import UserError
from metareward.method.template import Template, conversation, load_template, render
from metareward.method.verdict_format import Kind, VerdictFormat, score_format
from metareward.types import Completion, Message, Messages, Prompt, Reading, Scored, Step, Truncated, Unparsed

Finish = Literal["stop", "length"]
ChatMessages = list[dict[str, str]]

# Top log-probabilities to request: all whole scores of a rubric, with and without a leading space, fit easily.
TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Rubric:
    """How answers are scored: the judge's prompt text, the range of scores (inclusive), and a system prompt.

    ``kind`` and ``words`` say how the prompt asks for the score; no words: `SCORE_WORDS`.
    """

    template: Template
    min_score: float = 0.0
    max_score: float = 5.0
    system_prompt: str | None = None
    kind: Kind = "label"
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise `UserError` when the text lacks a slot or the range is empty."""
        self.template.require("question", "answer")
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

        Raises `UserError` when there is no such text, when it lacks a slot, or when the range is empty.
        """
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
        does not score by it.
        """
        mask = self.verdict.mask
        slots = {"question": mask(conversation(prompt.messages)), "answer": mask(answer)}
        return with_system(self.system_prompt, (Message("user", render(self.template, slots)),))

    def read(self, text: str, finish: Finish = "stop") -> Reading:
        """The score of a judgment: `Scored` with a ``score``, or `Unparsed` or `Truncated` with a ``reason``."""
        return parse_score(text, finish, self.min_score, self.max_score)


def with_system(system_prompt: str | None, messages: Messages) -> Messages:
    """``messages`` preceded by the system prompt, unless that is None or they have a system prompt already."""
    if system_prompt is None or messages[0].role == "system":
        return messages
    return (Message("system", system_prompt), *messages)


def single_turn(text: str) -> Prompt:
    """``text`` as a prompt of one user turn, without an id."""
    return Prompt("", (Message("user", text),))


def as_dicts(messages: Messages) -> ChatMessages:
    """``messages`` as the list of dicts that chat templates and chat APIs take."""
    return [{"role": message.role, "content": message.content} for message in messages]


# Parsing: the last anchor (``Score:``, ``Winner:``) and what follows it. Also used for the meta-judge's verdicts.

# Quotes, brackets and Markdown that may surround a score or a winner.
MARKS = " \t\u00a0*_`\"'“”‘’()[]{}【】「」『』$"
MARK = rf"[\s{re.escape(MARKS)}]"
_TAG = re.compile(r"</?(?!judge?ment)[a-z][^<>]*>", re.IGNORECASE)
_ANGLES = re.compile(r"<([^<>]*)>")


def anchor(word: str) -> re.Pattern[str]:
    """``word`` and a colon, with or without Markdown (``Score:``, ``**score** :``, ``"score"：``); not ``z-score:``."""
    return re.compile(rf"(?<![^\W_])(?<!\w-){word}[ \t\u00a0*_`\"']*[:：]", re.IGNORECASE)


SCORE = anchor("score")


@dataclass(frozen=True, slots=True)
class Tail:
    """The text after the last anchor. Taken from a line below it, it counts only if nothing else is on that line."""

    text: str
    must_be_alone: bool


def last_tail(text: str, pattern: re.Pattern[str]) -> Tail | None:
    """The rest of the line after the last anchor, or the next line that isn't blank; None without an anchor."""
    starts = [match.end() for match in pattern.finditer(text)]
    if not starts:
        return None
    lines = [strip_tags(line) for line in text[starts[-1] :].splitlines()]
    number = next((number for number, line in enumerate(lines) if line.strip(MARKS)), None)
    return Tail("", False) if number is None else Tail(lines[number], number > 0)


def strip_tags(line: str) -> str:
    """``line`` without tags and angle brackets: ``<b>4</b>`` and ``<4>``, copied from ``<points>``, become 4."""
    return _ANGLES.sub(r"\1", _TAG.sub("", line))


_LEAD = re.compile(rf"{MARK}*")
_NUMBER = r"[+\-−–]?(?:\d+(?:[.,]\d+)*|\.\d+)"
_SCALE = rf"(?:{MARK}|points?\b|pts\b)*(?:/|(?:out\s+)?of\b)[^\d\n]{{0,24}}?(?P<scale>\d+(?:\.\d+)?)"
_GRADE = re.compile(rf"(?P<number>{_NUMBER})(?:{_SCALE}|\s*(?P<percent>[%％]))?", re.IGNORECASE)
_PLAIN = re.compile(r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)")
_ALONE = re.compile(rf"{MARK}*(?:points?|pts)?{MARK}*", re.IGNORECASE)


def parse_score(text: str, finish: Finish = "stop", min_score: float = 0.0, max_score: float = 5.0) -> Reading:
    """The final score of a judgment, in [min_score, max_score], or why there is none. Never raises.

    Accepted after the last ``Score:``: ``4``, ``4.5``, ``**4**``, ``<4>``, ``4/5``, ``4 out of 5``, also alone on the
    next line, and followed by any words without another number. Otherwise `Unparsed`: ``contradictory`` when the line
    has two different numbers or no plain one (``3 or 4``, ``4-5``, ``4.5.2``, ``4,5``, ``4½``, ``4+``),
    ``out_of_range`` when the number is outside the range or on another scale (``4/10``, ``80%``), else ``missing``
    (``four``, ``about 4``). `Truncated` when the token limit cut the text off.
    """
    if finish == "length":
        return Truncated()
    tail = last_tail(text, SCORE)
    grades = list(_GRADE.finditer(tail.text)) if tail else []
    if tail is None or not grades:
        return Unparsed("missing")
    # The line must start with a number that is not joined to letters, and that is alone if it must be.
    before, after = tail.text[: grades[0].start()], tail.text[grades[0].end("number") :]
    joined = after[:1].isascii() and after[:1].isalpha()
    alone = not tail.must_be_alone or _ALONE.fullmatch(tail.text[grades[0].end() :])
    if joined or not alone or not _LEAD.fullmatch(before):
        return Unparsed("missing")
    plain = {grade["number"].replace("−", "-").replace("–", "-") for grade in grades}
    # ``4,5`` may be two numbers; + 0.0 turns -0.0 into 0.0.
    numbers = {float(number) + 0.0 if _PLAIN.fullmatch(number) else None for number in plain}
    following = after.lstrip()[:1]
    continued = after[:1] == "+" or (following != "" and unicodedata.category(following) == "No")  # 4+, 4½, 4 ²
    if len(numbers) > 1 or None in numbers or continued:
        return Unparsed("contradictory")
    score = numbers.pop()
    scales = [float(grade["scale"]) for grade in grades if grade["scale"] is not None]
    other_scale = any(grade["percent"] for grade in grades) or any(scale != max_score for scale in scales)
    if score is None or other_scale or not min_score <= score <= max_score:
        return Unparsed("out_of_range")
    return Scored(score)


# The expected score: the sampled score replaced by its mean under the token probabilities.

_DIGITS = re.compile(r"\d+(?:\.\d+)?")


def expected_score(completion: Completion, rubric: Rubric) -> Reading:
    """The judgment's score replaced by sum_s p(s) s over the whole scores s in the rubric's range, p normalised.

    p(s) are the probabilities of the tokens at the position of the score; other tokens are left out. The sampled score
    is kept when the engine gave no probabilities and when it has several tokens, such as 4.5. A judgment without a
    valid score has none here either.
    """
    reading = rubric.read(completion.text, completion.finish)
    if not isinstance(reading, Scored):
        return reading
    step = _score_step(completion)
    if step is None or _whole_score(step.text) != reading.score:
        return reading
    weights: dict[float, float] = {}
    for each in step.top_logprobs:
        score = _whole_score(each.text)
        if score is not None and rubric.min_score <= score <= rubric.max_score:
            weights[score] = weights.get(score, 0.0) + math.exp(each.logprob)
    total = math.fsum(weights.values())
    return Scored(math.fsum(score * weight for score, weight in weights.items()) / total) if total > 0 else reading


def _whole_score(token: str) -> float | None:
    """The whole number that ``token`` is, ignoring white space around it."""
    return float(token) if token.strip().isdecimal() else None


def _score_step(completion: Completion) -> Step | None:
    """The step that wrote the first digit after the last anchor; positions are counted from the end of the text."""
    anchors = list(SCORE.finditer(completion.text))
    digit = _DIGITS.search(completion.text, anchors[-1].end()) if anchors else None
    if digit is None:
        return None
    left = len(completion.text) - digit.start()
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
