"""The next model's weights for a vLLM that is running, so that it isn't started for every model.

Between the models vLLM sleeps on GPUs (level 2: weights and KV cache are dropped), which leaves their memory to
training. Then every worker reads the new files, checks their SHA-256 against the run's, and loads the tensors from
those same bytes; the prefix cache is emptied. A probe must then give other log-probabilities than before. Whatever
differs or fails is a `ReloadError`, after which vLLM is started again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from metareward.engines.base import EngineError
from metareward.errors import UserError
from metareward.storage.custody import digest, model_files
from metareward.types import Completion, Message, Messages, Sampling

_INDEX = "model.safetensors.index.json"
# What a library writes into config.json of itself; "dtype" had another name.
_OF_THE_WRITER = ("transformers_version", "_name_or_path")
_RENAMED = {"torch_dtype": "dtype"}
PROBE: Messages = (Message("user", "Name three fruits."),)
PROBE_SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_tokens=8, seed=0, top_logprobs=5)


class ReloadError(Exception):
    """The running vLLM can't take this model; the text says why. It must be closed."""


class Controls(Protocol):
    """What can be asked of a running vLLM. All raise `ReloadError`."""

    async def sleep(self) -> None:
        """Drop weights and KV cache."""
        ...

    async def wake_up(self, tag: str) -> None:
        """Allocate the memory of ``weights`` or ``kv_cache`` again."""
        ...

    async def load(self, folder: str, digests: str) -> None:
        """`WeightLoader.metareward_load` in all workers."""
        ...

    async def reset_prefix_cache(self) -> bool:
        """Forget the keys and values of earlier prompts; whether that was possible."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What of a model folder decides whether another one's weights fit into it.

    ``files``: the other files by name, parsed or as digests. ``tensors``: dtype and shape by name. ``weights``: the
    SHA-256 of the files that hold them.
    """

    folder: Path
    files: Mapping[str, object]
    tensors: Mapping[str, object]
    weights: Mapping[str, str]


def loaded_model(folder: Path) -> LoadedModel:
    """The model in ``folder``; its files are hashed. Raises `ReloadError` for files that can't be read."""
    try:
        index = folder / _INDEX
        listed = set(json.loads(index.read_bytes())["weight_map"].values()) if index.is_file() else None
        paths = [path for path in model_files(folder) if path.name != _INDEX]
        weights = [path for path in paths if path.suffix == ".safetensors" and (listed is None or path.name in listed)]
        files = {path.name: _content(path) for path in paths if path.suffix != ".safetensors"}
        tensors = {key: value for path in weights for key, value in _tensors(path).items()}
        return LoadedModel(folder, files, tensors, {path.name: digest(path) for path in weights})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, UserError) as error:
        raise ReloadError(f"{folder}: can't be read ({error})") from None


def _content(path: Path) -> object:
    if path.name not in ("config.json", "generation_config.json"):
        return digest(path)
    values: dict[str, object] = json.loads(path.read_bytes())
    return {_RENAMED.get(key, key): value for key, value in values.items() if key not in _OF_THE_WRITER}


def _tensors(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {key: (each["dtype"], each["shape"]) for key, each in header.items() if key != "__metadata__"}


def difference(before: LoadedModel, after: LoadedModel) -> str:
    """Why weights of ``after`` don't fit where those of ``before`` are; empty if they do."""
    names = sorted(before.files.keys() | after.files.keys())
    other = [name for name in names if before.files.get(name) != after.files.get(name)]
    if other:
        return f"{after.folder}: {', '.join(other)} differs from that of {before.folder}"
    if before.tensors != after.tensors:
        return f"{after.folder}: its weights have other names, shapes or formats than those of {before.folder}"
    return ""


class Reloader:
    """Takes one running vLLM from model to model. ``complete`` asks it; ``on_gpu``: it can sleep."""

    def __init__(
        self,
        folder: Path,
        controls: Controls,
        on_gpu: bool,
        complete: Callable[[Messages, Sampling, int], Awaitable[Sequence[Completion]]],
    ) -> None:
        self._folder, self._controls, self._on_gpu, self._complete = folder, controls, on_gpu, complete
        self._before: LoadedModel | None = None
        self._probe: Sequence[Completion] = ()

    async def sleep(self) -> None:
        """Note what is loaded, and give back memory until `load`. Raises `ReloadError`."""
        self._before = await asyncio.to_thread(loaded_model, self._folder)
        self._probe = await self._ask()
        if self._on_gpu:
            await self._controls.sleep()

    async def load(self, folder: Path) -> None:
        """Load the weights of the model in ``folder``. Raises `ReloadError`."""
        before = self._before
        if before is None:
            raise ReloadError("it was not put to sleep")
        after = await asyncio.to_thread(loaded_model, folder)
        if why := difference(before, after):
            raise ReloadError(why)
        if self._on_gpu:
            await self._controls.wake_up("weights")
        weights = dict(after.weights)
        await self._controls.load(str(folder.absolute()), json.dumps(weights))
        if self._on_gpu:
            await self._controls.wake_up("kv_cache")
        if not await self._controls.reset_prefix_cache():
            raise ReloadError("its prefix cache can't be emptied")
        if weights != before.weights and await self._ask() == self._probe:
            raise ReloadError(f"{folder}: it writes what {before.folder} wrote")
        self._folder = folder

    async def _ask(self) -> Sequence[Completion]:
        try:
            return tuple(await self._complete(PROBE, PROBE_SAMPLING, 1))
        except EngineError as error:
            raise ReloadError(f"it doesn't answer: {error}") from None
