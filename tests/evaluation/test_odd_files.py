"""Odd and broken files by an adversary: no wrong number, no traceback; one line with place and fix, or a label.

Every case is a change to rows, or a text, and what the command says of it.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import sys
from collections.abc import Callable, Sequence
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
    rankings,
    run_alpaca,
    run_arena,
    run_mt_bench,
    run_pairs,
    run_rankings,
    run_sections,
    run_verdicts,
    sections,
    verdicts,
)
from made_up import json_file, lines

from metareward.cli.main import main
from metareward.errors import UserError
from metareward.evaluation.alpaca_eval.data import BASELINE
from metareward.evaluation.alpaca_eval.run import AlpacaEvalCommand
from metareward.evaluation.arena_hard.run import ArenaHardCommand
from metareward.evaluation.base import Evaluated
from metareward.evaluation.comparison import CompareCommand
from metareward.evaluation.judge_quality.run import JudgeQualityCommand
from metareward.evaluation.mt_bench.data import read_answers
from metareward.evaluation.verifiable.run import IfEvalCommand, VerifiableCommand

Case = Callable[[Path], object]


def rows_of(made: Callable[[], Rows], place: int | None = None, **fields: Any) -> Rows:
    """Made-up rows with other values in one of them, or in all; a value of ... takes the field away."""
    rows = made()
    for row in rows if place is None else [rows[place]]:
        row.update(fields)
        for name in [name for name, value in fields.items() if value is ...]:
            del row[name]
    return rows


def alpaca(place: int | None = None, **fields: Any) -> Case:
    return lambda folder: run_alpaca(folder, rows_of(annotation_rows, place, **fields))


def alpaca_text(name: str, content: bytes) -> Case:
    """A file of annotations, byte for byte."""

    def run(folder: Path) -> Evaluated:
        (folder / name).write_bytes(content)
        return evaluated(AlpacaEvalCommand(annotations=(folder / name,)))

    return run


def alpaca_beside(option: str, name: str, content: Rows | str) -> Case:
    """Good annotations beside another file."""

    def run(folder: Path) -> Evaluated:
        path = folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        made = json_file(folder / "good.json", annotation_rows())
        return evaluated(AlpacaEvalCommand.model_validate({"annotations": (made,), option: path}))

    return run


def arena(place: int | None = None, baseline: str | None = None, **fields: Any) -> Case:
    def run(folder: Path) -> Evaluated:
        made = lines(folder / "games.jsonl", rows_of(games, place, **fields))
        return evaluated(ArenaHardCommand(judgments=made, baseline=baseline, rounds=20))

    return run


def answers(change: Callable[[Rows], object]) -> Case:
    """Good games with a file of answers."""

    def run(folder: Path) -> Evaluated:
        rows: Rows = [
            {"question_id": f"q{i}", "model_id": model, "choices": [{"turns": [{"content": f"{model} {i}"}]}]}
            for model in ("base", "me")
            for i in range(6)
        ]
        change(rows)
        made, beside = lines(folder / "games.jsonl", games()), lines(folder / "answers.jsonl", rows)
        return evaluated(ArenaHardCommand(judgments=made, answers=beside, rounds=20))

    return run


def official_games(rows: int, **fields: Any) -> Case:
    made = [{**games()[i % 6], "question_id": f"q{i}", "judge": "gpt-4-1106-preview"} for i in range(rows)]
    return lambda folder: run_arena(folder, [{**row, "baseline": "gpt-4-0314", **fields} for row in made])


def mt_bench(place: int | None = None, **fields: Any) -> Case:
    return lambda folder: run_mt_bench(folder, rows_of(grades, place, **fields))


def mt_bench_turns(first: int, unreadable: int) -> Case:
    """80 questions' turns with a readable score but for some, and no file of questions."""

    def run(folder: Path) -> Evaluated:
        from metareward.evaluation.mt_bench.run import MtBenchCommand

        rows = [{**grades()[0], "question_id": first + i // 2, "turn": 1 + i % 2} for i in range(160)]
        for row in rows[:unreadable]:
            row["score"] = -1
        return evaluated(MtBenchCommand(judgments=lines(folder / "grades.jsonl", rows)))

    return run


def mt_bench_answers(rows: Rows) -> Case:
    return lambda folder: read_answers(lines(folder / "answers.jsonl", rows))


TURNS = {"question_id": 81, "model_id": "me", "choices": [{"turns": ["a", "b"]}]}


def ranked(change: Callable[[Rows], object]) -> Case:
    def run(folder: Path) -> Evaluated:
        rows = rankings()
        change(rows)
        return run_rankings(folder, rows)

    return run


def published(option: str, row: dict[str, Any]) -> Case:
    return lambda folder: evaluated(
        JudgeQualityCommand.model_validate({option: lines(folder / "published.jsonl", [row])})
    )


def about_pairs(place: int | None = None, **fields: Any) -> Case:
    return lambda folder: run_pairs(folder, rows_of(pairs, place, **fields))


def judged_pairs(rows: Rows) -> Case:
    return lambda folder: run_verdicts(folder, rows)


def in_sections(place: int | None = None, **fields: Any) -> Case:
    return lambda folder: run_sections(folder, rows_of(sections, place, **fields))


def instructed(
    kind: str = "punctuation:no_comma", prompt: str = "Do it.", twice: bool = False, **arguments: Any
) -> Case:
    def run(folder: Path) -> Evaluated:
        row = {"key": 1, "prompt": "Do it.", "instruction_id_list": [kind], "kwargs": [arguments]}
        given = lines(folder / "responses.jsonl", [{"prompt": prompt, "response": "Done"}])
        responses = (given, given) if twice else (given,)
        return evaluated(IfEvalCommand(questions=lines(folder / "asked.jsonl", [row]), responses=responses))

    return run


def tasks(response: dict[str, Any], **fields: Any) -> Case:
    def run(folder: Path) -> Evaluated:
        rows = [{"id": str(i), "prompt": "Do it.", "kind": "number", "answer": 7, **fields} for i in range(2)]
        given = lines(folder / "responses.jsonl", [{"response": "7", **response}])
        return evaluated(VerifiableCommand(questions=lines(folder / "asked.jsonl", rows), responses=(given,)))

    return run


def compared(first: Rows, second: Rows | None = None, **given: Any) -> Case:
    """Two files of rows against each other; without a second one its file is the first's."""

    def run(folder: Path) -> Evaluated:
        one = lines(folder / "one.jsonl", first)
        sources = (one,) if second is None else (lines(folder / "two.jsonl", second),)
        return evaluated(CompareCommand.model_validate({"first": (one,), "second": sources, **given}))

    return run


def scored(*values: Any, **fields: Any) -> Rows:
    return [{"id": i, "score": value, **fields} for i, value in enumerate(values)]


def outcomes(*words: str) -> Rows:
    return [{"id": i, "outcome": word} for i, word in enumerate(words)]


def difficulties(*cells: str) -> str:
    return "index,instruction_difficulty\n" + "\n".join(f"{i},{cell}" for i, cell in enumerate(cells)) + "\n"


CSV = "model,row,preference,len_1,len_2\n"
JSON = json.dumps(annotation_rows())
OUTPUTS = [{"instruction": f"Do {i}.", "output": "x", "generator": "me"} for i in range(9)]

REFUSED: Sequence[tuple[str, Case, str]] = [
    # names
    ("a name in another case", alpaca(3, generator_2="Me"), r"item 3: field \"model\": is 'Me', in earlier rows 'me'"),
    ("a name and a space", alpaca(3, generator_2="me "), r"item 3: field \"model\": is 'me '"),
    ("a blank name", alpaca(generator_2=" "), r"item 0: field \"model\": is blank"),
    ("one row without a name", alpaca(3, generator_2=None), r'item 3: field "model": is missing'),
    ("a model of games in another case", arena(1, model="ME"), r"jsonl:2: field \"model\": is 'ME'"),
    ("a model of grades in another case", mt_bench(1, model="Me"), r"jsonl:2: field \"model\": is 'Me'"),
    ("a judge that is a number", mt_bench(1, judge=[4, "x"]), r'jsonl:2: field "judge": is no name'),
    (
        "a judge in another case",
        judged_pairs([{**r, "evaluator": "xX"[i % 2]} for i, r in enumerate(verdicts())]),
        r"jsonl:2: field \"evaluator\": is 'X'",
    ),
    (
        "some verdicts without a judge",
        judged_pairs([{**verdicts()[0], "evaluator": "x"}, *verdicts()[1:]]),
        r'jsonl:2: field "evaluator": is missing',
    ),
    ("scores of two spellings", compared(scored(1, model="a") + scored(1, model="A"), scored(1)), r"is 'A', in earl"),
    ("scores partly without a model", compared(scored(1, model="a") + scored(1), scored(1)), r'"model": is missing'),
    # text and encodings
    ("gzip", alpaca_text("a.json", gzip.compress(JSON.encode())), r"a.json: this is a gzip file"),
    ("truncated gzip", alpaca_text("a.jsonl", gzip.compress(JSON.encode())[:20]), r"this is a gzip file"),
    ("UTF-16", alpaca_text("a.json", JSON.encode("utf-16")), r"this is UTF-16"),
    ("UTF-16 without a mark", alpaca_text("a.csv", CSV.encode("utf-16-le")), r"csv:2: not as many cells"),
    ("Latin-1", alpaca_text("a.json", JSON.replace("mine", "né").encode("latin-1")), r"a.json:1: this is not UTF-8"),
    ("half a file", alpaca_text("a.json", JSON[:-40].encode()), r"a.json: not JSON \(Unterminated"),
    (
        "a key twice",
        alpaca_text("a.json", JSON.replace('"preference": 1.0', '"preference": 2, "preference": 1').encode()),
        r"not JSON \(the key 'preference' twice",
    ),
    (
        "a column twice",
        alpaca_text("a.csv", b"model,preference,preference\nme,1,2\n"),
        r"csv:1: two columns are called",
    ),
    ("semicolons", alpaca_text("a.csv", (CSV + "me,0,1.5,3,4\n").replace(",", ";").encode()), r"is missing"),
    ("a decimal comma", alpaca_text("a.csv", (CSV + 'me,0,"1,5",3,4\n').encode()), r'"preference": is not a number'),
    ("1_5", alpaca_text("a.csv", (CSV + "me,0,1_5e-1,3,4\n").encode()), r'"preference": is not a number'),
    ("one cell too many", alpaca_text("a.csv", (CSV + "me,0,1.5,3,4,5\n").encode()), r"csv:2: not as many cells"),
    # AlpacaEval
    (
        "refused with a preference",
        alpaca(3, outcome="refused"),
        r'item 3: field "preference": is there, but the outcome',
    ),
    ("one row numbered", alpaca(3, index=20), r'item 0: field "index": is missing, but other rows have it'),
    ("one row without instruction", alpaca(3, instruction=None), r'item 3: field "instruction": is missing, but other'),
    (
        "outputs of others",
        alpaca_beside("outputs", "o.json", [{**OUTPUTS[0], "instruction": "Else"}]),
        r"o.json: no output for the instruction 'Do 0.'",
    ),
    (
        "outputs of two models",
        alpaca_beside("outputs", "o.json", [*OUTPUTS[:8], {**OUTPUTS[8], "generator": "you"}]),
        r"item 8: field \"generator\": is 'you'",
    ),
    (
        "another reference",
        alpaca_beside(
            "reference",
            "r.json",
            [{**r, "generator": BASELINE, "instruction": f"Else {i}"} for i, r in enumerate(OUTPUTS)],
        ),
        r"r.json: no output for the instruction",
    ),
    (
        "a difficulty twice",
        alpaca_beside("difficulty", "d.csv", difficulties("1", "2") + "1,3\n"),
        r"csv:4: field \"index\"",
    ),
    ("a huge difficulty", alpaca_beside("difficulty", "d.csv", difficulties("1", "1e50")), r"csv:3: .* is 1e\+50"),
    # Arena-Hard
    ("--baseline of others", arena(baseline="other"), r"jsonl:1: field \"baseline\": is 'base', not 'other'"),
    ("refused below zero", arena(0, refused=-3), r'jsonl:1: field "refused": is -3'),
    ("refused with verdicts", arena(0, refused=2), r'jsonl:1: field "refused": is 2, but 0 of the games'),
    ("an answer twice", answers(lambda rows: rows.append(rows[0])), r'jsonl:13: field "question_id": repeats'),
    (
        "answers of others",
        answers(lambda rows: [row.update(model_id=row["model_id"].upper()) for row in rows]),
        r"no answers of 'base', but of BASE, ME",
    ),
    (
        "an answer without choices",
        answers(lambda rows: rows[1].update(choices=[])),
        r'jsonl:2: field "choices": is empty',
    ),
    (
        "a choice without turns",
        answers(lambda rows: rows[1].update(choices=[{"turns": []}])),
        r'field "turns": is empty',
    ),
    (
        "tokens below zero",
        answers(lambda rows: rows[1].update(choices=[{"turns": [{"content": "x", "token_len": -5}]}])),
        r'field "token_len": is -5',
    ),
    # MT-Bench
    ("a refused grade", mt_bench(0, outcome="refused"), r'jsonl:1: field "score": is there, but the outcome'),
    ("MT-Bench's answer twice", mt_bench_answers([TURNS, TURNS]), r'jsonl:2: field "question_id": repeats'),
    ("MT-Bench's answer without choices", mt_bench_answers([{**TURNS, "choices": []}]), r'field "choices": is empty'),
    # judges
    (
        "a response without score",
        ranked(lambda rows: rows[1]["responses"][0].pop("score")),
        r'jsonl:2 responses\[0\]: field "score": is missing, but others have it',
    ),
    (
        "no readable score",
        ranked(lambda rows: [r.update(score=None) for row in rows for r in row["responses"]]),
        r"none of its rows has a readable score",
    ),
    ("a pair without score", about_pairs(1, score_2=...), r'jsonl:2: field "score_2": is missing, but others have it'),
    ("pairs without readable score", about_pairs(score_1=None, score_2=None), r"none of its rows has a readable score"),
    ("an empty reference", about_pairs(1, reference=[]), r'jsonl:2: field "reference": hasn\'t a winner in each'),
    (
        "a decision that is a list",
        judged_pairs([{"pair_id": "p0", "judgments": [{"decision": ["A>B"]}]}]),
        r'jsonl:1: field "judgments"',
    ),
    (
        "half a vote",
        published(
            "pairs",
            {
                "idx": 1,
                "annotator1": 1.7,
                "annotator2": 1,
                "annotator3": 2,
                "instruction": "x",
                "response1": "a",
                "response2": "b",
            },
        ),
        r'jsonl:1: field "annotator1": is 1.7',
    ),
    (
        "an answer that is null",
        published(
            "rankings",
            {"id": "1", "subset": "Math", "prompt": "x", "chosen": [None], "rejected": ["b"], "scores": [3, 1]},
        ),
        r'field "text": is missing',
    ),
    (
        "a subset in another case",
        in_sections(1, subset="DoNotAnswer"),
        r"jsonl:2: .* is 'DoNotAnswer'; fix: write donot",
    ),
    ("a winner beside scores", in_sections(1, winner="rejected"), r'jsonl:2: field "winner": stands beside scores'),
    (
        "sections without readable score",
        in_sections(score_chosen=None),
        r"none of its rows has a readable score or win",
    ),
    # programs that check
    ("words below zero", instructed("length_constraints:number_words", relation="at least", num_words=-5), r"is -5"),
    (
        "words that are no number",
        instructed("length_constraints:number_words", relation="at least", num_words=float("nan")),
        r"num_words is nan",
    ),
    ("keywords as text", instructed("keywords:existence", keywords="ab"), r"keywords is no list"),
    (
        "a keyword that is no pattern",
        instructed("keywords:existence", keywords=["("]),
        r"doesn't fit keywords:existence",
    ),
    ("a prompt with a space", instructed(prompt="Do it. "), r'jsonl:1: field "prompt": is that of none'),
    ("responses twice", instructed(twice=True), r"two files have responses of 'responses'"),
    ("a prompt of two tasks", tasks({"prompt": "Do it."}), r'jsonl:1: field "prompt": is that of several questions'),
    (
        "choices read alike",
        tasks({"id": "0"}, kind="choice", answer="a", choices=["A", "a"]),
        r'field "choices": has two',
    ),
    # compare
    ("huge scores", compared(scored(1e308, 2), scored(1, 2)), r'jsonl:1: field "score": is 1e\+308'),
    ("verdicts as text", compared([{"key": 1, "strict": ["no"]}], scored(1)), r'field "strict": isn\'t a list of true'),
    ("no verdicts", compared([{"key": 1, "strict": []}], scored(1)), r'field "strict": isn\'t a list of true'),
    ("an unknown outcome", compared(outcomes("Correct"), outcomes("wrong")), r"field \"outcome\": is 'Correct'"),
    ("outcomes and scores", compared(outcomes("correct"), scored(1)), r"values of different kinds, outcome and score"),
    ("a model with itself", compared(scored(1, 2)), r"one would be compared with itself"),
    (
        "other instructions",
        compared(
            annotation_rows(),
            [{**r, "instruction": f"Else {i}", "generator_2": "you"} for i, r in enumerate(annotation_rows())],
        ),
        r"no prompt that both have a value for",
    ),
    (
        "first turns and both turns",
        compared(grades()[::2], [{**r, "model": "you"} for r in grades()]),
        r"no prompt that",
    ),
    (
        "one game and both games",
        compared([{**r, "game2": None} for r in games()], [{**r, "model": "you"} for r in games()]),
        r"no prompt that both have a value for",
    ),
    ("a plot of no format", compared(scored(1, 2), scored(2, 2), plot=Path("x.xyz")), r"x.xyz: no format of that name"),
]


@pytest.mark.parametrize(("case", "line"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED])
def test_an_odd_file_is_refused_in_one_line(tmp_path: Path, case: Case, line: str) -> None:
    with pytest.raises(UserError, match=line) as told:
        case(tmp_path)
    message = str(told.value)
    assert "; fix: " in message and "\n" not in message and len(message) < 600


LABELLED: Sequence[tuple[str, Case, str]] = [
    ("a model against itself", alpaca(generator_1="me"), r"model and baseline have the same name"),
    ("another gamed table", alpaca_beside("difficulty", "d.csv", difficulties(*"123456789")), r"9 of 805 instructions"),
    ("500 made-up questions", official_games(500), r"not comparable with the leaderboard: other questions"),
    ("a judge in another case", official_games(6, judge="GPT-4-1106-preview"), r"judge GPT-4-1106-preview"),
    ("half of the games unreadable", official_games(500, game1=None), r"me: partial: 500 of 1000 games have a verdict"),
    ("80 other questions", mt_bench_turns(1, 0), r"not comparable with published scores: other questions"),
    ("100 unreadable turns", mt_bench_turns(81, 100), r"not comparable with published scores: 60 of 160 turns"),
    (
        "a response without rank",
        ranked(lambda rows: rows[0]["responses"][0].update(rank=None)),
        r"1 responses have no rank",
    ),
    (
        "ranks all the same",
        ranked(lambda rows: [r.update(rank=0) for r in rows[0]["responses"]]),
        r"1 of 4 prompts have no",
    ),
    (
        "one response alone",
        ranked(lambda rows: rows[0].update(responses=rows[0]["responses"][:1])),
        r"1 of 4 prompts have no",
    ),
    ("verdicts on one pair", judged_pairs(verdicts()[:1]), r"broken: partial: 1 of 4 labelled pairs have verdicts"),
    (
        "probabilities of the other output",
        judged_pairs([{**r, "probability_original_order": 0.1} for r in verdicts()]),
        r"4 of 4 verdicts contradict their probability",
    ),
    (
        "one of 23 subsets",
        in_sections(),
        r"not comparable with RewardBench's scores: 22 of 23 subsets are missing; 1 subs",
    ),
    ("a subset of one's own", in_sections(subset="mine"), r"subsets that aren't upstream's: mine"),
    (
        "the same difference everywhere",
        compared(scored(1, 1, 1), scored(2, 2, 2)),
        r"no interval: every prompt has the same",
    ),
    (
        "a game declined in words",
        arena(0, games=[{"judgment": "[[A>B]]"}, {"judgment": "I'm sorry, I can't judge this."}]),
        r"me: partial: 11 of 12 games have a verdict",
    ),
    ("one prompt", compared(scored(1), scored(2)), r"no interval: one prompt only"),
]


@pytest.mark.parametrize(("case", "label"), [each[1:] for each in LABELLED], ids=[each[0] for each in LABELLED])
def test_what_is_odd_is_labelled_in_every_output(tmp_path: Path, case: Case, label: str) -> None:
    found = case(tmp_path)
    assert isinstance(found, Evaluated)
    assert any(re.search(label, note) for table in found.tables for note in table.notes)
    reason = label.partition(": ")[2] or label
    assert re.search(reason, json.dumps(found.numbers).replace('", "', "; "))


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ("--min-score nan", 2, r"--min-score nan: Input should be a finite number; fix: "),
        ("--max-score -1", 2, r"min_score 0 must be below max_score -1"),
        ("--verdicts pairs.jsonl", 2, r"--verdicts: are about --pairs, not --rankings"),
        ("--json folder", 2, r"folder: can't be written: Is a directory"),
        ("--name \ud800 --json new/o.json", 0, r""),
    ],
)
def test_an_odd_option_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    code: int,
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    made = lines(tmp_path / "rankings.jsonl", rankings())
    argv = ["metareward", "evaluate", "judge-quality", "--rankings", str(made), *words.split()]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert int(end.value.code or 0) == code and re.search(line, said) and len(said.splitlines()) <= 1


