"""The pages, as HTML: run overview, list of prompts, one prompt, one text. The server and exports use them.

Every text of a model is escaped, its invisible characters made visible, and shown in an element whose direction is its
own. Long texts are cut, with a link to the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.resources import files
from typing import get_args
from urllib.parse import urlencode

from jinja2 import Environment
from markupsafe import Markup

from metareward.errors import UserError
from metareward.report.labels import drop_label
from metareward.report.prompt_trace import DisputeTrace, PromptTrace
from metareward.report.write import LONG_TEXT, html_environment
from metareward.types import DropReason, MetaJudgment, PreferencePair, Tied, Won
from metareward.viewer.diff import Part, word_diff
from metareward.viewer.runs import State, ViewedRun
from metareward.viewer.selection import SORTS, Selection, neighbours, select

_PAIR_FILTER = {"": "any", "yes": "built", "no": "dropped"}


@dataclass(frozen=True, slots=True)
class Span:
    """An interval and its centre as places on an axis, in percent; ``low`` and ``high`` are None without one."""

    at: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Cell:
    """One comparison in the heat map. ``look``: ``won``, ``lost``, ``tie`` or ``unread`` of the row's judgment, or
    ``none`` where the two weren't compared.
    """

    meta: MetaJudgment | None
    look: str
    flipped: bool


@dataclass(frozen=True, slots=True)
class PairDiff:
    """The texts of a pair in parts; None where they are too long to compare."""

    pair: PreferencePair
    parts: tuple[tuple[Part, ...], tuple[Part, ...]] | None


@dataclass(frozen=True, slots=True)
class Pages:
    """Makes pages of ``runs``. ``static``: for one file without a server, so there are no links to other pages."""

    runs: Sequence[ViewedRun]
    static: bool = False

    def render(self, template: str, **context: object) -> str:
        """A page of a template."""
        environment = _environment()
        shared = {"runs": self.runs, "static": self.static, "css": css() if self.static else "", "live": None}
        return environment.get_template(template).render({**shared, **context})

    def message(self, title: str, text: str) -> str:
        """A page with one line."""
        return self.render("message.html.j2", title=title, text=text)

    def overview(self) -> str:
        """Each run with its iterations and models."""
        shown = [(run, run.current_state(), *_results(run)) for run in self.runs]
        return self.render("overview.html.j2", shown=shown, live=version(self.runs), counts=_counts)

    def prompts(self, run: ViewedRun, selection: Selection) -> str:
        """A page of the list of an iteration's prompts."""
        state = run.current_state()
        found = select(run.index, selection)
        scale = run.recipe.judgments
        return self.render(
            "prompts.html.j2",
            run=run,
            state=state,
            selection=selection,
            found=found,
            scale=(scale.min_score, scale.max_score),
            place=partial(place, low=scale.min_score, high=scale.max_score),
            sorts={name: label for name, (label, _) in SORTS.items()},
            pairs=_PAIR_FILTER | {reason: drop_label(reason) for reason in get_args(DropReason)},
            problems=state.problems(selection.t),
            live=version([run]),
        )

    def prompt(self, run: ViewedRun, t: int, key: str, selection: Selection) -> str:
        """All that was generated for one prompt, and what became of it; why it can't be shown, if the list has it.

        Raises `UserError` for a prompt that the list doesn't have.
        """
        try:
            trace = run.trace(t, key)
            problem = no_record(run, t, key) if trace is None else ""
        except UserError as error:
            trace, problem = None, str(error)
        if problem and not _is_listed(run, t, key):
            raise UserError(problem)
        before, after = neighbours(run.index, selection, key)
        context = {} if trace is None else self.prompt_context(run, trace)
        shown = {"run": run, "t": t, "key": key, "problem": problem, "selection": selection, **context}
        return self.render("prompt.html.j2", **shown, before=before, after=after)

    def prompt_context(self, run: ViewedRun, trace: PromptTrace) -> dict[str, object]:
        """What the macros of a prompt need."""
        scale = run.recipe.judgments
        pairs = [each for each in (trace.actor, trace.judge) if isinstance(each, PreferencePair)]
        return {
            "run": run,
            "trace": trace,
            "diffs": {pair.kind: PairDiff(pair, word_diff(pair.chosen, pair.rejected)) for pair in pairs},
            "spans": answer_spans(trace, scale.min_score, scale.max_score),
            "ratings": rating_spans(trace.dispute) if trace.dispute else {},
            "heat": heat_map(trace.dispute) if trace.dispute else (),
            "level": partial(level, low=scale.min_score, high=scale.max_score),
        }

    def text(self, run: ViewedRun, t: int, key: str, what: str) -> str:
        """One whole text of a prompt: ``answer-3``, ``judgment-3-0`` or ``meta-2-5``."""
        trace = run.trace(t, key)
        found = dict(texts(trace)) if trace is not None else {}
        if what not in found:
            raise UserError(f"{key}: there is no text {what!r} in iteration {t}")
        return self.render(
            "text.html.j2", run=run, t=t, key=key, what=what, body=found[what], pieces=pieces(found[what])
        )


