"""Attention over a part of what a query may see, and parts put together.

A part yields its own softmax average and the logarithm of its sum of exponentials; parts of one query are merged by
the weights that these logarithms give them, which is the softmax over all parts at once.

Letters: B batches of keys, H key heads, M queries to a key head, X keys, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Outputs (B, H, M, D) and their logarithms of sums of exponentials (B, H, M), which are float32.
Part = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Scores:
    """How a layer turns products of queries and keys into scores."""

    scale: float
    window: int | None
    softcap: float | None

    def attention(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention of queries (B, H, M, D) over keys and values (B, H, X, D), ``mask`` added to the scores."""
        if self.softcap is None:
            return nn.functional.scaled_dot_product_attention(query, keys, values, mask, scale=self.scale)
        return self._plain(query, keys, values, mask)[0]

    def part(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, blind: Tensor | None = None
    ) -> Part:
        """`attention` as a part, which weighs nothing where a query sees no key; ``blind`` says where (`sees_nothing`).

        Without ``blind`` every query sees a key.
        """
        if not self._fused(query, keys, values):
            return self._plain(query, keys, values, mask)
        out, logs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, 0.0, False, attn_mask=mask, scale=self.scale
        )
        # Of a query that sees nothing the logarithm comes as 0.
        return out, logs if blind is None else logs.masked_fill_(blind, -torch.inf)

    def _fused(self, query: Tensor, keys: Tensor, values: Tensor) -> bool:
        """Whether there is a fused kernel for this."""
        return query.device.type == "cpu" and self.softcap is None and keys.shape[3] == values.shape[3]

    def _plain(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Part:
        scores = (query @ keys.transpose(2, 3) * self.scale).float()
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if mask is not None:
            scores = scores + mask
        logs = scores.logsumexp(dim=-1)
        weights = torch.exp(scores - logs.clamp_min(torch.finfo(torch.float32).min)[..., None])
        return weights.to(query.dtype) @ values, logs


def merge(parts: Sequence[Part]) -> Tensor:
    """The parts' common softmax average. Every query must see a key in at least one of them."""
    # A softmax over the last dimension, and products and sums apart: what is left over from whole vectors at the end of
    # a tensor is computed by other code, which in other ways of writing this rounds differently.
    weights = torch.softmax(torch.stack([logs for _, logs in parts], dim=-1), dim=-1)
    merged = parts[0][0] * weights[..., :1]
    for place, (out, _) in enumerate(parts[1:], 1):
        merged = merged + out * weights[..., place : place + 1]
    return merged.to(parts[0][0].dtype)


def sees_nothing(mask: Tensor) -> Tensor:
    """Where an additive mask (..., X) hides all keys."""
    return mask.isneginf().all(dim=-1)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added to scores: 0 where ``seen``, -inf elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
