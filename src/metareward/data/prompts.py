"""Prompts from files of any kind, checked whole before anything is generated; and which of them each iteration uses.

What a row may look like is in `metareward.data.prompts`, which files and names there are in
`metareward.data.files`. A prompt is known by its ``id``, or without one by a hash of its content. Slices are cut
from one seeded order, so no prompt serves two iterations (the papers don't say whether theirs did; 4 x 5,000 of 20,000
suggests so).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from metareward.data.files import Place, Row, located, read_rows
from metareward.errors import UserError
from metareward.seeds import derive
from metareward.storage.atomic import write_atomic
from metareward.storage.serialization import canonical_json, json_lines
from metareward.types import ChatRole, Message, Messages, Prompt

# --- What a row says, in any of the forms that data sets have.
#
#     "..."                                                  a prompt
#     {"prompt": "..." or [turns]}    {"messages": [turns]}  a prompt, or a conversation that the user has ended
#     {"instruction": "...", "input": "...", "output": ...}  Alpaca; ``system`` and ``history`` count, if they are there
#     {"conversations": [{"from": "human", "value": ...}]}   ShareGPT
#
# A turn is ``{"role", "content"}`` or ``{"from", "value"}``. Alpaca's and ShareGPT's rows hold the answer too: as
# prompts
# they end before it. Fields that no form names are passed over.


_FORMS = ("prompt", "messages", "conversations", "instruction")
_ROLES: Mapping[str, ChatRole] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
}


def prompt_of(value: object, where: str, field: str | None = None) -> Messages:
    """The conversation up to the user's last turn. ``where`` is the row's place, for messages.

    ``field`` names the field to read, in rows that have several. Raises `UserError` naming place, field and fix.
    """
    if isinstance(value, str):
        return (Message("user", checked(value, where, "prompt")),)
    row = as_object(value, where)
    name = field or _form(row, where)
    turns = _conversation(row, name, where)
    if name == "conversations" or field is not None:
        turns = _before_the_answer(turns)
    _check_order(turns, where, name)
    return turns


def example_of(value: object, where: str) -> tuple[Messages, str]:
    """A prompt and the answer to it: ``prompt`` with ``completion``, or any form that ends with the assistant's turn.

    Raises `UserError` naming place, field and fix.
    """
    row = as_object(value, where)
    name = "completion" if row.get("completion") is not None else _form(row, where)
    if name == "completion":
        turns = (*_conversation(row, "prompt", where), *_answer(row["completion"], where, name))
    elif name == "instruction":
        turns = (*_conversation(row, name, where), *_answer(row.get("output"), where, "output"))
    else:
        turns = _conversation(row, name, where)
    if not turns or turns[-1].role != "assistant":
        raise wrong(where, name, "ends without the assistant's turn", "add the answer that is to be learned")
    _check_order(turns[:-1], where, name)
    return turns[:-1], turns[-1].content


def as_object(value: object, where: str) -> dict[str, Any]:
    """``value``, which must be a JSON object."""
    if not isinstance(value, dict):
        raise UserError(f'{where}: not a JSON object; fix: write {{"prompt": "..."}}')
    return value


def checked(value: object, where: str, field: str) -> str:
    """``value``, which must be text, not blank, of whole characters."""
    if not isinstance(value, str):
        raise wrong(where, field, f"is {_kind(value)}", "write text")
    if not value.strip():
        raise wrong(where, field, "is empty", "write the text or take the line out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise wrong(where, field, f"holds {half}, half of a character", "write the whole character") from None
    return value


def wrong(where: str, field: str, what: str, fix: str) -> UserError:
    """What to raise about a field."""
    return UserError(f'{where}: field "{field}": {what}; fix: {fix}')


def _form(row: Mapping[str, Any], where: str) -> str:
    """The field that tells the row's form."""
    given = [field for field in _FORMS if row.get(field) is not None]
    if len(given) > 1:
        raise UserError(f'{where}: fields "{given[0]}" and "{given[1]}" are both there; fix: keep one of them')
    if not given:
        found = ", ".join(map(json.dumps, list(row)[:8])) or "none"
        raise UserError(f'{where}: field "prompt": missing (fields here: {found}); fix: name the instruction "prompt"')
    return given[0]


def _conversation(row: Mapping[str, Any], name: str, where: str) -> Messages:
    """The turns in field ``name``, in any order still; of Alpaca's fields those before the answer."""
    value = row.get(name)
    if name == "instruction":
        return (*_system(row, where), *_history(row, where), Message("user", _instruction(row, where)))
    if isinstance(value, str) and name not in ("messages", "conversations"):
        return (Message("user", checked(value, where, name)),)
    if not isinstance(value, list):
        raise wrong(where, name, f"is {_kind(value)}", 'write text or a list of {"role", "content"} turns')
    turns = tuple(_turn(turn, where, f"{name}[{i}]") for i, turn in enumerate(value))
    if name == "conversations" and not any(turn.role == "system" for turn in turns):
        return (*_system(row, where), *turns)
    return turns


def _turn(turn: object, where: str, field: str) -> Message:
    if not isinstance(turn, dict):
        raise wrong(where, field, f"is {_kind(turn)}", 'write {"role": "user", "content": "..."}')
    shares = "from" in turn and "role" not in turn  # ShareGPT's names
    who, says = ("from", "value") if shares else ("role", "content")
    given = turn.get(who)
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        known = "use system, human or gpt" if shares else "use system, user or assistant"
        raise wrong(where, f"{field}.{who}", f"is {json.dumps(given)}", known)
    return Message(role, checked(turn.get(says), where, f"{field}.{says}"))


