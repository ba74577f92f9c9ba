from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_models import prompts, reply, role_of, settings

from metareward.engines.base import Call, ScriptedEngine
from metareward.evaluation.held_out import HeldOut, evaluate, held_out_records
from metareward.generation.progress import SILENT
from metareward.generation.runner import RunnerResult
from metareward.seeds import derive
from metareward.storage.store import RecordStore
from metareward.types import Messages, Sampling, Scored

PROMPTS = prompts(6)
SETTINGS = replace(settings(k=3, n=4, meta_judge=False), min_valid=1)
META_PAIRS = 2


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RecordStore]:
    with RecordStore.open(tmp_path / "m0.sqlite", {}) as opened:
        yield opened


@pytest.fixture
def later(tmp_path: Path) -> Iterator[RecordStore]:
    with RecordStore.open(tmp_path / "m1.sqlite", {}) as opened:
        yield opened


def run(engine: ScriptedEngine, store: RecordStore, anchors: Mapping[str, HeldOut] | None = None) -> RunnerResult:
    return asyncio.run(evaluate(engine, PROMPTS, SETTINGS, META_PAIRS, store, anchors, SILENT))


def by_id(store: RecordStore) -> dict[str, HeldOut]:
    return {record.prompt.id: record for record in held_out_records(store)}


def anchors_of(store: RecordStore) -> dict[str, HeldOut]:
    run(ScriptedEngine(reply), store)
    return by_id(store)


def marked(mark: str) -> ScriptedEngine:
    """Another model: its answers end in ``mark``, which the first one's never do."""

    def say(messages: Messages, sampling: Sampling, index: int) -> str:
        return reply(messages, sampling, index) + (mark if role_of(messages) == "actor" else "")

    return ScriptedEngine(say)


def test_m0_is_its_own_anchor(store: RecordStore) -> None:
    engine = ScriptedEngine(reply)
    assert run(engine, store).finished == len(PROMPTS)
    for record in by_id(store).values():
        assert record.anchors_K == record.own
    assert {call.n for call in engine.calls} == {3, 4, 1}


def test_repeated_samples_are_kept(store: RecordStore) -> None:
    def same(messages: Messages, sampling: Sampling, index: int) -> str:
        return "Paris." if role_of(messages) == "actor" and index != 1 else reply(messages, sampling, index)

    run(ScriptedEngine(same), store)
    for record in by_id(store).values():
        assert [answer.index for answer in record.own] == [0, 1, 2]
        first, _, third = record.own
        assert (first.text, third.text) == ("Paris.", "Paris.")
        assert first.judgments_N == third.judgments_N


def test_a_later_model_judges_its_own_answers_and_those_of_m0(store: RecordStore, later: RecordStore) -> None:
    anchors = anchors_of(store)
    run(marked("!"), later, anchors)
    for name, record in by_id(later).items():
        assert [answer.text for answer in record.anchors_K] == [answer.text for answer in anchors[name].own]
        assert all(answer.text.endswith("!") for answer in record.own)
        assert all(len(answer.judgments_N) == 4 for answer in (*record.own, *record.anchors_K))


def test_no_two_purposes_share_a_seed(store: RecordStore, later: RecordStore) -> None:
    anchors = anchors_of(store)
    engine = marked("!")
    run(engine, later, anchors)
    seeds = [call.sampling.seed for call in engine.calls]
    assert len(seeds) == len(set(seeds))


def test_every_model_gets_the_same_requests_about_the_anchors(store: RecordStore, later: RecordStore) -> None:
    anchors = anchors_of(store)
    first, second = marked("!"), marked("?")
    run(first, later, anchors)
    with RecordStore.open(later.path.with_name("m2.sqlite"), {}) as third:
        run(second, third, anchors)
    asked = about_anchors(first)
    assert len(asked) == len(PROMPTS) * SETTINGS.k
    assert asked == about_anchors(second)


def about_anchors(engine: ScriptedEngine) -> list[tuple[str, int]]:
    """Question and seed of every judgment of an answer without a mark."""

    def unmarked(call: Call) -> bool:
        return role_of(call.messages) == "judge" and not re.search("[!?]\n</answer>", call.messages[0].content)

    return sorted((call.messages[0].content, call.sampling.seed) for call in engine.calls if unmarked(call))


def test_judgments_are_compared_in_both_orders(store: RecordStore) -> None:
    for record in anchors_of(store).values():
        orders = [(each.candidate, each.meta.first, each.meta.second) for each in record.comparisons]
        assert len(orders) == len(set(orders)) == 2 * META_PAIRS
        assert {(answer, second, first) for answer, first, second in orders} == set(orders)


def test_every_model_compares_the_same_judgments_of_m0(store: RecordStore, later: RecordStore) -> None:
    anchors = anchors_of(store)
    run(marked("!"), later, anchors)
    for name, record in by_id(later).items():
        compared = [(each.candidate, each.meta.first, each.meta.second) for each in record.comparisons]
        before = [(each.candidate, each.meta.first, each.meta.second) for each in anchors[name].comparisons]
        assert compared == before


def test_only_readable_judgments_that_differ_are_compared(store: RecordStore) -> None:
    records = anchors_of(store).values()
    assert any(not isinstance(each.reading, Scored) for r in records for a in r.own for each in a.judgments_N)
    for record in records:
        answers = {answer.index: answer for answer in record.own}
        for each in record.comparisons:
            given = {judgment.index: judgment for judgment in answers[each.candidate].judgments_N}
            first, second = given[each.meta.first], given[each.meta.second]
            assert isinstance(first.reading, Scored) and isinstance(second.reading, Scored)
            assert first.text != second.text


def test_without_different_judgments_there_are_no_comparisons(store: RecordStore) -> None:
    def alike(messages: Messages, sampling: Sampling, index: int) -> str:
        return "Score: 3" if role_of(messages) == "judge" else reply(messages, sampling, index)

    run(ScriptedEngine(alike), store)
    assert all(record.comparisons == () for record in by_id(store).values())


def test_finished_prompts_are_not_evaluated_again(store: RecordStore) -> None:
    run(ScriptedEngine(reply), store)
    engine = ScriptedEngine(reply)
    assert run(engine, store).cached == len(PROMPTS)
    assert engine.calls == []


def test_the_records_are_deterministic(store: RecordStore, later: RecordStore) -> None:
    run(ScriptedEngine(reply), store)
    asyncio.run(
        evaluate(
            ScriptedEngine(reply), PROMPTS[::-1], SETTINGS, META_PAIRS, later, None, SILENT, max_concurrent_prompts=1
        )
    )
    assert dict(store.documents()) == dict(later.documents())


def test_another_seed_gives_other_records(store: RecordStore, later: RecordStore) -> None:
    run(ScriptedEngine(reply), store)
    other = replace(SETTINGS, seed=derive(SETTINGS.seed, "other"))
    asyncio.run(evaluate(ScriptedEngine(reply), PROMPTS, other, META_PAIRS, later, None, SILENT))
    assert dict(store.documents()) != dict(later.documents())
