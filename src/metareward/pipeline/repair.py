"""``metareward verify RUN --repair``: has what is damaged made again, and nothing else.

A damaged record is deleted, so that the next start makes exactly this record again; files that others follow from in
seconds (pairs, figures) are deleted, models that are damaged as well. Seeds are derived, so what is made again is what
was there before, and what was made from it stays. If it comes out differently (servers, another machine), the next
start says so, and a second repair deletes what is out of date.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import yaml

from metareward.config.schema import load_recipe
from metareward.data.prompts import write_prompts
from metareward.errors import UserError
from metareward.pipeline.benchmarks import benchmark_runs
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.verify import Finding, entries_of, verify
from metareward.report.cards import CARD, write_model_card
from metareward.storage import manifest
from metareward.storage.atomic import write_atomic, write_errors
from metareward.storage.custody import digest, weights_deleted
from metareward.storage.manifest import LARGE, STORE, Entry
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import environment_text, log_event
from metareward.storage.salvage import salvage

_SET_ASIDE = frozenset({"seconds.json", "training.jsonl", "fork.json"})


def repair(run: RunDir) -> Iterator[str]:
    """Have everything that is damaged made again; yields what was done, a line each.

    Raises `UserError` at the end for what can't be made again, and while a run is active in the folder.
    """
    with run.lock():
        mender, left = _Mender(run), []
        for finding in sorted(verify(run).findings, key=lambda each: _order(each.name)):
            try:
                done = mender.mend(finding)
            except UserError as error:
                left.append(str(error))
                continue
            log_event(run, "repaired", what=finding.name, problem=finding.problem, done=done)
            yield f"{finding.name}: {done}"
        if mender.changed:
            run.report.unlink(missing_ok=True)  # so that the next start goes through all iterations
    if left:
        raise UserError(f"{run.path}: {len(left)} of the files can't be made again: {'; '.join(left)}")


def _order(name: str) -> int:
    """First what the others are mended by."""
    first = ("manifest.json", "manifest.copy.json", "resolved.json")
    return first.index(name) if name in first else len(first)


class _Mender:
    def __init__(self, run: RunDir) -> None:
        self._run = run
        self.changed = False

    def mend(self, finding: Finding) -> str:
        """Mend one finding; what was done. Raises `UserError` for what can't be made again."""
        self.changed = True
        path, (first, *inside) = self._run.path / finding.name, Path(finding.name).parts
        if not first.startswith("iter-"):
            return self._mend_root(path)
        t, at = int(first.removeprefix("iter-")), inside[0]
        if path.name in _SET_ASIDE:
            return self._set_aside(path)
        if at.startswith("."):  # a training that isn't finished
            shutil.rmtree(path, ignore_errors=True)
            return "deleted; the training goes on from an earlier state or begins again"
        if at == "prompts.jsonl":
            return self._rewrite(path, "the prompt source")
        if at == "done.json":
            return self._delete(t, path)
        if at in ("pairs", "dropped.jsonl"):
            self._delete(t, self._run.iteration(t).summary.parent, self._run.iteration(t).dropped)
            return "deleted; the pairs of this iteration are built again"
        if path.suffix == STORE:
            return self._mend_store(t, path, finding)
        if at == "eval":
            return self._mend_measurement(t, path)
        if path.name == CARD:
            manifest.record(self._run, write_model_card(self._run, t))
            return "written again"
        if (twin := self._twin(path)) is not None:
            write_atomic(path, twin.read_bytes())
            manifest.record(self._run, path)
            return f"copied from {twin.parent}, where it is the same"
        return self._delete_model(t, self._run.iteration(t).path / at)

    # --- the run's own files ---

    def _mend_root(self, path: Path) -> str:
        run = self._run
        if path in (run.manifest, run.manifest_copy):
            entries = entries_of(run, {})
            manifest.write_manifest(run, entries)
            if not entries:
                manifest.record_complete(run)
                return "written again from the files; what contradicts itself is named by the next verify"
            return "written again from its copy"
        if path == run.recipe:
            manifest.require_whole(run, run.resolved)
            with manifest.changing(run, path):
                text = yaml.safe_dump(load_recipe(str(run.resolved)).resolved(), sort_keys=False, allow_unicode=True)
                write_atomic(path, text)
            return "written again from resolved.json, without comments"
        if path == run.environment:
            with manifest.changing(run, path):
                write_atomic(path, environment_text())
            return "written again: it names this machine and this moment now"
        if path in (run.resolved, run.inputs):
            return self._rewrite(path, "recipe.yaml" if path == run.resolved else "what the recipe names")
        if path == run.fork:
            return self._set_aside(path)
        if path.suffix == STORE:
            return self._mend_store(None, path, Finding(path.name, ""))
        manifest.forget(run, path)
        path.unlink(missing_ok=True)
        return "deleted; the next start writes it again if the run still needs it"

    def _rewrite(self, path: Path, source: str) -> str:
        """Write a file again, if ``source`` still gives the same one. Raises `UserError` if it doesn't."""
        run, name = self._run, path.relative_to(self._run.path).as_posix()
        entry = manifest.read_manifest(run).get(name)
        new = path.with_name(f".{path.name}.new.{os.getpid()}.tmp")
        try:
            if path == run.resolved:
                write_atomic(new, BoundRecipe(run, load_recipe(str(run.recipe))).resolved_text)
            elif path == run.inputs:
                write_atomic(new, BoundRecipe(run, load_recipe(str(run.resolved))).inputs_text)
            else:
                bound = BoundRecipe(run, load_recipe(str(run.resolved)))
                write_prompts(new, bound.choose_prompts(int(path.parent.name.removeprefix("iter-"))))
            if entry is None or digest(new) != entry.sha256:
                raise UserError(f"{path}: {source} gives another file now; fix: restore it from a copy")
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        manifest.record(run, path)
        return f"written again from {source}"

    # --- what is made again ---

    def _mend_store(self, t: int | None, path: Path, finding: Finding) -> str:
        """Delete the damaged records of a store, or what was made from it, if it is out of date."""
        run = self._run
        if finding.stale:
            manifest.forget(run, path)
            path.unlink(missing_ok=True)
            kept = 0
        else:
            expected = self._entry(path)
            kept = salvage(path, finding.keys, self._settings_of(t, path))
            manifest.forget(run, path)
            if expected is not None and path.is_file() and manifest.entry_of(path).sha256 == expected.sha256:
                manifest.record(run, path)
                return f"copied into a new file: all its {kept} records are whole"
        if t is None or path.parent.parent == run.iteration(t).evaluation:  # what a benchmark asked
            return f"{kept} records kept; others are asked for again where they are needed"
        folder = run.iteration(t)
        self._undo(t)
        if path == folder.records:
            if finding.stale:
                self._delete(t, folder.summary.parent, folder.dropped)
            self._need_weights(t - 1)
        elif path.parent == folder.evaluation:
            self._delete(t, path.with_name("model.json" if path.name == "records.sqlite" else f"{path.stem}.json"))
            self._need_weights(t)
        return f"{kept} records kept; the next start makes the others again"

    def _settings_of(self, t: int | None, path: Path) -> dict[str, object] | None:
        """What makes the records of a store; None where that isn't known."""
        with suppress(UserError):
            bound = BoundRecipe(self._run, load_recipe(str(self._run.resolved)))
            if t and path == self._run.iteration(t).records:
                return bound.generation_fingerprint(t)
            if t is not None and path == self._run.iteration(t).evaluation / "records.sqlite":
                return bound.evaluation_fingerprint(t)
        return None

    def _mend_measurement(self, t: int, path: Path) -> str:
        """Have figures computed again from what is stored."""
        self._delete(t, path)
        if path.parent != self._run.iteration(t).evaluation:
            self._delete(t, path.with_name("result.json"))
            bound = BoundRecipe(self._run, load_recipe(str(self._run.resolved)))
            for each in benchmark_runs(bound, t):
                asks = each.benchmark.asked_judge == "itself" or path == each.answers
                if each.folder == path.parent and asks:
                    self._need_weights(t)
        return "deleted; it is computed again from what is stored"

    def _twin(self, path: Path) -> Path | None:
        """The same file in another model's folder, as tokenizers and configurations are."""
        entry = self._entry(path)
        try:
            bound = BoundRecipe(self._run, load_recipe(str(self._run.resolved)))
            twins = [bound.model(t) / path.name for t in range(bound.last + 1)]
            whole = (each for each in twins if each != path and each.is_file() and each.stat().st_size < LARGE)
            return next((each for each in whole if entry is not None and digest(each) == entry.sha256), None)
        except UserError:
            return None

    def _delete_model(self, t: int, folder: Path) -> str:
        self._delete(t, folder)
        self._need_weights(t - 1)
        return "deleted; it is trained again, and has to come out the same"

    def _need_weights(self, t: int) -> None:
        """Have M_t trained again, if its weights were deleted (``training.keep_models``)."""
        folder = self._run.iteration(t).path
        for name in ("reference", "model") if t > 0 else ():
            if weights_deleted(folder / name):
                self._delete_model(t, folder / name)

    def _delete(self, t: int, *paths: Path) -> str:
        manifest.forget(self._run, *paths)
        for path in paths:
            with write_errors(path):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        self._undo(t)
        return "deleted; the next start writes it again"

    def _undo(self, t: int) -> None:
        """Iteration ``t`` isn't done any more."""
        done = self._run.iteration(t).done
        manifest.forget(self._run, done)
        done.unlink(missing_ok=True)

    def _set_aside(self, path: Path) -> str:
        manifest.forget(self._run, path)
        if path.is_file():
            path.replace(path.with_name(f"{path.name}.damaged"))
        return f"set aside as {path.name}.damaged; no result follows from it"

    def _entry(self, path: Path) -> Entry | None:
        entries: Mapping[str, Entry] = manifest.read_manifest(self._run)
        return entries.get(path.relative_to(self._run.path).as_posix())
