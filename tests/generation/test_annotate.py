"""One prompt's life: what is asked, what is kept, and that the record depends on the prompt alone."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from scripted_models import SlowEngine, prompt, reply, role_of, settings

from metareward.engines.base import EngineError, ScriptedEngine, run_concurrently
from metareward.generation.annotate import (
    AnnotationSettings,
    RubricJudge,
    annotate_prompt,
    annotation_fingerprint,
    judge_answer,
    meta_judge_pair,
)
from metareward.generation.verdicts import VerdictRules
from metareward.method.elo import Battles
from metareward.method.judge import TOP_LOGPROBS, Reasoning
from metareward.method.pairs import PairRules, build_pairs
from metareward.method.scores import Rounds
from metareward.method.verdict_format import READER_VERSION
from metareward.seeds import derive
from metareward.storage.records import record_from_json, record_to_json
from metareward.types import (
    Completion,
    Duplicate,
    Judgment,
    Messages,
    ModelRole,
    Prompt,
    PromptRecord,
    Sampling,
    Scored,
    Truncated,
    Unparsed,
    Won,
)


class Tally:
    """A progress that counts."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}

    def start(self, stage: str, total: Any) -> None:
        pass

    def advance(self, role: str, n: int) -> None:
        self.done[role] = self.done.get(role, 0) + n

    def finish(self) -> None:
        pass


def run(
    engine: ScriptedEngine | SlowEngine,
    number: int = 1,
    chosen: AnnotationSettings | None = None,
    tally: Tally | None = None,
) -> PromptRecord:
    return asyncio.run(annotate_prompt(engine, prompt(number), chosen or settings(), tally or Tally()))


def scripted(
    answers: list[str], judgments: dict[str, list[str]], verdict: str = "Winner: Judgment A"
) -> ScriptedEngine:
    """Sample i of an answer request is ``answers[i]``; judgments are listed by answer."""

    def say(messages: Messages, sampling: Sampling, i: int) -> str:
        role, text = role_of(messages), messages[-1].content
        if role == "actor":
            return answers[i]
        if role == "meta":
            return verdict
        return next(written[i] for answer, written in judgments.items() if f"<answer>\n{answer}\n</answer>" in text)

    return ScriptedEngine(say)


GOOD = ["Score: 4", "Score: 4", "Score: 5"]
WILD = ["Score: 0", "nonsense", "Score: 5"]


def test_requests_are_one_for_answers_one_per_answer_and_one_per_ordered_pair() -> None:
    engine = scripted(["x", "y"], {"x": GOOD, "y": ["Score: 0", "Score: 2", "Score: 5"]})
    record = run(engine, chosen=settings(k=2))
    assert [(role_of(call.messages), call.n) for call in engine.calls[:3]] == [("actor", 2), ("judge", 3), ("judge", 3)]
    assert [(role_of(call.messages), call.n) for call in engine.calls[3:]] == [("meta", 1)] * 6
    assert record.dispute is not None
    assert record.dispute.candidate == 1
    assert [(meta.first, meta.second) for meta in record.dispute.meta] == list(permutations(range(3), 2))
    assert all(meta.verdict == Won(meta.first) for meta in record.dispute.meta)


def test_every_seed_is_derived_from_the_prompt_and_the_place() -> None:
    engine = scripted(["x", "y"], {"x": GOOD, "y": ["Score: 0", "Score: 2", "Score: 5"]})
    run(engine, chosen=settings(k=2, seed=7))
    due = [("answers",), ("judgments", 0), ("judgments", 1), *(("meta", *pair) for pair in permutations(range(3), 2))]
    assert [call.sampling.seed for call in engine.calls] == [derive(7, "p001", *purpose) for purpose in due]
    assert {replace(call.sampling, seed=0) for call in engine.calls} == {settings().answers}


def rising(scores: dict[str, list[int]]) -> ScriptedEngine:
    """Judgments by the rounds that ask them: what an answer's judgment with this index says, as its own text."""
    asked = dict.fromkeys(scores, 0)

    def say(messages: Messages, _: Sampling, i: int) -> str:
        role, text = role_of(messages), messages[-1].content
        if role == "actor":
            return list(scores)[i]
        if role == "meta":
            first, second = (int(found) for found in re.findall(r"thought (\d+)", text))
            return f"Winner: Judgment {'A' if first > second else 'B'}"
        answer = next(each for each in scores if f"<answer>\n{each}\n</answer>" in text)
        asked[answer] += 1
        return f"thought {asked[answer] - 1}\nScore: {scores[answer][asked[answer] - 1]}"

    return ScriptedEngine(say)


