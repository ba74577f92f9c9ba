"""What fewer judgments and comparisons cost: policies replayed on the full records of a run in a world with an oracle.

    metareward run pocket --out RUN --set judgments.n=11 --set prompts.per_iteration=250
    python bench/policies.py RUN --iteration 1 --iteration 2

Every policy annotates the prompts again with an engine that gives the stored judgments and comparisons in their order.
Beside the share of the completions: how often the pairs are those of the full records; where the chosen or the rejected
judgment is another one, whether its rating in the full record has an interval that overlaps; and what the oracle says
of the pairs: the true lead of the chosen answer, and how often the better of two judgments that differ is chosen.
A prompt whose most disputed answer is another one has no stored comparisons of it: it counts as another judge pair.
Prints a table and writes bench/results/policies.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from metareward.config.schema import load_recipe
from metareward.engines.base import EngineError
from metareward.evaluation.held_out import Oracle
from metareward.generation.annotate import AnnotationSettings, EarlierRecord, annotate_prompt
from metareward.method.elo import Battles, PositionWeights, battle_matrix, fit_elo
from metareward.method.pairs import PairRules, actor_pair, iteration_weights, judge_pair
from metareward.method.scores import Rounds, valid_scores
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.storage.records import read_records
from metareward.storage.run_dir import RunDir
from metareward.storage.run_log import environment
from metareward.storage.store import RecordStore
from metareward.types import (
    Completion,
    Dropped,
    Judgment,
    Messages,
    MetaJudgment,
    ModelRole,
    PreferencePair,
    PromptRecord,
    Sampling,
    Truncated,
)

RESULTS = Path(__file__).parent / "results" / "policies.json"
Policy = Callable[[AnnotationSettings, float], AnnotationSettings]


class OtherDisputeError(EngineError):
    """The policy disputes an answer whose judgments the full record doesn't compare."""


class StoredEngine:
    """Gives the judgments and comparisons of a full record, judgments in their order."""

    def __init__(self, record: PromptRecord, settings: AnnotationSettings) -> None:
        self.judgments = {
            settings.rubric.render(record.prompt, each.text): list(each.judgments_N) for each in record.candidates_K
        }
        self.comparisons: dict[Messages, list[MetaJudgment]] = {}
        if record.dispute is not None:
            answer = next(each for each in record.candidates_K if each.index == record.dispute.candidate)
            texts = {each.index: each.text for each in answer.judgments_N}
            for meta in record.dispute.meta:
                messages = settings.metarubric.render(record.prompt, answer.text, texts[meta.first], texts[meta.second])
                self.comparisons.setdefault(messages, []).append(meta)

    async def complete(
        self,
        messages: Messages,
        sampling: Sampling,  # noqa: ARG002
        n: int,
        role: ModelRole = "actor",
    ) -> Sequence[Completion]:
        """As an `Engine`."""
        if role == "judge":
            left = self.judgments[messages]
            given, left[:] = left[:n], left[n:]
            return [_as_completion(each, each.reading) for each in given]
        left_here = self.comparisons.get(messages)
        if not left_here:
            raise OtherDisputeError("not compared")
        found = left_here.pop(0)  # of judgments with the same texts each has its own
        return [_as_completion(found, found.verdict)]

    async def aclose(self) -> None:
        """Nothing to close."""


def _as_completion(stored: Judgment | MetaJudgment, outcome: object) -> Completion:
    return Completion(stored.text, "length" if isinstance(outcome, Truncated) else "stop", stored.tokens)


# --- policies ---


def fixed(n: int, pairs: int | None = None) -> Policy:
    """``n`` judgments of each answer, all or some comparisons."""

    def apply(settings: AnnotationSettings, _: float) -> AnnotationSettings:
        return replace(settings, n=n, battles=None if pairs is None else Battles(pairs))

    return apply


def rounds(first: int, pairs: int | None) -> Policy:
    """Judgments in rounds of ``first``, all or some comparisons."""

    def apply(settings: AnnotationSettings, rho: float) -> AnnotationSettings:
        asked = Rounds(settings.n, first, min_valid=settings.min_valid, rho=rho, disputed=settings.meta_judge)
        return replace(settings, rounds=asked, battles=None if pairs is None else Battles(pairs))

    return apply


POLICIES: dict[str, Policy] = {
    "n 11, all pairs": fixed(11),
    **{f"n {n}, all pairs": fixed(n) for n in (7, 5, 3)},
    **{f"n 11, max_pairs {pairs}": fixed(11, pairs) for pairs in (33, 22, 11, 6)},
    **{f"n 7, max_pairs {pairs}": fixed(7, pairs) for pairs in (14, 7)},
    **{f"n 5, max_pairs {pairs}": fixed(5, pairs) for pairs in (5,)},
    **{f"first_round {first}, max_pairs {pairs}": rounds(first, pairs) for first, pairs in ((5, 22), (4, 11), (3, 6))},
}


@dataclass(frozen=True, slots=True)
class Found:
    """A policy's record of a prompt; ``dispute_differs``: without comparisons, as another answer was disputed."""

    record: PromptRecord
    dispute_differs: bool


async def replayed(record: PromptRecord, settings: AnnotationSettings) -> Found:
    """The record that the policy makes of a prompt's answers."""
    bare = replace(record, candidates_K=tuple(replace(each, judgments_N=()) for each in record.candidates_K))
    earlier = EarlierRecord(replace(bare, dispute=None), judged=False)
    try:
        return Found(
            await annotate_prompt(StoredEngine(record, settings), record.prompt, settings, earlier=earlier), False
        )
    except OtherDisputeError:
        alone = replace(settings, meta_judge=False)
        return Found(await annotate_prompt(StoredEngine(record, alone), record.prompt, alone, earlier=earlier), True)


