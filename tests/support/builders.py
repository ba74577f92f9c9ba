"""Records made by hand and by hypothesis, for the tests of the pure method."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from metareward.method.judge import Rubric
from metareward.method.meta_judge import MetaRubric
from metareward.types import (
    Candidate,
    Dispute,
    Judgment,
    Message,
    MetaJudgment,
    Prompt,
    PromptRecord,
    Reading,
    Scored,
    Tied,
    Truncated,
    Unparsed,
    Verdict,
    Won,
)

# A busy machine is no failure of the code. `make mutants` runs the tests thousands of times, each with few examples:
# 15 of a property find nearly all of them (docs/mutation-testing.md), so that 40 are enough here.
# HYPOTHESIS_PROFILE=thorough searches longer.
settings.register_profile("unhurried", deadline=None, max_examples=40)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.register_profile("mutants", deadline=None, max_examples=15, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "unhurried"))

RUBRIC = Rubric.load("judge")
METARUBRIC = MetaRubric.load("metajudge")


def short_id(text: str) -> str:
    """``text`` as a test's id, without backslashes: pytest would double them at the next collection in one process."""
    return ascii(text).replace("\\", "/")[:60]


def golden(name: str) -> list[dict[str, Any]]:
    """The cases of ``tests/golden/<name>.jsonl``."""
    lines = (Path(__file__).parents[1] / "golden" / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def prompt(text: str = "Why is the sky blue?", name: str = "p") -> Prompt:
    return Prompt(name, (Message("user", text),))


def judgment(index: int, reading: Reading | float | None, text: str | None = None) -> Judgment:
    """A judgment with a score, with a reading, or (None) with no score to be found."""
    outcome = (
        Unparsed("missing") if reading is None else Scored(reading) if isinstance(reading, int | float) else reading
    )
    return Judgment(index, f"judgment {index}" if text is None else text, 5, outcome)


def candidate(
    index: int, scores: Sequence[Reading | float | None], text: str | None = None, chars: int | None = None
) -> Candidate:
    """An answer with these judgments; its text is ``text``, or ``chars`` characters that differ by answer."""
    body = f"answer {index}" if text is None else text
    if chars is not None:
        body = chr(ord("a") + index) * chars
    return Candidate(index, body, "stop", 5, tuple(judgment(n, score) for n, score in enumerate(scores)))


def record(candidates: Sequence[Candidate], dispute: Dispute | None = None, name: str = "p") -> PromptRecord:
    return PromptRecord(prompt(name=name), tuple(candidates), (), dispute)


def meta(first: int, second: int, verdict: Verdict | int | None) -> MetaJudgment:
    """A comparison that ``verdict`` wins; None is one without a verdict."""
    outcome = Unparsed("missing") if verdict is None else Won(verdict) if isinstance(verdict, int) else verdict
    return MetaJudgment(first, second, "", 5, outcome)


def dispute(verdicts: Mapping[tuple[int, int], Verdict | int | None], count: int, answer: int = 0) -> Dispute:
    """A dispute of judgments 0..count-1; ``verdicts`` are by the order shown."""
    return Dispute(answer, tuple(range(count)), tuple(meta(*order, verdict) for order, verdict in verdicts.items()))


# Texts rich in what the reader of a judgment looks for.
_SCORE_PIECES = (
    "Score:|score：|**Score:**|Score|:| |\n|4|4.5|5|-1|45|/|/5|out of 5|nan|inf|1e9|or|*|<|>|%|½|٤|+|points|.|,|[|]"
)
score_pieces = st.sampled_from([*_SCORE_PIECES.split("|"), "Winner: Judgment A", "\u2028"])
judge_texts = st.one_of(st.text(), st.lists(score_pieces, max_size=15).map("".join))

scores_on_scale = st.one_of(st.integers(0, 5).map(float), st.sampled_from([3.5, 4.25, 4.5, 4.75, 4.9]))
readings: st.SearchStrategy[Reading] = st.one_of(
    scores_on_scale.map(Scored),
    scores_on_scale.map(Scored),
    st.sampled_from([Unparsed("missing"), Unparsed("out_of_range"), Unparsed("ambiguous"), Truncated()]),
)


@st.composite
def candidates(draw: st.DrawFn, most: int = 6, judgments: int = 5) -> tuple[Candidate, ...]:
    """Distinct answers with some readable and some unreadable judgments."""
    indices = draw(st.lists(st.integers(0, 9), min_size=1, max_size=most, unique=True))
    made = []
    for index in indices:
        chars = draw(st.integers(1, 6))
        body = f"{chr(ord('a') + index)}" * chars
        read = draw(st.lists(readings, min_size=judgments, max_size=judgments))
        texts = draw(st.lists(st.sampled_from(["short", "longer text", "x"]), min_size=judgments, max_size=judgments))
        given = tuple(judgment(n, outcome, text) for n, (outcome, text) in enumerate(zip(read, texts, strict=True)))
        made.append(Candidate(index, body, "stop", 5, given))
    return tuple(made)


@st.composite
def disputes(draw: st.DrawFn, indices: Sequence[int] | None = None, answer: int = 0) -> Dispute:
    """Every ordered pair of some judgments, each with any verdict."""
    if indices is None:
        indices = draw(st.lists(st.integers(0, 20), min_size=2, max_size=6, unique=True))
    orders = [(first, second) for first in indices for second in indices if first != second]
    metas = []
    for first, second in orders:
        usual: list[Verdict] = [Won(first), Won(second)]
        verdict = draw(st.sampled_from([*usual, *usual, *usual, Tied(), Unparsed("missing"), Truncated()]))
        metas.append(MetaJudgment(first, second, "", 5, verdict))
    return Dispute(answer, tuple(indices), tuple(metas))


@st.composite
def records(draw: st.DrawFn, name: str = "p") -> PromptRecord:
    """A whole record; the dispute, if there is one, is about readable judgments of one of its answers."""
    answers = draw(candidates())
    of = draw(st.sampled_from(answers))
    valid = [each.index for each in of.judgments_N if isinstance(each.reading, Scored)]
    if len(valid) < 2 or not draw(st.booleans()):
        return record(answers, None, name)
    return record(answers, draw(disputes(valid, of.index)), name)
