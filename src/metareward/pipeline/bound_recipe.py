"""A recipe bound to a run folder: which model, which prompts, which settings each stage gets.

Everything below this layer gets plain values, not the recipe.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from metareward.config.schema import Recipe, RoleSettings, generation_fingerprint, load_recipe
from metareward.config.sections import AnswerSettings, JudgmentSettings, MetaJudgmentSettings, engine_fingerprint
from metareward.data.prompts import digest_prompts, load_prompts, prompts_of_iteration, split_held_out, write_prompts
from metareward.engines.base import Engine, RoleEngines
from metareward.engines.ray.settings import RaySettings
from metareward.errors import UserError
from metareward.evaluation.held_out import Oracle
from metareward.evaluation.worlds import WORLDS, oracle_of
from metareward.generation.annotate import AnnotationSettings, annotation_fingerprint
from metareward.generation.usage import log_usage
from metareward.generation.verdicts import VerdictRules
from metareward.method.criteria import names_criteria
from metareward.method.elo import Battles
from metareward.method.import_path import Imported, import_object
from metareward.method.judge import Reasoning, Rubric
from metareward.method.meta_judge import MetaRubric
from metareward.method.scores import Rounds
from metareward.method.template import with_system
from metareward.pipeline.changes import (
    MEASURED,
    RUBRIC,
    changed_settings,
    differences,
    measurement_inputs,
    measurements,
    read_json,
)
from metareward.pipeline.engines import OpenModel, model_folder, open_engine
from metareward.seeds import derive
from metareward.storage import manifest
from metareward.storage.atomic import write_atomic
from metareward.storage.custody import fingerprint_model
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import environment_text, log_event
from metareward.storage.serialization import flatten
from metareward.storage.store import has_records
from metareward.training.average import make_average
from metareward.training.config import DpoJob
from metareward.types import ModelRole, PairKind, Prompt, Sampling

_OWN_STARTS = ("previous", "m0")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class BoundRecipe:
    """One run: its folder and its recipe."""

    run: RunDir
    recipe: Recipe

    @property
    def last(self) -> int:
        """T, the number of iterations."""
        return len(self.recipe.iterations)

    @property
    def oracle(self) -> Oracle | None:
        """The oracle, if the prompts are the pocket or the constraint world's."""
        return oracle_of(self.recipe.prompts.source, self.recipe.judgments.min_score, self.recipe.judgments.max_score)

    def model(self, t: int) -> Path:
        """The folder of M_t; M_0 is the recipe's model."""
        return self.run.iteration(t).model if t else model_folder(self.recipe.model)

    def complete(self) -> bool:
        """Whether every iteration is done; the report may be missing."""
        return all(self.run.iteration(t).done.is_file() for t in range(1, self.last + 1))

    # --- start and resume ---

    def check(self) -> None:
        """Check everything that the run needs, before anything is written.

        Raises `UserError` for a missing model, a bad rubric or prompt file, too few prompts, and in a run folder for
        every setting, model or rubric that has changed since the run began.
        """
        self._check()

    def _check(self) -> bool:
        """`check`. Whether the folder is bound to this recipe: one in which a start has made nothing isn't."""
        changed = self._changes()
        if changed is None and not self.made_nothing:
            raise UserError(
                f"{self.run.resolved}: missing, though there are records or models here; fix: restore it, or run "
                f"metareward verify {self.run.path} --repair, or give another folder with --out"
            )
        if changed is None or (changed and self.made_nothing):
            self.choose_prompts(self.last)
            return False
        if changed:
            named = " or the benchmark another name," if any(each.startswith(MEASURED) for each in changed) else ""
            raise UserError(
                f"{self.run.path}: the recipe has changed since this run began: {', '.join(changed)}; "
                f"fix: set it back,{named} or give another folder with --out"
            )
        return True

    @property
    def made_nothing(self) -> bool:
        """Whether the folder has neither a record nor a model."""
        return self._untrained and not any(map(has_records, self.run.path.rglob("*.sqlite")))

    @property
    def _untrained(self) -> bool:
        """Whether no model has been trained here, so that nothing depends on the settings of training."""
        return not any(self.run.path.glob("iter-*/model*"))

    def _changes(self) -> list[str] | None:
        """What has changed since a run began here, each with its old and new value; None if none began."""
        inputs = self.inputs
        if not self.run.resolved.is_file():
            return None
        read_json(self.run.resolved)  # a damaged file is named as such
        # A setting that did not exist when the run began has its default.
        began = load_recipe(str(self.run.resolved)), read_json(self.run.inputs)
        return changed_settings(began, (self.recipe, inputs), self._untrained)

    def begin(self, recipe_text: str) -> None:
        """Write the recipe, the prompts and the digests of inputs, once. The run folder must be locked."""
        if self._check():
            self._update_recipe(recipe_text)
            return
        # The folder isn't a run until ``resolved`` is there.
        for old in (self.run.resolved, self.run.manifest, self.run.manifest_copy, self.run.judge_check):
            old.unlink(missing_ok=True)  # of a start with another recipe
        for store in self.run.path.rglob("*.sqlite*"):  # of a start that failed: they hold no record
            store.unlink()
        for t in range(self.last + 1):  # replaces what an earlier start with another recipe may have left
            write_prompts(self.run.iteration(t).prompts, self.choose_prompts(t))
        self._warn_of_borrowed_prompts()
        write_atomic(self.run.recipe, recipe_text)
        write_atomic(self.run.environment, environment_text())
        write_atomic(self.run.inputs, self.inputs_text)
        resolved = self.resolved_text
        manifest.create(self.run, {self.run.resolved: resolved})
        write_atomic(self.run.resolved, resolved)  # last: it marks the run as begun

    @property
    def inputs_text(self) -> str:
        """What ``inputs.json`` holds at first."""
        return json.dumps(self.inputs, indent=2) + "\n"

    @property
    def resolved_text(self) -> str:
        """What ``resolved.json`` holds."""
        return json.dumps(self.recipe.resolved(), indent=2) + "\n"

    def _update_recipe(self, recipe_text: str) -> None:
        """Write what has changed, so that the next start by the folder alone has it, too; a finished run has none."""
        recipe = load_recipe(str(self.run.resolved))
        began, now = recipe.resolved(), self.recipe.resolved()
        if began == now or (self.complete() and began["benchmarks"] == now["benchmarks"]):
            return
        if began["benchmarks"] != now["benchmarks"]:
            # One that is taken out keeps its name: its results stay, so it can come back as it was, and only so.
            inputs = read_json(self.run.inputs)
            inputs |= {**measurements(recipe, inputs), **measurements(self.recipe, self.inputs)}
            with manifest.changing(self.run, self.run.inputs):
                write_atomic(self.run.inputs, json.dumps(inputs, indent=2) + "\n")
            self.run.report.unlink(missing_ok=True)
            log_event(self.run, "benchmarks changed", names=[each.name for each in self.recipe.benchmarks])
        plain = ({key: value for key, value in each.items() if key != "benchmarks"} for each in (began, now))
        if changed := differences(*map(flatten, plain)):
            log_event(self.run, "settings changed", settings=", ".join(changed))
        with manifest.changing(self.run, self.run.recipe, self.run.resolved):
            write_atomic(self.run.recipe, recipe_text)
            write_atomic(self.run.resolved, self.resolved_text)

    @cached_property
    def inputs(self) -> dict[str, object]:
        """What the recipe only names, by SHA-256: model files, rubric texts, the source of imported objects."""
        settings, start = self.settings(1), self.recipe.training.start
        return {
            "the model's files": fingerprint_model(self.model(0)),
            **({} if start in _OWN_STARTS else {"training.start's files": fingerprint_model(Path(start))}),
            RUBRIC: settings.rubric.template.sha256,
            "the meta-judge's rubric's text": settings.metarubric.template.sha256,
            **self._role_fingerprint(),
            **{key: value for each in self.recipe.benchmarks for key, value in measurement_inputs(each)},
        }

    # --- prompts ---

    @cached_property
    def _prompt_pool(self) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
        """The held-out prompts, and the prompts for training without them."""
        settings, seed = self.recipe.prompts, self.recipe.seed
        if settings.source in WORLDS:
            if not isinstance(settings.held_out, int):
                raise UserError(f"prompts.held_out: with prompts.source {settings.source} give a number, not a file")
            world = WORLDS[settings.source]
            world.check()
            held_out = world.draw_held_out(settings.held_out, derive(seed, "held out"))
            return held_out, world.draw_prompts(settings.per_iteration * self.last, derive(seed, "prompts"))
        prompts = load_prompts(settings.source, settings.network, settings.field)
        if isinstance(settings.held_out, int):
            return split_held_out(prompts, settings.held_out, settings.per_iteration, self.last, seed)
        held_out = load_prompts(settings.held_out, settings.network, settings.field)
        excluded = {prompt.messages for prompt in held_out}  # whatever their ids
        pool = tuple(prompt for prompt in prompts if prompt.messages not in excluded)
        needed = settings.per_iteration * self.last
        if len(pool) < needed <= len(prompts):
            raise UserError(
                f"prompts.held_out: {len(prompts) - len(pool)} of the {len(prompts)} prompts of {settings.source} are "
                f"also in {settings.held_out}, and training needs {needed} others; fix: add prompts, or take these out "
                f"of {settings.held_out}"
            )
        return held_out, pool

    def choose_prompts(self, t: int) -> tuple[Prompt, ...]:
        """The prompts of iteration ``t`` from the prompt source; ``t`` 0: the held-out prompts."""
        held_out, pool = self._prompt_pool
        chosen = prompts_of_iteration(pool, self.recipe.prompts.per_iteration, t, self.recipe.seed) if t else held_out
        system = self.recipe.answers.system_prompt
        return tuple(replace(prompt, messages=with_system(system, prompt.messages)) for prompt in chosen)

    def _warn_of_borrowed_prompts(self) -> None:
        """Say how many held-out prompts the last iteration is trained on, because training needs all prompts."""
        trained_on = {prompt.id for prompt in self.prompts(self.last)}
        borrowed = sum(prompt.id in trained_on for prompt in self.held_out)
        if borrowed and isinstance(self.recipe.prompts.held_out, int):
            _LOG.warning(
                "prompts.held_out: training leaves %d prompts over, so %d of the %d held-out ones are iteration %d's, "
                "and M%d is evaluated on prompts that it was trained on; fix: add %d prompts, or name a file of others",
                len(self.held_out) - borrowed,
                borrowed,
                len(self.held_out),
                self.last,
                self.last,
                borrowed,
            )

    @property
    def held_out(self) -> tuple[Prompt, ...]:
        """The held-out prompts, on which every model is evaluated."""
        return self.prompts(0)

    def prompts(self, t: int) -> tuple[Prompt, ...]:
        """The prompts of iteration ``t``, from the run folder."""
        return load_prompts(self.run.iteration(t).prompts)

    # --- generation and evaluation ---

    @property
    def rubric(self) -> Rubric:
        """The judge's rubric."""
        section = self.recipe.judgments
        return Rubric.load(
            section.rubric,
            min_score=section.min_score,
            max_score=section.max_score,
            system_prompt=section.system_prompt,
            kind=section.verdict_format.kind,
            words=section.verdict_format.words,
        )

    def first_rubric(self) -> Rubric:
        """The rubric of the run's stored judgments. Raises `UserError` if its text has changed since."""
        rubric = self.rubric
        if read_json(self.run.inputs).get(RUBRIC) != rubric.template.sha256:
            raise UserError(
                f"{self.recipe.judgments.rubric}: the rubric's text has changed since the judgments were generated; "
                "fix: restore the earlier text"
            )
        return rubric

    def settings(self, t: int) -> AnnotationSettings:
        """How the prompts of iteration ``t`` are annotated."""
        recipe, meta, reasoning = self.recipe, self.recipe.meta_judgments, self.recipe.reasoning
        return AnnotationSettings(
            k=recipe.answers.k,
            n=0 if recipe.reward is not None else recipe.judgments.n,
            answers=_sampling(recipe.answers),
            judgments=_sampling(recipe.judgments),
            meta=_sampling(meta),
            rubric=self.rubric,
            metarubric=MetaRubric.load(
                meta.rubric,
                hide_scores=meta.hide_scores,
                system_prompt=meta.system_prompt,
                kind=meta.verdict_format.kind,
                words=meta.verdict_format.words,
                scores=self.rubric.verdict,
            ),
            min_valid=recipe.judgments.min_valid,
            meta_judge=recipe.runs_meta_judge(t),
            seed=derive(recipe.seed, "iteration", t),
            reasoning=Reasoning(reasoning.start, reasoning.end) if reasoning.strip else None,
            expected=recipe.judgments.score == "expected",
            judge=self._objects["judge"].value if "judge" in self._objects else None,
            reward=self._objects["reward"].value if "reward" in self._objects else None,
            verdicts=verdict_rules(recipe.judgments),
            meta_verdicts=verdict_rules(meta),
            rounds=self._rounds(t),
            battles=None if meta.max_pairs is None else Battles(meta.max_pairs),
        )

    def _rounds(self, t: int) -> Rounds | None:
        recipe, judgments = self.recipe, self.recipe.judgments
        if judgments.first_round is None:
            return None
        return Rounds(
            n=judgments.n,
            size=judgments.first_round,
            min_valid=judgments.min_valid,
            rho=recipe.iterations[t].rho,
            mask_truncated_completions=recipe.pairs.mask_truncated_completions,
            disputed=recipe.runs_meta_judge(t),
            low=judgments.min_score,
            high=judgments.max_score,
        )

    def evaluation_settings(self) -> AnnotationSettings:
        """How the held-out prompts are annotated."""
        section, seed = self.recipe.evaluation, derive(self.recipe.seed, "evaluation")
        return replace(
            self.settings(1),
            meta_judge=False,
            seed=seed,
            k=section.answers,
            n=section.judgments,
            min_valid=1,
            rounds=None,
        )

    def generation_fingerprint(self, t: int) -> dict[str, object]:
        """What decides iteration ``t``'s records, which M_{t-1} generates."""
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
        """What decides the evaluation of M_t."""
        return {
            "model": fingerprint_model(self.model(t)),
            "anchors": fingerprint_model(self.model(0)),
            "prompts": digest_prompts(self.held_out),
            **flatten(annotation_fingerprint(replace(self.evaluation_settings(), meta_judge=True))),
            **{f"evaluation.{name}": value for name, value in self.recipe.evaluation.model_dump().items()},
            **engine_fingerprint(self.recipe.engine),
            **self._role_fingerprint(),
        }

    # --- engines ---

    async def engine(self, t: int, open_own: OpenModel = open_engine) -> Engine:
        """M_t ready to complete, opened by ``open_own``, beside the models that the recipe names for single roles."""
        folder = self.run.iteration(t).path
        manifest.require_whole(self.run, self.run.iteration(t).model)
        own = await open_own(self.recipe.engine, self.model(t), t, folder)
        engines: dict[ModelRole, Engine] = {"actor": own, "judge": own, "meta_judge": own}
        try:
            for role, each in self._role_models.items():
                model = model_folder(each.model or self.recipe.model)
                engines[role] = log_usage(self.run, role, await open_engine(each.engine, model, t, folder))
        except BaseException:
            await RoleEngines(engines).aclose()
            raise
        return RoleEngines(engines) if self._role_models else own

    @cached_property
    def _role_models(self) -> dict[ModelRole, RoleSettings]:
        """The roles that another model plays."""
        judges: dict[ModelRole, object] = {"judge": self.recipe.judge, "meta_judge": self.recipe.meta_judge}
        return {role: each for role, each in judges.items() if isinstance(each, RoleSettings)}

    @cached_property
    def _objects(self) -> dict[str, Imported]:
        """The judge and the reward that the recipe names by import path."""
        named = {"judge": (self.recipe.judge, "judge"), "reward": (self.recipe.reward, "score")}
        return {
            key: import_object(path, key, (method,)) for key, (path, method) in named.items() if isinstance(path, str)
        }

    def _role_fingerprint(self) -> dict[str, object]:
        """Which other models and objects judge, meta-judge or score."""
        found: dict[str, object] = {f"{key}'s source": each.sha256 for key, each in self._objects.items()}
        for role, each in self._role_models.items():
            found |= {f"{role}.{key}": value for key, value in engine_fingerprint(each.engine).items()}
            if each.model is not None:
                found[f"{role}.model's files"] = fingerprint_model(model_folder(each.model))
        return found

    # --- training ---

    def job(self, t: int, kinds: tuple[PairKind, ...]) -> DpoJob:
        """The training of M_t on the pairs of ``kinds``."""
        settings, folder = self.recipe.training_of(t), self.run.iteration(t)
        return DpoJob(
            settings=settings,
            start=self.start(t),
            reference=self.reference(t),
            data=tuple(folder.pairs(kind) for kind in kinds),
            output=folder.model,
            log=folder.path / "training.jsonl",
            seed=derive(self.recipe.seed, "training", t) % 2**31,
            threads=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
            run_name=f"{self.recipe.name}-M{t}",
            ray_address=engine.address if isinstance(engine := self.recipe.engine, RaySettings) else None,
            keep_epochs=settings.checkpoint_selection.metric is not None,
        )

    def start(self, t: int) -> Path:
        """The model from which iteration ``t``'s training starts."""
        start = self.recipe.training.start
        return {"previous": self.model(t - 1), "m0": self.model(0)}.get(start) or Path(start)

    def reference(self, t: int) -> Path:
        """DPO's reference in iteration ``t``; `make_reference` must have made a moving average."""
        reference = self.recipe.training.reference
        if reference == "ema":
            return self.run.iteration(t).path / "reference" if t > 1 else self.model(0)
        return {"start": self.start(t), "previous": self.model(t - 1), "m0": self.model(0)}[reference]

    def make_reference(self, t: int) -> None:
        """Make iteration ``t``'s reference if it is a moving average that does not exist yet."""
        if self.recipe.training.reference == "ema" and t > 1:
            decay, before = self.recipe.training.ema_decay, self.run.iteration(t - 1).path
            manifest.require_whole(self.run, before / "model", before / "reference")
            make_average(self.reference(t - 1), self.model(t - 1), decay, self.reference(t))
            manifest.record(self.run, self.reference(t))


def verdict_rules(section: JudgmentSettings | MetaJudgmentSettings) -> VerdictRules:
    """How the verdicts of a role are obtained."""
    return VerdictRules(constrained=section.verdict == "constrained", retries=section.retries)


def most_tokens(section: JudgmentSettings | MetaJudgmentSettings) -> int:
    """The most new tokens that one judgment takes, all attempts, criteria and constrained verdicts included."""
    if questions := most_questions(section):
        return questions
    return verdict_rules(section).most_tokens(section.max_tokens)


def most_questions(section: JudgmentSettings | MetaJudgmentSettings) -> int:
    """The most questions to a judge that one judgment by criteria takes; 0 for a rubric that is a text."""
    if not isinstance(section, JudgmentSettings) or not names_criteria(section.rubric):
        return 0
    return sum(criterion.most_questions for criterion in Rubric.load(section.rubric).criteria)


def _sampling(section: AnswerSettings | JudgmentSettings | MetaJudgmentSettings) -> Sampling:
    return Sampling(section.temperature, section.top_p, section.max_tokens)
