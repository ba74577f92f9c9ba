"""Sampling the next token: temperature, top-p without a sort, reproducible random numbers; top log-probabilities; and
the tokens that continue one of `Sampling.choices` (constrained decoding).

A token is drawn from the whole distribution by inverse CDF. It lies inside the nucleus exactly if the tokens that are
strictly more probable hold less than ``top_p`` together; otherwise a token is drawn again among those more probable
tokens, which contain the nucleus. Accepted tokens are distributed as the renormalised nucleus, and each rejection
discards everything at or below the rejected token. Tokens that tie with the least probable member of the nucleus all
belong to it.

Every random number is a hash of (seed, sample, step, attempt), so a draw never depends on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metareward.engines.base import token_texts
from metareward.engines.local.kv_cache import Ints
from metareward.types import Step, TopLogprob

Floats = NDArray[np.float32]
Words = NDArray[np.uint64]

# As many as hosted servers give.
MAX_TOP_LOGPROBS = 20

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)
_SMALLEST_TOP_P = 1e-6


def _mix(x: Words) -> Words:
    """The finalizer of splitmix64: a bijection of 64-bit words that spreads every bit."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_A
    x = (x ^ (x >> np.uint64(27))) * _MIX_B
    return x ^ (x >> np.uint64(31))


def uniforms(seeds: Words, samples: Words, steps: Words, attempt: int) -> Floats:
    """One float in [0, 1) per row, from the row's counter (seed, sample, step) and the attempt; 24 random bits."""
    x = _mix(seeds + _GAMMA)
    x = _mix(x ^ ((samples + np.uint64(1)) * _GAMMA))
    x = _mix(x ^ ((steps + np.uint64(1)) * _GAMMA))
    x = _mix(x ^ (np.full_like(x, attempt + 1) * _GAMMA))
    return ((x >> np.uint64(40)).astype(np.float64) * 2.0**-24).astype(np.float32)


@dataclass(frozen=True, slots=True)
class RandomCounters:
    """The counter of each row's random stream: seed, sample number and step, each uint64 of shape (R,)."""

    seeds_R: Words
    samples_R: Words
    steps_R: Words

    def uniforms(self, attempt: int, device: torch.device) -> Tensor:
        """The rows' uniforms for this attempt, on ``device``."""
        return torch.from_numpy(uniforms(self.seeds_R, self.samples_R, self.steps_R, attempt)).to(device)

    def select(self, rows: Ints) -> RandomCounters:
        """The counters of these rows."""
        return RandomCounters(self.seeds_R[rows], self.samples_R[rows], self.steps_R[rows])


def sample(logits_RV: Tensor, temperature_R: Floats, top_p_R: Floats, counters: RandomCounters) -> Tensor:
    """The next token of every row, int64 (R,). Temperature 0 is greedy. Rows don't influence each other."""
    greedy_R = temperature_R == 0
    logits_RV = logits_RV.float()
    temperature, top_p = (
        torch.from_numpy(np.where(greedy_R, np.float32(1), array)).to(logits_RV.device)
        for array in (temperature_R, top_p_R)
    )
    # Dividing by 1 changes nothing, and takes as long as the softmax.
    scaled_RV = logits_RV if bool((temperature == 1).all()) else logits_RV / temperature[:, None]
    tokens_R = _sample_nucleus(torch.softmax(scaled_RV, dim=-1), top_p, counters)
    if not greedy_R.any():
        return tokens_R
    return torch.where(torch.from_numpy(greedy_R).to(tokens_R.device), logits_RV.argmax(dim=-1), tokens_R)


def _sample_nucleus(probs_RV: Tensor, top_p_R: Tensor, counters: RandomCounters) -> Tensor:
    top_p_R = top_p_R.clamp_min(_SMALLEST_TOP_P)
    tokens_R, drawn_R = _inverse_cdf(probs_RV, probs_RV.cumsum(dim=-1), counters.uniforms(0, probs_RV.device))
    # The tokens above one of probability p hold at most 1 - p, so most rows are accepted without looking at them.
    rows = _repeat_to((drawn_R <= 1 - top_p_R).nonzero()[:, 0], len(probs_RV))
    pivots, candidates, attempt = drawn_R[rows], probs_RV[rows], 1
    while len(rows):
        # A float mask, because multiplying by booleans is slow.
        above = torch.gt(candidates, pivots[:, None], out=torch.empty_like(candidates))
        candidates = above.mul_(candidates)
        cumulative = candidates.cumsum(dim=-1)
        rejected = _repeat_to((cumulative[:, -1] >= top_p_R[rows]).nonzero()[:, 0], len(probs_RV))
        rows, candidates = rows[rejected], candidates[rejected]
        uniform = counters.select(rows.cpu().numpy()).uniforms(attempt, probs_RV.device)
        tokens_R[rows], pivots = _inverse_cdf(candidates, cumulative[rejected], uniform)
        attempt += 1
    return tokens_R


