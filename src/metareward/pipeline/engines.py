"""From a recipe's engine section, or from a judge's name, to an engine that is ready to be asked."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from metareward.config.schema import EngineSettings, load_recipe
from metareward.engines.base import Engine, StripReasoning
from metareward.engines.local.workers import LocalSettings, open_local
from metareward.engines.openai.engine import OpenAISettings, open_openai
from metareward.engines.vllm import VllmSettings, open_vllm, open_vllm_server
from metareward.errors import UserError
from metareward.evaluation.judges import judge_kind
from metareward.method.judge import Reasoning
from metareward.pocket import world
from metareward.settings import import_object
from metareward.storage.custody import fingerprint_model
from metareward.types import Judge

POCKET = "pocket"


async def open_engine(settings: EngineSettings, folder: Path, t: int, logs: Path) -> Engine:
    """The model M_t in ``folder`` behind the engine of ``settings``; servers started here log into ``logs``.

    With kind 'openai' the servers must have M_t already, under its name. Raises `UserError` naming what is missing.
    """
    if settings.kind == "openai":
        return await _openai(settings, folder, t)
    if settings.kind == "vllm":
        return await _vllm(settings, folder, logs)
    return await open_local(folder, settings)


async def open_judge(name: str) -> Engine | Judge:
    """A judge that isn't M_t: ``pocket``, a model folder, a recipe file (its model and engine), a server as
    ``URL#MODEL``, with the key in ``OPENAI_API_KEY`` if that is set, or an object as ``package.module:name``.

    Where the recipe says that its model thinks (``reasoning.strip``), it gets ``judgments.max_tokens`` more to think
    in, and what it thinks is left out. Raises `UserError` for a name that is none of these.
    """
    match judge_kind(name):
        case "server":
            return await _judge_server(*name.partition("#")[::2])
        case "object":
            found = import_object(name, f"judge {name}", ()).value
            return found if isinstance(found, Judge) else _engine_object(name)
        case "recipe":
            recipe = load_recipe(name)
            reasoning = recipe.reasoning
            engine = await open_engine(recipe.engine, model_folder(recipe.model), 0, Path(tempfile.gettempdir()))
            marks = Reasoning(reasoning.start, reasoning.end)
            return StripReasoning(engine, marks, recipe.judgments.max_tokens) if reasoning.strip else engine
        case _:
            folder, logs = model_folder(name), Path(tempfile.gettempdir())
            return await open_engine(LocalSettings(), folder, 0, logs)


def _engine_object(name: str) -> Engine:
    engine: Engine = import_object(name, f"judge {name}", ("complete", "aclose")).value
    return engine


async def open_judge_engine(name: str) -> Engine:
    """The same, for what only an engine can do. Raises `UserError` for an object that only grades."""
    judge = await open_judge(name)
    if isinstance(judge, Judge):
        raise UserError(f"judge {name}: only grades answers; fix: name a model, a recipe or a server")
    return judge


async def _judge_server(url: str, model: str) -> Engine:
    if not model:
        raise UserError(f"{url}: say which model the server is asked for, as {url}#MODEL")
    key = "OPENAI_API_KEY" if "OPENAI_API_KEY" in os.environ else None
    settings = OpenAISettings.model_validate({"base_urls": [url], "model": model, "api_key_env": key})
    return await open_engine(settings, Path(), 0, Path())


def model_folder(name: str) -> Path:
    """The folder of a recipe's ``model``."""
    return world.MODEL if name == POCKET else Path(name)


async def _openai(settings: OpenAISettings, folder: Path, t: int) -> Engine:
    model, cache = settings.model.replace("{t}", str(t)), settings.cache_dir
    # The replies depend on the model behind the name, so each model has a cache of its own.
    cache_dir = str(Path(cache) / fingerprint_model(folder)[:16]) if cache else None
    return await open_openai(settings.model_copy(update={"model": model, "cache_dir": cache_dir}))


async def _vllm(settings: VllmSettings, folder: Path, logs: Path) -> Engine:
    if not settings.serve:
        return await open_vllm(folder, settings)
    logs.mkdir(parents=True, exist_ok=True)
    return await open_vllm_server(folder, settings, logs / "vllm.log")
