"""A selection of prompts as one HTML file without scripts or other files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from metareward.errors import UserError
from metareward.viewer.pages import Pages, no_record
from metareward.viewer.runs import ViewedRun
from metareward.viewer.selection import Selection, matching, select

MOST = 200  # prompts in one file: each has all its texts


def exported(run: ViewedRun, selection: Selection, keys: Sequence[str] = ()) -> str:
    """The prompts of ``keys``, or the first 200 of ``selection``, as HTML.

    Raises `UserError` if nothing fits, or for an unknown id.
    """
    pages = Pages([run], static=True)
    count = len(keys)
    unknown = sorted(set(keys) - set(matching(run.index, Selection(selection.t)))) if keys else []
    if unknown:
        missing = f"{run.run.path}: iteration {selection.t} has no prompt {unknown[0]!r}; fix: give --select t=N"
        raise UserError(run.state.problem or missing)
    if not keys:
        found = select(run.index, replace(selection, page=1), MOST)
        keys, count = [row.key for row in found.rows], found.count
    if not keys:
        nothing = f"{run.run.path}: no prompt of iteration {selection.t} fits; fix: select others"
        raise UserError(run.state.problem or nothing)
    shown = tuple(_prompts(pages, run, selection.t, keys))
    return pages.render("export.html.j2", run=run, selection=selection, shown=shown, count=count)


def _prompts(
    pages: Pages, run: ViewedRun, t: int, keys: Sequence[str]
) -> Iterator[tuple[str, dict[str, object] | None, str | None]]:
    """(id, context of its macros, problem) of each prompt."""
    for key in keys:
        try:
            trace = run.trace(t, key)
        except UserError as error:
            yield key, None, str(error)
            continue
        if trace is None:
            yield key, None, no_record(run, t, key)
        else:
            yield key, pages.prompt_context(run, trace), None
