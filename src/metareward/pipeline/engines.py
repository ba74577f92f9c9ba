"""Opens engines: of a recipe's engine section, or of a judge by its name."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from metareward.config.schema import Recipe, load_recipe
from metareward.config.sections import EngineSettings, engine_fingerprint
from metareward.config.yaml_file import read_layers, recipe_path
from metareward.engines.base import Engine, StripReasoning
from metareward.engines.local.workers import LocalSettings, open_local
from metareward.engines.openai.engine import OpenAISettings, open_openai
from metareward.engines.ray.engine import open_ray
from metareward.engines.ray.settings import OneEngine, RaySettings, one_engine
from metareward.engines.vllm import VllmEngine, VllmSettings, open_vllm
from metareward.engines.vllm_reload import ReloadError
from metareward.engines.vllm_server import VllmServer, open_vllm_server
from metareward.errors import UserError
from metareward.evaluation.judges import judge_kind
from metareward.method.import_path import import_object
from metareward.method.judge import Reasoning
from metareward.pocket import world
from metareward.storage.custody import fingerprint_model
from metareward.types import Completion, Judge, Messages, ModelRole, Sampling

_LOG = logging.getLogger(__name__)
POCKET = "pocket"
OpenModel = Callable[[EngineSettings, Path, int, Path], Awaitable[Engine]]  # as `open_engine`


def model_folder(name: str) -> Path:
    """The folder of a recipe's ``model``."""
    return world.MODEL if name == POCKET else Path(name)


async def open_engine(settings: EngineSettings, folder: Path, t: int, logs: Path) -> Engine:
    """M_t, whose files are in ``folder``, behind the engine of ``settings``; servers started here log into ``logs``.

    With kind 'openai' the servers must serve M_t already, under its name. Raises `UserError` naming what is missing.
    """
    match settings:
        case OpenAISettings(model=model, cache_dir=cache):
            # Replies depend on the model behind the name, so each model has its own cache.
            cache_dir = str(Path(cache) / fingerprint_model(folder)[:16]) if cache else None
            names = {"model": model.replace("{t}", str(t)), "cache_dir": cache_dir}
            return await open_openai(settings.model_copy(update=names))
        case VllmSettings(serve=True):
            logs.mkdir(parents=True, exist_ok=True)
            return await open_vllm_server(folder, settings, logs / "vllm.log")
        case VllmSettings():
            return await open_vllm(folder, settings)
        case RaySettings():
            return await open_ray(folder, settings, partial(_open_replica, t))
        case _:
            return await open_local(folder, settings)


class EnginePool:
    """Keeps a vLLM with ``reload`` from model to model; every other engine is opened anew. All in one event loop."""

    def __init__(self) -> None:
        self._kept: tuple[EngineSettings, VllmEngine | VllmServer] | None = None
        self._ending = False

    def stop_keeping(self) -> None:
        """No further model will be opened, so engines are closed from now on."""
        self._ending = True

    async def open(self, settings: EngineSettings, folder: Path, t: int, logs: Path) -> Engine:
        """As `open_engine`: the engine that was closed last, with the weights in ``folder``, if that is possible."""
        kept, self._kept = self._kept, None
        if kept is not None:
            if kept[0] == settings and await _loaded(kept[1], folder):
                return _Returned(kept[1], settings, self)
            await kept[1].aclose()
        engine = await open_engine(settings, folder, t, logs)
        if isinstance(settings, VllmSettings) and settings.reload and isinstance(engine, VllmEngine | VllmServer):
            return _Returned(engine, settings, self)
        return engine

    async def keep(self, settings: EngineSettings, engine: VllmEngine | VllmServer) -> None:
        """Put the engine to sleep for the next `open`; close it if it can't sleep, or there will be none."""
        if self._ending:
            await engine.aclose()
            return
        try:
            await engine.sleep()
        except ReloadError as error:
            _LOG.warning("vLLM is started again for the next model: %s", error)
            await engine.aclose()
            return
        self._kept = settings, engine

    async def aclose(self) -> None:
        """Close the engine that is kept."""
        kept, self._kept = self._kept, None
        if kept is not None:
            await kept[1].aclose()


async def _loaded(engine: VllmEngine | VllmServer, folder: Path) -> bool:
    try:
        await engine.load(folder)
    except ReloadError as error:
        _LOG.warning("vLLM is started again: %s", error)
        return False
    except BaseException:
        await engine.aclose()
        raise
    return True


