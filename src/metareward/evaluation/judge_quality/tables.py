"""The quality of judges as rows: every judge, then the length-only judge, then chance, with the same measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np

from metareward.errors import UserError
from metareward.evaluation.base import Column, Figures, ResultTable, figure
from metareward.evaluation.input_checks import coverage_caveat
from metareward.evaluation.judge_quality.calibration import verdict_calibration
from metareward.evaluation.judge_quality.data import Item, Pair, PairVerdicts
from metareward.evaluation.judge_quality.pairs import (
    Choice,
    JudgedPair,
    biases,
    chance_pair_quality,
    choices_by_length,
    judged_pairs,
    llmbar_statistics,
    pair_quality,
    section_scores,
    verdicts_by_length,
)
from metareward.evaluation.judge_quality.rankings import (
    CHANCE,
    LENGTH,
    TIES,
    Agreement,
    chance_ranking_quality,
    ranking_quality,
    reward_bench_2_score,
    score_histogram,
    scored_by_length,
    ties_score,
)
from metareward.method.diagnostics import position_statistics
from metareward.types import PromptRecord

Measures = Mapping[str, object]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JudgeTable:
    """``kind`` says which measures; each row is a judge's name and its measures, ready for JSON.

    ``alpha`` is Krippendorff's of the judges in the rows, without the length-only judge and chance; None for one judge.
    ``caveats`` say what the measures leave out.
    """

    kind: str
    rows: tuple[tuple[str, Measures], ...]
    alpha: float | None = None
    caveats: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        judges = [{"judge": name, **measures} for name, measures in self.rows]
        found = {"kind": self.kind, "judges": judges, "krippendorff_alpha": self.alpha}
        return {**found, "caveats": list(self.caveats)}

    @property
    def by_subset(self) -> tuple[ResultTable, ...]:
        """A table of subsets to every judge, where the pairs or rankings have several."""
        tables = []
        for name, measures in self.rows:
            subsets = measures.get("subsets")
            if isinstance(subsets, Mapping) and len(subsets) > 1 and self.kind != "sections":
                rows = tuple(subsets.items())
                columns = tuple(c for c in _SUBSET_COLUMNS if any(figure(row, c.key) is not None for _, row in rows))
                tables.append(ResultTable(f"{name} by subset", columns, rows, first="subset"))
        return tuple(tables)

    @property
    def notes(self) -> tuple[str, ...]:
        """How far the judges agree with each other, and what the measures leave out."""
        alpha = () if self.alpha is None else (f"Krippendorff's alpha among the judges: {self.alpha:.3f}.",)
        return (*alpha, *(f"{caveat}." for caveat in self.caveats))


def rankings_table(items: Sequence[Item], judge: str, perfect: float) -> JudgeTable:
    """A grading judge against human rankings; only the two baselines where the responses carry no scores."""
    scored = any(response.scores_N for item in items for response in item.responses)
    own = {**_ranking_measures(items, perfect), "score_histogram": score_histogram(items)}
    rows: list[tuple[str, Measures]] = [(judge, own)] if scored else []
    # A length has no perfect score, so the length-only judge has no 5-best.
    by_length = {**_ranking_measures(scored_by_length(items), perfect), "five_best": None, "n_fives": 0}
    whole = (*rows, (LENGTH, by_length), (CHANCE, chance_ranking_quality(items)))
    return JudgeTable("rankings", whole, caveats=_ranking_caveats(items))


def _ranking_caveats(items: Sequence[Item]) -> tuple[str, ...]:
    """Responses without a rank, and prompts whose responses can't be told apart."""
    unranked = sum(response.rank is None for item in items for response in item.responses)
    flat = sum(len({each.rank for each in item.responses} - {None}) < 2 for item in items)
    return (
        *([f"partial: {unranked} responses have no rank and are left out"] if unranked else []),
        *([f"partial: {flat} of {len(items)} prompts have no two different ranks"] if flat else []),
    )


def _ranking_measures(items: Sequence[Item], perfect: float) -> dict[str, object]:
    """The measures of all items and of every subset; with all of RewardBench 2's subsets also its score."""

    def measures(those: Sequence[Item]) -> dict[str, object]:
        ties = ties_score(those)
        return {**asdict(ranking_quality(those, perfect)), **({} if ties is None else {"ties": asdict(ties)})}

    subsets = _subsets(items, lambda item: item.subset, measures)
    scores = {
        name: figure(found, "ties.score" if name == TIES else "best_of_match_ties_shared")
        for name, found in subsets.items()
    }
    overall = reward_bench_2_score(scores)
    whole = {**measures(items), "subsets": subsets}
    return whole if overall is None else {**whole, "reward_bench_2": overall}


