"""vLLM as an `Engine`: this process drives its asynchronous engine, the model runs in vLLM's own child processes.

Completion ``i`` of a request is sampled with seed ``seed + i``. Chat template, tokenization and decoding are those of
the local engine. vLLM's batches depend on the load, so a completion may still differ by rounding.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError
from pydantic import Field

from metareward.engines.base import Engine, EngineError, require_model_folder, require_room, token_texts
from metareward.engines.process_group import ProcessGroup
from metareward.errors import UserError
from metareward.settings import Count, Section, Text
from metareward.types import Completion, Messages, ModelRole, Sampling, Step, TopLogprob

_SEED_MASK = (1 << 62) - 1  # vLLM adds a sample's number and takes 63 bits
# Set before vLLM is imported, unless the user has: no usage statistics, no downloads, only errors logged.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class VllmSettings(Section):
    """vLLM, in this process or as a server of its own, which the run starts and stops."""

    kind: Literal["vllm"] = Field("vllm", description="vLLM, if it is installed")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Number format of the weights")
    tensor_parallel_size: Count = Field(1, description="GPUs that one copy of the model is spread over")
    gpu_memory_utilization: float = Field(
        0.9, gt=0.0, le=1.0, description="Share of the GPU's memory that it may take, or of the machine's on a CPU"
    )
    max_model_len: Count | None = Field(
        None, description="Longest prompt with completion, in tokens; empty for the model's"
    )
    serve: bool = Field(False, description="As a server of its own, started and stopped by the run")
    python: Text | None = Field(
        None, description="With serve: the Python of the environment that has vLLM, if it isn't this one"
    )
    max_concurrency: Count = Field(256, description="With serve: most requests in flight")
    start_timeout: float = Field(900.0, gt=0.0, description="With serve: seconds that the server has to start")


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
    wanted = engine_arguments(folder, settings, on_cpu=current_platform.is_cpu())
    try:
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**wanted, disable_log_stats=True))
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        group.kill()
        raise UserError(unstarted(folder, " ".join(str(error).split())[:300])) from error
    group.close()
    return VllmEngine(folder, engine, tokenizer, group)


def engine_arguments(folder: Path, settings: VllmSettings, on_cpu: bool) -> dict[str, Any]:
    """vLLM's engine arguments, in process and as a server. The folder's own sampling defaults are not used."""
    # vLLM on a CPU (0.32) dies of a prompt that is prefilled in chunks if its request has a seed: the generator has to
    # be set back between the chunks, which that of a CPU can't be.
    return {
        "model": str(folder),
        "dtype": settings.dtype,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "max_model_len": settings.max_model_len,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": False if on_cpu else None,
        "generation_config": "vllm",
    }


def missing(where: str) -> str:
    """The error message when there is no vLLM."""
    return (
        f"engine.kind 'vllm' needs vLLM, which is not in {where}; pip install 'metareward[vllm]', "
        "or set engine.serve true and name the Python that has it in engine.python, or set engine.kind to local"
    )


def unstarted(folder: Path, why: str) -> str:
    """The error message when vLLM doesn't start."""
    return f"{folder}: vLLM does not start: {why}; fix: change its settings (engine), or set engine.kind to local"


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
        with self._engine_errors():
            written = self._engine.generate(prompt, _parameters(sampling, n), str(next(self._numbers)))
            # With FINAL_ONLY there is one output, when all samples are finished.
            output = [output async for output in written][-1]
        in_order = sorted(output.outputs, key=lambda each: int(each.index))
        return tuple(self._completion(each, sampling.top_logprobs) for each in in_order)

    async def aclose(self) -> None:
        """End vLLM's processes; requests in flight fail with `EngineError`."""
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
    def _engine_errors(self) -> Iterator[None]:
        """Turn vLLM's errors into `EngineError`."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            yield
        except (EngineDeadError, EngineGenerateError, ValueError) as error:
            if self._engine is None:
                raise EngineError("the vLLM engine was closed before this request was finished") from error
            raise EngineError(f"{self._folder}: vLLM failed: {' '.join(str(error).split())[:300]}") from error

    def _completion(self, output: Any, top_logprobs: int) -> Completion:
        # Without stop strings only an end token stops a completion, and it is the last one.
        stopped = output.finish_reason == "stop"
        ids = list(output.token_ids)[: -1 if stopped else None]
        steps = self._steps(ids, output.logprobs, top_logprobs) if top_logprobs else ()
        return Completion(self._decode(ids), "stop" if stopped else "length", len(ids), steps)

    def _steps(self, ids: list[int], places: Sequence[Mapping[int, Any]], top_logprobs: int) -> tuple[Step, ...]:
        texts = token_texts(self._decode, ids)
        return tuple(
            Step(text, self._top_logprobs(place, top_logprobs)) for text, place in zip(texts, places, strict=False)
        )

    def _top_logprobs(self, place: Mapping[int, Any], count: int) -> tuple[TopLogprob, ...]:
        # The sampled token is among them whatever its rank, so there may be one too many.
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
