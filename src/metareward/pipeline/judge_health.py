"""Judge health in a run: the figures of evaluations and records, the gates' results, and when a run stops.

The figures are stored with what they were computed from (``eval/model.json``, ``pairs/summary.json``). The gates judge
them by the recipe as it is now, so a resumed run can change thresholds and actions; ``judge_health.json`` in the run
folder has the results. A gate with action ``stop`` raises `JudgeHealthError` before the stage that would spend more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby, islice

from metareward.errors import JudgeHealthError
from metareward.evaluation.held_out import HeldOut
from metareward.method.diagnostics import Compared, disputes, scores_by_index
from metareward.method.health_checks import HealthCheck, check_gates
from metareward.method.judge_health import (
    Figure,
    Judged,
    Scale,
    evaluation_figures,
    judged_answers,
    judging_figures,
    length_ratio,
    record_figures,
    verdict_figures,
)
from metareward.method.scores import mean, valid_scores
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.report.facts import read_figures, read_health
from metareward.storage import manifest
from metareward.storage.atomic import write_atomic
from metareward.storage.records import read_records, record_from_json
from metareward.storage.run_log import log_event
from metareward.storage.store import RecordStore
from metareward.types import Candidate, PreferencePair, Prompt, PromptRecord

_FIRST_PROMPTS = (32, 64, 128)  # an iteration is checked when so many prompts are finished

# --- figures ---


def figures_of_records(
    bound: BoundRecipe, t: int, records: Sequence[PromptRecord], pairs: Sequence[PreferencePair]
) -> dict[str, Figure]:
    """The figures of iteration ``t``'s records and pairs."""
    oracle, recipe = bound.oracle, bound.recipe
    truth = oracle.answer_score if oracle is not None else None
    judge_pairs = recipe.runs_meta_judge(t)
    return record_figures(records, pairs, _scale(bound), recipe.judgments.min_valid, judge_pairs, truth)


def figures_of_evaluation(
    bound: BoundRecipe, t: int, records: Sequence[HeldOut], anchors: Mapping[str, HeldOut]
) -> dict[str, Figure]:
    """The figures of M_t on the held-out prompts; ``anchors`` are M_0's records by prompt id.

    They are without the judge's if a reward replaces it, and without the meta-judge's if no later iteration asks it.
    """
    found: dict[str, Figure] = {}
    if bound.recipe.reward is None:
        given = [(record.prompt, answer) for record in records for answer in anchors[record.prompt.id].own]
        scores = {(prompt.id, answer.index): valid_scores(answer) for prompt, answer in given}
        means = {key: mean(values) for key, values in scores.items() if values}
        later = range(t + 1, bound.last + 1)
        found = evaluation_figures(
            own=_judged(bound, ((each.prompt, answer) for each in records for answer in each.own)),
            anchors=_judged(bound, ((r.prompt, a) for r in records for a in r.anchors_K), means) if t else (),
            first=_judged(bound, given) if t else (),
            compared=_compared(records, anchors) if any(map(bound.recipe.runs_meta_judge, later)) else (),
            scale=_scale(bound),
        )
    lengths = [
        (record.prompt.id, len(own.text), len(first.text))
        for record in records
        for own, first in zip(record.own, anchors[record.prompt.id].own, strict=False)
    ]
    growth = length_ratio(lengths) if t else None
    return found if growth is None else {**found, "answer_length": growth}


def _scale(bound: BoundRecipe) -> Scale:
    judgments = bound.recipe.judgments
    return Scale(judgments.min_score, judgments.max_score)


def _judged(
    bound: BoundRecipe,
    answers: Iterable[tuple[Prompt, Candidate]],
    reference: Mapping[tuple[str, int], float] | None = None,
) -> tuple[Judged, ...]:
    """The answers with their true scores, and with the ``reference`` score by prompt id and index.

    Answers that the reference has no score of are left out.
    """
    oracle = bound.oracle
    return tuple(
        Judged(
            prompt.id,
            answer,
            oracle.answer_score(prompt, answer.text) if oracle is not None else None,
            reference[prompt.id, answer.index] if reference is not None else None,
        )
        for prompt, answer in answers
        if reference is None or (prompt.id, answer.index) in reference
    )


def _compared(records: Iterable[HeldOut], anchors: Mapping[str, HeldOut]) -> Iterator[Compared]:
    """The comparisons of M_0's judgments, by answer."""
    for record in records:
        answers = {answer.index: answer for answer in anchors[record.prompt.id].own}
        ordered = sorted(record.comparisons, key=lambda each: each.candidate)
        for index, group in groupby(ordered, key=lambda each: each.candidate):
            meta = tuple(each.meta for each in group)
            yield Compared(record.prompt.id, meta, scores_by_index(answers[index]))


