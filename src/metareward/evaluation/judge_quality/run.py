"""The quality of a judge: how it agrees with humans, labels, another judge or an oracle, and its biases.

A judge under test scores each response N times by a rubric of this project. A reference judge compares responses by
AlpacaEval's question in both orders; the response with more than half of the preference wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field

from metareward.errors import UserError
from metareward.evaluation.base import (
    Column,
    Completions,
    EvaluateCommand,
    Evaluated,
    EvaluateSession,
    Figures,
    JudgedBenchmark,
    Mismatch,
    Opponent,
    Results,
    ResultTable,
    ScoringInputs,
    stored_scores,
)
from metareward.evaluation.compare import SAMPLING, LabelPrompt, ask_labels, load_label_prompt
from metareward.evaluation.held_out import HeldOut, Oracle
from metareward.evaluation.input_checks import require_readable
from metareward.evaluation.judge_quality.calibration import write_reliability_plot
from metareward.evaluation.judge_quality.data import (
    Comparison,
    Item,
    Pair,
    PairVerdicts,
    Response,
    Winner,
    read_pairs,
    read_rankings,
    read_verdicts,
    verdicts_from_scores,
)
from metareward.evaluation.judge_quality.pairs import read_choices
from metareward.evaluation.judge_quality.rankings import (
    ProtocolName,
    chosen_by_judge,
    gpt4_chosen,
    human,
    self_chosen,
)
from metareward.evaluation.judge_quality.tables import (
    JudgeTable,
    judge_columns,
    meta_judge_table,
    pairs_table,
    protocol_table,
    rankings_table,
    sections_table,
)
from metareward.evaluation.judges import JudgeSpec, Output, grade
from metareward.generation.progress import JUDGMENTS
from metareward.generation.verdicts import RubricGrader, VerdictRules
from metareward.method.judge import Rubric
from metareward.method.scores import TOLERANCE
from metareward.method.template import conversation
from metareward.settings import Text
from metareward.storage.records import read_records
from metareward.storage.store import RecordStore
from metareward.types import Prompt, Sampling, Tied, Won

_TAKES: dict[ProtocolName, str] = {
    "gpt4-chosen": "pairs",
    "self-chosen": "rankings",
    "human": "rankings",
    "meta-judge": "records",
}


async def score_responses(
    judge: JudgeSpec | None, store: Path, grader: RubricGrader, items: Sequence[Item]
) -> Sequence[Item]:
    """The items with N scores to every response, None for an unreadable one; as they are where no judge is asked.

    Raises `UserError` as `grade` does.
    """
    if judge is None:
        return items
    outputs = [
        Output(f"{item.id} answer {i}", Prompt(item.id, item.messages), response.text)
        for item in items
        for i, response in enumerate(item.responses)
    ]
    results = await judge.run(store, lambda client: grade(client, grader, outputs, "judge quality"))
    scored = []
    for item in items:
        answers = [results.documents.get(f"{item.id} answer {i}") for i in range(len(item.responses))]
        responses = tuple(map(_scored, item.responses, answers))
        scored.append(replace(item, responses=responses))
    return scored


def _scored(response: Response, answer: Mapping[str, Any] | None) -> Response:
    if answer is None:
        return replace(response, scores_N=(), refused=True)
    distributions = tuple(dict(each) for each in answer.get("distributions", ()))
    return replace(response, scores_N=tuple(answer["scores"]), refused=False, distributions_N=distributions)


async def compare_responses(
    judge: JudgeSpec, store: Path, prompt: LabelPrompt, items: Sequence[Item], chosen: Mapping[str, tuple[int, int]]
) -> Sequence[Item]:
    """``items`` with the judge's comparisons, in both orders, of the two responses that ``chosen`` names by item id.

    Raises `UserError` as `ask_labels` does.
    """
    by_id = {item.id: item for item in items}
    orders = {
        f"{name} {first} {second}": (by_id[name], first, second)
        for name, (one, other) in chosen.items()
        for first, second in ((one, other), (other, one))
    }
    queries = [
        Prompt(key, prompt.query(conversation(item.messages), item.responses[first].text, item.responses[second].text))
        for key, (item, first, second) in orders.items()
    ]
    results = await judge.run(store, lambda client: ask_labels(client, prompt, queries, "reference", {}))
    found: dict[str, list[Comparison]] = {}
    for key, (item, first, second) in orders.items():
        document = results.documents.get(key)
        share = None if document is None else document.get("first_share")
        verdict: Won | Tied | None = None
        if isinstance(share, float):
            verdict = Tied() if share == 0.5 else Won(first if share > 0.5 else second)
        found.setdefault(item.id, []).append(
            Comparison(first, second, verdict, share if isinstance(share, float) else None, document is None)
        )
    compared = []
    for item in items:
        new = found.get(item.id, [])
        known = [{each.first, each.second} for each in new]
        stored = [each for each in item.comparisons if {each.first, each.second} not in known]
        compared.append(replace(item, comparisons=(*new, *stored)))
    return compared


def pair_verdicts(items: Sequence[Item]) -> tuple[PairVerdicts, ...]:
    """The comparisons of each item's two responses, in the order in which they were made."""

    def winner(verdict: Won | Tied | None) -> Winner | None:
        if isinstance(verdict, Won):
            return 1 if verdict.winner == 0 else 2
        return None if verdict is None else 0

    def probability(each: Comparison) -> float | None:
        return each.first_share if each.first_share is None or each.first == 0 else 1 - each.first_share

    return tuple(
        PairVerdicts(
            item.id,
            tuple(winner(each.verdict) for each in item.comparisons),
            tuple(map(probability, item.comparisons)),
            any(each.refused for each in item.comparisons),
        )
        for item in items
    )


