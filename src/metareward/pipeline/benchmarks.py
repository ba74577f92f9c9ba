"""The benchmarks that the recipe chose, inside the loop: M_t answers and is judged, and the numbers lie in ``eval/``.

What needs M_t's engine is done while that is open: its answers, and its verdicts where it is the judge itself. Other
judges are asked when it is closed, so that two models never need the memory at once. Everything that was answered is
kept at once: after a kill only what is owed is asked.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from metareward.config.schema import BenchmarkSettings, engine_fingerprint
from metareward.data.files import HUB, resolve_file
from metareward.data.prompts import load_prompts
from metareward.engines.base import Engine, StripReasoning
from metareward.errors import UserError
from metareward.evaluation.alpaca_eval import score as alpaca
from metareward.evaluation.alpaca_eval.data import Output, read_annotations, read_difficulty, read_gamed, read_outputs
from metareward.evaluation.alpaca_eval.run import Meeting, annotated_by, label_judge, meetings
from metareward.evaluation.arena_hard import data as arena_files
from metareward.evaluation.arena_hard import run as arena_run
from metareward.evaluation.arena_hard.data import Question, by_model, read_answers, read_judge_prompt, read_questions
from metareward.evaluation.arena_hard.run import verdicts_by
from metareward.evaluation.held_out import HeldOut, Oracle
from metareward.evaluation.judge_quality import run as judge_run
from metareward.evaluation.judge_quality.data import (
    Item,
    Pair,
    Response,
    Winner,
    read_pairs,
    read_rankings,
    verdicts_from_scores,
)
from metareward.evaluation.judge_quality.run import pairs_table
from metareward.evaluation.judges import (
    Desk,
    Door,
    GradedJudge,
    Grading,
    OpenEngine,
    PairJudge,
    Scores,
    ScoringJudge,
    TrueJudge,
    ask,
    kept_text,
    load_label_prompt,
)
from metareward.evaluation.mt_bench import data as mt_bench_files
from metareward.evaluation.mt_bench import run as mt_bench_run
from metareward.evaluation.mt_bench.data import read_prompts, read_references
from metareward.evaluation.mt_bench.run import grade_by_rubric
from metareward.generation.progress import ANSWERS, Progress
from metareward.generation.usage import log_usage
from metareward.method.judge import with_system
from metareward.method.scores import TOLERANCE
from metareward.method.template import conversation
from metareward.pipeline.engines import open_judge
from metareward.pipeline.experiment import Experiment
from metareward.pipeline.stages import held_out_of
from metareward.seeds import derive
from metareward.storage.atomic import write_atomic
from metareward.storage.run_log import tell, timed
from metareward.storage.serialization import json_lines
from metareward.training.lineage import fingerprint_model
from metareward.types import Candidate, Completion, Message, Messages, ModelRole, Prompt, Sampling, Scored

# --- One benchmark after one iteration: whether it is due there, whom M_t is compared with, and where its files are.
#
#     iter-<t>/eval/<name>/   outputs.json or answers.jsonl   annotations.json or judgments.jsonl   result.json
# *.sqlite
#
# The stores keep every answer and verdict as it comes; ``result.json`` is written last.


_FILES = {"questions", "prompt", "references", "difficulty", "gamed", "against"}


@dataclass(frozen=True)
class Entry:
    """Benchmark ``name`` of the recipe and M_t."""

    of: Experiment
    t: int
    name: str

    @property
    def asked(self) -> BenchmarkSettings:
        """Its settings."""
        return self.of.recipe.benchmarks[self.name]

    @property
    def local(self) -> BenchmarkSettings:
        """Its settings with paths for names of files on the hub, which are fetched.

        Raises `UserError` when the recipe doesn't allow that, or it fails.
        """
        named = self.asked.model_dump(include=_FILES)
        network = self.of.recipe.prompts.network
        paths = {key: str(resolve_file(name, network)) for key, name in named.items() if name and name.startswith(HUB)}
        return self.asked.model_copy(update=paths)

    @property
    def model(self) -> str:
        """What M_t is called."""
        return f"M{self.t}"

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.of.run.iteration(self.t).evaluation / self.name

    @property
    def answers(self) -> Path:
        """M_t's answers to questions of a file, in the benchmark's own format."""
        return self.folder / ("outputs.json" if self.asked.kind == "alpaca" else "answers.jsonl")

    @property
    def result(self) -> Path:
        """The numbers."""
        return self.folder / "result.json"

    @property
    def seed(self) -> int:
        """Every random choice of the benchmark follows from it; the same after each iteration."""
        return derive(self.of.recipe.seed, "benchmarks", self.name)

    @property
    def baseline(self) -> Entry | None:
        """The earlier model that M_t is compared with; None where a file is named, or nothing is compared."""
        if self.asked.kind not in ("alpaca", "arena") or self.asked.against not in ("m0", "previous"):
            return None
        return replace(self, t=0 if self.asked.against == "m0" else self.t - 1)

    @property
    def due(self) -> bool:
        """Whether M_t is measured: it was chosen, and what it is compared with isn't itself."""
        chosen = not self.asked.models or self.t in self.asked.models
        alone = self.asked.kind == "judge" and self.asked.questions is None  # its answers against M0's
        return chosen and (self.t > 0 or (self.baseline is None and not alone))

    @property
    def answering(self) -> bool:
        """Whether M_t answers questions of a file: for itself, or because a later model is compared with it."""
        if self.asked.questions is None or self.asked.kind == "judge":
            return False
        later = (replace(self, t=t) for t in range(self.t + 1, self.of.last + 1))
        return self.due or any(each.due and each.baseline == self for each in later)

    @property
    def graded(self) -> bool:
        """Whether all that the numbers rest on was asked when the model was measured on the held-out prompts."""
        held_out = self.asked.questions is None and self.asked.prompt is None
        against_first = self.asked.kind == "judge" or self.asked.against == "m0"
        return held_out and against_first and self.asked.judge == "itself"

    @property
    def owes_answers(self) -> bool:
        """Whether M_t has not answered."""
        return self.answering and not self.answers.is_file()

    @property
    def owes_result(self) -> bool:
        """Whether M_t has no numbers yet."""
        return self.due and not self.result.is_file()

    @property
    def asks_itself(self) -> bool:
        """Whether M_t's engine is the judge."""
        return self.asked.judge == "itself" and not self.graded


