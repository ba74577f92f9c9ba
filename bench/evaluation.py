"""How long the metrics take: AlpacaEval on 805 rows, Arena-Hard's bootstrap over 30 models, MT-Bench, judges.

    python bench/evaluation.py [--alpaca FOLDER] [--upstream PYTHON [--arena FOLDER]]

Made-up rows by default. ``--alpaca`` names a folder with annotations.json, instruction_difficulty.csv and df_gamed.csv
(AlpacaEval's own files); ``--upstream`` the Python of an environment that has the package alpaca_eval, whose official
function is then timed on the same files, beside ours; ``--arena`` a folder with utils_math.py of lm-sys/arena-hard-auto
(v0.1), whose bootstrap is timed on the same battles: a few rounds, counted up to ours. Times are of one core, CPU
seconds, without imports; the imports are a row of their own. Prints a table and writes bench/results/evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from metareward.evaluation.alpaca_eval.run import AlpacaEvalCommand
from metareward.evaluation.arena_hard import score as arena
from metareward.evaluation.arena_hard.data import Answer, Match, Style, is_significant, score_for_a
from metareward.evaluation.judge_quality.data import Item, Response
from metareward.evaluation.judge_quality.pairs import JudgedPair, biases, pair_quality
from metareward.evaluation.judge_quality.rankings import ranking_quality
from metareward.evaluation.mt_bench import data as mt_bench_scores
from metareward.evaluation.mt_bench.data import Grade, Question
from metareward.storage.run_log import environment
from metareward.types import Message

ROUNDS, MODELS, QUESTIONS, INSTRUCTIONS, ARENA_ROUNDS = 3, 30, 500, 805, 1000
VERDICTS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")
# The official function, with its two tables given locally; it fetches them from the hub otherwise.
UPSTREAM = """
import sys, time, pandas
from alpaca_eval.metrics import glm_winrate
folder = sys.argv[1]
glm_winrate.hf_hub_download = lambda **asked: folder + "/df_gamed.csv"


for _ in range(int(sys.argv[2])):
    began = time.process_time()
    frame = pandas.read_json(folder + "/annotations.json")
    told = glm_winrate.get_length_controlled_winrate(frame, save_weights_dir=None)
    print(time.process_time() - began, told["length_controlled_winrate"])
"""
# One bootstrap, of rows; ours draws both rows and questions.
UPSTREAM_ARENA = """
import sys, time, pandas
sys.path.insert(0, sys.argv[1])
from utils_math import compute_mle_elo, get_bootstrap_result
battles, rounds = pandas.read_csv(sys.argv[2]), int(sys.argv[3])
began = time.process_time()
get_bootstrap_result(battles, lambda rows: compute_mle_elo(rows, baseline_model="baseline"), rounds)
print((time.process_time() - began) / rounds)
"""


def made_up_annotations(folder: Path) -> Path:
    """Rows of the size of the leaderboard's, with texts of about 2,000 characters."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(200, 4000, (INSTRUCTIONS, 2))
    share = 1 / (1 + np.exp(-(generator.normal(size=INSTRUCTIONS) + (lengths[:, 1] - lengths[:, 0]) / 1500)))
    rows = [
        {
            "instruction": f"Instruction {i}.",
            "output_1": "x" * int(lengths[i, 0]),
            "generator_1": "gpt4_1106_preview",
            "output_2": "y" * int(lengths[i, 1]),
            "generator_2": "made-up",
            "annotator": "weighted_alpaca_eval_gpt4_turbo",
            "preference": 1 + float(share[i]),
        }
        for i in range(INSTRUCTIONS)
    ]
    (folder / "annotations.json").write_text(json.dumps(rows), encoding="utf-8")
    hard = generator.normal(size=INSTRUCTIONS)
    table = "index,instruction_difficulty\n" + "".join(f"{i},{value}\n" for i, value in enumerate(hard))
    (folder / "instruction_difficulty.csv").write_text(table, encoding="utf-8")
    gamed = "model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
    for model in ("verbose", "concise"):
        drawn = zip(generator.uniform(size=INSTRUCTIONS), generator.normal(size=INSTRUCTIONS), hard, strict=True)
        gamed += "".join(f"{model},{p},{i},{d},{g},False\n" for i, (p, d, g) in enumerate(drawn))
    (folder / "df_gamed.csv").write_text(gamed, encoding="utf-8")
    return folder


def alpaca(folder: Path) -> None:
    """Read, win rates, standard errors, lengths, the official regression."""
    files = AlpacaEvalCommand(
        annotations=(folder / "annotations.json",),
        difficulty=folder / "instruction_difficulty.csv",
        gamed=folder / "df_gamed.csv",
    )
    files.results()


def matches() -> tuple[list[Match], dict[str, dict[str, Answer]]]:
    """Verdicts and styles of 30 models on 500 questions."""
    generator = np.random.default_rng(1)
    drawn, counts = (
        generator.integers(5, size=(MODELS, QUESTIONS, 2)),
        generator.integers(1, 900, (MODELS + 1, QUESTIONS, 4)),
    )
    names = [*(f"model {m}" for m in range(MODELS)), "baseline"]
    answers = {
        name: {
            str(q): Answer(str(q), name, None, Style(*map(float, (*counts[m, q, :1], *counts[m, q]))))
            for q in range(QUESTIONS)
        }
        for m, name in enumerate(names)
    }
    played = [
        Match(str(q), "", names[m], "baseline", (VERDICTS[drawn[m, q, 0]], VERDICTS[drawn[m, q, 1]]))  # type: ignore[arg-type]
        for m in range(MODELS)
        for q in range(QUESTIONS)
    ]
    return played, answers


