"""Run the prompt of a preference pair once instead of twice.

TRL runs 2B rows, chosen above rejected, and both rows of a pair begin with the same P tokens. Here the two become
one row of P + C + R tokens,

    [ prompt | rest of chosen | rest of rejected ]

where the rejected part does not see the chosen part and counts its positions on from the prompt. The hidden states
are then laid out again as 2B rows, so that TRL's loss and all its figures stay as they are. The same numbers come
out (to rounding); only tokens are saved.

Assumes full attention in every layer that takes a mask as it is given, and positions that only enter through
``position_ids``. `can_share` says which models promise that; the trainer tries it on the first batch before it counts
on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Packing:
    """Rows of pairs folded together. B pairs; L is the length of a row before, S after.

    ``input_ids`` and ``positions`` are (B, S); ``mask`` is (B, 1, S, S), True where a query sees a key;
    ``places`` is (2B, L): where in row i mod B the hidden state of token j of row i is found.
    """

    input_ids: Tensor
    positions: Tensor
    mask: Tensor
    places: Tensor


def can_share(config: Any) -> bool:
    """Whether a model of this configuration attends fully, from PyTorch's own attention, in every layer."""
    plain = config.to_dict()
    kinds = plain.get("layer_types") or ()
    windowed = plain.get("sliding_window") and plain.get("use_sliding_window", True)
    full = all(kind == "full_attention" for kind in kinds) if kinds else not windowed
    return bool(config._attn_implementation == "sdpa" and full and plain.get("rope_parameters"))


def share_prefixes(model: Any) -> None:
    """Change ``model`` (a causal language model) to run the common beginning of rows i and i + B once."""
    backbone = model.base_model
    plain = backbone.forward

    @wraps(plain)
    def shared(*, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Any:
        packing = pack(input_ids, attention_mask.sum(dim=1))
        output = plain(
            input_ids=packing.input_ids, attention_mask=packing.mask, position_ids=packing.positions, **options
        )
        output.last_hidden_state = unpack(output.last_hidden_state, packing.places)
        return output

    backbone.forward = shared


def unshare_prefixes(model: Any) -> None:
    """Undo `share_prefixes`."""
    del model.base_model.forward


def pack(input_ids: Tensor, lengths: Tensor) -> Packing:
    """Fold (2B, L) right-padded rows with ``lengths`` (2B) into B rows, one for each pair."""
    chosen, rejected = input_ids.chunk(2)
    chosen_len, rejected_len = lengths.chunk(2)
    prefix = _common(chosen, rejected, torch.minimum(chosen_len, rejected_len))
    total = chosen_len + rejected_len - prefix
    column = torch.arange(int(total.max()), device=input_ids.device).expand(len(chosen), -1)
    in_rejected = column >= chosen_len[:, None]
    positions = torch.where(in_rejected, column - (chosen_len - prefix)[:, None], column)
    positions = positions.clamp(max=input_ids.shape[1] - 1)
    packed = torch.where(in_rejected, rejected.gather(1, positions), chosen.gather(1, positions))
    return Packing(packed, positions, _mask(column, prefix, chosen_len), _places(input_ids, prefix, chosen_len))


def unpack(hidden: Tensor, places: Tensor) -> Tensor:
    """Lay (B, S, H) hidden states out as (2B, L, H) again."""
    pairs, width, size = hidden.shape
    row = torch.arange(pairs, device=hidden.device).repeat(2)[:, None]
    flat = row * width + places.clamp(max=width - 1)
    return hidden.reshape(-1, size).index_select(0, flat.flatten()).view(*places.shape, size)


def _common(chosen: Tensor, rejected: Tensor, shorter: Tensor) -> Tensor:
    """How many tokens each pair of rows has in common at its beginning, (B)."""
    same = (chosen == rejected).cumprod(dim=1).sum(dim=1)
    return torch.minimum(same, shorter)


def _mask(column: Tensor, prefix: Tensor, chosen_len: Tensor) -> Tensor:
    """Causal, except that what comes after the chosen part doesn't see it. (B, 1, S, S)."""
    causal = column[:, :, None] >= column[:, None, :]
    query_after = (column >= chosen_len[:, None])[:, :, None]
    key_inside = ((column >= prefix[:, None]) & (column < chosen_len[:, None]))[:, None, :]
    return (causal & ~(query_after & key_inside))[:, None]


def _places(input_ids: Tensor, prefix: Tensor, chosen_len: Tensor) -> Tensor:
    column = torch.arange(input_ids.shape[1], device=input_ids.device).expand(len(prefix), -1)
    shift = (chosen_len - prefix)[:, None]
    return torch.cat([column, torch.where(column < prefix[:, None], column, column + shift)])
