"""The layout of a run folder, its lock (`FolderLock`), and the done marks of iterations.

    runs/<name>/  recipe.yaml  resolved.json  environment.json  manifest.json  lock  log.jsonl  judge_check.json
                  judge_health.json  report.html  verdicts/  annotations.jsonl
      iter-<t>/   prompts.jsonl  records.sqlite  pairs/  dropped.jsonl  model/  eval/  done.json

Iteration 0 holds only the evaluation of the model the run starts from.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from metareward.errors import UserError
from metareward.storage.atomic import remove_stale_temporaries, write_atomic, write_errors
from metareward.storage.lock import FolderLock, is_locked
from metareward.types import PairKind


@dataclass(frozen=True, slots=True)
class _Inside:
    """A class attribute that is the path ``name`` inside the folder of an `IterationDir` or a `RunDir`."""

    name: str

    def __get__(self, folder: IterationDir | RunDir, _: object = None) -> Path:
        return folder.path / self.name


@dataclass(frozen=True, slots=True)
class IterationDir:
    """The files of one iteration."""

    path: Path
    prompts = _Inside("prompts.jsonl")  # the prompts chosen for this iteration
    records = _Inside("records.sqlite")  # the store of finished prompts
    earlier = _Inside("earlier.sqlite")  # of a fork: its parent's records, of which it takes the answers
    summary = _Inside("pairs/summary.json")  # counts, position weights and judge health of the pairs
    dropped = _Inside("dropped.jsonl")  # the prompts that gave no pair, with reasons
    model = _Inside("model")  # the trained model, a Hugging Face folder
    evaluation = _Inside("eval")  # the folder of evaluation results
    seconds = _Inside("seconds.json")  # seconds by stage
    done = _Inside("done.json")  # the done mark, written last

    def pairs(self, kind: PairKind) -> Path:
        """The preference pairs of one kind."""
        return self.path / "pairs" / f"{kind}.parquet"


@dataclass(frozen=True, slots=True)
class RunDir:
    """The files of a run folder; nothing on disk is touched."""

    path: Path
    recipe = _Inside("recipe.yaml")  # the recipe as the user gave it
    inputs = _Inside("inputs.json")  # the digests of what the recipe only names: models, rubrics, imported objects
    resolved = _Inside("resolved.json")  # the recipe with every default filled in
    environment = _Inside("environment.json")  # versions and machine
    manifest = _Inside("manifest.json")  # the digests of all that is complete
    manifest_copy = _Inside("manifest.copy.json")  # the same, for when the manifest itself is damaged
    fork = _Inside("fork.json")  # of a fork: the run that it comes from, and what it has taken over
    judge_check = _Inside("judge_check.json")  # the judge on labelled pairs, before iteration 1
    judge_health = _Inside("judge_health.json")  # the results of the gates on judge health
    log = _Inside("log.jsonl")  # the run's events, one JSON object a line
    report = _Inside("report.html")
    verdicts = _Inside("verdicts")  # what judges beside the model said, for all models of the run
    annotations = _Inside("annotations.jsonl")  # what people judged in `metareward view`
    _holder = _Inside("lock.json")  # the process that holds the lock

    def iteration(self, t: int) -> IterationDir:
        """The files of iteration ``t``."""
        return IterationDir(self.path / f"iter-{t}")

    def require(self) -> None:
        """Raise `UserError` unless a run has begun here, by a version with the same layout of run folders."""
        if not self.resolved.is_file():
            why = f"{self.resolved.name} is missing" if self.path.is_dir() else "there is no such folder"
            raise UserError(f"{self.path}: this is no run folder ({why}); fix: name one, such as runs/NAME")
        layout = _read_object(self.environment).get("layout", LAYOUT)
        if layout not in (_UNRECORDED, LAYOUT):
            raise UserError(
                f"{self.path}: a run folder of layout {layout}, and this version has layout {LAYOUT}"
                f"{self.other_version()}"
            )

    def is_recorded(self) -> bool:
        """Whether this run has begun with a manifest, which must be there then."""
        return self.resolved.is_file() and _read_object(self.environment).get("layout") == LAYOUT

    def name(self) -> str:
        """The run's name. Raises `UserError` when its stored recipe can't be read."""
        name = _read_object(self.resolved).get("name")
        if not isinstance(name, str):
            raise UserError(f"{self.resolved}: can't be read, or names no run; fix: restore it")
        return name

    def other_version(self) -> str:
        """Half a sentence that names the version that made this run, empty if it is this one or unknown."""
        packages = _read_object(self.environment).get("packages")
        made = packages.get("metareward") if isinstance(packages, dict) else None
        if made in (None, package_version("metareward")):
            return ""
        return (
            f"; the run was begun by metareward {made}, this is {package_version('metareward')}; fix: use that version"
        )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for this process, creating it if needed, and delete temporary files of killed processes.

        The operating system holds the lock: it is released when this process ends in any way, and child processes
        don't inherit it. Raises `UserError` naming the process that holds the lock, and when the folder is removed or
        replaced meanwhile, whatever error that has led to.
        """
        with write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(self.path)
            if not lock.acquire():
                holder = _read_holder(self._holder)
                raise UserError(f"{self.path}: {holder} is running here; fix: wait for it or stop it")
        try:
            with write_errors(self.path):
                lock.hold()
            remove_stale_temporaries(self.path)
            write_atomic(self._holder, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            yield
        except BaseException as error:
            if lost := lock.lost():
                raise UserError(lost) from error
            raise
        finally:
            lock.remove(self._holder.name)
            lock.release()

    def holder(self) -> str | None:
        """The process that holds the lock (``process 12 on host``), or None.

        The holder's file survives a kill, so the lock is tested by taking it for a moment.
        """
        return _read_holder(self._holder) if is_locked(self.path) else None


LAYOUT = 2  # of run folders, part of environment.json: another number means that this version can't read the folder
_UNRECORDED = 1  # the layout without a manifest: read as it is; the next start writes one


def _read_holder(path: Path) -> str:
    """The process named in the holder's file, which is missing for a moment after the lock is taken."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def package_version(package: str) -> str | None:
    """The installed version of a package, None if it isn't installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file; empty if there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def mark_done(path: Path, payload: Mapping[str, object]) -> None:
    """Write the mark that everything before it is complete; a later run compares its ``payload``."""
    write_atomic(path, json.dumps(payload, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_done(path: Path) -> dict[str, object] | None:
    """The payload of the mark at ``path``, or None if there is no mark. Raises `UserError` for an unreadable one."""
    try:
        payload = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable done mark ({error}); fix: delete it to repeat the step") from None
    if not isinstance(payload, dict):
        raise UserError(f"{path}: not a done mark; fix: delete it to repeat the step")
    return payload