DOUBTFUL = {"x": [5, 4, 5, 4, 5, 5], "y": [4, 5, 4, 5, 4, 5], "zz": [3, 3, 3, 3, 3, 3], "w": [0, 0, 0, 0, 0, 0]}


def test_rounds_ask_more_judgments_only_where_a_pair_is_in_doubt() -> None:
    rounds = Rounds(n=6, size=2, disputed=False)
    chosen = replace(settings(n=6, seed=7, meta_judge=False), rounds=rounds)
    tally, engine = Tally(), rising(DOUBTFUL)
    record = run(engine, chosen=chosen, tally=tally)
    found = {each.text: [judgment.index for judgment in each.judgments_N] for each in record.candidates_K}
    assert found == {"x": [0, 1, 2, 3, 4, 5], "y": [0, 1, 2, 3, 4, 5], "zz": [0, 1], "w": [0, 1]}
    assert tally.done["judgments"] == 16
    seeds = [call.sampling.seed for call in engine.calls if role_of(call.messages) == "judge"]
    later = [derive(7, "p001", "judgments", k, "from", start) for start in (2, 4) for k in (0, 1)]
    assert seeds == [*(derive(7, "p001", "judgments", k) for k in range(4)), *later]
    assert record == run(rising(DOUBTFUL), chosen=chosen) == record_from_json(record_to_json(record))


def test_some_pairs_of_judgments_are_compared_in_both_orders() -> None:
    chosen = replace(settings(k=2, n=6), battles=Battles(4))
    engine = rising({"x": [0, 5, 1, 4, 2, 3], "y": [3, 3, 3, 3, 3, 3]})
    record = run(engine, chosen=chosen)
    assert record.dispute is not None and record.dispute.judgments_M == tuple(range(6))
    compared = [(meta.first, meta.second) for meta in record.dispute.meta]
    assert len(compared) == len(set(compared)) == 8
    assert {(second, first) for first, second in compared} == set(compared)
    assert {meta.verdict for meta in record.dispute.meta} == {Won(max(pair)) for pair in compared}
    (pair,) = (each for each in build_pairs([record], PairRules())[0] if each.kind == "judge")
    assert (pair.chosen_index, pair.rejected_index) == (5, 0)


def test_judgments_with_the_same_text_are_not_compared() -> None:
    chosen = replace(settings(k=2, n=3), battles=Battles(9))
    same = scripted(["x", "y"], {"x": ["Score: 0", "Score: 4", "Score: 0"], "y": GOOD})
    dispute = run(same, chosen=chosen).dispute
    assert dispute is not None and dispute.judgments_M == (0, 1, 2)
    assert sorted((meta.first, meta.second) for meta in dispute.meta) == [(0, 1), (1, 0)]


def test_equally_disputed_answers_are_drawn_by_a_seed_of_their_own() -> None:
    for seed in range(12):
        engine = scripted(["x", "y", "z"], {name: ["Score: 0", "Score: 2", "Score: 5"] for name in "xyz"})
        dispute = run(engine, chosen=settings(k=3, seed=seed)).dispute
        assert dispute is not None
        assert dispute.candidate == derive(derive(seed, "p001", "dispute"), "disputed") % 3


def test_every_role_draws_with_its_own_sampling() -> None:
    own = {"actor": Sampling(0.9, 0.8, 11), "judge": Sampling(0.7, 0.6, 12), "meta": Sampling(0.5, 0.4, 13)}
    chosen = replace(settings(), answers=own["actor"], judgments=own["judge"], meta=own["meta"])
    engine = ScriptedEngine(reply)
    run(engine, chosen=chosen)
    assert {role_of(call.messages) for call in engine.calls} == own.keys()
    for call in engine.calls:
        assert replace(call.sampling, seed=0) == own[role_of(call.messages)]


@pytest.mark.parametrize(("min_valid", "disputed"), [(2, 1), (3, 0), (4, None)])
def test_an_answer_with_too_few_valid_judgments_is_not_meta_judged(min_valid: int, disputed: int | None) -> None:
    engine = scripted(["x", "y"], {"x": GOOD, "y": WILD})  # y varies more, but has two valid judgments
    dispute = run(engine, chosen=replace(settings(k=2), min_valid=min_valid)).dispute
    assert (dispute and dispute.candidate) == disputed


