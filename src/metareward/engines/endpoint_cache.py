"""What servers have answered, kept so that a paid request is never paid twice.

One row a request: its digest, and the choices that came. A row is on the disk before its completions are handed on.
Neither prompts nor addresses nor keys are in it. The model counts by its name: another model under the same name needs
another folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from metareward.engines.endpoint_request import ChatRequest
from metareward.errors import UserError
from metareward.storage.store import RecordStore
from metareward.types import Completion

FILE = "replies.sqlite"
_CHOICES = TypeAdapter(tuple[Completion, ...])


class ReplyCache:
    """The choices of requests answered before. For one thread; several processes may share the file."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store

    @classmethod
    def open(cls, folder: Path) -> ReplyCache:
        """The cache in ``folder``, both made if they aren't there. Raises `UserError` naming what can't be used."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cache: {folder} is no folder ({error.strerror}); fix: name another one") from error
        return cls(RecordStore.open(folder / FILE, {"content": "replies of chat servers"}))

    def get(self, request: ChatRequest) -> tuple[Completion, ...]:
        """The choices kept for this request, perhaps fewer than it asks for; none when it was never answered."""
        document = self._store.get(request.digest)
        return () if document is None else _CHOICES.validate_python(json.loads(document))

    def put(self, request: ChatRequest, choices: Sequence[Completion]) -> None:
        """Keep ``choices`` for good. Raises `UserError` when the disk is full or can't be written."""
        self._store.put(request.digest, json.dumps(_CHOICES.dump_python(tuple(choices))))

    def close(self) -> None:
        """Close the file."""
        self._store.close()
