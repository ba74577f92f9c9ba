"""What would stop a run later, found before it writes or spends anything: ``run`` checks it, and ``plan`` does.

`check_inputs`   the model's files, the prompts, texts and objects that the recipe names, packages, contexts
`check_machine`  devices, their memory, the disk; what doesn't fit is refused with the settings that would

The model's own tokenizer and weights are loaded when its engine is opened, which generates nothing yet.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from metareward.config.schema import Recipe
from metareward.config.sections import EngineSettings
from metareward.engines.base import require_model_folder
from metareward.engines.device import Machine
from metareward.engines.local.workers import LocalSettings
from metareward.engines.openai.engine import OpenAISettings
from metareward.engines.ray.settings import MISSING as RAY_MISSING
from metareward.engines.ray.settings import RaySettings, gpus_needed
from metareward.engines.vllm import VllmSettings
from metareward.engines.vllm import missing as vllm_missing
from metareward.errors import UserError
from metareward.method.template import conversation
from metareward.pipeline import benchmarks
from metareward.pipeline.bound_recipe import BoundRecipe, most_tokens
from metareward.pipeline.engines import model_folder
from metareward.pipeline.kept_models import most_models
from metareward.pipeline.published_models import hub_model
from metareward.storage.custody import NAME_A_MODEL
from metareward.training.config import TrainingSettings
from metareward.training.memory import ModelSize, host_bytes, model_size, training_bytes
from metareward.training.requirements import (
    fitting_settings,
    memory_spec,
    require_devices,
    require_kind_of_device,
    require_packages,
    uses_gpus,
)

_GB = 10**9
_USABLE = 0.95  # of a device's memory: the rest is the driver's and the libraries'
_CHECKED_PROMPTS = 100  # whose lengths are measured
_MOST_TOO_LONG = 0.05  # as a run skips failed prompts up to this share


# --- what the recipe names ---


def check_inputs(bound: BoundRecipe, here: bool = True) -> None:
    """Read all that the recipe names, and write nothing. Raises `UserError` for the first thing that is wrong.

    ``here``: the recipe is to run on this machine, so packages must be installed and weights whole; for a plan of
    another machine the headers of the weights are enough.
    """
    recipe = bound.recipe
    for key, name in model_names(recipe):
        check_model(model_folder(name), key, here)
    if here:
        for t in sorted(recipe.iterations):
            require_packages(recipe.training_of(t))
        for place, engine in recipe.engines:
            _check_engine(".".join(map(str, place)), engine)
    bound.check()
    benchmarks.check(bound)
    _check_lengths(bound)


def model_names(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The models that a recipe names, each with its setting."""
    yield "model", recipe.model
    if recipe.training.start not in ("previous", "m0"):
        yield "training.start", recipe.training.start
    for role, each in (("judge", recipe.judge), ("meta_judge", recipe.meta_judge)):
        model = getattr(each, "model", None)
        if model is not None:
            yield f"{role}.model", model


def check_model(folder: Path, key: str, whole: bool = True) -> None:
    """Whether ``folder``, which the setting ``key`` names, is a model with tokenizer and chat template.

    Only headers and small files are read. Raises `UserError` naming the file and the fix.
    """
    if not folder.is_dir():
        raise UserError(f"{key}: {folder}: no such model folder; {_how_to_fetch(folder.as_posix(), key)}")
    require_model_folder(folder)
    _json(folder / "config.json")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = _json(index).get("weight_map")
        names = sorted(set(map(str, listed.values()))) if isinstance(listed, dict) else []
        elsewhere = [name for name in names if Path(name).name != name]
        if elsewhere:
            raise UserError(f"{index}: {elsewhere[0]!r} isn't a file of this folder; fix: fetch the model again")
        lacking = [name for name in names if not (folder / name).is_file()]
        if lacking:
            raise UserError(f"{folder}: {len(lacking)} files of weights are missing ({lacking[0]}); fix: fetch them")
    for path in sorted(folder.glob("*.safetensors")):
        _check_weights(path, whole)
    _check_tokenizer(folder)


