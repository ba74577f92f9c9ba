"""One prompt's life found in a run folder, and told as plain text."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import combinations, islice
from typing import TYPE_CHECKING

from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from metareward.config.schema import pairs_rules
from metareward.errors import UserError
from metareward.method.elo import PositionWeights, Ratings, battle_matrix, fit_elo, position_weights
from metareward.method.pairs import PairRules, iteration_weights, tiers
from metareward.method.scores import AnswerScore, answer_scores
from metareward.report.facts import (
    AnswerLife,
    Battle,
    DisputeLife,
    Life,
    Outcome,
    Outcomes,
    RatedJudgment,
    Run,
    Side,
    Tiers,
    read_outcomes,
)
from metareward.report.gather import gather
from metareward.report.labels import drop_words, reading_words, signed, verdict_words, visible
from metareward.report.svg import AMBER, BLUE, CARD, INK, SOFT, drawing, ticks
from metareward.seeds import derive
from metareward.storage.run_dir import IterationDir, RunDir
from metareward.storage.store import RecordStore, from_json
from metareward.types import Candidate, Dispute, Dropped, MetaJudgment, PreferencePair, PromptRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# --- Tells a prompt's life from its record: scores, tiers and ratings are computed again, by the run's own rules.
#
# Pairs and drop reasons are not: they are what the run wrote down when it built them.


def tell(facts: Run, folder: IterationDir, number: int, record: PromptRecord, outcomes: Outcomes | None) -> Life:
    """The life told by one record and by what the run recorded of its outcomes."""
    rules = pairs_rules(facts.recipe, number)
    actor = outcomes.actor.get(record.prompt.id) if outcomes else None
    judge = outcomes.judge.get(record.prompt.id) if outcomes else None
    scores = answer_scores(record, rules.min_valid)
    return Life(
        iteration=number,
        record=record,
        rules=rules,
        answers=tuple(_answer(record, candidate, scores, actor) for candidate in record.candidates_K),
        tiers=_tiers(scores, rules.rho),
        dispute=_dispute(facts, folder, number, record, rules, judge),
        built=outcomes is not None,
        actor=actor,
        judge=judge,
    )


def _tiers(scores: Sequence[AnswerScore], rho: float) -> Tiers | None:
    if not scores:
        return None
    best, worst = max(score.mean for score in scores), min(score.mean for score in scores)
    upper, lower = (frozenset(score.index for score in tier) for tier in tiers(scores, rho))
    return Tiers((1 - rho) * best + rho * worst, (1 - rho) * worst + rho * best, upper, lower)


def _answer(
    record: PromptRecord,
    candidate: Candidate,
    scores: Sequence[AnswerScore],
    actor: Outcome | None,
) -> AnswerLife:
    return AnswerLife(
        candidate=candidate,
        score=next((score for score in scores if score.index == candidate.index), None),
        repeats=tuple(duplicate.index for duplicate in record.duplicates if duplicate.of == candidate.index),
        side=_side(candidate.index, actor),
        disputed=record.dispute is not None and record.dispute.candidate == candidate.index,
    )


def _side(index: int, outcome: Outcome | None) -> Side | None:
    if not isinstance(outcome, PreferencePair):
        return None
    return {outcome.chosen_index: "chosen", outcome.rejected_index: "rejected"}.get(index)  # type: ignore[return-value]


def _dispute(
    facts: Run, folder: IterationDir, number: int, record: PromptRecord, rules: PairRules, judge: Outcome | None
) -> DisputeLife | None:
    dispute = record.dispute
    if dispute is None:
        return None
    weights = _weights(facts, folder, number, dispute, rules)
    battles_MM = battle_matrix(dispute, weights)
    ratings = fit_elo(battles_MM, rules.elo_prior)
    disputed = next(candidate for candidate in record.candidates_K if candidate.index == dispute.candidate)
    return DisputeLife(
        candidate=dispute.candidate,
        weights=weights,
        battles_MM=battles_MM,
        rated=tuple(_rated(disputed, dispute, ratings, judge)),
        battles=tuple(_battles(dispute)),
    )


def _weights(facts: Run, folder: IterationDir, number: int, dispute: Dispute, rules: PairRules) -> PositionWeights:
    """The weights the pairs were built with; before that, those of the records there are so far."""
    if rules.position_weights_scope == "answer":
        return position_weights(dispute.meta)
    summary = facts.iterations[number].summary
    if summary is not None and summary.weights is not None:
        return summary.weights
    with RecordStore.read(folder.records) as store:
        return iteration_weights(from_json(document) for _, document in store.documents())


def _rated(disputed: Candidate, dispute: Dispute, ratings: Ratings, judge: Outcome | None) -> Iterable[RatedJudgment]:
    by_index = {judgment.index: judgment for judgment in disputed.judgments_N}
    for place, index in enumerate(dispute.judgments_M):
        low, high = float(ratings.low_M[place]), float(ratings.high_M[place])
        yield RatedJudgment(by_index[index], float(ratings.values_M[place]), low, high, _side(index, judge))


def _battles(dispute: Dispute) -> Iterable[Battle]:
    shown = {(meta.first, meta.second): meta for meta in dispute.meta}
    for one, other in combinations(dispute.judgments_M, 2):
        yield Battle(one, other, shown.get((one, other)), shown.get((other, one)))


# --- A prompt's life for the terminal: the outcome first, then the numbers, then every text that was written.
#
# Model text never reaches the terminal as it is: control characters could drive it, so they are spelled out.


def told(life: Life) -> Group:
    """The whole life, to print with rich."""
    return Group(*_parts(life))


def _parts(life: Life) -> Iterator[RenderableType]:
    yield _plain(f"Prompt {life.record.prompt.id}, iteration {life.iteration}, written by {life.model}")
    for message in life.record.prompt.messages:
        yield from _quoted(message.role, message.content)
    yield _plain(f"Actor pair: {_outcome_words(life, life.actor)}")
    yield _plain(f"Judge pair: {_outcome_words(life, life.judge)}")
    yield from _answers(life)
    if life.dispute is None:
        yield _plain(f"No dispute: {_undisputed(life)}.")
    else:
        yield from _dispute_text(life.dispute)
    yield from _texts(life)


def _outcome_words(life: Life, outcome: Outcome | None) -> str:
    if outcome is None:
        return "none, not asked for in this iteration" if life.built else "pairs are not built yet"
    if isinstance(outcome, Dropped):
        return f"none, {drop_words(outcome.reason)} ({outcome.detail})"
    sides = f"{outcome.chosen_index} chosen over {outcome.rejected_index}"
    if outcome.kind == "actor":
        return f"answer {sides}, mean score {outcome.chosen_score:.2f} against {outcome.rejected_score:.2f}"
    elo = f"Elo {signed(outcome.chosen_score)} against {signed(outcome.rejected_score)}"
    return f"judgment {sides} of answer {outcome.candidate}, {elo}"


def _undisputed(life: Life) -> str:
    if life.rules.judge_pairs:
        return "no answer has judgments that differ"
    return "this iteration did not ask the meta-judge"


def _answers(life: Life) -> Iterator[RenderableType]:
    yield Rule("Answers, best score first", align="left")
    if life.tiers is not None:
        edges = f"upper tier {life.tiers.floor:.2f} or more, lower tier {life.tiers.ceiling:.2f} or less"
        yield _plain(f"Length control {life.rules.rho:g}: {edges}")
    table = _table("answer", "mean", "variance", "characters", "judgments", "")
    for answer in life.ranked:
        scores = " ".join(reading_words(judgment.reading) for judgment in answer.candidate.judgments_N)
        numbers = ("–", "–")
        if answer.score is not None:
            spread = answer.score.variance
            numbers = (f"{answer.score.mean:.2f}", "–" if spread is None else f"{spread:.2f}")
        chars = str(len(answer.candidate.text))
        table.add_row(str(answer.candidate.index), *numbers, chars, scores, ", ".join(_marks(life, answer)))
    yield table


def _marks(life: Life, answer: AnswerLife) -> Iterator[str]:
    index = answer.candidate.index
    if answer.side is not None:
        yield answer.side.upper()
    if life.tiers is not None:
        yield from (name for name, tier in (("upper", life.tiers.upper), ("lower", life.tiers.lower)) if index in tier)
    if answer.disputed:
        yield "disputed"
    if answer.candidate.finish == "length":
        yield "cut off"
    yield from (f"repeated as {index}" for index in answer.repeats)


def _dispute_text(dispute: DisputeLife) -> Iterator[RenderableType]:
    yield Rule(f"Judgments of answer {dispute.candidate} against each other", align="left")
    ratings = _table("judgment", "Elo", "95 % interval", "score", "")
    for rated in dispute.ranked:
        interval = f"{signed(rated.low)} to {signed(rated.high)}"
        score = reading_words(rated.judgment.reading)
        side = rated.side.upper() if rated.side else ""
        ratings.add_row(str(rated.judgment.index), signed(rated.rating), interval, score, side)
    yield ratings
    weights = f"first {dispute.weights.first:.2f}, second {dispute.weights.second:.2f}"
    yield _plain(f"Battle matrix: what the row won over the column; a win counts, shown {weights}")
    yield _matrix(dispute)
    yield from (_plain(f"  {battle.one} and {battle.other}: {battle.outcome}") for battle in dispute.battles)


def _matrix(dispute: DisputeLife) -> Table:
    indices = [str(rated.judgment.index) for rated in dispute.rated]
    table = _table("", *indices)
    for row, index in enumerate(indices):
        won = [f"{value:.2f}" for value in dispute.battles_MM[row]]
        table.add_row(index, *(value if column != row else "·" for column, value in enumerate(won)))
    return table


def _texts(life: Life) -> Iterator[RenderableType]:
    yield Rule("Every text", align="left")
    for answer in life.answers:
        yield from _quoted(f"answer {answer.candidate.index}", answer.candidate.text)
        for judgment in answer.candidate.judgments_N:
            name = f"judgment {judgment.index} of answer {answer.candidate.index}: {reading_words(judgment.reading)}"
            yield from _quoted(name, judgment.text)
    for battle in life.dispute.battles if life.dispute else ():
        for meta in (battle.as_first, battle.as_second):
            yield from _meta(meta) if meta is not None else ()


def _meta(meta: MetaJudgment) -> Iterator[RenderableType]:
    shown = f"judgment {meta.first} shown first, {meta.second} second: {verdict_words(meta.verdict)}"
    yield from _quoted(shown, meta.text)


def _quoted(name: str, text: str) -> Iterator[RenderableType]:
    yield _plain(f"[{name}]")
    yield Padding(_plain(text), (0, 0, 1, 2))


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        words = column in ("", "judgments")
        table.add_column(column, justify="left" if words else "right", no_wrap=not words)
    return table


def _plain(text: str) -> Text:
    """Text as it is, never read as markup."""
    return Text(visible(text))


def life_of(run: RunDir, prompt_id: str, iteration: int | None = None) -> Life:
    """The life of one prompt, in the one iteration that has it or in the one asked for.

    Raises `UserError` when there is no such prompt, naming the nearest ids.
    """
    facts = gather(run)
    numbers = [i.number for i in facts.iterations if i.generated and iteration in (None, i.number)]
    for number in numbers:
        folder = run.iteration(number)
        with RecordStore.read(folder.records) as store:
            document = store.get(prompt_id)
        if document is not None:
            return tell(facts, folder, number, from_json(document), read_outcomes(folder))
    raise UserError(_unknown(run, prompt_id, iteration, numbers))


def render_text(life: Life, width: int = 100) -> str:
    """The life as plain text, ``width`` columns wide; characters that a terminal would obey are spelled out."""
    buffer = StringIO()
    Console(file=buffer, width=width, color_system=None).print(told(life), highlight=False)
    return "\n".join(line.rstrip() for line in buffer.getvalue().split("\n"))


def _unknown(run: RunDir, prompt_id: str, iteration: int | None, numbers: Sequence[int]) -> str:
    """One line for a prompt that isn't there: it failed, or it is another's id, or nothing is generated at all."""
    where = f"iteration {iteration}" if iteration is not None else "any iteration"
    known: list[str] = []
    for number in numbers:
        with RecordStore.read(run.iteration(number).records) as store:
            failures = store.failures()
            known += store.keys()
        if prompt_id in failures:
            return (
                f"{run.path}: prompt {prompt_id!r} failed in iteration {number}: {failures[prompt_id]}; fix: run again"
            )
    near = difflib.get_close_matches(prompt_id, known, n=3) or sorted(known)[:3]
    hint = f"the nearest are {', '.join(map(repr, near))}" if near else "nothing is generated there yet"
    return f"{run.path}: no prompt {prompt_id!r} in {where}; {hint}"


# --- Two small pictures of one prompt's life: answers against the tiers, judgments against each other.


_COLOURS: dict[Side | None, str] = {"chosen": BLUE, "rejected": AMBER, None: SOFT}


def answers_chart(life: Life, name: str) -> Markup | None:
    """Each answer's length over its mean score, the two tiers shaded; None when no answer has a score."""
    scored = [answer for answer in life.answers if answer.score is not None]
    if not scored or life.tiers is None:
        return None
    caption = "Length of each answer by its mean score; the chosen and rejected tiers are shaded"
    with drawing(f"{name}-answers", caption, width=310, height=220, margins=(44, 14, 10, 36)) as chart:
        _shade(chart.axes, life.tiers, max(a.score.mean for a in scored if a.score), BLUE, upper=True)
        _shade(chart.axes, life.tiers, min(a.score.mean for a in scored if a.score), AMBER, upper=False)
        for answer in scored:
            _dot(chart.axes, answer)
        chart.axes.set_xlabel("mean score")
        chart.axes.set_ylabel("characters")
        chart.axes.margins(0.14, 0.2)
        chart.axes.yaxis.set_major_locator(ticks(4, integer=True))
        chart.axes.xaxis.set_major_locator(ticks(6, steps=[1, 2, 5, 10]))
    return chart.svg


