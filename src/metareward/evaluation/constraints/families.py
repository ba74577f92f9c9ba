"""Constraint families: what a prompt can ask for in a way that a program can check, in the kinds of IFEval and IFBench.

A family draws a sentence such as "Use at least 40 words." and reads it back from the prompt's text alone, so the oracle
needs only the prompt. The checkers are those of the package ``if-verifiable`` (`metareward.evaluation.verifiable`);
the plain ones here are for what it has no checker of. Families that share a tag never stand in one prompt, because
they could contradict each other.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from metareward.evaluation.verifiable.instructions import Instruction

Checker = Callable[[str], bool]
_Values = range | tuple[str, ...] | None
# Common words that most topics have a use for, and words that the model writes often by itself.
KEYWORDS = ("water", "friend", "morning", "simple", "money", "year", "home", "learn", "small", "world", "work", "love")
AVOIDABLE = ("important", "great", "many", "people", "enjoy", "various", "helps", "often", "popular", "also", "provide")
OPENINGS = ("Did you know", "In my opinion", "Dear reader", "Once upon a time", "Imagine", "First of all")
LETTERS = ("b", "c", "f", "g", "m", "p", "u", "w", "y")


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of constraint: ``draw`` writes its sentence, which ``pattern`` matches; ``read`` makes its checker.

    ``tags``: no two families of a prompt share one. ``held_out``: it stands in held-out prompts only.
    """

    name: str
    draw: Callable[[random.Random], str]
    pattern: str
    read: Callable[[re.Match[str]], Instruction | Checker]
    tags: frozenset[str] = frozenset()
    held_out: bool = False


_Read = Callable[[Any], Instruction | Checker]


def _asks(name: str, sentence: str, values: _Values, read: _Read, *tags: str, held_out: bool = False) -> Family:
    """A family whose sentence has one of ``values``, numbers or words, in the place of its braces; None: no braces."""

    def draw(rng: random.Random) -> str:
        return sentence.format(*([] if values is None else [rng.choice(values)]))

    numbers = isinstance(values, range)
    pattern = re.escape(sentence).replace(r"\{\}", r"(?P<value>\d+)" if numbers else r'(?P<value>[^"]+)')

    def checker(match: re.Match[str]) -> Instruction | Checker:
        given = match.groupdict().get("value", "")
        return read(int(given) if numbers else given)

    return Family(name, draw, pattern, checker, frozenset(tags), held_out)


def _library(kind: str, argument: str = "", listed: bool = False, **others: object) -> _Read:
    """Makes the library's checker ``kind`` of a value, given as ``argument``, in a list if ``listed``."""
    return lambda value: Instruction(kind, {**({argument: [value] if listed else value} if argument else {}), **others})


_NUMBERED = re.compile(r"^\s*(\d+)[.)]\s+\S", re.MULTILINE)


def _ends_with_question(text: str) -> bool:
    return text.rstrip().rstrip("*_\"'”’)").endswith("?")


def _is_one_line(text: str) -> bool:
    return "\n" not in text.strip()


def _begins_with(words: str) -> Checker:
    return lambda text: text.lstrip("\"'“*_ \n").casefold().startswith(words.casefold())


def _has_digits(text: str) -> bool:
    return re.search(r"\d", text) is not None


def _numbered_items(count: int) -> Checker:
    """The lines that begin with a number are 1 to ``count``."""
    return lambda text: [int(number) for number in _NUMBERED.findall(text)] == list(range(1, count + 1))


_WORDS, _SENTENCES = "length_constraints:number_words", "length_constraints:number_sentences"

FAMILIES: tuple[Family, ...] = (
    _asks(
        "words at least", "Use at least {} words.", range(30, 61, 5),
        _library(_WORDS, "num_words", relation="at least"), "length",
    ),
    _asks(
        "words below", "Use fewer than {} words.", range(20, 46, 5),
        _library(_WORDS, "num_words", relation="less than"), "length",
    ),
    _asks(
        "word range", "Use between 20 and {} words.", range(40, 71, 10),
        _library("count:word_count_range", "max_words", min_words=20), "length",
    ),
    _asks(
        "sentences at least", "Write at least {} sentences.", range(3, 7),
        _library(_SENTENCES, "num_sentences", relation="at least"), "length",
    ),
    _asks(
        "different words", "Use at least {} different words.", range(20, 41, 5),
        _library("count:unique_word_count", "N"), "length",
    ),
    _asks(
        "bullets", 'Use exactly {} bullet points that start with "- ".', range(2, 6),
        _library("detectable_format:number_bullet_lists", "num_bullets"), "layout",
    ),
    _asks("numbered list", "Write a numbered list with exactly {} items.", range(2, 6), _numbered_items, "layout"),
    _asks(
        "title", "Begin with a title in double angle brackets, as in <<A title>>.", None,
        _library("detectable_format:title"), "start",
    ),
    _asks(
        "postscript", 'Add a postscript that starts with "P.S." at the end.', None,
        _library("detectable_content:postscript", postscript_marker="P.S."), "end", held_out=True,
    ),
    _asks("one line", "Write it as one paragraph without line breaks.", None, lambda _: _is_one_line, "layout"),
    _asks(
        "keyword", 'Use the word "{}".', KEYWORDS,
        _library("keywords:existence", "keywords", listed=True), "keyword",
    ),
    _asks(
        "keyword twice", 'Use the word "{}" at least twice.', KEYWORDS,
        _library("keywords:frequency", "keyword", frequency=2, relation="at least"), "keyword",
    ),
    _asks(
        "forbidden word", 'Don\'t use the word "{}".', AVOIDABLE,
        _library("keywords:forbidden_words", "forbidden_words", listed=True), "keyword",
    ),
    _asks("no comma", "Don't use any commas.", None, _library("punctuation:no_comma")),
    _asks(
        "letters", 'Use the letter "{}" at least 6 times.', LETTERS,
        _library("keywords:letter_frequency", "letter", let_frequency=6, let_relation="at least"),
    ),
    _asks("opening", 'Begin with the words "{}".', OPENINGS, _begins_with, "start", held_out=True),
    _asks("digits", "Mention at least one number, written in digits.", None, lambda _: _has_digits, held_out=True),
    _asks("question", "End with a question.", None, lambda _: _ends_with_question, "end", held_out=True),
    _asks(
        "conjunctions", "Use at least {} different words of these: and, but, or, so, for, nor, yet.", range(2, 4),
        _library("count:conjunctions", "small_n"),
    ),
    _asks(
        "pronouns", "Use at least {} pronouns, such as I, you, it, they.", range(2, 6),
        _library("count:pronouns", "N"),
    ),
)  # fmt: skip