def entries(of: Experiment, t: int) -> tuple[Entry, ...]:
    """Every benchmark of the recipe, with M_t."""
    return tuple(Entry(of, t, name) for name in of.recipe.benchmarks)


# --- M_t answers a benchmark's questions, and its answers are written in the benchmark's own format.
#
# Greedy by default. Where the model thinks first, its thinking is no part of the answer. A question that the engine
# can't
# serve has no answer, and is counted as missing.


async def answer(entry: Entry, engine: Engine, progress: Progress) -> None:
    """Write the answers, asking for those that aren't kept yet. Raises `UserError` for a file that can't be read."""
    entry.folder.mkdir(parents=True, exist_ok=True)
    desk = Desk(engine, entry.model, entry.folder / "answers.sqlite", entry.seed, progress=progress)
    questions = questions_of(entry.local)
    written = await _written(entry, desk, questions)
    if not written:
        raise UserError(f"benchmarks.{entry.name}: {entry.model} answered none of {entry.asked.questions}")
    rows = [_row(entry, prompt, written[prompt.id]) for prompt in questions if prompt.id in written]
    alpaca = entry.asked.kind == "alpaca"
    write_atomic(entry.answers, json.dumps(rows, ensure_ascii=False, indent=1) + "\n" if alpaca else json_lines(rows))


