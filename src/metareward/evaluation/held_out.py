"""Evaluation of a model's three roles on held-out prompts, which are never trained on.

Each model answers and judges its own answers. To separate a better judge from easier answers, every model also judges
the same *anchors*: M0's answers, and it compares M0's judgments of them (Meta-Rewarding section 3.3 tests judges on
answers of the seed model). An oracle, if there is one, gives the true scores. Metrics have 95 % intervals, a bootstrap
over prompts; a metric with nothing to count is absent, never 0 or NaN.

Win rates compare two models' answers to the same prompts: an answer pair is a win, a draw (half a win) or a loss; pairs
with an unreadable score are excluded and counted. Also given: the win rate at equal lengths (`length_adjusted`, not
AlpacaEval's own regression) and the sign test on wins and losses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from pydantic import TypeAdapter, ValidationError

from metareward.engines.base import Engine, run_concurrently
from metareward.errors import UserError
from metareward.evaluation.alpaca_eval.data import Annotation
from metareward.evaluation.alpaca_eval.length_control import length_adjusted
from metareward.generation.annotate import (
    AnnotationSettings,
    annotate_prompt,
    judge_answer,
    meta_judge_pair,
)
from metareward.generation.progress import ANSWERS, JUDGMENTS, META, Progress
from metareward.generation.runner import RunnerResult, run_tasks
from metareward.method.paired import paired_difference
from metareward.method.scores import TOLERANCE, mean, valid_scores
from metareward.method.stats import Interval, mean_interval, spearman, spearman_of_samples
from metareward.seeds import derive
from metareward.storage.store import MEND, RecordStore
from metareward.types import Candidate, Judgment, MetaJudgment, Prompt, PromptRecord, Scored, Tied, Won


class Oracle(Protocol):
    """The true quality of answers and judgments, hidden from the model."""

    @property
    def full_score(self) -> float:
        """The true score of an answer that is right in every respect."""
        ...

    def answer_score(self, prompt: Prompt, answer: str) -> float:
        """The true score of an answer, on the rubric's scale."""
        ...

    def judgment_error(self, prompt: Prompt, answer: str, judgment: str, score: float) -> tuple[float, ...]:
        """How wrong a judgment is: smaller is better, equal is equally good."""
        ...


@runtime_checkable
class DetailedOracle(Oracle, Protocol):
    """An oracle that knows more of an answer than its score."""

    def details(self, prompt: Prompt, answer: str) -> Mapping[str, bool]:
        """What is true of an answer, by the name of a metric; a name may stand for some prompts only."""
        ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two of M0's judgments of its answer ``candidate``, compared in one order."""

    candidate: int
    meta: MetaJudgment


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What one model did on one held-out prompt.

    ``own`` are its answers with its judgments; ``anchors_K`` are M0's answers with this model's judgments;
    ``comparisons`` are this model's meta-judgments of M0's judgments.
    """

    prompt: Prompt
    own: tuple[Candidate, ...]
    anchors_K: tuple[Candidate, ...]
    comparisons: tuple[Comparison, ...]


_CODEC = TypeAdapter(HeldOut)
MAX_CONCURRENT_PROMPTS = 256  # held-out prompts have few requests each


async def evaluate(
    engine: Engine,
    prompts: Sequence[Prompt],
    settings: AnnotationSettings,
    meta_pairs: int,
    store: RecordStore,
    anchors: Mapping[str, HeldOut] | None,
    progress: Progress,
    max_concurrent_prompts: int = MAX_CONCURRENT_PROMPTS,
) -> RunnerResult:
    """Generate what the metrics need for every prompt that isn't in ``store``; ``anchors`` is None for M0 itself."""

    acting = replace(settings, meta_judge=False, seed=derive(settings.seed, "own"))
    judging = replace(settings, seed=derive(settings.seed, "anchors"))

    async def work(prompt: Prompt) -> str:
        own = _every_sample(await annotate_prompt(engine, prompt, acting, progress))
        given = anchors_K = own
        if anchors:
            given = anchors[prompt.id].own
            anchors_K = await judged_again(engine, prompt, given, judging, progress)
        comparisons = await compared(engine, prompt, given, meta_pairs, judging, progress)
        return held_out_to_json(HeldOut(prompt, own, anchors_K, comparisons))

    judged = settings.k * settings.n * (1 if anchors is None else 2)
    most = {ANSWERS: settings.k, JUDGMENTS: judged, META: 2 * meta_pairs}
    return await run_tasks(work, prompts, store, progress, "evaluating", most, max_concurrent_prompts)


