"""Verdicts as written, asked again and constrained: what is asked, what is kept, and that it is always readable."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as generated
from hypothesis import strategies as st
from scripted_models import prompt, role_of, settings

from metareward.engines.base import ScriptedEngine, StripReasoning
from metareward.evaluation.judges import JudgeClient, Output, grade
from metareward.generation.annotate import (
    AnnotationSettings,
    RubricJudge,
    annotate_prompt,
    annotation_fingerprint,
    meta_judge_pair,
)
from metareward.generation.verdicts import RubricGrader, VerdictRules, choice_probabilities
from metareward.method.judge import Reasoning, Rubric
from metareward.method.meta_judge import MetaRubric
from metareward.seeds import derive
from metareward.storage.records import record_from_json, record_to_json
from metareward.types import (
    Completion,
    Judgment,
    Message,
    Messages,
    PromptRecord,
    Sampling,
    Scored,
    Step,
    TopLogprob,
    Truncated,
    Unparsed,
    Won,
)

RUBRIC = Rubric.load("judge")
FIRST, SECOND = (Judgment(index, f"Score: {index}", 1, Scored(1.0)) for index in range(2))
CONSTRAINED, RETRIED = VerdictRules(constrained=True), VerdictRules(retries=2)
Say = Callable[[Messages, Sampling, int], str | Completion]
ASKED = RUBRIC.render(prompt(1), "An answer.")


def judged(say: Say, grader: RubricGrader, engine: ScriptedEngine | None = None) -> tuple[Judgment, ...]:
    engine = engine or ScriptedEngine(say)

    async def ask(messages: Messages, sampling: Sampling, n: int, *of: str | int) -> Sequence[Completion]:
        return await engine.complete(messages, replace(sampling, seed=derive(3, *of)), n, "judge")

    return asyncio.run(grader.judge(ask, prompt(1), "An answer."))


def grader(rules: VerdictRules, n: int = 1, **changes: object) -> RubricGrader:
    return replace(RubricGrader(RUBRIC, n, Sampling(0.8, 0.95, 64), rules=rules), **changes)  # type: ignore[arg-type]


def writes(text: str, choice: str = " 4", finish: str = "stop") -> Say:
    """A judge that writes ``text``, and ``choice`` where it may only choose."""

    def say(messages: Messages, sampling: Sampling, i: int) -> Completion:
        if sampling.choices:
            return Completion(choice, "stop", 1)
        return Completion(text, finish, 10)  # type: ignore[arg-type]

    return say


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("It is fine.\n\nScore: 5", "It is fine.\n\nScore: 4"),
        ("It is fine. Score: good", "It is fine. Score: 4"),
        ("It is fine. Score: 7", "It is fine. Score: 4"),
        ("It is fine. **Score:** 3 or 4", "It is fine. Score: 4"),
        ("It is fine.", "It is fine.\n\nScore: 4"),
        ("", "Score: 4"),
        ("Score: 5", "Score: 4"),
    ],
)
def test_the_verdict_is_drawn_after_the_reasoning(written: str, stored: str) -> None:
    (judgment,) = judged(writes(written), grader(CONSTRAINED))
    assert (judgment.text, judgment.reading, judgment.tokens, judgment.attempts) == (stored, Scored(4.0), 11, 1)


def test_the_second_request_continues_the_first() -> None:
    engine = ScriptedEngine(writes("Fine. Score: 5"))
    judged(writes(""), grader(CONSTRAINED, n=2), engine)
    first, *verdicts = engine.calls
    assert (first.messages, first.n, first.sampling.choices) == (ASKED, 2, ())
    assert [call.messages for call in verdicts] == [(*ASKED, Message("assistant", "Fine. Score:"))] * 2
    assert [call.sampling.seed for call in verdicts] == [derive(3, "verdict", index, 0) for index in range(2)]
    assert {call.sampling.choices for call in verdicts} == {tuple(f" {score}" for score in range(6))}
    assert {(call.sampling.temperature, call.sampling.top_p) for call in engine.calls} == {(0.8, 0.95)}


@pytest.mark.parametrize(
    ("text", "finish", "own"),
    [
        ("Fine. Score: 2", "stop", Scored(2.0)),
        ("Fine. Score: good", "stop", Unparsed("missing")),
        ("Fine. Score: 2", "length", Truncated()),
    ],
)
def test_the_verdict_that_was_written_is_kept_as_it_reads(text: str, finish: str, own: object) -> None:
    (judgment,) = judged(writes(text, finish=finish), grader(CONSTRAINED))
    assert (judgment.reading, judgment.written, judgment.own_reading) == (Scored(4.0), own, own)
    (plain,) = judged(writes(text, finish=finish), grader(VerdictRules()))
    assert (plain.reading, plain.written, plain.own_reading) == (own, None, own)


def test_a_cut_off_judgment_gets_a_verdict() -> None:
    (judgment,) = judged(writes("It is relevant, and", finish="length"), grader(CONSTRAINED))
    assert judgment.text == "It is relevant, and\n\nScore: 4" and judgment.reading == Scored(4.0)


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        # Scores of criteria are reasoning.
        ("Relevance score: 1\nCoverage score: none", "Relevance score: 1\nCoverage score: none\n\nScore: 4"),
        ("Relevance score: 1", "Relevance score: 1\n\nScore: 4"),
        # What would make a reader doubt is masked.
        ("Score: 2\nScore: 3 or 5", "Score∶ 2\nScore∶ 3 or 5\n\nScore: 4"),
    ],
)
def test_what_is_no_verdict_is_reasoning(written: str, stored: str) -> None:
    (judgment,) = judged(writes(written), grader(CONSTRAINED))
    assert (judgment.text, judgment.reading) == (stored, Scored(4.0))


GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["scores", "verdicts"])
def test_every_known_ending_can_be_given_a_verdict(name: str) -> None:
    rubric: Rubric | MetaRubric = Rubric.load("judge") if name == "scores" else MetaRubric.load("metajudge")
    choice = rubric.verdict.choices[1]
    for case in map(json.loads, (GOLDEN / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()):
        engine = ScriptedEngine(writes(case["text"], choice, case.get("finish", "stop")))
        if isinstance(rubric, Rubric):
            (judgment,) = judged(writes(""), grader(CONSTRAINED), engine)
            assert judgment.reading == Scored(1.0), judgment.text
        else:
            chosen = replace(settings(), meta_verdicts=CONSTRAINED)
            meta = asyncio.run(meta_judge_pair(engine, prompt(1), "x", FIRST, SECOND, chosen))
            assert meta.verdict == Won(SECOND.index), meta.text


ENDINGS = [
    "Score: 4",
    "**Score:** 5/5",
    "Score: good",
    "Score: 1 or 2",
    "<score>3</score>",
    r"\boxed{2}",
    "Total: 4",
    "",
]
WORDS = [
    "fine",
    "Score",
    ":",
    "4",
    "score is 3",
    "Score: 2.",
    "\n",
    "**",
    "points",
    "5/5",
    "評分：4",
    "{",
    '"score": 1',
    "|",
]


@generated(deadline=None)
@given(st.lists(st.sampled_from([*WORDS, *ENDINGS])).map(" ".join), st.sampled_from(range(6)), st.booleans())
def test_a_constrained_verdict_is_always_readable(written: str, score: int, cut: bool) -> None:
    say = writes(written, f" {score}", "length" if cut else "stop")
    (judgment,) = judged(say, grader(CONSTRAINED))
    assert judgment.reading == Scored(score), judgment.text
    assert judgment.reading == RUBRIC.read(judgment.text)


@generated(deadline=None)
@given(
    st.lists(st.sampled_from(["A is better", "Winner: Judgment A", "Winner:", "Judgment B", "\n", "tie"])).map(" ".join)
)
def test_a_constrained_winner_is_always_readable(written: str) -> None:
    def say(messages: Messages, sampling: Sampling, i: int) -> str:
        return " Judgment B" if sampling.choices else written

    chosen = replace(settings(), meta_verdicts=CONSTRAINED)
    first, second = (Judgment(index, f"Score: {index}", 1, Scored(1.0)) for index in (2, 7))
    meta = asyncio.run(meta_judge_pair(ScriptedEngine(say), prompt(1), "x", first, second, chosen))
    assert meta.verdict == Won(7) == chosen.metarubric.read(meta.text, "stop", 2, 7)


# --- thinking ---

TAGS = Reasoning()


@pytest.mark.parametrize(
    ("written", "finish", "thinking", "text"),
    [
        ("<think>hm</think>\n\nFine. Score: 5", "stop", "<think>hm</think>\n\n", "Fine. Score: 4"),
        ("<think>hm, what", "length", "<think>hm, what\n</think>\n\n", "Score: 4"),
        ("hm, what", "length", "hm, what\n</think>\n\n", "Score: 4"),
        ("Fine. Score: 5", "stop", "", "Fine. Score: 4"),
    ],
)
def test_thinking_precedes_the_judgment_that_is_continued(written: str, finish: str, thinking: str, text: str) -> None:
    engine = ScriptedEngine(writes(written, finish=finish))
    (judgment,) = judged(writes(""), grader(CONSTRAINED, reasoning=TAGS), engine)
    assert (judgment.reasoning, judgment.text) == (thinking, text)
    assert engine.calls[1].messages[-1].content == thinking + text.removesuffix(" 4")


def test_where_thinking_is_stripped_the_judgment_follows_empty_thinking() -> None:
    engine = ScriptedEngine(writes("<think>hm</think>\nFine. Score: 5"))
    stripped = StripReasoning(engine, TAGS, 50)
    judge = RubricJudge(stripped, RUBRIC, verdicts=CONSTRAINED)
    (judgment,) = asyncio.run(judge.judge(prompt(1), "x", 1))
    assert judgment.text == "Fine. Score: 4"
    assert engine.calls[1].messages[-1].content == "<think>\n\n</think>\n\nFine. Score:"


# --- asked again ---


def counting(texts: Sequence[str]) -> Say:
    """A judge that writes the next of ``texts`` each time."""
    left = list(texts)
    return lambda *_: left.pop(0)


def test_an_unreadable_judgment_is_asked_again() -> None:
    engine = ScriptedEngine(counting(["Score: 1", "what", "Score: 3", "hm hm", "Score: 5 of course"]))
    judgments = judged(writes(""), grader(RETRIED, n=3), engine)
    assert [each.reading for each in judgments] == [Scored(1.0), Scored(5.0), Scored(3.0)]
    assert [(each.attempts, each.tokens) for each in judgments] == [(1, 2), (3, 7), (1, 2)]
    assert [(call.n, call.sampling.seed) for call in engine.calls] == [
        (3, derive(3)),
        (1, derive(3, "retry", 1, 1)),
        (1, derive(3, "retry", 1, 2)),
    ]


def test_the_last_attempt_is_kept_if_none_is_readable() -> None:
    (judgment,) = judged(counting(["a", "b b", "c c c"]), grader(RETRIED))
    assert judgment == Judgment(0, "c c c", 6, Unparsed("missing"), "", 3)


def test_a_cut_off_judgment_is_asked_again() -> None:
    (judgment,) = judged(writes("Score: 4", finish="length"), grader(RETRIED))
    assert (judgment.reading, judgment.attempts, judgment.tokens) == (Truncated(), 3, 30)


def test_without_retries_nothing_is_asked_again() -> None:
    engine = ScriptedEngine(counting(["what", "Score: 2"]))
    judgments = judged(writes(""), grader(VerdictRules(), n=2), engine)
    assert [each.attempts for each in judgments] == [1, 1] and len(engine.calls) == 1


# --- expected scores ---


def step(text: str, **probabilities: float) -> Step:
    return Step(text, tuple(TopLogprob(f" {name[1:]}", math.log(p)) for name, p in probabilities.items()))


VALUES = {f" {score}": float(score) for score in range(3)}


def choice_mean(drawn: Completion, values: dict[str, float]) -> float | None:
    found = choice_probabilities(drawn, values)
    return sum(values[choice] * each for choice, each in found.items()) if found else None


def test_the_mean_over_choices_is_exact() -> None:
    drawn = Completion(" 1", "stop", 1, (step(" 1", _0=0.2, _1=0.3, _2=0.5),))
    assert choice_mean(drawn, VALUES) == pytest.approx(1.3)


def test_a_token_that_all_choices_share_is_skipped() -> None:
    space = Step(" ", (TopLogprob(" ", 0.0), TopLogprob("x", -math.inf)))
    digits = Step("2", tuple(TopLogprob(str(n), math.log(p)) for n, p in enumerate((0.5, 0.25, 0.25))))
    assert choice_mean(Completion(" 2", "stop", 2, (space, digits)), VALUES) == pytest.approx(0.75)


def test_a_choice_without_a_token_of_its_own_has_the_token_that_is_left() -> None:
    """As " 0" is written in the pocket model's tokens: a space, then 0."""
    top = [TopLogprob(" ", math.log(0.25)), TopLogprob(" 1", math.log(0.5)), TopLogprob(" 2", math.log(0.25))]
    assert choice_mean(Completion(" 1", "stop", 1, (Step(" 1", tuple(top)),)), VALUES) == pytest.approx(1.0)


