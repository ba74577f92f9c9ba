"""A check of a judge on labelled pairs, before anything is spent: does it see more than an answer's length?

The pairs are length-balanced: the better answer is the longer as often as the shorter, so a judge by length alone is
right in half of them, by construction. A judge beats length alone if the 95 % interval of its share of right pairs
lies above one half. Pairs in which an answer has no readable score show nothing about it: they are left out, counted,
and the rest is balanced again.

The package's own pairs (``check_pairs.jsonl``) were written for it and have its licence, Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from itertools import permutations
from pathlib import Path

from metareward.errors import UserError
from metareward.evaluation.held_out import Oracle
from metareward.evaluation.judge_quality.data import Item, Pair, PairVerdicts, Response, Winner, read_pairs
from metareward.evaluation.judge_quality.pairs import JudgedPair, credit, judged_pairs, verdicts_by_length
from metareward.evaluation.judge_quality.rankings import CHANCE
from metareward.method.gates import show_range, show_value
from metareward.method.judge_health import Figure, share
from metareward.method.scores import TOLERANCE
from metareward.seeds import derive
from metareward.types import PromptRecord

FEWEST_PAIRS = 10  # from so many on, a judge can be said to beat length alone
_READABLE, _TIED = 0.9, 0.3  # fewer readable judgments, or more ties, are named
_PACKAGED = files("metareward.evaluation.judge_quality").joinpath("check_pairs.jsonl")


@dataclass(frozen=True, slots=True)
class PairFigures:
    """What a judge says of labelled pairs; a tie is half right. None where nothing can be counted.

    ``right_if_longer``: where the better answer is the longer; ``right_if_shorter``: where label and length disagree.
    ``prefers_longer``: of the pairs that it decides.
    """

    right: Figure | None
    right_if_longer: Figure | None
    right_if_shorter: Figure | None
    ties: Figure | None
    prefers_longer: Figure | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a check asked: judgments and all completions, with the tokens and seconds that they took."""

    judgments: int
    completions: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class JudgeCheck:
    """A judge on ``n_pairs`` pairs of ``source``, beside two judges by length and one by chance.

    ``readable``: the share of its judgments with a score; None for a reward. ``first_position`` and
    ``position_flips`` are the meta-judge's, None without one. ``advice``: what to do, one piece a line.
    """

    source: str
    n_pairs: int
    judge: PairFigures
    longer: PairFigures
    shorter: PairFigures
    chance: PairFigures
    readable: Figure | None
    readable_verdicts: Figure | None
    first_position: Figure | None
    position_flips: Figure | None
    asked: Asked
    advice: tuple[str, ...] = ()

    @property
    def beats_length(self) -> bool:
        """Whether the judge is shown to be better than length alone."""
        right = self.judge.right
        return right is not None and right.n >= FEWEST_PAIRS and right.low > 0.5

    @property
    def rows(self) -> tuple[tuple[str, PairFigures], ...]:
        """The judge and those it stands beside, by name."""
        others = (("longer wins", self.longer), ("shorter wins", self.shorter), (CHANCE, self.chance))
        return (("judge", self.judge), *others)

    @property
    def finding(self) -> str:
        """What was found, in a plain sentence or two."""
        right = self.judge.right
        if not self.n_pairs:
            return "No pair could be made: the answers differ too little in truth or length, so nothing is known."
        if right is None:
            return "No two answers of a pair have readable scores, so nothing is known of the judge."
        share = f"it is right on {_shown(right)} of {right.n} pairs, length alone on half of them"
        if self.beats_length:
            return f"The judge sees more than length: {share}."
        if right.n < FEWEST_PAIRS:
            return f"Too few pairs to say anything of the judge: {share}."
        longer = self.judge.prefers_longer
        follows = ""
        if longer is not None and (longer.low > 0.5 or longer.high < 0.5):
            side = "longer" if longer.low > 0.5 else "shorter"
            part = longer if side == "longer" else _mirrored(longer)
            follows = f" It prefers the {side} answer on {_shown(part)}."
        return f"The judge isn't shown to beat length alone: {share}.{follows}"


