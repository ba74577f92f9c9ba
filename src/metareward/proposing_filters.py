"""Which proposals become prompts, and why the others don't (Self-Rewarding section 3.1, after Self-Instruct).

A proposal is dropped when it is too short or too long, names what words alone can't give (a picture, a file), says what
a known prompt says, or is too much like one by ROUGE-L: with LCS(a, b) the length of the longest common subsequence of
the words of a and b,

    P = LCS / |a|     R = LCS / |b|     F = 2 P R / (P + R) = 2 LCS / (|a| + |b|)

which is the normalised similarity of insertions and deletions that rapidfuzz computes: exactly the F-measure of
``rouge-score``, several hundred times as fast (docs/data.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rapidfuzz.distance import Indel
from rapidfuzz.process import extractOne

from metareward.types import Completion

Reason = Literal[
    "failed", "unreadable", "cut_off", "too_short", "too_long", "keyword", "repeated", "too_similar"
]  # fmt: skip
KEYWORDS = (
    *("image", "images", "picture", "pictures", "photo", "photos", "photograph", "screenshot", "drawing", "draw"),
    *("diagram", "chart", "graph", "map", "video", "videos", "audio", "recording", "file", "files"),
    *("attached", "attachment", "upload", "download", "link", "click", "website", "url"),
)
# A run of letters or digits is a word; in scripts that write no spaces between words, every character is one.
_SPACELESS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # kana and Chinese characters
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+")
_TASK = re.compile(r"<task>(.*?)</task>", re.DOTALL | re.IGNORECASE)
_OPEN = re.compile(r"<task>(?!.*</task>)(.*)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a proposal must be like: its length in words, its likeness (ROUGE-L) to any known prompt, its words.

    The papers name the filters and not their limits; these lengths and this likeness are Self-Instruct's.
    """

    min_words: int = 4
    max_words: int = 150
    most_alike: float = 0.7
    keywords: tuple[str, ...] = KEYWORDS


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Proposal:
    """A text that was proposed, and why it was dropped; None: it was not."""

    text: str
    reason: Reason | None = None
    detail: str = ""


def words_of(text: str) -> list[str]:
    """The words of ``text``, without case or punctuation."""
    return _WORD.findall(text.casefold())


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """ROUGE-L's F-measure of two lists of words, 0 to 1; 0 when one is empty."""
    return Indel.normalized_similarity(first, second) if first and second else 0.0


def proposals_in(written: Completion) -> Iterator[Proposal]:
    """The tasks that a completion proposes, unfiltered; what isn't one is told as such."""
    tasks = [task.strip() for task in _TASK.findall(written.text)]
    for task in tasks:
        yield Proposal(task) if "<task" not in task.casefold() else Proposal(task, "unreadable", "a task in a task")
    rest = _OPEN.search(written.text)
    if rest is not None:
        yield Proposal(rest[1].strip(), "cut_off", f"finish {written.finish}")
    elif not tasks:
        yield Proposal(written.text, "unreadable", "no <task> in it")


class Known:
    """The prompts that there are already: what is proposed must be none of them, and like none of them.

    The one thing here that changes: every prompt that is taken is known from then on.
    """

    def __init__(self, texts: Iterable[str], limits: Limits) -> None:
        self._limits = limits
        self._keywords = _any_of(limits.keywords)
        self._words: list[list[str]] = []
        self._seen: set[tuple[str, ...]] = set()
        for text in texts:
            self._learn(words_of(text))

    def examine(self, text: str) -> Proposal:
        """``text`` with the first reason against it; without one it is known from now on."""
        words = words_of(text)
        found = self._reason(text, words)
        if found.reason is None:
            self._learn(words)
        return found

    def _reason(self, text: str, words: list[str]) -> Proposal:
        limits = self._limits
        if len(words) < limits.min_words:
            return Proposal(text, "too_short", f"{len(words)} words")
        if len(words) > limits.max_words:
            return Proposal(text, "too_long", f"{len(words)} words")
        named = self._keywords.search(text) if self._keywords else None
        if named is not None:
            return Proposal(text, "keyword", named[0].lower())
        if tuple(words) in self._seen:
            return Proposal(text, "repeated", "word for word")
        nearest = extractOne(words, self._words, scorer=Indel.normalized_similarity, score_cutoff=limits.most_alike)
        if nearest is not None:
            return Proposal(text, "too_similar", f"ROUGE-L {nearest[1]:.2f} with: {' '.join(nearest[0][:20])}")
        return Proposal(text)

    def _learn(self, words: list[str]) -> None:
        self._seen.add(tuple(words))
        if words:
            self._words.append(words)


def _any_of(keywords: Sequence[str]) -> re.Pattern[str] | None:
    words = "|".join(re.escape(word) for word in keywords)
    return re.compile(rf"(?<![^\W_])(?:{words})(?![^\W_])", re.IGNORECASE) if keywords else None
