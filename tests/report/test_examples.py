from pathlib import Path

import pytest
from fake_run import fake_record, start, write_built, write_records

from metareward.report.examples import Example, examples
from metareward.report.facts import gather
from metareward.storage.run_dir import RunDir
from metareward.types import PreferencePair


def drawn(run: RunDir) -> tuple[Example, ...]:
    return examples(run, gather(run))


def test_one_example_of_each_kind_of_outcome(whole: RunDir) -> None:
    found = drawn(whole)
    assert [example.title for example in found] == ["Both pairs", "An actor pair only", "No pair"]
    both, actor, none = (example.trace for example in found)
    assert isinstance(both.actor, PreferencePair) and isinstance(both.judge, PreferencePair)
    assert isinstance(actor.actor, PreferencePair) and not isinstance(actor.judge, PreferencePair)
    assert not isinstance(none.actor, PreferencePair) and not isinstance(none.judge, PreferencePair)


def test_examples_come_from_the_last_iteration_with_judge_pairs(whole: RunDir) -> None:
    assert {example.trace.iteration for example in drawn(whole)} == {2}


def test_examples_are_deterministic(whole: RunDir) -> None:
    assert [e.trace.record.prompt.id for e in drawn(whole)] == [e.trace.record.prompt.id for e in drawn(whole)]


def test_a_missing_kind_is_replaced_by_another_example(tmp_path: Path) -> None:
    run = start(tmp_path / "run", [f"iterations.{t}.judge_pairs=false" for t in (1, 2)])
    write_records(run, 1, [fake_record(1, number, meta_judge=False) for number in (0, 1, 2, 4)])
    write_built(run, 1)
    found = drawn(run)
    assert [example.title for example in found] == ["An actor pair only"] * 3
    assert len({example.trace.record.prompt.id for example in found}) == 3


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_prompts_than_examples(tmp_path: Path, count: int) -> None:
    run = start(tmp_path / "run")
    write_records(run, 1, [fake_record(1, number) for number in range(count)])
    assert [example.title for example in drawn(run)] == ["Pairs not built yet"] * count
