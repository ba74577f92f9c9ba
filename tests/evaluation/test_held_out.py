from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from scripted_models import SlowEngine, prompts, reply, role_of, settings

from metareward.engines.base import Call, ScriptedEngine
from metareward.evaluation.held_out import HeldOut, evaluate, held_out_records
from metareward.generation.progress import SILENT
from metareward.generation.runner import RunnerResult
from metareward.seeds import derive
from metareward.storage.store import RecordStore
from metareward.types import Messages, Sampling, Scored

PROMPTS = prompts(6)
SETTINGS = replace(settings(k=3, n=4), min_valid=1)
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
    """Another model: its answers end in ``mark`` and its judgments begin with it, which the first one's never do."""

    def say(messages: Messages, sampling: Sampling, index: int) -> str:
        said = reply(messages, sampling, index)
        return {"actor": f"{said}{mark}", "judge": f"{mark} {said}", "meta": said}[role_of(messages)]

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
        assert all(each.text[0] == "!" for answer in (*record.own, *record.anchors_K) for each in answer.judgments_N)


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


def test_every_seed_is_derived_from_the_prompt_and_the_place(store: RecordStore, later: RecordStore) -> None:
    """Records on disk and resumed runs depend on them."""
    anchors = anchors_of(store)
    engine = marked("!")
    run(engine, later, anchors)
    own, again = (derive(SETTINGS.seed, purpose) for purpose in ("own", "anchors"))
    due = []
    for name, record in by_id(later).items():
        due += [("actor", derive(own, name, "answers"))]
        judged = {answer.text: answer.index for answer in record.own[::-1]}.values()  # the first of equal answers
        due += [("judge", derive(own, name, "judgments", index)) for index in judged]
        due += [("judge", derive(again, name, "judgments", answer.index)) for answer in record.anchors_K]
        pairs = [
            (answer.index, first.index, second.index)
            for answer in anchors[name].own
            for first, second in combinations(answer.judgments_N, 2)
            if isinstance(first.reading, Scored) and isinstance(second.reading, Scored) and first.text != second.text
        ]
        drawn = sorted(pairs, key=lambda pair: derive(derive(again, name, "pairs"), *pair))[:META_PAIRS]
        for index, first, second in drawn:
            seed = derive(again, "compare", index)
            due += [("meta", derive(seed, name, "meta", *pair)) for pair in ((first, second), (second, first))]
    assert sorted((role_of(call.messages), call.sampling.seed) for call in engine.calls) == sorted(due)


def test_comparisons_are_of_the_judgments_shown(store: RecordStore) -> None:
    engine = ScriptedEngine(reply)
    run(engine, store)
    metarubric = SETTINGS.metarubric
    due = []
    for record in by_id(store).values():
        answers = {answer.index: answer for answer in record.own}
        for each in record.comparisons:
            answer = answers[each.candidate]
            first, second = (answer.judgments_N[place].text for place in (each.meta.first, each.meta.second))
            due.append(metarubric.render(record.prompt, answer.text, first, second)[0].content)
    shown = [call.messages[0].content for call in engine.calls if role_of(call.messages) == "meta"]
    assert sorted(shown) == sorted(due)


class Tally:
    """A progress that counts."""

    def __init__(self) -> None:
        self.totals: list[tuple[str, dict[str, int]]] = []
        self.done = Counter[str]()

    def start(self, stage: str, total: Mapping[str, int]) -> None:
        self.totals.append((stage, dict(total)))

    def advance(self, kind: str, n: int) -> None:
        self.done[kind] += n

    def finish(self) -> None:
        pass


def test_progress_counts_every_completion(store: RecordStore, later: RecordStore) -> None:
    anchors = anchors_of(store)
    for given, judged, opened in ((None, 12, later.path.with_name("m0b.sqlite")), (anchors, 24, later.path)):
        tally, engine = Tally(), marked("!")
        with RecordStore.open(opened, {}) as into:
            asyncio.run(evaluate(engine, PROMPTS, SETTINGS, META_PAIRS, into, given, tally))
        assert tally.totals == [
            ("evaluating", {"prompts": 6, "answers": 3 * 6, "judgments": judged * 6, "meta-judgments": 4 * 6})
        ]
        asked = Counter[str]()
        for call in engine.calls:
            asked[{"actor": "answers", "judge": "judgments", "meta": "meta-judgments"}[role_of(call.messages)]] += (
                call.n
            )
        assert tally.done == asked + Counter(prompts=6)


def test_no_more_prompts_at_once_than_asked_for(store: RecordStore) -> None:
    slow = SlowEngine(0.001)
    asyncio.run(evaluate(slow, PROMPTS, SETTINGS, 0, store, None, SILENT, max_concurrent_prompts=2))
    assert slow.max_in_flight <= 2 * SETTINGS.k