async def judged_by_prompt(
    judge: JudgeSpec, store: Path, prompt: LabelPrompt, pairs: Sequence[Pair], own: str | None
) -> JudgeTable:
    """The judge's own comparisons of each pair, in both orders, against the labels."""
    items = [pair.item for pair in pairs]
    compared = await compare_responses(judge, store, prompt, items, {item.id: (0, 1) for item in items})
    return pairs_table(pairs, {judge.name: pair_verdicts(compared)}, own)


async def judged_by_scores(
    judge: JudgeSpec | None, store: Path, grader: RubricGrader, pairs: Sequence[Pair], name: str, own: str | None
) -> JudgeTable:
    """The judge's scores of each pair against the labels: asked for, or as they are stored where no judge is named."""
    scored_pairs = _with_items(pairs, await score_responses(judge, store, grader, [pair.item for pair in pairs]))
    scored = all(each.scores_N or each.refused for pair in scored_pairs for each in pair.item.responses)
    return pairs_table(scored_pairs, {name: verdicts_from_scores(scored_pairs)} if scored else {}, own)


def _with_items(pairs: Sequence[Pair], items: Sequence[Item]) -> tuple[Pair, ...]:
    return tuple(replace(pair, item=item) for pair, item in zip(pairs, items, strict=True))


