"""The manifest of a run folder: a digest of every artefact that is complete, compared before the artefact is used.

An artefact is recorded when it is complete, and the manifest is replaced atomically, so it never names what isn't there
yet. A recorded file that is about to change is taken out first (`changing`): a kill in between leaves it unrecorded,
and the next start records it. A record store is recorded by its content, whatever SQLite does with its pages.

What a check costs: small files are hashed each time. Of files of `LARGE` bytes or more, and of stores, size and time of
the last change are compared, and the content only if they differ; before a model is used, and by ``metareward verify``,
all of it is read, once a process (`metareward.storage.custody.digest`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from metareward.errors import UserError
from metareward.storage.atomic import write_atomic
from metareward.storage.custody import digest, weights_deleted
from metareward.storage.run_dir import RunDir
from metareward.storage.serialization import fingerprint_of
from metareward.storage.store import RecordStore, add_checksums

LARGE = 1 << 20  # bytes
STORE = ".sqlite"
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@checked_dataclass(frozen=True)
class Entry:
    """What one file was when it was complete. ``sha256``: of a store the digest of its content.

    ``made_from``: of the pairs' summary the digest of the records that the pairs were built from.
    """

    sha256: _Sha256
    size: int
    mtime_ns: int
    made_from: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the file ``name`` isn't the one that was recorded; ``missing``: it isn't there."""

    name: str
    reason: str
    missing: bool = False


Entries = Mapping[str, Entry]
_ENTRIES = TypeAdapter(dict[str, Entry])


def has_manifest(run: RunDir) -> bool:
    """Whether artefacts are recorded here. Not in folders without a run, nor in those of earlier versions."""
    return run.manifest.is_file()


def read_manifest(run: RunDir, copy: bool = False) -> dict[str, Entry]:
    """The entries by the files' names, relative to the run folder; empty without a manifest. ``copy``: of its copy.

    Raises `UserError` when the manifest is damaged, or is gone from a run that had one.
    """
    path, fix = run.manifest_copy if copy else run.manifest, f"metareward verify {run.path} --repair"
    try:
        content = json.loads(path.read_bytes())
        found = _ENTRIES.validate_python(content["artefacts"])
        whole = content["sha256"] == fingerprint_of(content["artefacts"])
    except FileNotFoundError:
        if run.is_recorded() or run.manifest.is_file() or run.manifest_copy.is_file():
            raise UserError(f"{path}: missing, so nothing here can be checked; fix: restore it, or {fix}") from None
        return {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError, ValidationError) as error:
        raise UserError(f"{path}: can't be read ({type(error).__name__}); fix: {fix}") from None
    inside = all(not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts for name in found)
    if not whole or not inside:
        raise UserError(f"{path}: damaged: its own checksum is another one; fix: {fix}")
    return found


def write_manifest(run: RunDir, entries: Entries) -> None:
    """Replace the manifest."""
    content = {name: asdict(entry) for name, entry in sorted(entries.items())}
    text = json.dumps({"artefacts": content, "sha256": digest_of(entries)}, indent=1) + "\n"
    for path in (run.manifest, run.manifest_copy):
        write_atomic(path, text)


def digest_of(entries: Entries) -> str:
    """64 hex digits over all entries."""
    return fingerprint_of({name: asdict(entry) for name, entry in entries.items()})


def create(run: RunDir, planned: Mapping[Path, str]) -> None:
    """Begin a manifest: of what is complete, and of the files ``planned``, with their texts, that come next."""
    entries = {}
    for path, text in planned.items():
        content = text.encode()
        entries[path.relative_to(run.path).as_posix()] = Entry(hashlib.sha256(content).hexdigest(), len(content), 0)
    write_manifest(run, entries)
    record_complete(run)


def record_complete(run: RunDir) -> None:
    """Record what is complete and isn't recorded: because of a kill just before, or of an earlier version's run.

    Begins the manifest in a run of an earlier version.
    """
    before, found = read_manifest(run), dict[str, Entry]()
    for name in _names(run, _complete(run)):
        if name not in before:
            if name.endswith(STORE):
                add_checksums(run.path / name)
            found[name] = entry_of(run.path / name)
    for name, entry in found.items():
        if name.endswith("/pairs/summary.json"):
            records = (before | found).get(name.replace("pairs/summary.json", "records.sqlite"))
            found[name] = replace(entry, made_from=records.sha256 if records else "")
    if found or not has_manifest(run):
        write_manifest(run, before | found)


def bring_up_to_date(run: RunDir) -> None:
    """At a start: record what is complete, forget what is gone and made again, and note the times of copied files."""
    entries = read_manifest(run)
    forget(run, *(run.path / name for name in entries if not (run.path / name).is_file()))
    record_complete(run)
    _note_times(run)


def _complete(run: RunDir) -> Iterator[Path]:
    """The files and folders that are complete by their marks."""
    yield from (run.recipe, run.inputs, run.environment, run.resolved, run.fork, run.judge_check, run.judge_health)
    for t in iterations(run):
        folder, path = run.iteration(t), run.iteration(t).path
        yield from (folder.prompts, folder.seconds, folder.done)
        yield from (folder.model, path / f"{folder.model.name}-epochs", path / "reference")
        if folder.model.is_dir():
            yield path / "training.jsonl"
        if folder.summary.is_file():
            yield from (folder.dropped, folder.summary.parent)
            if not made_again(run, t):
                yield folder.records
        if (folder.evaluation / "model.json").is_file():
            yield from (folder.evaluation / "model.json", folder.evaluation / "records.sqlite")
        for result in sorted(folder.evaluation.glob("*/result.json")):
            yield result.parent
        for epoch in sorted(folder.evaluation.glob("epoch-*.json")):
            yield from (epoch, epoch.with_suffix(STORE))
    yield run.verdicts