def _shown(figure: Figure) -> str:
    return f"{show_value('share', figure.value)} ({show_range('share', figure.low, figure.high)})"


def _mirrored(figure: Figure) -> Figure:
    return replace(figure, value=1 - figure.value, low=1 - figure.high, high=1 - figure.low)


# --- the pairs ---


def packaged_pairs() -> tuple[Pair, ...]:
    """The package's own 48 pairs on everyday questions, length-balanced."""
    with as_file(_PACKAGED) as path:
        return read_pairs(path)


def pairs_to_check(path: Path, count: int, seed: int) -> tuple[Pair, ...]:
    """At most ``count`` length-balanced pairs of a file (`read_pairs`), drawn by ``seed``.

    Raises `UserError` for a file without a pair whose better answer is the longer, or without one where it is shorter.
    """
    labelled = [pair for pair in read_pairs(path) if pair.label]
    found = balanced(labelled, count, seed)
    if not found:
        longer = sum(_better_by(pair) > 0 for pair in labelled)
        raise UserError(
            f"{path}: of {len(labelled)} labelled pairs the better answer is the longer in {longer}, so length and "
            "quality can't be told apart; fix: add pairs where it is the other way round"
        )
    return found


def oracle_pairs(records: Sequence[PromptRecord], oracle: Oracle, count: int, seed: int) -> tuple[Pair, ...]:
    """At most ``count`` length-balanced pairs of a model's answers, labelled by ``oracle``.

    A prompt gives at most one pair whose better answer is the longer, and one where it is the shorter: those whose
    true scores differ most. Answers that were cut off are in none.
    """
    return balanced([pair for record in records for pair in _oracle_pairs(record, oracle)], count, seed)


def _oracle_pairs(record: PromptRecord, oracle: Oracle) -> Iterator[Pair]:
    answers = [
        (oracle.answer_score(record.prompt, each.text), each)
        for each in record.candidates_K
        if each.finish == "stop" and each.text.strip()
    ]
    for side, sign in (("longer", 1), ("shorter", -1)):
        apart = [
            (better[0] - worse[0], better[1], worse[1])
            for better, worse in permutations(answers, 2)
            if better[0] - worse[0] > TOLERANCE and sign * (len(better[1].text) - len(worse[1].text)) > 0
        ]
        if apart:
            _, better, worse = max(apart, key=lambda each: each[0])
            label: Winner = 1 if better.index < worse.index else 2
            both = sorted((better, worse), key=lambda each: each.index)
            responses = tuple(Response(each.text) for each in both)
            yield Pair(Item(f"{record.prompt.id} {side}", record.prompt.messages, responses), label, side, None)


def _better_by(pair: Pair) -> int:
    """By how many characters the better answer is longer; negative if it is shorter."""
    one, other = pair.chars
    return one - other if pair.label == 1 else other - one


