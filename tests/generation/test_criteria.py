"""Judgments by Yes-or-No criteria: their score and its uncertainty, programs, servers, and the whole annotation."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, Body, FakeChatServer, choice, completion
from openai_setup import engine_for
from scripted_models import prompt, settings

from metareward.engines.base import EngineError, LogprobsUnavailableError, ScriptedEngine, StripReasoning
from metareward.errors import UserError
from metareward.generation.annotate import RubricJudge, annotate_prompt, annotation_fingerprint
from metareward.method.judge import Reasoning, Rubric
from metareward.method.scores import answer_scores
from metareward.storage.records import record_from_json, record_to_json
from metareward.types import (
    Completion,
    CriterionAnswer,
    Judgment,
    Messages,
    Sampling,
    Scored,
    Step,
    TopLogprob,
    Unparsed,
)

CRITERIA = """
criteria:
  - Is it true?
  - {question: 'Is it polite?', weight: 3}
"""


def rubric(folder: Path, text: str = CRITERIA, low: float = 0.0, high: float = 5.0) -> Rubric:
    path = folder / "criteria.yaml"
    path.write_text(text, encoding="utf-8")
    return Rubric.load(str(path), min_score=low, max_score=high)


def token(**probabilities: float) -> Completion:
    top = tuple(TopLogprob(text, math.log(p)) for text, p in probabilities.items())
    return Completion("Yes", "stop", 1, (Step("Yes", top),))


def answering(by_question: Mapping[str, Completion]) -> Callable[[Messages, Sampling, int], Completion | str]:
    def reply(messages: Messages, sampling: Sampling, index: int) -> Completion | str:
        for question, found in by_question.items():
            if messages[-1].content.endswith(f"{question} Reply Yes or No."):
                assert sampling.temperature == 0 and "Yes" in sampling.choices and sampling.top_logprobs == 20
                return found
        return f"Answer {index}."

    return reply


TRUE, POLITE = token(Yes=0.6, No=0.2), token(Yes=0.1, No=0.3)


def judged(engine: Any, given: Rubric, n: int = 1) -> tuple[Judgment, ...]:
    return asyncio.run(RubricJudge(engine, given).judge(prompt(1), "Paris.", n))


def test_the_score_is_the_weighted_mean_of_the_probabilities_on_the_scale(tmp_path: Path) -> None:
    engine = ScriptedEngine(answering({"Is it true?": TRUE, "Is it polite?": POLITE}))
    (found,) = judged(engine, rubric(tmp_path, low=1.0, high=3.0))
    assert isinstance(found.reading, Scored)
    assert found.reading.score == pytest.approx(1 + 2 * (0.75 + 3 * 0.25) / 4)
    assert found.reading.deviation == pytest.approx(2 * math.sqrt(0.75 * 0.25 + 9 * 0.25 * 0.75) / 4)
    assert [(each.question, each.weight) for each in found.criteria] == [("Is it true?", 1), ("Is it polite?", 3)]
    assert [each.probability for each in found.criteria] == pytest.approx([0.75, 0.25])
    assert found.text == "0.750 Is it true?\n0.250 Is it polite?" and found.tokens == 2
    assert len(engine.calls) == 2


def test_equal_judgments_are_asked_once(tmp_path: Path) -> None:
    engine = ScriptedEngine(answering({"Is it true?": TRUE, "Is it polite?": POLITE}))
    first, second, third = judged(engine, rubric(tmp_path), 3)
    assert [first.index, second.index, third.index] == [0, 1, 2] and replace(second, index=0) == first
    assert len(engine.calls) == 2


def test_a_judge_that_answers_neither_leaves_no_score(tmp_path: Path) -> None:
    engine = ScriptedEngine(answering({"Is it true?": token(Well=0.9), "Is it polite?": POLITE}))
    (found,) = judged(engine, rubric(tmp_path))
    assert found.reading == Unparsed("missing") and [each.question for each in found.criteria] == ["Is it polite?"]


def test_a_judge_without_probabilities_is_refused(tmp_path: Path) -> None:
    engine = ScriptedEngine(answering({"Is it true?": Completion("Yes", "stop", 1), "Is it polite?": POLITE}))
    with pytest.raises(LogprobsUnavailableError, match="comes without token probabilities, which criteria need; fix: "):
        judged(engine, rubric(tmp_path))


PROGRAM = """
criteria:
  - Is it true?
  - {program: "mine_%s:short", question: It is short}
