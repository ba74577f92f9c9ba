"""Good files of every benchmark as rows, and each benchmark run on a file of such rows: what tests break."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from made_up import json_file, lines, session

from metareward.data.ranked import read_ranked
from metareward.evaluation.alpaca_eval.data import BASELINE, JUDGE
from metareward.evaluation.alpaca_eval.run import AlpacaEvalCommand
from metareward.evaluation.arena_hard.run import ArenaHardCommand
from metareward.evaluation.base import EvaluateCommand, Evaluated
from metareward.evaluation.judge_quality.run import JudgeQualityCommand
from metareward.evaluation.mt_bench.run import MtBenchCommand

Rows = list[dict[str, Any]]


def annotation_rows() -> Rows:
    return [
        {
            "instruction": f"Do {i}.",
            "output_1": "base" * i,
            "generator_1": BASELINE,
            "output_2": "mine",
            "generator_2": "me",
            "annotator": JUDGE,
            "preference": 1 + i / 9,
        }
        for i in range(9)
    ]


def games() -> Rows:
    labels = ["A>>B", "B>A", "A=B"]
    return [
        {
            "question_id": f"q{i}",
            "model": "me",
            "baseline": "base",
            "judge": "j",
            "game1": labels[i % 3],
            "game2": "A>B",
        }
        for i in range(6)
    ]


def grades() -> Rows:
    return [
        {"question_id": 81 + i // 2, "model": "me", "judge": ["gpt-4", "single-v1"], "turn": 1 + i % 2, "score": 3 + i}
        for i in range(6)
    ]


def rankings() -> Rows:
    return [
        {
            "id": f"r{i}",
            "prompt": "Why?",
            "responses": [{"text": "a" * (k + 1), "rank": k, "score": 5 - k} for k in range(3)],
        }
        for i in range(4)
    ]


def pairs() -> Rows:
    return [
        {"id": f"p{i}", "input": "Why?", "output_1": "a", "output_2": "bb", "label": 1, "score_1": 4, "score_2": i}
        for i in range(4)
    ]


def verdicts() -> Rows:
    return [{"id": f"p{i}", "winner_original_order": 1, "winner_swapped_order": 2} for i in range(4)]


def sections() -> Rows:
    return [
        {
            "id": f"{i}",
            "subset": "donotanswer",
            "chosen": "no",
            "rejected": "yes",
            "score_chosen": 2,
            "score_rejected": 1,
        }
        for i in range(4)
    ]


def ranked() -> Rows:
    return [{"prompt": f"Why {i}?", "answers": ["so", "no"], "ranks": [0, 1]} for i in range(3)]


def evaluated(command: EvaluateCommand) -> Evaluated:
    return asyncio.run(command.evaluate(session()))


def run_alpaca(folder: Path, rows: Rows) -> Evaluated:
    return evaluated(AlpacaEvalCommand(annotations=(json_file(folder / "broken.json", rows),)))


def run_arena(folder: Path, rows: Rows) -> Evaluated:
    return evaluated(ArenaHardCommand(judgments=lines(folder / "broken.jsonl", rows), rounds=20))


def run_mt_bench(folder: Path, rows: Rows) -> Evaluated:
    questions = [{"question_id": 81 + i, "category": "math", "turns": ["a", "b"]} for i in range(3)]
    asked = lines(folder / "question.jsonl", questions)
    return evaluated(MtBenchCommand(judgments=lines(folder / "broken.jsonl", rows), questions=asked))


def run_rankings(folder: Path, rows: Rows) -> Evaluated:
    return evaluated(JudgeQualityCommand(rankings=lines(folder / "broken.jsonl", rows)))


def run_pairs(folder: Path, rows: Rows) -> Evaluated:
    return evaluated(JudgeQualityCommand(pairs=lines(folder / "broken.jsonl", rows)))


def run_verdicts(folder: Path, rows: Rows) -> Evaluated:
    judged = lines(folder / "broken.jsonl", rows)
    return evaluated(JudgeQualityCommand(pairs=lines(folder / "pairs.jsonl", pairs()), verdicts=judged))


def run_sections(folder: Path, rows: Rows) -> Evaluated:
    return evaluated(JudgeQualityCommand(sections=lines(folder / "broken.jsonl", rows)))


def run_ranked(folder: Path, rows: Rows) -> object:
    return read_ranked(lines(folder / "broken.jsonl", rows))