def pairs_table(
    pairs: Sequence[Pair], judges: Mapping[str, Sequence[PairVerdicts]], own: str | None = None
) -> JudgeTable:
    """Judges against pairwise labels, with their biases. Raises `UserError` where one judge mixes one order and two."""
    labels = {pair.item.id: pair.label for pair in pairs if pair.label is not None}
    rows: list[tuple[str, Measures]] = []
    for name, verdicts in judges.items():
        measures = _pair_measures(name, judged_pairs(pairs, verdicts), own)
        calibrated = verdict_calibration(labels, verdicts)
        refused = sum(each.refused for each in verdicts if each.id in labels)
        calibrated_measures = None if calibrated is None else asdict(calibrated)
        rows.append((name, {**measures, "n_refused": refused, "calibration": calibrated_measures}))
    orders = max((len(each.winners) for verdicts in judges.values() for each in verdicts), default=1)
    by_length = judged_pairs(pairs, verdicts_by_length(pairs, orders))
    rows += [(LENGTH, _pair_measures(LENGTH, by_length, own)), (CHANCE, chance_pair_quality(by_length))]
    caveats = tuple(caveat for name, verdicts in judges.items() for caveat in _verdict_caveats(name, labels, verdicts))
    return JudgeTable("pairs", tuple(rows), krippendorff_alpha(list(judges.values())), caveats)


def _verdict_caveats(name: str, labels: Mapping[str, object], verdicts: Sequence[PairVerdicts]) -> Iterator[str]:
    """Pairs without a verdict, and probabilities that are another output's."""
    partial = coverage_caveat(sum(each.id in labels for each in verdicts), len(labels), "labelled pairs have verdicts")
    if partial is not None:
        yield f"{name}: {partial}"
    both = [
        (winner, share)
        for each in verdicts
        for winner, share in zip(each.winners, each.probabilities, strict=False)
        if winner and share is not None and share != 0.5
    ]
    against = sum((share > 0.5) != (winner == 1) for winner, share in both)
    if against > len(both) / 2:
        yield f"{name}: {against} of {len(both)} verdicts contradict their probability: is it that of output 1?"


def krippendorff_alpha(judges: Sequence[Sequence[PairVerdicts]]) -> float | None:
    """Krippendorff's nominal alpha of several judges' verdicts; an unreadable one is missing. None if undefined.

    A unit is a pair in one order.
    """
    found = [{(each.id, i): w for each in verdicts for i, w in enumerate(each.winners)} for verdicts in judges]
    units = sorted({unit for each in found for unit in each})
    data = np.array([[each.get(unit) for unit in units] for each in found], dtype=np.float64)  # None becomes NaN
    paired = data[:, (~np.isnan(data)).sum(axis=0) > 1] if len(judges) > 1 else np.empty((0, 0))
    if len(set(paired[~np.isnan(paired)])) < 2:
        return None
    import krippendorff

    return float(krippendorff.alpha(reliability_data=paired, level_of_measurement="nominal"))


def _subsets(
    rows: Sequence[T], subset: Callable[[T], str], measures: Callable[[Sequence[T]], Measures]
) -> dict[str, Measures]:
    """The measures of every named subset."""
    names = dict.fromkeys(filter(None, map(subset, rows)))
    return {name: measures([row for row in rows if subset(row) == name]) for name in names}


def _pair_measures(name: str, judged: Sequence[JudgedPair], own: str | None) -> Measures:
    orders = {len(pair.winners) for pair in judged}
    if len(orders) > 1:
        raise UserError(f"verdicts of {name}: some pairs have one order, some two; fix: judge all of them in both")
    subsets = _subsets(judged, lambda pair: pair.subset, lambda those: asdict(pair_quality(those)))
    measures = {**asdict(pair_quality(judged)), "biases": asdict(biases(judged, own)), "subsets": subsets}
    return measures | ({"llmbar": llmbar_statistics(judged)} if orders == {2} else {})


def sections_table(choices: Sequence[Choice], judge: str) -> JudgeTable:
    """A judge on RewardBench's subsets and sections."""
    own, by_length = section_scores(choices), section_scores(choices_by_length(choices))
    chance = {"overall": 0.5, "sections": dict.fromkeys(own.sections, 0.5), "subsets": dict.fromkeys(own.subsets, 0.5)}
    rows = ((judge, asdict(own)), (LENGTH, asdict(by_length)), (CHANCE, chance))
    return JudgeTable("sections", rows, caveats=own.caveats)


def protocol_table(name: str, agreements: Iterable[Agreement]) -> JudgeTable:
    """A protocol's agreements."""
    rows = ((each.judge, {key: value for key, value in asdict(each).items() if key != "judge"}) for each in agreements)
    return JudgeTable(name, tuple(rows))


