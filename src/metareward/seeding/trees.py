"""Conversation trees of Open Assistant: every message that a user wrote is a prompt, the ranked replies its answers.

Trees come in two forms: as they were exported (one tree a row, replies inside replies), and as the table of messages in
the data sets oasst1 and oasst2, where each names its parent. Deleted messages, those that reviewers turned down, and
all that follows them are left out; so are replies without a rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metareward.prompts_forms import checked, wrong
from metareward.prompts_rows import Row
from metareward.seeding.ranked import Ranked, RankedAnswer
from metareward.types import ChatRole, Message, Messages, Prompt

_ROLES: Mapping[str, ChatRole] = {"prompter": "user", "assistant": "assistant"}
MESSAGE = ("message_id", "parent_id", "text", "role")


@dataclass(frozen=True, slots=True)
class _Node:
    """A message and the replies to it, in their order. ``where`` is its place."""

    id: str
    message: Message
    rank: float | None
    language: str | None
    replies: tuple[_Node, ...]


def from_tree(row: Row) -> Iterator[Ranked]:
    """The ranked prompts of an exported tree. Raises `UserError` naming the place and the field."""
    root = row.value["prompt"]
    if _kept(root):
        yield from _walk(_nested(root, str(row.place), "prompt"), ())


def from_messages(rows: Sequence[Row]) -> Iterator[Ranked]:
    """The ranked prompts of a table of messages. Raises `UserError` naming the place and the field."""
    replies: dict[str | None, list[Row]] = {}
    for row in rows:
        if _kept(row.value):
            replies.setdefault(row.value["parent_id"], []).append(row)
    for row in replies.get(None, ()):
        yield from _walk(_linked(row, replies), ())


def _kept(message: Any) -> bool:
    """Whether a message stands: a reviewer's verdict that is missing is none against it."""
    return not (isinstance(message, dict) and (message.get("deleted") or message.get("review_result") is False))


def _nested(message: Any, where: str, field: str) -> _Node:
    if not isinstance(message, dict):
        raise wrong(where, field, "is no message", "write the message's text, role and replies")
    inside = [each for each in message.get("replies") or () if _kept(each)]
    replies = tuple(_nested(each, where, f"{field}.replies[{i}]") for i, each in enumerate(inside))
    return _node(message, where, f"{field}.", replies)


def _linked(row: Row, replies: Mapping[str | None, Sequence[Row]]) -> _Node:
    inside = tuple(_linked(each, replies) for each in replies.get(row.value["message_id"], ()))
    return _node(row.value, str(row.place), "", inside)


def _node(message: Mapping[str, Any], where: str, above: str, replies: tuple[_Node, ...]) -> _Node:
    role = _ROLES.get(str(message.get("role")))
    if role is None:
        raise wrong(where, f"{above}role", f"is {message.get('role')!r}", "use prompter or assistant")
    rank, language = message.get("rank"), message.get("lang")
    return _Node(
        id=checked(message.get("message_id"), where, f"{above}message_id"),
        message=Message(role, checked(message.get("text"), where, f"{above}text")),
        rank=float(rank) if isinstance(rank, int | float) else None,
        language=language if isinstance(language, str) else None,
        replies=replies,
    )


def _walk(node: _Node, before: Messages) -> Iterator[Ranked]:
    """The prompts in a tree, each with the turns before it."""
    turns = (*before, node.message)
    if node.message.role == "user":
        answers = tuple(_answers(node.replies))
        if answers:
            yield Ranked(Prompt(node.id, turns), answers, node.language)
    for reply in node.replies:
        yield from _walk(reply, turns)


def _answers(replies: Iterable[_Node]) -> Iterator[RankedAnswer]:
    for reply in replies:
        if reply.message.role == "assistant" and reply.rank is not None:
            yield RankedAnswer(reply.message.content, reply.rank)
