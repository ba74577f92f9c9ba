"""Nine families of instructions whose right answers a program knows.

Each family draws instructions and parses them from their text alone, so the oracle needs only the actor's prompt. A
tenth of all instructions, chosen by hash, is held out from training.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

CATEGORIES: dict[str, tuple[str, ...]] = {
    "animals": ("cat", "dog", "cow", "horse", "sheep", "fox", "bear", "lion", "duck", "frog"),
    "colours": ("red", "blue", "green", "black", "white", "brown", "pink", "grey", "yellow", "purple"),
    "foods": ("bread", "rice", "soup", "cheese", "apple", "pear", "cake", "fish", "egg", "honey"),
    "tools": ("hammer", "saw", "drill", "knife", "brush", "ladder", "rope", "nail", "wrench", "shovel"),
}
NAMES = ("Ann", "Ben", "Eva", "Tom", "Mia", "Leo")
TOWNS = ("Oslo", "Rome", "Paris", "Berlin", "Madrid", "Prague")
FIELDS = ("name", "age", "town")

WORDS: tuple[str, ...] = tuple(word for words in CATEGORIES.values() for word in words)
NUMBERS: tuple[str, ...] = tuple(str(number) for number in range(1, 51))

OPENINGS = ("Sure, here you are:", "Of course, I am happy to help:", "What a lovely question:")
CLOSINGS = ("I hope that this helps you.", "Have a very nice day.", "Please ask me for more.")


@dataclass(frozen=True, slots=True)
class Task:
    """A parsed instruction.

    ``expected``: the right items in the right order; with ``any_of_allowed``, any ``len(expected)`` different items of
    ``allowed`` in any order are right. ``kind``: all items of the right kind.
    """

    family: str
    expected: tuple[str, ...]
    kind: frozenset[str]
    allowed: frozenset[str]
    any_of_allowed: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of instruction: ``draw`` makes one, ``pattern`` matches it, ``solve`` makes the task of the match."""

    name: str
    draw: Callable[[random.Random], str]
    pattern: str
    solve: Callable[[re.Match[str]], Task]


WORD_KIND = frozenset(WORDS)
NUMBER_KIND = frozenset(NUMBERS)
FORM_KIND = frozenset(
    f"{field} {value}" for field, values in zip(FIELDS, (NAMES, NUMBERS, TOWNS), strict=True) for value in values
)


def _task(family: str, expected: list[str], kind: frozenset[str]) -> Task:
    return Task(family, tuple(expected), kind, frozenset(expected))


def _sample(rng: random.Random, pool: tuple[str, ...]) -> str:
    return ", ".join(rng.sample(pool, rng.randint(3, 5)))


def _items(match: re.Match[str]) -> list[str]:
    return match["items"].split(", ")


def _draw_name(rng: random.Random) -> str:
    category = rng.choice(list(CATEGORIES))
    ask = f"Name {rng.randint(2, 5)} {category}"
    return f"{ask}." if rng.random() < 0.3 else f"{ask}, but not {rng.choice(CATEGORIES[category])}."


def _solve_name(match: re.Match[str]) -> Task:
    category = frozenset(CATEGORIES[match["category"]])
    allowed = category - {match["word"]}
    return Task("name", tuple(sorted(allowed))[: int(match["n"])], category, allowed, any_of_allowed=True)


def _draw_count(rng: random.Random) -> str:
    start, length = rng.randint(1, 45), rng.randint(2, 4)
    ends = [start, start + length]
    return "Count from {} to {}.".format(*(ends if rng.random() < 0.6 else reversed(ends)))


def _solve_count(match: re.Match[str]) -> Task:
    start, end = int(match["start"]), int(match["end"])
    step = 1 if end >= start else -1
    return _task("count", [str(number) for number in range(start, end + step, step)], NUMBER_KIND)


def _draw_keep(rng: random.Random) -> str:
    """At least two of the words, but not all, belong to the category."""
    category = rng.choice(list(CATEGORIES))
    inside = rng.sample(CATEGORIES[category], rng.randint(2, 4))
    outside = rng.sample([word for word in WORDS if word not in CATEGORIES[category]], max(1, 4 - len(inside)))
    words = inside + outside
    rng.shuffle(words)
    return f"Keep only the {category}: {', '.join(words)}."


def _draw_drop(rng: random.Random) -> str:
    words = _sample(rng, WORDS)
    return f"Leave out {rng.choice(words.split(', '))}: {words}."


