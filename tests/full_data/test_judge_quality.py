"""Judges on LLMBar, human MT-Bench labels, OpenAssistant rankings and RewardBench: the published numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import builders  # noqa: F401  (sets hypothesis up)
import pytest

from metareward.evaluation.judge_quality.data import (
    read_pairs,
    read_rankings,
    read_verdicts,
)
from metareward.evaluation.judge_quality.pairs import (
    SECTIONS,
    JudgedPair,
    biases,
    combine,
    judged_pairs,
    llmbar_statistics,
    pair_quality,
)
from metareward.evaluation.judge_quality.rankings import (
    human,
    ranking_quality,
    scored_by_length,
)
from metareward.evaluation.judge_quality.tables import krippendorff_alpha, pairs_table, rankings_table

pytestmark = pytest.mark.full_data


TOY_JUDGES: dict[str, Callable[[str], float]] = {
    "char_length": lambda text: float(len(text)),
    "length_bucket_0_5": lambda text: float(min(5, len(text) // 200)),
    "constant_3": lambda text: 3.0,
}


@pytest.fixture(scope="module")
def llmbar(judge_data: Path) -> Mapping[str, Sequence[JudgedPair]]:
    pairs = read_pairs(judge_data / "llmbar_natural.jsonl")
    verdicts = read_verdicts(judge_data / "llmbar_natural_evaluators.jsonl")
    return {name: judged_pairs(pairs, those) for name, those in verdicts.items()}


def number(published: object) -> float:
    """ "95 / 100 = 95.0%" is 0.95."""
    return (
        float(published.rpartition("=")[2].strip(" %")) / 100 if isinstance(published, str) else float(str(published))
    )


def test_llmbar_s_statistics_are_reproduced(llmbar: Mapping[str, Sequence[JudgedPair]], judge_data: Path) -> None:
    published = json.loads((judge_data / "llmbar_natural_statistics.json").read_text(encoding="utf-8"))
    assert len(llmbar) == len(published) == 8
    for name, pairs in llmbar.items():
        found = llmbar_statistics(pairs)
        for measure, value in published[f"LLMBar/Natural|{name}"].items():
            assert found[measure] == pytest.approx(number(value), abs=1e-9), (name, measure)


def test_accuracy_and_biases_are_the_expected_ones(
    llmbar: Mapping[str, Sequence[JudgedPair]], judge_data: Path
) -> None:
    expected = json.loads((judge_data / "llmbar_natural_bias_expected.json").read_text(encoding="utf-8"))
    for name, pairs in llmbar.items():
        quality, lean = pair_quality(pairs), biases(pairs)
        found = {
            "n": quality.n_pairs,
            "accuracy_average": quality.accuracy,
            "accuracy_both_orders": quality.accuracy_both_orders,
            "positional_agreement": quality.positional_agreement,
            "p_first_shown": lean.position.p_first_shown,
            "flips_to_first_shown": lean.position.flips_to_first_shown,
            "flips_to_second_shown": lean.position.flips_to_second_shown,
            "p_longer": lean.length.p_longer,
        }
        assert found == {measure: pytest.approx(value, abs=1e-9) for measure, value in expected[name].items()}
        assert lean.label_length.p_longer == pytest.approx(expected["_gold"]["p_longer"], abs=1e-9)


def test_a_right_kappa_is_not_the_published_one(llmbar: Mapping[str, Sequence[JudgedPair]]) -> None:
    pairs = llmbar["GPT-4/Vanilla"]
    assert pair_quality(pairs).kappa == pytest.approx(0.908, abs=5e-4)  # 95.5 % right
    assert llmbar_statistics(pairs)["kappa_average"] == pytest.approx(0.2696, abs=5e-5)


def test_the_length_only_judge_on_human_majority_labels(judge_data: Path) -> None:
    pairs = read_pairs(judge_data / "mtbench_human_majority_200.jsonl")
    rows = dict(pairs_table(pairs, {}).rows)
    assert list(rows) == ["length only", "chance"]
    assert rows["length only"]["accuracy"] == 0.6925


def test_rewardbench_s_example_has_its_section_scores(judge_data: Path) -> None:
    stored = json.loads((judge_data / "rewardbench_sections.json").read_text(encoding="utf-8"))
    assert {name: list(those) for name, those in SECTIONS.items()} == stored["subset_mapping"]
    assert {name: n for those in SECTIONS.values() for name, n in those.items()} == stored["example_counts"]
    accuracies = {
        name: value for name, value in stored["example_subset_accuracies"].items() if name in stored["example_counts"]
    }
    assert combine(accuracies, {}, {}) == pytest.approx(stored["example_section_scores"], abs=1e-9)


@pytest.mark.parametrize("judge", TOY_JUDGES)
def test_the_toy_judges_have_their_expected_values(judge_data: Path, judge: str) -> None:
    items = read_rankings(judge_data / "oasst_rankings.jsonl")
    graded = [
        replace(each, responses=tuple(replace(r, scores_N=(TOY_JUDGES[judge](r.text),)) for r in each.responses))
        for each in items
    ]
    found = asdict(ranking_quality(graded))
    expected = json.loads((judge_data / "oasst_expected_baseline_judges.json").read_text(encoding="utf-8"))[judge]
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, abs=1e-9)), name


def test_the_length_only_judge_on_human_rankings(judge_data: Path) -> None:
    items = read_rankings(judge_data / "oasst_rankings.jsonl")
    rows = dict(rankings_table(items, "mine", 5.0).rows)
    assert list(rows) == ["length only", "chance"]  # the file holds no scores of a judge
    assert rows["length only"]["pairwise_accuracy_ties_half"] == pytest.approx(0.6957, abs=1e-4)
    assert rows["length only"]["five_best"] is None
    assert rows["chance"]["pairwise_accuracy_ties_half"] == 0.5
    assert list(dict(rankings_table(scored_by_length(items), "mine", 5.0).rows)) == ["mine", "length only", "chance"]


def test_the_human_protocol_averages_correlations_over_prompts(judge_data: Path) -> None:
    items = read_rankings(judge_data / "oasst_rankings.jsonl")
    judge, length, chance = human(scored_by_length(items), "characters")
    assert judge == replace(length, judge="characters")
    assert length.agreement == pytest.approx(0.6957, abs=1e-4) and length.spearman == pytest.approx(0.4711, abs=1e-4)
    assert (length.n_pairs, length.n_left_out, chance.spearman) == (345, 0, 0.0)
    assert length.low is not None and length.high is not None and 0.6 < length.low < 0.69 < length.high < 0.8


def test_judge_bench_is_read_as_published(judge_data: Path) -> None:
    pairs = read_pairs(judge_data / "judgebench_gpt4o.jsonl")
    assert Counter(pair.subset for pair in pairs) == {"knowledge": 154, "reasoning": 98, "math": 56, "coding": 42}
    assert Counter(pair.label for pair in pairs) == {1: 193, 2: 157}


def test_judges_of_llmbar_agree_beyond_chance(judge_data: Path) -> None:
    """Krippendorff's alpha by the coincidence matrix."""
    verdicts = read_verdicts(judge_data / "llmbar_natural_evaluators.jsonl")
    units: dict[tuple[str, int], list[int]] = {}
    for those in verdicts.values():
        for each in those:
            for order, winner in enumerate(each.winners):
                units.setdefault((each.id, order), []).extend([] if winner is None else [winner])
    coincidences: Counter[tuple[int, int]] = Counter()
    for values in units.values():
        for i, one in enumerate(values):
            for other in values[:i] + values[i + 1 :]:
                coincidences[one, other] += 1 / (len(values) - 1)  # type: ignore[assignment]
    sums: Counter[int] = Counter()
    for (one, _), n in coincidences.items():
        sums[one] += n
    total = sum(sums.values())
    observed = sum(n for (one, other), n in coincidences.items() if one != other)
    expected = sum(sums[a] * sums[b] for a in sums for b in sums if a != b) / (total - 1)
    assert krippendorff_alpha(list(verdicts.values())) == pytest.approx(1 - observed / expected)
