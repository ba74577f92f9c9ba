"""Prompts with human-ranked answers: rows of prompt, answers and ranks, or Open Assistant's conversation trees.

    {"prompt": ..., "answers": ["...", "..."], "ranks": [0, 1]}             a prompt in any form, rank 0 is the best
    {"prompt": ..., "answers": ["...", "..."], "labels": [5, 2]}            how good each is, on the judge's scale
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
from metareward.data.prompts import chat_turns, checked_text, content_id, json_object, parse_prompt, row_id
from metareward.data.propose import words_of
from metareward.errors import UserError
from metareward.storage.atomic import write_atomic
from metareward.storage.serialization import json_lines
from metareward.types import ChatRole, Message, Messages, Prompt

MESSAGE_FIELDS = ("message_id", "parent_id", "text", "role")
_ROLES: Mapping[str, ChatRole] = {"prompter": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class RankedAnswer:
    """An answer and its human rank: lower is better, equal ranks are ties.

    ``label``: how good it is on the rubric's scale, as far as a program or a stronger engine said so; ``judgment``: a
    judgment of it to train on; ``criteria``: (question, whether the answer meets it) for criteria of a rubric.
    """

    text: str
    rank: float
    label: float | None = None
    judgment: str | None = None
    criteria: tuple[tuple[str, bool], ...] = ()


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
        elif first_turns and sum(message.role == "user" for message in ranked.prompt.messages) > 1:
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
        replies = _by_parent(rows)
        for row in replies.get(None, ()):
            yield from _prompts_of(row.value, row.where, "", replies)
        return
    for row in rows:
        value = json_object(row.value, row.where)
        if not isinstance(value.get("prompt"), dict):
            messages = _parse_conversation(value, row.where)
            answers = tuple(_parse_labelled(row) if "labels" in value else _parse_answers(value, row.where))
            if not answers:
                raise field_error(row.where, "answers", "is an empty list", "give the answers, or remove the row")
            prompt = Prompt(row_id(value, row.where) or content_id(messages), messages)
            yield RankedPrompt(prompt, answers, _language(value))
        elif _is_valid(value["prompt"]):
            yield from _prompts_of(value["prompt"], row.where, "prompt.", None)


def _language(row: Mapping[str, Any]) -> str | None:
    language = row.get("lang")
    return language if isinstance(language, str) else None


# --- rows that hold a prompt and all its answers ---


def _parse_conversation(row: dict[str, Any], where: str) -> Messages:
    given = row.get("conversation")
    if given is None:
        return parse_prompt({name: row.get(name) for name in ("prompt", "messages")}, where)
    if not isinstance(given, list) or not all(isinstance(turn, dict) for turn in given):
        raise field_error(where, "conversation", "is no list of turns", 'write [{"role": "prompter", "text": "..."}]')
    roles = {"prompter": "user"}
    turns = [
        {"role": roles.get(str(turn.get("role")), turn.get("role")), "content": turn.get("text")} for turn in given
    ]
    return parse_prompt({"messages": turns}, where)


def _parse_answers(row: dict[str, Any], where: str) -> Iterator[RankedAnswer]:
    found: Iterable[tuple[object, object, str, str]]  # text, rank, the names of their fields
    if "responses" in row:
        if not isinstance(row["responses"], list):
            raise field_error(where, "responses", "is no list", 'write [{"text": "...", "rank": 0}]')
        responses = (json_object(each, f"{where}: responses[{i}]") for i, each in enumerate(row["responses"]))
        found = (
            (each.get("text"), each.get("rank"), f"responses[{i}].text", f"responses[{i}].rank")
            for i, each in enumerate(responses)
        )
    else:
        for name in ("answers", "ranks"):
            if not isinstance(row.get(name), list):
                raise field_error(where, name, "missing or no list", 'write "answers": ["...", "..."], "ranks": [0, 1]')
        answers, ranks = row["answers"], row["ranks"]
        if len(answers) != len(ranks):
            raise field_error(where, "ranks", f"{len(ranks)} for {len(answers)} answers", "give each answer its rank")
        pairs = enumerate(zip(answers, ranks, strict=True))
        found = ((text, rank, f"answers[{i}]", f"ranks[{i}]") for i, (text, rank) in pairs)
    for text, rank, text_field, rank_field in found:
        if rank is None:
            raise field_error(where, rank_field, "is no number", "write the rank, 0 for the best")
        number = Row(where, {rank_field: rank}).number(rank_field)
        yield RankedAnswer(checked_text(text, where, text_field), number)


def _parse_labelled(row: Row) -> Iterator[RankedAnswer]:
    """Answers with labels, as `write_labelled` writes them; an answer's rank is the distance from the best label."""
    answers, labels = row.items("answers"), row.items("labels")
    judgments, criteria = (
        row.items(name) if row.has(name) else [None] * len(answers) for name in ("judgments", "criteria")
    )
    for name, given in (("labels", labels), ("judgments", judgments), ("criteria", criteria)):
        if len(given) != len(answers):
            raise row.error(name, f"{len(given)} for {len(answers)} answers", "give one to each answer")
    numbers = [Row(row.where, {f"labels[{i}]": each}).number(f"labels[{i}]") for i, each in enumerate(labels)]
    for i, (text, label) in enumerate(zip(answers, numbers, strict=True)):
        judgment, met = judgments[i], criteria[i] or {}
        if judgment is not None:
            judgment = checked_text(judgment, row.where, f"judgments[{i}]")
        if not isinstance(met, dict) or not all(isinstance(each, bool) for each in met.values()):
            raise row.error(f"criteria[{i}]", "is no object of true and false", 'write {"the question": true}')
        text = checked_text(text, row.where, f"answers[{i}]")
        yield RankedAnswer(text, max(numbers) - label, label, judgment, tuple(met.items()))


