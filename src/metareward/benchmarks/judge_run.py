"""The quality of a judge from named files to tables: stored scores and verdicts, or an engine that is asked first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from metareward.benchmarks.asking import Desk, Door
from metareward.benchmarks.judge_asking import compare_responses, score_responses
from metareward.benchmarks.judge_files import (
    Comparison,
    Item,
    Pair,
    PairVerdicts,
    Winner,
    graded,
    read_pairs,
    read_rankings,
    read_verdicts,
)
from metareward.benchmarks.judge_sections import read_choices
from metareward.benchmarks.judge_tables import (
    JudgeTable,
    meta_judge_table,
    pairs_table,
    protocol_table,
    rankings_table,
    sections_table,
)
from metareward.benchmarks.label_judge import LabelPrompt, load_label_prompt
from metareward.benchmarks.pair_judges import Grading
from metareward.benchmarks.protocols import Name, chosen_by_judge, gpt4_chosen, human, self_chosen
from metareward.errors import UserError
from metareward.records import from_json
from metareward.render import load_template
from metareward.rubric import Rubric
from metareward.store import RecordStore
from metareward.types import PromptRecord, Sampling, Tied, Won

_TAKES: dict[Name, str] = {
    "gpt4-chosen": "pairs",
    "self-chosen": "rankings",
    "human": "rankings",
    "meta-judge": "records",
}


@dataclass(frozen=True, slots=True)
class JudgeFiles:
    """What a judge is measured on: one of the first four. ``prompt`` is a reference judge's pairwise question."""

    rankings: Path | None = None
    pairs: Path | None = None
    sections: Path | None = None
    records: Path | None = None
    verdicts: Path | None = None
    prompt: Path | None = None
    kept: Path | None = None


@dataclass(frozen=True, slots=True)
class Judges:
    """Who judges: by name alone where everything is stored. ``own`` generates the outputs that are the judge's own."""

    name: str
    grading: Grading
    door: Door | None = None
    reference: Door | None = None
    own: str | None = None


async def table(files: JudgeFiles, judges: Judges, protocol: Name | None = None) -> JudgeTable:
    """The measures of ``protocol``, or all that fit the file. Raises `UserError` for what doesn't fit together."""
    kind, path = _measured_on(files, protocol)
    if kind == "records":
        return meta_judge_table(_records(path), judges.name)
    if kind == "sections":
        return sections_table(read_choices(path), judges.name)
    if kind == "pairs":
        return await _pairs(read_pairs(path), files, judges, protocol)
    return await _rankings(read_rankings(path), files, judges, protocol)


def _measured_on(files: JudgeFiles, protocol: Name | None) -> tuple[str, Path]:
    named = {"rankings": files.rankings, "pairs": files.pairs, "sections": files.sections, "records": files.records}
    given = [(kind, path) for kind, path in named.items() if path is not None]
    if len(given) != 1:
        raise UserError("give one of --rankings, --pairs, --sections and --records to measure the judge on")
    if protocol is not None and _TAKES[protocol] != given[0][0]:
        raise UserError(f"--protocol {protocol}: takes --{_TAKES[protocol]}, not --{given[0][0]}")
    return given[0]


def grading(rubric: str, n: int) -> Grading:
    """The paper's sampling (temperature 0.8, top-p 0.95) by a packaged rubric or a ``.txt`` file."""
    return Grading(Rubric(load_template(rubric)), n, Sampling(0.8, 0.95, 1024))


def protocol_named(name: str | None) -> Name | None:
    """The protocol of that name. Raises `UserError` naming those there are."""
    found: Name | None = next((each for each in get_args(Name) if each == name), None)
    if name is not None and found is None:
        raise UserError(f"--protocol {name}: no such protocol; there is {', '.join(get_args(Name))}")
    return found


def _records(path: Path) -> list[PromptRecord]:
    with RecordStore.read(path) as store:
        return [from_json(document) for _, document in store.documents()]


