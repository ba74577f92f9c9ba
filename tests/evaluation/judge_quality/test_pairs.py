"""A judge against pairwise labels: LLMBar's statistics, biases, RewardBench sections, and the metrics by hand."""

import json
from pathlib import Path

import builders  # noqa: F401  (sets hypothesis up)
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import lines
from sklearn.metrics import cohen_kappa_score

from metareward.errors import UserError
from metareward.evaluation.judge_quality.data import (
    Item,
    Pair,
    PairVerdicts,
    Response,
    Winner,
    read_pairs,
    read_verdicts,
    verdicts_from_scores,
)
from metareward.evaluation.judge_quality.pairs import (
    SECTIONS,
    JudgedPair,
    biases,
    chance_pair_quality,
    cohen_kappa,
    combine,
    judged_pairs,
    llmbar_statistics,
    pair_quality,
    read_choices,
    section_scores,
    verdicts_by_length,
)
from metareward.evaluation.judge_quality.tables import pairs_table, sections_table
from metareward.types import Message

winners = st.sampled_from([None, 0, 1, 2])
both_orders = st.lists(
    st.tuples(st.sampled_from([0, 1, 2]), winners, winners, st.integers(0, 90), st.integers(0, 90)), max_size=12
)


def pair(name: str, label: Winner | None, texts: tuple[str, str] = ("a", "bb"), **more: object) -> Pair:
    scores = more.get("scores", ((), ()))
    assert isinstance(scores, tuple)
    responses = tuple(Response(text, None, given) for text, given in zip(texts, scores, strict=True))
    return Pair(Item(name, (Message("user", "Why?"),), responses), label, "", more.get("generators"))  # type: ignore[arg-type]


def judged(*rows: tuple[Winner, tuple[Winner | None, ...]]) -> list[JudgedPair]:
    return [JudgedPair(str(i), label, said, (10, 20)) for i, (label, said) in enumerate(rows)]


@given(st.lists(st.tuples(st.sampled_from([1, 2]), winners, winners), min_size=1, max_size=30))
def test_llmbar_s_statistics_are_those_of_its_script(drawn: list[tuple[Winner, Winner | None, Winner | None]]) -> None:
    """Its script codes a label as 1 or 2, and a verdict as 1 for the first output, 0 for the second or none."""
    found = llmbar_statistics(judged(*((label, (one, other)) for label, one, other in drawn)))
    labels, one, other = (list(column) for column in zip(*drawn, strict=True))
    right = [[winner == label for winner, label in zip(side, labels, strict=True)] for side in (one, other)]
    assert found["correct_False"] == pytest.approx(np.mean(right[0]))
    assert found["correct_True"] == pytest.approx(np.mean(right[1]))
    assert found["correct_average"] == pytest.approx(np.mean(right))
    assert found["correct_both"] == pytest.approx(np.mean([a and b for a, b in zip(*right, strict=True)]))
    assert found["equal"] == pytest.approx(np.mean([a == b for a, b in zip(one, other, strict=True)]))
    coded = [[int(winner == 1) for winner in side] for side in (one, other)]
    sides = {"kappa_False": (coded[0], labels), "kappa_True": (coded[1], labels), "kappa_agreement": tuple(coded)}
    for name, (a, b) in sides.items():
        if len(set(a) | set(b)) > 1:
            assert found[name] == pytest.approx(cohen_kappa_score(a, b), abs=1e-12), name


def test_the_length_only_judge_stands_in_every_table() -> None:
    pairs = [pair("a", 1, ("xxx", "y")), pair("b", 2, ("xxx", "y")), pair("c", 1, ("xx", "yy")), pair("d", 2)]
    rows = dict(pairs_table(pairs, {}).rows)
    assert list(rows) == ["length only", "chance"]
    assert rows["length only"]["accuracy"] == (1 + 0 + 0.5 + 1) / 4


# --- the rules ---


@given(st.lists(st.tuples(winners, winners), min_size=1, max_size=30))
def test_kappa_is_scikit_learn_s(drawn: list[tuple[Winner | None, Winner | None]]) -> None:
    sides = [[str(side) for side in column] for column in zip(*drawn, strict=True)]
    found = cohen_kappa(drawn)
    if found is None:
        assert len(set(sides[0] + sides[1])) == 1  # they can't disagree
    else:
        assert found == pytest.approx(cohen_kappa_score(*sides), abs=1e-12)


