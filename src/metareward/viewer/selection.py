"""A selection of prompts: what the address of a list says of filters, search, order and page, and the rows that fit.

The same words stand in the address bar, in ``--select`` and in links from the overview: ``t=2&flipped=1&sort=margin``.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeVar, get_args
from urllib.parse import parse_qsl, urlencode

from metareward.errors import UserError
from metareward.text import fold, one_line
from metareward.types import DropReason, PairKind
from metareward.viewer.index import Index

PAGE = 50
Key = TypeVar("Key")
Choice = TypeVar("Choice", bound=str)
Sort = Literal["id", "best", "spread", "margin", "unreadable", "flipped", "length"]
Unreadable = Literal["", "judgment", "meta_judgment", "answer"]
SORTS: Mapping[Sort, tuple[str, str]] = {  # what it is called, and its order
    "id": ("prompt id", "key"),
    "best": ("highest score first", "best DESC"),
    "spread": ("scores furthest apart first", "best - worst DESC"),
    "margin": ("smallest margin first", "{kind}_margin IS NULL, {kind}_margin"),
    "unreadable": ("most unreadable first", "unreadable + unreadable_metas DESC"),
    "flipped": ("most flipped verdicts first", "flipped DESC"),
    "length": ("longest answers first", "chars DESC"),
}
_UNREADABLE = {"judgment": "unreadable > 0", "meta_judgment": "unreadable_metas > 0", "answer": "cut_off > 0"}
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Selection:
    """Filters of iteration ``t``, all of which must hold.

    ``q``: text that the prompt, its id or an answer contains; with ``within`` ``judgments``, words (or beginnings of
    words) in its judgments and meta-judgments. ``pair``: ``yes``, ``no`` or a drop reason of the ``kind`` of pair.
    ``low`` and ``high``: the best answer's mean score; ``margin_low`` and ``margin_high``: the pair's chosen score
    minus the rejected one. ``unreadable``: of which role something couldn't be read (an answer: was cut off). ``lost``:
    the best answer has no score. ``flipped``: a verdict that differs by order. ``failed``: has no record, or a
    damaged one.
    """

    t: int = 1
    q: str = ""
    within: Literal["texts", "judgments"] = "texts"
    kind: PairKind = "actor"
    pair: Literal["", "yes", "no"] | DropReason = ""
    low: float | None = None
    high: float | None = None
    margin_low: float | None = None
    margin_high: float | None = None
    unreadable: Unreadable = ""
    lost: bool = False
    flipped: bool = False
    failed: bool = False
    sort: Sort = "id"
    page: int = 1

    @classmethod
    def parse(cls, query: str, strict: bool = False) -> Selection:
        """Raises `UserError` naming the field for a value that doesn't fit; ``strict``: for an unknown field, too."""
        given = dict(parse_qsl(query, keep_blank_values=True))
        names = [each.name for each in fields(cls)]
        unknown = [each for each in given if each not in names] if strict else []
        if unknown:
            raise UserError(f"{one_line(unknown[0], 60)!r} is no field of a selection; fix: use {', '.join(names)}")
        found: dict[str, object] = {}
        for each in fields(cls):
            text = given.get(each.name, "").strip()
            if text:
                found[each.name] = _value(each.name, text)
        return replace(cls(), **found)  # type: ignore[arg-type]

    def query(self, **changes: object) -> str:
        """The address of this selection with ``changes``; what is as usual is left out."""
        changed, usual = replace(self, **changes), Selection()  # type: ignore[arg-type]
        said: list[tuple[str, object]] = []
        for each in fields(self):
            value = getattr(changed, each.name)
            if each.name == "t" or value != getattr(usual, each.name):
                said.append((each.name, int(value) if isinstance(value, bool) else value))
        return urlencode(said)

    @property
    def filtered(self) -> bool:
        """Whether a filter or search is on."""
        return replace(self, sort="id", page=1, t=1, kind="actor", within="texts") != Selection()

    def _where(self) -> tuple[str, list[object]]:
        terms: list[str] = ["t = ?"]
        values: list[object] = [self.t]
        bounds: tuple[tuple[str, float | None], ...] = (
            ("best >= ?", self.low),
            ("best <= ?", self.high),
            (f"{self.kind}_margin >= ?", self.margin_low),
            (f"{self.kind}_margin <= ?", self.margin_high),
        )
        for term, value in bounds:
            if value is not None:
                terms.append(term)
                values.append(value)
        if self.pair in ("yes", "no"):
            terms.append(f"{self.kind} {'=' if self.pair == 'yes' else '!='} 'paired'")
        elif self.pair:
            terms.append(f"{self.kind} = ?")
            values.append(self.pair)
        flags = (
            (_UNREADABLE.get(self.unreadable, ""), bool(self.unreadable)),
            ("lost_best", self.lost),
            ("flipped > 0", self.flipped),
            ("problem IS NOT NULL", self.failed),
        )
        terms += [term for term, on in flags if on]
        if self.q:
            term, sought = self._search()
            terms.append(term)
            values.append(sought)
        return " AND ".join(terms), values

    def _search(self) -> tuple[str, str]:
        if self.within == "texts":
            return "id IN (SELECT id FROM text WHERE instr(folded, ?) > 0)", fold(self.q).text
        words = _WORD.findall(fold(self.q).text)
        return "id IN (SELECT rowid FROM word WHERE word MATCH ?)", " ".join(f'"{word}"*' for word in words) or '""'

    @property
    def _order(self) -> str:
        order = SORTS[self.sort][1].format(kind=self.kind)
        return order if self.sort == "id" else f"{order}, key"


