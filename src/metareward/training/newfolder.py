"""A folder that appears whole or not at all: filled under another name beside its place, then renamed.

What a killed run left under the other name is thrown away by the next one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from metareward.errors import UserError


@dataclass(frozen=True, slots=True)
class NewFolder:
    """``content`` becomes the folder; ``scratch`` is thrown away. Both are there and empty."""

    content: Path
    scratch: Path


@contextmanager
def new_folder(place: Path) -> Iterator[NewFolder]:
    """Give a folder to fill; when the block ends well it is at ``place``, where nothing may be yet.

    Raises `UserError` when it can't be made there.
    """
    workshop = place.with_name(f".{place.name}.unfinished")
    shutil.rmtree(workshop, ignore_errors=True)
    new = NewFolder(workshop / "content", workshop / "scratch")
    try:
        _make(new, place)
        yield new
        _flush(new.content)
        new.content.rename(place)
        _flush_one(place.parent)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _make(new: NewFolder, place: Path) -> None:
    try:
        new.content.mkdir(parents=True)
        new.scratch.mkdir()
    except OSError as error:
        raise UserError(f"{place.parent}: can't be written: {error.strerror}; fix: free space or rights") from None


def _flush(folder: Path) -> None:
    """Make the content last through a power cut before the rename says that it is complete."""
    for path in folder.rglob("*"):
        if path.is_file():
            _flush_one(path)
    _flush_one(folder)


def _flush_one(path: Path) -> None:
    if os.name != "posix" and path.is_dir():  # Windows can't open folders, and needs no such call
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
