"""Public data sets as they are published: small made-up rows with the fields of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up import json_file, lines
from typer.testing import CliRunner

from metareward.cli.evaluate import evaluate_app
from metareward.errors import UserError
from metareward.evaluation.judge_quality.data import (
    Pair,
    PairVerdicts,
    read_pairs,
    read_rankings,
    read_verdicts,
)
from metareward.evaluation.judge_quality.rankings import (
    REWARD_BENCH_2,
    ranking_quality,
    reward_bench_2_score,
    ties_score,
)
from metareward.evaluation.judge_quality.tables import rankings_table

Fields = Mapping[str, Any]


def judge_bench(number: int, source: str, label: str) -> Fields:
    texts = {"question": f"q{number}", "response_A": "a", "response_B": "b", "response_model": "m"}
    return {"pair_id": f"p{number}", "original_id": number, "source": source, "label": label, **texts}


def shown(pair: Pair) -> tuple[object, ...]:
    texts = tuple(response.text for response in pair.item.responses)
    return pair.item.id, pair.item.messages[0].content, *texts, pair.label, pair.subset


def test_judge_bench(tmp_path: Path) -> None:
    sources = ("mmlu-pro-law", "livebench-reasoning", "livebench-math", "livecodebench")
    rows = [judge_bench(i, source, "A>B" if i % 2 else "B>A") for i, source in enumerate(sources)]
    pairs = read_pairs(lines(tmp_path / "jb.jsonl", rows))
    assert [pair.subset for pair in pairs] == ["knowledge", "reasoning", "math", "coding"]
    assert shown(pairs[0]) == ("p0", "q0", "a", "b", 2, "knowledge")
    games = (("A>B", "A>B"), ("B>A", "A>B"), ("A=B", None), (None, "B>A"))
    judged = [{**row, "judgments": [{"decision": d} for d in game]} for row, game in zip(rows, games, strict=True)]
    judged[2]["judgments"][1] = None
    found = read_verdicts(lines(tmp_path / "o1.jsonl", judged))["o1"]
    assert [each.winners for each in found] == [(1, 2), (2, 2), (0, None), (None, 1)]
    told = run("--pairs", tmp_path / "jb.jsonl", "--verdicts", tmp_path / "o1.jsonl", "--json", tmp_path / "out.json")
    assert "o1 by subset" in told
    first = json.loads((tmp_path / "out.json").read_text())["judges"][0]
    # Labels 2, 1, 2, 1: the first pair is a draw of its two games, the second wrong, the third none, the last right.
    assert first["accuracy_majority"] == 0.25
    assert {name: each["accuracy_majority"] for name, each in first["subsets"].items()} == {
        "knowledge": 0,
        "reasoning": 0,
        "math": 0,
        "coding": 1,
    }


def run(*words: object) -> str:
    told = CliRunner().invoke(evaluate_app, ["judge-quality", *map(str, words)])
    assert told.exit_code == 0, told.exception
    return told.output


def test_panda_lm(tmp_path: Path) -> None:
    votes = ((1, 1, 2), (0, 2, 2), (2, 0, 1))
    rows = [
        {"idx": i, "instruction": "Do.", "input": "x" if i else "", "response1": "a", "response2": True}
        | {f"annotator{n}": vote for n, vote in enumerate(each, 1)}
        for i, each in enumerate(votes)
    ]
    pairs = read_pairs(json_file(tmp_path / "testset-v1.json", rows))
    assert [pair.label for pair in pairs] == [1, 2, 2]
    assert [pair.item.messages[0].content for pair in pairs[:2]] == ["Do.", "Do.\n\nx"]
    assert shown(pairs[0])[3] == "True"
    results = [{"idx": i, "gpt_result": word, "gpt_reason": ""} for i, word in enumerate(("1", "Tie", "garbage"))]
    found = read_verdicts(json_file(tmp_path / "gpt.json", results))["gpt"]
    assert [each.winners for each in found] == [(1,), (0,), (None,)]


def test_llm_bar_s_folder(tmp_path: Path) -> None:
    row = {"input": "q", "output_1": "a", "output_2": "b", "label": 1}
    for name in ("Natural", "Adversarial/Manual"):
        (tmp_path / name).mkdir(parents=True)
        json_file(tmp_path / name / "dataset.json", [row, {**row, "label": 2}])
    pairs = read_pairs(tmp_path)
    assert [pair.subset for pair in pairs] == ["Adversarial/Manual"] * 2 + ["Natural"] * 2
    assert shown(pairs[3]) == ("Natural 1", "q", "a", "b", 2, "Natural")
    assert [pair.item.id for pair in read_pairs(tmp_path / "Natural" / "dataset.json")] == ["0", "1"]


def fair_eval(folder: Path, labels: str) -> Path:
    for name in ("answer", "review"):
        (folder / name).mkdir()
    questions = [{"question_id": i, "text": f"q{i}", "category": "generic"} for i in range(3)]
    lines(folder / "question.jsonl", questions)
    for name in ("gpt35", "vicuna-13b"):
        answers = [{"question_id": i, "text": f"{name} {i}", "answer_id": "x", "model_id": name} for i in (2, 1, 0)]
        lines(folder / "answer" / f"answer_{name}.jsonl", answers)
    (folder / "review" / "review_gpt35_vicuna-13b_human.txt").write_text(labels)
    return folder


def test_fair_eval_s_folder(tmp_path: Path) -> None:
    pairs = read_pairs(fair_eval(tmp_path, "CHATGPT\nTIE\nVICUNA13B"))
    assert [pair.label for pair in pairs] == [1, 0, 2]
    assert shown(pairs[2]) == ("2", "q2", "gpt35 2", "vicuna-13b 2", 2, "generic")


def test_reward_bench(tmp_path: Path) -> None:
    texts = {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_model": "m", "rejected_model": "n"}
    rows = [{"id": 1, "subset": subset, **texts} for subset in ("hep-cpp", "hep-go")]
    pairs = read_pairs(lines(tmp_path / "rb.jsonl", rows))
    assert [shown(pair) for pair in pairs] == [(f"{s} 1", "q", "a", "b", 1, s) for s in ("hep-cpp", "hep-go")]
    assert pairs[0].generators == ("m", "n")


def reward_bench_2(key: str, scores: list[float], chosen: int = 1, subset: str = "Focus") -> Fields:
    texts = [f"answer {i}" for i in range(len(scores))]
    return {
        "id": key,
        "prompt": "q",
        "chosen": texts[:chosen],
        "rejected": texts[chosen:],
        "num_correct": chosen,
        "subset": subset,
        "scores": scores,
    }


def test_reward_bench_2_is_best_of_four(tmp_path: Path) -> None:
    scores = ([3, 1, 2, 0], [1, 3, 2, 0], [3, 3, 1, 3], [2, 2, 2, 2])
    rows = [reward_bench_2(str(i), list(map(float, each))) for i, each in enumerate(scores)]
    rows.append(reward_bench_2("0", [1.0, 2.0, 0.0, 0.0], chosen=2, subset="Ties"))
    items = read_rankings(lines(tmp_path / "rb2.jsonl", rows))
    assert [response.rank for response in items[4].responses] == [0, 0, 1, 1]

    def upstream(scores: list[float]) -> float:
        """rewardbench/utils.py, reroll_and_score_dataset: a tie at the top shares the credit."""
        best = max(scores)
        return 1 / scores.count(best) if scores[0] == best else 0.0

    expected = [upstream(row["scores"]) for row in rows[:4]]
    assert ranking_quality(items[:4]).best_of_match_ties_shared == pytest.approx(sum(expected) / 4)
    table = rankings_table(items, "mine", 5)
    assert [each.title for each in table.by_subset] == ["mine by subset", "length only by subset"]
    subsets = dict(table.by_subset[0].rows)
    assert subsets["Focus"]["best_of_match_ties_shared"] == pytest.approx((1 + 0 + 1 / 3 + 1 / 4) / 4)
    assert subsets["Ties"]["best_of_match_ties_shared"] == 1
    assert "best-of %" in run("--rankings", tmp_path / "rb2.jsonl")


TIES = json.loads((Path(__file__).parents[2] / "golden" / "rewardbench_ties.json").read_text(encoding="utf-8"))


def ties_rows(case: Mapping[str, Any]) -> list[Fields]:
    return [reward_bench_2(row["id"], row["scores"], row["num_correct"], "Ties") for row in case["rows"]]


@pytest.mark.parametrize("case", TIES)
def test_the_score_of_ties_is_upstream_s(tmp_path: Path, case: Mapping[str, Any]) -> None:
    """Made-up scores and what `process_single_model` of allenai/reward-bench @ 05a9005e gives for them."""
    found = ties_score(read_rankings(lines(tmp_path / "rb2.jsonl", ties_rows(case))))
    assert found is not None and found.score == pytest.approx(case["upstream"], abs=1e-12)
    assert (found.n_prompts, found.n_left_out) == (len(case["rows"]), 0)


def test_a_prompt_of_ties_with_an_unreadable_score_is_left_out(tmp_path: Path) -> None:
    rows = [reward_bench_2(f"{kind}:{i}", [3.0, 2.5, 1.0], 2, "Ties") for i in range(2) for kind in ("ref", "tied")]
    whole = ties_score(read_rankings(lines(tmp_path / "a.jsonl", rows)))
    rows[3] = {**rows[3], "scores": [None, 2.5, 4.0]}
    less = ties_score(read_rankings(lines(tmp_path / "b.jsonl", rows)))
    assert whole is not None and less is not None
    assert less == replace(whole, n_prompts=3, n_left_out=1)
    assert ties_score(read_rankings(lines(tmp_path / "c.jsonl", rows[3:]))) is None


# Of the paper's Table 3, in percent: the average, and Factuality, Precise IF, Math, Safety, Focus, Ties.
@pytest.mark.parametrize(
    ("average", "scores"),
    [
        (77.2, (65.7, 55.3, 81.1, 90.9, 86.7, 83.4)),
        (76.7, (78.5, 37.2, 69.9, 95.8, 95.4, 83.2)),
        (76.5, (74.1, 41.9, 69.9, 96.4, 90.3, 86.2)),
        (76.5, (82.7, 41.9, 74.9, 89.5, 86.2, 83.7)),
    ],
)
def test_reward_bench_2_is_the_mean_of_its_subsets(average: float, scores: tuple[float, ...]) -> None:
    assert reward_bench_2_score(dict(zip(REWARD_BENCH_2, scores, strict=True))) == pytest.approx(average, abs=0.051)


def test_all_subsets_of_reward_bench_2_give_its_score(tmp_path: Path) -> None:
    rows = [reward_bench_2("0", [2.0, 1.0, 0.0, 0.0], subset=name) for name in REWARD_BENCH_2[:-1]]
    rows += ties_rows(TIES[0])
    (mine, length, _) = rankings_table(read_rankings(lines(tmp_path / "rb2.jsonl", rows)), "mine", 5).rows
    assert mine[1]["reward_bench_2"] == pytest.approx((5 + TIES[0]["upstream"]) / 6)
    assert "reward_bench_2" in length[1]
    told = run("--rankings", tmp_path / "rb2.jsonl", "--min-score", -9, "--max-score", 9)
    assert "RewardBench" in told and "Ties %" in told and f"{100 * TIES[0]['upstream']:.2f}" in told
    (fewer, *_) = rankings_table(read_rankings(lines(tmp_path / "less.jsonl", rows[1:])), "mine", 5).rows
    assert "reward_bench_2" not in fewer[1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([judge_bench(0, "x", "A>C")], "label\": is 'A>C'; fix: give A>B or B>A"),
        ([reward_bench_2("0", [1.0, 0.0])], 'field "chosen": is a list; fix: give RewardBench 2 as --rankings'),
        ([{"idx": 0, "instruction": "x", "annotator1": 1}], 'field "annotator2": is missing or no finite number'),
        ([{**judge_bench(0, "x", "A>B"), "response_B": None}], 'field "response_B": is missing'),
    ],
)
def test_rows_with_something_wrong_are_refused(tmp_path: Path, rows: list[Fields], message: str) -> None:
    with pytest.raises(UserError) as refused:
        read_pairs(lines(tmp_path / "p.jsonl", rows))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_rankings_verdicts_and_folders_with_something_wrong_are_refused(tmp_path: Path) -> None:
    short = {**reward_bench_2("0", [1.0, 0.0]), "scores": [1.0]}
    with pytest.raises(UserError, match=r'r.jsonl:1: field "scores": has 1 entries for 2 answers'):
        read_rankings(lines(tmp_path / "r.jsonl", [short]))
    for judgments in ([], [{"decision": "A"}], [{"decision": "A>B"}] * 3):
        with pytest.raises(UserError, match=r'v.jsonl:1: field "judgments": aren\'t one or two with a decision'):
            read_verdicts(lines(tmp_path / "v.jsonl", [{**judge_bench(0, "x", "A>B"), "judgments": judgments}]))
    with pytest.raises(UserError, match="not one of CHATGPT, VICUNA13B, TIE for each question"):
        read_pairs(fair_eval(tmp_path, "CHATGPT\nTIE"))


def test_own_files_are_as_before(tmp_path: Path) -> None:
    row = {"id": "a", "input": "q", "output_1": "x", "output_2": "y", "label": 2, "subset": "s"}
    (pair,) = read_pairs(lines(tmp_path / "own.jsonl", [row]))
    assert shown(pair) == ("a", "q", "x", "y", 2, "s")
    verdict = {"id": "a", "winner_original_order": 2, "winner_swapped_order": 1}
    shares = {"probability_original_order": 0.25, "probability_swapped_order": None}
    (found,) = read_verdicts(lines(tmp_path / "v.jsonl", [{**verdict, **shares}]))["v"]
    assert found == PairVerdicts("a", (2, 1), (0.25, None))
    with pytest.raises(UserError, match=r'field "probability_original_order": is 1.5; fix: give a probability'):
        read_verdicts(lines(tmp_path / "v.jsonl", [{**verdict, "probability_original_order": 1.5}]))