def write_labelled(path: Path, prompts: Iterable[RankedPrompt]) -> None:
    """Write prompts whose answers have labels as JSON Lines for `read_ranked`."""
    rows = (
        {
            "id": each.prompt.id,
            "prompt": chat_turns(each.prompt.messages),
            "answers": [answer.text for answer in each.answers],
            "labels": [answer.label for answer in each.answers],
            **_column("judgments", [answer.judgment for answer in each.answers]),
            **_column("criteria", [dict(answer.criteria) for answer in each.answers]),
        }
        for each in prompts
    )
    write_atomic(path, json_lines(rows))


def _column(name: str, values: Sequence[object]) -> dict[str, object]:
    """A field that is left out where it has nothing to say."""
    return {name: values} if any(values) else {}


# --- conversation trees ---


@dataclass(frozen=True, slots=True)
class _Node:
    """A message of a tree and the replies to it, in file order."""

    id: str
    message: Message
    rank: float | None
    language: str | None
    replies: tuple[_Node, ...]


def _is_valid(message: Any) -> bool:
    """Whether a message was neither deleted nor rejected by reviewers; no review is no rejection."""
    return not (isinstance(message, dict) and (message.get("deleted") or message.get("review_result") is False))


def _by_parent(rows: Sequence[Row]) -> Mapping[str | None, Sequence[Row]]:
    """The valid messages of a table by the id of the one that they reply to, None for the first of a tree."""
    replies: dict[str | None, list[Row]] = {}
    seen = set[str]()
    for row in rows:
        message = json_object(row.value, row.where)
        missing = [field for field in MESSAGE_FIELDS if field not in message]
        if missing:
            raise field_error(row.where, missing[0], "missing", "give every message its id, parent, text and role")
        own, parent = checked_text(message["message_id"], row.where, "message_id"), message["parent_id"]
        if own in seen:
            raise field_error(row.where, "message_id", "repeats that of an earlier row", "give every row its own")
        seen.add(own)
        if _is_valid(message):
            parent = None if parent is None else checked_text(parent, row.where, "parent_id")
            replies.setdefault(parent, []).append(row)
    return replies


def _prompts_of(
    message: Any, where: str, prefix: str, table: Mapping[str | None, Sequence[Row]] | None
) -> Iterator[RankedPrompt]:
    """The ranked prompts of the tree that begins with ``message``."""
    try:
        yield from _prompts_in(_parse_message(message, where, prefix, table), ())
    except RecursionError:
        raise UserError(f"{where}: a conversation of too many turns; fix: remove its tree") from None


def _parse_message(message: Any, where: str, prefix: str, table: Mapping[str | None, Sequence[Row]] | None) -> _Node:
    """A message and all below it: from its ``replies``, or from ``table``, the rows of a table by their parent."""
    if not isinstance(message, dict):
        raise field_error(
            where, prefix.removesuffix("."), "is no message", "write the message's text, role and replies"
        )
    if table is None:
        given = message.get("replies") or []
        if not isinstance(given, list):
            raise field_error(where, f"{prefix}replies", "is no list", "write the messages that reply to this one")
        valid = [each for each in given if _is_valid(each)]
        replies = [_parse_message(each, where, f"{prefix}replies[{i}].", None) for i, each in enumerate(valid)]
    else:
        rows = table.get(message["message_id"], ())
        replies = [_parse_message(row.value, row.where, prefix, table) for row in rows]
    role = _ROLES.get(str(message.get("role")))
    if role is None:
        raise field_error(where, f"{prefix}role", f"is {message.get('role')!r}", "use prompter or assistant")
    rank_field = f"{prefix}rank"
    return _Node(
        id=checked_text(message.get("message_id"), where, f"{prefix}message_id"),
        message=Message(role, checked_text(message.get("text"), where, f"{prefix}text")),
        rank=Row(where, {rank_field: message.get("rank")}).optional_number(rank_field),
        language=_language(message),
        replies=tuple(replies),
    )


def _prompts_in(node: _Node, before: Messages) -> Iterator[RankedPrompt]:
    """The ranked prompts of a tree, each with the turns before it."""
    turns = (*before, node.message)
    if node.message.role == "user":
        answers = tuple(
            RankedAnswer(reply.message.content, reply.rank)
            for reply in node.replies
            if reply.message.role == "assistant" and reply.rank is not None
        )
        if answers:
            yield RankedPrompt(Prompt(node.id, turns), answers, node.language)
    for reply in node.replies:
        yield from _prompts_in(reply, turns)
