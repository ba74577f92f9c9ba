"""Models on held-out prompts: all models of a run side by side on one prompt, and two models, of one run or of two,
with their paired difference (`metareward.evaluation.comparison`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Literal
from urllib.parse import parse_qsl, urlencode

from metareward.errors import UserError
from metareward.evaluation.comparison import ModelComparison, PromptScores, compare_models
from metareward.evaluation.held_out import HeldOut
from metareward.text import fold
from metareward.viewer.diff import word_diff
from metareward.viewer.index import mean_score
from metareward.viewer.pages import Pages, level, version
from metareward.viewer.runs import ViewedRun
from metareward.viewer.selection import one_of, paginate, whole_number

Metric = Literal["truth", "score", "chars", "anchor_score"]
METRICS: Mapping[Metric, str] = {
    "truth": "true score (oracle)",
    "score": "score by its own judge",
    "chars": "answer length, characters",
    "anchor_score": "score that it gives M0's answers",
}
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

    ``metric``: by default the first that is known of model ``a``.
    """

    a: tuple[int, int] | None = None
    b: tuple[int, int] | None = None
    metric: Metric | None = None
    sort: Order = "change"
    page: int = 1

    @classmethod
    def parse(cls, query: str) -> CompareQuery:
        """``a`` and ``b`` are ``RUN.T``, such as 0.4. Raises `UserError` for a value that doesn't fit."""
        given = dict(parse_qsl(query))
        metric = one_of("metric", given["metric"], METRICS) if "metric" in given else None
        sort = one_of("sort", given.get("sort", "change"), ORDERS)
        a, b = (cls._model(name, given[name]) if name in given else None for name in ("a", "b"))
        return cls(a, b, metric, sort, whole_number("page", given.get("page", "1")))

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
        models = models_of(self.pages.runs)
        a, b = self._chosen(query, models)
        metric = query.metric or _first_known(self._run(a), a[1])
        values = [_values(self._run(place), place[1], metric) for place in (a, b)]
        names = [_name(self.pages.runs, place) for place in (a, b)]
        found, problem = _comparison(names, values, metric)
        change = _differences(*values)
        shown, number, pages = paginate(_ordered(change, change, query.sort), query.page)
        titles = _titles(self._run(a), shown)
        return self.pages.render(
            "compare.html.j2",
            rows=[(key, titles.get(key, ""), values[0][key], values[1][key], change[key]) for key in shown],
            models=models,
            chosen=(a, b),
            names=names,
            metric=metric,
            metrics=METRICS,
            orders=ORDERS,
            sort=query.sort,
            found=found,
            problem=problem,
            number=number,
            pages=pages,
        )

    def side_by_side(self, a: tuple[int, int], b: tuple[int, int], key: str) -> str:
        """The first answers of two models to one held-out prompt, with the words that differ."""
        self._chosen(CompareQuery(a, b), models_of(self.pages.runs))
        sides = []
        for place in (a, b):
            run = self._run(place)
            found = {t: (record, problem) for t, record, problem in run.held_out(key)}
            record, problem = found.get(place[1], (None, "there is no record of this prompt"))
            sides.append(Answers(_name(self.pages.runs, place), record, problem))
        whole = [each.record.own[0].text if each.record and each.record.own else "" for each in sides]
        prompts = [each.record.prompt for each in sides if each.record]
        return self.pages.render(
            "side_by_side.html.j2",
            sides=sides,
            key=key,
            chosen=(a, b),
            parts_of=word_diff(*whole),
            messages=prompts[0].messages if prompts else (),
            same=len(set(prompts)) < 2,
        )

    def _chosen(
        self, query: CompareQuery, places: Sequence[tuple[int, int]]
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        for place in (query.a, query.b):
            if place is not None and place not in places:
                raise UserError(f"{place[0]}.{place[1]}: there is no such model with held-out records; fix: choose one")
        if not places:
            raise UserError("no model has been measured on held-out prompts yet, so there is nothing to compare")
        return query.a or places[0], query.b or places[-1]

    def _run(self, place: tuple[int, int]) -> ViewedRun:
        return self.pages.runs[place[0]]


def models_of(runs: Sequence[ViewedRun]) -> list[tuple[int, int]]:
    """(run, t) of the models that have held-out records; ``run`` is its place in ``runs``."""
    found = []
    for at, run in enumerate(runs):
        with closing(run.index.connect()) as connection:
            found += [(at, t) for (t,) in connection.execute("SELECT DISTINCT t FROM held_out ORDER BY t")]
    return found


def _name(runs: Sequence[ViewedRun], place: tuple[int, int]) -> str:
    return f"M{place[1]} of {runs[place[0]].name}" if len(runs) > 1 else f"M{place[1]}"


def _values(run: ViewedRun, t: int, metric: Metric) -> dict[str, float | None]:
    """A metric of M_t by prompt; None where it is unknown."""
    with closing(run.index.connect()) as connection:
        return dict(map(tuple, connection.execute(f"SELECT key, {metric} FROM held_out WHERE t = ?", (t,))))


def _known(values: Mapping[str, float | None]) -> bool:
    return any(value is not None for value in values.values())


def _first_known(run: ViewedRun, t: int) -> Metric:
    return next((each for each in METRICS if _known(_values(run, t, each))), "score")


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


def _titles(run: ViewedRun, keys: Sequence[str]) -> dict[str, str]:
    query = f"SELECT key, title FROM held_out WHERE title != '' AND key IN ({', '.join('?' * len(keys))})"
    with closing(run.index.connect()) as connection:
        return dict(map(tuple, connection.execute(query, keys)))


def _comparison(
    names: Sequence[str], values: Sequence[Mapping[str, float | None]], metric: Metric
) -> tuple[ModelComparison | None, str | None]:
    """The paired comparison, or why there is none."""
    if not all(map(_known, values)):
        return None, f"no {METRICS[metric]} is known of one of the two models"
    scores = [PromptScores(name, each, kind=metric) for name, each in zip(names, values, strict=True)]
    try:
        return compare_models([(names[0], scores[:1], names[1], scores[1:])])[0], None
    except UserError as error:
        return None, str(error)