class _Returned:
    """An engine that goes back to its pool when it is closed."""

    def __init__(self, engine: VllmEngine | VllmServer, settings: EngineSettings, pool: EnginePool) -> None:
        self._engine, self._settings, self._pool = engine, settings, pool

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """The engine's completions."""
        return await self._engine.complete(messages, sampling, n, role)

    async def aclose(self) -> None:
        """Give the engine back."""
        await self._pool.keep(self._settings, self._engine)


async def _open_replica(t: int, settings: OneEngine, folder: Path, logs: Path) -> Engine:
    """One of the engines of kind 'ray', in an actor's process."""
    return await open_engine(settings, folder, t, logs)


async def open_judge(name: str) -> Engine | Judge:
    """A judge by name: ``pocket``, a model folder, a recipe file (its model and engine), a server as ``URL#MODEL`` (API
    key in ``OPENAI_API_KEY`` if set), or an object as ``package.module:name``.

    The judge of a recipe with ``reasoning.strip`` gets ``judgments.max_tokens`` more tokens for its reasoning, which is
    stripped. Raises `UserError` for a name that is none of these.
    """
    logs = Path(tempfile.gettempdir())
    match judge_kind(name):
        case "oracle" | "itself":
            raise UserError(
                f"judge {name}: possible only for a benchmark in a recipe, where the run says which one it is; "
                "fix: name a model folder, pocket, a recipe, URL#MODEL or package.module:name"
            )
        case "server":
            url, _, model = name.partition("#")
            _require_model(url, model)
            key = "OPENAI_API_KEY" if "OPENAI_API_KEY" in os.environ else None
            settings = OpenAISettings.model_validate({"base_urls": [url], "model": model, "api_key_env": key})
            return await open_engine(settings, Path(), 0, logs)
        case "object":
            judge: Judge | Engine = import_object(name, f"judge {name}", ()).value
            if not isinstance(judge, Judge):
                import_object(name, f"judge {name}", ("complete", "aclose"))  # an engine, or a UserError
            return judge
        case "recipe":
            recipe = judge_recipe(name)
            engine = await open_engine(recipe.engine, model_folder(recipe.model), 0, logs)
            if not recipe.reasoning.strip:
                return engine
            tags = Reasoning(recipe.reasoning.start, recipe.reasoning.end)
            return StripReasoning(engine, tags, recipe.judgments.max_tokens)
        case _:
            return await open_engine(LocalSettings(), model_folder(name), 0, logs)


async def open_judge_engine(name: str) -> Engine:
    """`open_judge` where an engine is needed. Raises `UserError` for an object that only grades."""
    judge = await open_judge(name)
    if isinstance(judge, Judge):
        raise UserError(f"judge {name}: only grades answers; fix: name a model, a recipe or a server")
    return judge


def _require_model(url: str, model: str) -> None:
    if not model:
        raise UserError(f"{url}: say which model the server is asked for, as {url}#MODEL")


def judge_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a judge, which needn't say where prompts come from."""
    prompts = read_layers(recipe_path(name), overrides, {}).values.get("prompts")
    said = isinstance(prompts, Mapping) and "source" in prompts
    return load_recipe(name, overrides if said else [*overrides, "prompts.source=none"])


def judge_fingerprint(name: str) -> dict[str, object]:
    """What decides a judge's replies besides its name and where it is: its files, its engine, its source.

    Nothing is opened. Raises `UserError` for a name that stands for no judge: a check before anything is asked.
    """
    match judge_kind(name):
        case "itself" | "oracle":
            return {}
        case "server":
            _require_model(*name.partition("#")[::2])
            return {}
        case "object":
            return {"judge's source": import_object(name, f"judge {name}", ()).sha256}
        case "recipe":
            recipe = judge_recipe(name)
            found = {f"judge's {key}": value for key, value in engine_fingerprint(recipe.engine).items()}
            if one_engine(recipe.engine).kind != "openai":
                found["judge's files"] = fingerprint_model(model_folder(recipe.model))
            tags = {"start": recipe.reasoning.start, "end": recipe.reasoning.end} if recipe.reasoning.strip else {}
            return found | {f"judge's reasoning.{key}": value for key, value in tags.items()}
        case _:
            return {"judge's files": fingerprint_model(model_folder(name))}
