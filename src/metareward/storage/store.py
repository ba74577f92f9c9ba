"""The records of finished prompts in one SQLite file; prompts that aren't in it are pending.

A prompt is one transaction, on disk before `put` returns (WAL, synchronous=FULL), so a kill or a full disk costs only
the prompts in flight. The fingerprint of the settings is stored beside the records, and a store made with other
settings is refused, so that one store never mixes two experiments.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from metareward.errors import UserError
from metareward.storage.atomic import flush_file, write_errors
from metareward.storage.lock import require_held
from metareward.storage.serialization import canonical_json, flatten

_LAYOUT = 1
_TABLES = (
    "CREATE TABLE fingerprint (field TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE record (key TEXT PRIMARY KEY, document TEXT NOT NULL)",
    "CREATE TABLE failure (key TEXT PRIMARY KEY, error TEXT NOT NULL)",
    f"PRAGMA user_version = {_LAYOUT}",
)

_CAUSES = {
    sqlite3.SQLITE_FULL: "the disk is full (finished prompts are kept); fix: free some space and run again",
    sqlite3.SQLITE_IOERR: "the disk fails, is full or is over a limit (finished prompts are kept); fix: make room",
    sqlite3.SQLITE_READONLY: "the file or its folder is read-only; fix: allow writing, or use another folder",
    sqlite3.SQLITE_PERM: "no right to open it; fix: allow reading and writing",
    sqlite3.SQLITE_CANTOPEN: "it can't be opened or made; fix: check that its folder exists and can be written",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; fix: restore it, or move it away to make its records again",
    sqlite3.SQLITE_NOTADB: "this is no record store; fix: move it away to make its records again",
    sqlite3.SQLITE_BUSY: "another process is writing to it; fix: wait for that process to end",
}


class RecordStore:
    """Documents by key, with the fingerprint of the settings that made them. For one thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def open(cls, path: Path, fingerprint: Mapping[str, object], create: bool = True) -> RecordStore:
        """Open the store at ``path`` for reading and writing; ``create`` it if it doesn't exist.

        ``fingerprint`` holds JSON values; nested mappings count field by field (``answers.temperature``).
        Raises `UserError` when the store has another fingerprint (naming every field that differs, old -> new),
        or can't be read or written.
        """
        return cls(path, _connect(path, "rwc" if create else "rw", fingerprint))

    @classmethod
    def read(cls, path: Path, immutable: bool = False) -> RecordStore:
        """Open the store at ``path`` read-only, also while a run writes to it or on a read-only disk.

        To read a store, SQLite makes index files (``-wal``, ``-shm``) beside it. ``immutable``: not where there is no
        write-ahead log, so no run is writing; for short reads, as they miss what a run that starts meanwhile writes.
        Raises `UserError` when there is none or it can't be read.
        """
        return cls(path, _connect(path, "immutable" if immutable else "ro"))

    def put(self, key: str, document: str) -> None:
        """Store ``document``, which is on disk when this returns. An existing key keeps its first document.

        Raises `UserError` when the disk is full or can't be written; earlier documents are kept.
        """
        with _transaction(self._connection, self.path):
            self._connection.execute("INSERT INTO record VALUES (?, ?) ON CONFLICT DO NOTHING", (key, document))
            self._connection.execute("DELETE FROM failure WHERE key = ?", (key,))

    def put_failure(self, key: str, error: str) -> None:
        """Store why ``key`` has no document yet. A later `put` of the key removes the failure."""
        with _transaction(self._connection, self.path):
            self._connection.execute("INSERT OR REPLACE INTO failure VALUES (?, ?)", (key, error))

    def keys(self) -> set[str]:
        """The keys of all documents."""
        return {key for key, _ in self._pairs("SELECT key, '' FROM record")}

    def get(self, key: str) -> str | None:
        """The document of ``key``, or None."""
        return dict(self._pairs("SELECT key, document FROM record WHERE key = ?", key)).get(key)

    def documents(self) -> Iterator[tuple[str, str]]:
        """Every (key, document) in the order of the keys, one in memory at a time."""
        yield from self._pairs("SELECT key, document FROM record ORDER BY key")

    def documents_after(self, row: int, limit: int) -> Iterator[tuple[int, str, str]]:
        """(row, key, document) of the ``limit`` documents stored after ``row``, in the order of their storing."""
        query = "SELECT rowid, key, document FROM record WHERE rowid > ? ORDER BY rowid LIMIT ?"
        with _user_errors(self.path):
            yield from self._connection.execute(query, (row, limit))

    def extent(self) -> tuple[int, int]:
        """The number of documents and the row of the last one; 0, 0 for an empty store."""
        with _user_errors(self.path):
            count, last = self._connection.execute("SELECT COUNT(*), MAX(rowid) FROM record").fetchone()
        return int(count), int(last or 0)

    def failures(self) -> dict[str, str]:
        """Keys that failed and have no document yet, with their errors."""
        return dict(self._pairs("SELECT key, error FROM failure ORDER BY key"))

    def differences(self, fingerprint: Mapping[str, object]) -> dict[str, tuple[str | None, str | None]]:
        """The fields of which ``fingerprint`` has other values than the store: (the store's, its own) as JSON text."""
        with _user_errors(self.path):
            return _differences(self._connection, fingerprint)

    def field(self, name: str) -> object:
        """One field of the store's fingerprint; None if it has none of this name."""
        found = dict(self._pairs("SELECT field, value FROM fingerprint WHERE field = ?", name)).get(name)
        return None if found is None else json.loads(found)

    def close(self) -> None:
        """Close the file. Stored documents are safe without it."""
        self._connection.close()

    def __enter__(self) -> RecordStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pairs(self, query: str, *values: str) -> Iterator[tuple[str, str]]:
        with _user_errors(self.path):
            yield from self._connection.execute(query, values)


