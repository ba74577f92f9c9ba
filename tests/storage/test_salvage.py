"""Damage of a store is noticed at the record, a damaged index hides none, and what is whole is kept."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from metareward.storage.salvage import salvage
from metareward.storage.store import DamagedError, RecordStore, add_checksums

SETTINGS = {"k": 4, "answers": {"temperature": 0.8}}
COUNT = 60
DOCUMENTS = {f"p{number:02d}": f"document {number} " * (1 + number * 20) for number in range(COUNT)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "records.sqlite"
    with RecordStore.open(path, SETTINGS) as store:
        for key in sorted(DOCUMENTS, reverse=True):
            store.put(key, DOCUMENTS[key])
        store.put_failure("bad", "does not fit")
    return path


def change(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def flip(path: Path, byte: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE record SET document = document || ' ' WHERE key = 'p07'",
        "UPDATE record SET document = CAST(x'ff' AS TEXT) WHERE key = 'p07'",
        "UPDATE record SET checksum = (SELECT checksum FROM record WHERE key = 'p08') WHERE key = 'p07'",
    ],
)
def test_a_changed_record_is_named_by_file_and_key_and_is_the_only_one(path: Path, statement: str) -> None:
    change(path, statement)
    with RecordStore.read(path) as store:
        for read in (lambda: list(store.documents()), lambda: store.get("p07")):
            with pytest.raises(
                DamagedError, match=r'records.sqlite: "p07": the record isn\'t what was stored'
            ) as caught:
                read()
            assert "\n" not in str(caught.value)
        assert [key for key, document in store.checked_documents() if document is None] == ["p07"]
        assert [key for _, key, document in store.documents_after(0, 100) if document is None] == ["p07"]
    assert salvage(path, ()) == COUNT - 1
    with RecordStore.open(path, SETTINGS) as store:
        assert dict(store.documents()) == {key: text for key, text in DOCUMENTS.items() if key != "p07"}
        assert store.failures() == {"bad": "does not fit"}


def test_a_renamed_record_is_another_one(path: Path) -> None:
    change(path, "UPDATE record SET key = 'q' WHERE key = 'p07'")
    with RecordStore.read(path) as store, pytest.raises(DamagedError, match='"q"'):
        list(store.documents())


def test_the_index_hides_no_record(path: Path) -> None:
    change(
        path,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET rootpage = "
        "(SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_failure_1') "
        "WHERE name = 'sqlite_autoindex_record_1'",
    )
    with RecordStore.read(path) as store:
        assert store.keys() == DOCUMENTS.keys()
        assert dict(store.documents()) == DOCUMENTS
        assert store.extent() == (COUNT, COUNT)
        assert store.problems()


def test_other_settings_than_those_stored_are_damage_not_a_change(path: Path) -> None:
    change(path, "UPDATE fingerprint SET value = '5' WHERE field = 'k'")
    with pytest.raises(DamagedError, match="the settings that made its records aren't those that were stored"):
        RecordStore.open(path, SETTINGS)
    assert salvage(path, (), SETTINGS) == COUNT
    with RecordStore.open(path, SETTINGS) as store:
        assert dict(store.documents()) == DOCUMENTS
    change(path, "UPDATE fingerprint SET value = '5' WHERE field = 'k'")
    assert salvage(path, ()) == 0
    assert not path.exists()


@pytest.mark.parametrize("byte", [0, 16, 21, 28, 47, 56, 60, 63, 100, 103, 107, 110, 4000])
def test_the_first_page_is_that_of_every_store(path: Path, byte: int) -> None:
    flip(path, byte, 1)
    assert salvage(path, (), SETTINGS) == COUNT
    with RecordStore.open(path, SETTINGS) as store:
        assert dict(store.documents()) == DOCUMENTS and not store.problems()


SEED = 1


def test_flipped_bits_lose_few_records_and_change_none(path: Path) -> None:
    whole, draw, kept = path.read_bytes(), random.Random(SEED), []
    for _ in range(40):
        path.write_bytes(whole)
        flip(path, draw.randrange(len(whole)), draw.randrange(8))
        kept.append(salvage(path, (), SETTINGS))
        with RecordStore.open(path, SETTINGS) as store:
            assert dict(store.documents()).items() <= DOCUMENTS.items()
            assert len(store.keys()) == kept[-1]
    print(SEED, sorted(kept))
    assert sorted(kept)[len(kept) // 4] >= COUNT - 2


def test_a_store_without_checksums_gets_them(path: Path) -> None:
    change(
        path,
        "CREATE TABLE old (key TEXT PRIMARY KEY, document TEXT NOT NULL)",
        "INSERT INTO old SELECT key, document FROM record ORDER BY rowid",
        "DROP TABLE record",
        "ALTER TABLE old RENAME TO record",
        "DROP TABLE fingerprint_checksum",
        "PRAGMA user_version = 1",
    )
    with RecordStore.read(path) as store:
        assert dict(store.documents()) == DOCUMENTS and not store.is_checked
        digest = store.content_digest()
    add_checksums(path)
    with RecordStore.open(path, SETTINGS) as store:
        assert dict(store.documents()) == DOCUMENTS and store.is_checked
        assert store.content_digest() != digest
        assert [key for _, key, _ in store.documents_after(0, 2)] == ["p59", "p58"]


def test_the_digest_is_that_of_the_content(path: Path, tmp_path: Path) -> None:
    with RecordStore.open(tmp_path / "other.sqlite", SETTINGS) as other, RecordStore.read(path) as store:
        for key, document in DOCUMENTS.items():
            assert other.content_digest() != store.content_digest()
            other.put(key, document)
        assert other.content_digest() == store.content_digest()
    with RecordStore.open(tmp_path / "third.sqlite", {**SETTINGS, "k": 5}) as third:
        for key, document in DOCUMENTS.items():
            third.put(key, document)
        with RecordStore.read(path) as store:
            assert third.content_digest() != store.content_digest()


def test_of_what_is_no_store_nothing_is_left(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)
    assert salvage(path, (), SETTINGS) == 0
    with RecordStore.open(path, SETTINGS) as store:
        assert store.keys() == set()
