import functools
from dataclasses import replace
from pathlib import Path

import pytest
from fake_run import fake_record, start, write_built, write_records

from metareward.errors import UserError
from metareward.method.elo import position_weights
from metareward.method.scores import answer_scores
from metareward.report.facts import Life
from metareward.report.prompt_trace import life_of, render_text
from metareward.storage.run_dir import RunDir
from metareward.types import Dropped, PreferencePair, PromptRecord


@functools.cache
def lives(run: RunDir, t: int) -> tuple[Life, ...]:
    return tuple(life_of(run, fake_record(t, number).prompt.id) for number in range(8))


def test_a_life_is_found_in_the_iteration_that_has_it(whole: RunDir) -> None:
    record = fake_record(2, 5)
    life = life_of(whole, record.prompt.id)
    assert (life.iteration, life.model, life.record) == (2, "M1", record)


def test_scores_are_those_of_the_record(whole: RunDir) -> None:
    for life in lives(whole, 1):
        scores = answer_scores(life.record, life.rules.min_valid)
        assert [a.score for a in life.answers if a.score] == list(scores)


def test_sides_and_tiers_agree_with_the_pair(whole: RunDir) -> None:
    paired = [life for life in lives(whole, 2) if isinstance(life.actor, PreferencePair)]
    assert paired
    for life in paired:
        assert isinstance(life.actor, PreferencePair) and life.tiers is not None
        sides = {a.side: a.candidate.text for a in life.answers if a.side}
        assert sides == {"chosen": life.actor.chosen, "rejected": life.actor.rejected}
        assert life.actor.chosen_index in life.tiers.upper and life.actor.rejected_index in life.tiers.lower


def test_ratings_agree_with_the_judge_pair(whole: RunDir) -> None:
    paired = [life for life in lives(whole, 1) if isinstance(life.judge, PreferencePair)]
    assert paired
    for life in paired:
        assert isinstance(life.judge, PreferencePair) and life.dispute is not None
        best, worst = life.dispute.ranked[0], life.dispute.ranked[-1]
        assert best.rating == pytest.approx(life.judge.chosen_score)
        assert worst.rating == pytest.approx(life.judge.rejected_score)
        assert {r.side for r in life.dispute.rated if r.side} == {"chosen", "rejected"}


def test_every_meta_judgment_is_in_one_battle(whole: RunDir) -> None:
    life = next(life for life in lives(whole, 1) if life.dispute)
    assert life.dispute is not None and life.record.dispute is not None
    met = [m for battle in life.dispute.battles for m in (battle.as_first, battle.as_second)]
    assert sorted(met, key=str) == sorted(life.record.dispute.meta, key=str)


def test_a_drop_says_why(whole: RunDir) -> None:
    life = life_of(whole, fake_record(1, 3).prompt.id)
    assert isinstance(life.actor, Dropped) and life.actor.reason == "all_scores_equal"
    text = render_text(life)
    assert "all answers scored the same" in text and life.actor.detail in text


def test_judge_pairs_that_nobody_asked_for_are_told_apart_from_dropped_ones(whole: RunDir) -> None:
    text = render_text(life_of(whole, fake_record(3, 1).prompt.id))
    assert "Judge pair: none, not asked for in this iteration" in text
    assert "did not ask the meta-judge" in text


def test_before_pairs_are_built_the_weights_are_those_of_the_records_so_far(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    records = [fake_record(1, number) for number in range(9)]
    write_records(run, 1, records)
    life = life_of(run, records[0].prompt.id)
    assert not life.built and life.actor is None
    assert life.dispute is not None
    assert life.dispute.weights == position_weights(m for r in records if r.dispute for m in r.dispute.meta)
    assert "Actor pair: pairs are not built yet" in render_text(life)


def test_weights_of_one_answer_when_the_recipe_says_so(tmp_path: Path) -> None:
    run = start(tmp_path / "run", ["pairs.position_weights_scope=answer"])
    records = [fake_record(1, number) for number in range(9)]
    write_records(run, 1, records)
    write_built(run, 1)
    life = life_of(run, records[0].prompt.id)
    assert life.dispute is not None and records[0].dispute is not None
    assert life.dispute.weights == position_weights(records[0].dispute.meta)


def test_an_unknown_prompt_is_refused_with_the_nearest(whole: RunDir) -> None:
    with pytest.raises(UserError, match="no prompt 'pocket-10005x' in any iteration; the nearest are 'pocket-10005'"):
        life_of(whole, "pocket-10005x")
    with pytest.raises(UserError, match="in iteration 2"):
        life_of(whole, fake_record(1, 5).prompt.id, iteration=2)


def test_a_prompt_that_failed_is_told_with_its_error(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    write_records(run, 1, [fake_record(1, 0)], failed={"long": "the prompt has 900 tokens, 512 fit"})
    with pytest.raises(UserError, match="'long' failed in iteration 1: the prompt has 900 tokens"):
        life_of(run, "long")


def test_nothing_generated_yet_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is generated"):
        life_of(start(tmp_path / "run"), "pocket-10000")


def test_the_text_holds_everything_that_was_written(whole: RunDir) -> None:
    life = next(life for life in lives(whole, 1) if isinstance(life.judge, PreferencePair))
    text = " ".join(render_text(life, width=400).split())
    for written in texts(life.record):
        assert " ".join(written.split()) in text
    assert "CHOSEN" in text and "REJECTED" in text and "Battle matrix" in text


def texts(record: PromptRecord) -> list[str]:
    judgments = [j.text for c in record.candidates_K for j in c.judgments_N]
    metas = [m.text for m in record.dispute.meta] if record.dispute else []
    return [*(m.content for m in record.prompt.messages), *(c.text for c in record.candidates_K), *judgments, *metas]


def test_the_text_cannot_drive_a_terminal_nor_be_read_as_markup(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    record = fake_record(1, 0)
    nasty = "\x1b]0;owned\x07 [bold red]x[/] [/nothing] \u202eevil"
    write_records(run, 1, [replace(record, candidates_K=(replace(record.candidates_K[0], text=nasty),), dispute=None)])
    text = render_text(life_of(run, record.prompt.id))
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    assert "␛]0;owned␇ [bold red]x[/] [/nothing] ⟨U+202E⟩evil" in text


def test_lines_are_no_wider_than_asked(whole: RunDir) -> None:
    text = render_text(life_of(whole, fake_record(1, 1).prompt.id), width=90)
    assert max(map(len, text.split("\n"))) <= 90
