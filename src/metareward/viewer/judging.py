"""The pages on which a person judges pairs, and sees the agreement so far."""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlencode

from metareward.errors import UserError
from metareward.types import PairKind
from metareward.viewer.annotations import (
    CHOICES,
    Annotations,
    Question,
    agreements,
    annotate,
    next_prompt,
    pair_question,
    question,
)
from metareward.viewer.pages import Pages
from metareward.viewer.runs import ViewedRun
from metareward.viewer.selection import Selection, whole_number

_LATEST = 200


@dataclass(frozen=True, slots=True)
class JudgeQuery:
    """The query of the judging page: the selection, blind, shuffled; ``key`` and ``sides`` where it names two texts."""

    selection: Selection
    blind: bool
    shuffled: bool
    key: str | None
    candidate: int | None
    sides: tuple[int, int] | None

    @classmethod
    def parse(cls, query: str) -> JudgeQuery:
        """Raises `UserError` for a value that doesn't fit."""
        given = dict(parse_qsl(query, keep_blank_values=True))
        named = [name for name in ("candidate", "first", "second") if given.get(name)]
        numbers = {name: whole_number(name, given[name]) for name in named}
        sides = (numbers["first"], numbers["second"]) if {"first", "second"} <= numbers.keys() else None
        blind, shuffled = (given.get(name, "1") != "0" for name in ("blind", "shuffled"))
        return cls(Selection.parse(query), blind, shuffled, given.get("id"), numbers.get("candidate"), sides)

    def encode(self, **changes: object) -> str:
        """The query of the next pair, with ``changes`` of the selection."""
        settings = {"blind": int(self.blind), "shuffled": int(self.shuffled)}
        return f"{self.selection.query(**changes)}&{urlencode(settings)}"


@dataclass(frozen=True, slots=True)
class JudgingPages:
    """The pages of one ``person``."""

    pages: Pages
    person: str

    def judge(self, run: ViewedRun, query: JudgeQuery) -> str:
        """The next pair to judge, or two texts that the address names."""
        found, _ = Annotations(run.annotations).read()
        key, judged, total = query.key, 0, 0
        if key is None:
            key, judged, total = next_prompt(run.index, query.selection, found, self.person, query.shuffled)
        shown = self._question(run, query, key) if key is not None else None
        return self.pages.render(
            "judge.html.j2",
            run=run,
            query=query,
            question=shown,
            judged=judged,
            total=total,
            other=query.encode(kind="judge" if query.selection.kind == "actor" else "actor"),
            toggled=replace(query, blind=not query.blind).encode(),
            hidden=parse_qsl(query.encode()),
            person=self.person,
        )

    def _question(self, run: ViewedRun, query: JudgeQuery, key: str) -> Question:
        kind: PairKind = query.selection.kind
        trace = run.trace(query.selection.t, key)
        if trace is None:
            raise UserError(f"{key}: there is no record of this prompt in iteration {query.selection.t}")
        if query.sides is not None:
            return question(trace, kind, query.candidate if kind == "judge" else None, *query.sides)
        found = pair_question(trace, kind, self.person)
        if found is None:
            raise UserError(f"{key}: iteration {query.selection.t} built no {kind} pair of this prompt")
        return found

    def store(self, run: ViewedRun, form: str) -> str:
        """Store the judgment in a form; the address of the next page."""
        query, given = JudgeQuery.parse(form), dict(parse_qsl(form))
        choice = next((each for each in CHOICES if each == given.get("choice")), None)
        if choice is None or query.key is None or query.sides is None:
            raise UserError("nothing was chosen; fix: choose one of the two, neither, or skip")
        shown = self._question(run, query, query.key)
        if given.get("digest") != shown.digest:
            raise UserError(f"{query.key}: the texts have changed since they were shown; fix: load the page again")
        Annotations(run.annotations).add(annotate(shown, choice, self.person, query.blind))
        return f"/run/{run.number}/judged" if "single" in given else f"/run/{run.number}/judge?{query.encode()}"

    def judged(self, run: ViewedRun) -> str:
        """Agreement so far, and the latest judgments."""
        found, unread = Annotations(run.annotations).read()
        return self.pages.render(
            "judged.html.j2",
            run=run,
            agreements=tuple(agreements(found)),
            exported=sorted({each.kind for each in found if each.choice != "skip"}),
            latest=found[::-1][:_LATEST],
            count=len(found),
            unread=unread,
            path=run.annotations,
            person=self.person,
        )