async def _rankings(items: Sequence[Item], files: JudgeFiles, judges: Judges, protocol: Name | None) -> JudgeTable:
    items = await _graded(files, judges, items)
    if protocol == "human":
        return protocol_table(protocol, human(items, judges.name))
    if protocol == "self-chosen":
        chosen = {item.id: pair for item in items if (pair := chosen_by_judge(item)) is not None}
        return protocol_table(protocol, self_chosen(await _compared(files, judges, items, chosen), judges.name))
    return rankings_table(items, judges.name, judges.grading.rubric.high)


async def _pairs(pairs: Sequence[Pair], files: JudgeFiles, judges: Judges, protocol: Name | None) -> JudgeTable:
    if protocol == "gpt4-chosen":
        pairs = await _labelled(files, judges, await _scored(files, judges, pairs))
        return protocol_table(protocol, gpt4_chosen(pairs, judges.name))
    if files.verdicts is not None:
        return pairs_table(pairs, read_verdicts(files.verdicts), judges.own)
    if judges.door is not None and files.prompt is not None:
        return pairs_table(pairs, {judges.name: await _pairwise(files, judges.door, pairs)}, judges.own)
    pairs = await _scored(files, judges, pairs)
    scored = all(response.scores_N or response.refused for pair in pairs for response in pair.item.responses)
    return pairs_table(pairs, {judges.name: graded(pairs)} if scored else {}, judges.own)


async def _graded(files: JudgeFiles, judges: Judges, items: Sequence[Item]) -> Sequence[Item]:
    """The items with the engine's scores, or as they are where none is asked."""
    if judges.door is None:
        return items
    how = judges.grading

    async def work(desk: Desk) -> tuple[Item, ...]:
        return await score_responses(desk, how.rubric, items, how.n, how.sampling)

    return await judges.door.at_desk(_kept(files), work)


def _kept(files: JudgeFiles, what: str = "") -> Path:
    if files.kept is None:
        raise UserError("--judge-engine: needs --kept, the file that keeps what the judge answers")
    return files.kept.with_name(f"{files.kept.stem}{what}{files.kept.suffix or '.sqlite'}")


async def _scored(files: JudgeFiles, judges: Judges, pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    items = await _graded(files, judges, [pair.item for pair in pairs])
    return tuple(replace(pair, item=item) for pair, item in zip(pairs, items, strict=True))


async def _compared(
    files: JudgeFiles, judges: Judges, items: Sequence[Item], chosen: Mapping[str, tuple[int, int]]
) -> Sequence[Item]:
    """The items with the reference engine's verdicts on the chosen pairs, or with those that are stored."""
    if judges.reference is None:
        return items
    prompt = _prompt(files)

    async def work(desk: Desk) -> tuple[Item, ...]:
        return await compare_responses(desk, prompt, items, chosen)

    return await judges.reference.at_desk(_kept(files, "-reference"), work)


def _prompt(files: JudgeFiles) -> LabelPrompt:
    if files.prompt is None:
        raise UserError("--reference-engine: needs --prompt, the pairwise question (alpaca_eval_clf.txt)")
    return load_label_prompt(files.prompt)


async def _labelled(files: JudgeFiles, judges: Judges, pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """The pairs with labels of the reference engine, where it says the same in both orders."""
    if judges.reference is None:
        return tuple(pairs)
    items = await _compared(files, judges, [pair.item for pair in pairs], {pair.item.id: (0, 1) for pair in pairs})
    return tuple(replace(pair, label=_label(item)) for pair, item in zip(pairs, items, strict=True))


def _label(item: Item) -> Winner | None:
    said = {_winner(each) for each in item.comparisons}
    return said.pop() if len(said) == 1 else None


def _winner(each: Comparison) -> Winner | None:
    match each.verdict:
        case Won(winner):
            return 1 if winner == 0 else 2
        case Tied():
            return 0
        case None:
            return None


async def _pairwise(files: JudgeFiles, door: Door, pairs: Sequence[Pair]) -> tuple[PairVerdicts, ...]:
    """The judge's own verdicts in both orders."""
    prompt = _prompt(files)
    items = [pair.item for pair in pairs]

    async def work(desk: Desk) -> tuple[Item, ...]:
        return await compare_responses(desk, prompt, items, {item.id: (0, 1) for item in items})

    compared = await door.at_desk(_kept(files), work)
    return tuple(PairVerdicts(item.id, tuple(_winner(each) for each in item.comparisons)) for item in compared)