"""


@pytest.mark.parametrize(
    ("answer", "probability"), [("True", 1.0), ("0.25", 0.25), ("1.5", None), ("float('nan')", None)]
)
def test_a_program_answers_what_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, probability: float | None
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"{abs(hash(answer))}"
    Path(f"mine_{name}.py").write_text(f"def short(prompt, answer):\n    return {answer}\n", encoding="utf-8")
    given = rubric(tmp_path, PROGRAM % name)
    engine = ScriptedEngine(answering({"Is it true?": TRUE}))
    if probability is None:
        with pytest.raises(EngineError, match="the program of criterion 'It is short' gave"):
            judged(engine, given)
        return
    (found,) = judged(engine, given)
    assert found.criteria[1] == CriterionAnswer("It is short", probability) and len(engine.calls) == 1
    before = given.template.sha256
    Path(f"mine_{name}.py").write_text("def short(prompt, answer):\n    return 0\n", encoding="utf-8")
    assert rubric(tmp_path, PROGRAM % name).template.sha256 != before  # a changed program is another rubric


def test_the_reasoning_of_a_thinking_judge_is_left_empty(tmp_path: Path) -> None:
    given, asked = rubric(tmp_path, "criteria:\n  - Is it true?"), list[Messages]()

    def reply(messages: Messages, _: Sampling, __: int) -> Completion | str:
        if messages[0].content.startswith("What is the capital"):
            return "<think>Well.</think>Paris."
        asked.append(messages)
        return TRUE

    tags = Reasoning()
    annotation = replace(settings(k=1, n=1, meta_judge=False), rubric=given, min_valid=1, reasoning=tags)
    asyncio.run(annotate_prompt(ScriptedEngine(reply), prompt(1), annotation))
    (messages,) = asked
    assert messages[-1].role == "assistant" and messages[-1].content == "<think>\n\n</think>\n\n"
    (found,) = judged(StripReasoning(ScriptedEngine(lambda m, s, i: TRUE), tags), given)
    assert isinstance(found.reading, Scored)


def test_a_record_keeps_the_probabilities_and_its_answers_scores_their_uncertainty(tmp_path: Path) -> None:
    given = rubric(tmp_path)
    annotation = replace(settings(k=2, n=1, meta_judge=False), rubric=given, min_valid=1)
    engine = ScriptedEngine(answering({"Is it true?": TRUE, "Is it polite?": POLITE}))
    made = asyncio.run(annotate_prompt(engine, prompt(1), annotation))
    assert record_from_json(record_to_json(made)) == made
    first, second = answer_scores(made, 1)
    assert first.mean == second.mean == pytest.approx(5 * 1.5 / 4)
    reading = made.candidates_K[0].judgments_N[0].reading
    assert isinstance(reading, Scored) and first.uncertainty == reading.deviation


def test_other_criteria_are_other_records(tmp_path: Path) -> None:
    one, other = (
        annotation_fingerprint(replace(settings(), rubric=rubric(tmp_path, text)))
        for text in (CRITERIA, CRITERIA.replace("polite", "kind"))
    )
    assert one != other


@pytest.mark.parametrize("field", ["structured_outputs", "response_format"])
def test_a_server_is_asked_for_one_of_the_words_and_its_probabilities(tmp_path: Path, field: str) -> None:
    def manner(body: Body, _: int) -> Answer:
        top = [{"token": name, "logprob": math.log(p)} for name, p in (("Yes", 0.3), (" no", 0.1), ("It", 0.6))]
        word = {"token": "Yes", "logprob": -1.0, "top_logprobs": top}
        text, tokens = "Yes", [word]
        if field == "response_format":
            schema = body["response_format"]["json_schema"]["schema"]["properties"]["choice"]["enum"]
            assert schema == ["Yes", "No", "yes", "no"]
            text, tokens = '{"choice":"Yes"}', [{**word, "token": each} for each in ('{"choice":"', "Yes", '"}')]
            top[1]["token"] = "no"
        return Answer(completion(choice(text, logprobs={"content": tokens}), tokens=1))

    async def run() -> tuple[Judgment, ...]:
        async with FakeChatServer(manner) as server, engine_for(server, choices_field=field) as engine:
            return await RubricJudge(engine, rubric(tmp_path, "criteria:\n  - Is it true?")).judge(
                prompt(1), "Paris.", 1
            )

    ((answer,),) = (each.criteria for each in asyncio.run(run()))
    assert answer.probability == pytest.approx(0.75)


def test_a_server_without_probabilities_is_refused(tmp_path: Path) -> None:
    def manner(_: Body, __: int) -> Answer:
        return Answer(completion(choice("Yes"), tokens=1))

    async def run() -> None:
        async with FakeChatServer(manner) as server, engine_for(server, choices_field="regex") as engine:
            await RubricJudge(engine, rubric(tmp_path)).judge(prompt(1), "Paris.", 1)

    with pytest.raises(EngineError, match="gives no token probabilities"):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("criteria: []", "expected a list under criteria"),
        ("criteria: Is it true?", "expected a list, one question in each line"),
        ("questions: [a]", "expected a list under criteria"),
        ("criteria: [a, b", "not valid YAML"),
        ('criteria:\n  - Does it follow this: "x"?', "not valid YAML|expected a question in quotes"),
        (
            "criteria: [{weight: 2}]",
            "criterion 1: expected a question in quotes, or the keys question, weight",
        ),
        ("criteria: [a, {question: b, weight: 0}]", "criterion 2: weight: expected a number above 0, not 0"),
        ("criteria: [{question: b, weight: .inf}]", "criterion 1: weight: expected a number above 0, not inf"),
        ("criteria: [{question: ''}]", "criterion 1: question: expected a text in quotes, not ''"),
        ("criteria: [3]", "criterion 1: expected a question in quotes"),
        ("criteria: [{program: nowhere}]", "criterion 1: program: expected a function as package.module:name"),
        ("criteria: [{program: 'no.such:thing'}]", "criterion 1: program: can't import no.such:thing"),
        ("criteria: [{program: 'math:pi'}]", "program: math:pi has no source file|math:pi is no function"),
        ("{prompt: judge, criteria: [a]}", "prompt text 'judge' lacks {criterion}"),
    ],
)
def test_a_list_that_is_no_list_of_criteria_is_refused_in_one_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(UserError, match=line) as refused:
        rubric(tmp_path, text)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"criteria nowhere\.yaml: can't be read"):
        Rubric.load("nowhere.yaml")
