"""Settings of an engine on a Ray cluster, and how many of its replicas fit the nodes. Nothing here imports ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from metareward.engines.local.workers import LocalSettings
from metareward.engines.openai.engine import OpenAISettings
from metareward.engines.vllm import VllmSettings
from metareward.settings import Count, Section, Text

MISSING = "needs Ray, which is not installed here; fix: pip install 'metareward[ray]'"


def local_by_default(value: object) -> object:
    """An engine without a kind is the local one."""
    if value is None or (isinstance(value, Mapping) and "kind" not in value):
        return {"kind": "local", **(value or {})}
    return value


OneEngine = Annotated[
    LocalSettings | OpenAISettings | VllmSettings, Field(discriminator="kind"), BeforeValidator(local_by_default)
]


class RaySettings(Section):
    """Replicas of another engine on a Ray cluster."""

    kind: Literal["ray"] = Field("ray", description="Replicas of an engine on a Ray cluster")
    engine: OneEngine = Field(
        default_factory=LocalSettings,
        description="The engine of each replica: kind 'local' (the default), 'vllm', 'openai'",
    )
    address: Text | None = Field(
        None,
        description="The cluster's address; empty: RAY_ADDRESS, else a cluster of its own on this machine",
    )
    replicas: Literal["auto"] | Count = Field(
        "auto", description="Copies of the engine; auto: as many as the cluster has room for, also while it grows"
    )
    cpus_per_replica: Count = Field(1, description="CPU cores reserved for each replica")
    gpus_per_replica: int | None = Field(
        None, ge=0, description="GPUs of each replica; empty: what the engine needs, 0 where the cluster has none"
    )
    max_concurrency: Count = Field(64, description="Most requests in flight at each replica")
    weights: Literal["shared", "object_store"] = Field(
        "shared", description="Nodes read the model's folder at the same path, or get its files and keep a copy each"
    )
    timeout: float = Field(
        600.0, gt=0.0, description="Seconds without any reply after which a busy replica is given up and replaced"
    )
    start_timeout: float = Field(
        900.0, gt=0.0, description="Seconds that the first replica has to start, and another one when none is left"
    )


def one_engine(
    settings: LocalSettings | OpenAISettings | VllmSettings | RaySettings,
) -> LocalSettings | OpenAISettings | VllmSettings:
    """The engine that generates: that of the replicas on a cluster, else the engine itself."""
    return settings.engine if isinstance(settings, RaySettings) else settings


def gpus_needed(settings: RaySettings, cluster_gpus: float) -> int:
    """GPUs of each replica on a cluster that has so many."""
    if settings.gpus_per_replica is not None:
        return settings.gpus_per_replica
    match settings.engine:
        case OpenAISettings():
            return 0
        case LocalSettings(device="cpu"):
            return 0
        case _ if not cluster_gpus:
            return 0
        case VllmSettings(tensor_parallel_size=parts, data_parallel_size=copies):
            return parts * (1 if copies == "auto" else copies)
        case _:
            return 1


def replica_engine(settings: RaySettings, gpus: int) -> LocalSettings | OpenAISettings | VllmSettings:
    """The engine of one replica that has ``gpus`` GPUs: without any, a local one keeps to the cores reserved for it."""
    engine = settings.engine
    if not isinstance(engine, LocalSettings) or gpus:
        return engine
    workers = settings.cpus_per_replica if engine.workers == "auto" else engine.workers
    threads = max(1, settings.cpus_per_replica // workers) if engine.threads == "auto" else engine.threads
    return engine.model_copy(update={"workers": workers, "threads": threads})


def capacity(nodes: Iterable[Mapping[str, float]], cpus: int, gpus: int) -> int:
    """How many replicas fit the nodes, whose resources are named as Ray names them (CPU, GPU)."""
    return sum(
        int(min(node.get("CPU", 0.0) // cpus, node.get("GPU", 0.0) // gpus if gpus else float("inf"))) for node in nodes
    )
