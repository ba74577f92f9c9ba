"""The engine section of a recipe: one of several kinds, and what of it bears on the texts that it writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field

from metareward.engines.device import resolved_dtype
from metareward.engines.local.workers import LocalSettings
from metareward.engines.openai.engine import OpenAISettings
from metareward.engines.ray.settings import RaySettings, local_by_default, one_engine
from metareward.engines.vllm import VllmSettings, automatic_engine


def _default_kind(value: object) -> object:
    """An engine without a kind is the local one; kind ``auto`` is resolved for this machine."""
    if isinstance(value, Mapping) and value.get("kind") == "auto":
        chosen = {"kind": "local"} if value.get("device") == "cpu" else automatic_engine()[0]
        return {**value, **chosen}
    return local_by_default(value)


ENGINE = "What runs the model: kind 'local' (the default), 'openai', 'vllm', 'ray' or 'auto': vLLM on GPUs, else local"
EngineSettings = Annotated[
    LocalSettings | OpenAISettings | VllmSettings | RaySettings,
    Field(discriminator="kind"),
    BeforeValidator(_default_kind),
]


def engine_fingerprint(settings: EngineSettings) -> dict[str, object]:
    """What of the engine bears on the texts: the batch's shape only where the run promises the same text again.

    Replicas on a cluster write what one engine writes.
    """
    engine = one_engine(settings)
    kind: dict[str, object] = {"engine.kind": engine.kind}
    if engine.kind == "openai":
        return {**kind, "engine.model": engine.model, "engine.tokenizer": engine.tokenizer}
    if engine.kind == "vllm":
        return {**kind, "engine.dtype": engine.dtype}  # 'auto' is the model's own, which counts too
    shape = {"engine.max_num_seqs": engine.max_num_seqs} if engine.deterministic else {}
    dtype = resolved_dtype(engine.dtype, engine.device)
    return {**kind, "engine.dtype": dtype, "engine.deterministic": engine.deterministic, **shape}