def test_the_metrics_by_hand() -> None:
    found = pair_quality(judged((1, (1, 1)), (2, (2, 1)), (1, (0, None)), (0, (0, 1))))
    assert (found.n_pairs, found.n_verdicts, found.n_unreadable, found.n_ties, found.n_label_ties) == (4, 8, 1, 2, 1)
    assert found.accuracy == (1 + 1 + 1 + 0 + 0.5 + 0) / 6
    assert found.accuracy_readable == 3.5 / 5
    assert found.accuracy_without_ties == 3 / 4
    assert found.accuracy_by_order == (2.5 / 3, 1 / 3)
    assert found.accuracy_both_orders == 1 / 3
    assert found.accuracy_three_classes == 4 / 8
    assert found.positional_agreement == 1 / 4 and found.positional_agreement_readable == 1 / 3


def test_two_unreadable_verdicts_agree_only_by_llmbar_s_rule() -> None:
    found = pair_quality(judged((1, (None, None)), (1, (1, 2))))
    assert (found.positional_agreement, found.positional_agreement_readable) == (0.5, 0.0)


@given(both_orders)
def test_incomplete_data_gives_numbers_or_none_never_nan(
    drawn: list[tuple[Winner, Winner | None, Winner | None, int, int]],
) -> None:
    pairs = [pair(str(i), label, ("x" * one, "y" * other)) for i, (label, _, _, one, other) in enumerate(drawn)]
    verdicts = [PairVerdicts(str(i), (first, second)) for i, (_, first, second, _, _) in enumerate(drawn)]
    for _, measures in pairs_table(pairs, {"mine": verdicts}, own="me").rows:
        json.dumps(measures, allow_nan=False)  # raises for NaN


@given(both_orders)
def test_swapping_output_1_and_2_changes_nothing(
    drawn: list[tuple[Winner, Winner | None, Winner | None, int, int]],
) -> None:
    """Output 1 becomes output 2: labels and verdicts turn round, and the second order is the first."""

    def other(winner: Winner | None) -> Winner | None:
        return 3 - winner if winner else winner  # type: ignore[return-value]

    here = [JudgedPair(str(i), label, (a, b), (m, n)) for i, (label, a, b, m, n) in enumerate(drawn)]
    there = [
        JudgedPair(each.id, other(each.label) or 0, (other(each.winners[1]), other(each.winners[0])), each.chars[::-1])
        for each in here
    ]
    one, two = pair_quality(here), pair_quality(there)
    for name in ("accuracy", "accuracy_both_orders", "positional_agreement", "accuracy_three_classes"):
        assert getattr(one, name) == pytest.approx(getattr(two, name)), name
    assert one.kappa_between_orders == pytest.approx(two.kappa_between_orders)
    assert biases(here).position == biases(there).position
    assert biases(here).length.p_longer == pytest.approx(biases(there).length.p_longer)


def test_a_judge_of_one_order_has_no_position_bias(tmp_path: Path) -> None:
    pairs = [
        pair("a", 1, scores=((5.0,), (3.0, None))),
        pair("b", 2, scores=((4.0,), (4.0,))),
        pair("c", 2, scores=((None,), (1.0,))),
    ]
    verdicts = verdicts_from_scores(pairs)
    assert [each.winners for each in verdicts] == [(1,), (0,), (None,)]
    quality, lean = pair_quality(judged_pairs(pairs, verdicts)), biases(judged_pairs(pairs, verdicts))
    assert (quality.accuracy, quality.positional_agreement, lean.position.p_first_shown) == (0.5, None, None)
    assert chance_pair_quality(judged_pairs(pairs, verdicts))["accuracy_both_orders"] is None


def test_position_length_and_own_outputs_by_hand() -> None:
    rows = [
        JudgedPair("a", 1, (1, 2), (100, 10), ("me", "you")),  # the first one shown both times
        JudgedPair("b", 2, (2, 2), (10, 100), ("me", "you")),
        JudgedPair("c", 1, (1, 1), (50, 50), ("me", "me")),
    ]
    lean = biases(rows, own="me")
    assert lean.position.p_first_shown == 4 / 6 and lean.position.flips_to_first_shown == 1
    assert (lean.length.p_longer, lean.length.n, lean.length.p_longer_by_30) == (3 / 4, 4, 3 / 4)
    assert lean.length.winner_length_excess == pytest.approx((3 - 1) * (90 / 55) / 6)
    assert (lean.label_length.p_longer, lean.label_length.n) == (1.0, 2)
    assert lean.self_preference is not None
    assert (lean.self_preference.judge, lean.self_preference.label, lean.self_preference.n) == (0.25, 0.5, 4)


