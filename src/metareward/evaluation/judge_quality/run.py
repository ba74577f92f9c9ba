"""The quality of a judge from named files to tables: stored scores and verdicts, or an engine that is asked first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from metareward.errors import UserError
from metareward.evaluation.judge_quality.data import (
    Comparison,
    Item,
    Pair,
    PairVerdicts,
    Winner,
    read_pairs,
    read_rankings,
    read_verdicts,
    verdicts_from_scores,
)
from metareward.evaluation.judge_quality.pairs import (
    JudgedPair,
    biases,
    chance_pair_quality,
    judged_pairs,
    llmbar_statistics,
    pair_quality,
    verdicts_by_length,
)
from metareward.evaluation.judge_quality.protocols import (
    Agreement,
    ProtocolName,
    chosen_by_judge,
    gpt4_chosen,
    human,
    self_chosen,
)
from metareward.evaluation.judge_quality.rankings import (
    CHANCE,
    LENGTH,
    chance_ranking_quality,
    ranking_quality,
    score_histogram,
    scored_by_length,
)
from metareward.evaluation.judge_quality.reward_bench import Choice, choices_by_length, read_choices, section_scores
from metareward.evaluation.judges import (
    Desk,
    Door,
    Grading,
    LabelPrompt,
    compare_responses,
    load_label_prompt,
    score_responses,
)
from metareward.method.diagnostics import position_statistics
from metareward.method.judge import Rubric
from metareward.storage.store import RecordStore, from_json
from metareward.types import PromptRecord, Sampling, Tied, Won

# --- The quality of judges as rows: every judge, then the length-only judge, then chance, with the same measures.


Measures = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class JudgeTable:
    """``kind`` says which measures; each row is a judge's name and its measures, ready for JSON."""

    kind: str
    rows: tuple[tuple[str, Measures], ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"kind": self.kind, "judges": [{"judge": name, **measures} for name, measures in self.rows]}


def rankings_table(items: Sequence[Item], judge: str, perfect: float) -> JudgeTable:
    """A grading judge against human rankings; only the two baselines where the responses carry no scores."""
    scored = any(response.scores_N for item in items for response in item.responses)
    own = {**ranking_quality(items, perfect).as_dict(), "score_histogram": score_histogram(items)}
    rows: list[tuple[str, Measures]] = [(judge, own)] if scored else []
    rows.append((LENGTH, ranking_quality(scored_by_length(items), perfect).as_dict() | _no_perfect()))
    return JudgeTable("rankings", (*rows, (CHANCE, chance_ranking_quality(items))))


def _no_perfect() -> dict[str, object]:
    """A length has no perfect score, so the length-only judge has no 5-best."""
    return {"five_best": None, "n_fives": 0}


def pairs_table(
    pairs: Sequence[Pair], judges: Mapping[str, Sequence[PairVerdicts]], own: str | None = None
) -> JudgeTable:
    """Judges against pairwise labels, with their biases. Raises `UserError` where one judge mixes one order and two."""
    rows = [(name, _pairs_table(name, judged_pairs(pairs, verdicts), own)) for name, verdicts in judges.items()]
    orders = max((len(each.winners) for verdicts in judges.values() for each in verdicts), default=1)
    by_length = judged_pairs(pairs, verdicts_by_length(pairs, orders))
    rows.append((LENGTH, _pairs_table(LENGTH, by_length, own)))
    return JudgeTable("pairs", (*rows, (CHANCE, chance_pair_quality(by_length))))


def _pairs_table(name: str, judged: Sequence[JudgedPair], own: str | None) -> Measures:
    orders = {len(pair.winners) for pair in judged}
    if len(orders) > 1:
        raise UserError(f"verdicts of {name}: some pairs have one order, some two; fix: judge all of them in both")
    measures = {**pair_quality(judged).as_dict(), "biases": biases(judged, own).as_dict()}
    return measures | ({"llmbar": llmbar_statistics(judged)} if orders == {2} else {})


def sections_table(choices: Sequence[Choice], judge: str) -> JudgeTable:
    """A judge on RewardBench's subsets and sections."""
    own, by_length = section_scores(choices), section_scores(choices_by_length(choices))
    chance = {"overall": 0.5, "sections": dict.fromkeys(own.sections, 0.5), "subsets": dict.fromkeys(own.subsets, 0.5)}
    return JudgeTable("sections", ((judge, own.as_dict()), (LENGTH, by_length.as_dict()), (CHANCE, chance)))


