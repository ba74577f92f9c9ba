"""A prompt's life for the terminal: the outcome first, then the numbers, then every text that was written.

Model text never reaches the terminal as it is: control characters could drive it, so they are spelled out.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from metareward.report.lifefacts import AnswerLife, DisputeLife, Life
from metareward.report.outcomes import Outcome
from metareward.report.visible import visible
from metareward.report.wording import drop_words, reading_words, signed, verdict_words
from metareward.types import Dropped, MetaJudgment


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
        yield from _dispute(life.dispute)
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


def _dispute(dispute: DisputeLife) -> Iterator[RenderableType]:
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