def has_records(path: Path) -> bool:
    """Whether the store at ``path`` holds a document; one that can't be read counts as if it did."""
    try:
        with RecordStore.read(path) as store:
            return bool(store.keys())
    except UserError:
        return True


def snapshot(path: Path, target: Path) -> None:
    """Copy the database at ``path`` as it is at one moment, also while a run writes to it; ``target`` appears whole.

    Raises `UserError` when it can't be read or written.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
    try:
        with closing(_connect(path, "ro")) as source, _user_errors(target), closing(sqlite3.connect(temporary)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
        with write_errors(target):
            flush_file(temporary)
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _user_errors(path: Path) -> Iterator[None]:
    """Turn SQLite disk and file errors into `UserError`; let programming errors through."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        # Errors of the sqlite3 module itself have no code: text that isn't UTF-8 is damage, else a bug.
        fallback = sqlite3.SQLITE_CORRUPT if isinstance(error, sqlite3.OperationalError) else 0
        cause = _CAUSES.get(getattr(error, "sqlite_errorcode", fallback) & 0xFF)
        if cause is None:
            raise
        raise UserError(f"{path}: {cause} ({error})") from error


@contextmanager
def _transaction(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    with _user_errors(path):
        require_held(path)
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            require_held(path)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk has ended it already
                connection.execute("ROLLBACK")
            raise


def _connect(path: Path, mode: str, settings: Mapping[str, object] | None = None) -> sqlite3.Connection:
    """Open a database and check its layout; ``settings``: create its tables, or compare them with its fingerprint."""
    if mode != "rwc" and not path.is_file():
        raise UserError(f"{path}: there are no records here; fix: make them first, or name another run folder")
    # To read, SQLite writes a shared index beside the file. Where it can't, or shouldn't, a store that was closed
    # properly (without a write-ahead log) can be read as an immutable file.
    log = path.with_name(f"{path.name}-wal")
    if mode == "immutable":
        mode = "ro&immutable=1" if not log.exists() or log.stat().st_size == 0 else "ro"
    elif mode == "ro" and not os.access(path.parent, os.W_OK) and not log.exists():
        mode = "ro&immutable=1"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    with _user_errors(path):
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10)
        try:
            if settings is None:
                _check_layout(connection, path)
            else:
                _prepare(connection, path, settings)
        except BaseException:
            connection.close()
            raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, settings: Mapping[str, object]) -> None:
    """Create the tables in a new file; compare the fingerprint of an existing one."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    with _transaction(connection, path):
        if connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
            for statement in _TABLES:
                connection.execute(statement)
            connection.executemany("INSERT INTO fingerprint VALUES (?, ?)", sorted(_as_stored(settings).items()))
            return
        _check_layout(connection, path)
        changed = _differences(connection, settings)
        if changed:
            changes = ", ".join(f"{field} {_shown(old)} -> {_shown(new)}" for field, (old, new) in changed.items())
            raise UserError(
                f"{path}: the records here were made with other settings: {changes}; "
                "fix: put the old settings back, or start a run with another name"
            )


def _as_stored(settings: Mapping[str, object]) -> dict[str, str]:
    return {field: canonical_json(value) for field, value in flatten(settings).items()}


def _differences(
    connection: sqlite3.Connection, settings: Mapping[str, object]
) -> dict[str, tuple[str | None, str | None]]:
    old, new = dict(connection.execute("SELECT field, value FROM fingerprint")), _as_stored(settings)
    fields = sorted(field for field in old.keys() | new.keys() if old.get(field) != new.get(field))
    return {field: (old.get(field), new.get(field)) for field in fields}


def _check_layout(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `UserError` for a database that isn't a record store of this layout."""
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    if layout == 0:
        raise UserError(f"{path}: this is no record store; fix: move it away, or name another run folder")
    if layout != _LAYOUT:
        raise UserError(f"{path}: made by another version (layout {layout}, here {_LAYOUT}); fix: use that version")


def _shown(value: str | None) -> str:
    """A value for an error line; a long one is cut and gets its digest, so that different ones look different."""
    if value is None:
        return "(absent)"
    text = json.dumps(json.loads(value), ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:40]}… (sha256 {hashlib.sha256(text.encode()).hexdigest()[:8]})"
