"""The gate for files of results: one row for each (model, prompt), one judge and one baseline to a model, one spelling
of a name, whole numbers and scores on their scale.

What is wrong is refused in one line with the row's place. What is merely partial or unofficial is a caveat, a sentence
that stands beside the numbers in every output.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

from metareward.data.files import Row
from metareward.errors import UserError


def require_one_row(keyed: Iterable[tuple[Hashable, Row]], field: str, fix: str) -> None:
    """Raise `UserError` at the first row with the key of an earlier one; ``field`` is what repeats."""
    seen: dict[Hashable, Row] = {}
    for key, row in keyed:
        if key in seen:
            raise row.error(field, f"repeats {seen[key].where.rpartition('/')[2]}", fix)
        seen[key] = row


def one_value(rows: Sequence[Row], *names: str) -> str | None:
    """What all ``rows`` have in the first of these fields that is present; None where no row has it.

    Raises `UserError` at the first row that has something else, or nothing.
    """
    values = [next((row.text(name) for name in names if row.has(name)), None) for row in rows]
    for row, value in zip(rows, values, strict=True):
        if value != values[0]:
            raise row.error(
                names[0],
                f"is {_shown(value)}, in earlier rows {_shown(values[0])}",
                "score the two in files of their own",
            )
    return values[0] if values else None


def _shown(value: str | None) -> str:
    return "missing" if value is None else repr(value[:60])


def group_by_name(rows: Sequence[Row], *names: str, default: str | None = None) -> dict[str, list[Row]]:
    """Rows by the model, or judge, that the first of these fields names; ``default`` where no row names one.

    Raises `UserError` for a row without a name, and for two names that differ in case or spaces only.
    """
    if default is not None and not any(row.has(name) for row in rows for name in names):
        return {default: list(rows)}
    groups, spellings = dict[str, list[Row]](), dict[str, str]()
    for row in rows:
        name = row.text(*names)
        if not name.strip():
            raise row.error(names[0], "is blank", "write the name")
        spelling = spellings.setdefault("".join(name.split()).casefold(), name)
        if spelling != name:
            raise row.error(names[0], f"is {name[:60]!r}, in earlier rows {spelling[:60]!r}", "write one name")
        groups.setdefault(name, []).append(row)
    return groups


def require_everywhere(rows: Sequence[Row], name: str) -> None:
    """Raise `UserError` where only some of the ``rows`` have this field."""
    missing = [row for row in rows if not row.has(name)]
    if missing and len(missing) < len(rows):
        raise missing[0].error(name, "is missing, but other rows have it", "give it in every row, or in none")


def require_no_verdict(row: Row, verdict: str, score: object) -> None:
    """Raise `UserError` where ``row`` has the outcome "refused" and a score all the same."""
    if score is not None and row.fields.get("outcome") == "refused":
        raise row.error(verdict, "is there, but the outcome is refused", "give null, or another outcome")


def score_on_scale(row: Row, field: str, low: float, high: float) -> float | None:
    """The score in ``field``, None for null, NaN or an empty cell. Raises `UserError` for one that is off the scale."""
    value = row.optional_number(field)
    if value is not None and not low <= value <= high:
        raise row.error(field, f"is {value:g}", f"give a number from {low:g} to {high:g}, or null if it is unreadable")
    return value


def require_field(row: Row, field: str, fix: str) -> None:
    """Raise `UserError` where ``row`` hasn't got the field at all; null is a value."""
    if field not in row.fields:
        present = ", ".join(map(str, row.fields)) or "none"
        raise row.error(field, "is missing", f"{fix} (fields here: {present})")


def require_known(row: Row, field: str, value: Hashable, known: Iterable[Hashable], what: str) -> None:
    """Raise `UserError` where ``value`` is not among ``known``."""
    if value not in set(known):
        raise row.error(
            field, f"{str(value)[:60]!r} is not in {what}", "give the file that was judged, or drop the row"
        )


def require_readable(counts: Mapping[str, int], source: str, what: str) -> None:
    """Raise `UserError` if no model has a readable row: ``counts`` by model. Nothing readable is no result."""
    if counts and not any(counts.values()):
        raise UserError(f"{source}: none of its rows has a readable {what}; fix: look at what the judge wrote")


def coverage_caveat(judged: int, expected: int, what: str) -> str | None:
    """The caveat of a partial result, None where all ``expected`` are judged."""
    return None if judged >= expected else f"partial: {judged} of {expected} {what}"