class JudgeQualityCommand(EvaluateCommand):
    """A judge's agreement with humans or labels, and its biases, beside the length-only judge and chance."""

    rankings: Path | None = Field(None, description="Responses that humans ranked; RewardBench 2.")
    pairs: Path | None = Field(None, description="Pairs with labels; a published set as it is.")
    sections: Path | None = Field(None, description="RewardBench's rows, with scores or winners.")
    records: Path | None = Field(None, description="A run's records.sqlite: its meta-judge.")
    verdicts: Path | None = Field(None, description="Judges' verdicts on the pairs.")
    protocol: str | None = Field(None, description="gpt4-chosen, self-chosen, human or meta-judge.")
    name: str = Field("judge", description="What the judge is called in the table.")
    own: str | None = Field(None, description="The generator whose outputs are the judge's own.")
    reference_engine: str | None = Field(None, description="The judge that says what is right.")
    prompt: Path | None = Field(None, description="A pairwise question, alpaca_eval_clf.txt.")
    plot: Path | None = Field(None, description="Write a reliability diagram there (.svg, .png).")
    cache: Path | None = Field(None, description="Stores what the judges answer.")
    rubric: str = Field("judge", description="Packaged rubric, .txt file, or criteria (.yaml).")
    min_score: float = Field(0.0, description="The rubric's lowest score, also of scores in the file.")
    max_score: float = Field(5.0, description="The highest.")
    judgments: int = Field(11, ge=1, description="Judgments of each answer.")
    max_tokens: int = Field(1024, ge=1, description="Longest judgment, in new tokens.")
    expected: bool = Field(False, description="Score by the probabilities of the score's tokens.")
    constrained: bool = Field(False, description="Draw scores from the rubric's values: always readable.")
    retries: int = Field(0, ge=0, description="How often an unreadable judgment is asked again.")

    async def evaluate(self, session: EvaluateSession) -> Evaluated:
        """The measures of the protocol, or all that fit the file."""
        table = await self.table(session)
        columns = judge_columns(table.kind, [figures for _, figures in table.rows])
        result = ResultTable(f"Judges: {table.kind}", columns, table.rows, table.notes, first="judge")
        if self.plot is not None:
            self._write_plot(self.plot, table)
        return Evaluated((result, *table.by_subset), {"benchmark": "judge_quality", **table.as_dict()})

    @staticmethod
    def _write_plot(path: Path, table: JudgeTable) -> None:
        found = {name: measures.get("calibration") for name, measures in table.rows}
        by_judge = {name: figures for name, figures in found.items() if isinstance(figures, Mapping)}
        if not by_judge:
            raise UserError("--plot: no judge gave probabilities; fix: give --pairs that a judge scored, or labelled")
        write_reliability_plot(path, by_judge)

    async def table(self, session: EvaluateSession) -> JudgeTable:
        """The rows. Raises `UserError` for options that don't fit together."""
        protocol = protocol_named(self.protocol)
        kind, path = self._measured_on(protocol)
        name = session.judge.name if session.judge else self.name
        # The paper's temperature and top-p.
        rules = VerdictRules(self.constrained, self.retries)
        rubric = Rubric.load(self.rubric, min_score=self.min_score, max_score=self.max_score)
        grader, scale = (
            RubricGrader(
                rubric, rubric.different(self.judgments), Sampling(0.8, 0.95, self.max_tokens), self.expected, rules
            ),
            (rubric.min_score, rubric.max_score),
        )
        if kind == "records":
            with RecordStore.read(path) as store:
                return meta_judge_table(list(read_records(store)), name)
        if kind == "sections":
            choices = read_choices(path)
            require_readable({name: sum(each.readable for each in choices)}, str(path), "score or winner")
            return sections_table(choices, name)
        if kind == "pairs":
            return await self._pairs(read_pairs(path, scale), session, grader, name, protocol)
        items: Sequence[Item] = read_rankings(path, scale)
        if session.judge is not None:
            items = await score_responses(session.judge, self._store(), grader, items)
        _require_scores(items, name, str(path))
        if protocol == "human":
            return protocol_table(protocol, human(items, name))
        if protocol == "self-chosen":
            chosen = {item.id: pair for item in items if (pair := chosen_by_judge(item)) is not None}
            return protocol_table(protocol, self_chosen(await self._compared(session, items, chosen), name))
        return rankings_table(items, name, grader.rubric.max_score)

    def _measured_on(self, protocol: ProtocolName | None) -> tuple[str, Path]:
        named = {"rankings": self.rankings, "pairs": self.pairs, "sections": self.sections, "records": self.records}
        given = [(kind, path) for kind, path in named.items() if path is not None]
        if len(given) != 1:
            raise UserError("give one of --rankings, --pairs, --sections and --records to measure the judge on")
        if self.verdicts is not None and given[0][0] != "pairs":
            raise UserError(f"--verdicts: are about --pairs, not --{given[0][0]}")
        if protocol is not None and _TAKES[protocol] != given[0][0]:
            raise UserError(f"--protocol {protocol}: takes --{_TAKES[protocol]}, not --{given[0][0]}")
        return given[0]

    async def _pairs(
        self,
        pairs: Sequence[Pair],
        session: EvaluateSession,
        grader: RubricGrader,
        name: str,
        protocol: ProtocolName | None,
    ) -> JudgeTable:
        judge = session.judge
        store = Path() if judge is None else self._store()
        if protocol == "gpt4-chosen":
            items = await score_responses(judge, store, grader, [pair.item for pair in pairs])
            pairs = _with_items(pairs, items)
            if self.reference_engine is not None:  # it labels the pairs where it says the same in both orders
                items = await self._compared(session, items, {item.id: (0, 1) for item in items})
                labels = [set(verdicts.winners) for verdicts in pair_verdicts(items)]
                pairs = [
                    replace(pair, label=winners.pop() if len(winners) == 1 else None)
                    for pair, winners in zip(_with_items(pairs, items), labels, strict=True)
                ]
            return protocol_table(protocol, gpt4_chosen(pairs, name))
        if all(pair.label is None for pair in pairs):
            raise UserError(f"{self.pairs}: no pair has a label; fix: add label, 1 or 2, to its rows")
        if self.verdicts is not None:
            verdicts = read_verdicts(self.verdicts)
            readable = {
                name: sum(each.winners != (None,) * len(each.winners) for each in those)
                for name, those in verdicts.items()
            }
            require_readable(readable, str(self.verdicts), "verdict")
            return pairs_table(pairs, verdicts, self.own)
        if judge is not None and self.prompt is not None:
            return await judged_by_prompt(judge, store, load_label_prompt(self.prompt), pairs, self.own)
        if judge is None:
            _require_scores([pair.item for pair in pairs], name, str(self.pairs))
        return await judged_by_scores(judge, store, grader, pairs, name, self.own)

    def _store(self, suffix: str = "") -> Path:
        if self.cache is None:
            raise UserError("--judge-engine: needs --cache, the file that stores what the judge answers")
        return self.cache.with_name(f"{self.cache.stem}{suffix}{self.cache.suffix or '.sqlite'}")

    async def _compared(
        self, session: EvaluateSession, items: Sequence[Item], chosen: Mapping[str, tuple[int, int]]
    ) -> Sequence[Item]:
        """The items with the reference judge's comparisons of the chosen pairs, or with those that are stored."""
        if self.reference_engine is None:
            return items
        if self.prompt is None:
            raise UserError("--reference-engine: needs --prompt, the pairwise question (alpaca_eval_clf.txt)")
        prompt, reference = load_label_prompt(self.prompt), session.judge_named(self.reference_engine)
        return await compare_responses(reference, self._store("-reference"), prompt, items, chosen)