def test_repeated_answers_are_not_judged_again() -> None:
    engine = scripted(["x", "y", "x", "x "], {"x": GOOD, "y": GOOD, "x ": GOOD})
    tally = Tally()
    record = run(engine, tally=tally, chosen=settings(meta_judge=False))
    assert [candidate.index for candidate in record.candidates_K] == [0, 1, 3]
    assert record.duplicates == (Duplicate(2, 0),)
    assert tally.done == {"answers": 4, "judgments": 9}


def test_only_valid_judgments_are_compared() -> None:
    tally = Tally()
    record = run(scripted(["x", "y"], {"x": GOOD, "y": WILD}), chosen=settings(k=2), tally=tally)
    assert record.dispute is not None
    assert record.dispute.judgments_M == (0, 2)
    assert [(meta.first, meta.second) for meta in record.dispute.meta] == [(0, 2), (2, 0)]
    assert [type(judgment.reading) for judgment in record.candidates_K[1].judgments_N] == [Scored, Unparsed, Scored]
    assert tally.done == {"answers": 2, "judgments": 6, "meta-judgments": 2}


@pytest.mark.parametrize("judgments", [["Score: 4"] * 3, ["Score: 4", "what", "hm"], ["what"] * 3])
def test_without_disagreement_there_is_no_dispute(judgments: list[str]) -> None:
    engine = scripted(["x"], {"x": judgments})
    assert run(engine, chosen=settings(k=1)).dispute is None
    assert len(engine.calls) == 2


def test_an_empty_answer_is_judged_like_any_other() -> None:
    record = run(scripted(["", "x"], {"": WILD, "x": GOOD}), chosen=settings(k=2))
    assert [(candidate.text, candidate.reasoning) for candidate in record.candidates_K] == [("", ""), ("x", "")]
    assert record.dispute is not None and record.dispute.candidate == 0


def test_a_cut_off_judgment_has_no_score_and_a_cut_off_answer_is_judged() -> None:
    def say(messages: Messages, sampling: Sampling, i: int) -> Completion:
        return Completion("x" if role_of(messages) == "actor" else "Score: 4", "length", 3)

    record = run(ScriptedEngine(say), chosen=settings(k=1))
    assert record.candidates_K[0].finish == "length"
    assert {judgment.reading for judgment in record.candidates_K[0].judgments_N} == {Truncated()}


def test_half_characters_from_a_server_become_question_marks() -> None:
    record = run(scripted(["caf\ud83d", "x"], {"caf?": GOOD, "x": GOOD}), chosen=settings(k=2, meta_judge=False))
    assert record.candidates_K[0].text == "caf?"
    assert record_from_json(record_to_json(record)) == record


def test_the_record_does_not_depend_on_timing_or_company() -> None:
    async def crowd() -> list[PromptRecord]:
        engine = SlowEngine(0.001)
        return list(await asyncio.gather(*(annotate_prompt(engine, prompt(n), settings()) for n in range(6))))

    assert asyncio.run(crowd()) == [run(ScriptedEngine(reply), n) for n in range(6)]


def test_all_judgments_and_all_comparisons_are_asked_at_once() -> None:
    engine = SlowEngine(0.001, scripted(["x", "y"], {"x": GOOD, "y": ["Score: 0", "Score: 2", "Score: 5"]}))
    run(engine, chosen=settings(k=2))
    assert engine.max_in_flight == 6


@pytest.mark.parametrize("failing", ["actor", "judge", "meta"])
def test_a_failure_in_any_role_is_the_engines_own_error(failing: str) -> None:
    def say(messages: Messages, sampling: Sampling, i: int) -> str:
        if role_of(messages) == failing:
            raise EngineError("the model is gone")
        return reply(messages, sampling, i)

    engine = SlowEngine(0.001, ScriptedEngine(say))
    with pytest.raises(EngineError, match=r"^the model is gone$"):
        run(engine, chosen=settings(k=5, n=5))
    assert engine.in_flight == 0


def test_a_mistake_is_not_hidden_behind_an_engine_error() -> None:
    async def fail(error: Exception) -> None:
        raise error

    with pytest.raises(KeyError):
        asyncio.run(run_concurrently([fail(EngineError("a")), fail(KeyError("b")), fail(EngineError("c"))]))


def test_every_request_names_the_role_of_the_model() -> None:
    engine = ScriptedEngine(reply)
    record = run(engine)
    assert record.dispute is not None
    judged = len(record.candidates_K)
    expected = ["actor"] + ["judge"] * judged + ["meta_judge"] * len(record.dispute.meta)
    assert sorted(call.role for call in engine.calls) == sorted(expected)