def completions(found: Found, settings: AnnotationSettings) -> Counter[str]:
    """Judgments and comparisons; as many as the policy may ask where another answer is disputed."""
    judged = sum(len(each.judgments_N) for each in found.record.candidates_K)
    compared = len(found.record.dispute.meta) if found.record.dispute else 0
    if found.dispute_differs:
        widest = max(len(valid_scores(each)) for each in found.record.candidates_K)
        every = widest * (widest - 1) // 2
        compared = 2 * (min(every, settings.battles.budget) if settings.battles else every)
    return Counter(judgments=judged, comparisons=compared)


def figures(
    full: Sequence[PromptRecord],
    found: Sequence[Found],
    bound: BoundRecipe,
    settings: AnnotationSettings,
    rules: PairRules,
) -> dict[str, float]:
    """How the pairs of a policy compare with those of the full records, and what the oracle says of them."""
    assert bound.oracle is not None
    tally, seed = Counter[str](), bound.recipe.seed
    weights, own_weights = iteration_weights(full), iteration_weights(each.record for each in found)
    leads, better = list[float](), list[bool]()
    for record, each in zip(full, found, strict=True):
        one, other = actor_pair(record, rules, seed), actor_pair(each.record, rules, seed)
        tally["same actor"] += _texts(one) == _texts(other)
        if isinstance(other, PreferencePair):
            leads.append(_lead(other, record, bound.oracle))
        first = judge_pair(record, rules, weights, settings.rubric, seed)
        second = judge_pair(each.record, rules, own_weights, settings.rubric, seed)
        same = _texts(first) == _texts(second) and not each.dispute_differs
        tally["same judge"] += same
        tally["overlapping judge"] += same or (
            not each.dispute_differs and _overlaps(record, first, second, rules, weights)
        )
        if isinstance(second, PreferencePair) and (told := _better(second, record, bound.oracle)) is not None:
            better.append(told)
    count = len(full)
    return {
        "same_actor_pair": tally["same actor"] / count,
        "same_judge_pair": tally["same judge"] / count,
        "same_or_overlapping_judge_pair": tally["overlapping judge"] / count,
        "actor_pairs": len(leads) / count,
        "true_lead": fmean(leads),
        "better_judgment_chosen": fmean(better) if better else float("nan"),
    }


def _texts(outcome: PreferencePair | Dropped) -> object:
    return (outcome.chosen, outcome.rejected) if isinstance(outcome, PreferencePair) else None


def _lead(pair: PreferencePair, record: PromptRecord, oracle: Oracle) -> float:
    return oracle.answer_score(record.prompt, pair.chosen) - oracle.answer_score(record.prompt, pair.rejected)


def _better(pair: PreferencePair, record: PromptRecord, oracle: Oracle) -> bool | None:
    """Whether the chosen judgment is the one with the smaller error; None if both are equally right."""
    answer = next(each for each in record.candidates_K if each.index == pair.candidate)
    scores = {each.index: getattr(each.reading, "score", float("nan")) for each in answer.judgments_N}
    chosen, rejected = (
        oracle.judgment_error(record.prompt, answer.text, text, scores[index])
        for text, index in ((pair.chosen, pair.chosen_index), (pair.rejected, pair.rejected_index))
    )
    return None if chosen == rejected else chosen < rejected


def _overlaps(
    record: PromptRecord,
    first: PreferencePair | Dropped,
    second: PreferencePair | Dropped,
    rules: PairRules,
    weights: PositionWeights,
) -> bool:
    if record.dispute is None or not (isinstance(first, PreferencePair) and isinstance(second, PreferencePair)):
        return False
    rated = fit_elo(battle_matrix(record.dispute, weights), rules.elo_prior)
    place = {index: at for at, index in enumerate(record.dispute.judgments_M)}

    def near(one: int, other: int) -> bool:
        a, b = place[one], place[other]
        return rated.low_M[a] <= rated.high_M[b] and rated.low_M[b] <= rated.high_M[a]

    return near(first.chosen_index, second.chosen_index) and near(first.rejected_index, second.rejected_index)


def replay(run: RunDir, t: int) -> list[dict[str, object]]:
    """A row for every policy on the records of iteration ``t``."""
    bound = BoundRecipe(run, load_recipe(str(run.resolved)))
    with RecordStore.read(run.iteration(t).records) as store:
        full = list(read_records(store))
    base, rho = bound.settings(t), bound.recipe.iterations[t].rho
    rules = PairRules(rho=rho, min_valid=base.min_valid, judge_pairs=base.meta_judge)
    rows, whole = list[dict[str, object]](), 0
    for name, policy in POLICIES.items():
        settings = policy(base, rho)
        found = [asyncio.run(replayed(record, settings)) for record in full]
        asked = sum((completions(each, settings) for each in found), Counter[str]())
        whole = whole or asked.total()
        share = {
            "judgments": asked["judgments"],
            "comparisons": asked["comparisons"],
            "completions": asked.total() / whole,
        }
        rows.append({"policy": name, "prompts": len(full), **share, **figures(full, found, bound, settings, rules)})
    return rows


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--iteration", type=int, action="append", help="the iterations to replay; default: 1")
    options = parser.parse_args()
    result = {f"M{t - 1}": replay(RunDir(options.run), t) for t in options.iteration or [1]}
    for model, rows in result.items():
        names = [name for name in rows[0] if name not in ("policy", "prompts")]
        table = Table("policy", *names, title=f"records of {model}, {rows[0]['prompts']} prompts")
        for row in rows:
            table.add_row(str(row["policy"]), *(f"{row[name]:,.3f}".removesuffix(".000") for name in names))
        Console(width=200).print(table)
    RESULTS.write_text(json.dumps({"environment": environment(), "records": result}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
