"""Models on held-out prompts: all models of a run side by side on one prompt, and two models, of one run or of two,
with their paired difference (`metareward.evaluation.comparison`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, TypeVar
from urllib.parse import parse_qsl, urlencode

from metareward.errors import UserError
from metareward.evaluation.comparison import ModelComparison, PromptScores, compare_models
from metareward.evaluation.held_out import HeldOut
from metareward.method.scores import valid_scores
from metareward.text import fold, one_line
from metareward.viewer.diff import word_diff
from metareward.viewer.pages import Pages, mean_of, version
from metareward.viewer.runs import ViewedRun
from metareward.viewer.selection import PAGE

Figure = Literal["truth", "score", "chars", "anchor_score"]
FIGURES: Mapping[Figure, str] = {
    "truth": "true score (oracle)",
    "score": "score by its own judge",
    "chars": "answer length, characters",
    "anchor_score": "score that it gives M0's answers",
}
Name = TypeVar("Name", bound=str)
Order = Literal["id", "change", "fall"]
ORDERS: Mapping[Order, str] = {"id": "prompt id", "change": "greatest rise first", "fall": "greatest fall first"}


def _one_of(names: Mapping[Name, str], given: str | None) -> Name | None:
    return next((each for each in names if each == given), None)


def _number(given: Mapping[str, str], name: str, usual: int) -> int:
    text = given.get(name, "").strip()
    if not text:
        return usual
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise UserError(f"{name}: {one_line(text, 60)!r} is no number of a model or page; fix: give one")
    return int(text)


@dataclass(frozen=True, slots=True)
class Shown:
    """What the list of held-out prompts shows: those that contain ``q``, by ``sort``; a page of them."""

    q: str = ""
    figure: Figure = "score"
    sort: Order = "id"
    page: int = 1

    @classmethod
    def parse(cls, query: str) -> Shown:
        """Raises `UserError` for a value that doesn't fit."""
        given = dict(parse_qsl(query))
        figure = _one_of(FIGURES, given.get("figure")) or "score"
        sort = _one_of(ORDERS, given.get("sort")) or "id"
        return cls(given.get("q", "").strip()[:1000], figure, sort, max(1, _number(given, "page", 1)))

    def query(self, page: int) -> str:
        """The address of another page."""
        return urlencode({"q": self.q, "figure": self.figure, "sort": self.sort, "page": page})


@dataclass(frozen=True, slots=True)
class Compared:
    """Two models as (run, t), a figure, and a page of prompts; None: the first and the last model."""

    a: tuple[int, int] | None = None
    b: tuple[int, int] | None = None
    figure: Figure | None = None
    sort: Order = "change"
    page: int = 1

    @classmethod
    def parse(cls, query: str) -> Compared:
        """``a`` and ``b`` are ``RUN.T``, such as 0.4. Raises `UserError` for a value that doesn't fit."""
        given = dict(parse_qsl(query))
        figure = _one_of(FIGURES, given.get("figure"))
        sort = _one_of(ORDERS, given.get("sort")) or "change"
        a, b = (cls._model(given.get(name, "")) for name in ("a", "b"))
        return cls(a, b, figure, sort, max(1, _number(given, "page", 1)))

    @staticmethod
    def _model(text: str) -> tuple[int, int] | None:
        if not text:
            return None
        run, _, t = text.partition(".")
        return _number({"model": run}, "model", 0), _number({"model": t}, "model", 0)


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model did on a held-out prompt; ``problem`` where its record can't be read."""

    name: str
    record: HeldOut | None
    problem: str | None

    @property
    def score(self) -> float | None:
        """The mean of all readable scores of its own answers."""
        return mean_of(self.record.own) if self.record else None