def _how_to_fetch(name: str, key: str) -> str:
    """The fix for a folder that isn't there: if it may be a model of the hub, how to fetch it."""
    found = hub_model(name)
    if found is None:
        return NAME_A_MODEL
    source, folder = found
    return (
        f"fix: metareward run --network fetches {source} to {folder}, or: metareward model {source} --network "
        f"--out {folder}, then --set {key}={folder}"
    )


def _json(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable JSON ({error}); fix: restore the file") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; fix: restore the file")
    return value


def _check_weights(path: Path, whole: bool) -> None:
    try:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header: dict[str, Any] = json.loads(file.read(length)) if length <= path.stat().st_size else {}
        end = max((each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"), default=0)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, struct.error):
        raise UserError(f"{path}: not a readable safetensors file; fix: fetch it again") from None
    size = path.stat().st_size
    if whole and size < 8 + length + end:
        raise UserError(f"{path}: {size:,} bytes, its header says {8 + length + end:,}; fix: fetch it again")


def _check_tokenizer(folder: Path) -> None:
    file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if file.is_file():
        try:
            Tokenizer.from_file(str(file))
        except Exception as error:  # what tokenizers raises has no class of its own
            raise UserError(
                f"{file}: not a readable tokenizer ({' '.join(str(error).split())}); fix: restore it"
            ) from None
    elif not settings.is_file():
        raise UserError(f"{folder}: no tokenizer.json; fix: save the tokenizer with the model")
    text = folder / "chat_template.jinja"
    template = _json(settings).get("chat_template") if settings.is_file() else None
    where = settings
    if text.is_file():
        where, template = text, text.read_text(encoding="utf-8", errors="replace")
    elif (folder / "chat_template.json").is_file():
        where = folder / "chat_template.json"
        template = _json(where).get("chat_template")
    if template is None:
        raise UserError(f"{folder}: the tokenizer has no chat template; fix: add chat_template.jinja")
    try:
        # With the extensions that transformers renders with.
        environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"])
        for each in template if isinstance(template, list) else [{"template": template}]:
            environment.parse(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", str(each["template"])))
    except TemplateSyntaxError as error:
        raise UserError(f"{where}: the chat template can't be read: line {error.lineno}: {error.message}") from None


def _check_engine(key: str, engine: EngineSettings) -> None:
    if isinstance(engine, RaySettings) and find_spec("ray") is None:
        raise UserError(f"{key}.kind ray {RAY_MISSING}")
    if not isinstance(engine, VllmSettings):
        return
    if not engine.serve and find_spec("vllm") is None:
        raise UserError(f"{key}: {vllm_missing('this Python environment')}")
    if engine.serve and engine.python is not None and shutil.which(engine.python) is None:
        fix = "make vLLM's environment (docs/engines.md), or set engine.kind to local"
        raise UserError(f"{key}.python: {engine.python}: no such program; fix: {fix}")


def _check_lengths(bound: BoundRecipe) -> None:
    """Whether prompts, answers and judgments fit the model's context: a prompt that can't is never answered."""
    recipe, folder = bound.recipe, model_folder(bound.recipe.model)
    context, file = _context(folder), folder / "tokenizer.json"
    if context is None or not file.is_file():
        return
    tokenizer = Tokenizer.from_file(str(file))

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    prompts = list(islice(bound.choose_prompts(1), _CHECKED_PROMPTS))
    settings = bound.settings(1)
    asked = [tokens(conversation(prompt.messages)) for prompt in prompts]
    _refuse_too_long("answers", asked, recipe.answers.max_tokens, context)
    if settings.judge is None and settings.reward is None and not hasattr(recipe.judge, "engine"):
        requests = [settings.rubric.requests(prompt, "") for prompt in prompts]
        judged = [max((tokens(asked[-1].content) for asked in each), default=0) for each in requests]
        new = 1 if settings.rubric.criteria else min(recipe.judgments.max_tokens, most_tokens(recipe.judgments))
        _refuse_too_long("judgments", judged, new, context)


def _refuse_too_long(section: str, lengths: Sequence[int], new: int, context: int) -> None:
    too_long = sum(length + new > context for length in lengths)
    if lengths and too_long / len(lengths) > _MOST_TOO_LONG:
        longest = max(lengths)
        share = f"{too_long} of {len(lengths)} prompts"
        raise UserError(
            f"{section}.max_tokens: {new}, which {share} (up to {longest} tokens) don't leave room for in the model's "
            f"context of {context} tokens; fix: lower it, or take out the long prompts"
        )


def _context(folder: Path) -> int | None:
    config = _json(folder / "config.json")
    text = config.get("text_config", config)
    context = text.get("max_position_embeddings") if isinstance(text, dict) else None
    return context if isinstance(context, int) else None


# --- the machine ---


def nodes_unknown(recipe: Recipe, machine: Machine) -> bool:
    """Whether the recipe uses a Ray cluster whose nodes nobody has described: one that it doesn't start here itself."""
    engine = recipe.engine
    address = (engine.address if isinstance(engine, RaySettings) else None) or os.environ.get("RAY_ADDRESS") or "local"
    on_ray = isinstance(engine, RaySettings) or any(recipe.training_of(t).launcher == "ray" for t in recipe.iterations)
    return on_ray and address != "local" and not machine.described


def check_machine(bound: BoundRecipe, machine: Machine) -> None:
    """Whether generation and training fit ``machine``, and the models its disk. Raises `UserError` with the fix.

    What runs on a Ray cluster whose nodes aren't known isn't checked.
    """
    recipe = bound.recipe
    size = model_size(model_folder(recipe.model))
    unknown = nodes_unknown(recipe, machine)
    trained = [t for t in sorted(recipe.iterations) if not unknown or recipe.training_of(t).launcher != "ray"]
    for t in trained:  # how many GPUs it takes is known once the model's size is
        require = require_devices if size is None else require_kind_of_device
        require(settings := recipe.training_of(t), _training_gpus(settings, machine), machine.mps)
    generated = not (unknown and isinstance(recipe.engine, RaySettings))
    if generated:
        _check_generation_devices(recipe.engine, machine)
    if size is None:
        return
    if generated:
        _check_generation_memory(recipe.engine, size, machine)
    _check_training_memory(recipe, trained, size, machine)
    if not machine.described:
        _check_disk(bound)


def _has(machine: Machine) -> str:
    return f"the {'cluster' if machine.nodes > 1 else 'machine'} has {machine}"


def _training_gpus(settings: TrainingSettings, machine: Machine) -> int:
    """Of all nodes with launcher ray, else of the run's own."""
    return len(machine.gpus) * (machine.nodes if settings.launcher == "ray" else 1)


def _replica_gpus(engine: RaySettings, machine: Machine) -> int:
    return gpus_needed(engine, len(machine.gpus) * machine.nodes)


def _check_generation_devices(engine: EngineSettings, machine: Machine) -> None:
    gpus = len(machine.gpus)
    match engine:
        case LocalSettings(device=device) if device.startswith("cuda"):
            wanted = int(device.partition(":")[2] or 0) + 1
            if wanted > gpus:
                raise UserError(f"engine.device is {device}, but {_has(machine)}; fix: make it auto or cpu")
        case VllmSettings(tensor_parallel_size=parts) if gpus and parts > gpus:
            raise UserError(f"engine.tensor_parallel_size: {parts}, but {_has(machine)}; fix: make it at most {gpus}")
        case RaySettings() if _replica_gpus(engine, machine) > gpus:
            raise UserError(
                f"engine: each replica takes {_replica_gpus(engine, machine)} GPUs of one machine, and "
                f"{_has(machine)}; fix: lower engine.gpus_per_replica, or engine.engine.tensor_parallel_size, to {gpus}"
            )
        case _:
            return


def _check_generation_memory(given: EngineSettings, size: ModelSize, machine: Machine) -> None:
    engine, key, gpus = given, "engine", len(machine.gpus)
    if isinstance(given, RaySettings):
        engine, key, gpus = given.engine, "engine.engine", _replica_gpus(given, machine)
    if isinstance(engine, OpenAISettings | RaySettings):  # another machine's
        return
    on_gpu = gpus > 0 and not (isinstance(engine, LocalSettings) and engine.device == "cpu")
    room = (min(machine.gpus) if on_gpu else machine.ram) or 0
    parts = engine.tensor_parallel_size if isinstance(engine, VllmSettings) else 1
    share = engine.gpu_memory_utilization if isinstance(engine, VllmSettings) else _USABLE
    need = size.weights * (4 if engine.dtype == "float32" else 2) / parts
    if room and need > room * share:
        fix = "take a smaller model"
        fitting = math.ceil(need * parts / (room * share * _USABLE))
        if on_gpu and fitting <= len(machine.gpus):
            kind = "" if isinstance(engine, VllmSettings) else f"--set {key}.kind=vllm "
            fix = f"{kind}--set {key}.tensor_parallel_size={_power_of_two(fitting)}"
        raise UserError(
            f"{key}: the model's weights take {need / _GB:.0f} GB on each device of {machine}, which leaves no room "
            f"for completions; fix: {fix}"
        )


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _check_training_memory(recipe: Recipe, trained: Sequence[int], size: ModelSize, machine: Machine) -> None:
    """Whether there is a GPU for each process, and memory. Raises `UserError` with settings that fit both."""
    completion = max(recipe.answers.max_tokens, recipe.judgments.max_tokens)
    for t in trained:
        settings = recipe.training_of(t)
        gpus = _training_gpus(settings, machine) if uses_gpus(settings, len(machine.gpus)) else 0
        room = min(machine.gpus) if gpus else machine.ram
        if machine.mps or room is None:
            return
        spec = memory_spec(settings, completion)
        need = training_bytes(size, spec) * (1 if gpus else settings.num_processes)
        if gpus and machine.ram is not None and host_bytes(size, spec) > machine.ram:
            raise UserError(
                f"training: M{t}'s weights take {host_bytes(size, spec) / _GB:.0f} GB of the machine's own memory "
                f"while they are loaded and saved, and it has {machine.ram / _GB:.0f}; fix: "
                + ("take a smaller model" if spec.loaded_in_parts else "--set training.sharding=fsdp2 on several GPUs")
            )
        usable = round(room * _USABLE)
        lacking = 0 < gpus < settings.num_processes
        if need <= usable and not lacking:
            continue
        found = fitting_settings(settings, size, completion, usable, gpus)
        fix = "take a smaller model or larger devices"
        if found is not None:
            fix = " ".join(f"--set training.{name}={json.dumps(value).strip(chr(34))}" for name, value in found.items())
        if lacking:
            many = f"{settings.num_processes} processes, one for each GPU"
            raise UserError(f"training.num_processes: {many}, and {_has(machine)}; fix: {fix}")
        raise UserError(
            f"training: M{t} takes up to {need / _GB:.0f} GB on each device, and {_has(machine)}; fix: {fix}"
        )


def _check_disk(bound: BoundRecipe) -> None:
    """The models that are yet to be written must fit the disk."""
    recipe, run = bound.recipe, bound.run
    weights = sum(path.stat().st_size for path in model_folder(recipe.model).glob("*.safetensors"))
    missing = sum(not bound.model(t).is_dir() for t in recipe.iterations)
    missing = min(missing, most_models(recipe))
    existing = next(folder for folder in (run.path.absolute(), *run.path.absolute().parents) if folder.is_dir())
    free, need = shutil.disk_usage(existing).free, weights * missing
    if need > free:
        raise UserError(
            f"{run.path}: {missing} models take {need / _GB:.1f} GB, and its disk has {free / _GB:.1f} GB left; "
            "fix: make room, or name a folder on another disk with --out"
        )
