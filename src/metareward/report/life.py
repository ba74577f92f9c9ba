"""One prompt's life found in a run folder, and told as plain text."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from io import StringIO

from rich.console import Console

from metareward.errors import UserError
from metareward.records import from_json
from metareward.report.gather import gather
from metareward.report.lifefacts import Life
from metareward.report.lifetext import told
from metareward.report.outcomes import read_outcomes
from metareward.report.telling import tell
from metareward.rundir import RunDir
from metareward.store import RecordStore


def life_of(run: RunDir, prompt_id: str, iteration: int | None = None) -> Life:
    """The life of one prompt, in the one iteration that has it or in the one asked for.

    Raises `UserError` when there is no such prompt, naming the nearest ids.
    """
    facts = gather(run)
    numbers = [i.number for i in facts.iterations if i.generated and iteration in (None, i.number)]
    for number in numbers:
        folder = run.iteration(number)
        with RecordStore.read(folder.records) as store:
            document = store.get(prompt_id)
        if document is not None:
            return tell(facts, folder, number, from_json(document), read_outcomes(folder))
    raise UserError(_unknown(run, prompt_id, iteration, numbers))


def render_text(life: Life, width: int = 100) -> str:
    """The life as plain text, ``width`` columns wide; characters that a terminal would obey are spelled out."""
    buffer = StringIO()
    Console(file=buffer, width=width, color_system=None).print(told(life), highlight=False)
    return "\n".join(line.rstrip() for line in buffer.getvalue().split("\n"))


def _unknown(run: RunDir, prompt_id: str, iteration: int | None, numbers: Sequence[int]) -> str:
    """One line for a prompt that isn't there: it failed, or it is another's id, or nothing is generated at all."""
    where = f"iteration {iteration}" if iteration is not None else "any iteration"
    known: list[str] = []
    for number in numbers:
        with RecordStore.read(run.iteration(number).records) as store:
            failures = store.failures()
            known += store.keys()
        if prompt_id in failures:
            return (
                f"{run.path}: prompt {prompt_id!r} failed in iteration {number}: {failures[prompt_id]}; fix: run again"
            )
    near = difflib.get_close_matches(prompt_id, known, n=3) or sorted(known)[:3]
    hint = f"the nearest are {', '.join(map(repr, near))}" if near else "nothing is generated there yet"
    return f"{run.path}: no prompt {prompt_id!r} in {where}; {hint}"