def balanced(pairs: Sequence[Pair], count: int, seed: int) -> tuple[Pair, ...]:
    """At most ``count`` of the labelled ``pairs``, drawn by ``seed``: as many whose better answer is the longer as ones
    where it is the shorter, and pairs of equal lengths if there is room.
    """
    drawn = sorted((pair for pair in pairs if pair.label), key=lambda pair: derive(seed, "check pairs", pair.item.id))
    sides: dict[int, list[Pair]] = {1: [], -1: [], 0: []}
    for pair in drawn:
        excess = _better_by(pair)
        sides[(excess > 0) - (excess < 0)].append(pair)
    each = min(len(sides[1]), len(sides[-1]), count // 2)
    chosen = [*sides[1][:each], *sides[-1][:each], *sides[0][: count - 2 * each]]
    places = {pair.item.id: place for place, pair in enumerate(pairs)}
    return tuple(sorted(chosen, key=lambda pair: places[pair.item.id]))


# --- the figures ---


def pair_figures(pairs: Sequence[Pair], verdicts: Sequence[PairVerdicts], seed: int) -> PairFigures:
    """The figures of a judge's verdicts in one order, on the pairs with a readable one, balanced again."""
    readable = {each.id for each in verdicts if each.winners[0] is not None}
    those = balanced([pair for pair in pairs if pair.item.id in readable], len(pairs), seed)
    judged = judged_pairs(those, [each for each in verdicts if each.id in {pair.item.id for pair in those}])
    asked = {pair.item.id: str(pair.item.messages) for pair in those}
    excess = {pair.item.id: _better_by(pair) for pair in those}

    def right(judged: Sequence[JudgedPair]) -> Figure | None:
        """A pair is two flags, so that a tie is half right."""
        flags = [
            (credit(each.label, each.winners[0]) >= least, asked[each.id]) for each in judged for least in (0.5, 1)
        ]
        found = share(flags)
        return found and replace(found, n=len(judged))

    decided = [each for each in judged if each.winners[0] and excess[each.id]]
    return PairFigures(
        right=right(judged),
        right_if_longer=right([each for each in judged if excess[each.id] > 0]),
        right_if_shorter=right([each for each in judged if excess[each.id] < 0]),
        ties=share((each.winners[0] == 0, asked[each.id]) for each in judged),
        prefers_longer=share(
            ((excess[each.id] > 0) == (each.winners[0] == each.label), asked[each.id]) for each in decided
        ),
    )


def length_figures(pairs: Sequence[Pair], seed: int) -> tuple[PairFigures, PairFigures]:
    """Those of the judge for whom the longer answer wins, and of the one for whom the shorter does."""
    longer = verdicts_by_length(pairs, orders=1)
    other: dict[Winner | None, Winner] = {0: 0, 1: 2, 2: 1}
    shorter = [replace(each, winners=(other[each.winners[0]],)) for each in longer]
    return pair_figures(pairs, longer, seed), pair_figures(pairs, shorter, seed)


def chance_figures(pairs: Sequence[Pair]) -> PairFigures:
    """A judge that names one answer at random: one half, within the limits that 19 of 20 such judges keep."""
    sides = [_better_by(pair) for pair in pairs]

    def half(n: int) -> Figure | None:
        from scipy.stats import binom  # scipy.stats takes half a second

        low, high = binom.interval(0.95, max(n, 1), 0.5)
        return Figure(0.5, float(low) / n, float(high) / n, n, n) if n else None

    by_length = half(sum(side != 0 for side in sides))
    longer, shorter = half(sum(side > 0 for side in sides)), half(sum(side < 0 for side in sides))
    return PairFigures(half(len(sides)), longer, shorter, None, by_length)


# --- what to do ---


def advice(check: JudgeCheck, constrained: bool, expected: bool, judge_is_model: bool) -> tuple[str, ...]:
    """What to do about what was found; ``constrained``, ``expected``: how the judge's scores are made."""
    found = []
    if check.readable is not None and check.readable.value < _READABLE and not constrained:
        found.append(
            f"Only {_shown(check.readable)} of the judgments are readable: set judgments.verdict to constrained, which "
            "always gives a score, or judgments.rubric to a shorter one (short_judge)."
        )
    if check.judge.ties is not None and check.judge.ties.value > _TIED and judge_is_model and not expected:
        found.append(
            f"{_shown(check.judge.ties)} of the pairs are ties: set judgments.score to expected (with engine.dtype "
            "float32), which tells answers with the same written score apart, or raise judgments.n."
        )
    if not check.beats_length and check.n_pairs:
        found.append(
            "Pairs by such a judge may teach no more than noise or length. Try Yes-or-No criteria or another rubric "
            "(judgments.rubric); train the model to judge first, on rated examples in which length says nothing "
            "(metareward seed build, metareward sft); let a stronger model judge (judge), or a program where it can "
            "(reward); then check again."
        )
    flips = check.position_flips
    if flips is not None and flips.low > 0.5:
        found.append(
            f"The meta-judge changes its mind with the order on {_shown(flips)} of its pairs: leave judge pairs out "
            "(iterations.*.judge_pairs false), or let a stronger model compare (meta_judge)."
        )
    return tuple(found)