def questions_of(asked: BenchmarkSettings) -> Sequence[Prompt]:
    """The questions of a file; those of MT-Bench have one message to a turn of the user.

    Raises `UserError` when it can't be read.
    """
    path = Path(str(asked.questions))
    if asked.kind == "alpaca":
        return load_prompts(path)
    if asked.kind == "arena":
        return [Prompt(each.id, (Message("user", each.text),)) for each in arena_files.read_questions(path)]
    turns = mt_bench_files.read_questions(path).values()
    return [Prompt(str(each.id), tuple(Message("user", turn) for turn in each.turns)) for each in turns]


async def _written(entry: Entry, desk: Desk, questions: Sequence[Prompt]) -> Mapping[str, Sequence[str]]:
    """What the model wrote in each turn, by question id."""
    recipe = entry.of.recipe
    sampling = Sampling(entry.asked.temperature, recipe.answers.top_p, recipe.answers.max_tokens)
    talk = _Talk(desk, sampling, recipe.answers.system_prompt, turn_by_turn=entry.asked.kind == "mt-bench")
    decided: dict[str, object] = {
        "model": fingerprint_model(entry.of.model(entry.t)),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "system": recipe.answers.system_prompt,
        **engine_fingerprint(recipe.engine),
    }
    asked = await ask(desk, questions, talk.answered, decided, f"{entry.model} answers {entry.name}", ANSWERS)
    return {key: document["turns"] for key, document in asked.documents.items()}


@dataclass(frozen=True, slots=True)
class _Talk:
    """A conversation with the model."""

    desk: Desk
    sampling: Sampling
    system: str | None
    turn_by_turn: bool

    async def answered(self, question: Prompt) -> dict[str, object]:
        parts = [(each,) for each in question.messages] if self.turn_by_turn else [question.messages]
        said: Messages = ()
        turns: list[str] = []
        for number, part in enumerate(parts):
            said = with_system(self.system, (*said, *part))
            seed = derive(self.desk.seed, "answer", question.id, number)
            (reply,) = await self.desk.engine.complete(said, replace(self.sampling, seed=seed), 1, "actor")
            turns.append(kept_text(reply))
            said = (*said, Message("assistant", turns[-1]))
        return {"turns": turns}


def _row(entry: Entry, prompt: Prompt, turns: Sequence[str]) -> dict[str, object]:
    if entry.asked.kind == "alpaca":
        told = {"instruction": conversation(prompt.messages), "output": turns[0], "generator": entry.model}
        return {"id": prompt.id, **told}
    if entry.asked.kind == "arena":
        return arena_row(entry.model, prompt.id, turns[0])
    return {"question_id": int(prompt.id), "model_id": entry.model, "choices": [{"index": 0, "turns": turns}]}


def arena_row(model: str, question: str, text: str) -> dict[str, object]:
    """An answer as Arena-Hard's files have it."""
    return {"question_id": question, "model_id": model, "choices": [{"turns": [{"content": text}]}]}


# --- From answers to a benchmark's numbers: the judge is asked what isn't kept yet, then its files are read as any
# stored
# ones are.


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
    theirs = {record.prompt.id: record for record in held_out_of(entry.of, base.t)}
    met = [
        Meeting(index, record.prompt, _output(theirs[record.prompt.id], base), _output(record, entry))
        for index, record in enumerate(held_out_of(entry.of, entry.t))
        if record.prompt.id in theirs
    ]
    return met, len(entry.of.held_out)


def _held_out_outputs(entry: Entry) -> Sequence[Output]:
    return [_output(record, entry) for record in held_out_of(entry.of, entry.t)]


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
        return GradedJudge(entry.model, _scores(held_out_of(entry.of, entry.t)))
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
    rows = (arena_row(by.model, record.prompt.id, record.own[0].text) for record in held_out_of(entry.of, by.t))
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
    pairs = [pair for record in held_out_of(entry.of, entry.t) for pair in _pairs(entry, record)]
    return [pairs_table(pairs, {entry.model: verdicts_from_scores(pairs)}, entry.model).as_dict()]


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


_STAGE = "benchmarks"


