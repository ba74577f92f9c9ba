"""What has changed in a recipe since a run began: which settings decide its results, and which don't."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal

from metareward.config.schema import GateSettings, Recipe
from metareward.engines.local.workers import LocalSettings
from metareward.engines.openai.engine import OpenAISettings
from metareward.engines.ray.settings import one_engine
from metareward.engines.vllm import VllmSettings
from metareward.errors import UserError
from metareward.evaluation.base import Benchmark
from metareward.evaluation.judges import judge_name
from metareward.method.gates import GATES
from metareward.method.import_path import import_name
from metareward.pipeline.engines import judge_fingerprint
from metareward.storage.serialization import fingerprint_of, flatten

# Settings that a resumed run may change: where and how fast the work is done and when it is stopped, never its result.
# The dtype that 'auto' stood for is in the records' fingerprints, so that it can be set to that on another machine.
CHANGEABLE = frozenset(
    [
        f"engine.{name}"
        for settings in (LocalSettings, OpenAISettings, VllmSettings)
        for name in settings.model_fields
        if name not in ("kind", "model", "max_num_seqs", "deterministic")
    ]
    + [f"training.{name}" for name in ("device", "num_processes", "sharding", "save_steps", "report_to")]
    + ["training.checkpoint_selection.keep_all", "training.keep_models", "prompts.in_flight", "judge_check.action"]
    + ["training.launcher", "training.max_restarts", "training.start_timeout"]
    + [f"judge_health.{gate}.{name}" for gate in GATES for name in GateSettings.model_fields]
)
# What nothing depends on before the first training; another start is another experiment.
_TRAINS = re.compile(r"training\.(?!start)|iterations\.\d+\.(stop_after_epoch|num_train_epochs|learning_rate)$")
RUBRIC = "the rubric's text"
MEASURED = "benchmarks."
_DIGEST = re.compile("[0-9a-f]{64}")


def changed_settings(
    before: tuple[Recipe, Mapping[str, object]], now: tuple[Recipe, Mapping[str, object]], untrained: bool
) -> list[str]:
    """The settings that differ and decide results, each with its old and new value; both with the digests of inputs.

    ``untrained``: no model has been trained, so that nothing depends on the settings of training.
    """
    (old, measured), (new, measuring) = _compared(*before), _compared(*now)
    # Benchmarks measure: they may come and go, but a name stands for one measurement.
    both = {key: value for key, value in measured.items() if key in measuring}
    old, new = {**old, **both}, {**new, **{key: measuring[key] for key in both}}
    keys = [key for key in old.keys() | new.keys() if key not in CHANGEABLE and not (untrained and _TRAINS.match(key))]
    return differences({key: old.get(key) for key in keys}, {key: new.get(key) for key in keys})


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """The keys of which the values differ, as ``key (old -> new)``."""
    changed = (key for key in sorted({*before, *now}) if before.get(key) != now.get(key))
    return [f"{key} ({shown(before.get(key))} -> {shown(now.get(key))})" for key in changed]


def _compared(recipe: Recipe, inputs: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """What a run is held to, by key: of everything but benchmarks, and of each benchmark by its name."""
    plain = {key: value for key, value in inputs.items() if not key.startswith(MEASURED)}
    settings = {key: value for key, value in recipe.resolved().items() if key != "benchmarks"}
    settings["engine"] = one_engine(recipe.engine).model_dump(mode="json")  # on a cluster or not
    return flatten({**settings, **plain}), measurements(recipe, inputs)


_META_JUDGING = re.compile(r"meta_judg|judgments\.min_valid$")
_JUDGING = re.compile(r"(meta_)?judg|reward")


def shared_part(fields: Collection[str]) -> Literal["all", "judgments", "answers"] | None:
    """What records have in common whose fingerprints differ in these fields: with ``judgments`` also the answers.

    Answers depend on the model, the prompt, its seed and the sampling of all K; judgments also on the rubric, their
    sampling and N: the samples of N and of more judgments are of different shapes, so that they are all sampled anew.
    """
    if not fields:
        return "all"
    if all(map(_META_JUDGING.match, fields)):
        return "judgments"
    return "answers" if all(map(_JUDGING.match, fields)) else None


def measurement_inputs(benchmark: Benchmark) -> Iterator[tuple[str, str]]:
    """The digests of what a benchmark only names: its class, its texts, its judge."""
    if ":" in benchmark.kind:
        yield f"{MEASURED}{benchmark.name}: the source of {benchmark.kind}", import_name(benchmark.kind, "kind").sha256
    judge = benchmark.asked_judge
    try:
        for name, digest in benchmark.digests().items():
            yield f"{MEASURED}{benchmark.name}: {name}", digest
        if judge is not None and (found := judge_fingerprint(judge)):
            yield f"{MEASURED}{benchmark.name}: judge {judge}", fingerprint_of(found)
    except UserError:
        return  # a file that is gone is missed where it is needed: by the benchmarks' own check


def measurements(recipe: Recipe, inputs: Mapping[str, object]) -> dict[str, object]:
    """What decides the results of each benchmark, by its name and setting."""
    found = {key: value for key, value in inputs.items() if key.startswith(MEASURED)}
    for benchmark in recipe.benchmarks:
        for key, value in benchmark.model_dump(mode="json", exclude=set(benchmark.changeable)).items():
            # Where a judge's server is doesn't count.
            found[f"{MEASURED}{benchmark.name}.{key}"] = judge_name(value) if key == "judge" else value
    return found


def shown(value: object) -> str:
    """A setting as JSON; of a digest the first digits."""
    return value[:12] if isinstance(value, str) and _DIGEST.fullmatch(value) else json.dumps(value, ensure_ascii=False)


def read_json(path: Path) -> dict[str, object]:
    """A JSON file that `BoundRecipe.begin` wrote. Raises `UserError` if it is damaged."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: can't be read ({error}); fix: restore it, or give another folder with --out"
        ) from None