def test_a_tokenizer_may_drop_the_blank() -> None:
    top = [TopLogprob(str(n), math.log(p)) for n, p in enumerate((0.5, 0.25, 0.25))]
    assert choice_mean(Completion(" 1", "stop", 1, (Step("1", tuple(top)),)), VALUES) == pytest.approx(0.75)


def test_without_a_token_that_separates_all_choices_there_is_no_mean() -> None:
    ten = Completion(" 2", "stop", 1, (step(" 2", _1=0.5, _2=0.5),))
    assert choice_mean(ten, {" 1": 1.0, " 10": 10.0, " 2": 2.0}) is None
    assert choice_mean(Completion(" 2", "stop", 1), VALUES) is None


def test_an_expected_score_of_a_constrained_verdict() -> None:
    probable = {f"_{score}": 0.1 if score < 5 else 0.5 for score in range(6)}

    def say(messages: Messages, sampling: Sampling, i: int) -> Completion:
        assert bool(sampling.top_logprobs) == bool(sampling.choices)
        return (
            Completion(" 4", "stop", 1, (step(" 4", **probable),)) if sampling.choices else Completion("x", "stop", 1)
        )

    (judgment,) = judged(say, grader(CONSTRAINED, expected=True))
    assert isinstance(judgment.reading, Scored) and judgment.reading.score == pytest.approx(0.1 * 10 + 2.5)
    assert judgment.text == "x\n\nScore: 4"


