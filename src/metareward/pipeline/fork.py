"""Forks a run: the new run takes over from another one, its parent, all that its own recipe would make the same.

What is the same follows from the inputs of each result, not from a list of settings: of records and evaluations from
their stores' fingerprints, of pairs from records and rules, of a model from start, reference, pairs and training
settings, of a benchmark from everything that it measures with. The first model that differs ends the fork, as all that
follows depends on it. Stores are copied as snapshots, weights are hard links where possible; the parent is only read,
and the fork doesn't need it afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from metareward.config.schema import Recipe, load_recipe
from metareward.errors import UserError
from metareward.evaluation.worlds import WORLDS
from metareward.pipeline import stages
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.changes import CHANGEABLE, differences, measurements, read_json, shared_part
from metareward.report.facts import evaluated_digest
from metareward.storage import manifest
from metareward.storage.atomic import copy_dir, write_atomic, write_errors
from metareward.storage.custody import LINEAGE, fingerprint_model, weights_deleted
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import log_event, stage_seconds
from metareward.storage.serialization import fingerprint_of, flatten
from metareward.storage.store import RecordStore, snapshot
from metareward.training.config import DpoJob
from metareward.training.lineage import adapter_base, other_identity, read_lineage, start_and_reference


def fork_of(bound: BoundRecipe, parent: RunDir) -> Fork:
    """The fork of ``parent`` that ``bound`` is to be. Raises `UserError` when that is no run, or the same one."""
    parent.require()
    if bound.run.path.resolve() == parent.path.resolve():
        raise UserError(f"--from {parent.path}: the fork needs a folder of its own; fix: name one with --out")
    return Fork(bound, parent, load_recipe(str(parent.resolved)))


def require_parent(run: RunDir, parent: Path) -> None:
    """Raise `UserError` if the fork ``run`` was begun from another run than ``parent``, which may be gone by now."""
    first = run.path / str(read_json(run.fork).get("parent"))
    if first.resolve() != parent.resolve():
        raise UserError(
            f"--from {parent}: {run.path} is a fork of {first.resolve()}; fix: name another folder with --out, or "
            "leave --from out to go on with it"
        )


@dataclass(frozen=True)
class Fork:
    """Takes results over from ``parent``, whose recipe is ``before``, and records what was reused."""

    bound: BoundRecipe
    parent: RunDir
    before: Recipe
    reused: dict[str, list[str]] = field(default_factory=dict)  # by iteration, such as "iteration 1"
    anew: dict[str, list[str]] = field(default_factory=dict)  # what isn't, with the settings that differ

    def take_over(self) -> None:
        """Copy what is the same, write what that is, and log it. The fork's folder must be locked and begun."""
        for t in range(self.bound.last + 1):
            if t and not self._take_training(t):
                break
            self._take_evaluation(t)
        parent, here = self.parent, self.bound.run
        changed = differences(flatten(self.before.resolved()), flatten(self.bound.recipe.resolved()))
        found = {
            "parent": Path(os.path.relpath(parent.path, here.path)).as_posix(),
            "parent_name": self.before.name,
            "parent_recipe": fingerprint_of(self.before.resolved()),
            "parent_manifest": self._parent_manifest(),
            "changed": changed,
            "reused": self.reused,
            "anew": self.anew,
        }
        write_atomic(here.fork, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        log_event(here, "forked", parent=str(parent.path), changed=", ".join(changed) or "nothing")
        for where in dict.fromkeys([*self.reused, *self.anew]):
            why = "; ".join(self.anew.get(where, ()))
            log_event(
                here, "reused", of=where, what=", ".join(self.reused.get(where, ["nothing"])), anew=why or "nothing"
            )

    def _parent_manifest(self) -> str | None:
        """The digest of the parent's manifest, which names all that was taken over; None where it has none."""
        entries = manifest.read_manifest(self.parent)
        return manifest.digest_of(entries) if entries else None

    def _note_reused(self, t: int, what: str, *seconds: str) -> None:
        """``what`` of iteration ``t`` is taken over; ``seconds``: the stages that it took."""
        self.reused.setdefault(f"iteration {t}", []).append(what)
        spent = stage_seconds(self.parent, t)
        now = stage_seconds(self.bound.run, t) | {stage: spent[stage] for stage in seconds if stage in spent}
        write_atomic(self.bound.run.iteration(t).seconds, json.dumps(now) + "\n")

    def _note_anew(self, t: int, what: str, why: list[str]) -> None:
        self.anew.setdefault(f"iteration {t}", []).append(f"{what}: {', '.join(why)}")

    # --- records, pairs, model ---

    def _take_training(self, t: int) -> bool:
        """Take iteration ``t``'s records, pairs and model over as far as they are the same; whether the model is."""
        return self._take_records(t) and self._take_pairs(t) and self._take_model(t)

    def _take_records(self, t: int) -> bool:
        theirs, ours = self.parent.iteration(t), self.bound.run.iteration(t)
        if not theirs.records.is_file():
            self._note_anew(t, "records", ["the parent has none"])
            return False
        with RecordStore.read(theirs.records) as store:
            changed = store.differences(self.bound.generation_fingerprint(t))
            count = len(store.keys())
        shared = shared_part(changed)
        if shared is None or not count:
            self._note_anew(t, "records", _named(changed) or ["the parent has none"])
            return False
        if shared != "all":
            if not ours.earlier.is_file():
                snapshot(theirs.records, ours.earlier)
            what = "answers and judgments" if shared == "judgments" else "answers"
            self._note_reused(t, f"{what} of {count} prompts")
            self._note_anew(t, "meta-judgments" if shared == "judgments" else "judgments", _named(changed))
            return False
        if not ours.records.is_file():
            snapshot(theirs.records, ours.records)
        self._note_reused(t, f"records of {count} prompts", "generating")
        return True

    def _take_pairs(self, t: int) -> bool:
        theirs, ours = self.parent.iteration(t), self.bound.run.iteration(t)
        if t not in self.before.iterations or not theirs.summary.is_file():
            self._note_anew(t, "pairs", ["the parent has none"])
            return False
        before, now = (_pairs_inputs(each, t) for each in (self.before, self.bound.recipe))
        if before != now:
            self._note_anew(t, "pairs", differences(before, now))
            return False
        if not ours.summary.is_file():
            manifest.require_whole(self.parent, theirs.summary.parent, theirs.dropped)
            for path in (theirs.pairs("actor"), theirs.pairs("judge"), theirs.dropped, theirs.summary):  # it comes last
                write_atomic(ours.path / path.relative_to(theirs.path), _bytes(path))
        self._note_reused(t, "pairs")
        return True

    def _take_model(self, t: int) -> bool:
        folder, model = self.parent.iteration(t).model, self.bound.model(t)
        if not folder.is_dir():
            self._note_anew(t, "model", ["the parent has none"])
            return False
        if weights_deleted(folder):
            self._note_anew(t, "model", ["the parent's weights are deleted (training.keep_models)"])
            return False
        self.bound.make_reference(t)
        job, lineage = stages.training_job(self.bound, t), read_lineage(folder)
        other = other_identity(lineage, job)
        changed = differences(*(_training_inputs(each, t) for each in (self.before, self.bound.recipe)))
        selects = self.bound.recipe.training.checkpoint_selection.metric is not None
        if selects and f"evaluation of M{t - 1}" not in self.reused.get(f"iteration {t - 1}", ()):
            changed.append("training.checkpoint_selection selects by another evaluation")
        if changed or other:
            self._note_anew(t, "model", changed or differences(*_columns(other)))
            return False
        try:
            manifest.require_whole(self.parent, folder)
        except UserError as error:
            self._note_anew(t, "model", [f"the parent's is damaged: {error}"])
            return False
        if (evaluated := evaluated_digest(self.parent, t)) not in (None, fingerprint_model(folder)):
            self._note_anew(t, "model", [f"the parent's is damaged: not the one that was evaluated ({evaluated:.12})"])
            return False
        if not model.is_dir():
            copy_dir(folder, model, {LINEAGE: _lineage_here(folder, job)})
            log = self.parent.iteration(t).path / job.log.name
            if log.is_file():
                write_atomic(job.log, _bytes(log))
        self._note_reused(t, f"model M{t}", "training", "choosing")
        return True

    # --- evaluation, benchmarks ---

    def _take_evaluation(self, t: int) -> None:
        theirs, ours = self.parent.iteration(t).evaluation, self.bound.run.iteration(t).evaluation
        if not (theirs / "records.sqlite").is_file():
            self._note_anew(t, "evaluation", ["the parent has none"])
            return
        with RecordStore.read(theirs / "records.sqlite") as store:
            changed = store.differences(self.bound.evaluation_fingerprint(t))
        if changed:
            self._note_anew(t, "evaluation", _named(changed))
            return
        ours.mkdir(parents=True, exist_ok=True)
        if not (ours / "records.sqlite").is_file():
            snapshot(theirs / "records.sqlite", ours / "records.sqlite")
        before, now = (_figures_inputs(each, t) for each in (self.before, self.bound.recipe))
        if before == now and (theirs / "model.json").is_file():
            manifest.require_whole(self.parent, theirs / "model.json")
            write_atomic(ours / "model.json", _bytes(theirs / "model.json"))
        self._note_reused(t, f"evaluation of M{t}", "evaluating")
        for benchmark in self.bound.recipe.benchmarks:
            self._take_benchmark(t, benchmark.name)

    def _take_benchmark(self, t: int, name: str) -> None:
        theirs, ours = self.parent.iteration(t).evaluation / name, self.bound.run.iteration(t).evaluation / name
        if not theirs.is_dir():
            return
        before, now = (
            _benchmark_inputs(recipe, read_json(run.inputs), name)
            for recipe, run in ((self.before, self.parent), (self.bound.recipe, self.bound.run))
        )
        if before != now:
            self._note_anew(t, f"benchmark {name}", differences(before, now))
            return
        manifest.require_whole(self.parent, theirs)
        _copy_results(theirs, ours)
        _copy_results(self.parent.verdicts / name, self.bound.run.verdicts / name)
        self._note_reused(t, f"benchmark {name}", "benchmarks")


# --- the inputs of each result ---


def _pairs_inputs(recipe: Recipe, t: int) -> dict[str, object]:
    """What decides the pairs and their figures besides the records; rules under their keys in a recipe."""
    names = {"rho", "max_answer_chars", "judge_pairs", "max_judgment_chars"}
    iteration = recipe.iterations[t].model_dump(include=names)
    rules = flatten({"pairs": recipe.pairs.model_dump(mode="json"), f"iterations.{t}": iteration})
    return rules | {"judgments.min_valid": recipe.judgments.min_valid, "oracle": _oracle(recipe)}


def _training_inputs(recipe: Recipe, t: int) -> dict[str, object]:
    """The settings of training that decide M_t's weights, bit by bit; start and reference go by their digests."""
    training = recipe.training_of(t)
    settings = {f"training.{name}": value for name, value in flatten(training.model_dump(mode="json")).items()}
    selects = training.checkpoint_selection.metric is not None
    left_out = (*CHANGEABLE, *(f"training.{name}" for name in ("start", "reference", "ema_decay")))
    found = {
        name: value
        for name, value in settings.items()
        if name not in left_out and (selects or not name.startswith("training.checkpoint_selection."))
    }
    return {**found, "training.stop_after_epoch": training.last_epoch}


def _figures_inputs(recipe: Recipe, t: int) -> dict[str, object]:
    """What decides M_t's figures besides the records of its evaluation."""
    later = any(recipe.runs_meta_judge(each) for each in recipe.iterations if each > t)
    return {"oracle": _oracle(recipe), "meta-judge later": later}


def _benchmark_inputs(recipe: Recipe, inputs: Mapping[str, object], name: str) -> dict[str, object]:
    """What decides a benchmark's results besides the models."""
    names = {"seed", "answers", "judgments", "reasoning", "judge", "reward"}
    key = f"benchmarks.{name}"
    measured = {k: v for k, v in measurements(recipe, inputs).items() if k.startswith((f"{key}.", f"{key}:"))}
    return {**flatten(recipe.model_dump(mode="json", include=names)), **measured, "oracle": _oracle(recipe)}


def _oracle(recipe: Recipe) -> str:
    return recipe.prompts.source if recipe.prompts.source in WORLDS else "none"


# --- copying ---


def _lineage_here(folder: Path, job: DpoJob) -> str:
    """The lineage of the model in ``folder`` with paths from where ``job`` would have written it."""
    lineage = read_lineage(folder)
    start, reference = start_and_reference(job)
    base = None
    if lineage.base is not None:
        base = replace(lineage.base, path=Path(os.path.relpath(adapter_base(job), job.output)).as_posix())
    return replace(lineage, start=start, reference=reference, base=base).to_json()


def _copy_results(folder: Path, target: Path) -> None:
    """Copy what isn't there yet: stores as snapshots, other files whole."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        here = target / path.relative_to(folder)
        if here.exists() or not path.is_file() or path.name.endswith(("-wal", "-shm", ".tmp")):
            continue
        if path.suffix == ".sqlite":
            snapshot(path, here)
            continue
        with write_errors(here):
            here.parent.mkdir(parents=True, exist_ok=True)
            temporary = here.with_name(f".{here.name}.{os.getpid()}.tmp")
            shutil.copyfile(path, temporary)
            temporary.replace(here)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}; fix: restore it, or run without --from") from None


def _columns(changed: Mapping[str, tuple[object, object]]) -> tuple[dict[str, object], dict[str, object]]:
    return {name: old for name, (old, _) in changed.items()}, {name: new for name, (_, new) in changed.items()}


def _named(changed: Mapping[str, tuple[str | None, str | None]]) -> list[str]:
    """The differing fields of a store's fingerprint, with their values."""
    old, new = _columns({name: tuple(map(_value, pair)) for name, pair in changed.items()})  # type: ignore[misc]
    return differences(old, new)


def _value(text: str | None) -> object:
    return None if text is None else json.loads(text)
