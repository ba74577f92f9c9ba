"""``evaluate compare``: files of every benchmark, run folders, seeds, labels and refusals."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from made_up import json_file, lines, session

from metareward.errors import UserError
from metareward.evaluation.comparison import CompareCommand, PromptScores, compare_all, read_run_scores, read_scores

ROWS = 30


def annotation_file(path: Path, model: str, lift: float, baseline: str = "M0", judge: str = "j") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "index": i,
            "instruction": f"Do {i}.",
            "output_1": "b",
            "output_2": "m",
            "generator_1": baseline,
            "generator_2": model,
            "annotator": judge,
            "preference": min(2.0, 1 + (i % 7) / 10 + lift + (i % 3) / 20),
        }
        for i in range(ROWS)
    ]
    return json_file(path, rows)


def compared(**given: Any) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    found = asyncio.run(CompareCommand(**given).evaluate(session()))
    comparisons: Any = found.numbers["comparisons"]
    return list(comparisons), found.tables[0].notes


def test_two_annotation_files(tmp_path: Path) -> None:
    one, other = annotation_file(tmp_path / "one.json", "one", 0.0), annotation_file(tmp_path / "two.json", "two", 0.1)
    plot = tmp_path / "plot.svg"
    (found,), notes = compared(first=(one,), second=(other,), plot=plot)
    assert (found["a"], found["b"], found["n_prompts"], found["b_better"]) == ("one", "two", ROWS, ROWS)
    assert found["difference"] == pytest.approx(10.0) and found["p_value"] < 1e-6 and found["differ"]
    assert "one and two" in notes[0] and plot.read_text(encoding="utf-8").startswith("<?xml")


def test_a_run_says_which_of_its_models_differ(tmp_path: Path) -> None:
    for t, lift in ((1, 0.1), (2, 0.1), (3, 0.3)):
        annotation_file(tmp_path / f"run/iter-{t}/eval/by-oracle/annotations.json", f"M{t}", lift)
    found, notes = compared(first=(tmp_path / "run",))
    assert [(each["a"], each["b"]) for each in found] == [
        ("M0", "M1"), ("M0", "M2"), ("M0", "M3"), ("M1", "M2"), ("M1", "M3"), ("M2", "M3")
    ]  # fmt: skip
    same = next(each for each in found if (each["a"], each["b"]) == ("M1", "M2"))
    assert (same["difference"], same["differ"], same["equal"]) == (0.0, False, ROWS)
    assert "M1 and M3, M2 and M3" in notes[0] and "M1 and M2" not in notes[0]
    (one,), _ = compared(first=(tmp_path / "run",), first_model="M1", second_model="M3")
    assert one["difference"] == pytest.approx(20.0)


def test_seeds_of_two_recipes(tmp_path: Path) -> None:
    first = tuple(annotation_file(tmp_path / f"a{s}.json", "M4", 0.01 * s) for s in range(3))
    second = tuple(annotation_file(tmp_path / f"b{s}.json", "M4", 0.2 + 0.01 * s) for s in range(3))
    (found,), notes = compared(first=first, second=second)
    assert (found["a"], found["n_seeds"]) == ("M4 of --first", (3, 3))
    assert found["low"] < 20 < found["high"] and found["high"] - found["low"] > 1
    assert any("over seeds and prompts" in note for note in notes)


def test_files_of_every_benchmark_are_read(tmp_path: Path) -> None:
    games: list[dict[str, Any]] = [
        {"question_id": f"q{i}", "model": "m", "baseline": "b", "game1": "B>>A", "game2": "A=B"} for i in range(3)
    ]
    grades: list[dict[str, Any]] = [
        {"question_id": 81, "model": "m", "judge": ["g", "p"], "turn": t, "score": 4 + t} for t in (1, 2)
    ]
    followed: list[dict[str, Any]] = [{"key": 1, "strict": [True, True]}, {"key": 2, "strict": [True, False]}]
    checked: list[dict[str, Any]] = [
        {"id": n, "outcome": outcome} for n, outcome in enumerate(("correct", "wrong", "unreadable", "timeout"))
    ]
    scores: list[dict[str, Any]] = [{"id": "x", "score": 3, "model": "m"}, {"id": "y", "score": None, "model": "m"}]
    found = {
        name: dict(read_scores(lines(tmp_path / f"{name}.jsonl", rows))[0].values)
        for name, rows in (("g", games), ("t", grades), ("i", followed), ("v", checked), ("s", scores))
    }
    assert found["g"] == {f"q{i}": pytest.approx(100 * 3.5 / 4) for i in range(3)}
    assert found["t"] == {"81, turns [1, 2]": 5.5}
    assert found["i"] == {"1": 100.0, "2": 0.0}
    assert found["v"] == {"0": 100.0, "1": 0.0, "2": 0.0, "3": None}
    assert found["s"] == {"x": 3.0, "y": None}


def test_partial_results_and_other_judges_are_labelled() -> None:
    one = PromptScores("one", {"a": 1.0, "b": 2.0, "c": 3.0}, "j")
    other = PromptScores("two", {"a": 2.0, "b": None, "c": 5.0}, "k")
    (found,) = compare_all([one, other])
    assert (found.found.n_prompts, found.left_out) == (2, 1)
    assert found.caveats == ("judged by j and k", "partial: 2 of 3 prompts have a value for both")


def test_what_can_t_be_compared_is_refused(tmp_path: Path) -> None:
    one = annotation_file(tmp_path / "one.json", "one", 0.0)
    with pytest.raises(UserError, match="different baselines, M0 and other; fix"):
        compared(first=(one,), second=(annotation_file(tmp_path / "x.json", "x", 0.0, "other"),))
    with pytest.raises(UserError, match="has one model, one; fix: give --second"):
        compared(first=(one,))
    with pytest.raises(UserError, match="no prompt that both"):
        compare_all([PromptScores("a", {"x": 1.0}), PromptScores("b", {"y": 1.0})])
    with pytest.raises(UserError, match="this is no benchmark's file"):
        read_scores(lines(tmp_path / "odd.jsonl", [{"id": 1}]))
    with pytest.raises(UserError, match="--second-model: name one of one"):
        compared(first=(one,), second=(one,), second_model="none")
    with pytest.raises(UserError, match=r"no format of that name; fix: end it in \.svg or \.png"):
        compared(first=(one,), second=(annotation_file(tmp_path / "y.json", "y", 0.1),), plot=tmp_path / "a.xyz")
    for name in ("one", "two"):
        annotation_file(tmp_path / f"run/iter-1/eval/{name}/annotations.json", "M1", 0.0)
    with pytest.raises(UserError, match=r"has several benchmarks; fix: give --benchmark, of which .*: one, two"):
        read_run_scores(tmp_path / "run", None)
