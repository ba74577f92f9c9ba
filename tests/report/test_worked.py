from pathlib import Path

import pytest
from fake_run import fake_record, start, write_built, write_records

from metareward.report.gather import gather
from metareward.report.prompt_trace import Example, examples
from metareward.storage.run_dir import RunDir
from metareward.types import PreferencePair


def chosen(run: RunDir) -> tuple[Example, ...]:
    return examples(run, gather(run))


def test_there_is_one_of_each_kind_of_outcome(whole: RunDir) -> None:
    found = chosen(whole)
    assert [example.title for example in found] == ["Both pairs", "An actor pair only", "No pair"]
    both, actor, none = (example.life for example in found)
    assert isinstance(both.actor, PreferencePair) and isinstance(both.judge, PreferencePair)
    assert isinstance(actor.actor, PreferencePair) and not isinstance(actor.judge, PreferencePair)
    assert not isinstance(none.actor, PreferencePair) and not isinstance(none.judge, PreferencePair)


def test_they_come_from_the_last_iteration_that_asked_for_judge_pairs(whole: RunDir) -> None:
    assert {example.life.iteration for example in chosen(whole)} == {2}


def test_they_are_the_same_every_time(whole: RunDir) -> None:
    assert [e.life.record.prompt.id for e in chosen(whole)] == [e.life.record.prompt.id for e in chosen(whole)]


def test_where_a_kind_is_missing_another_example_takes_its_place(tmp_path: Path) -> None:
    run = start(tmp_path / "run", [f"iterations.{t}.judge_pairs=false" for t in (1, 2)])
    write_records(run, 1, [fake_record(1, number, meta_judge=False) for number in (0, 1, 2, 4)])
    write_built(run, 1)
    found = chosen(run)
    assert [example.title for example in found] == ["An actor pair only"] * 3
    assert len({example.life.record.prompt.id for example in found}) == 3


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_prompts_than_examples(tmp_path: Path, count: int) -> None:
    run = start(tmp_path / "run")
    write_records(run, 1, [fake_record(1, number) for number in range(count)])
    assert [example.title for example in chosen(run)] == ["Pairs not built yet"] * count
