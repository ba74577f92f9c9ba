"""Files and folders that a kill, a full disk or a read-only disk leaves whole."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metareward.errors import UserError
from metareward.storage.atomic import AtomicDir, atomic_dir, remove_stale_temporaries, write_atomic


def test_write_atomic_writes_text_unchanged_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "note.txt"
    write_atomic(path, "é\r\n\u2028\n")
    assert path.read_bytes() == "é\r\n\u2028\n".encode()
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [file.name for file in path.parent.iterdir()] == ["note.txt"]


def test_write_atomic_gives_the_permissions_of_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_atomic(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_refused_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    write_atomic(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"note.txt: can't be written: File too large; fix:"):
            write_atomic(path, "new" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]


REWRITE = """
import sys
from pathlib import Path
from metareward.storage.atomic import write_atomic
for number in range(10**6):
    write_atomic(Path(sys.argv[1]), str(number % 10) * 1_000_000)
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    for lines in (2, 3, 5):
        with subprocess.Popen([sys.executable, "-c", REWRITE, path], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(lines):
                writer.stdout.readline()
            time.sleep(0.002 * lines)
            writer.kill()
        text = path.read_text()
        assert len(text) == 1_000_000 and len(set(text)) == 1


def test_stale_temporary_files_are_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in (".hidden", "a.tmp", ".a.x.tmp", "iter-1/.notes.tmp")]
    kept.append(tmp_path / f".report.html.{os.getppid()}.tmp")  # of a living process
    stale = [tmp_path / f"iter-1/pairs/.actor.parquet.{2**30}.tmp", tmp_path / f".recipe.yaml.{os.getpid()}.tmp"]
    for path in (*kept, *stale):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    remove_stale_temporaries(tmp_path)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in stale)


def test_an_atomic_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def interrupted(resume: bool) -> None:
        with atomic_dir(target, resume) as parts:
            (parts.content / "weights").write_text("half")
            (parts.scratch / "notes").write_text("")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted(resume=False)
    assert list(tmp_path.iterdir()) == []
    with atomic_dir(target) as parts:
        (parts.content / "weights").write_text("all")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (target / "weights").read_text() == "all"


def test_an_atomic_folder_with_a_resume_state_survives_a_failure(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def interrupted() -> None:
        with atomic_dir(target) as parts:
            (parts.content / "weights").write_text("half")
            (parts.scratch / "notes").write_text("")
            (parts.resume / "step-1").write_text("")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert not AtomicDir.beside(target).scratch.exists()
    with atomic_dir(target, resume=True) as parts:
        assert (parts.content / "weights").read_text() == "half"
        assert (parts.resume / "step-1").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_atomic_folder_that_cannot_be_created_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: can't be written"), atomic_dir(tmp_path / "file" / "model"):
        pass
