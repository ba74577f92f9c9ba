"""What was put is safe: from other settings, from a kill, from a full disk, from damage."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from metareward.errors import UserError
from metareward.storage.store import RecordStore

SETTINGS = {"k": 4, "answers": {"temperature": 0.8, "top_p": 0.95}, "rubric": "judge"}


def filled(path: Path, count: int = 3) -> Path:
    with RecordStore.open(path, SETTINGS) as store:
        for number in range(count):
            store.put(f"p{number}", f"document {number}")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


def test_documents_come_back_in_the_order_of_keys(path: Path) -> None:
    with RecordStore.open(path, SETTINGS) as store:
        for key in ("b", "é", "a", "Z", "a\u2028", ""):
            store.put(key, f"<{key}>\n\x00\u2028")
        expected = [(key, f"<{key}>\n\x00\u2028") for key in sorted(("b", "é", "a", "Z", "a\u2028", ""))]
        assert list(store.documents()) == expected
        assert store.keys() == {key for key, _ in expected}
        assert store.get("é") == "<é>\n\x00\u2028"
        assert store.get("nobody") is None


def test_a_key_keeps_its_first_document(path: Path) -> None:
    with RecordStore.open(path, SETTINGS) as store:
        store.put("a", "first")
        store.put("a", "second")
        assert list(store.documents()) == [("a", "first")]


def test_documents_outlive_the_store(path: Path) -> None:
    filled(path)
    with RecordStore.open(path, SETTINGS, create=False) as store:
        assert store.keys() == {"p0", "p1", "p2"}


def test_every_put_is_flushed_to_the_disk(path: Path) -> None:
    with RecordStore.open(path, SETTINGS) as store:
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_other_settings_are_refused_field_by_field(path: Path) -> None:
    filled(path)
    other = {"k": 7, "answers": {"temperature": 0.8, "top_p": 1.0}, "seed": 1}
    with pytest.raises(UserError) as caught:
        RecordStore.open(path, other)
    line = str(caught.value)
    assert 'answers.top_p 0.95 -> 1.0, k 4 -> 7, rubric "judge" -> (absent), seed (absent) -> 1; fix:' in line
    assert line.startswith(str(path)) and "\n" not in line
    with RecordStore.open(path, SETTINGS) as store:
        assert len(store.keys()) == 3


def test_long_settings_that_differ_look_different(path: Path) -> None:
    RecordStore.open(path, {"text": "x" * 500 + "a"}).close()
    with pytest.raises(UserError) as caught:
        RecordStore.open(path, {"text": "x" * 500 + "b"})
    old, new = str(caught.value).split("text ")[1].split(";")[0].split(" -> ")
    assert old != new
    assert len(str(caught.value)) < 400 + len(str(path))


def test_the_order_of_settings_does_not_count(path: Path) -> None:
    filled(path)
    RecordStore.open(path, dict(reversed(SETTINGS.items()))).close()


def test_a_failure_is_noted_until_the_document_comes(path: Path) -> None:
    with RecordStore.open(path, SETTINGS) as store:
        store.put_failure("a", "too long")
        store.put_failure("a", "still too long")
        store.put_failure("b", "no")
        assert store.failures() == {"a": "still too long", "b": "no"}
        store.put("a", "document")
        assert store.failures() == {"b": "no"}
        assert store.keys() == {"a"}


def test_without_create_a_missing_store_is_an_error(path: Path) -> None:
    with pytest.raises(UserError, match="there are no records here"):
        RecordStore.open(path, SETTINGS, create=False)
    with pytest.raises(UserError, match="there are no records here"):
        RecordStore.read(path)
    assert not path.exists()


def test_reading_goes_on_beside_a_writer(path: Path) -> None:
    with RecordStore.open(path, SETTINGS) as writer, RecordStore.open(path, SETTINGS) as _:
        writer.put("a", "1")
        with RecordStore.read(path) as reader:
            assert reader.keys() == {"a"}
            writer.put("b", "2")
            assert reader.keys() == {"a", "b"}
            with pytest.raises(UserError, match="read-only"):
                reader.put("c", "3")


def test_a_name_with_special_characters(tmp_path: Path) -> None:
    path = filled(tmp_path / "50 % off? #1 é.sqlite")
    with RecordStore.read(path) as store:
        assert len(store.keys()) == 3


@pytest.mark.parametrize("opened", [lambda path: RecordStore.open(path, SETTINGS), RecordStore.read])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"This is a letter, not a database. " * 200, "no record store"),
        (b"SQLite format 3\0" + b"\xff" * 9000, "damaged|no record store"),
    ],
)
def test_another_file_is_refused_and_left_alone(path: Path, opened: object, content: bytes, expected: str) -> None:
    path.write_bytes(content)
    assert callable(opened)
    with pytest.raises(UserError, match=expected) as caught:
        opened(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_another_database_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE shopping (item)")
    connection.commit()
    connection.close()
    with pytest.raises(UserError, match="no record store"):
        RecordStore.open(path, SETTINGS)


def test_a_store_of_another_version_is_refused(path: Path) -> None:
    filled(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(UserError, match="made by another version"):
        RecordStore.open(path, SETTINGS)


def test_a_damaged_store_says_so(path: Path) -> None:
    filled(path, 400)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged") as caught, RecordStore.open(path, SETTINGS) as store:
        list(store.documents())
    assert "\n" not in str(caught.value)


def test_a_cut_store_says_so(path: Path) -> None:
    filled(path, 400)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged"), RecordStore.open(path, SETTINGS) as store:
        list(store.documents())


def test_a_folder_that_is_missing_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be opened"):
        RecordStore.open(tmp_path / "nowhere" / "records.sqlite", SETTINGS)
    with pytest.raises(UserError, match="can't be opened"):
        RecordStore.open(tmp_path, SETTINGS)


def test_our_own_mistakes_are_not_told_as_the_users(path: Path) -> None:
    store = RecordStore.open(path, SETTINGS)
    store.close()
    with pytest.raises(sqlite3.ProgrammingError):
        store.put("a", "1")


FILL = """
import resource, sys
from pathlib import Path
from metareward.errors import UserError
from metareward.storage.store import RecordStore

