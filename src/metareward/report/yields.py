"""What became of an iteration's prompts: stacked bars of pairs made and of the reasons why there was none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from metareward.report.facts import PairSummary
from metareward.report.wording import drop_words

_KINDS = (("actor", "Actor pairs"), ("judge", "Judge pairs"))
_SHADES = 6


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a bar. ``shade`` 0 is a pair; every reason keeps its shade through all bars."""

    words: str
    count: int
    percent: float
    shade: int


@dataclass(frozen=True, slots=True)
class Bar:
    """One kind of pair in one iteration; its segments add up to all prompts."""

    iteration: int
    label: str
    made: int
    prompts: int
    segments: tuple[Segment, ...]


def bars(summaries: Sequence[PairSummary]) -> tuple[Bar, ...]:
    """Two bars an iteration; none for judge pairs where none were asked for."""
    shades = _shades(summaries)
    return tuple(bar for summary in summaries for bar in _bars(summary, shades))


def _bars(summary: PairSummary, shades: dict[str, int]) -> Iterator[Bar]:
    for kind, label in _KINDS:
        made = summary.actor_pairs if kind == "actor" else summary.judge_pairs
        dropped = summary.dropped.get(kind, {})
        if made or dropped:
            segments = tuple(_segments(made, dropped, summary.prompts, shades))
            yield Bar(summary.iteration, label, made, summary.prompts, segments)


def _segments(made: int, dropped: Mapping[str, int], prompts: int, shades: dict[str, int]) -> Iterator[Segment]:
    counts = Counter(dropped)
    total = max(prompts, made + counts.total(), 1)
    yield Segment("pair", made, 100 * made / total, 0)
    for reason in sorted(counts, key=lambda reason: shades[reason]):
        yield Segment(drop_words(reason), counts[reason], 100 * counts[reason] / total, shades[reason])
    lost = total - made - counts.total()
    if lost:
        yield Segment("prompt failed", lost, 100 * lost / total, _SHADES)


def _shades(summaries: Sequence[PairSummary]) -> dict[str, int]:
    """The commonest reasons get a shade of their own, the rest share the last."""
    totals: Counter[str] = Counter()
    for summary in summaries:
        for reasons in summary.dropped.values():
            totals.update(reasons)
    ordered = sorted(totals, key=lambda reason: (-totals[reason], reason))
    return {reason: min(place, _SHADES) for place, reason in enumerate(ordered, start=1)}
