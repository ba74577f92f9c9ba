"""What training settings need of a machine: packages, devices, memory; and which settings would fit it.

The preflight checks it before a run generates anything, the training process before it loads a model. This module
imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product

from metareward.errors import UserError
from metareward.training.config import OptimizationSettings, TrainingSettings
from metareward.training.memory import MemorySpec, ModelSize, training_bytes

_SHARDING_TRANSFORMERS = (5, 23)  # the first release with which loading in parts is tested
_LEAST_LENGTH = 1024  # tokens; shorter rows are not proposed


def loads_shards(settings: OptimizationSettings) -> bool:
    """Whether each process loads only its part of the weights: FSDP2 in full fine-tuning."""
    adapter = isinstance(settings, TrainingSettings) and settings.adapter is not None
    return settings.sharding == "fsdp2" and settings.num_processes > 1 and not adapter


def require_packages(settings: OptimizationSettings) -> None:
    """Raise `UserError` for a package that isn't installed. None is imported."""
    needed: dict[str, tuple[str, str, str]] = {}  # the setting, its value, the extra that has the package
    if settings.launcher == "ray":
        needed["ray"] = "launcher", "ray", "ray"
    if settings.sharding in ("zero2", "zero3"):
        needed["deepspeed"] = "sharding", settings.sharding, "deepspeed"
    if isinstance(settings, TrainingSettings) and settings.adapter is not None:
        needed |= dict.fromkeys(
            ("peft", "bitsandbytes") if settings.method == "qlora" else ("peft",),
            ("method", settings.method, settings.method),
        )
    for package, (key, value, extra) in needed.items():
        if find_spec(package) is None:
            raise UserError(f"training.{key}: {value} needs {package}; fix: pip install 'metareward[{extra}]'")
    if loads_shards(settings) and tuple(map(int, version("transformers").split(".")[:2])) < _SHARDING_TRANSFORMERS:
        least = ".".join(map(str, _SHARDING_TRANSFORMERS))
        fix = f"pip install 'transformers>={least}' (vLLM has an environment of its own: docs/engines.md)"
        raise UserError(f"training.sharding: fsdp2 needs transformers {least}; fix: {fix}")
    missing = [name for name in settings.report_to if find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        raise UserError(f"training.report_to: {', '.join(missing)} can't be imported; fix: pip install {names}")
    if "mlflow" in settings.report_to and tracks_in_folder(os.environ):
        raise UserError(
            "training.report_to: mlflow needs MLFLOW_TRACKING_URI of a database or server, as its version 3 refuses "
            "folders; fix: export MLFLOW_TRACKING_URI=sqlite:///mlflow.db (for a folder: MLFLOW_ALLOW_FILE_STORE=true)"
        )


def tracks_in_folder(environment: Mapping[str, str]) -> bool:
    """Whether MLflow would write to a folder, or may: without a tracking URI that depends on its version."""
    if environment.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1"):
        return False
    uri = environment.get("MLFLOW_TRACKING_URI", "")
    return uri.startswith("file:") or not (":" in uri or uri.startswith("databricks"))


def require_device(settings: OptimizationSettings, gpus: int, mps: bool) -> None:
    """Raise `UserError` for a ``device`` that isn't there: ``gpus`` is how many torch finds."""
    if settings.device == "cuda" and not gpus:
        raise UserError("training.device is cuda, but torch finds no GPU; fix: make it auto or cpu")
    if settings.device == "mps" and not mps:
        raise UserError("training.device is mps, but torch finds none; fix: make it auto or cpu")


def require_devices(settings: OptimizationSettings, gpus: int, mps: bool) -> None:
    """Raise `UserError` for any setting that needs GPUs that aren't there; with launcher ray they are the cluster's."""
    require_kind_of_device(settings, gpus, mps)
    if uses_gpus(settings, gpus) and settings.num_processes > gpus:
        there = f"the cluster has {gpus}" if settings.launcher == "ray" else f"torch finds {gpus}"
        found = f"{settings.num_processes} processes, one for each GPU, and {there}"
        raise UserError(f"training.num_processes: {found}; fix: make it {most_processes(settings, gpus)}")


def require_kind_of_device(settings: OptimizationSettings, gpus: int, mps: bool) -> None:
    """The same, however many GPUs there are as long as there are some."""
    require_device(settings, gpus, mps)
    on_gpus = uses_gpus(settings, gpus)
    on_cpus_only = not gpus and not mps and settings.device in ("auto", "cpu")
    if settings.sharding != "ddp" and not on_gpus and not (on_cpus_only and loads_shards(settings)):
        only = f"{settings.sharding} needs GPUs, and torch finds none"
        raise UserError(f"training.sharding: {only}; fix: make it ddp")
    if isinstance(settings, TrainingSettings) and settings.method == "qlora" and not on_gpus:
        raise UserError("training.method: qlora needs a GPU, and torch finds none; fix: make it lora")


def uses_gpus(settings: OptimizationSettings, gpus: int) -> bool:
    """Whether training runs on GPUs where there are so many."""
    return settings.device in ("auto", "cuda") and gpus > 0


def most_processes(settings: OptimizationSettings, gpus: int, micro_batch: int | None = None) -> int:
    """The most processes, one for each of ``gpus``, with which micro-batches divide a batch."""
    micro = micro_batch or settings.per_device_train_batch_size
    return max((count for count in range(1, gpus + 1) if settings.batch_size % (count * micro) == 0), default=1)


def memory_spec(settings: TrainingSettings, completion: int) -> MemorySpec:
    """What decides the memory of one device; ``completion``: the most tokens of a completion."""
    rows = 2 * settings.per_device_train_batch_size
    return MemorySpec(
        tokens=rows * settings.max_length,
        completion_tokens=rows * min(settings.max_length, completion),
        lora_r=0 if settings.method == "full" else settings.lora.r,
        four_bit=settings.method == "qlora",
        bfloat16=settings.dtype == "bfloat16" or (settings.dtype == "auto" and settings.device != "cpu"),
        gradient_checkpointing=settings.gradient_checkpointing,
        separate_reference=settings.method == "full" or settings.reference in ("m0", "ema"),
        num_processes=settings.num_processes,
        sharding=settings.sharding,
        loaded_in_parts=loads_shards(settings),
    )


def fitting_settings(
    settings: TrainingSettings, size: ModelSize, completion: int, room: int, gpus: int
) -> dict[str, object] | None:
    """The first change of ``settings``, the least ones first, with which devices of ``room`` bytes are enough.

    ``gpus`` is how many there are; 0: processes share ``room``, the machine's memory. Tried, in this order: gradient
    checkpointing, micro-batches of one, all GPUs with FSDP2, the whole model on each, an adapter, shorter rows; then
    the same with a base of 4 bits. None if nothing fits.
    """
    for method in ("lora", "qlora") if gpus else ("lora",):
        for change in _changes(settings, gpus, method):
            changed = settings.model_copy(update=change)
            together = 1 if gpus else changed.num_processes
            if training_bytes(size, memory_spec(changed, completion)) * together <= room:
                return {name: value for name, value in change.items() if value != getattr(settings, name)}
    return None


def _changes(settings: TrainingSettings, gpus: int, adapter: str) -> Iterator[dict[str, object]]:
    """Possible changes, the least ones first; ``adapter`` is the method that may take the place of a larger one."""
    lengths = [settings.max_length // times for times in (1, 2, 4) if settings.max_length // times >= _LEAST_LENGTH]
    methods = [settings.method] if settings.method in ("qlora", adapter) else [settings.method, adapter]
    micro = sorted({settings.per_device_train_batch_size, 1}, reverse=True)
    checkpointing = sorted({settings.gradient_checkpointing, True})
    layouts = [(settings.num_processes, settings.sharding), (gpus, "fsdp2"), (settings.num_processes, "ddp")]
    for length, method, (wanted, sharding), rows, checked in product(
        lengths or [settings.max_length], methods, layouts, micro, checkpointing
    ):
        count = most_processes(settings, min(wanted, gpus or 1), rows)
        sharding = sharding if count > 1 else "ddp"
        unchanged = (count, sharding) == (settings.num_processes, settings.sharding)
        kept = method == settings.method and (method != "qlora" or unchanged)  # 4 bits aren't sharded
        if settings.batch_size % (rows * count) == 0 and (kept or sharding == "ddp"):
            change = {"gradient_checkpointing": checked, "per_device_train_batch_size": rows}
            shape = {} if unchanged else {"num_processes": count, "sharding": sharding}
            yield {**change, **shape, "method": method, "max_length": length}