def _require_scores(items: Sequence[Item], judge: str, source: str) -> None:
    """Raise `UserError` where there are scores, but none is readable."""
    scores = [score for item in items for response in item.responses for score in response.scores_N]
    if scores:
        require_readable({judge: sum(score is not None for score in scores)}, source, "score")


def protocol_named(name: str | None) -> ProtocolName | None:
    """The protocol of that name. Raises `UserError` naming those there are."""
    found: ProtocolName | None = next((each for each in get_args(ProtocolName) if each == name), None)
    if name is not None and found is None:
        raise UserError(f"--protocol {name}: no such protocol; there is {', '.join(get_args(ProtocolName))}")
    return found


class JudgeQuality(JudgedBenchmark):
    """Each model as a judge: of questions in a file, or of M0's and its own held-out answers by the oracle's word."""

    kind: Literal["judge_quality"] = Field("judge_quality", description="How well a model judges")
    questions: Text | None = Field(None, description="Rankings or pairs; empty: held-out answers, and an oracle")
    form: Literal["rankings", "pairs"] = Field("rankings", description="What the file of questions holds")

    title: ClassVar[str] = "Judge quality"
    command: ClassVar[type[EvaluateCommand]] = JudgeQualityCommand

    def mismatches(self, oracle: bool) -> Iterator[Mismatch]:
        """Also that somebody knows what is right."""
        yield from super().mismatches(oracle)
        if self.questions is None and not oracle:
            yield (
                "questions",
                None,
                "a file of rankings or pairs: only the pocket and constraint worlds know what is right",
            )
        if self.questions is None and self.judge != "itself":
            yield "judge", self.judge, "itself: on held-out prompts each model is measured as a judge"

    def files(self) -> Iterator[tuple[str, Callable[[Path], object]]]:
        """Questions and the judge's prompt."""
        reader: Callable[[Path], object] = read_pairs if self.form == "pairs" else read_rankings
        yield from ((name, read) for name, read in ((self.questions, reader), (self.prompt, load_label_prompt)) if name)

    @property
    def opponent(self) -> Opponent | None:
        """On held-out prompts M0, whose answers each model judged beside its own."""
        return "m0" if self.questions is None else None

    @property
    def stored_judgments(self) -> bool:
        """Each model judged its own held-out answers and M0's."""
        return self.questions is None and self.prompt is None and self.judge == "itself"

    def judge_completions(self, held_out: int, grader: RubricGrader) -> Completions | None:  # noqa: ARG002
        """N judgments of each response, or two comparisons of each pair."""
        if self.questions is None:
            return None
        path, itself = Path(self.questions), self.judge == "itself"
        if self.form == "pairs" and self.prompt is not None:
            return Completions(JUDGMENTS, len(read_pairs(path)) * 2, SAMPLING.max_tokens, itself, like_run=False)
        rankings = read_rankings(path) if self.form == "rankings" else [pair.item for pair in read_pairs(path)]
        return Completions(
            JUDGMENTS, sum(len(item.responses) for item in rankings) * grader.n, grader.most_tokens, itself
        )

    async def score(self, inputs: ScoringInputs) -> Results:
        """One table: the judge, the length-only judge and chance."""
        if self.questions is None:
            assert inputs.oracle is not None, "the recipe's check allows this only where there is an oracle"
            pairs = [
                pair for record in inputs.model.held_out() for pair in _held_out_pairs(record, inputs, inputs.oracle)
            ]
            own = inputs.model.name
            return [pairs_table(pairs, {own: verdicts_from_scores(pairs)}, own).as_dict()]
        assert inputs.judge is not None, "the recipe's check allows no oracle here"
        path, judge, store = Path(self.questions), inputs.judge, inputs.folder / "judge.sqlite"
        if self.form == "rankings":
            items = await score_responses(judge, store, inputs.grader, read_rankings(path))
            return [rankings_table(items, judge.name, inputs.grader.rubric.max_score).as_dict()]
        pairs, own = list(read_pairs(path)), inputs.model.name
        if self.prompt is not None:
            return [(await judged_by_prompt(judge, store, load_label_prompt(Path(self.prompt)), pairs, own)).as_dict()]
        return [(await judged_by_scores(judge, store, inputs.grader, pairs, judge.name, own)).as_dict()]

    def facts(self, inputs: ScoringInputs) -> dict[str, object]:
        """Who says what is right stands for whom the model is compared with."""
        return {**super().facts(inputs), "against": self.questions or "the oracle"}

    def heading(self, against: str | None) -> str:
        """What is judged, and who says what is right."""
        return f"judging {self.form if self.questions else 'pairs'}, what is right says {against}"

    def rows(self, results: Results) -> Sequence[tuple[str, Figures]]:
        """The model, then the two judges that it stands beside."""
        return [
            (f": {each['judge']}" if place else "", {"kind": table["kind"], **each})
            for table in results
            for place, each in enumerate(table["judges"])
        ]

    def columns(self, rows: Sequence[Figures]) -> tuple[Column, ...]:
        """Those that the kind of table has."""
        return judge_columns(str(rows[0]["kind"]), rows)


def _held_out_pairs(record: HeldOut, inputs: ScoringInputs, oracle: Oracle) -> list[Pair]:
    """M0's answer and M_t's, sample by sample, labelled by the oracle; the same text twice is no pair."""
    assert inputs.opponent is not None, "held-out answers stand beside M0's"
    pairs = []
    for number, (base, own) in enumerate(zip(record.anchors_K, record.own, strict=False)):
        if base.text == own.text:
            continue
        prompt = replace(record.prompt, id=f"{record.prompt.id} {number}")
        lead = oracle.answer_score(prompt, base.text) - oracle.answer_score(prompt, own.text)
        label: Winner = 0 if abs(lead) <= TOLERANCE else 1 if lead > 0 else 2
        responses = tuple(Response(each.text, None, stored_scores(each)) for each in (base, own))
        generators = (inputs.opponent.name, inputs.model.name)
        pairs.append(Pair(Item(prompt.id, prompt.messages, responses), label, "", generators))
    return pairs