def protocol_table(name: str, agreements: Iterable[Agreement]) -> JudgeTable:
    """A protocol's agreements."""
    return JudgeTable(name, tuple((each.judge, _measures(each)) for each in agreements))


def _measures(each: Agreement) -> Measures:
    return {field: value for field, value in each.as_dict().items() if field != "judge"}


def meta_judge_table(records: Iterable[PromptRecord], judge: str) -> JudgeTable:
    """The statistics of Meta-Rewarding Table 5; a meta-judge by chance follows neither place nor score."""
    split = {"pairs": None, "flipped": 0.5, "first_wins": 0.5}
    chance: dict[str, object] = {"higher_score_wins": 0.5, "lower_score_wins": 0.5}
    chance |= dict.fromkeys(("same_score", "different_score", "all"), split)
    return JudgeTable("meta-judge", ((judge, position_statistics(records).as_dict()), (CHANCE, chance)))


_TAKES: dict[ProtocolName, str] = {
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


async def table(files: JudgeFiles, judges: Judges, protocol: ProtocolName | None = None) -> JudgeTable:
    """The measures of ``protocol``, or all that fit the file. Raises `UserError` for what doesn't fit together."""
    kind, path = _measured_on(files, protocol)
    if kind == "records":
        return meta_judge_table(_records(path), judges.name)
    if kind == "sections":
        return sections_table(read_choices(path), judges.name)
    if kind == "pairs":
        return await _pairs(read_pairs(path), files, judges, protocol)
    return await _rankings(read_rankings(path), files, judges, protocol)


def _measured_on(files: JudgeFiles, protocol: ProtocolName | None) -> tuple[str, Path]:
    named = {"rankings": files.rankings, "pairs": files.pairs, "sections": files.sections, "records": files.records}
    given = [(kind, path) for kind, path in named.items() if path is not None]
    if len(given) != 1:
        raise UserError("give one of --rankings, --pairs, --sections and --records to measure the judge on")
    if protocol is not None and _TAKES[protocol] != given[0][0]:
        raise UserError(f"--protocol {protocol}: takes --{_TAKES[protocol]}, not --{given[0][0]}")
    return given[0]


def grading(rubric: str, n: int) -> Grading:
    """The paper's sampling (temperature 0.8, top-p 0.95) by a packaged rubric or a ``.txt`` file."""
    return Grading(Rubric.load(rubric), n, Sampling(0.8, 0.95, 1024))


def protocol_named(name: str | None) -> ProtocolName | None:
    """The protocol of that name. Raises `UserError` naming those there are."""
    found: ProtocolName | None = next((each for each in get_args(ProtocolName) if each == name), None)
    if name is not None and found is None:
        raise UserError(f"--protocol {name}: no such protocol; there is {', '.join(get_args(ProtocolName))}")
    return found


def _records(path: Path) -> list[PromptRecord]:
    with RecordStore.read(path) as store:
        return [from_json(document) for _, document in store.documents()]


async def _rankings(
    items: Sequence[Item], files: JudgeFiles, judges: Judges, protocol: ProtocolName | None
) -> JudgeTable:
    items = await _graded(files, judges, items)
    if protocol == "human":
        return protocol_table(protocol, human(items, judges.name))
    if protocol == "self-chosen":
        chosen = {item.id: pair for item in items if (pair := chosen_by_judge(item)) is not None}
        return protocol_table(protocol, self_chosen(await _compared(files, judges, items, chosen), judges.name))
    return rankings_table(items, judges.name, judges.grading.rubric.max_score)


async def _pairs(pairs: Sequence[Pair], files: JudgeFiles, judges: Judges, protocol: ProtocolName | None) -> JudgeTable:
    if protocol == "gpt4-chosen":
        pairs = await _labelled(files, judges, await _scored(files, judges, pairs))
        return protocol_table(protocol, gpt4_chosen(pairs, judges.name))
    if files.verdicts is not None:
        return pairs_table(pairs, read_verdicts(files.verdicts), judges.own)
    if judges.door is not None and files.prompt is not None:
        return pairs_table(pairs, {judges.name: await _pairwise(files, judges.door, pairs)}, judges.own)
    pairs = await _scored(files, judges, pairs)
    scored = all(response.scores_N or response.refused for pair in pairs for response in pair.item.responses)
    return pairs_table(pairs, {judges.name: verdicts_from_scores(pairs)} if scored else {}, judges.own)


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
