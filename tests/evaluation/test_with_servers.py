"""Every benchmark through the command line, against a real server that throttles, fails and refuses."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, Body, FakeChatServer, Troubled, choice, completion, error, served_beside
from made_up import LABEL_PROMPT, json_file, lines

from metareward.cli.main import main

ROWS = 9
# In a question: the server's filter turns the request down; the judge's reply is marked as a refusal.
FILTERED, DECLINED = "FILTERED", "DECLINED"
Words = list[str]
Found = Mapping[str, Any]


def question(i: int) -> str:
    return f"Do {i}. {({0: DECLINED, 3: FILTERED}).get(i, '')}"


def drawn(text: str, count: int) -> int:
    return hashlib.sha256(text.encode()).digest()[0] % count


def judging(refuses: bool = True, logprobs: str = "given") -> Callable[[Body, int], Answer]:
    """A judge of all benchmarks, whose verdict follows from the request alone; with or without log-probabilities."""

    def manner(body: Body, _: int) -> Answer:
        asked = "\n".join(message["content"] for message in body["messages"])
        if refuses and FILTERED in asked:
            return error(400, "The response was filtered due to the prompt triggering the content policy.")
        if refuses and DECLINED in asked:
            refused = {"role": "assistant", "content": None, "refusal": "I can't help with that. Score: 0, [[1]]"}
            return Answer(completion(*({**choice(None, i), "message": refused} for i in range(body["n"]))))
        if "logprobs" in body and logprobs == "rejected":
            return error(400, "logprobs are not supported")
        return Answer(completion(*(verdict(asked, body, i, logprobs) for i in range(body["n"]))))

    return manner


def verdict(asked: str, body: Body, i: int, logprobs: str) -> Body:
    if "Which one is better" not in asked:
        labels = ("[[A>>B]]", "[[A>B]]", "[[A=B]]", "[[B>A]]")
        texts = {"Judge them": labels[drawn(asked, 4)], "Grade this turn": f"[[{1 + drawn(asked, 9)}]]"}
        score = f"Score: {drawn(f'{asked} {i}', 6)}"
        return choice(next((text for mark, text in texts.items() if mark in asked), score), i)
    share = (1 + drawn(asked, 8)) / 10
    label = "m" if share > 0.5 else "M"
    if "logprobs" not in body or logprobs != "given":
        return choice(label, i)
    both = [{"token": name, "logprob": math.log(p)} for name, p in (("m", share), ("M", 1 - share))]
    token = {"token": label, "logprob": math.log(max(share, 1 - share)), "top_logprobs": both}
    return choice(label, i, logprobs={"content": [token]})


# --- the benchmarks' files ---


def alpaca(folder: Path) -> Words:
    for name, text in (("outputs", "own answer"), ("reference", "answer of the baseline")):
        rows = [{"instruction": question(i), "output": f"{text} {i}", "generator": name} for i in range(ROWS)]
        json_file(folder / f"{name}.json", rows)
    (folder / "clf.txt").write_text(LABEL_PROMPT, encoding="utf-8")
    return [
        *("alpaca-eval", "--outputs", "outputs.json", "--reference", "reference.json", "--prompt", "clf.txt"),
        *("--annotations", "annotations.json"),
    ]


def arena(folder: Path) -> Words:
    config = 'system_prompt: "Judge them."\nprompt_template: ["{question_1}\\nA: {answer_1}\\nB: {answer_2}"]\n'
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    asked = [{"question_id": f"q{i}", "category": "c", "turns": [{"content": question(i)}]} for i in range(ROWS)]
    lines(folder / "question.jsonl", asked)
    answers = [
        {"question_id": f"q{i}", "model_id": model, "choices": [{"turns": [{"content": f"{model} on {i}"}]}]}
        for model in ("base", "own")
        for i in range(ROWS)
    ]
    lines(folder / "answers.jsonl", answers)
    return [
        *("arena-hard", "--answers", "answers.jsonl", "--questions", "question.jsonl", "--prompt", "config.yaml"),
        *("--baseline", "base", "--judgments", "judgments.jsonl", "--rounds", "50"),
    ]


def mt_bench(folder: Path) -> Words:
    slots = {"": "{question} {answer}", "-multi-turn": "{question_1} {answer_1} {question_2} {answer_2}"}
    prompts = [
        {"name": f"single-v1{name}", "system_prompt": "Grade this turn.", "prompt_template": text}
        for name, text in slots.items()
    ]
    lines(folder / "prompts.jsonl", prompts)
    asked = [{"question_id": i, "category": "writing", "turns": [question(i), "Go on."]} for i in range(ROWS)]
    lines(folder / "question.jsonl", asked)
    turns = [{"question_id": i, "model_id": "own", "choices": [{"turns": [f"a{i}", f"b{i}"]}]} for i in range(ROWS)]
    lines(folder / "answers.jsonl", turns)
    return [
        *("mt-bench", "--answers", "answers.jsonl", "--questions", "question.jsonl", "--prompts", "prompts.jsonl"),
        *("--judgments", "judgments.jsonl"),
    ]


def rankings(folder: Path) -> Words:
    rows = [
        {"id": f"q{i}", "prompt": question(i), "responses": [{"text": f"{i} {r}", "rank": r} for r in range(2)]}
        for i in range(ROWS)
    ]
    lines(folder / "rankings.jsonl", rows)
    return ["judge-quality", "--rankings", "rankings.jsonl", "--judgments", "2", "--cache", "cache.sqlite"]


def pairs(folder: Path) -> Words:
    rows = [
        {"id": f"q{i}", "input": question(i), "output_1": f"one {i}", "output_2": f"other {i}", "label": 1 + i % 2}
        for i in range(ROWS)
    ]
    lines(folder / "pairs.jsonl", rows)
    (folder / "clf.txt").write_text(LABEL_PROMPT, encoding="utf-8")
    return ["judge-quality", "--pairs", "pairs.jsonl", "--judgments", "2", "--cache", "cache.sqlite"]


def pairs_by_label(folder: Path) -> Words:
    return [*pairs(folder), "--prompt", "clf.txt"]


def pairs_by_reference(folder: Path) -> Words:
    return [*pairs_by_label(folder), "--protocol", "gpt4-chosen", "--reference-engine", "URL"]


@dataclass(frozen=True)
class Case:
    """A benchmark: its command, its figures in the JSON, what is refused, and the requests for that."""

    command: Callable[[Path], Words]
    figures: Callable[[Any], Found]
    refused: str = "n_refused"
    count: int = 2
    requests: int = 2


CASES = {
    "alpaca": Case(alpaca, lambda found: found["models"][0]),
    "arena": Case(arena, lambda found: found["categories"][0]["models"][0], count=4, requests=4),
    "mt": Case(mt_bench, lambda found: found["models"][0], count=4, requests=4),
    "rankings": Case(rankings, lambda found: found["judges"][0], count=4, requests=4),
    "pairs": Case(pairs, lambda found: found["judges"][0], requests=4),
    "labels": Case(pairs_by_label, lambda found: found["judges"][0], requests=4),
    "reference": Case(pairs_by_reference, lambda found: found["judges"][0], "n_left_out", requests=8),
}


@pytest.fixture
def metareward(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs the command ``evaluate`` in a folder, as a shell does; its exit code."""

    def run(folder: Path, url: str, words: Words, asked: str = "--judge-engine") -> int:
        monkeypatch.chdir(folder)
        given = [url if word == "URL" else word for word in words]
        monkeypatch.setattr(sys, "argv", ["metareward", "evaluate", *given, asked, url, "--json", "o.json"])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    return run


