"""From answers to a benchmark's numbers: the judge is asked what isn't kept yet, then its files are read as any stored
ones are.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from metareward.benchmarking_answers import arena_row
from metareward.benchmarking_entries import Entry
from metareward.benchmarks import alpaca, arena_run, judge_run, mt_bench_files, mt_bench_run
from metareward.benchmarks.alpaca_files import Output, read_annotations, read_difficulty, read_gamed, read_outputs
from metareward.benchmarks.alpaca_judge import Meeting, annotated_by, label_judge, meetings
from metareward.benchmarks.arena_files import Question, by_model, read_answers, read_questions
from metareward.benchmarks.arena_judge import verdicts_by
from metareward.benchmarks.asking import Desk, Door
from metareward.benchmarks.judge_files import Item, Pair, Response, Winner, graded
from metareward.benchmarks.judge_tables import pairs_table
from metareward.benchmarks.label_judge import load_label_prompt
from metareward.benchmarks.mt_bench_judge import grade_by_rubric
from metareward.benchmarks.pair_judges import GradedJudge, Grading, PairJudge, Scores, ScoringJudge, TrueJudge
from metareward.errors import UserError
from metareward.evaluation import HeldOut, Oracle
from metareward.render import conversation
from metareward.rundir import json_lines, write_atomic
from metareward.scores import TOLERANCE
from metareward.stages import measured
from metareward.types import Candidate, Message, Prompt, Sampling, Scored

Numbers = list[dict[str, object]]
Rows = Sequence[Mapping[str, object]]


async def numbers(entry: Entry, door: Door | None) -> Numbers:
    """The benchmark's results as its ``as_dict`` gives them. ``door`` leads to the judge; None where none is asked.

    Raises `UserError` for files that can't be read or don't fit each other.
    """
    entry.folder.mkdir(parents=True, exist_ok=True)
    if entry.asked.kind == "alpaca":
        return await _alpaca(entry, door)
    if entry.asked.kind == "judge" and entry.asked.questions is None:
        return _agreement(entry)
    if entry.asked.kind == "arena":
        return await _arena(entry, door)
    assert door is not None, "the recipe's check lets no other benchmark go without a judge"
    return await (_mt_bench(entry, door) if entry.asked.kind == "mt-bench" else _judge(entry, door))


# --- AlpacaEval ---


async def _alpaca(entry: Entry, door: Door | None) -> Numbers:
    asked, met, total = entry.local, *_meetings(entry)
    if not met:
        raise UserError(
            f"benchmarks.{entry.name}: {entry.asked.against} answers none of the instructions; name another"
        )
    rows = await _compared(entry, door, met)
    path = entry.folder / "annotations.json"
    write_atomic(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    found = alpaca.evaluate(
        read_annotations(path),
        difficulty=read_difficulty(Path(asked.difficulty)) if asked.difficulty else None,
        gamed=read_gamed(Path(asked.gamed)) if asked.gamed else None,
        instructions=total,
    )
    return [each.as_dict() for each in found]


def _meetings(entry: Entry) -> tuple[Sequence[Meeting], int]:
    """Both outputs to every instruction, and how many instructions there are."""
    base = entry.baseline
    if entry.asked.questions is None and base is not None:
        return _held_out_meetings(entry, base)
    baseline = read_outputs(base.answers if base else Path(entry.local.against))
    own = _held_out_outputs(entry) if entry.asked.questions is None else read_outputs(entry.answers)
    return meetings(baseline, own), len(baseline)


def _held_out_meetings(entry: Entry, base: Entry) -> tuple[Sequence[Meeting], int]:
    """By prompt, not by instruction: nothing is read out of a text that was made from several turns."""
    theirs = {record.prompt.id: record for record in measured(entry.of, base.t)}
    met = [
        Meeting(index, record.prompt, _output(theirs[record.prompt.id], base), _output(record, entry))
        for index, record in enumerate(measured(entry.of, entry.t))
        if record.prompt.id in theirs
    ]
    return met, len(entry.of.held_out)


def _held_out_outputs(entry: Entry) -> Sequence[Output]:
    return [_output(record, entry) for record in measured(entry.of, entry.t)]


def _output(record: HeldOut, entry: Entry) -> Output:
    """The first answer, where there are several."""
    return Output(conversation(record.prompt.messages), record.own[0].text, "held out", entry.model)


async def _compared(entry: Entry, door: Door | None, met: Sequence[Meeting]) -> Rows:
    prompt = entry.local.prompt
    if door is None or prompt is None:
        return await _by_judge_of_each(entry, door, lambda judge: annotated_by(judge, met))
    question = load_label_prompt(Path(prompt))
    kept = entry.folder / "judge.sqlite"
    return await door.at_desk(kept, lambda desk: annotated_by(label_judge(desk, question), met))


async def _by_judge_of_each(entry: Entry, door: Door | None, work: Callable[[PairJudge], Awaitable[Rows]]) -> Rows:
    """``work`` with a judge that sees one output at a time."""
    if door is None:
        return await work(_present_judge(entry))
    kept = entry.folder / "judge.sqlite"
    return await door.at_desk(kept, lambda desk: work(ScoringJudge(desk, _grading(entry))))


def _present_judge(entry: Entry) -> PairJudge:
    """A judge whose verdicts are there without asking anyone."""
    if entry.graded:
        return GradedJudge(entry.model, _scores(measured(entry.of, entry.t)))
    return TrueJudge(_oracle(entry))


def _scores(records: Sequence[HeldOut]) -> dict[tuple[str, str], Scores]:
    """M_t's scores of its own answers and of M0's, by prompt and answer."""
    return {
        (record.prompt.id, answer.text): _all_scores(answer)
        for record in records
        for answer in (*record.anchors_K, *record.own)
    }


def _all_scores(answer: Candidate) -> tuple[float | None, ...]:
    readings = (each.reading for each in answer.judgments_N)
    return tuple(reading.score if isinstance(reading, Scored) else None for reading in readings)


def _oracle(entry: Entry) -> Oracle:
    oracle = entry.of.oracle
    assert oracle is not None, "the recipe's check lets nobody ask an oracle that isn't there"
    return oracle


def _grading(entry: Entry) -> Grading:
    """The run's rubric and the judge's sampling; greedy judgments are all the same, so of these there is one."""
    recipe = entry.of.recipe
    judged = recipe.judgments
    n = entry.asked.judgments if judged.temperature > 0 else 1
    sampling = Sampling(judged.temperature, judged.top_p, judged.max_tokens)
    return Grading(entry.of.rubric, n, sampling, judged.score == "expected")


# --- Arena-Hard and MT-Bench ---


async def _arena(entry: Entry, door: Door | None) -> Numbers:
    theirs, own = _arena_answers(entry, entry.baseline), _arena_answers(entry, entry)
    names = list(by_model(read_answers(theirs)))
    if len(names) != 1:
        raise UserError(f"{theirs}: holds answers of {len(names)} models; fix: name a file with those of one")
    both = entry.folder / "both.jsonl"
    write_atomic(both, "".join(path.read_text(encoding="utf-8").rstrip("\n") + "\n" for path in (theirs, own)))
    files = arena_run.ArenaFiles(
        judgments=entry.folder / "judgments.jsonl",
        version=entry.asked.version,
        baseline=names[0],
        answers=both,
        questions=_path(entry.local.questions),
        prompt=_path(entry.local.prompt),
    )
    if door is not None and files.prompt is not None:
        await arena_run.judged(files, door)
    else:
        await _fought(entry, door, files)
    return [each.as_dict() for each in arena_run.results(files, seed=entry.seed % 2**32)]


def _arena_answers(entry: Entry, by: Entry | None) -> Path:
    """The file of the model's answers, or of the baseline's; held-out answers are written into one here."""
    if entry.asked.questions is not None:
        return by.answers if by else Path(entry.local.against)
    assert by is not None, "the recipe's check lets no file of outputs answer held-out prompts"
    path = entry.folder / ("answers.jsonl" if by == entry else "baseline.jsonl")
    rows = (arena_row(by.model, record.prompt.id, record.own[0].text) for record in measured(entry.of, by.t))
    write_atomic(path, json_lines(rows))
    return path


async def _fought(entry: Entry, door: Door | None, files: arena_run.ArenaFiles) -> None:
    """Write the verdicts of a judge that sees one answer at a time."""
    models = by_model(read_answers(entry.folder / "both.jsonl"))
    base, own = models[str(files.baseline)], models[entry.model]
    rows = await _by_judge_of_each(entry, door, lambda judge: verdicts_by(judge, _questions(entry), base, own))
    write_atomic(files.judgments, json_lines(rows))


def _questions(entry: Entry) -> list[tuple[Question, Prompt]]:
    """What was asked, and as the judge sees it."""
    if entry.asked.questions is None:
        return [(Question(each.id, "", conversation(each.messages)), each) for each in entry.of.held_out]
    asked = read_questions(Path(str(entry.local.questions)))
    return [(each, Prompt(each.id, (Message("user", each.text),))) for each in asked]


async def _mt_bench(entry: Entry, door: Door) -> Numbers:
    files = mt_bench_run.MtBenchFiles(
        judgments=entry.folder / "judgments.jsonl",
        questions=_path(entry.local.questions),
        answers=entry.answers,
        references=_path(entry.local.references),
        prompts=_path(entry.local.prompt),
    )
    await (mt_bench_run.judged(files, door) if files.prompts else _graded_turns(entry, door))
    return [each.as_dict() for each in mt_bench_run.results(files)]


async def _graded_turns(entry: Entry, door: Door) -> None:
    """Write the grades of a judge that knows only the run's rubric."""
    questions = mt_bench_files.read_questions(Path(str(entry.local.questions)))
    models = mt_bench_files.read_answers(entry.answers)

    def work(desk: Desk) -> Awaitable[Rows]:
        return grade_by_rubric(desk, _grading(entry), questions, models)

    rows = await door.at_desk(entry.folder / "judgments.sqlite", work)
    write_atomic(entry.folder / "judgments.jsonl", json_lines(rows))


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


