"""The report's examples, drawn by the run's seed: the traces of a prompt of each kind of outcome, with two charts each,
and answers of the first and the last model to the same held-out prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup

from metareward.evaluation.held_out import DetailedOracle, HeldOut, Oracle, held_out_records
from metareward.evaluation.worlds import oracle_of
from metareward.report.facts import Run
from metareward.report.labels import characters, format_rating
from metareward.report.prompt_trace import DisputeTrace, Outcomes, PromptTrace, Side, read_outcomes, trace
from metareward.report.svg import AMBER, BLUE, CARD, INK, SOFT, drawing, ticks
from metareward.seeds import derive
from metareward.storage.records import find_record
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore
from metareward.types import PreferencePair

_COUNT, _ANSWERS = 3, 20
_LACKS = {  # what an oracle's details say of an answer if they don't hold
    "constraints_met": "misses a constraint",
    "guard_topic": "not on its topic",
    "guard_length": "too short",
    "guard_finished": "unfinished",
    "guard_no_loops": "repeats itself",
}
# (actor pair, judge pair) to title; the titles also seed the draw
_KINDS = {
    (True, True): "Both pairs",
    (True, False): "An actor pair only",
    (False, False): "No pair",
    (False, True): "A judge pair only",
}
_UNBUILT = "Pairs not built yet"
Place = tuple[int, str]
"""An iteration and a prompt id."""


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt trace with its title and charts; ``name`` is unique on the page."""

    name: str
    title: str
    trace: PromptTrace
    answers_svg: Markup | None
    ratings_svg: Markup | None


def examples(run: RunDir, facts: Run) -> tuple[Example, ...]:
    """Up to three prompts with different outcomes where the run has them; the same ones every time."""
    outcomes = {i.number: read_outcomes(run.iteration(i.number)) for i in facts.iterations if i.generated}
    drawn = islice(_draw(_pools(run, facts, outcomes), facts.recipe.seed), _COUNT)
    found = []
    for count, (title, number, key) in enumerate(drawn, start=1):
        with RecordStore.read(run.iteration(number).records) as store:
            record = find_record(store, key)
        assert record is not None, "the key was read from this store, and records are never deleted"
        prompt = trace(run, facts, number, record, outcomes[number])
        name = f"example-{count}"
        ratings = ratings_chart(prompt.dispute, name) if prompt.dispute else None
        found.append(Example(name, title, prompt, answers_chart(prompt, name), ratings))
    return tuple(found)


def _pools(run: RunDir, facts: Run, outcomes: Mapping[int, Outcomes | None]) -> dict[str, list[Place]]:
    """The prompts of each kind of outcome. Late iterations come first, but those without judge pairs last: there,
    'an actor pair only' says nothing."""
    pools: dict[str, list[Place]] = {title: [] for title in (*_KINDS.values(), _UNBUILT)}
    settings = facts.recipe.iterations
    for number in sorted(outcomes, key=lambda number: (not settings[number].judge_pairs, -number)):
        with RecordStore.read(run.iteration(number).records) as store:
            keys = sorted(store.keys())
        for key in keys:
            built = outcomes[number]
            title = _UNBUILT
            if built is not None:
                actor, judge = (isinstance(kind.get(key), PreferencePair) for kind in (built["actor"], built["judge"]))
                title = _KINDS[actor, judge]
            pools[title].append((number, key))
    return pools


def _draw(pools: Mapping[str, Sequence[Place]], seed: int) -> Iterator[tuple[str, int, str]]:
    """One prompt of each kind in turn, and again from the rest, each by its own derived seed."""
    left = {title: list(pool) for title, pool in pools.items()}
    while any(left.values()):
        for title, pool in left.items():
            if pool:
                first = [place for place in pool if place[0] == pool[0][0]]
                number, key = first[derive(seed, "worked example", title, len(pool)) % len(first)]
                pool.remove((number, key))
                yield title, number, key


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """An answer of ``model`` to a held-out prompt; ``remarks``: its true score and what it lacks, if that is known."""

    model: str
    text: str
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """The first answers of the first and the last evaluated model to one held-out prompt."""

    prompt: str
    before: ShownAnswer
    after: ShownAnswer


