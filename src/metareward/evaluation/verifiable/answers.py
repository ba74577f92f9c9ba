r"""Prompts with a known answer, and how the answer is read from a response.

    {"id": "1", "prompt": "What is 6 * 7?", "kind": "number", "answer": 42}        ``tolerance``: 0 if it isn't given
    {"id": "2", "prompt": "… (A) … (B) …", "kind": "choice", "answer": "B"}        ``choices``: A to D if not given
    {"id": "3", "prompt": "The capital of Peru?", "kind": "exact", "answer": ["Lima", "Lima, Peru"]}
    {"id": "4", "prompt": "Write a date.", "kind": "regex", "answer": "\\d{4}-\\d\\d-\\d\\d"}

Any of several answers is right. The prompt may be a conversation (``messages``). What is read from a response:

1. The marked answer: what the last ``\boxed{…}`` holds; else the line after the last "####", "answer:" or "answer is".
2. Without a mark: number takes the response's last number; choice a response or last line that is a choice, as in
   "(B)" or "B. Lima", or else the last choice in parentheses; exact the last line that isn't empty.
3. A marked number is the first one after the last "=" of the mark. A marked choice begins the mark, followed by a
   bracket, full stop, colon or comma, or is the only choice in the mark; where the mark names two there is none.
4. Numbers are compared exactly, as fractions: 0.5 = 1/2 = 50e-2; "1,000" is a thousand; units are ignored.
5. Exact answers are compared without case, repeated spaces, quotes, Markdown's asterisks, and a final full stop.
6. A regex is searched in the whole response, for at most `SECONDS`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import regex

from metareward.data.files import Row, read_rows, require_unique
from metareward.data.prompts import parse_prompt
from metareward.types import Messages

SECONDS = 1.0
Kind = Literal["exact", "number", "choice", "regex"]
Outcome = Literal["correct", "wrong", "unreadable", "timeout"]
_MARK = re.compile(r"####|\banswer[*_]{0,3}(?::| is\b)", re.IGNORECASE)
# Every digit starts a match, so a search takes time in proportion to the response's length.
_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-+−]?)\$?(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?P<rest>\.\d+)?"
    r"(?P<power>[eE][-+]?\d{1,3}(?!\d))?(?:/(?P<divisor>[1-9]\d*))?"
)
_MOST_DIGITS = 100


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt and its right answers. ``tolerance`` is for numbers, ``choices`` for choices."""

    id: str
    messages: Messages
    kind: Kind
    answers: tuple[str, ...]
    tolerance: Fraction = Fraction(0)
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Checked:
    """What was read from a response (None: nothing), and whether it is right. "timeout": the regex took too long."""

    outcome: Outcome
    answer: str | None


def read_tasks(path: Path) -> tuple[Task, ...]:
    """The tasks of a file. Raises `UserError` for an answer that no response could match."""
    return tuple(_task(row) for row in require_unique(read_rows(path), "id"))


def _task(row: Row) -> Task:
    kind: Kind | None = next((each for each in get_args(Kind) if each == row.text("kind")), None)
    if kind is None:
        raise row.error("kind", f"is {row.text('kind')!r}"[:80], f"use {', '.join(get_args(Kind))}")
    given = row.items("answer") if isinstance(row.fields.get("answer"), list) else [row.text("answer")]
    answers = tuple(str(each) for each in given if isinstance(each, str | int | float))
    if not answers or len(answers) != len(given) or not all(each.strip() for each in answers):
        raise row.error("answer", "is empty or no text", "write the right answer, or a list of them")
    choices = tuple(map(str, row.items("choices"))) if row.has("choices") else ("A", "B", "C", "D")
    if len({normalized(each) for each in choices} - {""}) < len(choices):
        raise row.error("choices", "has two that are read alike, or a blank one", "name each choice differently")
    tolerance = read_number(row.text("tolerance")) if row.has("tolerance") else Fraction(0)
    if tolerance is None or tolerance < 0:
        raise row.error("tolerance", "is no number of at least 0", "correct it")
    task = Task(row.text("id"), parse_prompt(row.value, row.where), kind, answers, tolerance, choices)
    if kind == "regex":
        try:
            [regex.compile(each) for each in answers]
        except regex.error as error:
            raise row.error("answer", f"is no regular expression ({error})", "correct it") from None
    elif any(
        check(Task(task.id, task.messages, kind, (a,), Fraction(0), choices), a).outcome != "correct" for a in answers
    ):
        raise row.error("answer", f"is no {kind} that can be read from a response", f"give the {kind} alone")
    return task


