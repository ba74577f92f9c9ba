"""A recipe bound to a run folder: which model, which prompts, which settings each stage gets.

This is where a recipe is taken apart: everything below gets plain values.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from metareward.config.schema import (
    AnswerSettings,
    JudgmentSettings,
    MetaJudgmentSettings,
    Recipe,
    RoleSettings,
    engine_fingerprint,
    generation_fingerprint,
    load_recipe,
)
from metareward.data.prompts import digest_prompts, load_prompts, prompts_of_iteration, split_held_out, write_prompts
from metareward.engines.base import Engine, RoleEngines
from metareward.engines.local.workers import LocalSettings
from metareward.engines.openai.engine import OpenAISettings
from metareward.engines.vllm.engine import VllmSettings
from metareward.errors import UserError
from metareward.evaluation.held_out import Oracle
from metareward.evaluation.judges import judge_kind
from metareward.generation.annotate import AnnotationSettings, annotation_fingerprint
from metareward.generation.usage import log_usage
from metareward.method.judge import Reasoning, Rubric, with_system
from metareward.method.meta_judge import MetaRubric
from metareward.pipeline.engines import POCKET, model_folder, open_engine
from metareward.pocket import world
from metareward.seeds import derive
from metareward.settings import Imported, import_name, import_object
from metareward.storage.atomic import write_atomic
from metareward.storage.custody import fingerprint_model
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import environment
from metareward.storage.serialization import flatten
from metareward.training.average import make_average
from metareward.training.config import DpoJob
from metareward.types import ModelRole, PairKind, Prompt, Sampling

# What may change between two runs in one folder: where and how fast the work is done, never what it means. What a dtype
# of 'auto' came to is in the records' own fingerprints, so that it can be set to that on another machine.
_FREE = frozenset(
    [
        f"engine.{name}"
        for settings in (LocalSettings, OpenAISettings, VllmSettings)
        for name in settings.model_fields
        if name not in ("kind", "model", "max_num_seqs", "deterministic")
    ]
    + [f"training.{name}" for name in ("device", "num_processes", "sharding", "save_steps", "report_to")]
    + ["training.checkpoint_selection.keep_all"]
)
_RUBRIC = "the rubric's text"
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Experiment:
    """One run: its folder and its recipe."""

    run: RunDir
    recipe: Recipe

    @property
    def last(self) -> int:
        """T, the number of iterations."""
        return len(self.recipe.iterations)

    @property
    def oracle(self) -> Oracle | None:
        """The truth, where the prompts are the pocket world's."""
        return world.PocketOracle() if self.recipe.prompts.source == POCKET else None

    def model(self, t: int) -> Path:
        """The folder of M_t; M_0 is the recipe's model."""
        if t:
            return self.run.iteration(t).model
        return model_folder(self.recipe.model)

    def complete(self) -> bool:
        """Whether nothing is owed but, perhaps, the report."""
        return all(self.run.iteration(t).done.is_file() for t in range(1, self.last + 1))

    # --- its beginning ---

    def check(self) -> None:
        """Look at all that the run needs and write nothing.

        Raises `UserError` for a model that isn't there, a bad rubric or prompt file, and too few prompts; where the
        run was begun before, it names every setting that has changed since, and model or rubrics if their files have.
        """
        inputs = self._inputs
        if self.run.resolved.is_file():
            _refuse_changes(self.run.path, self._kept_settings(), {**self.recipe.resolved(), **inputs})
        else:
            self._choose(self.last)

    def begin(self, recipe_text: str) -> None:
        """Write down what the run is made of, unless that is done. The run folder must be locked."""
        self.check()
        if self.run.resolved.is_file():
            return
        for t in range(self.last + 1):  # whatever a start that died, or that had another recipe, has left there
            write_prompts(self.run.iteration(t).prompts, self._choose(t))
        write_atomic(self.run.recipe, recipe_text)
        write_atomic(self.run.environment, _json(environment()))
        write_atomic(self._inputs_file, _json(self._inputs))
        write_atomic(self.run.resolved, _json(self.recipe.resolved()))  # last: it says that the run has begun

    @cached_property
    def _objects(self) -> dict[str, Imported]:
        """The objects that the recipe names by import path, by setting."""
        recipe, found = self.recipe, {}
        if isinstance(recipe.judge, str):
            found["judge"] = import_object(recipe.judge, "judge", ("judge",))
        if recipe.reward is not None:
            found["reward"] = import_object(recipe.reward, "reward", ("score",))
        return found

    @cached_property
    def _role_models(self) -> dict[ModelRole, RoleSettings]:
        """The roles that another model plays."""
        judges: dict[ModelRole, object] = {"judge": self.recipe.judge, "meta_judge": self.recipe.meta_judge}
        return {role: each for role, each in judges.items() if isinstance(each, RoleSettings)}

    def _role_fingerprint(self) -> dict[str, object]:
        """What the recipe's other judges and rewards are, for the fingerprint of records and the run's inputs."""
        found: dict[str, object] = {f"{key}'s source": each.sha256 for key, each in self._objects.items()}
        for role, each in self._role_models.items():
            found |= {f"{role}.{key}": value for key, value in engine_fingerprint(each.engine).items()}
            if each.model is not None:
                found[f"{role}.model's files"] = fingerprint_model(model_folder(each.model))
        return found

    @cached_property
    def _inputs(self) -> dict[str, object]:
        """What the recipe only names: the files of M_0 and the texts of the rubrics, by their SHA-256."""
        settings, given = self.settings(1), self._given_start
        return {
            "the model's files": fingerprint_model(self.model(0)),
            **({} if given is None else {"training.start's files": fingerprint_model(given)}),
            **{f"the source of {path}": import_name(path, "benchmarks").sha256 for path in self._imported_benchmarks},
            _RUBRIC: settings.rubric.template.sha256,
            "the meta-judge's rubric's text": settings.metarubric.template.sha256,
            **self._role_fingerprint(),
        }

    @property
    def _imported_benchmarks(self) -> list[str]:
        """The import paths that the benchmarks name as their kind or judge."""
        judged = (each.asked_judge for each in self.recipe.benchmarks)
        judges = [judge for judge in judged if judge is not None and judge_kind(judge) == "object"]
        return [*(each.kind for each in self.recipe.benchmarks if ":" in each.kind), *judges]

    @property
    def _inputs_file(self) -> Path:
        return self.run.path / "inputs.json"

    def _kept_settings(self) -> dict[str, object]:
        """A setting that was not known yet when the run began has its default."""
        _read_json(self.run.resolved)
        return {**load_recipe(str(self.run.resolved)).resolved(), **_read_json(self._inputs_file)}

    # --- prompts ---

    @cached_property
    def _pool(self) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
        """(held out, the rest): no prompt is in both."""
        asked, seed = self.recipe.prompts, self.recipe.seed
        if asked.source == POCKET:
            if not isinstance(asked.held_out, int):
                raise UserError("prompts.held_out: with prompts.source pocket give a number, not a file")
            held = world.prompts(asked.held_out, derive(seed, "held out"), held_out=True)
            return held, world.prompts(asked.per_iteration * self.last, derive(seed, "prompts"))
        prompts = load_prompts(asked.source, asked.network, asked.field)
        if isinstance(asked.held_out, int):
            return split_held_out(prompts, asked.held_out, seed)
        held = load_prompts(asked.held_out, asked.network, asked.field)
        return held, _without(prompts, held)

    def _choose(self, t: int) -> tuple[Prompt, ...]:
        """The prompts of iteration ``t``; of iteration 0, those held out."""
        held_out, rest = self._pool
        chosen = prompts_of_iteration(rest, self.recipe.prompts.per_iteration, t, self.recipe.seed) if t else held_out
        system = self.recipe.answers.system_prompt
        return tuple(replace(prompt, messages=with_system(system, prompt.messages)) for prompt in chosen)

    @property
    def first_prompts(self) -> tuple[Prompt, ...]:
        """Iteration 1's prompts, as they will be chosen."""
        return self._choose(1)

    @property
    def held_out(self) -> tuple[Prompt, ...]:
        """The prompts that every model is measured on."""
        return self.prompts(0)

    def prompts(self, t: int) -> tuple[Prompt, ...]:
        """The prompts of iteration ``t``: the file in the run folder is what counts, from the beginning on."""
        return load_prompts(self.run.iteration(t).prompts)

    # --- what the stages get ---

    @property
    def rubric(self) -> Rubric:
        """The judge's rubric."""
        judgments = self.recipe.judgments
        return Rubric.load(
            judgments.rubric,
            min_score=judgments.min_score,
            max_score=judgments.max_score,
            system_prompt=judgments.system_prompt,
        )

    def first_rubric(self) -> Rubric:
        """The rubric that the run's judgments were asked by. Raises `UserError` if its text has changed since."""
        rubric, given = self.rubric, _read_json(self._inputs_file).get(_RUBRIC)
        if given != rubric.template.sha256:
            raise UserError(
                f"{self.recipe.judgments.rubric}: the rubric's text has changed since the judgments were asked for; "
                "put the earlier text back"
            )
        return rubric

    def settings(self, t: int) -> AnnotationSettings:
        """How iteration ``t`` generates."""
        recipe = self.recipe
        meta, thinking = recipe.meta_judgments, recipe.reasoning
        return AnnotationSettings(
            k=recipe.answers.k,
            n=0 if recipe.reward is not None else recipe.judgments.n,
            answers=_sampling(recipe.answers),
            judgments=_sampling(recipe.judgments),
            meta=_sampling(meta),
            rubric=self.rubric,
            metarubric=MetaRubric.load(meta.rubric, hide_scores=meta.hide_scores, system_prompt=meta.system_prompt),
            min_valid=recipe.judgments.min_valid,
            meta_judge=recipe.runs_meta_judge(t),
            seed=derive(recipe.seed, "iteration", t),
            reasoning=Reasoning(thinking.start, thinking.end) if thinking.strip else None,
            expected=recipe.judgments.score == "expected",
            judge=self._objects["judge"].value if "judge" in self._objects else None,
            reward=self._objects["reward"].value if "reward" in self._objects else None,
        )

    @property
    def meta_judged(self) -> int:
        """The first iteration that asks the meta-judge; the first of all if none does."""
        return next((t for t in sorted(self.recipe.iterations) if self.recipe.runs_meta_judge(t)), 1)

    def evaluation_settings(self) -> AnnotationSettings:
        """How every model is measured."""
        asked = self.recipe.evaluation
        base = replace(self.settings(1), meta_judge=False, seed=derive(self.recipe.seed, "evaluation"))
        return replace(base, k=asked.answers, n=asked.judgments, min_valid=1)

    def generation_fingerprint(self, t: int) -> dict[str, object]:
        """What decides iteration ``t``'s records, which M_{t-1} makes."""
        settings = self.settings(t)
        return self._role_fingerprint() | generation_fingerprint(
            self.recipe,
            t,
            model=fingerprint_model(self.model(t - 1)),
            prompts=digest_prompts(self.prompts(t)),
            rubric=settings.rubric.template.sha256,
            metarubric=settings.metarubric.template.sha256,
        )

    def evaluation_fingerprint(self, t: int) -> dict[str, object]:
        """What decides the measuring of M_t."""
        settings = replace(self.evaluation_settings(), meta_judge=True)
        asked = {f"evaluation.{name}": value for name, value in self.recipe.evaluation.model_dump().items()}
        return {
            "model": fingerprint_model(self.model(t)),
            "anchors": fingerprint_model(self.model(0)),
            "prompts": digest_prompts(self.held_out),
            **flatten(annotation_fingerprint(settings)),
            **asked,
            **engine_fingerprint(self.recipe.engine),
            **self._role_fingerprint(),
        }

    async def engine(self, t: int) -> Engine:
        """M_t ready to complete, beside the models that the recipe names for single roles."""
        folder = self.run.iteration(t).path
        own = await open_engine(self.recipe.engine, self.model(t), t, folder)
        engines: dict[ModelRole, Engine] = {"actor": own, "judge": own, "meta_judge": own}
        try:
            for role, each in self._role_models.items():
                model = model_folder(each.model or self.recipe.model)
                engines[role] = log_usage(self.run, role, await open_engine(each.engine, model, t, folder))
        except BaseException:
            await RoleEngines(engines).aclose()
            raise
        return RoleEngines(engines) if self._role_models else own

    def job(self, t: int, kinds: tuple[PairKind, ...]) -> DpoJob:
        """The training of M_t, on the pairs of ``kinds``."""
        settings, folder = self.recipe.training_of(t), self.run.iteration(t)
        return DpoJob(
            settings=settings,
            start=self.start(t),
            reference=self.reference(t),
            data=tuple(folder.pairs(kind) for kind in kinds),
            output=folder.model,
            log=folder.path / "training.jsonl",
            seed=derive(self.recipe.seed, "training", t) % 2**31,
            threads=_cores(),
            run_name=f"{self.recipe.name}-M{t}",
            keep_epochs=settings.checkpoint_selection.metric is not None,
        )

    @property
    def _given_start(self) -> Path | None:
        """The folder that every iteration starts from, if the recipe names one."""
        start = self.recipe.training.start
        return None if start in ("previous", "m0") else Path(start)

    def start(self, t: int) -> Path:
        """The model that iteration ``t`` trains."""
        return self._given_start or self.model(t - 1 if self.recipe.training.start == "previous" else 0)

    def reference(self, t: int) -> Path:
        """DPO's reference in iteration ``t``; a moving average is to be made first, by `average`."""
        asked = self.recipe.training.reference
        if asked == "ema":
            return self.run.iteration(t).path / "reference" if t > 1 else self.model(0)
        return {"start": self.start(t), "previous": self.model(t - 1), "m0": self.model(0)}[asked]

    def average(self, t: int) -> None:
        """Make iteration ``t``'s reference where it is a moving average; where it isn't, or is there, do nothing."""
        if self.recipe.training.reference == "ema" and t > 1:
            earlier, newer = self.reference(t - 1), self.model(t - 1)
            make_average(earlier, newer, self.recipe.training.ema_decay, self.reference(t))


