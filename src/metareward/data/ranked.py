"""A prompt with answers that people put in order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metareward.data.files import Row, located, read_rows
from metareward.data.prompts import as_object, checked, content_id, given_id, prompt_of, wrong
from metareward.data.propose import words_of
from metareward.errors import UserError
from metareward.types import ChatRole, Message, Messages, Prompt


@dataclass(frozen=True, slots=True)
class RankedAnswer:
    """An answer and its place in people's order: less is better, equal ranks are ties."""

    text: str
    rank: float


@dataclass(frozen=True, slots=True)
class Ranked:
    """A prompt, its ranked answers in the order of their file, and its language where that is told."""

    prompt: Prompt
    answers: tuple[RankedAnswer, ...]
    language: str | None = None

    @property
    def group(self) -> tuple[str, ...]:
        """What prompts of one conversation tree share: the words the user begins with, without case or punctuation.

        A split never parts a group. So no prompt is in two sets, not even as the beginning of a longer one.
        """
        first = next(message.content for message in self.prompt.messages if message.role == "user")
        return tuple(words_of(first)) or (first.strip(),)

    @property
    def first_turn(self) -> bool:
        """Whether the user speaks once only."""
        return sum(message.role == "user" for message in self.prompt.messages) == 1

    @property
    def comparable(self) -> bool:
        """Whether some answer is better than another."""
        return len({answer.rank for answer in self.answers}) > 1

    @property
    def best(self) -> RankedAnswer:
        """The answer that people like best, the first of them if there are several."""
        return min(self.answers, key=lambda answer: answer.rank)


# --- Conversation trees of Open Assistant: every message that a user wrote is a prompt, the ranked replies its answers.
#
# Trees come in two forms: as they were exported (one tree a row, replies inside replies), and as the table of
# messages in
# the data sets oasst1 and oasst2, where each names its parent. Deleted messages, those that reviewers turned down, and
# all that follows them are left out; so are replies without a rank.


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
        answers = tuple(_tree_answers(node.replies))
        if answers:
            yield Ranked(Prompt(node.id, turns), answers, node.language)
    for reply in node.replies:
        yield from _walk(reply, turns)


def _tree_answers(replies: Iterable[_Node]) -> Iterator[RankedAnswer]:
    for reply in replies:
        if reply.message.role == "assistant" and reply.rank is not None:
            yield RankedAnswer(reply.message.content, reply.rank)


# --- Ranked answers from files: Open Assistant's trees in each of their forms, or rows of prompt, answers and ranks.
#
#     {"prompt": ..., "answers": ["...", "..."], "ranks": [0, 1]}             a prompt in any form, the best rank least
#     {"conversation": [{"role", "text"}], "responses": [{"text", "rank"}]}   a flat export of trees
#     {"prompt": {"text", "role", "replies": [...]}}                          a tree
#     {"message_id", "parent_id", "text", "role", "rank"}                     a message of a tree
#
# What doesn't qualify is passed over and counted: other languages than the one asked for, and, unless asked for,
# prompts
# that are not the first turn (Self-Rewarding takes the first turns, in English).


@dataclass(frozen=True, slots=True)
class RankedSet:
    """``ranked`` in the order of their file, and how many prompts were ``passed_over``, by reason."""

    ranked: tuple[Ranked, ...]
    passed_over: Mapping[str, int]


def read_ranked(
    source: Path | str, language: str | None = "en", first_turns: bool = True, network: bool = False
) -> RankedSet:
    """The ranked prompts of ``source``, which is what `metareward.data.files` takes.

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
