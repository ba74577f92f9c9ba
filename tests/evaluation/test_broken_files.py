"""Broken files of every benchmark: each is refused in one line with place and fix, or labelled in every output."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from benchmark_rows import (
    Rows,
    annotation_rows,
    evaluated,
    games,
    grades,
    pairs,
    ranked,
    rankings,
    run_alpaca,
    run_arena,
    run_mt_bench,
    run_pairs,
    run_ranked,
    run_rankings,
    run_sections,
    run_verdicts,
    sections,
    verdicts,
)
from made_up import json_file, table

from metareward.errors import UserError
from metareward.evaluation.alpaca_eval.run import AlpacaEvalCommand
from metareward.evaluation.base import Evaluated

Change = Callable[[Rows], object]


def put(place: int, **fields: Any) -> Change:
    """Other values in one row."""
    return lambda rows: rows[place].update(fields)


def drop(place: int, *names: str) -> Change:
    return lambda rows: [rows[place].pop(name) for name in names]


def drop_everywhere(*names: str) -> Change:
    return lambda rows: [row.pop(name) for row in rows for name in names]


def put_everywhere(**fields: Any) -> Change:
    return lambda rows: [row.update(fields) for row in rows]


def repeat(place: int) -> Change:
    return lambda rows: rows.append(dict(rows[place]))


def numbered(place: int, index: float) -> Change:
    """All rows numbered, and one of them by ``index``."""
    return lambda rows: [row.update(index=index if i == place else i) for i, row in enumerate(rows)]


KINDS: Mapping[str, tuple[Callable[[], Rows], Callable[[Path, Rows], object]]] = {
    "alpaca_eval": (annotation_rows, run_alpaca),
    "arena_hard": (games, run_arena),
    "mt_bench": (grades, run_mt_bench),
    "rankings": (rankings, run_rankings),
    "pairs": (pairs, run_pairs),
    "verdicts": (verdicts, run_verdicts),
    "sections": (sections, run_sections),
    "ranked": (ranked, run_ranked),
}

REFUSED: list[tuple[str, Change, str]] = [
    ("alpaca_eval", repeat(3), r'item 9: field "instruction": repeats .*item 3'),
    ("alpaca_eval", lambda rows: rows.extend(annotation_rows()[:5]), r'item 9: field "instruction": repeats .*item 0'),
    ("alpaca_eval", put_everywhere(index=3), r'item 1: field "index": repeats .*item 0'),
    ("alpaca_eval", put(5, generator_1="other"), r'item 5: field "generator_1": is \'other\', in earlier rows'),
    ("alpaca_eval", drop(5, "generator_1"), r'item 5: field "generator_1": is missing'),
    ("alpaca_eval", put(4, annotator="other judge"), r'item 4: field "annotator": is \'other judge\''),
    ("alpaca_eval", put(2, preference=2.5), r'item 2: field "preference": is 2.5'),
    ("alpaca_eval", put(2, preference=0.3), r'item 2: field "preference": is 0.3'),
    ("alpaca_eval", put(2, preference=85), r'item 2: field "preference": is 85'),
    ("alpaca_eval", put(2, preference=-1), r'item 2: field "preference": is -1'),
    ("alpaca_eval", put(2, preference=10**400), r'item 2: field "preference": is not a number'),
    ("alpaca_eval", put(2, preference="1e400"), r'item 2: field "preference": is infinite'),
    ("alpaca_eval", put(2, preference=float("inf")), r'item 2: field "preference": is infinite'),
    ("alpaca_eval", put(2, preference=True), r'item 2: field "preference": is not a number'),
    ("alpaca_eval", put(2, preference=[1.5]), r'item 2: field "preference": is not a number'),
    ("alpaca_eval", put(2, preference="m"), r'item 2: field "preference": is not a number'),
    ("alpaca_eval", drop(2, "preference"), r'item 2: field "preference": is missing'),
    ("alpaca_eval", put_everywhere(preference=None), r"none of its rows has a readable preference"),
    ("alpaca_eval", put(2, output_2=None), r'item 2: field "output_2": is missing'),
    ("alpaca_eval", numbered(2, -1), r'item 2: field "index": is -1'),
    ("alpaca_eval", numbered(2, 1.5), r'item 2: field "index": is 1.5, no whole number'),
    ("alpaca_eval", put(2, len_2=-3), r'item 2: field "len_2": is -3'),
    ("arena_hard", repeat(2), r'jsonl:7: field "question_id": repeats .*jsonl:3'),
    ("arena_hard", drop_everywhere("game2"), r'jsonl:1: field "game2": is missing'),
    ("arena_hard", put(1, game1="A wins"), r'jsonl:2: field "game1": is \'A wins\''),
    ("arena_hard", put(1, game1="[[A]] is better"), r'jsonl:2: field "game1": is'),
    ("arena_hard", put(1, game1=0.7), r'jsonl:2: field "game1": is \'0.7\''),
    ("arena_hard", put_everywhere(game1=None, game2=""), r"none of its rows has a readable verdict"),
    ("arena_hard", put(1, baseline="other"), r'jsonl:2: field "baseline": is \'other\''),
    ("arena_hard", put(1, judge="other"), r'jsonl:2: field "judge": is \'other\''),
    ("arena_hard", drop(1, "judge"), r'jsonl:2: field "judge": is missing'),
    ("arena_hard", drop(1, "baseline"), r'jsonl:2: field "baseline": is missing'),
    ("arena_hard", put(1, games=[{"score": "A>B"}]), r'jsonl:2: field "games": has 1 games'),
    (
        "arena_hard",
        put(1, games=[{"score": "A>B"}, {"score": "better"}]),
        r'jsonl:2 games: field "score": is \'better\'',
    ),
    ("arena_hard", drop(1, "model"), r'jsonl:2: field "model": is missing'),
    ("arena_hard", put(1, refused=0.5), r'jsonl:2: field "refused": is 0.5'),
    ("mt_bench", put(1, score=85), r'jsonl:2: field "score": is 85'),
    ("mt_bench", put(1, score=-2), r'jsonl:2: field "score": is -2'),
    ("mt_bench", drop(1, "score"), r'jsonl:2: field "score": is missing'),
    ("mt_bench", put(1, score="nine"), r'jsonl:2: field "score": is not a number'),
    ("mt_bench", put(4, question_id=999), r'jsonl:5: field "question_id": \'999\' is not in the questions'),
    ("mt_bench", put(4, question_id=81.5), r'jsonl:5: field "question_id": is 81.5'),
    ("mt_bench", put(4, turn=3), r'jsonl:5: field "turn": is 3'),
    ("mt_bench", put(4, turn=1.5), r'jsonl:5: field "turn": is 1.5'),
    ("mt_bench", repeat(1), r'jsonl:7: field "question_id": repeats .*jsonl:2'),
    ("mt_bench", put(3, judge=["gpt-3.5", "single-v1"]), r'jsonl:4: field "judge": is \'gpt-3.5\''),
    ("mt_bench", put_everywhere(score=-1), r"none of its rows has a readable score"),
    ("rankings", lambda rows: rows[1]["responses"][0].update(score=6), r'jsonl:2 responses\[0\]: field "score": is 6'),
    (
        "rankings",
        lambda rows: rows[1]["responses"][0].update(score=99),
        r'jsonl:2 responses\[0\]: field "score": is 99',
    ),
    ("rankings", lambda rows: rows[1]["responses"][0].update(scores=[4, -1]), r'field "scores\[1\]": is -1'),
    ("rankings", repeat(0), r'jsonl:5: field "id": repeats'),
    ("rankings", lambda rows: rows[1]["responses"][0].update(rank="best"), r'field "rank": is not a number'),
    ("pairs", put(1, score_2=9), r'jsonl:2: field "score_2": is 9'),
    ("pairs", put(1, label=3), r'jsonl:2: field "label": is 3'),
    ("pairs", drop(1, "label"), r'jsonl:2: field "label": is missing'),
    ("pairs", drop_everywhere("label"), r"no pair has a label"),
    ("pairs", repeat(0), r'jsonl:5: field "id": repeats'),
    ("verdicts", drop(2, "winner_swapped_order"), r'jsonl:3: field "winner_swapped_order": is in some rows only'),
    ("verdicts", put(2, winner_original_order="A"), r'jsonl:3: field "winner_original_order": is \'A\''),
    ("verdicts", repeat(2), r'jsonl:5: field "id": repeats'),
    ("verdicts", put(2, id="unknown"), r"'unknown' is no pair's id"),
    ("verdicts", put_everywhere(winner_original_order=None, winner_swapped_order=None), r"readable verdict"),
    ("sections", repeat(2), r'jsonl:5: field "id": repeats'),
    ("sections", drop(2, "score_rejected"), r'jsonl:3: field "score_rejected": is missing'),
    ("ranked", put(1, ranks=[0]), r'jsonl:2: field "ranks": 1 for 2 answers'),
    ("ranked", put(1, ranks=["best", 1]), r'jsonl:2: field "ranks\[0\]": is not a number'),
    ("ranked", repeat(0), r"two rows have the id"),
]


@pytest.mark.parametrize(("kind", "change", "line"), REFUSED, ids=[f"{i} {each[0]}" for i, each in enumerate(REFUSED)])
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, kind: str, change: Change, line: str) -> None:
    made, command = KINDS[kind]
    rows = made()
    change(rows)
    with pytest.raises(UserError, match=line) as told:
        command(tmp_path, rows)
    message = str(told.value)
    assert "; fix: " in message and "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_file_is_accepted(tmp_path: Path, kind: str) -> None:
    made, command = KINDS[kind]
    command(tmp_path, made())


LABELLED: list[tuple[str, Change, str]] = [
    ("alpaca_eval", lambda rows: None, r"not comparable with the leaderboard: 9 of 805 instructions"),
    ("alpaca_eval", put_everywhere(annotator="fake"), r"judge fake; 9 of 805"),
    ("alpaca_eval", drop_everywhere("annotator"), r"its judge is not named"),
    ("alpaca_eval", put(2, preference=None), r"8 of 805 instructions"),
    ("arena_hard", lambda rows: None, r"not comparable with the leaderboard: judge j; baseline base; 6 of 500"),
    ("arena_hard", lambda rows: rows.append({**rows[0], "model": "you"}), r"you: partial: 1 of 6 questions"),
    ("arena_hard", lambda rows: rows.append({**rows[0], "model": "you", "judge": "k"}), r"different judges"),
    ("mt_bench", lambda rows: None, r"me: not comparable with published scores: 6 of 160 turns"),
    ("mt_bench", put_everywhere(judge=["me", "x"]), r"judge me; 6 of 160 turns"),
    ("mt_bench", lambda rows: rows.pop(), r"5 of 160 turns"),
]


@pytest.mark.parametrize(("kind", "change", "label"), LABELLED, ids=[f"{i} {e[0]}" for i, e in enumerate(LABELLED)])
def test_what_is_partial_is_labelled_in_every_output(tmp_path: Path, kind: str, change: Change, label: str) -> None:
    made, command = KINDS[kind]
    rows = made()
    change(rows)
    found = command(tmp_path, rows)
    assert isinstance(found, Evaluated)
    assert any(re.search(label, note) for each in found.tables for note in each.notes)
    reason = label.partition(": ")[2] or label
    assert re.search(reason, " ".join(re.findall(r'"[^"]*"', json.dumps(found.numbers))).replace('" "', "; "))


def test_labels_in_double_brackets_are_read(tmp_path: Path) -> None:
    found = run_arena(tmp_path, [{**row, "game1": f"[[{row['game1']}]]"} for row in games()])
    plain = run_arena(tmp_path, games())
    assert found.numbers == plain.numbers


def test_one_model_in_two_annotation_files_is_refused(tmp_path: Path) -> None:
    one, other = (json_file(tmp_path / f"{name}.json", annotation_rows()) for name in "ab")
    with pytest.raises(UserError, match="two files have annotations of 'me'"):
        evaluated(AlpacaEvalCommand(annotations=(one, other)))


def test_outputs_and_reference_of_other_models_are_refused(tmp_path: Path) -> None:
    made = json_file(tmp_path / "a.json", annotation_rows())
    outputs = [{"instruction": f"Do {i}.", "output": "x", "generator": "other"} for i in range(9)]
    path = json_file(tmp_path / "other.json", outputs)
    with pytest.raises(UserError, match="has outputs of 'other', but the annotations of 'me' are against"):
        evaluated(AlpacaEvalCommand(annotations=(made,), reference=path))


def test_a_table_of_lengths_that_names_neither_judge_nor_baseline_is_labelled(tmp_path: Path) -> None:
    rows = [{"model": "me", "row": i, "preference": 1.5, "len_1": 3, "len_2": 4} for i in range(4)]
    found = evaluated(AlpacaEvalCommand(annotations=(table(tmp_path / "a.csv", rows),)))
    (note, *_) = (note for note in found.tables[0].notes if "not comparable" in note)
    assert "its judge is not named; its baseline is not named; 4 of 805" in note