def test_pairs_judged_in_one_order_and_in_two_are_refused() -> None:
    pairs = [pair("a", 1), pair("b", 1)]
    with pytest.raises(UserError, match="verdicts of mine: some pairs have one order"):
        pairs_table(pairs, {"mine": [PairVerdicts("a", (1,)), PairVerdicts("b", (1, 2))]})


def test_verdicts_about_unknown_pairs_are_refused() -> None:
    with pytest.raises(UserError, match="'z' is no pair's id"):
        judged_pairs([pair("a", 1)], [PairVerdicts("z", (1,))])


def test_files_of_pairs_and_verdicts_are_read(tmp_path: Path) -> None:
    row = {"id": "a", "input": "Why?", "output_1": "x", "output_2": "y", "scores_1": [5, None], "score_2": 4}
    rows = [{**row, "label": "2"}, {**row, "id": "b", "reference": [1, 1]}, {**row, "id": "c", "reference": ["1", "2"]}]
    found = read_pairs(lines(tmp_path / "p.jsonl", rows))
    assert [each.label for each in found] == [2, 1, None]
    assert [response.scores_N for response in found[0].item.responses] == [(5.0, None), (4.0,)]
    verdict = {"id": "a", "winner_original_order": "1", "winner_swapped_order": None}
    assert read_verdicts(lines(tmp_path / "v.jsonl", [verdict])) == {"v": (PairVerdicts("a", (1, None)),)}
    with pytest.raises(UserError, match="give 1, 2, 0 for neither"):
        read_verdicts(lines(tmp_path / "bad.jsonl", [{**verdict, "winner_original_order": "3"}]))
    with pytest.raises(UserError, match='"winner_original_order": is missing'):
        read_verdicts(lines(tmp_path / "none.jsonl", [{"id": "a"}]))


def test_the_length_only_judge_prefers_the_longer_output() -> None:
    found = verdicts_by_length([pair("a", 1, ("xxx", "y")), pair("b", 1, ("x", "y"))], 2)
    assert [each.winners for each in found] == [(1, 1), (0, 0)]


# --- sections ---


def test_choices_by_hand(tmp_path: Path) -> None:
    row: dict[str, object] = {"subset": "llmbar-natural", "chosen": "aa", "rejected": "b"}
    rows = [
        {**row, "score_chosen": 4, "score_rejected": 3},
        {**row, "score_chosen": 3, "score_rejected": 3},  # a tie of scores is wrong
        {**row, "score_chosen": None, "score_rejected": 3},
        {**row, "winner": "chosen"},
        {**row, "winner": "tie"},
        {**row, "winner": None},
        {**row, "winner": "rejected", "subset": "mine", "section": "Own"},
    ]
    choices = read_choices(lines(tmp_path / "r.jsonl", rows))
    assert [each.credit for each in choices] == [1, 0, 0.5, 1, 0.5, 0.5, 0]
    found = section_scores(choices)
    assert found.subsets == {"llmbar-natural": 3.5 / 6, "mine": 0.0}
    assert found.sections == {"Chat Hard": 3.5 / 6, "Own": 0.0}
    assert found.overall == pytest.approx(3.5 / 12)
    assert found.n_unreadable == 2 and "math-prm" in found.missing and "llmbar-natural" not in found.missing
    by_length = dict(sections_table(choices, "mine").rows)["length only"]
    assert by_length["overall"] == 1.0
    with pytest.raises(UserError, match="none of the known words"):
        read_choices(lines(tmp_path / "bad.jsonl", [{**row, "winner": "A"}]))
    with pytest.raises(UserError, match='field "winner": is missing'):
        read_choices(lines(tmp_path / "none.jsonl", [row]))


def test_a_section_is_weighted_by_upstream_s_numbers_of_examples() -> None:
    accuracies = {name: 0.6 + 0.01 * place for place, name in enumerate(SECTIONS["Reasoning"])}
    found = combine({**accuracies, "mt-bench-easy": 1.0, "mt-bench-med": 0.3}, {}, {})
    code = sum(value for name, value in accuracies.items() if name != "math-prm") / 6
    assert found["Reasoning"] == pytest.approx((accuracies["math-prm"] + code) / 2)  # 984 = 6 x 164
    assert found["Chat"] == pytest.approx((28 * 1.0 + 40 * 0.3) / 68)
    assert sum(sum(subsets.values()) for subsets in SECTIONS.values()) == 984 + 6 * 164 + 358 + 456 + 740
