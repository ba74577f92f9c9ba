"""From a recipe's engine section to an engine that is ready to be asked."""

from __future__ import annotations

from pathlib import Path

from metareward.engines.engine import Engine
from metareward.engines.workers import open_local
from metareward.recipe import EngineSettings


async def open_engine(settings: EngineSettings, folder: Path, t: int, logs: Path) -> Engine:
    """The model M_t in ``folder`` behind the engine that ``settings`` name; servers started here log into ``logs``.

    With kind 'endpoint' the servers must have M_t already, under its name. Raises `UserError` naming what is missing.
    """
    if settings.kind == "endpoint":
        return await _endpoint(settings, t)
    if settings.kind == "vllm":
        return await _vllm(settings, folder, logs)
    return await open_local(
        folder,
        device=settings.device,
        dtype=settings.dtype,
        workers=settings.workers,
        threads=settings.threads,
        rows=settings.rows,
        deterministic=settings.deterministic,
    )


async def _endpoint(settings: EngineSettings, t: int) -> Engine:
    from metareward.engines import endpoint

    asked = settings.endpoint
    return await endpoint.open_endpoint(
        endpoint.EndpointSettings(
            urls=asked.urls,
            model=asked.model.replace("{t}", str(t)),
            key_variable=asked.key_variable,
            in_flight=asked.in_flight,
            requests_per_minute=asked.requests_per_minute,
            timeout=asked.timeout,
            attempts=asked.attempts,
            cache=Path(asked.cache) if asked.cache else None,
        )
    )


async def _vllm(settings: EngineSettings, folder: Path, logs: Path) -> Engine:
    from metareward.engines import vllm, vllm_server

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
