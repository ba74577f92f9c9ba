from dataclasses import replace
from pathlib import Path

import pytest
from builders import candidate
from fake_run import fake_record, start, write_built, write_evaluation, write_records

from metareward.evaluation.held_out import HeldOut, held_out_to_json
from metareward.report.examples import Example, answers_before_after, examples
from metareward.report.facts import gather
from metareward.report.write import page
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore
from metareward.types import Message, PreferencePair, Prompt


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


def write_answers(run: RunDir, t: int, texts: dict[str, str]) -> None:
    """M_t's answers to held-out prompts of the constraint world, by the prompts' ids."""
    with RecordStore.open(run.iteration(t).evaluation / "records.sqlite", {}) as store:
        for name, text in texts.items():
            asked = Prompt(name, (Message("user", "Write a short text about horses. Don't use any commas."),))
            answer = replace(candidate(0, [1.0], text=text), finish="length" if text.endswith("and") else "stop")
            store.put(name, held_out_to_json(HeldOut(asked, (answer,), (answer,), ())))


def test_answers_of_the_first_and_the_last_model_to_the_same_prompts(tmp_path: Path) -> None:
    run = start(tmp_path / "run", ["prompts.source=constraints", "seed=3"])
    names = [f"held-out-topic-{number:05d}" for number in range(30)]
    for t in (0, 1):
        write_evaluation(run.iteration(t), t)
        text = "Horses are large and strong animals that people ride." if t else "Horses, and"
        write_answers(run, t, dict.fromkeys(names, text))
    found = answers_before_after(run, gather(run))
    assert len(found) == 20 and found == answers_before_after(run, gather(run))
    assert {each.before.text for each in found} == {"Horses, and"}
    assert found[0].before.remarks == (
        "11 characters",
        "cut off",
        "true score 1 of 5",
        "misses a constraint",
        "too short",
        "unfinished",
    )
    assert (found[0].after.model, found[0].after.remarks) == ("M1", ("53 characters", "true score 5 of 5"))
    assert "20 held-out prompts drawn by the run's seed" in page(run)


def test_no_answers_before_there_are_two_models(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    assert answers_before_after(run, gather(run)) == ()
    write_evaluation(run.iteration(0), 0)
    write_answers(run, 0, {"held-out-topic-00001": "Horses."})
    assert answers_before_after(run, gather(run)) == ()


def test_a_cut_text_names_the_command_that_shows_it_whole(tmp_path: Path) -> None:
    """`show` knows the prompts of the iterations, `view` the held-out ones, too."""
    run, cut = start(tmp_path / "run", ["prompts.source=constraints"]), "24,000 characters, the first 20,000 are shown."
    for t in (0, 1):
        write_evaluation(run.iteration(t), t)
        write_answers(run, t, {"held-out-topic-00001": "Horses. " * 3000})
    assert page(run).count(f"{cut} The whole text: <code>metareward view</code>.") == 2
    record = fake_record(1, 0)
    long = replace(record.candidates_K[0], text="Horses. " * 3000)
    write_records(run, 1, [replace(record, candidates_K=(long, *record.candidates_K[1:]))])
    assert f"{cut} The whole text: <code>metareward show</code>." in page(run)
