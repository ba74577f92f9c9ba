"""The worked examples: a prompt of each kind of outcome, drawn by the run's seed so that nobody picks pretty ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from markupsafe import Markup

from metareward.records import from_json
from metareward.report.facts import Run
from metareward.report.lifecharts import answers_chart, ratings_chart
from metareward.report.lifefacts import Life
from metareward.report.outcomes import Outcomes, read_outcomes
from metareward.report.telling import tell
from metareward.rundir import RunDir
from metareward.seeds import derive
from metareward.store import RecordStore
from metareward.types import PreferencePair

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