def _every_sample(record: PromptRecord) -> tuple[Candidate, ...]:
    """All K sampled answers, repeats included: a mean over distinct answers would favour a low-entropy model."""
    by_index = {candidate.index: candidate for candidate in record.candidates_K}
    repeats = [replace(by_index[repeat.of], index=repeat.index) for repeat in record.duplicates]
    return tuple(sorted((*record.candidates_K, *repeats), key=lambda candidate: candidate.index))


async def judged_again(
    engine: Engine, prompt: Prompt, given: Sequence[Candidate], settings: AnnotationSettings, progress: Progress
) -> tuple[Candidate, ...]:
    """The ``given`` answers to a prompt with their judgments replaced by those of ``engine``."""
    judged = await run_concurrently(
        judge_answer(engine, prompt, answer.index, answer.text, settings, progress) for answer in given
    )
    return tuple(replace(answer, judgments_N=judgments_N) for answer, judgments_N in zip(given, judged, strict=True))


async def compared(
    engine: Engine,
    prompt: Prompt,
    given: Sequence[Candidate],
    count: int,
    settings: AnnotationSettings,
    progress: Progress,
) -> tuple[Comparison, ...]:
    """Both orders of ``count`` pairs of judgments of the ``given`` answers, compared by ``engine``."""

    async def compare(answer: Candidate, first: Judgment, second: Judgment) -> Comparison:
        # The answer's index is part of the seed, because judgments of different answers have the same indices.
        seeded = replace(settings, seed=derive(settings.seed, "compare", answer.index))
        meta = await meta_judge_pair(engine, prompt, answer.text, first, second, seeded, progress)
        return Comparison(answer.index, meta)

    pairs = _pairs_to_compare(given, count, derive(settings.seed, prompt.id, "pairs"))
    return tuple(await run_concurrently(compare(*pair) for pair in pairs))


def _pairs_to_compare(
    given: Sequence[Candidate], count: int, seed: int
) -> Iterator[tuple[Candidate, Judgment, Judgment]]:
    """Both orders of ``count`` pairs of readable judgments with different texts, drawn by ``seed``."""
    pairs = [
        (answer, first, second)
        for answer in given
        for position, first in enumerate(answer.judgments_N)
        for second in answer.judgments_N[position + 1 :]
        if isinstance(first.reading, Scored) and isinstance(second.reading, Scored) and first.text != second.text
    ]
    pairs.sort(key=lambda pair: derive(seed, pair[0].index, pair[1].index, pair[2].index))
    for answer, first, second in pairs[:count]:
        yield answer, first, second
        yield answer, second, first


def held_out_to_json(record: HeldOut) -> str:
    """A record as the store keeps it."""
    return _CODEC.dump_json(record).decode()


def held_out_from_json(text: str) -> HeldOut:
    """The record of `held_out_to_json`. Raises `UserError` naming the first field that doesn't fit."""
    try:
        return _CODEC.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"])) or "the document"
        raise UserError(f"record: field {field}: {first['msg']}; fix: in a run folder {MEND}") from None


def held_out_records(store: RecordStore) -> tuple[HeldOut, ...]:
    """The records of ``store``, ordered by prompt id. Raises `UserError` naming the file, the prompt and the field."""
    found = []
    for prompt_id, document in store.documents():
        try:
            found.append(held_out_from_json(document))
        except UserError as error:
            raise UserError(f"{store.path}: {prompt_id}: {error}") from None
    return tuple(found)


Rows = list[tuple[str, float]]  # (prompt id, value)
_DRAWS = 400
# Resampled rows that are in memory at once.
_MOST_CELLS = 1_000_000


