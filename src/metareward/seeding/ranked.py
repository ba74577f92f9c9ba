"""A prompt with answers that people put in order."""

from __future__ import annotations

from dataclasses import dataclass

from metareward.proposing_filters import words_of
from metareward.types import Prompt


@dataclass(frozen=True, slots=True)
class RankedAnswer:
    """An answer and its place in people's order: less is better, equal ranks are ties."""

    text: str
    rank: float


@dataclass(frozen=True, slots=True)
class Ranked:
    """A prompt, its ranked answers in the order of their file, and its language where that is told."""

    prompt: Prompt
    answers: tuple[RankedAnswer, ...]
    language: str | None = None

    @property
    def group(self) -> tuple[str, ...]:
        """What prompts of one conversation tree share: the words the user begins with, without case or punctuation.

        A split never parts a group. So no prompt is in two sets, not even as the beginning of a longer one.
        """
        first = next(message.content for message in self.prompt.messages if message.role == "user")
        return tuple(words_of(first)) or (first.strip(),)

    @property
    def first_turn(self) -> bool:
        """Whether the user speaks once only."""
        return sum(message.role == "user" for message in self.prompt.messages) == 1

    @property
    def comparable(self) -> bool:
        """Whether some answer is better than another."""
        return len({answer.rank for answer in self.answers}) > 1

    @property
    def best(self) -> RankedAnswer:
        """The answer that people like best, the first of them if there are several."""
        return min(self.answers, key=lambda answer: answer.rank)