@dataclass(frozen=True, slots=True)
class ModelPages:
    """The pages about models."""

    pages: Pages

    def listing(self, run: ViewedRun, shown: Shown) -> str:
        """Held-out prompts, with a figure of each model."""
        models = models_of([run])
        figures = _figures(run, [t for _, t in models], shown.figure)
        keys = _search(run, shown.q) if shown.q else sorted({key for each in figures.values() for key in each})
        change = _changes(figures, models)
        if shown.sort != "id":
            sign = -1 if shown.sort == "change" else 1
            keys = sorted((key for key in keys if key in change), key=lambda key: (sign * change[key], key))
        at = PAGE * (min(shown.page, max(1, -(-len(keys) // PAGE))) - 1)
        rows = [
            (key, _title(run, key), [figures[t].get(key) for _, t in models], change.get(key))
            for key in keys[at : at + PAGE]
        ]
        return self.pages.render(
            "held_out_list.html.j2",
            run=run,
            state=run.sources(),
            shown=shown,
            rows=rows,
            count=len(keys),
            pages=max(1, -(-len(keys) // PAGE)),
            number=at // PAGE + 1,
            models=models,
            figures=FIGURES,
            orders=ORDERS,
            problems=[p.problem for p in run.sources().sources if p.problem and p.name.startswith("held-out")],
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
            level=lambda score: round(5 * _share(score, scale.min_score, scale.max_score)),
            scores=valid_scores,
        )

    def compare(self, asked: Compared) -> str:
        """Two models with their paired difference, and the prompts by difference."""
        models = models_of(self.pages.runs)
        a, b = self._chosen(asked, models)
        known: list[Figure] = [each for each in FIGURES if asked.figure or _values(self._run(a), a[1], each)]
        figure = asked.figure or (known[0] if known else "score")
        values = [_values(self._run(place), place[1], figure) for place in (a, b)]
        names = [_name(self.pages.runs, place) for place in (a, b)]
        found, problem = _comparison(names, values, figure)
        common = [key for key in values[0] if values[1].get(key) is not None and values[0][key] is not None]
        differences = {key: (values[1][key] or 0.0) - (values[0][key] or 0.0) for key in common}
        sign = -1 if asked.sort == "change" else 1
        keys = sorted(common, key=lambda key: (sign * differences[key] if asked.sort != "id" else 0, key))
        at = PAGE * (min(asked.page, max(1, -(-len(keys) // PAGE))) - 1)
        context = {"rows": [(k, _title(self._run(a), k), values[0][k], values[1][k], differences[k]) for k in keys]}
        context["rows"] = context["rows"][at : at + PAGE]
        return self.pages.render(
            "compare.html.j2",
            **context,
            models=models,
            chosen=(a, b),
            names=names,
            figure=figure,
            figures=FIGURES,
            orders=ORDERS,
            sort=asked.sort,
            found=found,
            problem=problem,
            count=len(keys),
            number=at // PAGE + 1,
            pages=max(1, -(-len(keys) // PAGE)),
        )

    def side_by_side(self, a: tuple[int, int], b: tuple[int, int], key: str) -> str:
        """The first answers of two models to one held-out prompt, with the words that differ."""
        self._chosen(Compared(a, b), models_of(self.pages.runs))
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

    def _chosen(self, asked: Compared, places: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], tuple[int, int]]:
        for place in (asked.a, asked.b):
            if place is not None and place not in places:
                raise UserError(f"{place[0]}.{place[1]}: there is no such model with held-out records; fix: choose one")
        if not places:
            raise UserError("no model has been measured on held-out prompts yet, so there is nothing to compare")
        return asked.a or places[0], asked.b or places[-1]

    def _run(self, place: tuple[int, int]) -> ViewedRun:
        return self.pages.runs[place[0]]


def _share(score: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (score - low) / (high - low))) if high > low else 0.5


def models_of(runs: Sequence[ViewedRun]) -> list[tuple[int, int]]:
    """(run, t) of the models that have held-out records; ``run`` is its place in ``runs``."""
    found = []
    for at, run in enumerate(runs):
        with closing(run.index.connect()) as connection:
            found += [(at, t) for (t,) in connection.execute("SELECT DISTINCT t FROM held_out ORDER BY t")]
    return found


def _name(runs: Sequence[ViewedRun], place: tuple[int, int]) -> str:
    return f"M{place[1]} of {runs[place[0]].name}" if len(runs) > 1 else f"M{place[1]}"


def _values(run: ViewedRun, t: int, figure: Figure) -> dict[str, float | None]:
    """A figure by prompt; None where it is unknown, empty where it is unknown of every prompt."""
    query = f"SELECT key, {figure} FROM held_out WHERE t = ? ORDER BY key"
    with closing(run.index.connect()) as connection:
        found = {str(key): value for key, value in connection.execute(query, (t,))}
    return found if any(value is not None for value in found.values()) else {}


def _figures(run: ViewedRun, models: Sequence[int], figure: Figure) -> dict[int, dict[str, float | None]]:
    query = f"SELECT key, {figure} FROM held_out WHERE t = ? ORDER BY key"
    found = {}
    with closing(run.index.connect()) as connection:
        for t in models:
            found[t] = {str(key): value for key, value in connection.execute(query, (t,))}
    return found


def _changes(figures: Mapping[int, Mapping[str, float | None]], models: Sequence[tuple[int, int]]) -> dict[str, float]:
    """The last model's figure minus the first one's."""
    if len(models) < 2:
        return {}
    first, last = figures[models[0][1]], figures[models[-1][1]]
    pairs = ((key, first.get(key), value) for key, value in last.items())
    return {key: after - before for key, before, after in pairs if before is not None and after is not None}


def _search(run: ViewedRun, text: str) -> list[str]:
    query = "SELECT DISTINCT key FROM held_out WHERE instr(folded, ?) > 0 ORDER BY key"
    with closing(run.index.connect()) as connection:
        return [key for (key,) in connection.execute(query, (fold(text).text,))]


def _title(run: ViewedRun, key: str) -> str:
    query = "SELECT title FROM held_out WHERE key = ? AND title != '' LIMIT 1"
    with closing(run.index.connect()) as connection:
        row = connection.execute(query, (key,)).fetchone()
    return str(row["title"]) if row else ""


def _comparison(
    names: Sequence[str], values: Sequence[Mapping[str, float | None]], figure: Figure
) -> tuple[ModelComparison | None, str | None]:
    """The paired comparison, or why there is none."""
    if not values[0] or not values[1]:
        return None, f"no {FIGURES[figure]} is known of one of the two models"
    scores = [PromptScores(name, each, kind=figure) for name, each in zip(names, values, strict=True)]
    try:
        return compare_models([(names[0], scores[:1], names[1], scores[1:])])[0], None
    except UserError as error:
        return None, str(error)
