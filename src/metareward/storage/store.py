"""The records of finished prompts in one SQLite file; prompts that aren't in it are pending.

A prompt is one transaction, on disk before `put` returns (WAL, synchronous=FULL), so a kill or a full disk costs only
the prompts in flight. The fingerprint of the settings is stored beside the records, and a store made with other
settings is refused, so that one store never mixes two experiments. Every record has a checksum, which is compared
whenever the record is read. Reading walks the table, not its index: a damaged index hides no record.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from metareward.errors import UserError
from metareward.storage.atomic import flush_file, write_errors
from metareward.storage.lock import require_held
from metareward.storage.serialization import canonical_json, flatten

_LAYOUT = 2
_UNCHECKED = 1  # the layout without checksums: read as it is, given checksums when it is opened for writing
_TABLES = (
    "CREATE TABLE fingerprint (field TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE record (key TEXT PRIMARY KEY, checksum TEXT NOT NULL, document TEXT NOT NULL)",
    "CREATE TABLE failure (key TEXT PRIMARY KEY, error TEXT NOT NULL)",
    "CREATE TABLE fingerprint_checksum (sha256 TEXT NOT NULL)",
    f"PRAGMA user_version = {_LAYOUT}",
)
_ADD_CHECKSUMS = (
    "ALTER TABLE record RENAME TO unchecked",
    _TABLES[1],
    "INSERT INTO record SELECT key, checksum(key, document), document FROM unchecked ORDER BY rowid",
    "DROP TABLE unchecked",
    *_TABLES[3:],
)
# Fields of fingerprints that earlier versions had no name for, with the values that they stood for, as JSON text.
_UNNAMED = {"judgments.reader_version": "1"}
MEND = "`metareward verify RUN --repair` has it made again"  # the fix for a damaged file of a run
_DAMAGED = f"the file is damaged; fix: restore it, or move it away to make its records again; in a run folder {MEND}"

_CAUSES = {
    sqlite3.SQLITE_FULL: "the disk is full (finished prompts are kept); fix: free some space and run again",
    sqlite3.SQLITE_IOERR: "the disk fails, is full or is over a limit (finished prompts are kept); fix: make room",
    sqlite3.SQLITE_READONLY: "the file or its folder is read-only; fix: allow writing, or use another folder",
    sqlite3.SQLITE_PERM: "no right to open it; fix: allow reading and writing",
    sqlite3.SQLITE_CANTOPEN: "it can't be opened or made; fix: check that its folder exists and can be written",
    sqlite3.SQLITE_NOTADB: f"this is no record store; fix: move it away to make its records again; in a run {MEND}",
    sqlite3.SQLITE_BUSY: "another process is writing to it; fix: wait for that process to end",
    # Every statement here is fixed, so what SQLite can't do with this file is due to the file.
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_ERROR: _DAMAGED,
    sqlite3.SQLITE_TOOBIG: _DAMAGED,
    sqlite3.SQLITE_NOMEM: _DAMAGED,
    sqlite3.SQLITE_CONSTRAINT: _DAMAGED,
    sqlite3.SQLITE_MISMATCH: _DAMAGED,
}


class DamagedError(UserError):
    """A store, or a record in it, that isn't what was stored; the text names the file and, of a record, the key."""


