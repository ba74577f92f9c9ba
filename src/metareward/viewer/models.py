"""Models on the same prompts: all models of a run side by side on a held-out prompt, and two models, of one run or of
two, with their paired difference (`metareward.evaluation.comparison`) on held-out prompts or on those of an iteration.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal
from urllib.parse import parse_qsl, urlencode

from metareward.errors import UserError
from metareward.evaluation.comparison import ModelComparison, PromptScores, compare_models
from metareward.evaluation.held_out import HeldOut
from metareward.text import fold
from metareward.types import Candidate, Prompt
from metareward.viewer.diff import word_diff
from metareward.viewer.index import mean_score
from metareward.viewer.pages import Pages, address, level, version
from metareward.viewer.runs import ViewedRun
from metareward.viewer.selection import one_of, paginate, whole_number

Metric = Literal["truth", "score", "best", "chars", "unreadable", "anchor_score"]
METRICS: Mapping[Metric, str] = {
    "truth": "true score (oracle)",
    "score": "score by its own judge",
    "chars": "answer length, characters",
    "anchor_score": "score that it gives M0's answers",
}
PromptSet = Literal["held-out", "prompts"]


@dataclass(frozen=True, slots=True)
class Compared:
    """Prompts on which two are compared: a ``table`` of the index, and its metrics."""

    table: Literal["held_out", "prompt"]
    metrics: Mapping[Metric, str]


COMPARED: Mapping[PromptSet, Compared] = {
    "held-out": Compared("held_out", METRICS),
    "prompts": Compared(
        "prompt",
        {
            "truth": "mean true score of the answers (oracle)",
            "score": "mean score by its own judge",
            "best": "best answer's score by its own judge",
            "chars": "mean answer length, characters",
            "unreadable": "judgments without a score",
        },
    ),
}
_WHAT: Mapping[PromptSet, str] = {"held-out": "model with held-out records", "prompts": "iteration with records"}
Order = Literal["id", "change", "fall"]
ORDERS: Mapping[Order, str] = {"id": "prompt id", "change": "greatest rise first", "fall": "greatest fall first"}


@dataclass(frozen=True, slots=True)
class HeldOutQuery:
    """The query of the list of held-out prompts: those that contain ``q``, in an order; a page of them."""

    q: str = ""
    metric: Metric = "score"
    sort: Order = "id"
    page: int = 1

    @classmethod
    def parse(cls, query: str) -> HeldOutQuery:
        """Raises `UserError` for a value that doesn't fit."""
        given = dict(parse_qsl(query))
        metric = one_of("metric", given.get("metric", "score"), METRICS)
        sort = one_of("sort", given.get("sort", "id"), ORDERS)
        return cls(given.get("q", "").strip()[:1000], metric, sort, whole_number("page", given.get("page", "1")))

    def encode(self) -> str:
        """The query without the page."""
        return urlencode({"q": self.q, "metric": self.metric, "sort": self.sort})


@dataclass(frozen=True, slots=True)
class CompareQuery:
    """The query of the comparison: two models as (run, t), by default the first and the last; a page of prompts.

    ``on`` held-out prompts, or on the ``prompts`` of iterations: then (run, t) is iteration t, which M(t-1) annotated.
    ``metric``: by default the first that is known of both.
    """

    on: PromptSet = "held-out"
    a: tuple[int, int] | None = None
    b: tuple[int, int] | None = None
    metric: Metric | None = None
    sort: Order = "change"
    page: int = 1

    @classmethod
    def parse(cls, query: str) -> CompareQuery:
        """``a`` and ``b`` are ``RUN.T``, such as 0.4. Raises `UserError` for a value that doesn't fit."""
        given = dict(parse_qsl(query))
        on = one_of("on", given.get("on", "held-out"), COMPARED)
        metric = one_of("metric", given["metric"], COMPARED[on].metrics) if "metric" in given else None
        sort = one_of("sort", given.get("sort", "change"), ORDERS)
        a, b = (cls._model(name, given[name]) if name in given else None for name in ("a", "b"))
        return cls(on, a, b, metric, sort, whole_number("page", given.get("page", "1")))

    def encode(self) -> str:
        """The query without the page."""
        places = {name: _code(place) for name, place in (("a", self.a), ("b", self.b)) if place is not None}
        metric = {"metric": self.metric} if self.metric else {}
        return urlencode({"on": self.on, **places, **metric, "sort": self.sort})

    @staticmethod
    def _model(name: str, text: str) -> tuple[int, int]:
        run, _, t = text.partition(".")
        return whole_number(name, run), whole_number(name, t)


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model did on a held-out prompt; ``problem`` where its record can't be read."""

    name: str
    record: HeldOut | None
    problem: str | None

    @property
    def score(self) -> float | None:
        """The mean of all readable scores of its own answers."""
        return mean_score(self.record.own) if self.record else None


