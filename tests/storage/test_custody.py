"""Digests: what they depend on, and that a file is read once as long as it stays the same."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metareward.errors import UserError
from metareward.storage.custody import digest, fingerprint_model, known_digests, model_ref, remember


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text(f"content of {name}")
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"])
def test_what_makes_the_model_changes_its_fingerprint(model: Path, name: str) -> None:
    before = fingerprint_model(model)
    assert before == fingerprint_model(model)
    (model / name).write_text("changed")
    assert fingerprint_model(model) != before


@pytest.mark.parametrize("name", ["lineage.json", "README.md"])
def test_what_describes_the_model_does_not(model: Path, name: str) -> None:
    before = fingerprint_model(model)
    (model / name).write_text("anything")
    assert fingerprint_model(model) == before


@pytest.mark.parametrize(
    ("name", "message"), [("config.json", "no model here"), ("model.safetensors", "no safetensors")]
)
def test_no_model(model: Path, name: str, message: str) -> None:
    (model / name).unlink()
    with pytest.raises(UserError, match=message):
        fingerprint_model(model)


def test_a_reference_has_a_relative_path(model: Path) -> None:
    found = model_ref(model, model.parent / "run" / "model")
    assert (found.path, found.sha256) == (f"../../{model.name}", fingerprint_model(model))


_IN_CLOSE_NOWRITE = 0x10
_INOTIFY_EVENT = struct.Struct("iIII")
ReadsSoFar = Callable[[], list[str]]


@pytest.fixture
def reads(tmp_path: Path) -> Iterator[ReadsSoFar]:
    """Tells which files of a folder were read until now, by inotify. An audit hook would slow all later tests down."""
    if sys.platform != "linux":
        pytest.skip("needs inotify")
    libc, names = ctypes.CDLL(None, use_errno=True), list[str]()
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    assert descriptor >= 0 and libc.inotify_add_watch(descriptor, os.fsencode(tmp_path), _IN_CLOSE_NOWRITE) >= 0

    def so_far() -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while events := os.read(descriptor, 1 << 16):
                while events:
                    *_, size = _INOTIFY_EVENT.unpack_from(events)
                    name = events[_INOTIFY_EVENT.size :][:size].rstrip(b"\0").decode()
                    names.extend([name] if name else [])  # without a name: the folder itself
                    events = events[_INOTIFY_EVENT.size + size :]
        return names

    yield so_far
    os.close(descriptor)


def settle() -> None:
    """Let the last change lie back further than a tick of the file system's clock."""
    time.sleep(0.1)


def test_a_file_is_read_once(model: Path, reads: ReadsSoFar) -> None:
    settle()
    first = fingerprint_model(model)
    assert sorted(reads()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert {fingerprint_model(model) for _ in range(18)} == {first}
    assert len(reads()) == 3
    renamed = model.rename(model.with_name(f"{model.name}-renamed"))
    assert fingerprint_model(renamed) == first
    assert len(reads()) == 3
    renamed.rename(model)


def test_one_changed_byte_is_noticed(model: Path, reads: ReadsSoFar) -> None:
    settle()
    before = fingerprint_model(model)
    weights = model / "model.safetensors"
    with weights.open("r+b") as file:
        file.write(b"C")
    assert fingerprint_model(model) != before
    assert reads().count("model.safetensors") == 2
    assert reads().count("config.json") == 1


@pytest.mark.skipif(os.name != "posix", reason="Windows has no time of the last change of an inode")
def test_a_change_with_the_same_size_and_modification_time_is_noticed(model: Path) -> None:
    settle()
    weights = model / "model.safetensors"
    before, times = digest(weights), weights.stat()
    with weights.open("r+b") as file:
        file.write(b"C")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert digest(weights) == hashlib.sha256(weights.read_bytes()).hexdigest() != before


def test_a_digest_is_never_that_of_other_content(tmp_path: Path) -> None:
    """Changes within a tick of the clock, of equal size: the times may be equal, so these aren't remembered."""
    path = tmp_path / "config.json"
    for number in range(300):
        content = f"{number:04d}".encode()
        path.write_bytes(content)
        assert digest(path) == hashlib.sha256(content).hexdigest()


def test_a_child_process_takes_over_what_is_still_true(model: Path, reads: ReadsSoFar) -> None:
    settle()
    fingerprint_model(model)
    known = known_digests([model, model, model / "nowhere"])
    assert len(known) == 3
    remember(known)
    fingerprint_model(model)
    assert len(reads()) == 3
    (model / "config.json").write_text("changed")
    assert len(known_digests([model])) == 2
