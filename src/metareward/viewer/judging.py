"""The pages on which a person judges pairs, and sees the agreement so far."""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlencode

from metareward.errors import UserError
from metareward.types import PairKind
from metareward.viewer.annotations import (
    CHOICES,
    Annotation,
    Annotations,
    Question,
    agreements,
    answered,
    next_prompt,
    pair_question,
    question,
)
from metareward.viewer.pages import Pages
from metareward.viewer.runs import ViewedRun
from metareward.viewer.selection import Selection

_LATEST = 200


@dataclass(frozen=True, slots=True)
class Asked:
    """What the address of a question says: the selection, blind, shuffled, and two texts if they are named."""

    selection: Selection
    blind: bool
    shuffled: bool
    key: str | None
    candidate: int | None
    sides: tuple[int, int] | None

    @classmethod
    def parse(cls, query: str) -> Asked:
        """Raises `UserError` for a value that doesn't fit."""
        given = dict(parse_qsl(query, keep_blank_values=True))
        numbers = {name: _number(name, given[name]) for name in ("candidate", "first", "second") if given.get(name)}
        sides = (numbers["first"], numbers["second"]) if {"first", "second"} <= numbers.keys() else None
        blind, shuffled = (given.get(name, "1") != "0" for name in ("blind", "shuffled"))
        return cls(Selection.parse(query), blind, shuffled, given.get("id"), numbers.get("candidate"), sides)

    def query(self, **changes: object) -> str:
        """The address of the next question, with ``changes`` of the selection."""
        settings = {"blind": int(self.blind), "shuffled": int(self.shuffled)}
        return f"{self.selection.query(**changes)}&{urlencode(settings)}"


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise UserError(f"{name}: no number of an answer or judgment; fix: follow a link")
    return int(text)


@dataclass(frozen=True, slots=True)
class JudgingPages:
    """The pages of one ``person``."""

    pages: Pages
    person: str

    def ask(self, run: ViewedRun, asked: Asked) -> str:
        """The next pair to judge, or two texts that the address names."""
        found, _ = Annotations(run.annotations).read()
        key, judged, total = asked.key, 0, 0
        if key is None:
            arguments = (run.index, asked.selection, found, self.person, asked.shuffled)
            key, judged, total = next_prompt(*arguments)
        shown = self._question(run, asked, key) if key is not None else None
        return self.pages.render(
            "judge.html.j2",
            run=run,
            asked=asked,
            question=shown,
            judged=judged,
            total=total,
            other=asked.query(kind="judge" if asked.selection.kind == "actor" else "actor"),
            toggled=replace(asked, blind=not asked.blind).query(),
            hidden=parse_qsl(asked.query()),
            person=self.person,
        )

    def _question(self, run: ViewedRun, asked: Asked, key: str) -> Question:
        kind: PairKind = asked.selection.kind
        trace = run.trace(asked.selection.t, key)
        if trace is None:
            raise UserError(f"{key}: there is no record of this prompt in iteration {asked.selection.t}")
        if asked.sides is not None:
            return question(trace, kind, asked.candidate if kind == "judge" else None, *asked.sides)
        found = pair_question(trace, kind, self.person)
        if found is None:
            raise UserError(f"{key}: iteration {asked.selection.t} built no {kind} pair of this prompt")
        return found

    def store(self, run: ViewedRun, form: str) -> tuple[Annotation, str]:
        """Store what a form says; the annotation, and the address of what comes next."""
        asked, given = Asked.parse(form), dict(parse_qsl(form))
        choice = next((each for each in CHOICES if each == given.get("choice")), None)
        if choice is None or asked.key is None or asked.sides is None:
            raise UserError("nothing was chosen; fix: choose one of the two, neither, or skip")
        shown = self._question(run, asked, asked.key)
        if given.get("digest") != shown.digest:
            raise UserError(f"{asked.key}: the texts have changed since they were shown; fix: load the page again")
        made = answered(shown, choice, self.person, asked.blind)
        Annotations(run.annotations).add(made)
        after = f"/run/{run.number}/judge?{asked.query()}"
        if "single" in given:
            after = f"/run/{run.number}/judged"
        return made, after

    def judged(self, run: ViewedRun) -> str:
        """Agreement so far, and the latest judgments."""
        found, unread = Annotations(run.annotations).read()
        return self.pages.render(
            "judged.html.j2",
            run=run,
            agreements=tuple(agreements(found)),
            latest=found[::-1][:_LATEST],
            count=len(found),
            unread=unread,
            path=run.annotations,
            person=self.person,
        )
