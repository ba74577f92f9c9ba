"""Digests of files and of model folders, also of one whose weights are deleted. A file is read once, and again only
after it has changed.

A model of 16 GB takes a minute to hash, and a run needs its digest many times. A file's digest is therefore remembered
with the file's identity: device, inode, size, and the times of its last change. Whatever changes the content changes
the identity, so a remembered digest is never that of other content; a file that was renamed keeps its digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from metareward.errors import UserError
from metareward.storage.atomic import write_atomic
from metareward.storage.lock import require_held

LINEAGE = "lineage.json"
_DELETED = "weights_deleted.json"  # in a model folder: the digest that it had, and why its weights are gone
_MODEL_FILES = frozenset({".json", ".safetensors", ".jinja", ".model", ".txt"})
# A file that changes twice within one tick of the file system's clock keeps its times. So a digest is remembered only
# once the last change lies back further than a tick: 10 ms in Linux, 2 s where times are whole seconds (FAT, old NFS).
_TICK_NS, _COARSE_TICK_NS = 50_000_000, 2_000_000_000
_SECOND_NS = 1_000_000_000

# The fix for a folder without a model.
NAME_A_MODEL = "fix: name a Hugging Face model folder, or make one with metareward model smollm2 or hub:OWNER/NAME"


@dataclass(frozen=True, slots=True)
class FileDigest:
    """The SHA-256 (64 hex digits) of the file with this identity; times are in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model folder and the digest of its files. In a lineage ``path`` is relative to the new model's folder."""

    path: str
    sha256: str


_Identity = tuple[int, int, int, int, int]
_known: dict[_Identity, str] = {}


def digest(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits. Raises `UserError` when it can't be read."""
    try:
        now, before = time.time_ns(), _identity(path)
        if before in _known:
            return _known[before]
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        last = max(before[3:])
        tick = _COARSE_TICK_NS if last % _SECOND_NS == 0 else _TICK_NS
        if _identity(path) == before and now - last > tick:  # a change after ``now`` would show in the file's times
            _known[before] = sha256
        return sha256
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}; fix: make it readable") from None


def _identity(path: Path) -> _Identity:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def known_digests(folders: Iterable[Path]) -> tuple[FileDigest, ...]:
    """The digests that this process remembers of the files in ``folders``, for a child process."""
    identities = [_identity(path) for folder in dict.fromkeys(folders) for path in model_files(folder)]
    return tuple(FileDigest(*each, _known[each]) for each in identities if each in _known)


def read_again() -> None:
    """Forget all cached digests, so that files are read again: a bit flipped on the disk changes no time."""
    _known.clear()


def remember(digests: Iterable[FileDigest]) -> None:
    """Take over digests that the parent process has computed."""
    for each in digests:
        _known[each.device, each.inode, each.size, each.mtime_ns, each.ctime_ns] = each.sha256


def model_files(folder: Path) -> list[Path]:
    """The files that a model consists of: configuration, tokenizer and weights, but neither README nor lineage."""
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.suffix in _MODEL_FILES)
    return sorted(path for path in files if path.name not in (LINEAGE, _DELETED))


def fingerprint_model(folder: Path) -> str:
    """64 hex digits over the configuration, tokenizer and weights of a Hugging Face folder, names and contents.

    `delete_weights` keeps it. Raises `UserError` when there is no model with safetensors weights in ``folder``.
    """
    if (deleted := _deleted(folder)) is not None:
        return deleted["sha256"]
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no model here (config.json is missing); {NAME_A_MODEL}")
    files = model_files(folder)
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"{folder}: no safetensors weights; fix: save the model with save_pretrained")
    return combined({path.name: digest(path) for path in files})


def combined(digests: Mapping[str, str]) -> str:
    """`fingerprint_model` from the digests of a model's files by name; other files of its folder don't count."""
    named = {name: each for name, each in digests.items() if Path(name).suffix in _MODEL_FILES}
    lines = (f"{name} {each}\n" for name, each in sorted(named.items()) if name not in (LINEAGE, _DELETED))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def delete_weights(folder: Path, why: str) -> bool:
    """Delete the weights of the model in ``folder``; its digest, configuration, lineage and adapter stay.

    Returns whether there were any. The digest is written first, so that it can be called again after a kill.
    """
    require_held(folder)
    weights = list(folder.glob("*.safetensors"))
    if weights and _deleted(folder) is None:
        write_atomic(folder / _DELETED, json.dumps({"sha256": fingerprint_model(folder), "why": why}) + "\n")
    for path in weights:
        path.unlink()
    return bool(weights)


def weights_deleted(folder: Path) -> bool:
    """Whether `delete_weights` has deleted this model's weights."""
    return (folder / _DELETED).is_file()


def require_weights(folder: Path) -> None:
    """Raise `UserError` if this model's weights have been deleted, with the reason."""
    if (deleted := _deleted(folder)) is not None:
        raise UserError(f"{folder}: its weights are deleted ({deleted['why']}); fix: name a model that has its weights")


def _deleted(folder: Path) -> dict[str, str] | None:
    """What `delete_weights` wrote in ``folder``, None if it wasn't called. Raises `UserError` for a damaged file."""
    path = folder / _DELETED
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
        return {"sha256": str(found["sha256"]), "why": str(found["why"])}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: can't be read ({error}); fix: restore it") from None


def model_ref(folder: Path, relative_to: Path) -> ModelRef:
    """``folder`` with its digest. The path is relative, so that a run folder can be moved as a whole."""
    return ModelRef(Path(os.path.relpath(folder, relative_to)).as_posix(), fingerprint_model(folder))