def iterations(run: RunDir) -> list[int]:
    """The iterations that have a folder, in order."""
    found = (path.name.removeprefix("iter-") for path in run.path.glob("iter-*"))
    return sorted(int(each) for each in found if each.isdecimal())


def pairs_made_from(run: RunDir, t: int) -> str:
    """The digest of the records that iteration ``t``'s pairs were built from, empty if it isn't known."""
    entry = read_manifest(run).get(run.iteration(t).summary.relative_to(run.path).as_posix())
    return "" if entry is None else entry.made_from


def made_again(run: RunDir, t: int) -> bool:
    """Whether iteration ``t`` has pairs, and a part of its records was deleted since to be made again."""
    entries, folder = read_manifest(run), run.iteration(t)
    summary, records = (path.relative_to(run.path).as_posix() for path in (folder.summary, folder.records))
    return summary in entries and records not in entries


def record(run: RunDir, *paths: Path, made_from: str = "") -> None:
    """Record files, stores and whole folders as complete; what isn't there is left out. Nothing without a manifest."""
    if not has_manifest(run):
        return
    before = read_manifest(run)
    found = {name: entry_of(run.path / name, made_from) for name in _names(run, paths)}
    if found.items() - before.items():
        write_manifest(run, before | found)


def forget(run: RunDir, *paths: Path) -> None:
    """Take files, or all of a folder, out of the manifest: they are about to change, or are gone on purpose."""
    if not has_manifest(run):
        return
    before, prefixes = read_manifest(run), [path.relative_to(run.path).as_posix() for path in paths]
    left = {n: each for n, each in before.items() if not any(n == p or n.startswith(f"{p}/") for p in prefixes)}
    if left != before:
        write_manifest(run, left)


@contextmanager
def changing(run: RunDir, *paths: Path) -> Iterator[None]:
    """Files or folders that this context changes: not recorded inside it, recorded anew when it ends well."""
    forget(run, *paths)
    yield
    record(run, *paths)


def entry_of(path: Path, made_from: str = "") -> Entry:
    """The entry of a file or a store as it is now. Raises `UserError` when it can't be read."""
    stat = path.stat()
    return Entry(_content(path), stat.st_size, stat.st_mtime_ns, made_from)


def _content(path: Path) -> str:
    if path.suffix != STORE:
        return digest(path)
    with RecordStore.read(path, immutable=True) as store:
        return store.content_digest()


def _names(run: RunDir, paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and not file.name.endswith(("-wal", "-shm", "-journal", ".tmp")):
                yield file.relative_to(run.path).as_posix()


# --- checks ---


def problem_of(run: RunDir, name: str, entry: Entry, quick: bool = False) -> Problem | None:
    """Why a file isn't the one that was recorded, None if it is. ``quick``: by size and time where it is large."""
    path = run.path / name
    try:
        stat = path.stat()
        wal = path.with_name(f"{path.name}-wal")
        written = wal.is_file() and wal.stat().st_size > 0
    except OSError:
        if path.suffix == ".safetensors" and weights_deleted(path.parent):
            return None
        return Problem(name, "is missing", missing=True)
    if path.suffix != STORE and stat.st_size != entry.size:
        return Problem(name, f"has {stat.st_size:,} bytes, not {entry.size:,}")
    same = (stat.st_size, stat.st_mtime_ns) == (entry.size, entry.mtime_ns) and not written
    if quick and same and (path.suffix == STORE or stat.st_size >= LARGE):
        return None
    try:
        if _content(path) == entry.sha256:
            return None
    except UserError as error:
        return Problem(name, str(error))
    return Problem(name, "has another content than when it was made")


def quick_problems(run: RunDir) -> list[Problem]:
    """What a start finds wrong with the recorded files, at the cost of reading the small ones."""
    found = (problem_of(run, name, entry, quick=True) for name, entry in read_manifest(run).items())
    return [each for each in found if each is not None]


def _note_times(run: RunDir) -> None:
    """Record the times of large files that are whole but were copied, so that no later start reads them again."""
    before = read_manifest(run)
    now = dict(before)
    for name, entry in before.items():
        path = run.path / name
        copied = path.is_file() and (stat := path.stat()).st_mtime_ns != entry.mtime_ns
        if copied and problem_of(run, name, entry) is None:
            now[name] = replace(entry, size=stat.st_size, mtime_ns=stat.st_mtime_ns)
    if now != before:
        write_manifest(run, now)


def require_whole(run: RunDir, *paths: Path) -> None:
    """Raise `UserError` unless the files, or all files of the folders, are those that were recorded.

    Reads all of them, once a process. What isn't recorded isn't checked.
    """
    entries, prefixes = read_manifest(run), [path.relative_to(run.path).as_posix() for path in paths]
    for name, entry in entries.items():
        if any(name == prefix or name.startswith(f"{prefix}/") for prefix in prefixes):
            problem = problem_of(run, name, entry)
            if problem is not None:
                raise damage_error(run, [problem])


def damage_error(run: RunDir, problems: list[Problem]) -> UserError:
    """The error for files that aren't those that were recorded."""
    first, more = problems[0], f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
    return UserError(
        f"{run.path / first.name}: {first.reason}{more}; fix: restore it from a copy, or run "
        f"metareward verify {run.path} --repair, which says what has to be made again"
    )
