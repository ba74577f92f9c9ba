"""vLLM as an `Engine` in child processes of this one, and vLLM's settings and arguments.

`vllm_server` has the other way: a server that the run starts.

Completion ``i`` of a request is sampled with seed ``seed + i``; chat template, tokenization and decoding are those of
the local engine. vLLM's batches depend on the load, so a completion may still differ by rounding. All processes end
with this one.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from metareward.engines.base import (
    Engine,
    EngineError,
    as_choice,
    max_choice_tokens,
    require_model_folder,
    require_room,
    token_texts,
)
from metareward.engines.chat import ChatEncoder, ChatTemplateError
from metareward.engines.device import this_machine
from metareward.engines.process_group import ProcessGroup
from metareward.engines.vllm_reload import Reloader, ReloadError
from metareward.engines.vllm_worker import metareward_vllm as worker
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
    data_parallel_size: Literal["auto"] | Count = Field(
        "auto", description="Copies of the model that share the requests; auto: as many as the GPUs have room for"
    )
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
    max_concurrency: Count = Field(256, description="With serve: most requests in flight for each copy")
    start_timeout: float = Field(900.0, gt=0.0, description="With serve: seconds that the server has to start")
    reload: bool = Field(
        False, description="Load the next model's weights into the running vLLM, which sleeps while training runs"
    )


ENVIRONMENT_PYTHON = ".venv-vllm/bin/python"  # of vLLM's own environment, where docs/engines.md makes it


def automatic_engine() -> tuple[dict[str, object], str]:
    """What an engine of kind ``auto`` is on this machine: its kind with the settings that go with it, and why."""
    machine = this_machine()
    if not machine.gpus:
        return {"kind": "local"}, f"the machine has {machine}"
    if find_spec("vllm") is not None:
        return {"kind": "vllm"}, f"the machine has {machine}, and vLLM is installed"
    if Path(ENVIRONMENT_PYTHON).exists():
        return {"kind": "vllm", "serve": True, "python": ENVIRONMENT_PYTHON}, f"the machine has {machine}"
    why = f"the machine has {machine}, but there is no vLLM, which is several times as fast there (docs/engines.md)"
    return {"kind": "local"}, why


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
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise UserError(missing(f"this Python environment ({error})")) from error
    import torch

    from metareward.engines.local.checkpoint import load_tokenizer

    gpus = None if current_platform.is_cpu() else torch.accelerator.device_count()
    tokenizer, group = load_tokenizer(folder), ProcessGroup()
    extension = {"worker_extension_cls": f"{worker.__name__}.WeightLoader"} if settings.reload else {}
    arguments = AsyncEngineArgs(**engine_arguments(folder, settings, gpus), **extension, disable_log_stats=True)
    try:
        # As offline use has it: without a context vLLM takes small batches.
        engine = AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        group.kill()
        raise UserError(unstarted(folder, " ".join(str(error).split())[:300])) from error
    group.close()
    return VllmEngine(folder, engine, tokenizer, group, on_gpu=gpus is not None)


def copies(settings: VllmSettings, gpus: int | None) -> int:
    """How many copies of the model share the requests; ``gpus`` is None on a CPU."""
    if settings.data_parallel_size != "auto":
        return settings.data_parallel_size
    return max(1, (gpus or 1) // settings.tensor_parallel_size)


def engine_arguments(folder: Path, settings: VllmSettings, gpus: int | None) -> dict[str, Any]:
    """vLLM's engine arguments, in process and as a server; ``gpus``: how many there are, None on a CPU.

    The folder's own sampling defaults are not used.
    """
    # vLLM on a CPU (0.32) dies of a prompt that is prefilled in chunks if its request has a seed: the generator has to
    # be set back between the chunks, which that of a CPU can't be.
    return {
        "model": str(folder),
        "dtype": settings.dtype,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "data_parallel_size": copies(settings, gpus),
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "max_model_len": settings.max_model_len,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": False if gpus is None else None,
        "generation_config": "vllm",
        **({"enable_sleep_mode": True} if settings.reload and gpus is not None else {}),
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

    def __init__(self, folder: Path, engine: Any, tokenizer: Any, group: ProcessGroup, on_gpu: bool = False) -> None:
        self._folder = folder
        self._engine = engine
        self._tokenizer = tokenizer
        self._encoder = ChatEncoder(tokenizer)
        self._group = group
        self._numbers = itertools.count()
        self._reloader = Reloader(folder, _EngineControls(engine), on_gpu, self.complete)

    async def complete(
        self,
        messages: Messages,
        sampling: Sampling,
        n: int,
        role: ModelRole = "actor",  # noqa: ARG002 - one model in all roles
    ) -> Sequence[Completion]:
        """``n`` completions; see `Engine`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        if self._engine is None:
            raise EngineError("the vLLM engine is closed")
        try:
            ids = self._encoder.encode(messages, continue_last=messages[-1].role == "assistant")
            if sampling.choices:
                sampling = replace(sampling, max_tokens=max_choice_tokens(sampling.choices))
            require_room(ids, sampling, n, self._engine.model_config.max_model_len)
        except (EngineError, ChatTemplateError, UnicodeEncodeError) as error:
            raise EngineError(f"{self._folder}: a request was refused: {error}") from error
        try:
            parameters = SamplingParams(
                n=n,
                temperature=sampling.temperature,
                top_p=max(sampling.top_p, 1e-6),
                max_tokens=sampling.max_tokens,
                seed=sampling.seed & _SEED_MASK,
                logprobs=sampling.top_logprobs or None,
                # Its mask precedes temperature, top-p and the log-probabilities, which are those of `Sampling.choices`.
                structured_outputs=StructuredOutputsParams(choice=[*sampling.choices]) if sampling.choices else None,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            written = self._engine.generate({"prompt_token_ids": ids}, parameters, str(next(self._numbers)))
            # With FINAL_ONLY there is one output, when all samples are finished.
            output = [output async for output in written][-1]
        except (EngineDeadError, EngineGenerateError, ValueError) as error:
            if self._engine is None:
                raise EngineError("the vLLM engine was closed before this request was finished") from error
            raise EngineError(f"{self._folder}: vLLM failed: {' '.join(str(error).split())[:300]}") from error
        in_order = sorted(output.outputs, key=lambda each: int(each.index))
        completions = (self._completion(each, sampling.top_logprobs) for each in in_order)
        if not sampling.choices:
            return tuple(completions)
        try:
            return tuple(as_choice(each, sampling.choices) for each in completions)
        except EngineError as error:
            raise EngineError(f"{self._folder}: vLLM {error}") from None

    async def sleep(self) -> None:
        """Give back the GPUs' memory until `load`. Raises `ReloadError`."""
        await self._reloader.sleep()

    async def load(self, folder: Path) -> None:
        """Complete with the model in ``folder`` from now on. Raises `ReloadError`."""
        await self._reloader.load(folder)
        self._folder = folder

    async def aclose(self) -> None:
        """End vLLM's processes; requests in flight fail with `EngineError`."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)
            await asyncio.to_thread(self._group.kill)

    def _completion(self, output: Any, top_logprobs: int) -> Completion:
        def decode(ids: list[int]) -> str:
            text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
            return text

        # Without stop strings only an end token stops a completion, and it is the last one.
        stopped = output.finish_reason == "stop"
        ids = list(output.token_ids)[: -1 if stopped else None]
        steps = []
        if top_logprobs:
            for text, place in zip(token_texts(decode, ids), output.logprobs, strict=False):
                # The sampled token is among them whatever its rank, so there may be one too many.
                best = sorted(place.items(), key=lambda entry: -float(entry[1].logprob))[:top_logprobs]
                top = (TopLogprob(self._tokenizer.decode([id]), float(entry.logprob)) for id, entry in best)
                steps.append(Step(text, tuple(top)))
        return Completion(decode(ids), "stop" if stopped else "length", len(ids), tuple(steps))


@dataclass(frozen=True, slots=True)
class _EngineControls:
    """The `Controls` of vLLM in process."""

    engine: Any

    async def sleep(self) -> None:
        await self._do(self.engine.sleep(level=2))

    async def wake_up(self, tag: str) -> None:
        await self._do(self.engine.wake_up([tag]))

    async def load(self, folder: str, digests: str) -> None:
        await self._do(self.engine.collective_rpc("metareward_load", args=(folder, digests)))

    async def reset_prefix_cache(self) -> bool:
        return bool(await self._do(self.engine.reset_prefix_cache()))

    async def _do(self, call: Awaitable[object]) -> object:
        try:
            return await call
        except Exception as error:  # what vLLM's other processes raise has no class of its own
            raise ReloadError(" ".join(str(error).split())[:300]) from None