# --- wherever a rubric grades ---


def talk(messages: Messages, sampling: Sampling, i: int) -> str:
    """A model in all roles: half of its judgments and comparisons are unreadable as written."""
    draw = derive(sampling.seed, i)
    if sampling.choices:
        return sampling.choices[draw % len(sampling.choices)]
    if role_of(messages) == "actor":
        return f"answer {draw % 3}"
    return "no idea" if draw % 2 else {"judge": "fine. Score: 2", "meta": "Winner: Judgment A"}[role_of(messages)]


def record(chosen: AnnotationSettings, engine: ScriptedEngine | None = None) -> PromptRecord:
    return asyncio.run(annotate_prompt(engine or ScriptedEngine(talk), prompt(1), chosen))


def test_every_judgment_and_comparison_of_a_record_is_readable() -> None:
    chosen = replace(settings(k=3, n=4), verdicts=CONSTRAINED, meta_verdicts=CONSTRAINED)
    engine = ScriptedEngine(talk)
    made = record(chosen, engine)
    assert made.dispute is not None and len(made.dispute.meta) == 12
    assert all(isinstance(each.reading, Scored) for answer in made.candidates_K for each in answer.judgments_N)
    assert all(isinstance(each.verdict, Won) for each in made.dispute.meta)
    seeds = [(call.messages, call.sampling.seed) for call in engine.calls]
    assert len(set(seeds)) == len(seeds) == 1 + len(made.candidates_K) * 5 + 12 * 2
    assert {call.role for call in engine.calls if len(call.messages) > 1} == {"judge", "meta_judge"}
    assert record_from_json(record_to_json(made)) == made == record(chosen)