def folder_of(case: Case, path: Path) -> tuple[Path, Words]:
    path.mkdir()
    return path, case.command(path)


def numbers(folder: Path) -> str:
    return (folder / "o.json").read_text(encoding="utf-8")


def served(server: FakeChatServer, manner: Callable[[Body, int], Answer]) -> None:
    server.manner = manner
    server.bodies.clear()


@pytest.mark.parametrize(
    ("name", "logprobs"),
    [("alpaca", "given"), ("arena", ""), ("rankings", ""), ("labels", "given")]
    + [
        pytest.param(*each, marks=pytest.mark.slow)
        for each in (
            *(("alpaca", "rejected"), ("alpaca", "left out"), ("labels", "left out"), ("reference", "given")),
            *(("mt", ""), ("pairs", "")),
        )
    ],
)
def test_a_bad_server_changes_no_number_and_the_same_command_asks_the_rest(
    tmp_path: Path, metareward: Callable[..., int], name: str, logprobs: str
) -> None:
    case = CASES[name]
    refusing, willing = judging(True, logprobs), judging(False, logprobs)
    with served_beside(willing) as server:
        url = f"{server.url}#judge"
        calm, words = folder_of(case, tmp_path / "calm")
        assert metareward(calm, url, words) == 0
        whole = case.figures(json.loads(numbers(calm)))
        if case.refused == "n_refused":
            assert whole[case.refused] == 0

        served(server, troubled := Troubled(refusing, every=2))
        bad, words = folder_of(case, tmp_path / "bad")
        assert metareward(bad, url, words) == 0 and troubled.given > 3
        found = case.figures(json.loads(numbers(bad)))
        if case.refused == "n_refused":
            assert found["n_refused"] == case.count
        else:
            assert whole[case.refused] <= found[case.refused] <= whole[case.refused] + case.count
        assert found.get("n_unreadable", 0) == whole.get("n_unreadable", 0) == 0

        served(server, refusing)
        first, words = folder_of(case, tmp_path / "refusals")
        assert metareward(first, url, words) == 0
        assert numbers(first) == numbers(bad)

        served(server, willing)
        assert metareward(bad, url, words) == 0
        assert len({json.dumps(body["messages"]) for body in server.bodies}) == case.requests
        assert numbers(bad) == numbers(calm)
    assert metareward(bad, url, words) == 0  # nothing is pending, so the server isn't needed
    assert numbers(bad) == numbers(calm)


