"""From a recipe's engine section, or from a judge's name, to an engine that is ready to be asked."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from metareward.config.schema import EngineSettings, load_recipe
from metareward.engines import endpoint, vllm, vllm_server
from metareward.engines.base import Engine, StripReasoning
from metareward.engines.local.workers import LocalSettings, open_local
from metareward.errors import UserError
from metareward.method.judge import Reasoning
from metareward.pocket import world
from metareward.training.lineage import fingerprint_model

POCKET = "pocket"


async def open_engine(settings: EngineSettings, folder: Path, t: int, logs: Path) -> Engine:
    """The model M_t in ``folder`` behind the engine that ``settings`` name; servers started here log into ``logs``.

    With kind 'endpoint' the servers must have M_t already, under its name. Raises `UserError` naming what is missing.
    """
    if settings.kind == "endpoint":
        return await _endpoint(settings, folder, t)
    if settings.kind == "vllm":
        return await _vllm(settings, folder, logs)
    return await open_local(
        folder,
        LocalSettings(
            device=settings.device,
            dtype=settings.dtype,
            workers=settings.workers,
            threads=settings.threads,
            max_num_seqs=settings.rows,
            deterministic=settings.deterministic,
        ),
    )


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
    return await open_engine(EngineSettings.model_validate({}), model_folder(name), 0, Path(tempfile.gettempdir()))


async def _judge_server(url: str, model: str) -> Engine:
    if not model:
        raise UserError(f"{url}: say which model the server is asked for, as {url}#MODEL")
    key = "OPENAI_API_KEY" if "OPENAI_API_KEY" in os.environ else None
    asked = {"urls": [url], "model": model, "key_variable": key}
    return await open_engine(EngineSettings.model_validate({"kind": "endpoint", "endpoint": asked}), Path(), 0, Path())


def model_folder(name: str) -> Path:
    """The folder of a recipe's ``model``."""
    return world.MODEL if name == POCKET else Path(name)


async def _endpoint(settings: EngineSettings, folder: Path, t: int) -> Engine:
    asked = settings.endpoint
    # What a server answers depends on the model behind the name, so each model has a cache of its own.
    cache = Path(asked.cache) / fingerprint_model(folder)[:16] if asked.cache else None
    return await endpoint.open_endpoint(
        endpoint.EndpointSettings(
            urls=asked.urls,
            model=asked.model.replace("{t}", str(t)),
            key_variable=asked.key_variable,
            in_flight=asked.in_flight,
            requests_per_minute=asked.requests_per_minute,
            timeout=asked.timeout,
            attempts=asked.attempts,
            cache=cache,
        )
    )


async def _vllm(settings: EngineSettings, folder: Path, logs: Path) -> Engine:
    asked = settings.vllm
    common = vllm.VllmSettings(settings.dtype, asked.tensor_parallel, asked.memory_share, asked.context)
    if not settings.serve:
        return await vllm.open_vllm(folder, common)
    logs.mkdir(parents=True, exist_ok=True)
    return await vllm_server.open_vllm_server(
        folder,
        vllm_server.VllmServerSettings(
            common,
            python=Path(asked.python) if asked.python else None,
            in_flight=asked.in_flight,
            start_timeout=asked.start_timeout,
            log=logs / "vllm.log",
        ),
    )
