"""Drawing the next token: temperature and top-p without a sort, and uniforms that depend on their counter alone.

A token is drawn from the whole distribution by inverse CDF. It lies inside the nucleus exactly when the
tokens that are strictly more probable hold less than ``top_p`` together; if it does not, it is drawn again
among those more probable tokens, which contain the nucleus. What is accepted is distributed as the
renormalised nucleus, and each refusal at once discards everything at or below the refused token. Tokens that
tie with the least probable member of the nucleus all belong to it.

Every uniform is a hash of (seed, sample, step, round), so a draw never depends on what else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)
_SMALLEST_TOP_P = 1e-6


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64: a bijection of 64-bit words that spreads every bit."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_A
    x = (x ^ (x >> np.uint64(27))) * _MIX_B
    return x ^ (x >> np.uint64(31))


def uniforms(
    seeds: NDArray[np.uint64], samples: NDArray[np.uint64], steps: NDArray[np.uint64], attempt: int
) -> NDArray[np.float32]:
    """One float in [0, 1) per row, from the row's counter (seed, sample, step) and the attempt; 24 random bits."""
    x = _mix(seeds + _GAMMA)
    x = _mix(x ^ ((samples + np.uint64(1)) * _GAMMA))
    x = _mix(x ^ ((steps + np.uint64(1)) * _GAMMA))
    x = _mix(x ^ (np.full_like(x, attempt + 1) * _GAMMA))
    return ((x >> np.uint64(40)).astype(np.float64) * 2.0**-24).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Draws:
    """Where each row stands in its own stream of uniforms; three uint64 arrays of one entry a row."""

    seeds_R: NDArray[np.uint64]
    samples_R: NDArray[np.uint64]
    steps_R: NDArray[np.uint64]

    def uniforms(self, attempt: int, device: torch.device) -> Tensor:
        """The rows' uniforms for this attempt, on ``device``."""
        return torch.from_numpy(uniforms(self.seeds_R, self.samples_R, self.steps_R, attempt)).to(device)

    def only(self, rows: NDArray[np.int64]) -> Draws:
        """The draws of these rows."""
        return Draws(self.seeds_R[rows], self.samples_R[rows], self.steps_R[rows])


def sample(logits_RV: Tensor, temperature_R: Floats, top_p_R: Floats, draws: Draws) -> Tensor:
    """The next token of every row, int64 of shape (R,). Temperature 0 is greedy. No row bears on another."""
    greedy_R = temperature_R == 0
    logits_RV = logits_RV.float()
    temperature, top_p = (
        torch.from_numpy(np.where(greedy_R, np.float32(1), array)).to(logits_RV.device)
        for array in (temperature_R, top_p_R)
    )
    # Dividing by 1 changes nothing, and takes as long as the softmax.
    scaled_RV = logits_RV if bool((temperature == 1).all()) else logits_RV / temperature[:, None]
    tokens_R = _nucleus_draw(torch.softmax(scaled_RV, dim=-1), top_p, draws)
    if not greedy_R.any():
        return tokens_R
    return torch.where(torch.from_numpy(greedy_R).to(tokens_R.device), logits_RV.argmax(dim=-1), tokens_R)


def _nucleus_draw(probs_RV: Tensor, top_p_R: Tensor, draws: Draws) -> Tensor:
    top_p_R = top_p_R.clamp_min(_SMALLEST_TOP_P)
    tokens_R, drawn_R = _inverse_cdf(probs_RV, probs_RV.cumsum(dim=-1), draws.uniforms(0, probs_RV.device))
    # Of the tokens above one of probability p at most 1 - p is held, so most need no look at the others.
    rows = _steady((drawn_R <= 1 - top_p_R).nonzero()[:, 0], len(probs_RV))
    pivots, candidates, attempt = drawn_R[rows], probs_RV[rows], 1
    while len(rows):
        # As numbers, not as truth values, which are slow to multiply.
        above = torch.gt(candidates, pivots[:, None], out=torch.empty_like(candidates))
        candidates = above.mul_(candidates)
        running = candidates.cumsum(dim=-1)
        outside = _steady((running[:, -1] >= top_p_R[rows]).nonzero()[:, 0], len(probs_RV))
        rows, candidates = rows[outside], candidates[outside]
        uniform = draws.only(rows.cpu().numpy()).uniforms(attempt, probs_RV.device)
        tokens_R[rows], pivots = _inverse_cdf(candidates, running[outside], uniform)
        attempt += 1
    return tokens_R


def _steady(rows: Tensor, count: int) -> Tensor:
    """Off the CPU a running sum's rounding depends on how many rows there are, so rows are repeated up to ``count``."""
    if rows.device.type == "cpu" or not len(rows):
        return rows
    return torch.cat([rows, rows[:1].expand(count - len(rows))])


def _inverse_cdf(weights_RV: Tensor, running_RV: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """For each row the first token whose running sum passes ``uniform * total``, and that token's weight."""
    total_R = running_RV[:, -1]
    # The product may round up to the total, which no running sum passes.
    target_R = torch.minimum(uniform_R * total_R, torch.nextafter(total_R, torch.zeros_like(total_R)))
    tokens_R1 = torch.searchsorted(running_RV, target_R[:, None], right=True)
    return tokens_R1[:, 0], weights_RV.gather(1, tokens_R1)[:, 0]