class RecordStore:
    """Documents by key, with the fingerprint of the settings that made them. For one thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        (layout,) = connection.execute("PRAGMA user_version").fetchone()
        self._layout = int(layout)

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
        row = (key, checksum(key, document), document)
        with _transaction(self._connection, self.path):
            self._connection.execute("INSERT INTO record VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row)
            self._connection.execute("DELETE FROM failure WHERE key = ?", (key,))

    def put_failure(self, key: str, error: str) -> None:
        """Store why ``key`` has no document yet. A later `put` of the key removes the failure."""
        with _transaction(self._connection, self.path):
            self._connection.execute("INSERT OR REPLACE INTO failure VALUES (?, ?)", (key, error))

    def keys(self) -> set[str]:
        """The keys of all documents."""
        return {key for _, key in self._places()}

    def get(self, key: str) -> str | None:
        """The document of ``key``, or None. Raises `DamagedError` for one that isn't what was stored."""
        rows = list(self._rows("WHERE key = ?", key))
        return None if not rows else self._sound(key, rows[0][2])

    def documents(self) -> Iterator[tuple[str, str]]:
        """Every (key, document) in the order of the keys, one in memory at a time.

        Raises `DamagedError` for one that isn't what was stored.
        """
        for key, document in self.checked_documents():
            yield key, self._sound(key, document)

    def checked_documents(self) -> Iterator[tuple[str, str | None]]:
        """The same, with None for a document that isn't what was stored, or that a key has a second time."""
        before = None
        for key, row in sorted((key, row) for row, key in self._places()):
            yield key, self._document_at(row, key) if key != before else None
            before = key

    def _document_at(self, row: int, key: str) -> str | None:
        try:
            return next((document for _, stored, document in self._rows("WHERE rowid = ?", row) if stored == key), None)
        except DamagedError:
            return None

    def documents_after(self, row: int, limit: int) -> Iterator[tuple[int, str, str | None]]:
        """(row, key, document) of the ``limit`` documents stored after ``row``, in the order of their storing.

        The document is None where it isn't what was stored.
        """
        return self._rows("WHERE rowid > ? ORDER BY rowid LIMIT ?", row, limit)

    def extent(self) -> tuple[int, int]:
        """The number of documents and the row of the last one; 0, 0 for an empty store."""
        with store_errors(self.path):
            query = "SELECT COUNT(*), MAX(rowid) FROM record NOT INDEXED"
            count, last = self._connection.execute(query).fetchone()
        return int(count), int(last or 0)

    def content_digest(self) -> str:
        """64 hex digits over the fingerprint, the keys and the checksums; of what was stored in any order.

        It reads no document: `checked_documents` tells whether the documents fit the checksums.
        """
        named = "CAST(checksum AS BLOB)" if self.is_checked else "NULL"
        query = f"SELECT CAST(key AS BLOB), {named} FROM record NOT INDEXED"
        content = hashlib.sha256(_fingerprint_digest(self.fingerprint()).encode())
        with store_errors(self.path):
            for key, stored in sorted((_text(key), _text(stored)) for key, stored in self._connection.execute(query)):
                content.update(f"{len(key)} {key} {stored}\n".encode())
        return content.hexdigest()

    def failures(self) -> dict[str, str]:
        """Keys that failed and have no document yet, with their errors."""
        return dict(self._pairs("SELECT key, error FROM failure ORDER BY key"))

    def differences(self, fingerprint: Mapping[str, object]) -> dict[str, tuple[str | None, str | None]]:
        """The fields of which ``fingerprint`` has other values than the store: (the store's, its own) as JSON text."""
        return _differences(self.fingerprint(), fingerprint)

    def field(self, name: str) -> object:
        """One field of the store's fingerprint; None if it has none of this name."""
        found = (_UNNAMED | self.fingerprint()).get(name)
        return None if found is None else json.loads(found)

    def problems(self) -> list[str]:
        """What SQLite's own check finds wrong with the file, a line each; empty for a sound one. Reads all of it."""
        with store_errors(self.path):
            found = [str(row[0]) for row in self._connection.execute("PRAGMA integrity_check(5)")]
        with self.path.open("rb") as file:
            versions = file.read(20)[18:]  # for writing and for reading: 1, or 2 with a write-ahead log
        if versions not in (b"\1\1", b"\2\2"):
            found = ["the file's header says that it can't be written"]
        return [] if found == ["ok"] else found

    def close(self) -> None:
        """Close the file. Stored documents are safe without it."""
        self._connection.close()

    def __enter__(self) -> RecordStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pairs(self, query: str, *values: str) -> Iterator[tuple[str, str]]:
        with store_errors(self.path):
            yield from self._connection.execute(query, values)

    @property
    def is_checked(self) -> bool:
        """Whether the records have checksums."""
        return self._layout > _UNCHECKED

    def _places(self) -> Iterator[tuple[int, str]]:
        """The row and the key of every record."""
        query = "SELECT rowid, CAST(key AS BLOB) FROM record NOT INDEXED"
        with store_errors(self.path):
            for row, key in self._connection.execute(query):
                yield row, _text(key)

    def _rows(self, where: str, *values: str | int) -> Iterator[tuple[int, str, str | None]]:
        """(row, key, document) of records; None for a document that its checksum doesn't fit."""
        stored = "CAST(checksum AS BLOB)" if self.is_checked else "NULL"
        query = f"SELECT rowid, CAST(key AS BLOB), {stored}, CAST(document AS BLOB) FROM record {where}"
        with store_errors(self.path):
            for row, key, expected, document in self._connection.execute(query, values):
                found, text = _text(key), _text(document)
                sound = not self.is_checked or _text(expected) == checksum(found, text)
                yield row, found, text if sound else None

    def sound_documents(self) -> Iterator[tuple[str, str]]:
        """(key, document) of the records that can be read and are what was stored, in the order of their storing."""
        rows = set[int]()
        for order in ("", " DESC"):  # from both ends, as a damaged page ends a walk
            with suppress(DamagedError), store_errors(self.path):
                for (row,) in self._connection.execute(f"SELECT rowid FROM record NOT INDEXED ORDER BY rowid{order}"):
                    rows.add(row)
        for row in sorted(rows):
            with suppress(DamagedError):
                yield from (
                    (key, text) for _, key, text in list(self._rows("WHERE rowid = ?", row)) if text is not None
                )

    def _sound(self, key: str, document: str | None) -> str:
        if document is None:
            raise DamagedError(
                f"{self.path}: {json.dumps(key)}: the record isn't what was stored: its checksum is another one; "
                f"fix: in a run folder {MEND}; elsewhere move the file away"
            )
        return document

    def fingerprint(self) -> dict[str, str]:
        """The fields of the fingerprint as JSON text. Raises `UserError` if they aren't those that were stored."""
        with store_errors(self.path):
            return _stored_fingerprint(self._connection, self.path)


