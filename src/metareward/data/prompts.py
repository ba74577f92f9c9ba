"""Prompts: rows of any common data set as conversations, and which prompts each iteration uses.

    "..."                                                  a prompt
    {"prompt": "..." or [turns]}    {"messages": [turns]}  a prompt, or a conversation that ends with the user's turn
    {"instruction": "...", "input": "...", "output": ...}  Alpaca; ``system`` and ``history`` are read where present
    {"conversations": [{"from": "human", "value": ...}]}   ShareGPT

A turn is ``{"role", "content"}`` or ``{"from", "value"}``. Alpaca and ShareGPT rows end with the answer, which a prompt
leaves out. Other fields are ignored. A prompt's id is its ``id`` field or else a hash of its content. Iterations take
slices of one seeded order, so no prompt serves two of them (the papers don't say whether theirs did; 4 x 5,000 of
20,000 suggests so). Training takes its prompts first, the held-out ones come from the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from metareward.data.files import field_error, iter_rows, resolve_files
from metareward.errors import UserError
from metareward.seeds import derive
from metareward.storage.atomic import write_atomic
from metareward.storage.serialization import canonical_json, json_lines
from metareward.types import ChatRole, Message, Messages, Prompt

_FORMS = ("prompt", "messages", "conversations", "instruction")
_ROLES: Mapping[str, ChatRole] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
}


def parse_prompt(value: object, where: str, field: str | None = None) -> Messages:
    """The conversation up to the last user turn of the row at ``where``.

    ``field`` names the field to read, for rows that have several. Raises `UserError` naming the place, field and fix.
    """
    if isinstance(value, str):
        return (Message("user", checked_text(value, where, "prompt")),)
    row = json_object(value, where)
    name = field or _prompt_field(row, where)
    turns = _conversation(row, name, where)
    if (name == "conversations" or field is not None) and turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    _check_turn_order(turns, where, name)
    return turns


def parse_example(value: object, where: str) -> tuple[Messages, str]:
    """A prompt and its answer: ``prompt`` with ``completion``, or any form that ends with an assistant turn.

    Raises `UserError` naming the place, field and fix.
    """
    row = json_object(value, where)
    name = "completion" if row.get("completion") is not None else _prompt_field(row, where)
    if name == "completion":
        turns = (*_conversation(row, "prompt", where), *_answer(row["completion"], where, name))
    elif name == "instruction":
        turns = (*_conversation(row, name, where), *_answer(row.get("output"), where, "output"))
    else:
        turns = _conversation(row, name, where)
    if not turns or turns[-1].role != "assistant":
        raise field_error(where, name, "doesn't end with an assistant turn", "add the answer to train on")
    _check_turn_order(turns[:-1], where, name)
    return turns[:-1], turns[-1].content


def json_object(value: object, where: str) -> dict[str, Any]:
    """``value``, which must be a JSON object."""
    if not isinstance(value, dict):
        raise UserError(f'{where}: not a JSON object; fix: write {{"prompt": "..."}}')
    return value


def checked_text(value: object, where: str, field: str) -> str:
    """``value``, which must be text that isn't blank and has no lone surrogate."""
    if not isinstance(value, str):
        raise field_error(where, field, f"is {_kind(value)}", "write text")
    if not value.strip():
        raise field_error(where, field, "is empty", "write the text or remove the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(value[error.start]):04x}"
        raise field_error(where, field, f"holds {code}, half of a character", "write the whole character") from None
    return value


def _prompt_field(row: Mapping[str, Any], where: str) -> str:
    """The field that holds the prompt."""
    given = [field for field in _FORMS if row.get(field) is not None]
    if len(given) > 1:
        raise UserError(f'{where}: fields "{given[0]}" and "{given[1]}" are both there; fix: keep one of them')
    if not given:
        found = ", ".join(map(json.dumps, list(row)[:8])) or "none"
        raise UserError(f'{where}: field "prompt": missing (fields here: {found}); fix: name the instruction "prompt"')
    return given[0]


def _conversation(row: Mapping[str, Any], name: str, where: str) -> Messages:
    """The turns in field ``name``, their order unchecked; for Alpaca, the turns before the answer."""
    value = row.get(name)
    if name == "instruction":
        turns = list(_system(row, where))
        for i, pair in enumerate(row.get("history") or ()):
            if not isinstance(pair, list) or len(pair) != 2:
                raise field_error(where, f"history[{i}]", "is no pair of texts", "write [user text, assistant text]")
            turns.append(Message("user", checked_text(pair[0], where, f"history[{i}][0]")))
            turns.append(Message("assistant", checked_text(pair[1], where, f"history[{i}][1]")))
        instruction = checked_text(value, where, "instruction")
        if not _blank(row.get("input")):
            instruction += f"\n\n{checked_text(row['input'], where, 'input')}"
        return (*turns, Message("user", instruction))
    if isinstance(value, str) and name not in ("messages", "conversations"):
        return (Message("user", checked_text(value, where, name)),)
    if not isinstance(value, list):
        raise field_error(where, name, f"is {_kind(value)}", 'write text or a list of {"role", "content"} turns')
    talk = tuple(_turn(turn, where, f"{name}[{i}]") for i, turn in enumerate(value))
    if name == "conversations" and not any(turn.role == "system" for turn in talk):
        return (*_system(row, where), *talk)
    return talk


def _turn(turn: object, where: str, field: str) -> Message:
    if not isinstance(turn, dict):
        raise field_error(where, field, f"is {_kind(turn)}", 'write {"role": "user", "content": "..."}')
    sharegpt = "from" in turn and "role" not in turn
    role_field, text_field = ("from", "value") if sharegpt else ("role", "content")
    given = turn.get(role_field)
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        fix = "use system, human or gpt" if sharegpt else "use system, user or assistant"
        raise field_error(where, f"{field}.{role_field}", f"is {json.dumps(given)}", fix)
    return Message(role, checked_text(turn.get(text_field), where, f"{field}.{text_field}"))


def _system(row: Mapping[str, Any], where: str) -> Messages:
    return () if _blank(row.get("system")) else (Message("system", checked_text(row["system"], where, "system")),)


def _blank(value: object) -> bool:
    """Whether an optional field is absent; data sets write empty text in such fields."""
    return value is None or (isinstance(value, str) and not value.strip())


def _answer(value: object, where: str, field: str) -> Messages:
    """An answer as text, or as TRL's list of one turn."""
    if isinstance(value, list):
        return tuple(_turn(turn, where, f"{field}[{i}]") for i, turn in enumerate(value))
    return (Message("assistant", checked_text(value, where, field)),)


def _check_turn_order(messages: Messages, where: str, field: str) -> None:
    """Check what chat templates require: an optional system turn, then user and assistant alternating, user last."""
    talk = messages[1:] if messages and messages[0].role == "system" else messages
    start = len(messages) - len(talk)
    for i, (message, due) in enumerate(zip(talk, cycle(("user", "assistant")), strict=False), start):
        if message.role != due:
            raise field_error(
                where, f"{field}[{i}].role", f'is "{message.role}", should be "{due}"', "alternate user and assistant"
            )
    if not talk:
        raise field_error(where, field, "has no user turn", "add the user's text")
    if talk[-1].role == "assistant":
        raise field_error(where, field, "ends with an assistant turn", "remove it: the model writes that turn")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "missing or null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "text")


@dataclass(frozen=True, slots=True)
class GatheredPrompts:
    """``prompts`` in file order without duplicates; ``repeats`` has (place of the duplicate, place of the first)."""

    prompts: tuple[Prompt, ...]
    repeats: tuple[tuple[str, str], ...]


def load_prompts(source: Path | str, network: bool = False, field: str | None = None) -> tuple[Prompt, ...]:
    """The prompts of ``source`` in file order; a duplicate is an error.

    ``source`` is a name that `metareward.data.files` resolves; ``network`` allows downloads from the hub. ``field``
    names the field that holds the prompt, for rows that have several. Raises `UserError` naming place, field and fix.
    """
    gathered = gather_prompts(source, network, field)
    if gathered.repeats:
        again, first = gathered.repeats[0]
        raise UserError(f"{again}: the same prompt as in {first}; fix: remove one, or give each its own id")
    return gathered.prompts


def gather_prompts(source: Path | str, network: bool = False, field: str | None = None) -> GatheredPrompts:
    """Like `load_prompts`, but a duplicate is reported in ``repeats`` instead of refused."""
    prompts: dict[str, Prompt] = {}
    places: dict[str, str] = {}
    repeats: list[tuple[str, str]] = []
    for row in (row for path in resolve_files(source, network) for row in iter_rows(path)):
        messages = parse_prompt(row.value, row.where, field)
        prompt = Prompt(row_id(row.value, row.where) or content_id(messages), messages)
        first = places.setdefault(prompt.id, row.where)
        if prompts.setdefault(prompt.id, prompt).messages != prompt.messages:
            taken = f"{json.dumps(prompt.id)} is taken by {first}"
            raise field_error(row.where, "id", taken, "give each prompt its own id")
        if first != row.where:
            repeats.append((row.where, first))
    if not prompts:
        raise UserError(f'{source}: no prompts in it; fix: put one JSON object a line, as {{"prompt": "..."}}')
    return GatheredPrompts(tuple(prompts.values()), tuple(repeats))


def content_id(messages: Messages) -> str:
    """The id of a prompt that has none: 16 hex digits over its roles and texts."""
    return hashlib.blake2b(canonical_json(chat_turns(messages)).encode(), digest_size=8).hexdigest()


def chat_turns(messages: Messages) -> list[dict[str, str]]:
    """``messages`` as the dicts of role and content that chat templates take and files hold."""
    return [{"role": message.role, "content": message.content} for message in messages]


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write ``prompts`` as JSON Lines for `load_prompts`."""
    write_atomic(path, json_lines({"id": prompt.id, "prompt": chat_turns(prompt.messages)} for prompt in prompts))


def digest_prompts(prompts: Sequence[Prompt]) -> str:
    """64 hex digits over the ids, roles, texts and order of ``prompts``."""
    content = [[prompt.id, chat_turns(prompt.messages)] for prompt in prompts]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def prompts_of_iteration(
    prompts: Sequence[Prompt], per_iteration: int, iteration: int, seed: int
) -> tuple[Prompt, ...]:
    """The ``per_iteration`` prompts of ``iteration`` (counted from 1); no two iterations share one.

    The order depends on the seed and the ids, not on the order of the file. Raises `UserError` when there are too few.
    """
    end = per_iteration * iteration
    if len(prompts) < end:
        raise UserError(
            f"prompts: iteration {iteration} needs {end} ({iteration} x {per_iteration}) and there are {len(prompts)}; "
            "fix: add prompts or lower prompts.per_iteration"
        )
    return _shuffled(prompts, seed, "prompt order")[end - per_iteration : end]


def split_held_out(
    prompts: Sequence[Prompt], count: int, per_iteration: int, iterations: int, seed: int
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """At most ``count`` prompts for evaluation, and the prompts for training.

    Training needs ``per_iteration`` times ``iterations`` of them. Where fewer than ``count`` are left over, the
    evaluation borrows the missing ones from the last iteration's, which only the last model has been trained on. Raises
    `UserError` when there are too few prompts to train on.
    """
    left_over = max(0, len(prompts) - per_iteration * iterations)
    order = _shuffled(prompts, seed, "held out")
    held_out, training = order[: min(count, left_over)], order[min(count, left_over) :]
    last = prompts_of_iteration(training, per_iteration, iterations, seed)
    return held_out + last[: count - len(held_out)], training


def _shuffled(prompts: Sequence[Prompt], seed: int, purpose: str) -> tuple[Prompt, ...]:
    return tuple(sorted(prompts, key=lambda prompt: (derive(seed, purpose, prompt.id), prompt.id)))


def row_id(value: object, where: str) -> str | None:
    """The row's ``id`` as text; None when it has none."""
    given = value.get("id") if isinstance(value, dict) else None
    if given is None:
        return None
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    return checked_text(given, where, "id")
