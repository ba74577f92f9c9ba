"""Public prompt sets and OpenAssistant's rankings, as they are published."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from scripted_models import seed_settings

from metareward.data.prompts import gather_prompts, load_prompts
from metareward.data.propose import ProposalSettings, proposal_fingerprint, propose
from metareward.data.ranked import read_ranked
from metareward.data.seed_sets import judge_prompts, select_sets, split_prompts
from metareward.engines.base import ScriptedEngine
from metareward.errors import UserError
from metareward.generation.progress import SILENT
from metareward.method.template import load_template
from metareward.storage.store import RecordStore
from metareward.types import Messages, Sampling

pytestmark = pytest.mark.full_data


@pytest.fixture
def rankings(judge_data: Path) -> Path:
    return judge_data / "oasst_rankings.jsonl"


def test_openassistant_rankings(rankings: Path) -> None:
    every = read_ranked(rankings, first_turns=False)
    assert (len(every.prompts), every.skipped) == (93, {})
    assert all(each.is_comparable and each.best.rank == 0 for each in every.prompts)
    assert len({each.prompt.id for each in every.prompts}) == 93
    first = read_ranked(rankings)
    assert (len(first.prompts), first.skipped) == (46, {"a later turn": 47})
    assert {each.group for each in every.prompts} >= {each.group for each in first.prompts}
    assert len({each.group for each in every.prompts}) == 46


def test_no_openassistant_tree_is_in_two_sets(rankings: Path) -> None:
    how = replace(seed_settings(seed=0), ift_share=0.5, held_out_share=0.25)
    parts = split_prompts(read_ranked(rankings, first_turns=False).prompts, how)
    rows = [json.loads(line) for line in rankings.read_text(encoding="utf-8").split("\n") if line]
    trees = {row["id"]: row["tree_id"] for row in rows}
    sets = [{trees[each.prompt.id] for each in part} for part in (parts.ift, parts.eft, parts.held_out)]
    assert [len(each) for each in sets] == [23, 17, 6]
    assert not any(one & other for one, other in combinations(sets, 2))


def test_seed_sets_of_openassistant_with_a_judge_that_scores_by_length(rankings: Path, tmp_path: Path) -> None:
    def by_length(messages: Messages, sampling: Sampling, i: int) -> str:
        answer = messages[-1].content.split("<answer>\n")[1].split("\n</answer>")[0]
        return f"It has {len(answer)} characters.\nScore: {min(5.0, len(answer) / 400 + sampling.seed % 3 * 0.2):.2f}"

    how, ranked = replace(seed_settings(), ift_share=0.3, max_score_share=0.3), read_ranked(rankings, first_turns=False)
    parts = split_prompts(ranked.prompts, how)
    asyncio.run(judge_prompts(ScriptedEngine(by_length), parts.eft, how, tmp_path, {"model": "m"}, SILENT))
    sets = select_sets(ranked, parts, how, tmp_path)
    summary: dict[str, Any] = dict(sets.summary)
    assert summary["read"] == {"prompts": 93, "answers": 283}
    not_judged = summary["ift"] + summary["held_out"] + summary["skipped"]["nothing to compare"]
    assert not_judged + summary["judged"] == 93
    assert summary["judged"] == summary["agreeing"] + sum(summary["rejected"].values())
    assert summary["rejected"].keys() == {"disagrees"} and summary["agreeing"] > 0
    kept, agreeing = sum(summary["scores_kept"].values()), sum(summary["scores_agreeing"].values())
    assert summary["eft"] == len(sets.eft) == kept < agreeing


def test_prompt_files_of_every_form(prompt_data: Path) -> None:
    counts = {
        "self_instruct_seed_tasks.jsonl": 175,
        "koala_test_set.jsonl": 180,
        "oasst_prompt_lottery_en_250.jsonl": 250,
        "oasst_en_100_prompts.jsonl": 100,
    }
    assert {name: len(load_prompts(prompt_data / name)) for name in counts} == counts


def test_an_alpaca_file_with_repeated_prompts(prompt_data: Path) -> None:
    path = prompt_data / "llms_from_scratch_instruction_data.json"
    gathered = gather_prompts(path)
    assert len(gathered.prompts) + len(gathered.repeats) == 1100
    assert len(gathered.repeats) >= 20
    with pytest.raises(UserError, match=r"data\.json: item \d+: the same prompt as in .*item \d+; fix:"):
        load_prompts(path)
    assert len({prompt.id for prompt in gathered.prompts}) == len(gathered.prompts)


def test_prompts_are_proposed_from_self_instruct_seed_tasks(prompt_data: Path, tmp_path: Path) -> None:
    seeds = load_prompts(prompt_data / "self_instruct_seed_tasks.jsonl")
    how = ProposalSettings(load_template("propose"), seed=1, per_round=6)

    def tasks(messages: Messages, sampling: Sampling, i: int) -> str:
        words = [f"word{(sampling.seed >> shift) % 997}" for shift in range(0, 48, 6)]
        return f"<task>\n{' '.join(words)}\n</task>\n"

    engine = ScriptedEngine(tasks)
    with RecordStore.open(tmp_path / "a.sqlite", proposal_fingerprint(seeds, (), how)) as store:
        found = asyncio.run(propose(engine, seeds, 15, how, store, SILENT))
    assert len(found.prompts) == 15
    assert all(call.messages[-1].content.count("<task>") >= 8 for call in engine.calls)