def whole_number(name: str, text: str) -> int:
    """The number that an address gives as ``name``. Raises `UserError` for another text."""
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise UserError(f"{name}: {one_line(text, 60)!r} is no whole number; fix: give one")
    return int(text)


def one_of(name: str, text: str, choices: Collection[Choice]) -> Choice:
    """The choice that an address gives as ``name``. Raises `UserError` for another text."""
    found = next((each for each in choices if each == text), None)
    if found is None:
        raise UserError(f"{name}: {one_line(text, 60)!r} is not one of {', '.join(choices)}")
    return found


def paginate(keys: Sequence[Key], page: int, size: int = PAGE) -> tuple[Sequence[Key], int, int]:
    """(the keys of a page, its number, the number of pages); a page beyond the last is the last."""
    pages = max(1, -(-len(keys) // size))
    number = max(1, min(page, pages))
    return keys[(number - 1) * size : number * size], number, pages


def _value(name: str, text: str) -> object:
    """The value of a field of `Selection` as it stands in an address."""
    choices: Mapping[str, tuple[str, ...]] = {
        "within": ("texts", "judgments"),
        "kind": get_args(PairKind),
        "pair": ("yes", "no", *get_args(DropReason)),
        "unreadable": tuple(_UNREADABLE),
        "sort": tuple(SORTS),
    }
    if name in choices:
        return one_of(name, text, choices[name])
    if name == "q":
        return text[:1000]
    if name in ("lost", "flipped", "failed"):
        return text not in ("0", "no", "false")
    try:
        return max(1, min(10**6, int(text))) if name in ("t", "page") else float(text)
    except ValueError:
        raise UserError(f"{name}: {one_line(text, 60)!r} is no number; fix: give one") from None


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt in a list. ``problem``: why it has no record, or none that can be read; figures are then absent."""

    key: str
    title: str
    problem: str | None
    means: tuple[float, ...]
    best: float | None
    worst: float | None
    answers: int
    judgments: int
    unreadable: int
    metas: int
    unreadable_metas: int
    cut_off: int
    lost_best: bool
    flipped: int
    actor: str | None
    actor_margin: float | None
    judge: str | None
    judge_margin: float | None


@dataclass(frozen=True, slots=True)
class Page:
    """``rows`` are page ``number`` of ``pages``, of ``count`` prompts that fit out of ``total``."""

    rows: tuple[Row, ...]
    count: int
    total: int
    number: int
    pages: int


_COLUMNS = (
    "key, title, problem, means, best, worst, answers, judgments, unreadable, metas, unreadable_metas, cut_off, "
    "lost_best, flipped, actor, actor_margin, judge, judge_margin"
)
_COUNTS = ("answers", "judgments", "unreadable", "metas", "unreadable_metas", "cut_off", "flipped")


def select(index: Index, selection: Selection, size: int = PAGE) -> Page:
    """One page of the prompts that fit; a page beyond the last is the last."""
    (where, values), order = selection._where(), selection._order
    with closing(index.connect()) as connection:
        (total,) = connection.execute("SELECT COUNT(*) FROM prompt WHERE t = ?", (selection.t,)).fetchone()
        ids = [at for (at,) in connection.execute(f"SELECT id FROM prompt WHERE {where} ORDER BY {order}", values)]
        shown, number, pages = paginate(ids, selection.page, size)
        query = f"SELECT id, {_COLUMNS} FROM prompt WHERE id IN ({', '.join('?' * len(shown))})"
        rows = {row["id"]: row for row in connection.execute(query, shown)}
    return Page(tuple(_row(rows[at]) for at in shown if at in rows), len(ids), total, number, pages)


def _row(row: sqlite3.Row) -> Row:
    known = {name: row[name] for name in _COLUMNS.split(", ")}
    known |= {name: known[name] or 0 for name in _COUNTS}
    known |= {"means": tuple(json.loads(known["means"] or "[]")), "lost_best": bool(known["lost_best"])}
    return Row(**known)


def matching(index: Index, selection: Selection, pair: Literal["", "yes"] = "") -> list[str]:
    """The ids of all prompts that fit, in order; with ``pair`` ``yes`` only those with a pair."""
    where, values = selection._where()
    if pair:
        where += f" AND {selection.kind} = 'paired'"
    query = f"SELECT key FROM prompt WHERE {where} ORDER BY {selection._order}"
    with closing(index.connect()) as connection:
        return [key for (key,) in connection.execute(query, values)]


def neighbours(index: Index, selection: Selection, key: str) -> tuple[str | None, str | None]:
    """The prompts before and after ``key`` in the selection's order."""
    keys = matching(index, selection)
    if key not in keys:
        return None, None
    at = keys.index(key)
    return keys[at - 1] if at else None, keys[at + 1] if at + 1 < len(keys) else None