def warm_up() -> None:
    """Compile all templates and import what ratings need, so that the first page of a kind isn't slower than others."""
    import_module("scipy.special")
    environment = _environment()
    for name in environment.list_templates(extensions=["j2"]):
        environment.get_template(name)


def html(template: str) -> Markup:
    """A file of this package as it is."""
    return Markup(files("metareward.viewer").joinpath(template).read_text(encoding="utf-8"))


def css() -> Markup:
    """The report's style and what the viewer adds."""
    report = files("metareward.report").joinpath("page.css").read_text(encoding="utf-8")
    return Markup(report) + html("viewer.css")


@cache
def _environment() -> Environment:
    environment = html_environment("metareward.viewer")
    environment.globals.update(address=address, drop_label=drop_label, namespaced=namespaced)
    return environment


def address(path: str, **query: object) -> str:
    """A path with a query."""
    return f"{path}?{urlencode(query)}" if query else path


def namespaced(body: Markup, prefix: str) -> Markup:
    """A fragment of a page whose ids, and links to them, begin with ``prefix``; texts hold no bare quotes."""
    return Markup(str(body).replace(' id="', f' id="{prefix}').replace('href="#', f'href="#{prefix}'))


def version(runs: Sequence[ViewedRun]) -> str:
    """A text that changes whenever a page about ``runs`` does."""
    found = []
    for run in runs:
        done, total = run.current_state().progress
        found.append(f"{run.number}.{run.state.version}.{done}.{total}.{int(run.state.indexing)}")
    return " ".join(found)


def _results(run: ViewedRun) -> tuple[object, str | None]:
    """(facts, problem): what is known of a run's results, or why they can't be read."""
    try:
        return (run.facts() if run.state.recipe is not None else None), None
    except UserError as error:
        return None, str(error)


def _counts(run: ViewedRun, state: State) -> Iterator[tuple[int, dict[str, int]]]:
    """Prompts of each iteration by what is notable; ``built`` is 0 where the pair files can't be read."""
    unread = {each.name for each in state.sources if each.problem}
    query = (
        "SELECT COUNT(*) AS prompts, SUM(failed) AS failed, SUM(problem IS NOT NULL) AS problems,"
        " SUM(actor = 'paired') AS actor, SUM(judge = 'paired') AS judge, SUM(unreadable > 0) AS unreadable,"
        " SUM(flipped > 0) AS flipped, SUM(lost_best) AS lost, SUM(cut_off > 0) AS cut_off, SUM(actor IS NOT NULL)"
        " AS built FROM prompt WHERE t = ?"
    )
    for t in range(1, len(state.recipe.iterations) + 1 if state.recipe else 1):
        with closing(run.index.connect()) as connection:
            row = connection.execute(query, (t,)).fetchone()
        found = {name: row[name] or 0 for name in row.keys()}  # noqa: SIM118 (a row iterates over its values)
        yield t, found | ({"built": 0} if f"pairs {t}" in unread else {})


def no_record(run: ViewedRun, t: int, key: str) -> str:
    """Why a prompt can't be shown."""
    with closing(run.index.connect()) as connection:
        row = connection.execute("SELECT problem FROM prompt WHERE t = ? AND key = ?", (t, key)).fetchone()
    if row is not None and row["problem"]:
        return f"{key}: {row['problem']}"
    return f"{key}: there is no record of this prompt in iteration {t}"


