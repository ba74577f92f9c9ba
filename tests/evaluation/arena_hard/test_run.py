"""A judge of one's own for Arena-Hard: two games, the order swapped, asked again once, kept and counted."""

import asyncio
from pathlib import Path

import pytest
from made_up import lines, session

from metareward.engines.base import EngineError
from metareward.errors import UserError
from metareward.evaluation.arena_hard.data import Answer, JudgePrompt, Question, Style, Version
from metareward.evaluation.arena_hard.run import ArenaHardCommand, game_query, text_of
from metareward.types import Messages, Sampling

CONFIG = """\
system_prompt: "Judge them."
prompt_template: ["Prompt: {question_1}\\nA: {answer_1}\\nB: {answer_2}"]
"""
QUESTIONS = 6


@pytest.fixture
def files(tmp_path: Path) -> ArenaHardCommand:
    (tmp_path / "judge_config.yaml").write_text(CONFIG, encoding="utf-8")
    ids = [f"q{i}" for i in range(QUESTIONS)]
    questions = [{"question_id": q, "category": "c", "turns": [{"content": f"Do {q}."}]} for q in ids]
    (tmp_path / "answers").mkdir()
    for model in ("base", "one", "two"):
        rows = [
            {
                "question_id": q,
                "model_id": model,
                "choices": [{"turns": [{"content": f"{model} does {q}", "token_len": 3}]}],
            }
            for q in ids
        ]
        lines(tmp_path / "answers" / f"{model}.jsonl", rows)
    return ArenaHardCommand(
        judgments=tmp_path / "made.jsonl",
        version="v0.1",
        baseline="base",
        answers=tmp_path / "answers",
        questions=lines(tmp_path / "question.jsonl", questions),
        prompt=tmp_path / "judge_config.yaml",
    )


def likes_one(messages: Messages, sampling: Sampling, i: int) -> str:
    """Model "one" is much better than the baseline, "two" is as good."""
    text = messages[1].content
    if "one does" not in text:
        return "They are alike: [[A=B]]"
    return "[[A>>B]]" if "A: one" in text else "[[B>>A]]"


@pytest.mark.parametrize("version", ["v0.1", "v2"])
def test_both_games_count_for_the_right_side(files: ArenaHardCommand, version: Version) -> None:
    asked = files.model_copy(update={"version": version})
    asyncio.run(asked.evaluate(session(likes_one)))
    (result,) = asked.results()
    assert [(each.model, each.score) for each in result.models] == [("one", 100.0), ("two", 50.0)]
    assert all((each.n_questions, each.n_unreadable, each.n_refused) == (QUESTIONS, 0, 0) for each in result.models)
    assert result.length_in == "tokens"


def test_a_judge_that_always_says_a_ends_at_50(files: ArenaHardCommand) -> None:
    asyncio.run(files.evaluate(session(lambda messages, sampling, i: "[[A>B]]")))
    assert [each.score for each in files.results()[0].models] == [50.0, 50.0]


def test_a_judge_of_v0_1_without_a_verdict_is_asked_to_go_on(files: ArenaHardCommand) -> None:
    def slow(messages: Messages, sampling: Sampling, i: int) -> str:
        if len(messages) == 2:
            return "Let me think."
        assert [message.role for message in messages[2:]] == ["assistant", "user"]
        return likes_one(messages, sampling, i) if "one does" in messages[1].content else "I still don't know."

    asyncio.run(files.evaluate(session(slow)))
    one, two = sorted(files.results()[0].models, key=lambda each: each.model)
    assert (one.score, two.score, two.n_unreadable) == (100.0, None, 2 * QUESTIONS)


def test_refused_games_are_counted_apart_and_asked_again(files: ArenaHardCommand) -> None:
    def refuses(messages: Messages, sampling: Sampling, i: int) -> str:
        if "q3" in messages[1].content and "A: base" in messages[1].content:
            raise EngineError("too long")
        return likes_one(messages, sampling, i)

    asyncio.run(files.evaluate(session(refuses)))
    one = files.results()[0].models[0]
    assert (one.score, one.n_refused, one.n_unreadable, one.n_battles) == (100.0, 1, 0, 3 * (2 * QUESTIONS - 1))
    again: list[str] = []

    def counts(messages: Messages, sampling: Sampling, i: int) -> str:
        again.append(messages[1].content)
        return likes_one(messages, sampling, i)

    asyncio.run(files.evaluate(session(counts)))
    assert len(again) == 2 and files.results()[0].models[0].n_refused == 0


def test_the_prompt_is_filled_byte_for_byte() -> None:
    older = JudgePrompt("s", "{question_1}|{answer_1}|{answer_2}|{other}", "")
    newer = JudgePrompt("s", "{QUESTION}|{ANSWER_A}|{ANSWER_B}|{other}", "")
    for prompt in (older, newer):
        (_, user) = game_query(prompt, "{answer_1} <|End|>", "[[A>B]]", "{}")
        assert user.content == "{answer_1} <|End|>|[[A>B]]|{}|{other}"


def test_what_a_judge_needs_is_told(files: ArenaHardCommand) -> None:
    with pytest.raises(UserError, match="needs --answers"):
        asyncio.run(ArenaHardCommand(judgments=files.judgments).evaluate(session(likes_one)))
    absent = files.model_copy(update={"baseline": "nobody"})
    with pytest.raises(UserError, match="--baseline nobody: has no answers"):
        asyncio.run(absent.evaluate(session(likes_one)))
    with pytest.raises(UserError, match="no text"):
        text_of(Answer(Question("q", "", "").id, "m", None, Style(1, None, 0, 0, 0)))