@pytest.mark.parametrize(
    "case",
    [
        alpaca_text("a.json", codecs.BOM_UTF8 + JSON.encode()),
        alpaca_text("a.jsonl", "\r\n".join(json.dumps(row) for row in annotation_rows()).encode()),
        alpaca_text("a.jsonl", ("\n\n" + "\n".join(json.dumps(row) for row in annotation_rows()) + "\n ").encode()),
    ],
    ids=["byte order mark", "CRLF", "blank lines"],
)
def test_an_odd_form_changes_no_number(tmp_path: Path, case: Case) -> None:
    found, plain = case(tmp_path), run_alpaca(tmp_path, annotation_rows())
    assert isinstance(found, Evaluated) and found.numbers == plain.numbers


def test_annotations_are_compared_by_instruction_not_by_place(tmp_path: Path) -> None:
    shuffled = [{**row, "generator_2": "you"} for row in annotation_rows()[::-1]]
    found = compared(annotation_rows(), shuffled[:-1])(tmp_path)
    assert isinstance(found, Evaluated)
    ((_, figures),) = found.tables[0].rows
    assert (figures["difference"], figures["equal"], figures["n_prompts"]) == (0.0, 8, 8)
    assert "partial: 8 of 9 prompts have a value for both" in str(found.numbers)
