"""What runs in a replica's actor: it fetches the model, opens the engine, and answers. Errors are values, not pickles.

With weights from the object store each node writes the model's files once, into a folder for temporary files that is
named by the model's fingerprint; a model that no replica uses any more is deleted when the next one is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from metareward.engines.base import Engine, EngineError, LogprobsUnavailableError
from metareward.errors import UserError
from metareward.storage.custody import digest, fingerprint_model, model_files
from metareward.types import Completion, Messages, ModelRole, Sampling

# Opens the engine on the model in a folder; the second path is for logs. It is pickled: all in it must be importable.
OpenEngine = Callable[[Path, Path], Awaitable[Engine]]
_CHUNK_BYTES = 1 << 28
_ERRORS: dict[str, type[Exception]] = {
    each.__name__: each for each in (EngineError, LogprobsUnavailableError, UserError)
}


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of the model; ``chunks``: references to its bytes in the object store, none if the nodes share files."""

    name: str
    size: int
    sha256: str = ""
    chunks: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a node finds the model: in ``folder``, or in the object store if there is a ``fingerprint``.

    Without ``files`` the engine needs none (kind openai).
    """

    folder: Path
    files: tuple[ModelFile, ...] = ()
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """Completions, or the ``error`` of this kind with its ``text``; and the warnings logged since the last reply.

    The reply to `ReplicaActor.open` has the node's name as ``text``.
    """

    completions: tuple[Completion, ...] = ()
    error: str = ""
    text: str = ""
    warnings: tuple[str, ...] = ()

    def result(self) -> Sequence[Completion]:
        """The completions. Raises the error that the engine raised."""
        if self.error:
            raise _ERRORS[self.error](self.text)
        return self.completions


def put_model(folder: Path, weights: Literal["shared", "object_store"], put: Callable[[bytes], Any]) -> ModelSource:
    """The model in ``folder`` for other nodes; with weights from the object store ``put`` gets all files in chunks."""
    files = model_files(folder)
    if weights == "shared":
        return ModelSource(folder.absolute(), tuple(ModelFile(path.name, path.stat().st_size) for path in files))
    fingerprint, stored = fingerprint_model(folder), []
    for path in files:
        with path.open("rb") as file:
            chunks = tuple(put(chunk) for chunk in iter(lambda file=file: file.read(_CHUNK_BYTES), b""))  # type: ignore[misc]
        stored.append(ModelFile(path.name, path.stat().st_size, digest(path), chunks))
    return ModelSource(folder.absolute(), tuple(stored), fingerprint)


def require_same_files(model: ModelSource) -> None:
    """Raise `UserError` unless this node sees the files of the model, by name and size."""
    fix = "fix: keep it on storage that all nodes share, or set engine.weights to object_store"
    if not model.folder.is_dir():
        raise UserError(f"{model.folder}: no such model folder; {fix}")
    found = {path.name: path.stat().st_size for path in model_files(model.folder)}
    if found != {each.name: each.size for each in model.files}:
        raise UserError(f"{model.folder}: its files differ from those on the machine of the run; {fix}")


def fetch_model(model: ModelSource, get: Callable[[Any], bytes], root: Path) -> tuple[Path, IO[bytes]]:
    """The model's folder below ``root`` on this node, written unless it is there, and the lock that keeps it.

    Raises `UserError` for a full disk, and for files whose digest is wrong.
    """
    import fcntl

    root.mkdir(parents=True, exist_ok=True)
    folder, unfinished = root / model.fingerprint, root / f"{model.fingerprint}.part"
    with (root / "write.lock").open("ab") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        lock = (root / f"{model.fingerprint}.lock").open("ab")
        fcntl.flock(lock, fcntl.LOCK_SH)
        if folder.is_dir():
            return folder, lock
        _delete_unused(root)
        try:
            unfinished.mkdir()
            for each in model.files:
                _write(unfinished / each.name, each, get)
            unfinished.rename(folder)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            fix = "fix: make room there, or set TMPDIR where the node's Ray starts"
            raise UserError(f"{root}: the model can't be written: {error.strerror}; {fix}") from None
    return folder, lock


def _write(path: Path, source: ModelFile, get: Callable[[Any], bytes]) -> None:
    found = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in source.chunks:
            data = get(chunk)
            found.update(data)
            file.write(data)
    if found.hexdigest() != source.sha256:
        raise UserError(f"{source.name} arrived damaged on {socket.gethostname()}; fix: run again")


def _delete_unused(root: Path) -> None:
    """Delete models that no process holds, and what a killed one left unfinished. Only one process writes at a time."""
    import fcntl

    for folder in [path for path in root.iterdir() if path.is_dir()]:
        lock = root / f"{folder.name}.lock"
        with lock.open("ab") as held, contextlib.suppress(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink()


class _KeepWarnings(logging.Handler):
    """Keeps warnings until a reply takes them along."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage())

    def take(self) -> tuple[str, ...]:
        taken, self.kept = tuple(self.kept), []
        return taken


class ReplicaActor:
    """A Ray actor that holds one engine."""

    def __init__(self, model: ModelSource, open_engine: OpenEngine, directory: str) -> None:
        # Relative paths of the recipe are relative to the run's working directory, if it exists on this machine.
        with contextlib.suppress(OSError):
            os.chdir(directory)
        self._model, self._open_engine = model, open_engine
        self._engine: Engine | None = None
        self._lock: IO[bytes] | None = None
        self._warnings = _KeepWarnings()
        logging.getLogger("metareward").addHandler(self._warnings)

    async def open(self) -> Reply:
        """Fetch the model and open the engine."""
        temporary = Path(tempfile.gettempdir())
        with self._as_reply() as reply:
            folder = await asyncio.to_thread(self._fetch, temporary / f"metareward-models-{os.getuid()}")
            logs = temporary / f"metareward-{os.getpid()}"
            self._engine = await self._open_engine(folder, logs)
        if reply:
            return replace(reply[0], text=f"{socket.gethostname()}: {reply[0].text}")
        return Reply(text=socket.gethostname(), warnings=self._warnings.take())

    async def complete(self, messages: Messages, sampling: Sampling, n: int, role: ModelRole) -> Reply:
        """The engine's completions, or its error."""
        assert self._engine is not None
        with self._as_reply() as reply:
            completions = await self._engine.complete(messages, sampling, n, role)
            return Reply(tuple(completions), warnings=self._warnings.take())
        return reply[0]

    async def outlast(self) -> Reply:
        """Never reply: that this call fails tells that the actor is gone, also while nothing else is asked."""
        await asyncio.Event().wait()
        return Reply()

    async def close(self) -> None:
        """Close the engine, which gives its memory back."""
        if self._engine is not None:
            await self._engine.aclose()

    def _fetch(self, root: Path) -> Path:
        if self._model.fingerprint:
            import ray

            folder, self._lock = fetch_model(self._model, ray.get, root)
            return folder
        if self._model.files:
            require_same_files(self._model)
        return self._model.folder

    @contextlib.contextmanager
    def _as_reply(self) -> Iterator[list[Reply]]:
        """Turn errors that the user is to see into a reply; others are bugs, which Ray reports with their traceback."""
        reply: list[Reply] = []
        try:
            yield reply
        except (EngineError, UserError) as error:
            kind = type(error).__name__ if type(error).__name__ in _ERRORS else "EngineError"
            reply.append(Reply(error=kind, text=str(error), warnings=self._warnings.take()))
