"""MT-Bench: reading scores, averages by model and category, and a judge that grades turns."""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import builders  # noqa: F401  (sets hypothesis up)
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import lines, session

from metareward.engines.base import EngineError
from metareward.errors import UserError
from metareward.evaluation.mt_bench.data import (
    Grade,
    GradingPrompts,
    Question,
    evaluate,
    question_about,
    read_grades,
    read_questions,
    read_score,
)
from metareward.evaluation.mt_bench.run import MtBenchCommand, results
from metareward.types import Messages, Sampling

# --- scores ---


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Rating: [[8]]", 8.0),
        ("Rating: [[8.5]] and [[2]]", 8.5),
        ("[3] but also [[7]]", 7.0),
        ("so [6.5]", 6.5),
        ("[[ten]]", None),
        ("", None),
        ("[[-1]]", None),
    ],
)
def test_a_score_is_read(text: str, score: float | None) -> None:
    assert read_score(text) == score


grades = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([1, 2]), st.sampled_from([None, 1.0, 5.5, 10.0])), max_size=10
)


@given(grades)
def test_incomplete_data_gives_numbers_or_none_never_nan(drawn: list[tuple[int, int, float | None]]) -> None:
    questions = {i: Question(i, "math" if i % 2 else "stem", ("a", "b")) for i in range(1, 5)}
    rows = [Grade(question, "m", turn, score) for question, turn, score in drawn]
    for each in evaluate([*rows, Grade(1, "n", 1, None)], questions):
        json.dumps(asdict(each), allow_nan=False)  # raises for NaN
        own = [row for row in rows if row.model == each.model]
        assert each.n_valid + each.n_failed + each.n_refused == (len(own) if each.model == "m" else 1)
        assert each.n_missing + len({(row.question, row.turn) for row in own}) >= 7
        read = [row.score for row in own if row.score is not None]
        assert each.average == (pytest.approx(sum(read) / len(read)) if read else None)


def test_unreadable_and_missing_turns_are_counted() -> None:
    rows = [Grade(1, "m", 1, 7.0), Grade(1, "m", 2, None), Grade(2, "m", 1, None, refused=True)]
    (each,) = evaluate(rows, {i: Question(i, "math", ("a", "b")) for i in (1, 2)})
    assert (each.average, each.turn1, each.turn2) == (7.0, 7.0, None)
    assert (each.n_valid, each.n_failed, each.n_refused, each.n_missing) == (1, 1, 1, 1)
    assert each.categories["math"].average == 7.0


# --- a judge of one's own ---

PROMPTS = [
    {"name": "single-v1", "system_prompt": "s", "prompt_template": "plain {question} {answer}"},
    {"name": "single-math-v1", "system_prompt": "s", "prompt_template": "math {question} {answer} {ref_answer_1}"},
    {"name": "single-v1-multi-turn", "system_prompt": "t", "prompt_template": "two {question_2} {answer_1} {answer_2}"},
    {
        "name": "single-math-v1-multi-turn",
        "system_prompt": "t",
        "prompt_template": "two math {question_2} {answer_2} {ref_answer_1} {ref_answer_2}",
    },
]


@pytest.fixture
def files(tmp_path: Path) -> MtBenchCommand:
    def turns(*of: str) -> list[dict[str, object]]:
        return [{"index": 0, "turns": list(of)}]

    questions = [
        {"question_id": 81, "category": "writing", "turns": ["w1", "w2"]},
        {"question_id": 111, "category": "math", "turns": ["m1", "m2"]},
    ]
    answers = [{"question_id": i, "model_id": "me", "choices": turns(f"{{question}}{i}", f"b{i}")} for i in (81, 111)]
    reference = [{"question_id": 111, "model_id": "gpt-4", "choices": turns("r1", "r2")}]
    return MtBenchCommand(
        judgments=tmp_path / "made.jsonl",
        questions=lines(tmp_path / "question.jsonl", questions),
        answers=lines(tmp_path / "me.jsonl", answers),
        references=lines(tmp_path / "gpt-4.jsonl", reference),
        prompts=lines(tmp_path / "judge_prompts.jsonl", PROMPTS),
    )


