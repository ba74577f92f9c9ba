"""The quality of judges as rows: every judge, then the length-only judge, then chance, with the same measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from metareward.benchmarks.baselines import (
    CHANCE,
    LENGTH,
    chance_at_pairs,
    chance_at_rankings,
    choices_by_length,
    chosen_by_length,
    graded_by_length,
)
from metareward.benchmarks.judge_biases import biases, score_histogram
from metareward.benchmarks.judge_files import Item, Pair, PairVerdicts
from metareward.benchmarks.judge_pairs import JudgedPair, judged_pairs, pair_quality
from metareward.benchmarks.judge_rankings import ranking_quality
from metareward.benchmarks.judge_sections import Choice, section_scores
from metareward.benchmarks.llmbar import llmbar_statistics
from metareward.benchmarks.protocols import Agreement
from metareward.errors import UserError
from metareward.monitors import position_statistics
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
    rows.append((LENGTH, ranking_quality(graded_by_length(items), perfect).as_dict() | _no_perfect()))
    return JudgeTable("rankings", (*rows, (CHANCE, chance_at_rankings(items))))


def _no_perfect() -> dict[str, object]:
    """A length has no perfect score, so the length-only judge has no 5-best."""
    return {"five_best": None, "n_fives": 0}


def pairs_table(
    pairs: Sequence[Pair], judges: Mapping[str, Sequence[PairVerdicts]], own: str | None = None
) -> JudgeTable:
    """Judges against pairwise labels, with their biases. Raises `UserError` where one judge mixes one order and two."""
    rows = [(name, _pairs(name, judged_pairs(pairs, verdicts), own)) for name, verdicts in judges.items()]
    orders = max((len(each.winners) for verdicts in judges.values() for each in verdicts), default=1)
    by_length = judged_pairs(pairs, chosen_by_length(pairs, orders))
    rows.append((LENGTH, _pairs(LENGTH, by_length, own)))
    return JudgeTable("pairs", (*rows, (CHANCE, chance_at_pairs(by_length))))


def _pairs(name: str, judged: Sequence[JudgedPair], own: str | None) -> Measures:
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
