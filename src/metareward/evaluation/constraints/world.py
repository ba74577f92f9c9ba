"""The guarded truth about answers in the constraint world, which no model role sees.

A constraint alone is a bad truth: a model trained on it learns to answer ``*word*``. So an answer also has to pass four
guards, and its true score on a scale of 0 to 1 is 0.6 times the share of constraints that it meets, if it passes all of
them, plus 0.1 for every guard passed. An answer without words scores 0.

topic      it names its topic and isn't mostly a copy of the prompt
length     it has at least 8 words
finished   it ends as a text ends, not in the middle of a sentence
no_loops   it doesn't repeat itself
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from functools import lru_cache
from itertools import pairwise

from metareward.evaluation.constraints.prompts import TOPICS, Constraint, read_prompt
from metareward.evaluation.verifiable.instructions import InstructedPrompt, Instruction, follow
from metareward.types import Prompt

FEWEST_WORDS = 8
_MOST_COPIED, _MOST_REPEATED = 0.5, 0.25  # shares of an answer's runs of words
_COPY_RUN, _LOOP_RUN = 5, 4  # words
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_ENDS = re.compile(r"[.!?…][\"'”’)\]*_>]*$")
_HELD_OUT_KIND = re.compile(r"held-out-(topic|combination|family)-")
_SENTENCE = re.compile(r"[.!?\n]+")


@dataclass(frozen=True, slots=True)
class Guards:
    """Which guards an answer passes."""

    topic: bool
    length: bool
    finished: bool
    no_loops: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """What the program knows of an answer: which constraints it meets, by their order in the prompt, and its guards."""

    constraints: tuple[bool, ...]
    guards: Guards

    @property
    def passes(self) -> bool:
        """Whether it meets every constraint and passes every guard."""
        return all(self.constraints) and all(astuple(self.guards))

    @property
    def share(self) -> float:
        """The true score, on a scale of 0 to 1; 1 exactly if it passes."""
        if self.passes:
            return 1.0
        passed: tuple[bool, ...] = astuple(self.guards)
        met = sum(self.constraints) / len(self.constraints) if self.constraints else 1.0
        return 0.6 * met * all(passed) + 0.1 * sum(passed)


@lru_cache(maxsize=65_536)
def check_answer(prompt: str, answer: str) -> Checked:
    """What is true of ``answer``.

    Raises `ValueError` for a prompt outside the constraint world, `UserError` without the extra ``ifeval``.
    """
    task = read_prompt(prompt)
    words = [word.casefold() for word in _WORD.findall(answer)]
    met = tuple(bool(words) and _meets(constraint, prompt, answer) for constraint in task.constraints)
    if not words:
        return Checked(met, Guards(False, False, False, False))
    named = re.search(rf"\b(?:{TOPICS[task.topic]})", answer, re.IGNORECASE) is not None
    guards = Guards(
        topic=named and copied_share(prompt, words) <= _MOST_COPIED,
        length=len(words) >= FEWEST_WORDS,
        finished=_ENDS.search(answer.rstrip()) is not None,
        no_loops=not has_loops(answer, words),
    )
    return Checked(met, guards)


def _meets(constraint: Constraint, prompt: str, answer: str) -> bool:
    if not isinstance(constraint.check, Instruction):
        return constraint.check(answer)
    return follow(InstructedPrompt("", prompt, (constraint.check,)), answer).strict[0]


def copied_share(prompt: str, words: Sequence[str]) -> float:
    """The share of an answer's runs of five words that stand in the prompt, too."""
    asked = set(_runs([word.casefold() for word in _WORD.findall(prompt)], _COPY_RUN))
    runs = _runs(words, _COPY_RUN)
    return sum(run in asked for run in runs) / len(runs) if runs else 0.0


def has_loops(answer: str, words: Sequence[str]) -> bool:
    """Whether an answer says the same again: a word thrice in a row, a sentence of four words or more twice, or more
    than a quarter of its runs of four words.
    """
    if any(first == second == third for (first, second), (_, third) in pairwise(pairwise(words))):
        return True
    sentences = [tuple(_WORD.findall(each.casefold())) for each in _SENTENCE.split(answer)]
    long = [each for each in sentences if len(each) >= _LOOP_RUN]
    runs = _runs(words, _LOOP_RUN)
    return len(set(long)) < len(long) or (bool(runs) and 1 - len(set(runs)) / len(runs) > _MOST_REPEATED)