def meta_judge_table(records: Iterable[PromptRecord], judge: str) -> JudgeTable:
    """The statistics of Meta-Rewarding Table 5; a meta-judge by chance follows neither place nor score."""
    split = {"pairs": None, "flipped": 0.5, "first_wins": 0.5}
    chance: dict[str, object] = {"higher_score_wins": 0.5, "lower_score_wins": 0.5}
    chance |= dict.fromkeys(("same_score", "different_score", "all"), split)
    return JudgeTable("meta-judge", ((judge, asdict(position_statistics(records))), (CHANCE, chance)))


# Which measures are shown; all of them are in the JSON.
_AGREEMENT: tuple[Column, ...] = (
    Column("agreement %", "agreement", unit="share"),
    Column("from", "low", unit="share"),
    Column("to", "high", unit="share"),
    Column("without ties %", "agreement_without_ties", unit="share"),
    Column("Spearman", "spearman"),
    Column("pairs", "n_pairs"),
    Column("ties", "n_ties"),
    Column("left out", "n_left_out"),
)
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "rankings": (
        Column("accuracy %, ties half", "pairwise_accuracy_ties_half", unit="share"),
        Column("without ties %", "pairwise_accuracy_without_ties", unit="share"),
        Column("exact match %", "exact_match", unit="share"),
        Column("5-best %", "five_best", unit="share"),
        Column("best-of %", "best_of_match_ties_shared", unit="share"),
        Column("RewardBench 2 %", "reward_bench_2", unit="share"),
        Column("Ties %", "ties.score", unit="share", detail=True),
        Column("Spearman", "mean_spearman_defined"),
        Column("Kendall", "mean_kendall_tau_b_defined"),
        Column("prompts", "n_prompts"),
        Column("pairs", "n_pairs"),
        Column("unreadable", "n_unreadable"),
        Column("refused", "n_refused"),
    ),
    "pairs": (
        Column("accuracy %", "accuracy", unit="share"),
        Column("of readable %", "accuracy_readable", unit="share"),
        Column("both orders %", "accuracy_both_orders", unit="share"),
        Column("orders agree %", "positional_agreement", unit="share"),
        Column("majority %", "accuracy_majority", unit="share", detail=True),
        Column("macro F1", "macro_f1", 3, detail=True),
        Column("kappa", "kappa"),
        Column("confidence %", "calibration.confidence", unit="share"),
        Column("ECE", "calibration.ece", 3),
        Column("Brier", "calibration.brier", 3, detail=True),
        Column("first shown %", "biases.position.p_first_shown", unit="share"),
        Column("longer %", "biases.length.p_longer", unit="share"),
        Column("labels longer %", "biases.label_length.p_longer", unit="share"),
        Column("own %", "biases.self_preference.judge", unit="share"),
        Column("labels own %", "biases.self_preference.label", unit="share"),
        Column("pairs", "n_pairs"),
        Column("unreadable", "n_unreadable"),
        Column("refused", "n_refused"),
    ),
    "meta-judge": (
        Column("higher score wins %", "higher_score_wins", unit="share"),
        Column("flipped %: same score", "same_score.flipped", unit="share"),
        Column("different score", "different_score.flipped", unit="share"),
        Column("all", "all.flipped", unit="share"),
        Column("first wins %: same score", "same_score.first_wins", unit="share"),
        Column("different score", "different_score.first_wins", unit="share"),
        Column("all", "all.first_wins", unit="share"),
        Column("pairs", "all.pairs"),
    ),
}


_SUBSET_COLUMNS: tuple[Column, ...] = (
    Column("accuracy %", "accuracy", unit="share"),
    Column("majority %", "accuracy_majority", unit="share"),
    Column("macro F1", "macro_f1", 3),
    Column("orders agree %", "positional_agreement", unit="share"),
    Column("accuracy %, ties half", "pairwise_accuracy_ties_half", unit="share"),
    Column("best-of %", "best_of_match_ties_shared", unit="share"),
    Column("Ties %", "ties.score", unit="share"),
    Column("pairs", "n_pairs"),
    Column("prompts", "n_prompts"),
    Column("unreadable", "n_unreadable"),
)


def judge_columns(kind: str, rows: Sequence[Figures]) -> tuple[Column, ...]:
    """The measures of a kind of table that at least one of its rows has."""
    if kind == "sections":
        named = (Column(f"{name} %", f"sections.{name}", unit="share") for name in rows[0]["sections"])
        columns = (Column("overall %", "overall", unit="share"), *named, Column("unreadable", "n_unreadable"))
    else:
        columns = _COLUMNS.get(kind, _AGREEMENT)
    return tuple(column for column in columns if any(figure(row, column.key) is not None for row in rows))