def _refuse_changes(folder: Path, kept: Mapping[str, object], given: Mapping[str, object]) -> None:
    before, now = flatten(kept), flatten(given)
    changed = [
        f"{key} ({_shown(before.get(key))} -> {_shown(now.get(key))})"
        for key in sorted({*before, *now} - _FREE)
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise UserError(
            f"{folder}: the recipe has changed since this run began: {', '.join(changed)}; "
            "fix: set it back, or give another folder with --out"
        )


def _shown(value: object) -> str:
    """A setting as JSON; of a digest_prompts, its first digits."""
    return value[:12] if isinstance(value, str) and _DIGEST.fullmatch(value) else json.dumps(value, ensure_ascii=False)


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


def _read_json(path: Path) -> dict[str, object]:
    """A file that `Experiment.begin` wrote. Raises `UserError` when it was changed into something else."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: can't be read ({error}); fix: restore it, or give another folder with --out"
        ) from None


def _sampling(section: AnswerSettings | JudgmentSettings | MetaJudgmentSettings) -> Sampling:
    return Sampling(section.temperature, section.top_p, section.max_tokens)


def _without(prompts: tuple[Prompt, ...], held: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """``prompts`` less those that are held out, whatever their ids."""
    asked = {prompt.messages for prompt in held}
    return tuple(prompt for prompt in prompts if prompt.messages not in asked)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