# --- the judge itself ---


async def _judge(entry: Entry, door: Door) -> Numbers:
    kinds = {entry.asked.form: _path(entry.local.questions)}
    files = judge_run.JudgeFiles(
        rankings=kinds.get("rankings"),
        pairs=kinds.get("pairs"),
        prompt=_path(entry.local.prompt),
        kept=entry.folder / "judge.sqlite",
    )
    table = await judge_run.table(files, judge_run.Judges(door.judge, _grading(entry), door, own=entry.model))
    return [table.as_dict()]


def _agreement(entry: Entry) -> Numbers:
    """M_t's scores of its own and of M0's held-out answers, against the oracle's word on which is better."""
    pairs = [pair for record in measured(entry.of, entry.t) for pair in _pairs(entry, record)]
    return [pairs_table(pairs, {entry.model: graded(pairs)}, entry.model).as_dict()]


def _pairs(entry: Entry, record: HeldOut) -> Sequence[Pair]:
    """M0's answer and M_t's, sample by sample; the same text twice is no pair."""
    both = [
        (number, base, own)
        for number, (base, own) in enumerate(zip(record.anchors_K, record.own, strict=False))
        if base.text != own.text
    ]
    return [_pair(entry, replace(record.prompt, id=f"{record.prompt.id} {i}"), base, own) for i, base, own in both]


def _pair(entry: Entry, prompt: Prompt, base: Candidate, own: Candidate) -> Pair:
    lead = _oracle(entry).answer_score(prompt, base.text) - _oracle(entry).answer_score(prompt, own.text)
    label: Winner = 0 if abs(lead) <= TOLERANCE else 1 if lead > 0 else 2
    responses = tuple(Response(each.text, None, _all_scores(each)) for each in (base, own))
    return Pair(Item(prompt.id, prompt.messages, responses), label, "", ("M0", entry.model))