# --- gates ---


def check_health(bound: BoundRecipe) -> None:
    """Check the gates on all figures so far, write and log the results; raise `JudgeHealthError` if one stops the run.

    A gate stops a run only as long as the stage that follows is not paid for. Later, the results stay as they were.
    """
    written = {(check.stage, check.iteration): check for check in read_health(bound.run)}
    checks = []
    for check in _checks(bound):
        earlier = written.get((check.stage, check.iteration))
        checks.append(earlier if earlier is not None and _is_paid(bound, check) else check)
    _write(bound, checks)
    _stop(bound, [check for check in checks if not _is_paid(bound, check)])


def _checks(bound: BoundRecipe) -> Iterator[HealthCheck]:
    """The checks that are possible so far, in the order of the stages, by the recipe as it is now."""
    limits = bound.recipe.gate_limits
    for t in range(bound.last + 1):
        folder = bound.run.iteration(t)
        records, evaluation = read_figures(folder.summary), read_figures(folder.evaluation / "model.json")
        if records:
            yield HealthCheck("records", f"M{t - 1}", t, check_gates(records, limits))
        if evaluation:
            yield HealthCheck("evaluation", f"M{t}", t, check_gates(evaluation, limits))


def _is_paid(bound: BoundRecipe, check: HealthCheck) -> bool:
    """Whether the stage that follows is done, or there is none: nothing is left to be stopped."""
    if check.stage == "evaluation":
        return check.iteration == bound.last or bound.run.iteration(check.iteration + 1).summary.is_file()
    return bound.model(check.iteration).is_dir()


class FirstPrompts:
    """Checks an iteration while it is being generated, on its first 32, 64 and 128 prompts.

    Raises `JudgeHealthError` for a gate that stops the run, from the beginning if the store has enough prompts.
    """

    def __init__(self, bound: BoundRecipe, t: int, store: RecordStore) -> None:
        self._bound = bound
        self._t = t
        self._records = list(islice(read_records(store), _FIRST_PROMPTS[-1]))
        if len(self._records) >= _FIRST_PROMPTS[0]:
            self._check()

    def add(self, document: str) -> None:
        """One more record, as JSON."""
        if len(self._records) < _FIRST_PROMPTS[-1]:
            self._records.append(record_from_json(document))
            if len(self._records) in _FIRST_PROMPTS:
                self._check()

    def _check(self) -> None:
        judged = judged_answers(self._records)
        figures = judging_figures(judged, _scale(self._bound)) | verdict_figures(disputes(self._records))
        results = check_gates(figures, self._bound.recipe.gate_limits)
        check = HealthCheck("first prompts", f"M{self._t - 1}", self._t, results)
        if check.stopping:
            others = (each for each in read_health(self._bound.run) if each.stage != "first prompts")
            _write(self._bound, [*others, check])
            _stop(self._bound, [check])


def _write(bound: BoundRecipe, checks: Sequence[HealthCheck]) -> None:
    """Write the results of all checks; log those that are new or have changed."""
    run, before = bound.run, set(read_health(bound.run))
    if set(checks) == before:
        return
    rows = [
        {**asdict(check), "results": [{**asdict(each), "finding": each.finding} for each in check.results]}
        for check in checks
    ]
    with manifest.changing(run, run.judge_health):
        write_atomic(run.judge_health, json.dumps(rows, indent=2) + "\n")
    for check in checks:
        if check not in before:
            fired = ", ".join(f"{each.name} ({each.limit.action})" for each in check.fired) or "none"
            log_event(run, "judge health", model=check.model, stage=check.stage, iteration=check.iteration, fired=fired)


def _stop(bound: BoundRecipe, checks: Iterable[HealthCheck]) -> None:
    stopping = [(check, result) for check in checks for result in check.stopping]
    if not stopping:
        return
    check, result = stopping[0]
    names = dict.fromkeys(each.name for _, each in stopping)
    log_event(bound.run, "stopped", gates=", ".join(names))
    settings = " ".join(f"--set judge_health.{name}.action=warn" for name in names)
    raise JudgeHealthError(
        f"{bound.run.path}: stopped after {check.where} by the gate {result.name}: {result.finding}: "
        f"{result.gate.meaning}; fix: {result.gate.remedy}; to go on all the same, run again with {settings}"
    )