def held_out_metrics(
    records: Sequence[HeldOut], anchors: Mapping[str, HeldOut], oracle: Oracle | None, seed: int
) -> dict[str, dict[str, float]]:
    """Every defined metric as ``{"mean", "low", "high", "n"}``; ``anchors`` are M0's records by prompt id."""
    columns = dict(_answer_metrics(records, oracle)) | dict(_metrics_without_oracle(records))
    if oracle is not None:
        columns |= dict(_metrics_by_oracle(records, anchors, oracle))
    found = {
        name: mean_interval([v for _, v in rows], [g for g, _ in rows], seed) for name, rows in columns.items() if rows
    }
    if oracle is not None:
        found |= _rank_correlations(records, oracle, seed)
    return {name: {"mean": i.mean, "low": i.low, "high": i.high, "n": i.n} for name, i in found.items()}


def held_out_differences(
    records: Sequence[HeldOut], first: Mapping[str, HeldOut], oracle: Oracle | None
) -> dict[str, dict[str, float]]:
    """What changed in the model's answers since M0 (``first``, by prompt id): of every metric of answers the mean
    difference on the same prompts as ``{"mean", "low", "high", "n"}``, a paired t interval over n prompts.
    """
    before = dict(_answer_metrics([first[record.prompt.id] for record in records], oracle))
    found = {}
    for name, rows in _answer_metrics(records, oracle):
        a, b = _prompt_means(before.get(name, [])), _prompt_means(rows)
        prompts = sorted(a.keys() & b.keys())
        if len(prompts) > 1:
            a_P, b_P = (np.array([[means[prompt] for prompt in prompts]]) for means in (a, b))
            paired = paired_difference(a_P, b_P)
            low, high = paired.low or 0.0, paired.high or 0.0  # of two prompts or more there is an interval
            found[name] = {"mean": paired.difference, "low": low, "high": high, "n": paired.n_prompts}
    return found


def answer_values(records: Sequence[HeldOut], oracle: Oracle | None) -> dict[str, dict[str, float]]:
    """Every metric of the model's answers by prompt id, the mean over a prompt's answers."""
    return {name: _prompt_means(rows) for name, rows in _answer_metrics(records, oracle) if rows}


def _prompt_means(rows: Rows) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for prompt, value in rows:
        values.setdefault(prompt, []).append(value)
    return {prompt: mean(those) for prompt, those in values.items()}


def score_histogram(records: Iterable[HeldOut]) -> dict[str, dict[str, int]]:
    """How often each score was given to the model's own answers and to the anchors."""
    own, anchor = Counter[str](), Counter[str]()
    for record in records:
        own.update(f"{score:g}" for answer in record.own for score in valid_scores(answer))
        anchor.update(f"{score:g}" for answer in record.anchors_K for score in valid_scores(answer))
    return {"own": dict(sorted(own.items())), "anchor": dict(sorted(anchor.items()))}


def _answer_metrics(records: Sequence[HeldOut], oracle: Oracle | None) -> Iterator[tuple[str, Rows]]:
    """The metrics of the model's own answers, whoever judges them."""
    own = [(record.prompt, answer) for record in records for answer in record.own]
    yield "answer_chars", [(prompt.id, float(len(answer.text))) for prompt, answer in own]
    yield "answer_truncated", [(prompt.id, float(answer.finish == "length")) for prompt, answer in own]
    if oracle is None:
        return
    quality = [(prompt.id, oracle.answer_score(prompt, answer.text)) for prompt, answer in own]
    yield "answer_quality", quality
    yield "answer_perfect", [(key, float(score >= oracle.full_score)) for key, score in quality]
    if isinstance(oracle, DetailedOracle):
        details: dict[str, Rows] = {}
        for prompt, answer in own:
            for name, holds in oracle.details(prompt, answer.text).items():
                details.setdefault(name, []).append((prompt.id, float(holds)))
        yield from details.items()