def check(task: Task, response: str) -> Checked:
    """The answer that ``response`` gives to the task, and whether it is right."""
    if task.kind == "regex":
        return _search(task.answers, response)
    read: Callable[[str], str | None] = {
        "number": _last_number,
        "choice": lambda text: _read_choice(text, task.choices),
        "exact": _read_exact,
    }[task.kind]
    answer = read(response)
    if answer is None:
        return Checked("unreadable", None)
    if task.kind == "number":
        right = any(_close(answer, each, task.tolerance) for each in task.answers)
    else:
        right = normalized(answer) in {normalized(each) for each in task.answers}
    return Checked("correct" if right else "wrong", answer)


def _search(patterns: Sequence[str], response: str) -> Checked:
    for pattern in patterns:
        try:
            found = regex.search(pattern, response, timeout=SECONDS)
        except TimeoutError:
            return Checked("timeout", None)
        if found is not None:
            return Checked("correct", found.group())
    return Checked("wrong", None)


# --- reading ---


def marked_answer(response: str) -> str | None:
    """What a response marks as its answer, on one line; None without a mark."""
    start = response.rfind(r"\boxed{")
    if start >= 0:
        depth, begin = 0, start + len(r"\boxed")
        for place in range(begin, len(response)):
            depth += {"{": 1, "}": -1}.get(response[place], 0)
            if depth == 0:
                return response[begin + 1 : place].strip()
    marks = list(_MARK.finditer(response))
    if not marks:
        return None
    after = response[marks[-1].end() :].lstrip(" \t*_:\n")
    return after.split("\n", 1)[0].strip() or None


def read_number(text: str) -> Fraction | None:
    """The number that ``text`` is; None for other text."""
    found = _NUMBER.fullmatch(text.strip())
    if found is None or len(text) > _MOST_DIGITS:
        return None
    whole, rest, power = (found[name] or "" for name in ("whole", "rest", "power"))
    value = Fraction(whole.replace(",", "") + rest + power) / int(found["divisor"] or 1)
    return -value if found["sign"] in ("-", "−") else value


def _last_number(response: str) -> str | None:
    marked = marked_answer(response)
    if marked is None:
        found = [match.group() for match in _NUMBER.finditer(response)]
        return found[-1] if found else None
    first = _NUMBER.search(marked.rpartition("=")[2])
    return first.group() if first else None


def _close(answer: str, right: str, tolerance: Fraction) -> bool:
    one, other = read_number(answer), read_number(right)
    return one is not None and other is not None and abs(one - other) <= tolerance


def _read_choice(response: str, choices: Sequence[str]) -> str | None:
    names = "|".join(re.escape(each) for each in sorted(choices, key=len, reverse=True))
    by_name = {normalized(each): each for each in choices}
    alone = re.compile(rf"[*_\s(\[]*({names})[*_\s)\].:]*(?:[).:,]\s.*)?", re.IGNORECASE)
    marked = marked_answer(response)
    if marked is not None:
        whole = alone.fullmatch(marked)
        found = [whole[1]] if whole else re.findall(rf"(?<!\w)({names})(?!\w)", marked)
        named = {by_name.get(normalized(each)) for each in found}
        return named.pop() if len(named) == 1 else None
    for line in (response, _last_line(response)):
        whole = alone.fullmatch(line.strip())
        if whole:
            return by_name.get(normalized(whole[1]))
    bracketed = re.findall(rf"\(({names})\)", response)
    return by_name.get(normalized(bracketed[-1])) if bracketed else None


def _read_exact(response: str) -> str | None:
    answer = marked_answer(response) or _last_line(response)
    return answer if normalized(answer) else None


def _last_line(response: str) -> str:
    return next((line.strip() for line in reversed(response.split("\n")) if line.strip()), "")


def normalized(text: str) -> str:
    """Text as exact answers are compared."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().replace("*", "").split())
    quotes = "\"'`“”‘’ "
    return folded.lstrip(quotes).rstrip(quotes + ".")


def counts(checked: Mapping[str, Checked]) -> dict[str, int]:
    """How many responses have each outcome."""
    outcomes = [each.outcome for each in checked.values()]
    return {outcome: outcomes.count(outcome) for outcome in get_args(Outcome)}