@pytest.mark.parametrize(
    "name", ["alpaca", "rankings", *(pytest.param(each, marks=pytest.mark.slow) for each in ("arena", "mt", "labels"))]
)
def test_a_judge_at_another_address_is_the_same_judge(
    tmp_path: Path, metareward: Callable[..., int], name: str
) -> None:
    """What is stored is known by the model, its sampling and the question; another model is another judge."""
    case = CASES[name]
    folder, words = folder_of(case, tmp_path / "moved")
    with served_beside(judging()) as one, served_beside(judging(False)) as other:
        assert one.url != other.url
        assert metareward(folder, f"{one.url}#judge", words) == 0
        assert metareward(folder, f"{other.url}#judge", words) == 0
        assert len({json.dumps(body["messages"]) for body in other.bodies}) == case.requests  # those that one refused
        assert case.figures(json.loads(numbers(folder)))[case.refused] == 0
        assert metareward(folder, f"{other.url}#another", words) == 2


def answering(refuses: bool = True) -> Callable[[Body, int], Answer]:
    """A model that follows some instructions and knows some answers; a refusal in words is an answer."""

    def manner(body: Body, _: int) -> Answer:
        assert (body["temperature"], body["max_tokens"]) == (0, 99)
        asked = body["messages"][-1]["content"]
        if FILTERED in asked and refuses:
            return error(400, "The response was filtered.")
        if DECLINED in asked:
            refused = {"role": "assistant", "content": None, "refusal": "I can't, sorry."}
            return Answer(completion({**choice(None), "message": refused}))
        return Answer(completion(choice(("no comma here 4", "one, two", "The answer is 7")[drawn(asked, 3)])))

    return manner


