"""The sampler's distribution against the exact one, and its uniforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from metareward.engines.local.sampler import RandomCounters, sample, uniforms

DRAWS = 20_000


def counters(count: int, seed: int = 1, step: int = 0) -> RandomCounters:
    return RandomCounters(
        np.full(count, seed, np.uint64), np.arange(count, dtype=np.uint64), np.full(count, step, np.uint64)
    )


def drawn(logits_V: Tensor, temperature: float, top_p: float, count: int = DRAWS) -> Tensor:
    rows = logits_V.expand(count, -1)
    return sample(rows, np.full(count, temperature, np.float32), np.full(count, top_p, np.float32), counters(count))


def nucleus(logits_V: Tensor, temperature: float, top_p: float) -> Tensor:
    """The renormalised nucleus by sorting: the definition."""
    probs, order = torch.softmax(logits_V.double() / temperature, dim=-1).sort(descending=True)
    kept = probs.cumsum(dim=-1) - probs < top_p
    return torch.zeros_like(probs).scatter(0, order, probs * kept) / (probs * kept).sum()


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.6, 0.1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_distribution_is_the_renormalised_nucleus(temperature: float, top_p: float) -> None:
    logits_V = torch.randn(40, generator=torch.Generator().manual_seed(3)) * 1.5
    exact = nucleus(logits_V, temperature, top_p).numpy()
    counts = np.bincount(drawn(logits_V, temperature, top_p).numpy(), minlength=40)
    assert counts[exact == 0].sum() == 0
    expected = exact * DRAWS
    rare = (expected < 10) & (exact > 0)
    observed = np.append(counts[(exact > 0) & ~rare], counts[rare].sum())
    wanted = np.append(expected[(exact > 0) & ~rare], expected[rare].sum())
    keep = wanted > 0
    assert len(observed[keep]) == 1 or stats.chisquare(observed[keep], wanted[keep]).pvalue > 1e-4


def test_every_member_of_the_nucleus_is_drawn_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(10):
        logits_V = torch.randn(24, generator=generator) * 2
        members = nucleus(logits_V, 1.0, 0.8)
        seen = set(drawn(logits_V, 1.0, 0.8, 5000).tolist())
        assert seen <= set(members.nonzero()[:, 0].tolist())
        assert seen >= set((members > 0.01).nonzero()[:, 0].tolist())


def test_tied_tokens_belong_to_the_nucleus_together() -> None:
    logits_V = torch.tensor([2.0, 1.0, 1.0, 1.0, -9.0])
    assert set(drawn(logits_V, 1.0, 0.6, 2000).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("top_p", [0.0, 1e-9, 0.3])
def test_a_tiny_nucleus_is_the_most_probable_token(top_p: float) -> None:
    logits_V = torch.tensor([0.0, 3.0, 1.0])
    assert set(drawn(logits_V, 1.0, top_p, 500).tolist()) == {1}


def test_temperature_zero_is_greedy_beside_rows_that_are_not() -> None:
    logits_RV = torch.randn(64, 30, generator=torch.Generator().manual_seed(2))
    temperature_R, top_p_R = (np.arange(64) % 2).astype(np.float32), np.ones(64, np.float32)
    tokens = sample(logits_RV, temperature_R, top_p_R, counters(64))
    alone = sample(logits_RV[1::2], temperature_R[1::2], top_p_R[1::2], counters(64).select(np.arange(1, 64, 2)))
    assert torch.equal(tokens[::2], logits_RV[::2].argmax(dim=-1))
    assert torch.equal(tokens[1::2], alone)


def test_impossible_tokens_are_never_drawn() -> None:
    logits_V = torch.full((50,), -torch.inf)
    logits_V[[3, 17]] = 0.0
    assert set(drawn(logits_V, 1.0, 1.0, 1000).tolist()) == {3, 17}


def test_uniforms_are_uniform_and_independent_along_every_counter() -> None:
    count = 100_000
    line, zero = np.arange(count, dtype=np.uint64), np.zeros(count, np.uint64)
    for values in (uniforms(line, zero, zero, 0), uniforms(zero, line, zero, 0), uniforms(zero, zero, line, 0)):
        assert values.min() >= 0 and values.max() < 1
        assert stats.kstest(values, "uniform").pvalue > 1e-4
        assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.015
    first, second = uniforms(zero, zero, line, 0), uniforms(zero, zero, line, 1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.015


def test_seeds_of_63_bits_all_count() -> None:
    seeds = np.array([0, 1, 2**62, 2**63 - 1, 2**63], np.uint64)
    zero = np.zeros(5, np.uint64)
    assert len(set(uniforms(seeds, zero, zero, 0).tolist())) == 5