def _solve_pick(match: re.Match[str]) -> Task:
    best = max if match["way"] == "largest" else min
    return _task("pick", [best(_items(match), key=int)], NUMBER_KIND)


def _draw_form(rng: random.Random) -> str:
    fields = ", ".join(rng.sample(FIELDS, rng.randint(2, 3)))
    return f"Fill in {fields}: {rng.choice(NAMES)} is {rng.choice(NUMBERS)} and lives in {rng.choice(TOWNS)}."


_CATEGORY = f"(?P<category>{'|'.join(CATEGORIES)})"
_ITEMS = r"(?P<items>\w+(?:, \w+)*)"
_PERSON = r"(?P<name>\w+) is (?P<age>\d+) and lives in (?P<town>\w+)"

FAMILIES: tuple[Family, ...] = (
    Family("name", _draw_name, rf"Name (?P<n>\d+) {_CATEGORY}(?:, but not (?P<word>\w+))?\.", _solve_name),
    Family(
        "sort",
        lambda rng: f"Sort from {rng.choice(('low to high', 'high to low'))}: {_sample(rng, NUMBERS)}.",
        rf"Sort from (?P<way>low to high|high to low): {_ITEMS}\.",
        lambda match: _task("sort", sorted(_items(match), key=int, reverse=match["way"] == "high to low"), NUMBER_KIND),
    ),
    Family(
        "reverse",
        lambda rng: f"Say backwards: {_sample(rng, WORDS)}.",
        rf"Say backwards: {_ITEMS}\.",
        lambda match: _task("reverse", _items(match)[::-1], WORD_KIND),
    ),
    Family("count", _draw_count, r"Count from (?P<start>\d+) to (?P<end>\d+)\.", _solve_count),
    Family(
        "repeat",
        lambda rng: f"Write {rng.choice(WORDS)} {rng.randint(2, 5)} times.",
        r"Write (?P<word>\w+) (?P<n>\d+) times\.",
        lambda match: _task("repeat", [match["word"]] * int(match["n"]), WORD_KIND),
    ),
    Family(
        "keep",
        _draw_keep,
        rf"Keep only the {_CATEGORY}: {_ITEMS}\.",
        lambda match: _task("keep", [w for w in _items(match) if w in CATEGORIES[match["category"]]], WORD_KIND),
    ),
    Family(
        "drop",
        _draw_drop,
        rf"Leave out (?P<word>\w+): {_ITEMS}\.",
        lambda match: _task("drop", [word for word in _items(match) if word != match["word"]], WORD_KIND),
    ),
    Family(
        "pick",
        lambda rng: f"Pick the {rng.choice(('largest', 'smallest'))}: {_sample(rng, NUMBERS)}.",
        rf"Pick the (?P<way>largest|smallest): {_ITEMS}\.",
        lambda match: _task(
            "pick", [{"largest": max, "smallest": min}[match["way"]](_items(match), key=int)], NUMBER_KIND
        ),
    ),
    Family(
        "form",
        _draw_form,
        rf"Fill in (?P<fields>\w+(?:, \w+)*): {_PERSON}\.",
        lambda match: _task("form", [f"{field} {match[field]}" for field in match["fields"].split(", ")], FORM_KIND),
    ),
)


def parse_instruction(instruction: str) -> Task:
    """The task of an instruction. Raises `ValueError` for text that no family draws."""
    for family in FAMILIES:
        match = re.fullmatch(family.pattern, instruction.strip())
        if match:
            return family.solve(match)
    raise ValueError(f"not an instruction of the pocket world: {instruction!r}")


def is_held_out(instruction: str) -> bool:
    """Whether this instruction is held out: a tenth of all, by hash. No model is trained on it."""
    return hashlib.sha256(instruction.encode()).digest()[0] % 10 == 0


def draw_instruction(rng: random.Random, held_out: bool = False) -> str:
    """One instruction of a random family, held out or not."""
    while True:
        instruction = rng.choice(FAMILIES).draw(rng)
        if is_held_out(instruction) == held_out:
            return instruction


def draw_instructions(count: int, seed: int, held_out: bool = False) -> tuple[str, ...]:
    """``count`` different instructions, by ``seed``."""
    rng, found = random.Random(seed), dict[str, None]()
    while len(found) < count:
        found[draw_instruction(rng, held_out)] = None
    return tuple(found)
