"""Prompts from files of any kind, checked whole before anything is generated; and which of them each iteration uses.

What a row may look like is in `metareward.prompts_forms`, which files and names there are in
`metareward.prompts_sources`. A prompt is known by its ``id``, or without one by a hash of its content. Slices are cut
from one seeded order, so no prompt serves two iterations (the papers don't say whether theirs did; 4 x 5,000 of 20,000
suggests so).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from metareward.errors import UserError
from metareward.prompts_forms import checked, prompt_of, wrong
from metareward.prompts_rows import Place, Row, read_rows
from metareward.prompts_sources import located
from metareward.rundir import canonical, json_lines, write_atomic
from metareward.seeds import derive
from metareward.types import Messages, Prompt


@dataclass(frozen=True, slots=True)
class Gathered:
    """``prompts`` in their order, each once; ``repeats`` says where one of them stood again, and where first."""

    prompts: tuple[Prompt, ...]
    repeats: tuple[tuple[Place, Place], ...]


def load_prompts(source: Path | str, network: bool = False, field: str | None = None) -> tuple[Prompt, ...]:
    """The prompts of ``source``, in their order; a prompt that is there twice is refused.

    ``source`` is what `metareward.prompts_sources` takes; ``network`` allows to fetch it from the hub. ``field`` names
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
    return hashlib.blake2b(canonical(turns_of(messages)).encode(), digest_size=8).hexdigest()


def turns_of(messages: Messages) -> list[dict[str, str]]:
    """``messages`` as chat templates and files have them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write ``prompts`` as `load_prompts` reads them."""
    write_atomic(path, json_lines({"id": prompt.id, "prompt": turns_of(prompt.messages)} for prompt in prompts))


def digest(prompts: Sequence[Prompt]) -> str:
    """64 hex digits that change with any id, role, word or the order of ``prompts``."""
    content = [[prompt.id, turns_of(prompt.messages)] for prompt in prompts]
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