def _metrics_without_oracle(records: Sequence[HeldOut]) -> Iterator[tuple[str, Rows]]:
    """The metrics of judging and meta-judging that need no oracle."""
    own = [(record.prompt.id, answer) for record in records for answer in record.own]
    anchors = [(record.prompt.id, answer) for record in records for answer in record.anchors_K]
    judgments = [(key, judgment) for key, answer in anchors for judgment in answer.judgments_N]
    metas = [(record.prompt.id, each.meta) for record in records for each in record.comparisons]
    yield "answer_reward", [(key, answer.reward) for key, answer in own if answer.reward is not None]
    yield "answer_self_score", [(key, score) for key, answer in own for score in valid_scores(answer)]
    yield "anchor_score", [(key, score) for key, answer in anchors for score in valid_scores(answer)]
    yield "judgment_valid", [(key, float(isinstance(each.reading, Scored))) for key, each in judgments]
    yield "judgment_chars", [(key, float(len(each.text))) for key, each in judgments]
    yield "meta_valid", [(key, float(isinstance(meta.verdict, Won | Tied))) for key, meta in metas]
    won = [(key, meta, meta.verdict) for key, meta in metas]
    yield "meta_first_position", [(key, float(v.winner == meta.first)) for key, meta, v in won if isinstance(v, Won)]


def _metrics_by_oracle(
    records: Sequence[HeldOut], anchors: Mapping[str, HeldOut], oracle: Oracle
) -> Iterator[tuple[str, Rows]]:
    """Those of judging and meta-judging that need one."""
    judged = list(_judged_anchors(records, oracle))
    yield "judgment_exact", [(key, float(score == truth)) for key, score, truth in judged]
    yield "meta_accuracy", list(_meta_accuracy(records, anchors, oracle))


def _judged_anchors(records: Iterable[HeldOut], oracle: Oracle) -> Iterator[tuple[str, float, float]]:
    """(prompt id, score given, true score) of every readable judgment of an anchor."""
    for record in records:
        for answer in record.anchors_K:
            truth = oracle.answer_score(record.prompt, answer.text)
            for score in valid_scores(answer):
                yield record.prompt.id, score, truth


def _meta_accuracy(
    records: Iterable[HeldOut], anchors: Mapping[str, HeldOut], oracle: Oracle
) -> Iterator[tuple[str, float]]:
    """1 where the better judgment won, 1/2 for a tie, 0 else; pairs of equally good judgments are skipped."""

    def error(prompt: Prompt, answer: Candidate, judgment: Judgment) -> tuple[float, ...]:
        score = judgment.reading.score if isinstance(judgment.reading, Scored) else float("inf")
        return oracle.judgment_error(prompt, answer.text, judgment.text, score)

    for record in records:
        given = {answer.index: answer for answer in anchors[record.prompt.id].own}
        for each in record.comparisons:
            answer, verdict = given[each.candidate], each.meta.verdict
            judgments = {judgment.index: judgment for judgment in answer.judgments_N}
            places = (each.meta.first, each.meta.second)
            first, second = (error(record.prompt, answer, judgments[place]) for place in places)
            if first == second:
                continue
            if isinstance(verdict, Tied):
                yield record.prompt.id, 0.5
            elif isinstance(verdict, Won):
                yield record.prompt.id, float(verdict.winner == places[0 if first < second else 1])


def _rank_correlations(records: Sequence[HeldOut], oracle: Oracle, seed: int) -> dict[str, Interval]:
    """Spearman's correlation with the true scores over all anchors: of single judgments, and of means of N."""
    single = list(_judged_anchors(records, oracle))
    means = [
        (record.prompt.id, float(np.mean(valid_scores(answer))), oracle.answer_score(record.prompt, answer.text))
        for record in records
        for answer in record.anchors_K
        if valid_scores(answer)
    ]
    found = {
        "judgment_rank_correlation": _rank_correlation(single, seed),
        "judgment_mean_rank_correlation": _rank_correlation(means, seed),
    }
    return {name: interval for name, interval in found.items() if interval is not None}