def _repeat_to(rows: Tensor, count: int) -> Tensor:
    """Off the CPU the rounding of a cumulative sum depends on the number of rows, so rows are repeated to ``count``."""
    if rows.device.type == "cpu" or not len(rows):
        return rows
    return torch.cat([rows, rows[:1].expand(count - len(rows))])


def _inverse_cdf(weights_RV: Tensor, cumulative_RV: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """For each row the first token whose cumulative weight exceeds ``uniform * total``, and that token's weight."""
    total_R = cumulative_RV[:, -1]
    # The product may round up to the total, which no cumulative weight exceeds.
    target_R = torch.minimum(uniform_R * total_R, torch.nextafter(total_R, torch.zeros_like(total_R)))
    tokens_R1 = torch.searchsorted(cumulative_RV, target_R[:, None], right=True)
    return tokens_R1[:, 0], weights_RV.gather(1, tokens_R1)[:, 0]


@dataclass(frozen=True, slots=True)
class ChoiceTrie:
    """The choices of a request by their tokens.

    ``texts`` are the choices; ``next_tokens`` are the tokens that may follow each incomplete beginning of a choice. A
    choice that begins another one ends with a stop token, all others with their last token.
    """

    texts: Mapping[tuple[int, ...], str]
    next_tokens: Mapping[tuple[int, ...], Ints]

    @classmethod
    def build(cls, texts: Mapping[tuple[int, ...], str], stop_ids: Sequence[int]) -> ChoiceTrie:
        """The trie of these token sequences, none of them empty. Raises `ValueError` where a stop token is missing."""
        children: dict[tuple[int, ...], set[int]] = {}
        for ids in texts:
            for end, token in enumerate(ids):
                children.setdefault(ids[:end], set()).add(token)
        for ids in texts.keys() & children.keys():
            if not stop_ids:
                raise ValueError(f"{texts[ids]!r} begins another choice, and the model has no token that ends a text")
            children[ids].update(stop_ids)
        return cls(texts, {path: np.array(sorted(tokens), np.int64) for path, tokens in children.items()})

    @property
    def steps(self) -> int:
        """The most tokens that a choice takes, a stop token included."""
        return 1 + max(map(len, self.next_tokens))


def pad_tokens(tokens_R: Sequence[Ints], width: int) -> Ints:
    """One row for each array of tokens (none is empty), filled up with its first token to a multiple of ``width``."""
    columns = -(-max(map(len, tokens_R)) // width) * width
    return np.stack([np.concatenate([each, np.repeat(each[:1], columns - len(each))]) for each in tokens_R])


def mask_rows(logits_RV: Tensor, allowed: Mapping[int, Ints]) -> None:
    """Set the logits of ``logits_RV`` to -inf in place, but for the tokens ``allowed[r]`` of each row r in it."""
    rows = np.repeat(np.array(list(allowed), np.int64), [len(tokens) for tokens in allowed.values()])
    rows_E, tokens_E = (
        torch.from_numpy(each).to(logits_RV.device) for each in (rows, np.concatenate([*allowed.values()]))
    )
    kept_E = logits_RV[rows_E, tokens_E]
    logits_RV[rows_E] = -torch.inf
    logits_RV[rows_E, tokens_E] = kept_E


class TopLogprobsBuffer:
    """For each row and step, the ids and log-probabilities of the ``count`` most probable tokens.

    The log-probabilities are the model's own, among the tokens that aren't masked: temperature and top-p don't change
    them.
    """

    def __init__(self, rows: int, steps: int, count: int) -> None:
        self._ids_RTA = np.zeros((rows, steps, count), np.int64)
        self._logprobs_RTA = np.zeros((rows, steps, count), np.float32)

    def store(self, logits_BV: Tensor, rows_B: Ints, steps_B: Ints) -> None:
        """Store the top tokens of these logits for these rows and steps."""
        logprobs_BV = torch.log_softmax(logits_BV.float(), dim=-1)
        values, ids = logprobs_BV.topk(min(self._ids_RTA.shape[2], logits_BV.shape[1]), dim=-1)
        found = values.shape[1]
        self._ids_RTA[rows_B, steps_B, :found] = ids.cpu().numpy()
        self._logprobs_RTA[rows_B, steps_B, :found] = values.cpu().numpy()
        self._logprobs_RTA[rows_B, steps_B, found:] = -np.inf

    def steps(self, row: int, ids: Sequence[int], count: int, decode: Callable[[list[int]], str]) -> tuple[Step, ...]:
        """The steps of a row that generated ``ids``, with the ``count`` most probable tokens of each."""
        steps = []
        for step, text in enumerate(token_texts(decode, ids)):
            stored = zip(self._ids_RTA[row, step, :count], self._logprobs_RTA[row, step, :count], strict=True)
            top = [TopLogprob(decode([int(token)]), float(logprob)) for token, logprob in stored if logprob > -np.inf]
            steps.append(Step(text, tuple(top)))
        return tuple(steps)