def _shade(axes: Axes, tiers: Tiers, end: float, colour: str, upper: bool) -> None:
    edges = (tiers.floor, end) if upper else (end, tiers.ceiling)
    axes.axvspan(*edges, color=colour, alpha=0.13, linewidth=0, zorder=0)
    for edge in edges:
        axes.axvline(edge, color=colour, alpha=0.5, linewidth=0.8, zorder=0)


def _dot(axes: Axes, answer: AnswerLife) -> None:
    assert answer.score is not None
    colour = _COLOURS[answer.side]
    face = colour if answer.side else CARD
    at = (answer.score.mean, answer.score.chars)
    axes.plot(*at, "o", color=colour, markerfacecolor=face, markersize=8, markeredgewidth=1.4, zorder=3)
    label = f"{answer.candidate.index} {answer.side}" if answer.side else str(answer.candidate.index)
    below = answer.side == "chosen"  # chosen answers are short: their neighbours' numbers are above them
    lift = (0, -16 if below else 7)
    axes.annotate(label, at, xytext=lift, textcoords="offset points", ha="center", color=INK, fontsize=10, zorder=4)


def ratings_chart(dispute: DisputeLife, name: str) -> Markup:
    """Elo ratings with 95 % intervals, the best judgment on top."""
    ranked = dispute.ranked
    height = 44 + 24 * len(ranked)
    with drawing(
        f"{name}-ratings", "Elo rating of each judgment with its 95 % interval", 310, height, (44, 14, 6, 38)
    ) as chart:
        for row, rated in enumerate(ranked):
            colour = _COLOURS[rated.side]
            if math.isfinite(rated.low) and math.isfinite(rated.high):
                chart.axes.plot([rated.low, rated.high], [row, row], color=colour, linewidth=2, alpha=0.6)
            chart.axes.plot(rated.rating, row, "o", color=colour, markersize=7)
        chart.axes.set_yticks(range(len(ranked)), [str(rated.judgment.index) for rated in ranked])
        chart.axes.set_ylim(len(ranked) - 0.4, -0.6)
        chart.axes.set_xlabel("Elo rating")
        chart.axes.set_ylabel("judgment")
        chart.axes.grid(visible=False, axis="y")
        chart.axes.grid(visible=True, axis="x")
    return chart.svg


