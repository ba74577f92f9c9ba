"""The quality of judges as rows: every judge, then the length-only judge, then chance, with the same measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from metareward.errors import UserError
from metareward.evaluation.base import Column, Figures, figure
from metareward.evaluation.judge_quality.data import Item, Pair, PairVerdicts
from metareward.evaluation.judge_quality.pairs import (
    JudgedPair,
    biases,
    chance_pair_quality,
    judged_pairs,
    llmbar_statistics,
    pair_quality,
    verdicts_by_length,
)
from metareward.evaluation.judge_quality.protocols import Agreement
from metareward.evaluation.judge_quality.rankings import (
    CHANCE,
    LENGTH,
    chance_ranking_quality,
    ranking_quality,
    score_histogram,
    scored_by_length,
)
from metareward.evaluation.judge_quality.reward_bench import Choice, choices_by_length, section_scores
from metareward.method.diagnostics import position_statistics
from metareward.types import PromptRecord

Measures = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class JudgeTable:
    """``kind`` says which measures; each row is a judge's name and its measures, ready for JSON."""

    kind: str
    rows: tuple[tuple[str, Measures], ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"kind": self.kind, "judges": [{"judge": name, **measures} for name, measures in self.rows]}


def rankings_table(items: Sequence[Item], judge: str, perfect: float) -> JudgeTable:
    """A grading judge against human rankings; only the two baselines where the responses carry no scores."""
    scored = any(response.scores_N for item in items for response in item.responses)
    own = {**ranking_quality(items, perfect).as_dict(), "score_histogram": score_histogram(items)}
    rows: list[tuple[str, Measures]] = [(judge, own)] if scored else []
    rows.append((LENGTH, ranking_quality(scored_by_length(items), perfect).as_dict() | _no_perfect()))
    return JudgeTable("rankings", (*rows, (CHANCE, chance_ranking_quality(items))))


def _no_perfect() -> dict[str, object]:
    """A length has no perfect score, so the length-only judge has no 5-best."""
    return {"five_best": None, "n_fives": 0}


def pairs_table(
    pairs: Sequence[Pair], judges: Mapping[str, Sequence[PairVerdicts]], own: str | None = None
) -> JudgeTable:
    """Judges against pairwise labels, with their biases. Raises `UserError` where one judge mixes one order and two."""
    rows = [(name, _pairs_table(name, judged_pairs(pairs, verdicts), own)) for name, verdicts in judges.items()]
    orders = max((len(each.winners) for verdicts in judges.values() for each in verdicts), default=1)
    by_length = judged_pairs(pairs, verdicts_by_length(pairs, orders))
    rows.append((LENGTH, _pairs_table(LENGTH, by_length, own)))
    return JudgeTable("pairs", (*rows, (CHANCE, chance_pair_quality(by_length))))


def _pairs_table(name: str, judged: Sequence[JudgedPair], own: str | None) -> Measures:
    orders = {len(pair.winners) for pair in judged}
    if len(orders) > 1:
        raise UserError(f"verdicts of {name}: some pairs have one order, some two; fix: judge all of them in both")
    measures = {**pair_quality(judged).as_dict(), "biases": biases(judged, own).as_dict()}
    return measures | ({"llmbar": llmbar_statistics(judged)} if orders == {2} else {})


def sections_table(choices: Sequence[Choice], judge: str) -> JudgeTable:
    """A judge on RewardBench's subsets and sections."""
    own, by_length = section_scores(choices), section_scores(choices_by_length(choices))
    chance = {"overall": 0.5, "sections": dict.fromkeys(own.sections, 0.5), "subsets": dict.fromkeys(own.subsets, 0.5)}
    return JudgeTable("sections", ((judge, own.as_dict()), (LENGTH, by_length.as_dict()), (CHANCE, chance)))


def protocol_table(name: str, agreements: Iterable[Agreement]) -> JudgeTable:
    """A protocol's agreements."""
    return JudgeTable(name, tuple((each.judge, _measures(each)) for each in agreements))


def _measures(each: Agreement) -> Measures:
    return {field: value for field, value in each.as_dict().items() if field != "judge"}


def meta_judge_table(records: Iterable[PromptRecord], judge: str) -> JudgeTable:
    """The statistics of Meta-Rewarding Table 5; a meta-judge by chance follows neither place nor score."""
    split = {"pairs": None, "flipped": 0.5, "first_wins": 0.5}
    chance: dict[str, object] = {"higher_score_wins": 0.5, "lower_score_wins": 0.5}
    chance |= dict.fromkeys(("same_score", "different_score", "all"), split)
    return JudgeTable("meta-judge", ((judge, position_statistics(records).as_dict()), (CHANCE, chance)))


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
        Column("Spearman", "mean_spearman_defined"),
        Column("Kendall", "mean_kendall_tau_b_defined"),
        Column("prompts", "n_prompts"),
        Column("pairs", "n_pairs"),
        Column("unparsable", "n_unparsable"),
        Column("refused", "n_refused"),
    ),
    "pairs": (
        Column("accuracy %", "accuracy", unit="share"),
        Column("of readable %", "accuracy_readable", unit="share"),
        Column("both orders %", "accuracy_both_orders", unit="share"),
        Column("orders agree %", "positional_agreement", unit="share"),
        Column("kappa", "kappa"),
        Column("first shown %", "biases.position.p_first_shown", unit="share"),
        Column("longer %", "biases.length.p_longer", unit="share"),
        Column("labels longer %", "biases.label_length.p_longer", unit="share"),
        Column("own %", "biases.self_preference.judge", unit="share"),
        Column("labels own %", "biases.self_preference.label", unit="share"),
        Column("pairs", "n_pairs"),
        Column("unparsable", "n_unparsable"),
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


def judge_columns(kind: str, rows: Sequence[Figures]) -> tuple[Column, ...]:
    """The measures of a kind of table that at least one of its rows has."""
    columns = _section_columns(rows[0]) if kind == "sections" else _COLUMNS.get(kind, _AGREEMENT)
    return tuple(column for column in columns if any(figure(row, column.key) is not None for row in rows))


def _section_columns(row: Figures) -> tuple[Column, ...]:
    named = tuple(Column(f"{name} %", f"sections.{name}", unit="share") for name in row["sections"])
    return (Column("overall %", "overall", unit="share"), *named, Column("unparsable", "n_unparsable"))
