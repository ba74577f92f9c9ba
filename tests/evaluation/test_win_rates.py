"""Model against model on the same prompts: counted right, the same from the other side."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metareward.evaluation.alpaca_eval.data import Annotation
from metareward.evaluation.alpaca_eval.length_control import length_adjusted
from metareward.evaluation.held_out import HeldOut, WinRate, held_out_win_rates, win_rate_by
from metareward.method.stats import mean_interval
from metareward.types import Candidate, Judgment, Message, Prompt, Scored, Unparsed


class Lengthy:
    """An oracle whose truth is the number before the blank."""

    full_score = 5.0

    def answer_score(self, prompt: Prompt, answer: str) -> float:
        assert prompt.messages
        return float(answer.split()[0])

    def judgment_error(self, prompt: Prompt, answer: str, judgment: str, score: float) -> tuple[float, ...]:
        return (0.0,)


def answer(score: float, chars: int, given: float | None = None) -> Candidate:
    reading = Unparsed("missing") if given is None else Scored(given)
    return Candidate(0, f"{score:g} ".ljust(chars, "x"), "stop", 1, (Judgment(0, "", 1, reading),))


def held(number: int, own: Candidate, anchor: Candidate) -> HeldOut:
    prompt = Prompt(f"p{number}", (Message("user", str(number)),))
    return HeldOut(prompt, (own,), (anchor,), ())


def by(judge: str, found: tuple[WinRate, ...]) -> WinRate:
    return next(duel for duel in found if duel.judge == judge)


def test_wins_draws_losses_and_what_is_left_out() -> None:
    anchors = [answer(3, 20, given=score) for score in (3, 3, 3, None)]
    mine = [answer(4, 20, 2.0), answer(3, 20, 3.0), answer(2, 20, 5.0), answer(5, 20, 5.0)]
    records = [held(i, own, anchor) for i, (own, anchor) in enumerate(zip(mine, anchors, strict=True))]
    m0 = [replace(record, own=record.anchors_K) for record in records]
    found = held_out_win_rates(records, {"M0": m0}, Lengthy(), 1)
    oracle, itself = by("oracle", found), by("itself", found)
    assert (oracle.wins, oracle.draws, oracle.losses, oracle.left_out) == (2, 1, 1, 0)
    assert oracle.win_rate == pytest.approx(62.5) and oracle.p_value == pytest.approx(1.0)
    assert (itself.wins, itself.draws, itself.losses, itself.left_out) == (1, 1, 1, 1)


def test_prompts_that_one_model_lacks_are_not_compared() -> None:
    records = [held(i, answer(4, 9, 4), answer(3, 9, 3)) for i in range(3)]
    duel = by("oracle", held_out_win_rates(records, {"M1": records[:1]}, Lengthy(), 1))
    assert (duel.against, duel.wins + duel.draws + duel.losses, duel.left_out) == ("M1", 1, 0)


def test_without_an_oracle_only_the_model_s_own_judgments_count() -> None:
    records = [held(i, answer(4, 9, 4), answer(3, 9, 3)) for i in range(3)]
    assert [(duel.judge, duel.win_rate) for duel in held_out_win_rates(records, {"M0": records}, None, 1)] == [
        ("itself", 100.0)
    ]


def test_without_readable_scores_there_is_no_win_rate() -> None:
    assert held_out_win_rates([held(0, answer(4, 9), answer(3, 9))], {}, None, 1) == ()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(5, 60), st.integers(5, 60)), min_size=2))
def test_swapping_the_models_gives_100_minus_the_win_rate(rows: list[tuple[int, int, int, int]]) -> None:
    mine = [held(i, answer(a, m), answer(b, n)) for i, (a, b, m, n) in enumerate(rows)]
    yours = [held(i, answer(b, n), answer(a, m)) for i, (a, b, m, n) in enumerate(rows)]
    forth = by("oracle", held_out_win_rates(mine, {"other": yours}, Lengthy(), 1))
    back = by("oracle", held_out_win_rates(yours, {"other": mine}, Lengthy(), 1))
    assert forth.win_rate + back.win_rate == pytest.approx(100)
    assert (forth.wins, forth.losses, forth.p_value) == (back.losses, back.wins, back.p_value)
    assert forth.length_adjusted is not None and back.length_adjusted is not None
    assert forth.length_adjusted + back.length_adjusted == pytest.approx(100, abs=1e-3)


def answers(*scores_and_lengths: tuple[float, int, float | None]) -> tuple[Candidate, ...]:
    return tuple(replace(answer(*each), index=index) for index, each in enumerate(scores_and_lengths))


def test_the_interval_resamples_prompts_and_the_adjustment_sees_lengths() -> None:
    given = [answers((4, 30, 4), (2, 12, None)), answers((5, 25, 1)), answers((3, 9, 3)), answers((1, 40, 5))]
    others = [answers((3, 20, 3), (2, 14, 2)), answers((4, 15, 2)), answers((3, 33, 3)), answers((4, 10, 4))]
    records = [
        HeldOut(held(number, own[0], other[0]).prompt, own, other, ())
        for number, (own, other) in enumerate(zip(given, others, strict=True))
    ]
    # More prompts, so that the interval depends on the seed.
    more = [(f"p{number}", score / 2, 9, 9) for number, score in enumerate((0, 2, 1, 2, 2, 0, 2, 1, 2), 4)]
    records += [held(int(name[1:]), answer(2 * share, 9, 2 * share), answer(1, 9, 1)) for name, share, _, _ in more]
    m0 = [replace(record, own=record.anchors_K) for record in records]
    ends = set()
    for seed in range(3):
        found = held_out_win_rates(records, {"M0": m0}, Lengthy(), seed)
        true = [("p0", 1.0, 20, 30), ("p0", 0.5, 14, 12), ("p1", 1.0, 15, 25), ("p2", 0.5, 33, 9), ("p3", 0.0, 10, 40)]
        own = [("p0", 1.0, 20, 30), ("p0", None, 14, 12), ("p1", 0.0, 15, 25), ("p2", 0.5, 33, 9), ("p3", 1.0, 10, 40)]
        for judge, rows in (("oracle", true + more), ("itself", own + more)):
            rate = by(judge, found)
            shares = [(name, share) for name, share, _, _ in rows if share is not None]
            interval = mean_interval([share for _, share in shares], [name for name, _ in shares], seed)
            assert (rate.win_rate, rate.low, rate.high) == (
                100 * interval.mean,
                100 * interval.low,
                100 * interval.high,
            )
            # Lengths are of whole texts; rows are numbered by prompt.
            adjusted = length_adjusted(
                [Annotation(int(name[1:]), share, base, mine) for name, share, base, mine in rows]
            )
            assert adjusted is not None
            assert (rate.length_adjusted, rate.length_adjusted_error) == (adjusted.win_rate, adjusted.standard_error)
        ends.add((by("oracle", found).low, by("oracle", found).high))
        assert (by("oracle", found).against, by("itself", found).against) == ("M0", "M0")
        assert by("itself", found).left_out == 1
    assert len(ends) > 1


def test_the_sign_test() -> None:
    def rate(*signs: int) -> WinRate:
        records = [held(i, answer(3 + sign, 9), answer(3, 9)) for i, sign in enumerate(signs)]
        m0 = [replace(record, own=record.anchors_K) for record in records]
        return by("oracle", held_out_win_rates(records, {"M0": m0}, Lengthy(), 1))

    assert rate(1, 1, 1, 1, 1).p_value == pytest.approx(2 / 2**5)
    assert rate(1, 1, 1, 0, 1, -1).p_value == pytest.approx(2 * 6 / 2**5)
    assert rate(1, -1).p_value == 1.0
    assert rate(0, 0).p_value is None
    assert (rate(0, 0).win_rate, rate(0, 0).draws) == (50.0, 2)


def test_scores_that_differ_by_rounding_are_a_draw() -> None:
    mine, base = answer(3, 9, 0.1 + 0.2), answer(3, 9, 0.3)
    assert win_rate_by("J", [held(0, mine, base), held(1, answer(3, 9, 1.1), answer(3, 9, 1))], 1) == replace(
        by("itself", held_out_win_rates([held(0, mine, base), held(1, answer(4, 9, 4), answer(3, 9, 3))], {}, None, 1)),
        judge="J",
    )