@pytest.mark.parametrize("kind", [pytest.param("ifeval", marks=pytest.mark.slow), "verifiable"])
def test_a_model_answers_first_and_the_same_command_asks_the_rest(
    tmp_path: Path, metareward: Callable[..., int], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    instructions = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    fields = instructions if kind == "ifeval" else {"kind": "number", "answer": 7}
    name = "key" if kind == "ifeval" else "id"
    rows = [{name: str(i), "prompt": question(i), **fields} for i in range(ROWS)]
    questions = str(lines(tmp_path / "questions.jsonl", rows))
    words = [kind, "--questions", questions, "--responses", "r.jsonl", "--max-tokens", "99"]
    calm, bad = tmp_path / "calm", tmp_path / "bad"
    for folder in (calm, bad):
        folder.mkdir()
    with served_beside(answering(refuses=False)) as server:
        url = f"{server.url}#model"
        assert metareward(calm, url, words, "--engine") == 0
        served(server, Troubled(answering(), every=2))
        assert metareward(bad, url, words, "--engine") == 0
        (model,) = json.loads(numbers(bad))["models"]
        assert (model["model"], model["n_missing"], model["n_judged"]) == (url, 1, ROWS - 1)
        assert "1 missing" in capsys.readouterr().out
        served(server, answering(refuses=False))
        assert metareward(bad, url, words, "--engine") == 0
        assert len(server.bodies) == 1 and FILTERED in str(server.bodies)
        assert metareward(bad, f"{url}2", words, "--engine") == 2
        assert "r.sqlite: the records here were made with other settings" in capsys.readouterr().err
    assert metareward(bad, url, words, "--engine") == 0  # nothing is pending
    assert numbers(bad) == numbers(calm)
    stored = [json.loads(line) for line in (bad / "r.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["key"] for row in stored] == [str(i) for i in range(ROWS)]
    assert stored[0] == {"key": "0", "model": url, "prompt": question(0), "response": "I can't, sorry."}
    accuracy = json.loads(numbers(bad))["models"][0]["prompt_strict" if kind == "ifeval" else "accuracy"]
    assert 0 < accuracy < 100


def test_a_judge_that_refuses_everything_is_one_line_and_2(
    tmp_path: Path, metareward: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with served_beside(lambda body, _: error(400, "filtered")) as server:
        folder, words = folder_of(CASES["alpaca"], tmp_path / "all")
        assert metareward(folder, f"{server.url}#judge", words) == 2
    said = capsys.readouterr().err
    (line,) = [each for each in said.splitlines() if each.startswith("metareward:")]
    assert "all 9 prompts failed" in line and "400 Bad Request: filtered" in line
    assert not (folder / "annotations.json").exists() and not (folder / "o.json").exists()


@pytest.mark.slow
def test_a_command_that_is_interrupted_ends_with_130_and_resumes(
    tmp_path: Path, metareward: Callable[..., int]
) -> None:
    def slow(body: Body, place: int) -> Answer:
        return replace(judging(False)(body, place), seconds=0.2 if place < 4 else 60.0)

    with served_beside(slow) as server:
        folder, words = folder_of(CASES["arena"], tmp_path / "stopped")
        given = ["evaluate", *words, "--judge-engine", f"{server.url}#judge", "--json", "o.json"]
        command = [sys.executable, "-c", "from metareward.cli.main import main; main()", *given]
        with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
            until = time.monotonic() + 60
            while len(server.bodies) < 2 * ROWS and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(1.0)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=30)[1]
        assert process.returncode == 130 and said.splitlines()[-1].startswith("metareward: stopped; what is finished")
        assert not (folder / "judgments.jsonl").exists()
        served(server, judging(False))
        assert metareward(folder, f"{server.url}#judge", words) == 0
        assert len(server.bodies) == 2 * ROWS - 4
        calm, words = folder_of(CASES["arena"], tmp_path / "calm")
        assert metareward(calm, f"{server.url}#judge", words) == 0
        assert numbers(folder) == numbers(calm)