def _is_listed(run: ViewedRun, t: int, key: str) -> bool:
    with closing(run.index.connect()) as connection:
        return bool(connection.execute("SELECT 1 FROM prompt WHERE t = ? AND key = ?", (t, key)).fetchone())


def place(value: float, low: float, high: float) -> float:
    """Where ``value`` is between ``low`` and ``high``, in percent."""
    return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2) if high > low else 50.0


def level(value: float, low: float, high: float) -> int:
    """The shade of a score, 0 to 5."""
    return round(place(value, low, high) / 20)


def answer_spans(trace: PromptTrace, low: float, high: float) -> dict[int, Span]:
    """The mean score of each answer with a 95 % interval (normal) where its standard error is known."""
    found = {}
    for answer in trace.answers:
        score = answer.score
        if score is None or not math.isfinite(score.mean):
            continue
        ends: tuple[float | None, float | None] = (None, None)
        if score.uncertainty is not None:
            half = 1.96 * score.uncertainty
            ends = place(score.mean - half, low, high), place(score.mean + half, low, high)
        found[answer.candidate.index] = Span(place(score.mean, low, high), *ends)
    return found


def rating_spans(dispute: DisputeTrace) -> dict[int, Span]:
    """The Elo rating of each judgment with its 95 % interval, on an axis that holds all that are finite."""
    known = [each for rated in dispute.rated for each in (rated.rating, rated.low, rated.high) if math.isfinite(each)]
    low, high = min(known, default=-1.0), max(known, default=1.0)
    return {
        rated.judgment.index: Span(
            place(rated.rating, low, high),
            *(place(end, low, high) if math.isfinite(end) else None for end in (rated.low, rated.high)),
        )
        for rated in dispute.rated
    }


def heat_map(dispute: DisputeTrace) -> tuple[tuple[int, tuple[Cell | None, ...]], ...]:
    """A row to each judgment, shown first; a column to each, shown second; None on the diagonal."""
    metas = {(m.first, m.second): m for b in dispute.battles for m in (b.as_first, b.as_second) if m is not None}
    flips = {(b.one, b.other) for b in dispute.battles if b.flips}
    indices = [rated.judgment.index for rated in dispute.rated]
    rows = []
    for first in indices:
        cells: list[Cell | None] = []
        for second in indices:
            flipped = (first, second) in flips or (second, first) in flips
            meta = metas.get((first, second))
            cells.append(None if first == second else Cell(meta, _look(meta, first), flipped))
        rows.append((first, tuple(cells)))
    return tuple(rows)


def _look(meta: MetaJudgment | None, first: int) -> str:
    if meta is None:
        return "none"
    match meta.verdict:
        case Won(winner):
            return "won" if winner == first else "lost"
        case Tied():
            return "tie"
        case _:
            return "unread"


def texts(trace: PromptTrace) -> Iterator[tuple[str, str]]:
    """Every text of a prompt under its name in the page."""
    for at, message in enumerate(trace.record.prompt.messages):
        yield f"message-{at}", message.content
    for answer in trace.record.candidates_K:
        yield f"answer-{answer.index}", answer.text
        yield f"reasoning-{answer.index}", answer.reasoning
        for judgment in answer.judgments_N:
            yield f"judgment-{answer.index}-{judgment.index}", judgment.text
            yield f"reasoning-{answer.index}-{judgment.index}", judgment.reasoning
    for meta in trace.record.dispute.meta if trace.record.dispute else ():
        yield f"meta-{meta.first}-{meta.second}", meta.text


def pieces(text: str) -> Iterator[str]:
    """A long text in pieces that a browser lays out fast, cut at line ends where there are any."""
    start = 0
    while start < len(text):
        end = start + LONG_TEXT
        line_end = text.rfind("\n", start, end)
        if end < len(text) and line_end > start:
            yield text[start:line_end]  # the piece's own end breaks the line
            start = line_end + 1
        else:
            yield text[start:end]
            start = end