path, limit = Path(sys.argv[1]), int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
kept = 0
store = RecordStore.open(path, {"k": 1})
try:
    while kept < 2000:
        store.put(f"{kept:04d}", "x" * 3000)
        kept += 1
except UserError as error:
    print(kept, error, sep="\\n")
assert [key for key, _ in store.documents()] == [f"{number:04d}" for number in range(kept)]
"""


def test_a_size_limit_stops_in_one_line_and_loses_nothing(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FILL, path, "300000"], capture_output=True, text=True, check=True)
    kept, error = done.stdout.splitlines()
    assert int(kept) > 10
    assert "over a limit" in error and str(path) in error
    with RecordStore.open(path, {"k": 1}) as store:
        assert {key: len(text) for key, text in store.documents()} == {f"{n:04d}": 3000 for n in range(int(kept))}
        store.put("later", "goes on")


FULL = (
    FILL
    + """
from metareward.storage.atomic import write_atomic
note = path.with_name("note.txt")
path.with_name("filler").unlink()
write_atomic(note, "old")
with open(path.with_name("filler"), "wb", buffering=0) as filler:
    try:
        while filler.write(b"x" * 4096):
            pass
    except OSError:
        pass
try:
    write_atomic(note, "new" * 100000)
except UserError as error:
    print(error)
assert note.read_text() == "old"
assert sorted(file.name for file in note.parent.iterdir() if file.suffix == ".tmp") == []
path.with_name("filler").unlink()
store.put("later", "goes on")
store.close()
assert len(RecordStore.open(path, {"k": 1}).keys()) == kept + 1
"""
)

MAKE = """
import sys
from pathlib import Path
from metareward.storage.store import RecordStore
with RecordStore.open(Path(sys.argv[1]), {"k": 1}) as store:
    store.put("a", "1")
"""

READ_ONLY = """
import sys
from pathlib import Path
from metareward.errors import UserError
from metareward.storage.atomic import write_atomic
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore

path = Path(sys.argv[1])
with RecordStore.read(path) as store:
    print(len(store.keys()))
for work in (
    lambda: RecordStore.open(path, {"k": 1}),
    lambda: RecordStore.open(path.with_name("new.sqlite"), {"k": 1}),
    lambda: write_atomic(path.with_name("note.txt"), "new"),
    lambda: RunDir(path.parent).lock().__enter__(),
    lambda: RunDir(path.parent / "new").lock().__enter__(),
):
    try:
        work()
    except UserError as error:
        print(error)
"""


def own_disk(folder: Path, script: str) -> list[str]:
    """Run shell lines with a small disk of their own at ``folder``, or skip where that isn't allowed."""
    folder.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    probe = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True)
    if probe.returncode:
        pytest.skip("mounting is not allowed here")
    lines = f'set -e; mount -t tmpfs -o size=1m tmpfs "$DISK"; {script}'
    environment = os.environ | {
        "DISK": str(folder),
        "PYTHON": sys.executable,
        "FULL": FULL,
        "READ_ONLY": READ_ONLY,
        "MAKE": MAKE,
    }
    done = subprocess.run(["unshare", "-rm", "sh", "-c", lines], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_full_disk_stops_in_one_line_and_loses_nothing(tmp_path: Path) -> None:
    fill = 'head -c 300000 /dev/zero > "$DISK/filler"'
    kept, put, atomic = own_disk(tmp_path / "disk", f'{fill}; "$PYTHON" -c "$FULL" "$DISK/records.sqlite" 0')
    assert int(kept) > 10
    assert "the disk is full (finished prompts are kept); fix:" in put
    assert "note.txt: can't be written: No space left on device; fix:" in atomic


def test_a_read_only_disk_can_be_read_and_refuses_the_rest(tmp_path: Path) -> None:
    script = '"$PYTHON" -c "$MAKE" "$DISK/records.sqlite"; mount -o remount,ro "$DISK"'
    count, *errors = own_disk(tmp_path / "disk", f'{script}; "$PYTHON" -c "$READ_ONLY" "$DISK/records.sqlite"')
    assert count == "1"
    assert len(errors) == 5
    assert all(
        "records.sqlite: it can't be opened" in error or "new.sqlite: it can't be" in error for error in errors[:2]
    )
    assert all("Read-only file system; fix:" in error for error in errors[2:])


WRITE = """
import sys
from pathlib import Path
from metareward.storage.store import RecordStore
store = RecordStore.open(Path(sys.argv[1]), {"k": 1})
for number in range(10**6):
    store.put(f"{number:06d}", "x" * 3000)
    print(number, flush=True)
"""


def test_a_killed_writer_loses_nothing_it_was_told_is_kept(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITE, path], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told = [next(writer.stdout) for _ in range(60)]
        writer.kill()
        told += writer.stdout.readlines()
    with RecordStore.read(path) as store:
        documents = dict(store.documents())
    whole = [line for line in told if line.endswith("\n")]
    assert set(documents) >= {f"{int(number):06d}" for number in whole}
    assert len(documents) <= len(told) + 1
    assert set(documents.values()) == {"x" * 3000}