# Programs of a rubric's criteria (`metareward.method.criteria`): three guards, which any text has without a label.


def finished(_: Prompt, answer: str) -> bool:
    """Whether ``answer`` has words and ends as a text ends."""
    return _WORD.search(answer) is not None and _ENDS.search(answer.rstrip()) is not None


def long_enough(_: Prompt, answer: str) -> bool:
    """Whether ``answer`` has at least `FEWEST_WORDS` words."""
    return len(_WORD.findall(answer)) >= FEWEST_WORDS


def without_loops(_: Prompt, answer: str) -> bool:
    """Whether ``answer`` has words and doesn't repeat itself (`has_loops`)."""
    words = [word.casefold() for word in _WORD.findall(answer)]
    return bool(words) and not has_loops(answer, words)


def _runs(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]


# What a question of a criterion, if it quotes no sentence of the prompt, must contain to be about a guard.
_GUARD_PHRASES = {"complete": "finished", "about": "topic", "repeat": "no_loops", "long enough": "length"}


def criterion_holds(prompt: str, answer: str, question: str, sentence: str | None) -> bool | None:
    """Whether ``answer`` meets a Yes-or-No criterion; None if the program can't tell.

    ``sentence`` is what the ``question`` quotes of the prompt: a constraint (or a part of one), or the task, which an
    answer does if it passes the guards ``topic`` and ``length``. Else the question is about a guard: it says
    "complete", "about", "repeat" or "long enough", and nothing of two guards. Raises as `check_answer`.
    """
    checked = check_answer(prompt, answer)
    if sentence is None:
        named = [guard for phrase, guard in _GUARD_PHRASES.items() if phrase in question.casefold()]
        return bool(getattr(checked.guards, named[0])) if len(named) == 1 else None
    for constraint, met in zip(read_prompt(prompt).constraints, checked.constraints, strict=True):
        if sentence in constraint.sentence:
            return met
    return checked.guards.topic and checked.guards.length if prompt.startswith(sentence) else None


def require_checkers() -> None:
    """Raise `UserError` without the extra ``ifeval``."""
    follow(InstructedPrompt("", "", (Instruction("punctuation:no_comma", {}),)), "yes")


@dataclass(frozen=True, slots=True)
class ConstraintOracle:
    """The ground truth about the constraint world (`metareward.evaluation.held_out.DetailedOracle`).

    ``low`` and ``high`` are the ends of the rubric's scale.
    """

    low: float = 0.0
    high: float = 5.0

    @property
    def full_score(self) -> float:
        """The score of an answer that passes."""
        return self.high

    def answer_score(self, prompt: Prompt, answer: str) -> float:
        """The true score, on the rubric's scale; ``high`` exactly if the answer passes."""
        checked = check_answer(prompt.messages[-1].content, answer)
        return self.high if checked.passes else self.low + (self.high - self.low) * checked.share  # exact if it passes

    def details(self, prompt: Prompt, answer: str) -> dict[str, bool]:
        """Whether the answer meets all constraints, passes each guard, and passes, by what is new in the prompt."""
        checked = check_answer(prompt.messages[-1].content, answer)
        guards = {f"guard_{name}": passed for name, passed in asdict(checked.guards).items()}
        kind = _HELD_OUT_KIND.match(prompt.id)
        by_kind = {f"passes_{kind[1]}": checked.passes} if kind else {}
        return {**by_kind, "constraints_met": all(checked.constraints), **guards}

    def judgment_error(self, prompt: Prompt, answer: str, judgment: str, score: float) -> tuple[float, ...]:  # noqa: ARG002
        """The score's distance from the true score."""
        return (abs(score - self.answer_score(prompt, answer)),)


class ProgramReward:
    """The truth as a reward, 0 to 5, so that pairs are the program's (a recipe's ``reward``): the ceiling of a judge.

    ``reward: metareward.evaluation.constraints.world:ProgramReward``
    """

    async def score(self, prompt: Prompt, answers: Sequence[str]) -> list[float]:
        """The true score of every answer."""
        oracle = ConstraintOracle()
        return [oracle.answer_score(prompt, answer) for answer in answers]
