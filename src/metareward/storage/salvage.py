"""What is left of a damaged record store: a new one with every record that is still what was stored.

A page that can't be read costs the records on it. The first page holds SQLite's header and the names of the tables,
which are the same in every store, so a damaged first page is taken from a new store and costs nothing.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing, suppress
from pathlib import Path

from metareward.errors import UserError
from metareward.storage.atomic import flush_file, write_errors
from metareward.storage.store import DamagedError, RecordStore, as_stored, checksum, create_tables, store_errors

_PAGE = 4096  # SQLite's default
_PAGES = slice(28, 32)  # in the header: how many pages the file has


def salvage(path: Path, dropped: Collection[str], settings: Mapping[str, object] | None = None) -> int:
    """Replace a damaged store by a new one with the records that are what was stored, without ``dropped``.

    ``settings``: those that made the records, for a store that no longer says it; without them such a store is deleted.
    Returns how many records there are.
    """
    target, mended = (path.with_name(f".{path.name}.{part}.{os.getpid()}.tmp") for part in ("new", "first"))
    kept = None
    try:
        with suppress(UserError):
            kept = _copy_sound(path, target, dropped, settings)
        if not kept:
            with suppress(UserError):
                _replace_first_page(path, mended)
                kept = _copy_sound(mended, target, dropped, settings)
        with write_errors(path):
            for suffix in ("-wal", "-shm", "-journal"):  # they belong to the damaged file
                path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
            if kept is None:
                path.unlink(missing_ok=True)
                return 0
            flush_file(target)
            target.replace(path)
    finally:
        for temporary in (target, mended):
            for suffix in ("", "-wal", "-shm", "-journal"):
                temporary.with_name(f"{temporary.name}{suffix}").unlink(missing_ok=True)
    return kept


def _copy_sound(path: Path, target: Path, dropped: Collection[str], settings: Mapping[str, object] | None) -> int:
    """A new store at ``target`` with the sound records of the one at ``path``; how many there are."""
    target.unlink(missing_ok=True)
    with (
        RecordStore.read(path) as store,
        store_errors(target),
        closing(sqlite3.connect(target, isolation_level=None)) as connection,
    ):
        try:
            fingerprint = store.fingerprint()
        except DamagedError:
            if settings is None:
                raise
            fingerprint = as_stored(settings)
        failures, kept = dict[str, str](), 0
        with suppress(DamagedError):
            failures = store.failures()
        connection.execute("BEGIN")
        create_tables(connection, fingerprint)
        for key, document in store.sound_documents():
            if key not in dropped:
                row = (key, checksum(key, document), document)
                kept += connection.execute("INSERT INTO record VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row).rowcount
        connection.executemany("INSERT OR REPLACE INTO failure VALUES (?, ?)", failures.items())
        connection.execute("COMMIT")
    return kept


def _replace_first_page(path: Path, target: Path) -> None:
    """A copy of the store at ``path`` with the first page of a new one."""
    with store_errors(target), closing(sqlite3.connect(target, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        create_tables(connection, {})
        connection.execute("COMMIT")
    with write_errors(target):
        first = bytearray(target.read_bytes()[:_PAGE])
        first[_PAGES] = (path.stat().st_size // _PAGE).to_bytes(4, "big")
        shutil.copyfile(path, target)
        with target.open("r+b") as file:
            file.write(first)