def add_checksums(path: Path) -> None:
    """Give the records of a store of an earlier version their checksums, as they are now."""
    with RecordStore.read(path, immutable=True) as store:
        if store.is_checked:
            return
    with (
        store_errors(path),
        closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection,
        _transaction(connection, path),
    ):
        _add_checksums(connection)


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
        with closing(_connect(path, "ro")) as source, store_errors(target), closing(sqlite3.connect(temporary)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
        with write_errors(target):
            flush_file(temporary)
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def create_tables(connection: sqlite3.Connection, fingerprint: Mapping[str, str]) -> None:
    """Make the tables of a new store; ``fingerprint`` as `as_stored` gives it."""
    for statement in _TABLES:
        connection.execute(statement)
    connection.executemany("INSERT INTO fingerprint VALUES (?, ?)", sorted(fingerprint.items()))
    connection.execute("INSERT INTO fingerprint_checksum VALUES (?)", (_fingerprint_digest(fingerprint),))


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turn SQLite disk and file errors into `UserError`; let programming errors through."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        # Errors of the sqlite3 module itself have no code: text that isn't UTF-8 is damage, else a bug.
        fallback = sqlite3.SQLITE_CORRUPT if isinstance(error, sqlite3.OperationalError) else 0
        cause = _CAUSES.get(getattr(error, "sqlite_errorcode", fallback) & 0xFF)
        if cause is None:
            raise
        kind = DamagedError if cause in (_DAMAGED, _CAUSES[sqlite3.SQLITE_NOTADB]) else UserError
        raise kind(f"{path}: {cause} ({error})") from error


@contextmanager
def _transaction(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    with store_errors(path):
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
    with store_errors(path):
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
        (layout,) = connection.execute("PRAGMA user_version").fetchone()
        if layout == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
            create_tables(connection, as_stored(settings))
            return
        _check_layout(connection, path)
        if layout == _UNCHECKED:
            _add_checksums(connection)
        changed = _differences(_stored_fingerprint(connection, path), settings)
        if changed:
            changes = ", ".join(f"{field} {_shown(old)} -> {_shown(new)}" for field, (old, new) in changed.items())
            raise UserError(
                f"{path}: the records here were made with other settings: {changes}; "
                "fix: put the old settings back, or start a run with another name"
            )


def _add_checksums(connection: sqlite3.Connection) -> None:
    """Give the records of a store without checksums theirs, as they are."""
    connection.create_function("checksum", 2, checksum, deterministic=True)
    for statement in _ADD_CHECKSUMS:
        connection.execute(statement)
    stored = dict(connection.execute("SELECT field, value FROM fingerprint"))
    connection.execute("INSERT INTO fingerprint_checksum VALUES (?)", (_fingerprint_digest(stored),))


def checksum(key: str, document: str) -> str:
    """The checksum of a record, 64 hex digits."""
    return hashlib.sha256(f"{len(key)} {key} {document}".encode("utf-8", "surrogatepass")).hexdigest()


def as_stored(settings: Mapping[str, object]) -> dict[str, str]:
    """The fields of a fingerprint as JSON text."""
    return {field: canonical_json(value) for field, value in flatten(settings).items()}


def _stored_fingerprint(connection: sqlite3.Connection, path: Path) -> dict[str, str]:
    """The fields of a store's fingerprint as JSON text. Raises `UserError` if they aren't those that were stored."""
    query = "SELECT CAST(field AS BLOB), CAST(value AS BLOB) FROM fingerprint NOT INDEXED"
    found = {_text(field): _text(value) for field, value in connection.execute(query)}
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    if layout > _UNCHECKED:
        stored = [_text(row[0]) for row in connection.execute("SELECT CAST(sha256 AS BLOB) FROM fingerprint_checksum")]
        if stored != [_fingerprint_digest(found)]:
            raise DamagedError(f"{path}: the settings that made its records aren't those that were stored: {_DAMAGED}")
    return found


def _fingerprint_digest(stored: Mapping[str, str]) -> str:
    return hashlib.sha256(canonical_json(dict(stored)).encode()).hexdigest()


def _differences(old: Mapping[str, str], settings: Mapping[str, object]) -> dict[str, tuple[str | None, str | None]]:
    new = as_stored(settings)
    old = {field: value for field, value in _UNNAMED.items() if field in new} | dict(old)
    fields = sorted(field for field in old.keys() | new.keys() if old.get(field) != new.get(field))
    return {field: (old.get(field), new.get(field)) for field in fields}


def _text(stored: bytes | None) -> str:
    """Text as the file has it; what isn't UTF-8 is another text than the one that was stored."""
    return (stored or b"").decode("utf-8", "replace")


def _check_layout(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `UserError` for a database that isn't a record store of this layout."""
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    if layout == 0:
        raise UserError(f"{path}: this is no record store; fix: move it away, or name another run folder")
    if layout not in (_UNCHECKED, _LAYOUT):
        raise UserError(f"{path}: made by another version (layout {layout}, here {_LAYOUT}); fix: use that version")


def _shown(value: str | None) -> str:
    """A value for an error line; a long one is cut and gets its digest, so that different ones look different."""
    if value is None:
        return "(absent)"
    text = json.dumps(json.loads(value), ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:40]}… (sha256 {hashlib.sha256(text.encode()).hexdigest()[:8]})"