def _instruction(row: Mapping[str, Any], where: str) -> str:
    """Alpaca's instruction and the input that it is about, if there is one, as one text."""
    instruction = checked(row["instruction"], where, "instruction")
    return instruction if _blank(row.get("input")) else f"{instruction}\n\n{checked(row['input'], where, 'input')}"


def _system(row: Mapping[str, Any], where: str) -> Messages:
    return () if _blank(row.get("system")) else (Message("system", checked(row["system"], where, "system")),)


def _blank(value: object) -> bool:
    """Whether a field that may be left out is: data sets have empty texts in such fields."""
    return value is None or (isinstance(value, str) and not value.strip())


def _history(row: Mapping[str, Any], where: str) -> Messages:
    """Alpaca's earlier exchanges: pairs of what the user said and what the assistant said."""
    turns: list[Message] = []
    for i, pair in enumerate(row.get("history") or ()):
        if not isinstance(pair, list) or len(pair) != 2:
            raise wrong(where, f"history[{i}]", "is no pair of texts", "write [what was asked, what was answered]")
        turns.append(Message("user", checked(pair[0], where, f"history[{i}][0]")))
        turns.append(Message("assistant", checked(pair[1], where, f"history[{i}][1]")))
    return tuple(turns)


def _answer(value: object, where: str, field: str) -> Messages:
    """An answer as text, or as TRL's list of the one turn."""
    if isinstance(value, list):
        return tuple(_turn(turn, where, f"{field}[{i}]") for i, turn in enumerate(value))
    return (Message("assistant", checked(value, where, field)),)


def _before_the_answer(turns: Messages) -> Messages:
    return turns[:-1] if turns and turns[-1].role == "assistant" else turns


def _check_order(messages: Messages, where: str, field: str) -> None:
    """System first if at all, then user and assistant by turns, the user last: what every chat template takes."""
    talk = messages[1:] if messages and messages[0].role == "system" else messages
    start = len(messages) - len(talk)
    for i, (message, due) in enumerate(zip(talk, cycle(("user", "assistant")), strict=False), start):
        if message.role != due:
            raise wrong(where, f"{field}[{i}].role", f'is "{message.role}" where "{due}" is due', "mend the turns")
    if not talk:
        raise wrong(where, field, "has no user turn", "add what the user says")
    if talk[-1].role == "assistant":
        raise wrong(where, field, "ends with an assistant turn", "take that turn out: the model is to write it")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "missing or null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "text")


@dataclass(frozen=True, slots=True)
class Gathered:
    """``prompts`` in their order, each once; ``repeats`` says where one of them stood again, and where first."""

    prompts: tuple[Prompt, ...]
    repeats: tuple[tuple[Place, Place], ...]


def load_prompts(source: Path | str, network: bool = False, field: str | None = None) -> tuple[Prompt, ...]:
    """The prompts of ``source``, in their order; a prompt that is there twice is refused.

    ``source`` is what `metareward.data.files` takes; ``network`` allows to fetch it from the hub. ``field`` names
    the field that holds the prompt in rows that have several. Raises `UserError` naming file, place, field and fix.
    """
    gathered = gather_prompts(source, network, field)
    if gathered.repeats:
        again, first = gathered.repeats[0]
        raise UserError(
            f"{again}: the same prompt as in {first.seen_from(again)}; fix: take one out, or give each its own id"
        )
    return gathered.prompts


def gather_prompts(source: Path | str, network: bool = False, field: str | None = None) -> Gathered:
    """The same, but a prompt that is there twice is taken once and told."""
    prompts: dict[str, Prompt] = {}
    places: dict[str, Place] = {}
    repeats: list[tuple[Place, Place]] = []
    for row in (row for path in located(source, network) for row in read_rows(path)):
        prompt = _prompt(row, field)
        first = places.setdefault(prompt.id, row.place)
        if prompts.setdefault(prompt.id, prompt).messages != prompt.messages:
            taken = f"{json.dumps(prompt.id)} is taken by {first.seen_from(row.place)}"
            raise wrong(str(row.place), "id", taken, "give each prompt its own id")
        if first != row.place:
            repeats.append((row.place, first))
    if not prompts:
        raise UserError(f'{source}: no prompts in it; fix: put one JSON object a line, as {{"prompt": "..."}}')
    return Gathered(tuple(prompts.values()), tuple(repeats))


def content_id(messages: Messages) -> str:
    """16 hex digits that change with any role or word: the id of a prompt that has none."""
    return hashlib.blake2b(canonical_json(turns_of(messages)).encode(), digest_size=8).hexdigest()


def turns_of(messages: Messages) -> list[dict[str, str]]:
    """``messages`` as chat templates and files have them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write ``prompts`` as `load_prompts` reads them."""
    write_atomic(path, json_lines({"id": prompt.id, "prompt": turns_of(prompt.messages)} for prompt in prompts))


def digest(prompts: Sequence[Prompt]) -> str:
    """64 hex digits that change with any id, role, word or the order of ``prompts``."""
    content = [[prompt.id, turns_of(prompt.messages)] for prompt in prompts]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


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


def _prompt(row: Row, field: str | None) -> Prompt:
    where = str(row.place)
    messages = prompt_of(row.value, where, field)
    return Prompt(given_id(row.value, where) or content_id(messages), messages)


def given_id(value: object, where: str) -> str | None:
    """The row's ``id`` as text; None when it has none."""
    given = value.get("id") if isinstance(value, dict) else None
    if given is None:
        return None
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    return checked(given, where, "id")
