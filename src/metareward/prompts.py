"""Prompts from a file, checked whole before anything is generated; and which of them each iteration uses.

A line is ``{"prompt": text}``, ``{"prompt": [turns]}`` or ``{"messages": [turns]}``, with an ``id`` if you like; other
fields are passed over. Slices are cut from one seeded order, so no prompt serves two iterations (the papers don't say
whether theirs did; 4 x 5,000 of 20,000 suggests so).
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, get_args

from metareward.errors import UserError
from metareward.rundir import canonical, json_lines, write_atomic
from metareward.seeds import derive
from metareward.types import Message, Messages, Prompt, Role


def load_prompts(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a JSONL file (UTF-8), in its order.

    Without an ``id`` a prompt is known by a hash of its content. Raises `UserError` naming line, field and fix.
    """
    prompts: dict[str, Prompt] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        prompt = _prompt(line, f"{path}:{number}")
        if prompt.id in prompts:
            raise _twin(prompt, prompts[prompt.id], f"{path}:{number}", lines[prompt.id])
        prompts[prompt.id] = prompt
        lines[prompt.id] = number
    if not prompts:
        raise UserError(f'{path}: no prompts in it; fix: put one JSON object a line, as {{"prompt": "..."}}')
    return tuple(prompts.values())


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write ``prompts`` as `load_prompts` reads them."""
    write_atomic(path, json_lines({"id": prompt.id, "prompt": _turns(prompt.messages)} for prompt in prompts))


def digest(prompts: Sequence[Prompt]) -> str:
    """64 hex digits that change with any id, role, word or the order of ``prompts``."""
    content = [[prompt.id, _turns(prompt.messages)] for prompt in prompts]
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def choose(prompts: Sequence[Prompt], per_iteration: int, iteration: int, seed: int) -> tuple[Prompt, ...]:
    """The ``per_iteration`` prompts of ``iteration`` (1, 2, …); no two iterations share one.

    The order depends on the seed and the ids, not on where a prompt stands in the file. Raises `UserError` when
    there are too few.
    """
    end = per_iteration * iteration
    if len(prompts) < end:
        raise UserError(
            f"prompts: iteration {iteration} needs {end} ({iteration} x {per_iteration}) and there are {len(prompts)}; "
            "fix: add prompts or lower prompts.per_iteration"
        )
    return _shuffled(prompts, seed, "prompt order")[end - per_iteration : end]


def hold_out(prompts: Sequence[Prompt], count: int, seed: int) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """``count`` prompts kept for evaluation, and the rest. Raises `UserError` when nothing would be left."""
    if count >= len(prompts):
        raise UserError(
            f"prompts: {count} held out of {len(prompts)} leaves none; fix: add prompts or lower prompts.held_out"
        )
    order = _shuffled(prompts, seed, "held out")
    return order[:count], order[count:]


def _shuffled(prompts: Sequence[Prompt], seed: int, purpose: str) -> tuple[Prompt, ...]:
    return tuple(sorted(prompts, key=lambda prompt: (derive(seed, purpose, prompt.id), prompt.id)))


def _lines(path: Path) -> list[str]:
    """The lines of ``path``. Only a newline ends one: U+2028 and its like are text (`str.splitlines` differs)."""
    try:
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        return raw.decode().split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: this is not UTF-8; fix: save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}; fix: name a JSONL file of prompts") from None


def _prompt(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); fix: write one JSON object a line") from None
    if not isinstance(row, dict):
        raise UserError(f'{where}: not a JSON object; fix: write {{"prompt": "..."}}')
    field = _field(row, where)
    messages = _messages(row[field], where, field)
    return Prompt(_id(row, messages, where), messages)


def _field(row: dict[str, Any], where: str) -> str:
    given = [field for field in ("prompt", "messages") if row.get(field) is not None]
    if len(given) == 2:
        raise UserError(f'{where}: fields "prompt" and "messages" are both there; fix: keep one of them')
    if not given:
        found = ", ".join(map(json.dumps, list(row)[:8])) or "none"
        raise UserError(f'{where}: field "prompt": missing (fields here: {found}); fix: name the instruction "prompt"')
    return given[0]


def _wrong(where: str, field: str, what: str, fix: str) -> UserError:
    return UserError(f'{where}: field "{field}": {what}; fix: {fix}')


def _messages(value: object, where: str, field: str) -> Messages:
    if isinstance(value, str) and field == "prompt":
        return (Message("user", _text(value, where, field)),)
    if not isinstance(value, list):
        raise _wrong(where, field, f"is {_kind(value)}", 'write text or a list of {"role", "content"} turns')
    messages = tuple(_message(turn, where, f"{field}[{i}]") for i, turn in enumerate(value))
    _check_order(messages, where, field)
    return messages


def _message(turn: object, where: str, field: str) -> Message:
    if not isinstance(turn, dict):
        raise _wrong(where, field, f"is {_kind(turn)}", 'write {"role": "user", "content": "..."}')
    given = turn.get("role")
    role: Role | None = next((role for role in get_args(Role) if role == given), None)
    if role is None:
        raise _wrong(where, f"{field}.role", f"is {json.dumps(given)}", "use system, user or assistant")
    return Message(role, _text(turn.get("content"), where, f"{field}.content"))


def _text(value: object, where: str, field: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, field, f"is {_kind(value)}", "write text")
    if not value.strip():
        raise _wrong(where, field, "is empty", "write the text or take the line out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise _wrong(where, field, f"holds {half}, half of a character", "write the whole character") from None
    return value


def _check_order(messages: Messages, where: str, field: str) -> None:
    """System first if at all, then user and assistant by turns, the user last: what every chat template takes."""
    talk = messages[1:] if messages and messages[0].role == "system" else messages
    start = len(messages) - len(talk)
    for i, (message, due) in enumerate(zip(talk, cycle(("user", "assistant")), strict=False), start):
        if message.role != due:
            raise _wrong(where, f"{field}[{i}].role", f'is "{message.role}" where "{due}" is due', "mend the turns")
    if not talk:
        raise _wrong(where, field, "has no user turn", "add what the user says")
    if talk[-1].role == "assistant":
        raise _wrong(where, field, "ends with an assistant turn", "take that turn out: the model is to write it")


def _id(row: dict[str, Any], messages: Messages, where: str) -> str:
    given = row.get("id")
    if given is None:
        return hashlib.blake2b(canonical(_turns(messages)).encode(), digest_size=8).hexdigest()
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    return _text(given, where, "id")


def _twin(prompt: Prompt, first: Prompt, where: str, line: int) -> UserError:
    if prompt.messages == first.messages:
        return UserError(f"{where}: the same prompt as in line {line}; fix: take one out, or give each its own id")
    return _wrong(where, "id", f"{json.dumps(prompt.id)} is taken by line {line}", "give each prompt its own id")


def _turns(messages: Messages) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "missing or null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "text")
