"""A finished prompt as one JSON document, and back, exactly.

Readings and verdicts are told apart by their ``kind``; nothing is coerced, so a document that was changed by hand
into something else is refused instead of read as something near it.
"""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from metareward.errors import UserError
from metareward.types import PromptRecord

_RECORD = TypeAdapter(PromptRecord)


def to_json(record: PromptRecord) -> str:
    """``record`` as JSON text. Its texts must be whole Unicode (no lone surrogates), as `unit` makes sure."""
    return _RECORD.dump_json(record).decode()


def from_json(text: str) -> PromptRecord:
    """The record that `to_json` wrote as ``text``. Raises `UserError` naming the first field that doesn't fit."""
    try:
        return _RECORD.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"])) or "the document"
        raise UserError(
            f"record: field {field}: {first['msg']}; fix: delete the record to have it made again"
        ) from None
