"""Greedy texts of the engine are those of plain `generate`, but for near ties, which are counted and shown."""

from __future__ import annotations

import pytest

from equality import KINDS, draw_asks, run, show


def test_the_prompts_are_mixed_and_some_begin_alike() -> None:
    asks = draw_asks(200)
    lengths = sorted(len(ask.ids) for ask in asks)
    assert len(asks) == 200 and (lengths[0], lengths[-1]) == (1, 700)
    assert sum(length < 32 for length in lengths) > 20 and sum(length > 256 for length in lengths) > 50
    alike = [ask for ask in asks if sum(ask.ids[:100] == other.ids[:100] for other in asks) > 1]
    assert 80 < len(alike) < 160 and {ask.n for ask in asks} == {1, 2, 3, 7}


@pytest.mark.parametrize("kind", ["llama", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_greedy_equals_generate(kind: str) -> None:
    outcomes = run([kind], prompts=12, most=10, in_process=True)
    show(outcomes)
    assert all(seen.holds for seen in outcomes.values()), outcomes
    assert all(seen.different_words > 40 for seen in outcomes.values())
    assert outcomes[f"{kind}, float32"].equal == 12


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_generate_on_200_prompts(kind: str) -> None:
    outcomes = run([kind], prompts=200, most=24)
    show(outcomes)
    for name, seen in outcomes.items():
        assert seen.holds, (name, seen)
        assert seen.texts == 200 and seen.different_words > 200
        # Otherwise nearly everything could be called a tie.
        assert seen.rounding < seen.median_gap
        assert seen.equal >= (199 if name.endswith("float32") else 100)