def test_an_engine_that_gives_too_few_is_found_out() -> None:
    class Mean(ScriptedEngine):
        async def complete(self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor") -> Any:
            return (await super().complete(messages, sampling, n, role))[1:]

    with pytest.raises(EngineError, match="3 completions for prompt p001, not 4"):
        run(Mean(reply))


def test_answers_and_judgments_of_others_can_be_judged() -> None:
    chosen = settings(k=1)
    record = run(ScriptedEngine(reply), 3, settings(k=5, n=5))
    answer = record.candidates_K[0]
    engine = scripted([], {answer.text: WILD})
    judgments = asyncio.run(judge_answer(engine, prompt(3), answer.index, answer.text, chosen))
    assert [judgment.text for judgment in judgments] == WILD
    assert [call.sampling.seed for call in engine.calls] == [derive(chosen.seed, "p003", "judgments", answer.index)]
    meta = asyncio.run(meta_judge_pair(engine, prompt(3), answer.text, judgments[2], judgments[0], chosen))
    assert (meta.first, meta.second, meta.verdict) == (2, 0, Won(2))


def test_the_fingerprint_holds_what_bears_on_meaning_and_nothing_else() -> None:
    base = settings()
    other_draw = replace(base.answers, temperature=0.1)
    others = [
        replace(base, k=5),
        replace(base, n=4),
        replace(base, seed=8),
        replace(base, min_valid=3),
        replace(base, meta_judge=False),
        replace(base, answers=other_draw),
        replace(base, judgments=other_draw),
        replace(base, meta=other_draw),
        replace(base, rubric=replace(base.rubric, max_score=6)),
        replace(base, metarubric=replace(base.metarubric, hide_scores=True)),
        replace(base, rounds=Rounds(3, size=2)),
        replace(base, rounds=Rounds(3, size=2, rho=0.1)),
        replace(base, battles=Battles(3)),
        replace(base, battles=Battles(4)),
    ]
    assert len({str(annotation_fingerprint(chosen)) for chosen in [base, *others]}) == 15
    assert annotation_fingerprint(replace(base, answers=replace(base.answers, seed=99))) == annotation_fingerprint(base)


def test_the_fingerprint_stays_what_it_is() -> None:
    """Stores on disk hold it: a run is resumed only with an equal one."""
    base = settings()
    chosen = replace(
        base,
        answers=Sampling(0.9, 0.8, 11),
        judgments=Sampling(0.7, 0.6, 12),
        meta=Sampling(0.5, 0.4, 13),
        rubric=replace(base.rubric, system_prompt="Be strict.", min_score=1, words=("Note",)),
        metarubric=replace(base.metarubric, system_prompt="Be fair.", hide_scores=True, kind="boxed", words=("Best",)),
        reasoning=Reasoning("<a>", "</a>"),
        verdicts=VerdictRules(retries=2),
        meta_verdicts=VerdictRules(constrained=True),
        expected=True,
    )
    assert annotation_fingerprint(chosen) == {
        "seed": 7,
        "answers": {"k": 4, "temperature": 0.9, "top_p": 0.8, "max_tokens": 11},
        "judgments": {
            "n": 3,
            "rubric": chosen.rubric.template.sha256,
            "verdict_format": {"kind": "label", "words": ["Note"]},
            "system": "Be strict.",
            "reader_version": READER_VERSION,
            "expected": True,
            "temperature": 0.7,
            "top_p": 0.6,
            "max_tokens": 12,
            "verdict": "text",
            "retries": 2,
        },
        "scores": {"low": 1, "high": 5.0, "min_valid": 2},
        "meta_judgments": {
            "rubric": chosen.metarubric.template.sha256,
            "verdict_format": {"kind": "boxed", "words": ["Best"]},
            "hide_scores": True,
            "system": "Be fair.",
            "temperature": 0.5,
            "top_p": 0.4,
            "max_tokens": 13,
            "verdict": "constrained",
            "retries": 0,
        },
        "reasoning": ["<a>", "</a>"],
    }
    plain = annotation_fingerprint(settings(meta_judge=False))
    assert plain["meta_judgments"] is None and plain["reasoning"] is None


def test_a_rubric_judge_asks_with_seeds_of_its_own() -> None:
    sampling = Sampling(0.7, 0.6, 12, seed=99)
    engine = scripted([], {"x": WILD, "y": GOOD})
    rubric = settings().rubric

    def judged(judge: RubricJudge, answer: str) -> list[object]:
        return [each.reading for each in asyncio.run(judge.judge(prompt(1), answer, 3))]

    assert judged(RubricJudge(engine, rubric, sampling, 5), "x") == [Scored(0), Unparsed("missing"), Scored(5)]
    assert judged(RubricJudge(engine, rubric), "y") == [Scored(4), Scored(4), Scored(5)]
    first, second = engine.calls
    assert (first.role, first.n, first.sampling) == (
        "judge",
        3,
        replace(sampling, seed=derive(5, "p001", "judgments", "x")),
    )
    assert first.messages == rubric.render(prompt(1), "x")
    assert second.sampling == Sampling(0.8, 0.95, 1024, derive(0, "p001", "judgments", "y"))


def test_what_is_asked_again_has_a_seed_of_its_own() -> None:
    rules, written = VerdictRules(retries=1), ["what", "Score: 1"]
    engine = scripted(["x"], {"x": written})
    judge = RubricJudge(engine, settings().rubric, seed=5, expected=True, verdicts=rules)
    asyncio.run(judge.judge(prompt(1), "x", 2))
    place = ("p001", "judgments", "x")
    assert [call.sampling.seed for call in engine.calls] == [derive(5, *place), derive(5, *place, "retry", 0, 1)]
    assert [call.sampling.top_logprobs for call in engine.calls] == [TOP_LOGPROBS] * 2
    engine = scripted(["x"], {"x": written}, "what")
    run(engine, chosen=replace(settings(k=1, n=2, seed=5, meta_judge=False), verdicts=rules))
    assert engine.calls[-1].sampling.seed == derive(5, "p001", "judgments", 0, "retry", 0, 1)


class Own:
    """A judge, and a reward, given as objects."""

    def __init__(self, indices: Sequence[int] = (0, 1, 2), rewards: Sequence[float] = (2, 0.5)) -> None:
        self.indices, self.rewards = indices, rewards
        self.asked: list[object] = []

    async def judge(self, prompt: Prompt, answer: str, n: int) -> tuple[Judgment, ...]:
        self.asked.append((prompt.id, answer, n))
        return tuple(Judgment(index, answer, 1, Scored(index)) for index in self.indices)

    async def score(self, prompt: Prompt, answers: Sequence[str]) -> Sequence[float]:
        self.asked.append((prompt.id, *answers))
        return self.rewards


def test_a_judge_of_your_own_takes_the_place_of_the_rubric() -> None:
    own, tally, engine = Own(), Tally(), scripted(["x", "y", "x"], {})
    record = run(engine, chosen=replace(settings(k=3, meta_judge=False), judge=own), tally=tally)
    assert own.asked == [("p001", "x", 3), ("p001", "y", 3)]
    assert [[each.text for each in answer.judgments_N] for answer in record.candidates_K] == [["x"] * 3, ["y"] * 3]
    assert (len(engine.calls), tally.done) == (1, {"answers": 3, "judgments": 6})
    with pytest.raises(EngineError, match=r"judgments 0 to 2, not \[0, 2, 1\]"):
        run(scripted(["x"], {}), chosen=replace(settings(k=1), judge=Own([0, 2, 1])))


def test_a_reward_scores_the_distinct_answers() -> None:
    own, engine = Own(), scripted(["x", "y", "x"], {})
    record = run(engine, chosen=replace(settings(k=3, n=0, meta_judge=False), reward=own))
    assert own.asked == [("p001", "x", "y")]
    assert [(each.index, each.reward, each.judgments_N) for each in record.candidates_K] == [(0, 2.0, ()), (1, 0.5, ())]
    assert len(engine.calls) == 1
    for rewards in ([1.0], [1.0, 2.0, 3.0], [1.0, float("nan")]):
        with pytest.raises(EngineError, match="must give 2 finite scores"):
            run(scripted(["x", "y"], {}), chosen=replace(settings(k=2, n=0), reward=Own(rewards=rewards)))


def test_reasoning_is_kept_beside_the_answer_and_the_judgments() -> None:
    engine = scripted(
        ["<think>a</think>x", "<think>b</think>x"],
        {"x": ["<think>c</think>Score: 1", "Score: 2", "Score: 4"]},
        "<think>Winner: Judgment B</think>Winner: Judgment A",
    )
    record = run(engine, chosen=replace(settings(k=2), reasoning=Reasoning()))
    (answer,) = record.candidates_K
    assert (answer.text, answer.reasoning, record.duplicates) == ("x", "<think>a</think>", (Duplicate(1, 0),))
    assert [each.reasoning for each in answer.judgments_N] == ["<think>c</think>", "", ""]
    assert record.dispute is not None
    assert all(each.verdict == Won(each.first) for each in record.dispute.meta)
