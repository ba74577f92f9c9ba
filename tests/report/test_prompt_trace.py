import functools
from dataclasses import replace
from pathlib import Path

import pytest
from fake_run import fake_record, start, write_built, write_records

from metareward.errors import UserError
from metareward.method.elo import position_weights
from metareward.method.scores import answer_scores
from metareward.report.prompt_trace import PromptTrace, find_trace
from metareward.report.trace_text import trace_text
from metareward.storage.run_dir import RunDir
from metareward.types import Dropped, PreferencePair


@functools.cache
def traces(run: RunDir, t: int) -> tuple[PromptTrace, ...]:
    return tuple(find_trace(run, fake_record(t, number).prompt.id) for number in range(8))


def test_a_prompt_is_found_in_the_iteration_that_has_it(whole: RunDir) -> None:
    record = fake_record(2, 5)
    trace = find_trace(whole, record.prompt.id)
    assert (trace.iteration, trace.model, trace.record) == (2, "M1", record)


def test_scores_are_those_of_the_record(whole: RunDir) -> None:
    for trace in traces(whole, 1):
        scores = answer_scores(trace.record, trace.rules.min_valid)
        assert [a.score for a in trace.answers if a.score] == list(scores)


def test_sides_and_tiers_agree_with_the_pair(whole: RunDir) -> None:
    paired = [trace for trace in traces(whole, 2) if isinstance(trace.actor, PreferencePair)]
    assert paired
    for trace in paired:
        assert isinstance(trace.actor, PreferencePair) and trace.tiers is not None
        sides = {a.side: a.candidate.text for a in trace.answers if a.side}
        assert sides == {"chosen": trace.actor.chosen, "rejected": trace.actor.rejected}
        assert trace.actor.chosen_index in trace.tiers.upper and trace.actor.rejected_index in trace.tiers.lower


def test_ratings_agree_with_the_judge_pair(whole: RunDir) -> None:
    paired = [trace for trace in traces(whole, 1) if isinstance(trace.judge, PreferencePair)]
    assert paired
    for trace in paired:
        assert isinstance(trace.judge, PreferencePair) and trace.dispute is not None
        best, worst = trace.dispute.ranked[0], trace.dispute.ranked[-1]
        assert best.rating == pytest.approx(trace.judge.chosen_score)
        assert worst.rating == pytest.approx(trace.judge.rejected_score)
        assert {r.side for r in trace.dispute.rated if r.side} == {"chosen", "rejected"}


def test_each_meta_judgment_is_in_one_battle(whole: RunDir) -> None:
    trace = next(trace for trace in traces(whole, 1) if trace.dispute)
    assert trace.dispute is not None and trace.record.dispute is not None
    met = [m for battle in trace.dispute.battles for m in (battle.as_first, battle.as_second)]
    assert sorted(met, key=str) == sorted(trace.record.dispute.meta, key=str)


def test_a_dropped_pair_has_its_reason(whole: RunDir) -> None:
    trace = find_trace(whole, fake_record(1, 3).prompt.id)
    assert isinstance(trace.actor, Dropped) and trace.actor.reason == "all_scores_equal"
    text = trace_text(trace)
    assert "all answers scored the same" in text and trace.actor.detail in text


def test_an_iteration_without_judge_pairs_differs_from_a_dropped_pair(whole: RunDir) -> None:
    text = trace_text(find_trace(whole, fake_record(3, 1).prompt.id))
    assert "Judge pair: none, this iteration builds no judge pairs" in text
    assert "this iteration does not run the meta-judge" in text


def test_a_prompt_that_the_meta_judge_never_saw_says_so(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    record = replace(fake_record(1, 0), dispute=None)
    write_records(run, 1, [record])
    write_built(run, 1)
    trace = find_trace(run, record.prompt.id)
    assert isinstance(trace.judge, Dropped) and trace.judge.reason == "no_dispute"
    assert trace.no_dispute_text == "it was annotated without the meta-judge"


def test_before_pairs_are_built_the_weights_are_those_of_all_records(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    records = [fake_record(1, number) for number in range(9)]
    write_records(run, 1, records)
    trace = find_trace(run, records[0].prompt.id)
    assert not trace.built and trace.actor is None
    assert trace.dispute is not None
    assert trace.dispute.weights == position_weights(m for r in records if r.dispute for m in r.dispute.meta)
    assert "Actor pair: pairs are not built yet" in trace_text(trace)


def test_weights_of_one_answer_if_the_recipe_sets_that_scope(tmp_path: Path) -> None:
    run = start(tmp_path / "run", ["pairs.position_weights_scope=answer"])
    records = [fake_record(1, number) for number in range(9)]
    write_records(run, 1, records)
    write_built(run, 1)
    trace = find_trace(run, records[0].prompt.id)
    assert trace.dispute is not None and records[0].dispute is not None
    assert trace.dispute.weights == position_weights(records[0].dispute.meta)


def test_an_unknown_prompt_is_an_error_with_the_nearest_ids(whole: RunDir) -> None:
    with pytest.raises(UserError, match="no prompt 'pocket-10005x' in any iteration; the nearest are 'pocket-10005'"):
        find_trace(whole, "pocket-10005x")
    with pytest.raises(UserError, match="in iteration 2"):
        find_trace(whole, fake_record(1, 5).prompt.id, iteration=2)


def test_a_failed_prompt_is_an_error_with_its_cause(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    write_records(run, 1, [fake_record(1, 0)], failed={"long": "900 tokens, 512 fit, \x1b]0;owned\x07"})
    with pytest.raises(UserError, match="'long' failed in iteration 1: 900 tokens, 512 fit, ␛]0;owned␇; fix"):
        find_trace(run, "long")


def test_a_run_without_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is generated"):
        find_trace(start(tmp_path / "run"), "pocket-10000")


def test_a_prompt_without_meta_judgments_has_its_reason(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    answers = tuple(replace(each, judgments_N=()) for each in fake_record(1, 0).candidates_K)
    record = replace(fake_record(1, 0), candidates_K=answers, dispute=None)
    write_records(run, 1, [record])
    write_built(run, 1)
    text = trace_text(find_trace(run, record.prompt.id))
    assert "Judge pair: none, too few readable judgments of one answer (" in text
    assert "No meta-judgments: too few readable judgments of one answer." in text
