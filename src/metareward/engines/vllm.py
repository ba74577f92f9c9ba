"""vLLM as an `Engine`: its asynchronous engine is driven from here, the model runs in child processes of its own.

Completion ``i`` of a request is drawn with seed ``seed + i`` and read with the same template, tokens and special
tokens as the local engine's. vLLM batches by what happens to be there, so a completion may still differ by rounding.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from metareward.engines.base import Engine, EngineError, require_model_folder, require_room, token_texts
from metareward.engines.process_group import ProcessGroup
from metareward.errors import UserError
from metareward.types import Completion, Messages, ModelRole, Sampling, Step, TopLogprob

# Seeds of 62 bits, so that adding a sample's number never passes what vLLM takes.
_SEED_MASK = (1 << 62) - 1
# What vLLM is told before it is imported, where the user has not said otherwise: no report of what it is used for to
# its makers, nothing fetched from a network, no chatter.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """How vLLM runs a model.

    ``dtype``: "auto", "float32" or "bfloat16". ``tensor_parallel``: GPUs that share one copy. ``memory_share``: of the
    GPU's memory, or the machine's on a CPU. ``context``: longest prompt with completion in tokens, None the model's.
    """

    dtype: str
    tensor_parallel: int
    memory_share: float
    context: int | None


async def open_vllm(folder: Path, settings: VllmSettings) -> Engine:
    """vLLM on the Hugging Face model in ``folder``; blocks until it is loaded.

    Raises `UserError` if vLLM isn't installed here, or can't run this model with these settings.
    """
    require_model_folder(folder)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise UserError(missing(f"this Python environment ({error})")) from error
    from metareward.engines.local.checkpoint import load_tokenizer

    tokenizer, group = load_tokenizer(folder), ProcessGroup()
    asked = arguments(folder, settings, on_cpu=current_platform.is_cpu())
    try:
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**asked, disable_log_stats=True))
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        group.kill()
        raise UserError(unstarted(folder, " ".join(str(error).split())[:300])) from error
    group.close()
    return VllmEngine(folder, engine, tokenizer, group)


def arguments(folder: Path, settings: VllmSettings, on_cpu: bool) -> dict[str, Any]:
    """vLLM's names for these settings. The folder's own defaults for sampling are left aside: a request says all."""
    # A prompt that is read in two passes has its generator set back between them, which one of a CPU can't be: vLLM
    # (0.32) dies of the first request with a seed that comes when a pass is full.
    in_passes = False if on_cpu else None
    return {
        "model": str(folder),
        "dtype": settings.dtype,
        "tensor_parallel_size": settings.tensor_parallel,
        "gpu_memory_utilization": settings.memory_share,
        "max_model_len": settings.context,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": in_passes,
        "generation_config": "vllm",
    }


def missing(where: str) -> str:
    """What to say when there is no vLLM."""
    return (
        f"engine.kind 'vllm' needs vLLM, which is not in {where}; pip install 'metareward[vllm]', "
        "or set engine.serve true and name the Python that has it in engine.python, or take engine.kind local"
    )


def unstarted(folder: Path, why: str) -> str:
    """What to say when vLLM does not start."""
    return f"{folder}: vLLM does not start: {why}; see the engine section, or take engine.kind local"


class VllmEngine:
    """Completions from vLLM's asynchronous engine."""

    def __init__(self, folder: Path, engine: Any, tokenizer: Any, group: ProcessGroup) -> None:
        self._folder = folder
        self._engine = engine
        self._tokenizer = tokenizer
        self._group = group
        self._numbers = itertools.count()

    async def complete(
        self,
        messages: Messages,
        sampling: Sampling,
        n: int,
        role: ModelRole = "actor",  # noqa: ARG002 - one model in all roles
    ) -> Sequence[Completion]:
        """``n`` completions; see `Engine`."""
        if self._engine is None:
            raise EngineError("the vLLM engine is closed")
        prompt = {"prompt_token_ids": self._encode(messages, sampling, n)}
        with self._failures():
            written = self._engine.generate(prompt, _parameters(sampling, n), str(next(self._numbers)))
            # With FINAL_ONLY there is one output, when all samples are finished.
            output = [output async for output in written][-1]
        in_order = sorted(output.outputs, key=lambda each: int(each.index))
        return tuple(self._completion(each, sampling.top_logprobs) for each in in_order)

    async def aclose(self) -> None:
        """End vLLM's processes, which frees what they hold; requests under way fail with `EngineError`."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)
            await asyncio.to_thread(self._group.kill)

    def _encode(self, messages: Messages, sampling: Sampling, n: int) -> list[int]:
        from metareward.engines.local.checkpoint import encode

        try:
            ids = encode(self._tokenizer, messages)
            require_room(ids, sampling, n, self._engine.model_config.max_model_len)
        except (EngineError, TemplateError, UnicodeEncodeError) as error:
            raise EngineError(f"{self._folder}: a request was refused: {error}") from error
        return ids

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """vLLM's errors as ours."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            yield
        except (EngineDeadError, EngineGenerateError, ValueError) as error:
            if self._engine is None:
                raise EngineError("the vLLM engine was closed before this request was finished") from error
            raise EngineError(f"{self._folder}: vLLM failed: {' '.join(str(error).split())[:300]}") from error

    def _completion(self, output: Any, top_logprobs: int) -> Completion:
        # Without stop strings only a token ends a completion, and vLLM hands it over as the last one.
        stopped = output.finish_reason == "stop"
        ids = list(output.token_ids)[: -1 if stopped else None]
        steps = self._steps(ids, output.logprobs, top_logprobs) if top_logprobs else ()
        return Completion(self._decode(ids), "stop" if stopped else "length", len(ids), steps)

    def _steps(self, ids: list[int], places: Sequence[Mapping[int, Any]], top_logprobs: int) -> tuple[Step, ...]:
        texts = token_texts(self._decode, ids)
        return tuple(Step(text, self._likely(place, top_logprobs)) for text, place in zip(texts, places, strict=False))

    def _likely(self, place: Mapping[int, Any], count: int) -> tuple[TopLogprob, ...]:
        # The token that was drawn is among them whatever its rank, so there may be one too many.
        best = sorted(place.items(), key=lambda entry: -float(entry[1].logprob))[:count]
        return tuple(TopLogprob(self._tokenizer.decode([id]), float(entry.logprob)) for id, entry in best)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _parameters(sampling: Sampling, n: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=n,
        temperature=sampling.temperature,
        top_p=max(sampling.top_p, 1e-6),
        max_tokens=sampling.max_tokens,
        seed=sampling.seed & _SEED_MASK,
        logprobs=sampling.top_logprobs or None,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
