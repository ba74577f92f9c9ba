"""Files and folders that appear whole or not at all: written under a temporary name, flushed to disk, renamed.

A killed process leaves temporary files behind; `remove_stale_temporaries` deletes them at the next start.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from metareward.errors import UserError
from metareward.storage.lock import require_held

_LARGE = 1 << 20  # bytes
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp(-journal|-wal|-shm)?")


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` about writing ``path`` (full disk, no permission) into a `UserError` of one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{path}: can't be written: {reason}; fix: free space or rights, then run again") from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write ``content`` (text as UTF-8, line ends unchanged) to ``path``: a crash leaves the old file or the new one.

    Creates the parent folder. Raises `UserError` when the disk is full or read-only, and in a run folder that this
    process has locked and that was removed or replaced; the old file stays.
    """
    require_held(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            require_held(path)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush_file(path.parent)


def remove_stale_temporaries(folder: Path) -> None:
    """Delete the temporary files that killed processes left of `write_atomic` under ``folder``.

    A file is kept while the process whose id is in its name may be writing it: one that began before the file was
    last written. Process ids are reused.
    """
    for path in folder.rglob(".*.tmp*"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or not path.is_file():
            continue
        began = _began(int(found[1]))
        if int(found[1]) == os.getpid() or began is None or began > path.stat().st_mtime + 1:
            path.unlink(missing_ok=True)


def _began(process: int) -> float | None:
    """When the process of this id began, in seconds since the epoch; None if there is none."""
    try:
        ticks = int(Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[19])
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except (OSError, ValueError, StopIteration):
        return None
    return int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class AtomicDir:
    """The parts of a folder under construction: ``content`` becomes the folder, ``scratch`` is deleted.

    What lies in ``resume`` survives a failure, together with the ``content`` so far; success deletes it.
    """

    content: Path
    scratch: Path
    resume: Path

    @classmethod
    def beside(cls, target: Path) -> AtomicDir:
        """Where the folder for ``target`` is built."""
        folder = target.with_name(f".{target.name}.unfinished")
        return cls(folder / "content", folder / "scratch", folder / "kept")


@contextmanager
def atomic_dir(target: Path, resume: bool = False) -> Iterator[AtomicDir]:
    """Yield empty folders to fill; when the block succeeds, ``content`` is renamed to ``target``, which must not exist.

    With ``resume`` the content that an interrupted process left is kept. Raises `UserError` when the folders can't be
    created.
    """
    require_held(target)
    parts = AtomicDir.beside(target)
    whole = parts.content.parent
    shutil.rmtree(parts.scratch if resume else whole, ignore_errors=True)
    try:
        with write_errors(target.parent):
            for folder in (parts.content, parts.scratch, parts.resume):
                folder.mkdir(parents=True, exist_ok=True)
        yield parts
        flush_dir(parts.content)
        require_held(target)
        parts.content.rename(target)
        flush_file(target.parent)
        shutil.rmtree(whole, ignore_errors=True)
    finally:
        resumable = parts.resume.is_dir() and any(parts.resume.iterdir())
        shutil.rmtree(parts.scratch if resumable else whole, ignore_errors=True)


def copy_dir(folder: Path, target: Path, texts: Mapping[str, str]) -> None:
    """Copy a finished model folder, with other ``texts`` of some files; large files are hard links where possible.

    A model's files are never written again, so the links can't change either folder; deleting one leaves the other.
    """
    with write_errors(target), atomic_dir(target) as parts:
        shutil.copytree(folder, parts.content, copy_function=_link_or_copy, dirs_exist_ok=True)
        for name, text in texts.items():
            (parts.content / name).unlink(missing_ok=True)
            (parts.content / name).write_text(text, encoding="utf-8")


def _link_or_copy(source: str, target: str) -> None:
    if Path(source).stat().st_size >= _LARGE:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system, or one without links
    shutil.copyfile(source, target)


def flush_dir(folder: Path) -> None:
    """Flush every file in ``folder`` to disk, so that a marker written afterwards can be trusted after a power cut."""
    for path in folder.rglob("*"):
        if path.is_file():
            flush_file(path)
    flush_file(folder)


def flush_file(path: Path) -> None:
    """Flush a file or folder to disk."""
    if os.name != "posix" and path.is_dir():  # Windows can't open folders, and doesn't need the call
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
