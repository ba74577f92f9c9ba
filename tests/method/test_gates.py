"""When gates fire: only beyond doubt, on the right side, with enough prompts."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metareward.method.gates import GATES, Gate, Limit, show_range, show_value
from metareward.method.health_checks import FEWEST_PROMPTS, GateResult, HealthCheck, check_gates
from metareward.method.judge_health import Figure

LIMITS = {name: gate.limit for name, gate in GATES.items()}


def only(name: str, value: float, low: float, high: float, prompts: int = 100) -> GateResult:
    """The result of one gate."""
    figure = Figure(value, low, high, 500, prompts)
    (result,) = (each for each in check_gates({GATES[name].figure or name: figure}, LIMITS) if each.name == name)
    return result


@pytest.mark.parametrize(
    ("name", "value", "low", "high", "outcome"),
    [
        ("readable_judgments", 0.95, 0.93, 0.97, "passed"),
        ("readable_judgments", 0.9, 0.8, 0.95, "passed"),  # the threshold is the last acceptable value
        ("readable_judgments", 0.89, 0.86, 0.92, "unclear"),
        ("readable_judgments", 0.8, 0.7, 0.89, "fired"),
        ("top_scores", 0.9, 0.85, 0.95, "fired"),
        ("top_scores", 0.1, 0.05, 0.15, "passed"),
        ("readable_by_score", -0.3, -0.4, -0.2, "fired"),
        ("readable_by_score", 0.3, 0.2, 0.4, "fired"),
        ("readable_by_score", -0.3, -0.6, 0.0, "unclear"),
        ("first_position", 0.1, 0.05, 0.2, "fired"),
        ("first_position", 0.9, 0.8, 0.95, "fired"),
        ("first_position", 0.3, 0.2, 0.4, "passed"),
        ("chosen_answer_length", 1.3, 1.2, 1.4, "fired"),
        ("chosen_answer_length", 0.5, 0.4, 0.6, "passed"),
    ],
)
def test_a_gate_fires_only_if_the_whole_interval_is_past_it(
    name: str, value: float, low: float, high: float, outcome: str
) -> None:
    assert only(name, value, low, high).outcome == outcome


def test_the_threshold_is_acceptable_and_an_interval_that_touches_it_unsure() -> None:
    below, above = LIMITS["readable_judgments"].threshold, LIMITS["top_scores"].threshold
    assert only("readable_judgments", below, below - 0.1, below).outcome == "passed"
    assert only("readable_judgments", below - 0.05, below - 0.1, below).outcome == "unclear"
    assert only("top_scores", above, above, above + 0.1).outcome == "passed"
    assert only("top_scores", above + 0.05, above, above + 0.1).outcome == "unclear"


def test_few_prompts_can_not_make_a_gate_fire() -> None:
    assert only("readable_judgments", 0.0, 0.0, 0.1, FEWEST_PROMPTS - 1).outcome == "unclear"
    assert only("readable_judgments", 0.0, 0.0, 0.1, FEWEST_PROMPTS).outcome == "fired"


@given(st.sampled_from(sorted(GATES)), st.floats(-2, 2), st.floats(0, 1), st.floats(0, 1))
def test_every_outcome_is_true_to_its_definition(name: str, value: float, below: float, above: float) -> None:
    gate, result = GATES[name], only(name, value, value - below, value + above)
    bad = [is_bad(gate, each) for each in (value, value - below, value + above)]
    assert (result.outcome == "passed") == (not bad[0])
    if result.fired:
        assert all(bad)


def is_bad(gate: Gate, value: float) -> bool:
    middle = 0.5 if gate.form == "share" else 0.0
    if gate.side == "either":
        return abs(value - middle) > gate.limit.threshold - middle + 1e-12
    return value < gate.limit.threshold if gate.side == "below" else value > gate.limit.threshold


def test_the_recipe_s_limit_counts() -> None:
    figure = {"one_score": Figure(0.7, 0.65, 0.75, 500, 100)}
    (result,) = check_gates(figure, {**LIMITS, "one_score": Limit(0.6, "note")})
    assert result.fired and result.limit.action == "note"
    assert not check_gates(figure, LIMITS)[0].fired


def test_several_gates_can_have_one_figure() -> None:
    found = {each.name: each for each in check_gates({"readable_judgments": Figure(0.01, 0.0, 0.02, 500, 100)}, LIMITS)}
    assert set(found) == {"unusable_judge", "readable_judgments"}
    assert all(each.fired for each in found.values())


def test_a_check_puts_what_stops_first() -> None:
    figures = {"top_scores": Figure(1, 0.9, 1, 9, 50), "one_score": Figure(1, 0.97, 1, 9, 50)}
    check = HealthCheck("evaluation", "M1", 1, check_gates(figures, LIMITS))
    assert [each.name for each in check.fired] == ["one_score", "top_scores"]
    assert [each.name for each in check.stopping] == ["one_score"]
    assert check.where == "the evaluation of M1"
    assert HealthCheck("records", "M1", 2, ()).where == "the records of iteration 2 (by M1)"


def test_the_finding_is_one_sentence_with_the_numbers() -> None:
    found = {
        "readable_judgments": Figure(0.832, 0.8, 0.861, 1200, 400, "90 missing"),
        "first_position": Figure(0.93, 0.9, 0.95, 800, 400),
        "chosen_answer_length": Figure(1.301, 1.2, 1.4, 300, 300),
    }
    texts = {each.name: each.finding for each in check_gates(found, LIMITS)}
    assert texts["readable_judgments"] == (
        "83.2 % of 1,200 judgments have a readable score (95 % interval 80 to 86.1 %; 90 missing); "
        "the limit is at least 90 %"
    )
    assert texts["first_position"].endswith("(95 % interval 90 to 95 %); the limit is 25 to 75 %")
    assert "1.30 times the length of rejected ones" in texts["chosen_answer_length"]
    assert texts["chosen_answer_length"].endswith("the limit is at most 1.10 times")


@pytest.mark.parametrize("gate", GATES.values(), ids=list(GATES))
def test_every_gate_says_what_it_means_and_what_to_do(gate: Gate) -> None:
    assert "{value}" in gate.statement and "{n}" in gate.statement
    for text in (gate.label, gate.problem, gate.statement, gate.meaning, gate.remedy):
        assert text and "\n" not in text and not text.endswith(".")


def test_gates_have_names_and_texts_of_their_own() -> None:
    assert all(name == gate.name for name, gate in GATES.items())
    assert len({gate.problem for gate in GATES.values()}) == len(GATES)


def test_a_result_can_be_written_as_json_values() -> None:
    assert asdict(only("one_score", 1, 1, 1))["limit"] == {"threshold": 0.9, "action": "stop"}


def test_stops_stop_only_what_is_of_no_use() -> None:
    """A gate with 'stop' is far beyond the one that warns about the same figure."""
    by_figure = sorted(
        (gate for gate in GATES.values() if gate.side == "below"), key=lambda g: (g.figure or g.name, g.limit.threshold)
    )
    for worse, better in pairwise(by_figure):
        if (worse.figure or worse.name) == (better.figure or better.name):
            assert (worse.limit.action, better.limit.action) == ("stop", "warn")


def test_values_are_shown_in_the_unit_of_their_gate() -> None:
    assert [show_value("share", value) for value in (0.832, 1.0, -0.0001)] == ["83.2 %", "100 %", "0 %"]
    assert [show_value("points", value) for value in (-0.12, 0.1234)] == ["−12 points", "12.3 points"]
    assert show_value("ratio", 1.176) == "1.18 times"
    assert show_range("share", 0.8, 0.861) == "80 to 86.1 %"
    assert show_range("ratio", 0.5, 2) == "0.50 to 2.00 times"
