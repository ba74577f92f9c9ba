"""Prompts with human-ranked answers: rows of prompt, answers and ranks, or Open Assistant's conversation trees.

    {"prompt": ..., "answers": ["...", "..."], "ranks": [0, 1]}             a prompt in any form, rank 0 is the best
    {"conversation": [{"role", "text"}], "responses": [{"text", "rank"}]}   a flat export of trees
    {"prompt": {"text", "role", "replies": [...]}}                          a tree
    {"message_id", "parent_id", "text", "role", "rank"}                     a row of oasst1's and oasst2's message table

In a tree every user message is a prompt and its ranked replies are the answers. Deleted messages, those that reviewers
rejected, all that follows them, and replies without a rank are left out. Prompts in other languages and, by default,
later turns of a conversation are skipped and counted (Self-Rewarding takes English first turns).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metareward.data.files import Row, field_error, iter_rows, resolve_files
from metareward.data.prompts import checked_text, content_id, json_object, parse_prompt, row_id
from metareward.data.propose import words_of
from metareward.errors import UserError
from metareward.types import ChatRole, Message, Messages, Prompt

MESSAGE_FIELDS = ("message_id", "parent_id", "text", "role")
_ROLES: Mapping[str, ChatRole] = {"prompter": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class RankedAnswer:
    """An answer and its human rank: lower is better, equal ranks are ties."""

    text: str
    rank: float


@dataclass(frozen=True, slots=True)
class RankedPrompt:
    """A prompt, its ranked answers in file order, and its language if the file gives one."""

    prompt: Prompt
    answers: tuple[RankedAnswer, ...]
    language: str | None = None

    @property
    def group(self) -> tuple[str, ...]:
        """The words of the first user turn, without case or punctuation; all prompts of a conversation tree share it.

        A split keeps a group together, so no prompt is in two sets, not even as the beginning of a longer one.
        """
        first = next(message.content for message in self.prompt.messages if message.role == "user")
        return tuple(words_of(first)) or (first.strip(),)

    @property
    def is_first_turn(self) -> bool:
        """Whether there is only one user turn."""
        return sum(message.role == "user" for message in self.prompt.messages) == 1

    @property
    def is_comparable(self) -> bool:
        """Whether some answer is ranked above another."""
        return len({answer.rank for answer in self.answers}) > 1

    @property
    def best(self) -> RankedAnswer:
        """The first of the answers with the best rank."""
        return min(self.answers, key=lambda answer: answer.rank)


@dataclass(frozen=True, slots=True)
class RankedSet:
    """The ``prompts`` in file order, and how many prompts were ``skipped``, by reason."""

    prompts: tuple[RankedPrompt, ...]
    skipped: Mapping[str, int]


def read_ranked(
    source: Path | str, language: str | None = "en", first_turns: bool = True, network: bool = False
) -> RankedSet:
    """The ranked prompts of ``source``, a name that `metareward.data.files` resolves.

    ``language`` skips prompts that the file marks with another; ``first_turns`` skips those of later turns. Raises
    `UserError` naming the place, the field and the fix, also when no prompt is left.
    """
    rows = [row for path in resolve_files(source, network) for row in iter_rows(path)]
    if not rows:
        raise UserError(f"{source}: no rows in it; fix: name a file of ranked answers")
    skipped: Counter[str] = Counter()
    kept: dict[str, RankedPrompt] = {}
    for ranked in _parse_rows(rows):
        if language and ranked.language and ranked.language.partition("-")[0] != language:
            skipped["another language"] += 1
        elif first_turns and not ranked.is_first_turn:
            skipped["a later turn"] += 1
        elif kept.setdefault(ranked.prompt.id, ranked) is not ranked:
            raise UserError(f"{source}: two rows have the id {json.dumps(ranked.prompt.id)}; fix: give each its own")
    if not kept:
        reasons = ", ".join(f"{number} {reason}" for reason, number in skipped.items()) or "no reply has a rank"
        raise UserError(f"{source}: no ranked prompt is left ({reasons}); fix: use other data, or relax the filters")
    return RankedSet(tuple(kept.values()), dict(skipped))


def _parse_rows(rows: Sequence[Row]) -> Iterator[RankedPrompt]:
    first = json_object(rows[0].value, rows[0].where)
    if all(field in first for field in MESSAGE_FIELDS):
        yield from _parse_message_table(rows)
        return
    for row in rows:
        value = json_object(row.value, row.where)
        if not isinstance(value.get("prompt"), dict):
            yield _parse_row(value, row.where)
        elif _is_valid(value["prompt"]):
            yield from _prompts_in(_nested_node(value["prompt"], row.where, "prompt"), ())


# --- rows that hold a prompt and all its answers ---


def _parse_row(row: dict[str, Any], where: str) -> RankedPrompt:
    messages = _parse_conversation(row, where)
    answers = tuple(_parse_responses(row["responses"], where) if "responses" in row else _parse_answers(row, where))
    if not answers:
        raise field_error(where, "answers", "is an empty list", "give the answers, or remove the row")
    language = row.get("lang")
    prompt = Prompt(row_id(row, where) or content_id(messages), messages)
    return RankedPrompt(prompt, answers, language if isinstance(language, str) else None)


def _parse_conversation(row: dict[str, Any], where: str) -> Messages:
    given = row.get("conversation")
    if given is None:
        return parse_prompt({name: row.get(name) for name in ("prompt", "messages")}, where)
    if not isinstance(given, list) or not all(isinstance(turn, dict) for turn in given):
        raise field_error(where, "conversation", "is no list of turns", 'write [{"role": "prompter", "text": "..."}]')
    roles = {"prompter": "user"}
    turns = [{"role": roles.get(turn.get("role"), turn.get("role")), "content": turn.get("text")} for turn in given]
    return parse_prompt({"messages": turns}, where)


def _parse_responses(given: object, where: str) -> Iterator[RankedAnswer]:
    if not isinstance(given, list):
        raise field_error(where, "responses", "is no list", 'write [{"text": "...", "rank": 0}]')
    for i, each in enumerate(given):
        response = json_object(each, f"{where}: responses[{i}]")
        yield _answer(response.get("text"), response.get("rank"), where, f"responses[{i}].text", f"responses[{i}].rank")


def _parse_answers(row: dict[str, Any], where: str) -> Iterator[RankedAnswer]:
    answers, ranks = row.get("answers"), row.get("ranks")
    for name, given in (("answers", answers), ("ranks", ranks)):
        if not isinstance(given, list):
            raise field_error(where, name, "missing or no list", 'write "answers": ["...", "..."], "ranks": [0, 1]')
    if len(answers or ()) != len(ranks or ()):
        problem = f"{len(ranks or ())} for {len(answers or ())} answers"
        raise field_error(where, "ranks", problem, "give each answer its rank")
    for i, (text, rank) in enumerate(zip(answers or (), ranks or (), strict=True)):
        yield _answer(text, rank, where, f"answers[{i}]", f"ranks[{i}]")


def _answer(text: object, rank: object, where: str, text_field: str, rank_field: str) -> RankedAnswer:
    if isinstance(rank, bool) or not isinstance(rank, int | float):
        raise field_error(where, rank_field, "is no number", "write the rank, 0 for the best")
    return RankedAnswer(checked_text(text, where, text_field), float(rank))


# --- conversation trees ---


@dataclass(frozen=True, slots=True)
class _Node:
    """A message of a tree and the replies to it, in file order."""

    id: str
    message: Message
    rank: float | None
    language: str | None
    replies: tuple[_Node, ...]


def _parse_message_table(rows: Sequence[Row]) -> Iterator[RankedPrompt]:
    replies: dict[str | None, list[Row]] = {}
    for row in rows:
        message = json_object(row.value, row.where)
        missing = [field for field in MESSAGE_FIELDS if field not in message]
        if missing:
            raise field_error(row.where, missing[0], "missing", "give every message its id, parent, text and role")
        if _is_valid(message):
            replies.setdefault(message["parent_id"], []).append(row)
    for row in replies.get(None, ()):
        yield from _prompts_in(_linked_node(row, replies), ())


def _is_valid(message: Any) -> bool:
    """Whether a message was neither deleted nor rejected by reviewers; no review is no rejection."""
    return not (isinstance(message, dict) and (message.get("deleted") or message.get("review_result") is False))


def _nested_node(message: Any, where: str, field: str) -> _Node:
    if not isinstance(message, dict):
        raise field_error(where, field, "is no message", "write the message's text, role and replies")
    valid = [each for each in message.get("replies") or () if _is_valid(each)]
    replies = tuple(_nested_node(each, where, f"{field}.replies[{i}]") for i, each in enumerate(valid))
    return _node(message, where, f"{field}.", replies)


def _linked_node(row: Row, replies: Mapping[str | None, Sequence[Row]]) -> _Node:
    children = tuple(_linked_node(each, replies) for each in replies.get(row.value["message_id"], ()))
    return _node(row.value, row.where, "", children)


def _node(message: Mapping[str, Any], where: str, prefix: str, replies: tuple[_Node, ...]) -> _Node:
    role = _ROLES.get(str(message.get("role")))
    if role is None:
        raise field_error(where, f"{prefix}role", f"is {message.get('role')!r}", "use prompter or assistant")
    rank, language = message.get("rank"), message.get("lang")
    return _Node(
        id=checked_text(message.get("message_id"), where, f"{prefix}message_id"),
        message=Message(role, checked_text(message.get("text"), where, f"{prefix}text")),
        rank=float(rank) if isinstance(rank, int | float) else None,
        language=language if isinstance(language, str) else None,
        replies=replies,
    )


def _prompts_in(node: _Node, before: Messages) -> Iterator[RankedPrompt]:
    """The ranked prompts of a tree, each with the turns before it."""
    turns = (*before, node.message)
    if node.message.role == "user":
        answers = tuple(_ranked_replies(node.replies))
        if answers:
            yield RankedPrompt(Prompt(node.id, turns), answers, node.language)
    for reply in node.replies:
        yield from _prompts_in(reply, turns)


def _ranked_replies(replies: Iterable[_Node]) -> Iterator[RankedAnswer]:
    for reply in replies:
        if reply.message.role == "assistant" and reply.rank is not None:
            yield RankedAnswer(reply.message.content, reply.rank)
