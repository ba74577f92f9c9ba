"""A folder that appears whole or not at all: filled under another name beside its place, then renamed.

What a killed run left under the other name is thrown away by the next one, unless that one takes it up again.
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
    """``content`` becomes the folder, ``scratch`` is thrown away; both are there.

    What lies in ``kept`` outlives a failure, with the ``content`` so far; success throws it away.
    """

    content: Path
    scratch: Path
    kept: Path


def workshop(place: Path) -> NewFolder:
    """Where the folder for ``place`` is made."""
    folder = place.with_name(f".{place.name}.unfinished")
    return NewFolder(folder / "content", folder / "scratch", folder / "kept")


@contextmanager
def new_folder(place: Path, resume: bool = False) -> Iterator[NewFolder]:
    """Give a folder to fill; when the block ends well it is at ``place``, where nothing may be yet.

    It is empty, unless what an earlier one has left is to be ``resume``d. Raises `UserError` when it can't be made.
    """
    new = workshop(place)
    whole = new.content.parent
    shutil.rmtree(new.scratch if resume else whole, ignore_errors=True)
    try:
        _make(new, place)
        yield new
        flush_folder(new.content)
        new.content.rename(place)
        _flush_one(place.parent)
        shutil.rmtree(whole, ignore_errors=True)
    finally:
        left = new.kept.is_dir() and any(new.kept.iterdir())
        shutil.rmtree(new.scratch if left else whole, ignore_errors=True)


def _make(new: NewFolder, place: Path) -> None:
    try:
        for folder in (new.content, new.scratch, new.kept):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{place.parent}: can't be written: {error.strerror}; fix: free space or rights") from None


def flush_folder(folder: Path) -> None:
    """Make what lies in ``folder`` last through a power cut, before something says that it is complete."""
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
