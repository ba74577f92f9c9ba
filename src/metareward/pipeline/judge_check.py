"""The check of a recipe's judge before anything is spent: ``metareward check-judge``, and before iteration 1 of a run.

The judge judges as in the run: its rubric, its sampling, its engine, or the object that takes its place. The pairs are
a file's, or in a world with an oracle M0's own answers, or the package's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from metareward.config.schema import Recipe
from metareward.engines.base import Engine
from metareward.errors import JudgeHealthError
from metareward.evaluation.held_out import (
    HeldOut,
    compared,
    held_out_records,
    held_out_to_json,
    judged_again,
)
from metareward.evaluation.judge_quality.check import (
    Asked,
    JudgeCheck,
    advice,
    chance_figures,
    length_figures,
    oracle_pairs,
    packaged_pairs,
    pair_figures,
    pairs_to_check,
)
from metareward.evaluation.judge_quality.data import Pair, Response, verdicts_from_scores
from metareward.evaluation.worlds import WORLDS
from metareward.generation.annotate import rewards_of
from metareward.generation.progress import JUDGMENTS, META, Progress
from metareward.generation.runner import annotate_prompts, run_tasks
from metareward.method.criteria import names_criteria
from metareward.method.diagnostics import Compared, scores_by_index
from metareward.method.judge_health import Judged, readable_judgments, verdict_figures
from metareward.method.scores import answer_scores
from metareward.pipeline.bound_recipe import BoundRecipe, most_tokens
from metareward.report.facts import read_judge_check
from metareward.seeds import derive
from metareward.storage import manifest
from metareward.storage.atomic import write_atomic
from metareward.storage.custody import fingerprint_model
from metareward.storage.records import read_records
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import log_event
from metareward.storage.store import RecordStore
from metareward.types import Candidate, Prompt, PromptRecord

_LOG = logging.getLogger(__name__)


def check_recipe(recipe: Recipe, progress: Progress) -> JudgeCheck:
    """The check of ``recipe``'s judge by its section ``judge_check``. Writes only to a temporary folder.

    Raises `UserError` for a missing model or a bad file of pairs, `EngineError` if the engine fails.
    """

    async def check(bound: BoundRecipe) -> JudgeCheck:
        engine = await bound.engine(0)
        try:
            return await check_judge(bound, engine, progress)
        finally:
            await engine.aclose()

    with tempfile.TemporaryDirectory() as folder:
        bound = BoundRecipe(RunDir(Path(folder)), recipe)
        fingerprint_model(bound.model(0))  # one line for a missing model, before the engine starts
        bound.settings(1)
        if recipe.prompts.source in WORLDS:
            WORLDS[recipe.prompts.source].check()
        if recipe.judge_check.pairs is not None:
            _file_pairs(bound)
        return asyncio.run(check(bound))


async def check_judge(bound: BoundRecipe, engine: Engine, progress: Progress) -> JudgeCheck:
    """The recipe's judge on the recipe's pairs; ``engine`` runs M0."""
    began, recipe = time.monotonic(), bound.recipe
    seed, settings = derive(recipe.seed, "judge check"), bound.settings(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, pairs, answered = await _pairs(bound, engine, folder, progress)
        judged = await _judge(bound, engine, pairs, folder, progress)
    scored = _scored(pairs, judged, settings.min_valid)
    longer, shorter = length_figures(pairs, seed)
    everything = [(record, answer) for record in judged for answer in record.anchors_K]
    meta = verdict_figures(_compared(judged))
    judgments = [judgment for _, answer in everything for judgment in answer.judgments_N]
    metas = [comparison.meta for record in judged for comparison in record.comparisons]
    tokens = [
        *(each.tokens for each in answered),
        *(each.tokens for each in judgments),
        *(each.tokens for each in metas),
    ]
    check = JudgeCheck(
        source=source,
        n_pairs=len(pairs),
        judge=pair_figures(scored, verdicts_from_scores(scored), seed),
        longer=longer,
        shorter=shorter,
        chance=chance_figures(pairs),
        readable=readable_judgments(Judged(record.prompt.id, answer) for record, answer in everything),
        readable_verdicts=meta.get("readable_verdicts"),
        first_position=meta.get("first_position"),
        position_flips=meta.get("position_flips"),
        asked=Asked(len(judgments), len(tokens), sum(tokens), time.monotonic() - began),
    )
    section, is_model = recipe.judgments, settings.judge is None and settings.reward is None
    by_criteria = names_criteria(section.rubric)
    constrained, expected = by_criteria or section.verdict == "constrained", by_criteria or section.score == "expected"
    return replace(check, advice=advice(check, constrained, expected, is_model))


# --- the pairs ---


def planned_completions(recipe: Recipe) -> tuple[int, int, int]:
    """At most how many answers, judgments and meta-judgments a check takes."""
    count = recipe.judge_check.count
    from_answers = recipe.judge_check.pairs is None and recipe.prompts.source in WORLDS
    judgments = 0 if recipe.reward is not None else 2 * count * recipe.judgments.n
    return count * recipe.answers.k if from_answers else 0, judgments, 2 * count * _compares(recipe)


def _compares(recipe: Recipe) -> bool:
    """Whether any iteration asks the meta-judge."""
    return any(recipe.runs_meta_judge(t) for t in recipe.iterations)


def _file_pairs(bound: BoundRecipe) -> tuple[Pair, ...]:
    section, seed = bound.recipe.judge_check, derive(bound.recipe.seed, "judge check")
    return pairs_to_check(Path(str(section.pairs)), section.count, seed)


async def _pairs(
    bound: BoundRecipe, engine: Engine, folder: Path, progress: Progress
) -> tuple[str, tuple[Pair, ...], Sequence[Candidate]]:
    """Where the pairs are from, the pairs, and the answers that were written for them."""
    recipe, oracle = bound.recipe, bound.oracle
    section, seed = recipe.judge_check, derive(recipe.seed, "judge check")
    if section.pairs is not None:
        return section.pairs, _file_pairs(bound), ()
    if oracle is None:
        return "the package's pairs", packaged_pairs()[: section.count // 2 * 2], ()
    settings = replace(bound.settings(1), n=0, judge=None, reward=None, meta_judge=False, seed=seed)
    prompts = WORLDS[recipe.prompts.source].draw_prompts(section.count, seed)
    with RecordStore.open(folder / "answers.sqlite", {}) as store:
        await annotate_prompts(engine, prompts, settings, store, progress)
        records = tuple(read_records(store))
    answered = [answer for record in records for answer in record.candidates_K]
    return "M0's answers, labelled by the oracle", oracle_pairs(records, oracle, section.count, seed), answered


async def _judge(
    bound: BoundRecipe, engine: Engine, pairs: Sequence[Pair], folder: Path, progress: Progress
) -> tuple[HeldOut, ...]:
    """The judgments of both answers of every pair, and where the meta-judge is used two of them compared."""
    recipe = bound.recipe
    settings = replace(bound.settings(1), seed=derive(recipe.seed, "judge check", "judging"))
    compares = _compares(recipe)
    by_id = {pair.item.id: pair for pair in pairs}

    async def work(prompt: Prompt) -> str:
        texts = [each.text for each in by_id[prompt.id].item.responses]
        answers = [Candidate(index, text, "stop", 0, ()) for index, text in enumerate(texts)]
        if settings.reward is not None:
            rewards = await rewards_of(settings.reward, prompt, texts)
            answers = [replace(each, reward=reward) for each, reward in zip(answers, rewards, strict=True)]
        given = await judged_again(engine, prompt, answers, settings, progress) if settings.n else tuple(answers)
        comparisons = await compared(engine, prompt, given, int(compares), settings, progress)
        return held_out_to_json(HeldOut(prompt, (), given, comparisons))

    most = {JUDGMENTS: 2 * settings.n, **({META: 2} if compares else {})}
    asked = [Prompt(pair.item.id, pair.item.messages) for pair in pairs]
    with RecordStore.open(folder / "judgments.sqlite", {}) as store:
        await run_tasks(work, asked, store, progress, "checking the judge", most)
        return held_out_records(store)


def _scored(pairs: Sequence[Pair], judged: Sequence[HeldOut], min_valid: int) -> tuple[Pair, ...]:
    """The pairs with the scores that the run would give their answers, none where it would give none."""
    found = {}
    for record in judged:
        whole = PromptRecord(record.prompt, record.anchors_K, (), None)
        found[record.prompt.id] = {each.index: each.mean for each in answer_scores(whole, min_valid)}

    def scored(pair: Pair) -> Pair:
        means = found.get(pair.item.id, {})
        responses = (Response(each.text, None, (means.get(i),)) for i, each in enumerate(pair.item.responses))
        return replace(pair, item=replace(pair.item, responses=tuple(responses)))

    return tuple(map(scored, pairs))


def _compared(judged: Sequence[HeldOut]) -> Iterator[Compared]:
    """The comparisons of two judgments, by answer."""
    for record in judged:
        for answer in record.anchors_K:
            metas = tuple(each.meta for each in record.comparisons if each.candidate == answer.index)
            if metas:
                yield Compared(record.prompt.id, metas, scores_by_index(answer))


# --- in a run ---


async def check_before_first(bound: BoundRecipe, engine: Engine, progress: Progress) -> None:
    """Check the judge once before iteration 1, if the recipe says so, and write the result.

    Raises `JudgeHealthError` where the recipe stops for a judge that doesn't beat length alone, as long as iteration 1
    is not paid for.
    """
    run, section = bound.run, bound.recipe.judge_check
    if check_is_settled(bound):
        return
    if not run.judge_check.is_file():
        found = await check_judge(bound, engine, progress)
        write_atomic(run.judge_check, json.dumps(asdict(found), indent=2) + "\n")
        manifest.record(run, run.judge_check)
        log_event(run, "judge check", beats_length=found.beats_length, finding=found.finding)
    check = read_judge_check(run)
    assert check is not None, "it was written a moment ago"
    if check.beats_length or section.action == "note":
        return
    message = " ".join((check.finding, *check.advice))
    if section.action == "warn":
        _LOG.warning("%s", message)
        return
    log_event(run, "stopped", gates="judge_check")
    raise JudgeHealthError(
        f"{run.path}: stopped by judge_check: {message} To go on all the same, run again with --set "
        "judge_check.action=warn"
    )


def check_is_settled(bound: BoundRecipe) -> bool:
    """Whether nothing is left to check: no check is asked for, it is done, or iteration 1 is paid for."""
    run, action = bound.run, bound.recipe.judge_check.action
    if action is None or run.iteration(1).summary.is_file():
        return True
    return run.judge_check.is_file() and action != "stop"


def cost_line(recipe: Recipe) -> str:
    """What a check will ask, at most."""
    answers, judgments, metas = planned_completions(recipe)
    parts = [(answers, "answers", recipe.answers.max_tokens)]
    parts += [(judgments, "judgments", most_tokens(recipe.judgments))]
    parts += [(metas, "meta-judgments", most_tokens(recipe.meta_judgments))]
    asked = [f"{count:,} {name} of at most {most:,} tokens" for count, name, most in parts if count]
    return f"asks for at most {', '.join(asked) or 'nothing: the reward scores'}"