def test_each_turn_is_asked_about_in_its_own_way(files: MtBenchCommand) -> None:
    asked: list[tuple[str, str]] = []

    def reply(messages: Messages, sampling: Sampling, i: int) -> str:
        asked.append((messages[0].content, messages[1].content))
        assert sampling.temperature == 0 and sampling.max_tokens == 2048
        return f"Rating: [[{len(asked)}]]"

    asyncio.run(files.evaluate(session(reply)))
    assert asked == [
        ("s", "plain w1 {question}81"),
        ("t", "two w2 {question}81 b81"),
        ("s", "math m1 {question}111 r1"),
        ("t", "two math m2 b111 r1 r2"),
    ]
    (each,) = results(files.judgments)
    assert (each.average, each.turn1, each.turn2) == (2.5, 2.0, 3.0)


def test_refusals_and_unreadable_scores_are_counted_apart(files: MtBenchCommand) -> None:
    def reply(messages: Messages, sampling: Sampling, i: int) -> str:
        if "two math" in messages[1].content:
            raise EngineError("too long")
        return "no number" if "math" in messages[1].content else "[[9]]"

    asyncio.run(files.evaluate(session(reply)))
    (each,) = results(files.judgments)
    assert (each.average, each.n_valid, each.n_failed, each.n_refused) == (9.0, 2, 1, 1)
    assert [grade.refused for grade in read_grades(files.judgments)] == [False, False, False, True]


def test_what_a_judge_needs_is_told(files: MtBenchCommand) -> None:
    with pytest.raises(UserError, match="needs --answers"):
        asyncio.run(MtBenchCommand(judgments=files.judgments).evaluate(session(lambda m, s, i: "")))
    without = files.model_copy(update={"references": None})
    with pytest.raises(UserError, match=r"question 111 .math. has no reference answer"):
        asyncio.run(without.evaluate(session(lambda m, s, i: "[[1]]")))
    with pytest.raises(UserError, match="lack 'single-v1'"):
        question_about(GradingPrompts({}, ""), Question(81, "writing", ("a", "b")), ("c", "d"), None, 1)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"question_id": 81, "model": "m", "turn": 3, "score": 1}, 'field "turn": is 3'),
        ({"question_id": "x", "model": "m", "turn": 1, "score": 1}, 'field "question_id": is not a number'),
    ],
)
def test_invalid_judgments_are_refused(tmp_path: Path, row: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line):
        read_grades(lines(tmp_path / "a.jsonl", [row]))


def test_questions_without_two_turns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are not two texts"):
        read_questions(lines(tmp_path / "q.jsonl", [{"question_id": 1, "category": "math", "turns": ["one"]}]))


def test_averages_of_stored_judgments_by_model_and_category(tmp_path: Path) -> None:
    """FastChat's table: rows of score -1 are dropped, and all other rows of a model are averaged."""
    categories = ("writing", "math", "coding", "stem")
    questions = [{"question_id": 81 + i, "category": categories[i % 4], "turns": ["a", "b"]} for i in range(8)]
    rows: list[dict[str, Any]] = [
        {"question_id": 81 + i, "model": model, "turn": turn, "score": (i * factor + turn * 3) % 11 - 1}
        for model, factor in (("one", 3), ("other", 7))
        for i in range(8)
        for turn in (1, 2)
    ]
    judgments = lines(tmp_path / "gpt-4_single.jsonl", rows)
    found = results(judgments, lines(tmp_path / "question.jsonl", questions))
    assert {each.model for each in found} == {"one", "other"}
    assert found[0].average is not None and found[1].average is not None and found[0].average >= found[1].average
    for each in found:
        own = [row for row in rows if row["model"] == each.model and row["score"] != -1]
        by_turn = [[row["score"] for row in own if row["turn"] == turn] for turn in (1, 2)]
        assert each.average == pytest.approx(np.mean([row["score"] for row in own]))
        assert each.turn1 == pytest.approx(np.mean(by_turn[0])) and each.turn2 == pytest.approx(np.mean(by_turn[1]))
        assert each.n_missing == 0 and each.n_failed == 16 - len(own)
        for place, name in enumerate(categories):
            scores = [row["score"] for row in own if (row["question_id"] - 81) % 4 == place]
            assert each.categories[name].average == pytest.approx(np.mean(scores))
            assert each.categories[name].n_valid == len(scores)