def answers_before_after(run: RunDir, facts: Run) -> tuple[BeforeAfter, ...]:
    """Up to 20 held-out prompts, drawn by the run's seed whatever the answers are; none before a second evaluation."""
    evaluated = [i.number for i in facts.iterations if i.evaluation is not None]
    stores = [run.iteration(number).evaluation / "records.sqlite" for number in (evaluated[:1] + evaluated[-1:])]
    if len(evaluated) < 2 or not all(store.is_file() for store in stores):
        return ()
    before, after = (_held_out(store) for store in stores)
    recipe, names = facts.recipe, [f"M{t}" for t in (evaluated[0], evaluated[-1])]
    oracle = oracle_of(recipe.prompts.source, recipe.judgments.min_score, recipe.judgments.max_score)
    both = sorted(before.keys() & after.keys(), key=lambda key: (derive(recipe.seed, "before and after", key), key))
    return tuple(
        BeforeAfter(
            before[key].prompt.messages[-1].content,
            *(_shown(name, of[key], oracle) for name, of in zip(names, (before, after), strict=True)),
        )
        for key in sorted(both[:_ANSWERS])
    )


def _held_out(path: Path) -> dict[str, HeldOut]:
    with RecordStore.read(path) as store:
        return {record.prompt.id: record for record in held_out_records(store) if record.own}


def _shown(model: str, record: HeldOut, oracle: Oracle | None) -> ShownAnswer:
    answer = record.own[0]
    remarks = [characters(answer.text)] + (["cut off"] if answer.finish == "length" else [])
    if oracle is not None:
        remarks.append(f"true score {oracle.answer_score(record.prompt, answer.text):.3g} of {oracle.full_score:g}")
    if isinstance(oracle, DetailedOracle):
        found = oracle.details(record.prompt, answer.text)
        remarks += [words for name, words in _LACKS.items() if not found.get(name, True)]
    return ShownAnswer(model, answer.text, tuple(remarks))


_COLOURS: dict[Side | None, str] = {"chosen": BLUE, "rejected": AMBER, None: SOFT}


def answers_chart(prompt: PromptTrace, name: str) -> Markup | None:
    """Each answer's length over its mean score, the two tiers shaded; None when no answer has a score."""
    scored = [(answer, answer.score) for answer in prompt.answers if answer.score is not None]
    if not scored or prompt.tiers is None:
        return None
    means = [score.mean for _, score in scored]
    points = (f"{a.candidate.index} {a.side or ''} at {score.mean:.2f}, {score.chars:.0f}" for a, score in scored)
    caption = "Characters of each answer by its mean score; the chosen and rejected tiers are shaded: answers "
    caption += "; ".join(points)
    with drawing(f"{name}-answers", caption, width=310, height=220, margins=(44, 14, 10, 36)) as chart:
        axes = chart.axes
        for low, high, colour in ((prompt.tiers.floor, max(means), BLUE), (min(means), prompt.tiers.ceiling, AMBER)):
            axes.axvspan(low, high, color=colour, alpha=0.13, linewidth=0, zorder=0)
            for edge in (low, high):
                axes.axvline(edge, color=colour, alpha=0.5, linewidth=0.8, zorder=0)
        text: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "color": INK, "fontsize": 10}
        for answer, score in scored:
            index, colour = answer.candidate.index, _COLOURS[answer.side]
            face = colour if answer.side else CARD
            at = (score.mean, score.chars)
            axes.plot(*at, "o", color=colour, markerfacecolor=face, markersize=8, markeredgewidth=1.4, zorder=3)
            below = answer.side == "chosen"  # chosen answers are short, so the labels of their neighbours are above
            label = f"{index} {answer.side}" if answer.side else str(index)
            axes.annotate(label, at, xytext=(0, -16 if below else 7), zorder=4, **text)
        axes.set(xlabel="mean score", ylabel="characters")
        axes.margins(0.14, 0.2)
        axes.yaxis.set_major_locator(ticks(4, integer=True))
        axes.xaxis.set_major_locator(ticks(6, steps=[1, 2, 5, 10]))
    return chart.svg


def ratings_chart(dispute: DisputeTrace, name: str) -> Markup:
    """Elo ratings with 95 % intervals, the best judgment on top."""
    ranked = dispute.ranked
    points = (f"judgment {each.judgment.index} {format_rating(each.rating)}" for each in ranked)
    caption = f"Elo rating of each judgment with its 95 % interval: {', '.join(points)}"
    with drawing(f"{name}-ratings", caption, 310, 44 + 24 * len(ranked), (44, 14, 6, 38)) as chart:
        for row, rated in enumerate(ranked):
            colour = _COLOURS[rated.side]
            if math.isfinite(rated.low) and math.isfinite(rated.high):
                chart.axes.plot([rated.low, rated.high], [row, row], color=colour, linewidth=2, alpha=0.6)
            chart.axes.plot(rated.rating, row, "o", color=colour, markersize=7)
        chart.axes.set_yticks(range(len(ranked)), [str(rated.judgment.index) for rated in ranked])
        chart.axes.set(ylim=(len(ranked) - 0.4, -0.6), xlabel="Elo rating", ylabel="judgment")
        chart.axes.grid(visible=False, axis="y")
        chart.axes.grid(visible=True, axis="x")
    return chart.svg