def mt_bench() -> None:
    """80 questions, two turns, 30 models."""
    questions = {i: Question(i, f"category {i % 8}", ("a", "b")) for i in range(80)}
    grades = [Grade(i, f"model {m}", turn, float(i % 10)) for m in range(MODELS) for i in range(80) for turn in (1, 2)]
    mt_bench_scores.evaluate(grades, questions)


def judges() -> None:
    """805 rankings of three responses, and 805 pairs in both orders."""
    generator = np.random.default_rng(2)
    scores, lengths = generator.integers(6, size=(INSTRUCTIONS, 3)), generator.integers(1, 900, (INSTRUCTIONS, 3))
    items = [
        Item(
            str(i),
            (Message("user", "?"),),
            tuple(Response("x" * int(n), r, (float(s),)) for r, (s, n) in enumerate(zip(row, these, strict=True))),
        )
        for i, (row, these) in enumerate(zip(scores, lengths, strict=True))
    ]
    ranking_quality(items)
    rows = [JudgedPair(str(i), 1 + i % 2, (1, 2 - i % 3 % 2), (int(a), int(b))) for i, (a, b, _) in enumerate(lengths)]  # type: ignore[arg-type]
    pair_quality(rows)
    biases(rows)


def seconds(work: Callable[[], object]) -> float:
    """The median CPU time of a few rounds, after one to warm up."""
    work()
    taken = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def imports() -> float:
    """CPU seconds of a process that imports all that the AlpacaEval numbers take."""
    modules = "metareward.evaluation.alpaca_eval.run, sklearn.linear_model, sklearn.model_selection"
    code = f"import time, {modules}; print(time.process_time())"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def upstream(python: str, folder: Path) -> float:
    """The median CPU time of the official function, after one round to warm up."""
    command = [python, "-c", UPSTREAM, str(folder), str(ROUNDS + 1)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return statistics.median(float(line.split()[0]) for line in told[1:])


def upstream_arena(python: str, folder: Path, played: Sequence[Match]) -> float:
    """The CPU time of as many rounds of upstream's bootstrap as ours has, estimated from a few."""
    rows = [row for each in played for row in _battles(each)]
    with tempfile.TemporaryDirectory() as made:
        table = Path(made) / "battles.csv"
        table.write_text("model_a,model_b,winner\n" + "\n".join(rows) + "\n")
        command = [python, "-c", UPSTREAM_ARENA, str(folder), str(table), str(ROUNDS)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(told) * ARENA_ROUNDS


def _battles(played: Match) -> Iterator[str]:
    """The rows of both games as upstream has them: the model is B in the first, and a strong verdict is three rows."""
    for game, verdict in enumerate(played.games):
        assert verdict is not None
        share = score_for_a(verdict) if game == 0 else 1 - score_for_a(verdict)
        winner = {1.0: "model_a", 0.5: "tie", 0.0: "model_b"}[share]
        yield from [f"baseline,{played.model},{winner}"] * (3 if is_significant(verdict) else 1)


def main() -> None:
    """Run all, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alpaca", type=Path, help="folder with AlpacaEval's files")
    parser.add_argument("--upstream", help="Python that has alpaca_eval")
    parser.add_argument("--arena", type=Path, help="folder with Arena-Hard's utils_math.py")
    asked = parser.parse_args()
    played, answers = matches()
    with tempfile.TemporaryDirectory() as made:
        folder = asked.alpaca or made_up_annotations(Path(made))
        rows = {
            "imports": (imports(), None),
            f"AlpacaEval, {INSTRUCTIONS} rows": (
                seconds(lambda: alpaca(folder)),
                upstream(asked.upstream, folder) if asked.upstream else None,
            ),
            f"Arena-Hard, {MODELS} models, both bootstraps, 1000 rounds": (
                seconds(lambda: arena.evaluate(played, {}, "v0.1", rounds=ARENA_ROUNDS)),
                upstream_arena(asked.upstream, asked.arena, played) if asked.upstream and asked.arena else None,
            ),
            "Arena-Hard, style control": (seconds(lambda: arena.evaluate(played, answers, "v0.1", rounds=1)), None),
            "MT-Bench, 30 models": (seconds(mt_bench), None),
            f"judge metrics, {INSTRUCTIONS} rankings and pairs": (seconds(judges), None),
        }
    _show(rows, "as given" if asked.alpaca else "made up")


def _show(rows: dict[str, tuple[float, float | None]], source: str) -> None:
    table = Table("CPU seconds, one core", "metareward", "upstream's package")
    for name, (ours, theirs) in rows.items():
        table.add_row(name, f"{ours:.2f}", "absent" if theirs is None else f"{theirs:.2f}")
    Console().print(table)
    told = {name: {"metareward": ours, "upstream": theirs} for name, (ours, theirs) in rows.items()}
    path = Path(__file__).parent / "results" / "evaluation.json"
    path.write_text(
        json.dumps({"seconds": told, "rows": source, **environment(), "load": os.getloadavg()}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
