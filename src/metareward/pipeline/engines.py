"""From a recipe's engine section, or from a judge's name, to an engine that is ready to be asked."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from metareward.config.schema import EngineSettings, OpenAISettings, VllmSettings, load_recipe
from metareward.engines import endpoint, vllm, vllm_server
from metareward.engines.base import Engine, StripReasoning
from metareward.engines.local.workers import LocalSettings, open_local
from metareward.errors import UserError
from metareward.method.judge import Reasoning
from metareward.pocket import world
from metareward.training.lineage import fingerprint_model

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


async def open_judge(name: str) -> Engine:
    """The engine of a judge that is no run's own: ``pocket``, a model folder, a recipe file (its model and engine), or
    a server as ``URL#MODEL``, with the key in ``OPENAI_API_KEY`` if that is set. Where the recipe says that its model
    thinks (``reasoning.strip``), it gets ``judgments.max_tokens`` more to think in, and what it thinks is left out.

    Raises `UserError` for a name that is none of these.
    """
    if name.startswith(("http://", "https://")):
        return await _judge_server(*name.partition("#")[::2])
    if name.endswith((".yaml", ".yml")):
        recipe = load_recipe(name)
        thinking = recipe.reasoning
        engine = await open_engine(recipe.engine, model_folder(recipe.model), 0, Path(tempfile.gettempdir()))
        marks = Reasoning(thinking.start, thinking.end)
        return StripReasoning(engine, marks, recipe.judgments.max_tokens) if thinking.strip else engine
    return await open_engine(LocalSettings(), model_folder(name), 0, Path(tempfile.gettempdir()))


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
    # The replies depend on the model behind the name, so each model has a cache of its own.
    cache = Path(settings.cache_dir) / fingerprint_model(folder)[:16] if settings.cache_dir else None
    return await endpoint.open_endpoint(
        endpoint.EndpointSettings(
            urls=settings.base_urls,
            model=settings.model.replace("{t}", str(t)),
            key_variable=settings.api_key_env,
            in_flight=settings.max_concurrency,
            requests_per_minute=settings.requests_per_minute,
            timeout=settings.timeout,
            attempts=settings.max_attempts,
            cache=cache,
        )
    )


async def _vllm(settings: VllmSettings, folder: Path, logs: Path) -> Engine:
    common = vllm.VllmSettings(
        settings.dtype, settings.tensor_parallel_size, settings.gpu_memory_utilization, settings.max_model_len
    )
    if not settings.serve:
        return await vllm.open_vllm(folder, common)
    logs.mkdir(parents=True, exist_ok=True)
    return await vllm_server.open_vllm_server(
        folder,
        vllm_server.VllmServerSettings(
            common,
            python=Path(settings.python) if settings.python else None,
            in_flight=settings.max_concurrency,
            start_timeout=settings.start_timeout,
            log=logs / "vllm.log",
        ),
    )