def _rank_correlation(rows: Sequence[tuple[str, float, float]], seed: int) -> Interval | None:
    """Spearman over all rows, with a 95 % interval from resampling prompts; None if undefined."""
    given, truths = [score for _, score, _ in rows], [truth for _, _, truth in rows]
    whole = spearman(given, truths)
    if whole is None:
        return None
    numbers: dict[str, int] = {}  # of the prompts
    prompts_N = np.array([numbers.setdefault(prompt, len(numbers)) for prompt, _, _ in rows])
    generator, size, drawn = np.random.default_rng(seed), len(numbers), [np.array([whole])]
    # The whole is among them, so that there is an interval even if no resample has a correlation.
    for block in np.array_split(np.arange(_DRAWS), -(-_DRAWS * len(rows) // _MOST_CELLS)):
        times_BP = np.array([np.bincount(generator.integers(size, size=size), minlength=size) for _ in block])
        found_B = spearman_of_samples(given, truths, times_BP.astype(np.float64)[:, prompts_N])
        drawn.append(found_B[np.isfinite(found_B)])
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Interval(whole, min(whole, float(low)), max(whole, float(high)), len(rows))


# --- win rates ---


@dataclass(frozen=True, slots=True)
class WinRate:
    """A model's win rate ``against`` an earlier one by ``judge``, in percent with its 95 % interval.

    ``length_adjusted`` is the win rate at equal lengths, ``length_adjusted_error`` its standard error, and ``p_value``
    that of the two-sided sign test of equally likely wins and losses (None without either).
    """

    against: str
    judge: str
    win_rate: float
    low: float
    high: float
    length_adjusted: float | None
    length_adjusted_error: float | None
    wins: int
    losses: int
    draws: int
    left_out: int
    p_value: float | None


def held_out_win_rates(
    records: Sequence[HeldOut], earlier: Mapping[str, Sequence[HeldOut]], oracle: Oracle | None, seed: int
) -> tuple[WinRate, ...]:
    """A model's win rates: by its own judgments against M0, whose answers it judged too, and by the oracle, if there is
    one, against each of ``earlier`` (records by model name).
    """
    found = [win_rate_by("itself", records, seed)]
    if oracle is not None:

        def true_score(prompt: Prompt, answer: Candidate) -> float:
            return oracle.answer_score(prompt, answer.text)

        found += [_win_rate(name, "oracle", records, others, true_score, seed) for name, others in earlier.items()]
    return tuple(each for each in found if each is not None)


def win_rate_by(judge: str, records: Sequence[HeldOut], seed: int) -> WinRate | None:
    """A model's win rate against M0, by the judgments of both in ``records``; None without readable ones."""

    def own_mean(_: Prompt, answer: Candidate) -> float | None:
        scores = valid_scores(answer)
        return mean(scores) if scores else None

    others = [replace(record, own=record.anchors_K) for record in records]
    return _win_rate("M0", judge, records, others, own_mean, seed)


def _win_rate(
    against: str,
    judge: str,
    records: Sequence[HeldOut],
    others: Sequence[HeldOut],
    score: Callable[[Prompt, Candidate], float | None],
    seed: int,
) -> WinRate | None:
    """Over the answers of each prompt and sample index that both models have; None if no pair is readable."""
    from scipy.stats import binomtest  # scipy.stats takes half a second

    rows: list[Annotation] = []
    judged: list[tuple[str, float]] = []
    answered = {other.prompt.id: other.own for other in others}
    for number, record in enumerate(records):
        prompt = record.prompt
        # The models may have different numbers of samples; extra ones have no partner.
        for own, base in zip(record.own, answered.get(prompt.id, ()), strict=False):
            mine, theirs, share = score(prompt, own), score(prompt, base), None
            if mine is not None and theirs is not None:
                share = 0.5 if abs(mine - theirs) < TOLERANCE else float(mine > theirs)
                judged.append((prompt.id, share))
            rows.append(Annotation(number, share, len(base.text), len(own.text)))
    if not judged:
        return None
    shares = [share for _, share in judged]
    interval, adjusted = mean_interval(shares, [prompt for prompt, _ in judged], seed), length_adjusted(rows)
    wins, losses = shares.count(1.0), shares.count(0.0)
    return WinRate(
        against=against,
        judge=judge,
        win_rate=100 * interval.mean,
        low=100 * interval.low,
        high=100 * interval.high,
        length_adjusted=adjusted.win_rate if adjusted else None,
        length_adjusted_error=adjusted.standard_error if adjusted else None,
        wins=wins,
        losses=losses,
        draws=len(shares) - wins - losses,
        left_out=len(rows) - len(shares),
        p_value=float(binomtest(wins, wins + losses).pvalue) if wins + losses else None,
    )