@dataclass(frozen=True, slots=True)
class Side:
    """One of two models on a prompt: its answers, or why they can't be shown.

    ``link``: the page with all of it. ``scale``: the lowest and the highest score of its judge.
    """

    name: str
    link: str
    prompt: Prompt | None
    answers: tuple[Candidate, ...]
    problem: str | None
    scale: tuple[float, float]

    def level(self, score: float) -> int:
        """The shade of a score."""
        return level(score, *self.scale)

    @property
    def score(self) -> float | None:
        """The mean of all readable scores of the answers."""
        return mean_score(self.answers)


@dataclass(frozen=True, slots=True)
class ModelPages:
    """The pages about models."""

    pages: Pages

    def listing(self, run: ViewedRun, query: HeldOutQuery) -> str:
        """Held-out prompts, with a metric of each model."""
        models = [t for _, t in models_of([run])]
        values = {t: _values(run, t, query.metric) for t in models}
        change = _differences(values[models[0]], values[models[-1]]) if len(models) > 1 else {}
        found = _search(run, query.q) if query.q else {key for each in values.values() for key in each}
        keys = _ordered(found, change, query.sort)
        shown, number, pages = paginate(keys, query.page)
        titles = _titles(run, shown)
        state = run.current_state()
        return self.pages.render(
            "held_out_list.html.j2",
            run=run,
            query=query,
            rows=[(key, titles.get(key, ""), [values[t].get(key) for t in models], change.get(key)) for key in shown],
            count=len(keys),
            pages=pages,
            number=number,
            models=models,
            metrics=METRICS,
            orders=ORDERS,
            problems=[each.problem for each in state.sources if each.problem and each.name.startswith("held-out")],
            live=version([run]),
        )

    def prompt(self, run: ViewedRun, key: str) -> str:
        """All models on one held-out prompt, side by side."""
        found = [Answers(f"M{t}", record, problem) for t, record, problem in run.held_out(key)]
        if not found:
            raise UserError(f"{key}: there is no record of this held-out prompt")
        with closing(run.index.connect()) as connection:
            query = "SELECT t, truth FROM held_out WHERE key = ? AND truth IS NOT NULL"
            truths = {f"M{t}": truth for t, truth in connection.execute(query, (key,))}
        first = next((each.record for each in found if each.record), None)
        scale = run.recipe.judgments
        return self.pages.render(
            "held_out.html.j2",
            run=run,
            key=key,
            found=found,
            truths=truths,
            messages=first.prompt.messages if first else (),
            level=partial(level, low=scale.min_score, high=scale.max_score),
        )

    def compare(self, query: CompareQuery) -> str:
        """Two models with their paired difference, and the prompts by difference."""
        on = COMPARED[query.on]
        places = models_of(self.pages.runs, on.table)
        if not places:
            return self.pages.render("compare.html.j2", query=query, places=(), other=0, problem=_nothing(query.on))
        a, b = self._chosen(query, places)
        metric = query.metric or _first_known([(self._run(place), place[1]) for place in (a, b)], on)
        values, other = self._same_prompts((a, b), metric, on.table)
        names = [_name(self.pages.runs, place, query.on) for place in (a, b)]
        found, problem = _comparison(names, values, metric, on.metrics[metric])
        change = _differences(*values)
        shown, number, pages = paginate(_ordered(change, change, query.sort), query.page)
        titles = _titles(self._run(a), shown, on.table)
        return self.pages.render(
            "compare.html.j2",
            rows=[(key, titles.get(key, ""), values[0][key], values[1][key], change[key]) for key in shown],
            query=replace(query, a=a, b=b, metric=metric),
            places=[(_code(place), _name(self.pages.runs, place, query.on)) for place in places],
            chosen=[_code(a), _code(b)],
            names=names,
            metric=metric,
            metrics=on.metrics,
            orders=ORDERS,
            found=found,
            problem=problem,
            other=other,
            number=number,
            pages=pages,
        )

    def _same_prompts(
        self, places: Sequence[tuple[int, int]], metric: Metric, table: str
    ) -> tuple[list[dict[str, float | None]], int]:
        """The metric of both by id, without the ids that are of different prompts; and how many those are."""
        first, second = (_digests(self._run(place), place[1], table) for place in places)
        other = {key for key, digest in first.items() if second.get(key, digest) != digest}
        values = (_values(self._run(place), place[1], metric, table) for place in places)
        return [{key: value for key, value in each.items() if key not in other} for each in values], len(other)

    def side_by_side(self, query: CompareQuery, key: str) -> str:
        """The answers of two models to one prompt, with the words that differ in the first or best ones."""
        a, b = self._chosen(query, models_of(self.pages.runs, COMPARED[query.on].table))
        sides = [self._side(place, query.on, key) for place in (a, b)]
        prompts = [each.prompt for each in sides if each.prompt]
        return self.pages.render(
            "side_by_side.html.j2",
            sides=sides,
            key=key,
            query=replace(query, a=a, b=b),
            parts_of=word_diff(*(each.answers[0].text if each.answers else "" for each in sides)),
            messages=prompts[0].messages if prompts else (),
            same=len({each.messages for each in prompts}) < 2,
        )

    def _side(self, place: tuple[int, int], on: PromptSet, key: str) -> Side:
        """The answers of one model; those to an iteration's prompt with the best mean score first."""
        run, t = self._run(place), place[1]
        name, none = _name(self.pages.runs, place, on), "there is no record of this prompt"
        scale = (run.recipe.judgments.min_score, run.recipe.judgments.max_score)
        if on == "held-out":
            link = address(f"/run/{run.number}/held-out/prompt", id=key)
            known = {number: (record, why) for number, record, why in run.held_out(key)}
            found, problem = known.get(t, (None, none))
            return Side(name, link, found.prompt if found else None, found.own if found else (), problem, scale)
        link = address(f"/run/{run.number}/prompt", t=t, id=key)
        try:
            record = run.record(t, key)
        except UserError as error:
            return Side(name, link, None, (), str(error), scale)
        if record is None:
            return Side(name, link, None, (), none, scale)
        scores = {each.index: mean_score((each,)) for each in record.candidates_K}
        best = sorted(record.candidates_K, key=lambda each: -math.inf if (s := scores[each.index]) is None else s)
        return Side(name, link, record.prompt, tuple(best[::-1]), None, scale)

    def _chosen(
        self, query: CompareQuery, places: Sequence[tuple[int, int]]
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        for place in (query.a, query.b):
            if place is not None and place not in places:
                raise UserError(f"{place[0]}.{place[1]}: there is no such {_WHAT[query.on]}; fix: choose one")
        if not places:
            raise UserError(_nothing(query.on))
        a = query.a or places[0]
        same = [place for place in places if place[1] == a[1] and place != a]  # the other run's iteration
        return a, query.b or (same[0] if query.on == "prompts" and same else places[-1])

    def _run(self, place: tuple[int, int]) -> ViewedRun:
        return self.pages.runs[place[0]]


def models_of(runs: Sequence[ViewedRun], table: str = "held_out") -> list[tuple[int, int]]:
    """(run, t) of what has readable records in a table of the index; ``run`` is its place in ``runs``."""
    query = f"SELECT DISTINCT t FROM {table} WHERE digest IS NOT NULL ORDER BY t"
    found = []
    for at, run in enumerate(runs):
        with closing(run.index.connect()) as connection:
            found += [(at, t) for (t,) in connection.execute(query)]
    return found


def _nothing(on: PromptSet) -> str:
    return f"There is no {_WHAT[on]} yet, so there is nothing to compare."


def _code(place: tuple[int, int]) -> str:
    return f"{place[0]}.{place[1]}"


def _name(runs: Sequence[ViewedRun], place: tuple[int, int], on: PromptSet) -> str:
    name = f"M{place[1]}" if on == "held-out" else f"M{place[1] - 1} in iteration {place[1]}"
    return f"{name} of {runs[place[0]].name}" if len(runs) > 1 else name


def _values(run: ViewedRun, t: int, metric: Metric, table: str = "held_out") -> dict[str, float | None]:
    """A metric of M_t by prompt, or of iteration ``t`` in the table ``prompt``; None where it is unknown."""
    query = f"SELECT key, {metric} FROM {table} WHERE t = ? AND digest IS NOT NULL"
    with closing(run.index.connect()) as connection:
        return dict(map(tuple, connection.execute(query, (t,))))


def _digests(run: ViewedRun, t: int, table: str) -> dict[str, str]:
    """What tells each prompt from others of the same id."""
    query = f"SELECT key, digest FROM {table} WHERE t = ? AND digest IS NOT NULL"
    with closing(run.index.connect()) as connection:
        return dict(map(tuple, connection.execute(query, (t,))))


def _known(values: Mapping[str, float | None]) -> bool:
    return any(value is not None for value in values.values())


def _first_known(sides: Sequence[tuple[ViewedRun, int]], on: Compared) -> Metric:
    """The first metric that is known of all (run, t)."""
    known = (each for each in on.metrics if all(_known(_values(run, t, each, on.table)) for run, t in sides))
    return next(known, "score")


def _differences(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> dict[str, float]:
    """After minus before, of the prompts of which both are known."""
    pairs = ((key, before.get(key), value) for key, value in after.items())
    return {key: new - old for key, old, new in pairs if old is not None and new is not None}


def _ordered(keys: Iterable[str], change: Mapping[str, float], order: Order) -> list[str]:
    """The prompts in an order; by change those without one come last."""
    if order == "id":
        return sorted(keys)
    sign = -1 if order == "change" else 1
    return sorted(keys, key=lambda key: (key not in change, sign * change.get(key, 0.0), key))


def _search(run: ViewedRun, text: str) -> list[str]:
    query = "SELECT DISTINCT key FROM held_out WHERE instr(folded, ?) > 0"
    with closing(run.index.connect()) as connection:
        return [key for (key,) in connection.execute(query, (fold(text).text,))]


def _titles(run: ViewedRun, keys: Sequence[str], table: str = "held_out") -> dict[str, str]:
    query = f"SELECT key, title FROM {table} WHERE title != '' AND key IN ({', '.join('?' * len(keys))})"
    with closing(run.index.connect()) as connection:
        return dict(map(tuple, connection.execute(query, keys)))


def _comparison(
    names: Sequence[str], values: Sequence[Mapping[str, float | None]], metric: Metric, words: str
) -> tuple[ModelComparison | None, str | None]:
    """The paired comparison, or why there is none."""
    if not all(map(_known, values)):
        return None, f"no {words} is known of one of the two models on these prompts"
    scores = [PromptScores(name, each, kind=metric) for name, each in zip(names, values, strict=True)]
    try:
        return compare_models([(names[0], scores[:1], names[1], scores[1:])])[0], None
    except (UserError, ValueError) as error:  # no prompt in common, or a damaged record's infinite score
        return None, str(error)