# --- The worked examples: a prompt of each kind of outcome, drawn by the run's seed so that nobody picks pretty ones.


_EXAMPLES = 3
_KINDS = {
    (True, True): "Both pairs",
    (True, False): "An actor pair only",
    (False, False): "No pair",
    (False, True): "A judge pair only",
}
_UNBUILT = "Pairs not built yet"


@dataclass(frozen=True, slots=True)
class Example:
    """A life with its title and pictures; ``name`` is unique on the page."""

    name: str
    title: str
    life: Life
    answers_svg: Markup | None
    ratings_svg: Markup | None


def examples(run: RunDir, facts: Run) -> tuple[Example, ...]:
    """Up to three lives, of different outcomes where the run has them; the same ones every time."""
    outcomes = {i.number: read_outcomes(run.iteration(i.number)) for i in facts.iterations if i.generated}
    pools = _pools(run, facts, outcomes)
    chosen = islice(_draw(pools, facts.recipe.seed), _EXAMPLES)
    return tuple(
        _example(f"example-{place}", title, _life(run, facts, outcomes, number, key))
        for place, (title, number, key) in enumerate(chosen, start=1)
    )


Place = tuple[int, str]


def _pools(run: RunDir, facts: Run, outcomes: Mapping[int, Outcomes | None]) -> dict[str, list[Place]]:
    """Where to find each kind of outcome. Late iterations come first, but those without judge pairs last: there,
    'an actor pair only' says nothing."""
    pools: dict[str, list[Place]] = {title: [] for title in (*_KINDS.values(), _UNBUILT)}
    judged = facts.recipe.iterations
    for number in sorted(outcomes, key=lambda number: (not judged[number].judge_pairs, -number)):
        with RecordStore.read(run.iteration(number).records) as store:
            keys = sorted(store.keys())
        for key in keys:
            pools[_title(key, outcomes[number])].append((number, key))
    return pools