def check(of: Experiment) -> None:
    """Read every file that is needed yet, and write nothing. Raises `UserError` for one that can't be read."""
    every = (each for t in range(of.last + 1) for each in entries(of, t))
    owed = {each.name: each for each in every if each.owes_answers or each.owes_result}
    for path, read in (file for each in owed.values() for file in _files(each.local)):
        read(path)


def _files(asked: BenchmarkSettings) -> Iterator[tuple[Path, Callable[[Path], object]]]:
    """The files of one benchmark, each with its reader."""
    arena, pairs = asked.kind == "arena", asked.form == "pairs"
    if asked.questions and asked.kind != "judge":
        yield Path(asked.questions), lambda _: questions_of(asked)
    elif asked.questions:
        yield Path(asked.questions), read_pairs if pairs else read_rankings
    if asked.prompt:
        reader = {"arena": read_judge_prompt, "mt-bench": read_prompts}.get(asked.kind, load_label_prompt)
        yield Path(asked.prompt), reader
    if asked.kind in ("alpaca", "arena") and asked.against not in ("m0", "previous"):
        yield Path(asked.against), read_answers if arena else read_outputs
    others = ((asked.references, read_references), (asked.difficulty, read_difficulty), (asked.gamed, read_gamed))
    yield from ((Path(name), reader) for name, reader in others if name)


def needs_model(of: Experiment, t: int) -> bool:
    """Whether a benchmark has something to ask M_t."""
    return any(each.owes_answers or (each.owes_result and each.asks_itself) for each in entries(of, t))


async def ask_model(of: Experiment, t: int, engine: Engine, progress: Progress) -> None:
    """M_t answers, and judges where it is the judge itself. ``engine`` stays open."""
    owed = [each for each in entries(of, t) if each.owes_answers or (each.owes_result and each.asks_itself)]
    if not owed:
        return
    thinking, room = of.settings(1).reasoning, of.recipe.judgments.max_tokens
    acting = _Lent(engine if thinking is None else StripReasoning(engine, thinking))
    judging = _Lent(engine if thinking is None else StripReasoning(engine, thinking, room))
    with timed(of.run, t, _STAGE):
        for each in owed:
            if each.owes_answers:
                await answer(each, acting, progress)
            if each.owes_result and each.asks_itself:
                await _finish(each, Door(each.model, judging.lent, each.seed, progress))


async def ask_others(of: Experiment, t: int, progress: Progress) -> None:
    """The rest: what is there already is counted, and judges of other engines are asked."""
    owed = [each for each in entries(of, t) if each.owes_result]
    if not owed:
        return
    with timed(of.run, t, _STAGE):
        for each in owed:
            silent = each.graded or each.asked.judge == "oracle"
            await _finish(each, None if silent else Door(each.asked.judge, _opening(of), each.seed, progress))


def _opening(of: Experiment) -> OpenEngine:
    async def opened(name: str) -> Engine:
        return log_usage(of.run, f"judge {name}", await open_judge(name))

    return opened


@dataclass(frozen=True)
class _Lent:
    """An engine that its borrower can't close."""

    engine: Engine

    async def lent(self, _: str) -> Engine:
        return self

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        return await self.engine.complete(messages, sampling, n, role)

    async def aclose(self) -> None:
        """Nothing."""


async def _finish(entry: Entry, door: Door | None) -> None:
    """Write the result."""
    found = {
        "benchmark": entry.name,
        "kind": entry.asked.kind,
        "model": entry.model,
        "against": _against(entry),
        "judge": entry.asked.judge,
        "by_rubric": entry.asked.judge != "oracle" and entry.asked.prompt is None,
        "results": await numbers(entry, door),
    }
    write_atomic(entry.result, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    tell(entry.of.run, "benchmark", name=entry.name, model=entry.model)


def _against(entry: Entry) -> str | None:
    """Whom the model is compared with; of a judge, who says what is right."""
    if entry.asked.kind == "judge":
        return entry.asked.questions or "the oracle"
    if entry.asked.kind == "mt-bench":
        return None
    return entry.baseline.model if entry.baseline else entry.asked.against
