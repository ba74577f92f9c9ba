"""Attention over parts of the keys, merged into one softmax, and the hook by which a model's attention gets here.

Each part yields its softmax average and the log-sum-exp of its scores; weighting the averages by the softmax of these
log-sum-exps gives attention over all keys at once.

Letters: B batch entries of keys, H key heads, M queries to a key head, X keys, D head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from metareward.engines.base import EngineError

# Outputs (B, H, M, D) and their log-sum-exps (B, H, M), which are float32.
PartialAttention = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class ScoreFunction:
    """How a layer computes attention scores from queries and keys. ``window``: sliding window in tokens, or None."""

    scale: float
    window: int | None
    softcap: float | None

    def attention(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention of queries (B, H, M, D) over keys and values (B, H, X, D); ``mask`` is added to the scores."""
        if self.softcap is None:
            return nn.functional.scaled_dot_product_attention(query, keys, values, mask, scale=self.scale)
        return self._unfused(query, keys, values, mask)[0]

    def partial(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, masked_out: Tensor | None = None
    ) -> PartialAttention:
        """`attention` over a part of the keys, with its log-sum-exps.

        ``masked_out`` (see `fully_masked`) marks queries that see no key here: their log-sum-exp is -inf, so that they
        weigh nothing in `merge`. Without it every query must see a key.
        """
        if query.device.type != "cpu" or self.softcap is not None or keys.shape[3] != values.shape[3]:
            return self._unfused(query, keys, values, mask)
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, 0.0, False, attn_mask=mask, scale=self.scale
        )
        # The kernel reports 0 for a query that sees no key.
        return out, logsumexp if masked_out is None else logsumexp.masked_fill_(masked_out, -torch.inf)

    def _unfused(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> PartialAttention:
        scores = (query @ keys.transpose(2, 3) * self.scale).float()
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if mask is not None:
            scores = scores + mask
        logsumexp = scores.logsumexp(dim=-1)
        weights = torch.exp(scores - logsumexp.clamp_min(torch.finfo(torch.float32).min)[..., None])
        return weights.to(query.dtype) @ values, logsumexp


def merge(parts: Sequence[PartialAttention]) -> Tensor:
    """Attention over the keys of all parts. Every query must see a key in at least one of them."""
    # Softmax over the last dimension, then separate products and sums: in other formulations the elements left over
    # after whole SIMD vectors take another code path that rounds differently, so results would depend on the shape.
    weights = torch.softmax(torch.stack([logsumexp for _, logsumexp in parts], dim=-1), dim=-1)
    merged = parts[0][0] * weights[..., :1]
    for i, (out, _) in enumerate(parts[1:], 1):
        merged = merged + out * weights[..., i : i + 1]
    return merged.to(parts[0][0].dtype)


def fully_masked(mask: Tensor) -> Tensor:
    """Where an additive mask (..., X) hides all keys: bool (...)."""
    return mask.isneginf().all(dim=-1)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to scores: 0 where ``visible``, -inf elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)


class ForwardContext(Protocol):
    """The attention of one forward pass of the model; called once per layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: ScoreFunction) -> Tensor:
        """Attention output (rows, tokens, heads, D) for query, key, value (rows, heads, tokens, D)."""
        ...


_backend_ids = itertools.count()


class AttentionBackend:
    """An attention function registered with transformers under ``name``; passes calls on to ``forward_context``."""

    def __init__(self) -> None:
        self.name = f"metareward_{next(_backend_ids)}"
        self.forward_context: ForwardContext | None = None
        AttentionInterface.register(self.name, self._attend)

    def _attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        _: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **__: Any,
    ) -> tuple[Tensor, None]:
        layer = module.layer_idx
        if self.forward_context is None or s_aux is not None or not isinstance(layer, int):
            raise EngineError(f"{type(module).__name__}: this kind of attention is not supported")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = ScoreFunction(scale, sliding_window, softcap)
        return self.forward_context.attend(layer, query, key, value, scores), None
