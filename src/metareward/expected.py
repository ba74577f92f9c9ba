"""The score of one judgment as a mean over the tokens that could have stood at the score's place.

A single judgment names one score; the model's probabilities at that place say how near the others were. Where an engine
gives them, their mean says more than the one score that was drawn, at no further cost (docs/log.md compares them).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from metareward.rubric import SCORE, Rubric
from metareward.types import Completion, Reading, Scored, Step, TopLogprob

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
    if step is None or _number(step.text) != reading.score:
        return reading
    weights = {score: 0.0 for score in map(_number, (each.text for each in step.top_logprobs)) if score is not None}
    for score, weight in _weights(step.top_logprobs, rubric):
        weights[score] += weight
    total = math.fsum(weights.values())
    return Scored(math.fsum(score * weight for score, weight in weights.items()) / total) if total > 0 else reading


def _weights(top_logprobs: tuple[TopLogprob, ...], rubric: Rubric) -> Iterator[tuple[float, float]]:
    for each in top_logprobs:
        score = _number(each.text)
        if score is not None and rubric.low <= score <= rubric.high:
            yield score, math.exp(each.logprob)


def _number(text: str) -> float | None:
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