def _title(key: str, outcomes: Outcomes | None) -> str:
    if outcomes is None:
        return _UNBUILT
    actor, judge = (isinstance(kind.get(key), PreferencePair) for kind in (outcomes.actor, outcomes.judge))
    return _KINDS[actor, judge]


def _draw(pools: Mapping[str, Sequence[Place]], seed: int) -> Iterator[tuple[str, int, str]]:
    """One of each kind in turn, and again from what is left, each by its own derived seed."""
    left = {title: list(pool) for title, pool in pools.items()}
    while any(left.values()):
        for title, pool in left.items():
            if pool:
                first = [place for place in pool if place[0] == pool[0][0]]
                number, key = first[derive(seed, "worked example", title, len(pool)) % len(first)]
                pool.remove((number, key))
                yield title, number, key


def _life(run: RunDir, facts: Run, outcomes: Mapping[int, Outcomes | None], number: int, key: str) -> Life:
    folder = run.iteration(number)
    with RecordStore.read(folder.records) as store:
        document = store.get(key)
    assert document is not None, "the key was read from this store, and records are never deleted"
    return tell(facts, folder, number, from_json(document), outcomes[number])


def _example(name: str, title: str, life: Life) -> Example:
    ratings = ratings_chart(life.dispute, name) if life.dispute else None
    return Example(name, title, life, answers_chart(life, name), ratings)
