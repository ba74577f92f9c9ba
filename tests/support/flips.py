"""Single bits flipped in the files of a run folder, as a disk does: no time changes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from metareward.errors import UserError
from metareward.pipeline.verify import Verification, verify
from metareward.storage import manifest
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore

# Nothing is read from these but lines for people: the log and the messages of a training, and locks.
LOGS = ("lock", "lock.json", "log.jsonl", "training.job.json", "training.stderr.txt")


@dataclass(frozen=True)
class Flip:
    """One bit of a file."""

    path: Path
    byte: int
    bit: int


def draw_flips(run: RunDir, seed: int, count: int) -> list[Flip]:
    """Random flips: half of them in a random file, half in a random byte of all files."""
    draw = random.Random(seed)
    paths = [path for path in sorted(run.path.rglob("*")) if path.is_file() and path.stat().st_size]
    sizes = [path.stat().st_size for path in paths]
    chosen = [draw.choice(paths) if number % 2 else draw.choices(paths, sizes)[0] for number in range(count)]
    return [Flip(path, draw.randrange(path.stat().st_size), draw.randrange(8)) for path in chosen]


@contextmanager
def flipped(flip: Flip) -> Iterator[None]:
    """The bit is flipped inside this context; SQLite's files beside it are put back, too."""
    beside = [flip.path.with_name(flip.path.name + suffix) for suffix in ("-wal", "-shm")]
    before = {path: path.read_bytes() if path.is_file() else None for path in (flip.path, *beside)}
    times = flip.path.stat()
    apply(flip)
    try:
        yield
    finally:
        for path, content in before.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)
        os.utime(flip.path, ns=(times.st_atime_ns, times.st_mtime_ns))


def apply(flip: Flip) -> None:
    """Flip the bit for good; the file keeps its time."""
    times = flip.path.stat()
    with flip.path.open("r+b") as file:
        file.seek(flip.byte)
        (value,) = file.read(1)
        file.seek(flip.byte)
        file.write(bytes([value ^ 1 << flip.bit]))
    os.utime(flip.path, ns=(times.st_atime_ns, times.st_mtime_ns))


Contents = dict[Path, tuple[dict[str, str], dict[str, str]]]


def contents(run: RunDir) -> Contents:
    """The fingerprint and the documents of every store."""
    found = {}
    for path in run.path.rglob("*.sqlite"):
        with RecordStore.read(path) as store:
            found[path] = store.fingerprint(), dict(store.documents())
    return found


def outcome(run: RunDir, flip: Flip, before: Contents) -> str:
    """``noticed``, or why the flip changes nothing that is used; raises `AssertionError` if it does."""
    with flipped(flip):
        found: Verification = verify(run)
        if found.findings:
            return "noticed"
        path = flip.path
        if path.name in LOGS or path.name.endswith("-shm"):
            return f"a log or lock: {path.name}"
        store = path.with_name(path.name.removesuffix("-wal"))
        assert store.suffix == ".sqlite", f"not noticed: {flip}"
        try:
            after = contents(run)[store]
        except UserError as error:
            raise AssertionError(f"not noticed: {flip}: {error}") from None
        recorded = store.relative_to(run.path).as_posix() in manifest.read_manifest(run)
        if after == before[store]:
            return "bytes of SQLite's pages that hold nothing"
        assert not recorded and after[0] == before[store][0], f"not noticed: {flip}"
        assert after[1].items() <= before[store][1].items(), f"not noticed: {flip}"
        return "a record that is lost and so made again"
