"""Ranked answers from files: Open Assistant's trees in each of their forms, or rows of prompt, answers and ranks.

    {"prompt": ..., "answers": ["...", "..."], "ranks": [0, 1]}             a prompt in any form, the best rank least
    {"conversation": [{"role", "text"}], "responses": [{"text", "rank"}]}   a flat export of trees
    {"prompt": {"text", "role", "replies": [...]}}                          a tree
    {"message_id", "parent_id", "text", "role", "rank"}                     a message of a tree

What doesn't qualify is passed over and counted: other languages than the one asked for, and, unless asked for, prompts
that are not the first turn (Self-Rewarding takes the first turns, in English).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metareward.errors import UserError
from metareward.prompts import content_id, given_id
from metareward.prompts_forms import as_object, checked, prompt_of, wrong
from metareward.prompts_rows import Row, read_rows
from metareward.prompts_sources import located
from metareward.seeding.ranked import Ranked, RankedAnswer
from metareward.seeding.trees import MESSAGE, from_messages, from_tree
from metareward.types import Messages, Prompt


@dataclass(frozen=True, slots=True)
class RankedSet:
    """``ranked`` in the order of their file, and how many prompts were ``passed_over``, by reason."""

    ranked: tuple[Ranked, ...]
    passed_over: Mapping[str, int]


def read_ranked(
    source: Path | str, language: str | None = "en", first_turns: bool = True, network: bool = False
) -> RankedSet:
    """The ranked prompts of ``source``, which is what `metareward.prompts_sources` takes.

    With ``language``, prompts that are told to be in another are passed over; with ``first_turns``, those of later
    turns. Raises `UserError` naming the place, the field and the fix, also when no prompt is left.
    """
    rows = [row for path in located(source, network) for row in read_rows(path)]
    if not rows:
        raise UserError(f"{source}: no rows in it; fix: name a file of ranked answers")
    passed: Counter[str] = Counter()
    kept: dict[str, Ranked] = {}
    for ranked in _ranked(rows):
        reason = _reason(ranked, language, first_turns)
        if reason is None and kept.setdefault(ranked.prompt.id, ranked) is not ranked:
            raise UserError(f"{source}: the id {json.dumps(ranked.prompt.id)} stands twice; fix: give each its own")
        passed.update([reason] if reason else [])
    if not kept:
        told = ", ".join(f"{number} {reason}" for reason, number in passed.items()) or "no reply has a rank"
        raise UserError(f"{source}: no ranked prompt is left ({told}); fix: take other data, or ask for less")
    return RankedSet(tuple(kept.values()), dict(passed))


def _reason(ranked: Ranked, language: str | None, first_turns: bool) -> str | None:
    if language and ranked.language and ranked.language.partition("-")[0] != language:
        return "another language"
    return "a later turn" if first_turns and not ranked.first_turn else None


def _ranked(rows: Sequence[Row]) -> Iterator[Ranked]:
    first = as_object(rows[0].value, str(rows[0].place))
    if all(field in first for field in MESSAGE):
        yield from from_messages([_message(row) for row in rows])
        return
    for row in rows:
        value = as_object(row.value, str(row.place))
        if isinstance(value.get("prompt"), dict):
            yield from from_tree(row)
        else:
            yield _listed(value, str(row.place))


def _message(row: Row) -> Row:
    value = as_object(row.value, str(row.place))
    missing = [field for field in MESSAGE if field not in value]
    if missing:
        raise wrong(str(row.place), missing[0], "missing", "give every message its id, parent, text and role")
    return row


def _listed(row: dict[str, Any], where: str) -> Ranked:
    """A row that holds its prompt and all answers."""
    messages = _turns(row, where)
    answers = tuple(_responses(row["responses"], where)) if "responses" in row else tuple(_answers(row, where))
    if not answers:
        raise wrong(where, "answers", "is an empty list", "give the answers, or take the row out")
    told = row.get("lang")
    prompt = Prompt(given_id(row, where) or content_id(messages), messages)
    return Ranked(prompt, answers, told if isinstance(told, str) else None)


def _turns(row: dict[str, Any], where: str) -> Messages:
    given = row.get("conversation")
    if given is None:
        return prompt_of({name: row.get(name) for name in ("prompt", "messages")}, where)
    if not isinstance(given, list) or not all(isinstance(turn, dict) for turn in given):
        raise wrong(where, "conversation", "is no list of turns", 'write [{"role": "prompter", "text": "..."}]')
    named = {"prompter": "user"}
    turns = [{"role": named.get(turn.get("role"), turn.get("role")), "content": turn.get("text")} for turn in given]
    return prompt_of({"messages": turns}, where)


def _responses(given: object, where: str) -> Iterator[RankedAnswer]:
    if not isinstance(given, list):
        raise wrong(where, "responses", "is no list", 'write [{"text": "...", "rank": 0}]')
    for i, each in enumerate(given):
        response = as_object(each, f"{where}: responses[{i}]")
        yield _answer(response.get("text"), response.get("rank"), where, f"responses[{i}].text", f"responses[{i}].rank")


def _answers(row: dict[str, Any], where: str) -> Iterator[RankedAnswer]:
    answers, ranks = row.get("answers"), row.get("ranks")
    for name, given in (("answers", answers), ("ranks", ranks)):
        if not isinstance(given, list):
            raise wrong(where, name, "missing or no list", 'write "answers": ["...", "..."], "ranks": [0, 1]')
    if len(answers or ()) != len(ranks or ()):
        raise wrong(where, "ranks", f"{len(ranks or ())} for {len(answers or ())} answers", "give each answer its rank")
    for i, (text, rank) in enumerate(zip(answers or (), ranks or (), strict=True)):
        yield _answer(text, rank, where, f"answers[{i}]", f"ranks[{i}]")


def _answer(text: object, rank: object, where: str, text_field: str, rank_field: str) -> RankedAnswer:
    if isinstance(rank, bool) or not isinstance(rank, int | float):
        raise wrong(where, rank_field, "is no number", "write the place in the order, 0 for the best")
    return RankedAnswer(checked(text, where, text_field), float(rank))
