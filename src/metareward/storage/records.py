"""The record of an annotated prompt as JSON, and records read from a store."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import TypeAdapter, ValidationError

from metareward.errors import UserError
from metareward.storage.store import MEND, RecordStore
from metareward.types import PromptRecord

_RECORD = TypeAdapter(PromptRecord)


def record_to_json(record: PromptRecord) -> str:
    """``record`` as JSON text, without the rewards that are None; texts must not have lone surrogates."""
    unrewarded = {at: {"reward"} for at, each in enumerate(record.candidates_K) if each.reward is None}
    return _RECORD.dump_json(record, exclude={"candidates_K": unrewarded}).decode()


def record_from_json(text: str) -> PromptRecord:
    """The record of `record_to_json`, exactly. Raises `UserError` naming the first field that doesn't fit.

    Validation is strict: an edited document is refused, not coerced.
    """
    try:
        return _RECORD.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"])) or "the document"
        raise UserError(f"record: field {field}: {first['msg']}; fix: in a run folder {MEND}") from None


def find_record(store: RecordStore, prompt_id: str) -> PromptRecord | None:
    """The record of a prompt, None if there is none. Raises `UserError` naming the file, the prompt and the field."""
    document = store.get(prompt_id)
    return None if document is None else _read(store, prompt_id, document)


def read_records(store: RecordStore) -> Iterator[PromptRecord]:
    """All records in the order of their prompt ids. Raises `UserError` naming the file, the prompt and the field."""
    return (_read(store, prompt_id, document) for prompt_id, document in store.documents())


def _read(store: RecordStore, prompt_id: str, document: str) -> PromptRecord:
    try:
        return record_from_json(document)
    except UserError as error:
        raise UserError(f"{store.path}: {json.dumps(prompt_id)}: {error}") from None