def test_retries_change_no_judgment_that_was_readable() -> None:
    plain = settings(k=3, n=4)
    once, again = record(plain), record(replace(plain, verdicts=RETRIED, meta_verdicts=RETRIED))
    for before, after in zip(once.candidates_K, again.candidates_K, strict=True):
        for first, second in zip(before.judgments_N, after.judgments_N, strict=True):
            assert first == second if isinstance(first.reading, Scored) else second.attempts > 1


def test_the_fingerprint_holds_how_verdicts_are_obtained() -> None:
    base = settings()
    others = [replace(base, verdicts=rules) for rules in (CONSTRAINED, RETRIED)]
    others += [replace(base, meta_verdicts=rules) for rules in (CONSTRAINED, RETRIED)]
    assert len({str(annotation_fingerprint(chosen)) for chosen in [base, *others]}) == 5
    assert grader(CONSTRAINED).settings != grader(RETRIED).settings != grader(VerdictRules()).settings


def test_a_judge_of_outputs_is_asked_in_the_same_way(tmp_path: Path) -> None:
    engine = ScriptedEngine(talk)
    client = JudgeClient(engine, "scripted", tmp_path / "judge.sqlite")
    found = asyncio.run(grade(client, grader(CONSTRAINED, n=6), [Output("a", prompt(1), "<answer>")]))
    (scores,) = (document["scores"] for document in found.documents.values())
    assert len(scores) == 6 and None not in scores and len(engine.calls) == 7
    retried = asyncio.run(
        grade(replace(client, records=tmp_path / "other.sqlite"), grader(RETRIED, n=6), [Output("a", prompt(1), "x")])
    )
    (scores,) = (document["scores"] for document in retried.documents.values())
    assert len(scores) == 6 and len(engine.calls) > 8
