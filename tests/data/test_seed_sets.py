"""Seed sets from ranked answers to files: contents, counts, caching and resuming."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from made_up import ranked_trees
from scripted_models import rank_reply, ranked_set, seed_settings

from metareward.data.ranked import RankedSet, read_ranked
from metareward.data.seed_sets import (
    RECORDS,
    SeedSets,
    SeedSettings,
    judge_prompts,
    score_bin,
    select_sets,
    split_prompts,
    write_seed_sets,
)
from metareward.engines.base import Engine, EngineError, ScriptedEngine
from metareward.errors import UserError
from metareward.generation.progress import SILENT
from metareward.storage.store import RecordStore
from metareward.training.data import count_kinds, read_examples
from metareward.types import Messages, Sampling


def build(folder: Path, ranked: RankedSet, engine: Engine | None = None, how: SeedSettings | None = None) -> SeedSets:
    how = how or seed_settings()
    split = split_prompts(ranked.prompts, how)
    asyncio.run(judge_prompts(engine or ScriptedEngine(rank_reply), split.eft, how, folder, {"model": "m"}, SILENT))
    sets = select_sets(ranked, split, how, folder)
    write_seed_sets(folder, sets)
    return sets


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_eft_scores_agree_with_the_ranks(tmp_path: Path) -> None:
    ranked = ranked_set(60)
    sets = build(tmp_path, ranked)
    by_prompt: dict[str, dict[float, float]] = {}
    for example in sets.eft:
        by_prompt.setdefault(example.prompt_id, {})[example.rank] = example.score
        assert f"Score: {example.score:g}" in example.judgment
    assert by_prompt
    for scores in by_prompt.values():
        assert sorted(scores, key=lambda rank: -scores[rank]) == sorted(scores)


def test_the_files_share_no_prompt(tmp_path: Path) -> None:
    ranked = ranked_set(60)
    sets = build(tmp_path, ranked)
    ift, eft, held = (rows(tmp_path / name) for name in ("ift.jsonl", "eft.jsonl", "held_out.jsonl"))
    assert (len(ift), len(eft), len(held)) == (30, len(sets.eft), 8)
    prompts = [{row["prompt_id"] for row in ift}, {row["prompt_id"] for row in eft}, {row["id"] for row in held}]
    assert not any(one & other for place, one in enumerate(prompts) for other in prompts[:place])
    assert len({row["id"] for row in [*ift, *eft]}) == len(ift) + len(eft)
    best = {each.prompt.id: each.best.text for each in ranked.prompts}
    assert all(row["completion"] == [{"role": "assistant", "content": best[row["prompt_id"]]}] for row in ift)
    assert all("Answer of quality" in row["prompt"][0]["content"] for row in eft)


def test_training_and_datasets_read_the_files(tmp_path: Path) -> None:
    sets = build(tmp_path, ranked_set(60))
    found = read_examples((tmp_path / "ift.jsonl", tmp_path / "eft.jsonl"))
    assert count_kinds(found) == {"eft": len(sets.eft), "ift": 30}
    for name in ("ift.jsonl", "eft.jsonl"):
        loaded = datasets.Dataset.from_json(str(tmp_path / name), cache_dir=str(tmp_path / "cache"))
        assert {"prompt", "completion", "id"} <= set(loaded.column_names)
    held = read_ranked(tmp_path / "held_out.jsonl")
    assert [(each.prompt, each.answers) for each in held.prompts] == [
        (each.prompt, each.answers) for each in sets.held_out
    ]


def test_counts_add_up(tmp_path: Path) -> None:
    sets = build(tmp_path, ranked_set(60))
    summary: dict[str, Any] = json.loads((tmp_path / "summary.json").read_text())
    assert summary == sets.summary
    refused = rows(tmp_path / "dropped.jsonl")
    judged = split_prompts(ranked_set(60).prompts, seed_settings()).eft
    assert summary["read"] == {"prompts": 60, "answers": 60 // 5 * 13}
    assert summary["judged"] == len(judged) == summary["agreeing"] + len(refused)
    assert sum(summary["rejected"].values()) == len(refused)
    assert sum(summary["judgments"].values()) == 3 * sum(len(each.answers) for each in judged)
    assert summary["judgments"]["unparsed"] > 0
    assert sum(summary["scores_kept"].values()) == summary["eft"] == len(sets.eft)
    for score, kept in summary["scores_kept"].items():
        assert kept <= summary["scores_agreeing"][score]
        assert kept <= 0.4 * summary["eft"]


def test_over_represented_scores_are_limited(tmp_path: Path) -> None:
    how = replace(seed_settings(), max_score_share=0.25)
    sets = build(tmp_path, ranked_set(60), how=how)
    classes = [score_bin(each.score) for each in sets.eft]
    assert max(classes.count(each) for each in classes) <= 0.25 * len(classes)
    assert len(sets.eft) < sum(json.loads((tmp_path / "summary.json").read_text())["scores_agreeing"].values())


def test_ties_are_rejected_by_default(tmp_path: Path) -> None:
    def blunt(messages: Messages, sampling: Sampling, i: int) -> str:
        return rank_reply(messages, sampling, i).replace("Score: 4", "Score: 5").replace("Score: 1", "Score: 2")

    strict = build(tmp_path / "a", ranked_set(60), ScriptedEngine(blunt))
    loose = build(tmp_path / "b", ranked_set(60), ScriptedEngine(blunt), replace(seed_settings(), allow_ties=True))
    assert len(loose.eft) > len(strict.eft)


def test_ift_and_held_out_sets_without_judging(tmp_path: Path) -> None:
    ranked, how = ranked_set(60), seed_settings()
    sets = select_sets(ranked, split_prompts(ranked.prompts, how), how, None)
    whole = build(tmp_path, ranked)
    assert (sets.ift, sets.held_out, sets.eft) == (whole.ift, whole.held_out, ())
    assert (sets.summary["judged"], sets.summary["eft"]) == (0, 0)


def test_judgments_are_cached(tmp_path: Path) -> None:
    first = build(tmp_path, ranked_set(40))
    engine = ScriptedEngine(rank_reply)
    assert build(tmp_path, ranked_set(40), engine) == first
    assert engine.calls == []
    again = build(tmp_path, ranked_set(40), engine, replace(seed_settings(), allow_ties=True, max_score_share=0.2))
    assert engine.calls == [] and again != first
    for other in (seed_settings(n=2), seed_settings(seed=8)):
        with pytest.raises(UserError, match=r"judgments\.sqlite: the records here were made with other settings"):
            build(tmp_path, ranked_set(40), engine, other)
    with pytest.raises(UserError, match="ranked"):
        build(tmp_path, ranked_set(41), engine)


def test_failed_prompts_are_counted_and_many_are_an_error(tmp_path: Path) -> None:
    def failing(every: int, of: int) -> ScriptedEngine:
        def say(messages: Messages, sampling: Sampling, i: int) -> str:
            number = int(messages[-1].content.split("What is thing ")[1].split("?")[0])
            if number % of < every:
                raise EngineError("the answer is too long")
            return rank_reply(messages, sampling, i)

        return ScriptedEngine(say)

    sets = build(tmp_path / "a", ranked_set(120), failing(1, 3))
    failed = [each for each in sets.rejected if each.reason == "failed"]
    assert failed and {each.detail for each in failed} == {"the answer is too long"}
    assert sets.summary["judged"] == len(split_prompts(ranked_set(120).prompts, seed_settings()).eft) - len(failed)
    with pytest.raises(UserError, match=r"\d+ of 45 prompts could not be judged, the first .* too long; fix:"):
        build(tmp_path / "b", ranked_set(120), failing(3, 4))


def test_a_killed_run_resumes_to_the_same_sets(tmp_path: Path) -> None:
    count, folder = 120, tmp_path / "killed"
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "support" / "processes.py"),
        "judge_seeds",
        str(folder),
        str(count),
        "0.005",
    ]
    kept = 0
    for commits in (2, 9):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            for _ in range(commits):
                running.stdout.readline()
            running.send_signal(signal.SIGKILL)
        with RecordStore.read(folder / RECORDS) as store:
            assert kept < (kept := len(store.keys())) < 45
    engine = ScriptedEngine(rank_reply)
    sets = build(folder, ranked_set(count), engine)
    assert sets == build(tmp_path / "whole", ranked_set(count))
    assert 0 < len({call.messages for call in engine.calls}) < 45 * 13 / 5
    for name in ("ift.jsonl", "eft.jsonl", "held_out.jsonl", "dropped.jsonl", "summary.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_judge_that_counts_characters_agrees_where_ranks_follow_length(tmp_path: Path) -> None:
    def by_length(messages: Messages, sampling: Sampling, i: int) -> str:
        answer = messages[-1].content.split("<answer>\n")[1].split("\n</answer>")[0]
        return f"It has {len(answer)} characters.\nScore: {min(5.0, len(answer) / 150):.2f}"

    ranked = read_ranked(ranked_trees(tmp_path / "trees.jsonl", trees=20), first_turns=False)
    how = replace(seed_settings(), ift_share=0.3, max_score_share=0.3)
    sets = build(tmp_path, ranked, ScriptedEngine(by_length), how)
    summary: dict[str, Any] = json.loads((tmp_path / "summary.json").read_text())
    assert summary["read"] == {"prompts": 40, "answers": 120}
    assert summary["judged"] == summary["agreeing"] + sum(summary["rejected"].values())
    follows = [int(each.prompt.id[1:]) % 3 != 2 for each in split_prompts(ranked.prompts, how).eft]
    assert summary["agreeing"] == sum(follows) > 0 and summary["rejected"] == {"disagrees": follows.count(False)}
    found = read_examples((tmp_path / "ift.jsonl", tmp_path / "eft.jsonl"))
    assert count_kinds(found) == {"eft": len(sets.eft), "ift": len(sets.ift)}
