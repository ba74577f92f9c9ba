"""A model's forward pass with shared prefixes computed once, and the language-model head on completion tokens only.

TRL runs 2B rows, chosen above rejected, padded to the longest; both rows of a pair begin with the same prompt, judge
prompts begin with the same rubric, and on a CPU the head scores every position, prompts and padding included. Here
the rows are packed into one (`packing`), and only those hidden states go through the head from which a completion token
is predicted. The outputs are then laid out again as 2B rows, so TRL's losses and metrics stay as they are. The same
numbers come out (up to rounding).

Three hooks do it, and no method of the trainer or the model is replaced: one changes the model's inputs, one selects
hidden states behind its backbone, one lays out the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from metareward.training.prefix_sharing.attention import ATTENTION, BlockMasks
from metareward.training.prefix_sharing.packing import PackedRow, pack

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
_IGNORE_INDEX = -100  # a label that isn't to be predicted


def why_not_packed(model: PreTrainedModel) -> str | None:
    """Why rows of this model can't be packed, in a few words; None when they can.

    It must take its attention from transformers' interface (by default PyTorch's own) in every layer, and know
    positions from ``position_ids`` alone, as rotary ones do.
    """
    config = model.config.get_text_config()
    plain = config.to_dict()
    other_layers = sorted(set(plain.get("layer_types") or ()) - _LAYER_TYPES)
    if config._attn_implementation not in ("sdpa", ATTENTION):
        return f"its attention is {config._attn_implementation}, not sdpa"
    if other_layers:
        return f"it has layers of type {', '.join(other_layers)}"
    if plain.get("alibi"):
        return "its positions are ALiBi's"
    if not plain.get("rope_parameters"):
        return "its positions are not rotary"
    if plain.get("router_aux_loss_coef") and "output_router_logits" in plain:
        return "its router's auxiliary loss is over the unpacked rows (router_aux_loss_coef)"
    return None


@dataclass(slots=True)
class _Call:
    """A running call of the model: which labels count, and from which hidden states they are predicted."""

    counted: Tensor  # (2B, L - 1)
    columns: Tensor  # as many as are counted, in the backbone's rows laid end to end


class PrefixSharing:
    """The hooks of one model. ``packed`` says whether rows are packed; the head runs on completion tokens either way.

    With ``flex`` packed rows go through FlexAttention.
    """

    flex = False

    def __init__(self, model: Any, packed: bool = False) -> None:
        """Hook ``model``, a causal language model with TRL's fused head, or what PEFT made of one."""
        self._model: PreTrainedModel = model.get_base_model() if is_peft_model(model) else model
        self._call: _Call | None = None
        self._packed = False
        self._handles: tuple[RemovableHandle, ...] = (
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            self._model.base_model.register_forward_hook(self._after_backbone),
            model.register_forward_hook(self._after),
        )
        self.packed = packed

    @property
    def packed(self) -> bool:
        """Whether rows are packed."""
        return self._packed

    @packed.setter
    def packed(self, wanted: bool) -> None:
        self._packed = wanted
        if wanted:
            self._model.set_attn_implementation(ATTENTION)
        elif self._model.config._attn_implementation == ATTENTION:
            self._model.set_attn_implementation("sdpa")

    def why_not(self) -> str | None:
        """Why rows of this model can't be packed, as far as its configuration says."""
        return why_not_packed(self._model)

    def remove(self) -> None:
        """Restore the model."""
        self.packed = False
        for handle in self._handles:
            handle.remove()

    def _before(self, _: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], Any] | None:
        self._call = None
        if not given.get("fused_lm_head") or given.get("labels") is None:
            return None
        labels = given["labels"][:, 1:]
        counted = labels != _IGNORE_INDEX
        row = pack(given["input_ids"], given["attention_mask"].sum(dim=1)) if self._packed else None
        columns = _end_to_end(labels.shape, labels.device) if row is None else row.columns[:, :-1]
        self._call = _Call(counted, columns[counted])
        changed = {"labels": None, "shift_labels": labels[counted][None]}
        return args, {**given, **changed, **({} if row is None else _inputs(row, self.flex))}

    def _after_backbone(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if self._call is not None:
            hidden = output.last_hidden_state
            output.last_hidden_state = hidden.flatten(0, 1).index_select(0, self._call.columns)[None]
        return output

    def _after(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if self._call is None:
            return output
        call, self._call = self._call, None
        outputs = {name: value for name, value in output.items() if isinstance(value, Tensor) and value.dim() == 2}
        for name, value in _lay_out(outputs, call.counted).items():
            output[name] = value
        return output


def _inputs(row: PackedRow, flex: bool) -> dict[str, Any]:
    """The backbone's inputs. The mask has four dimensions, so that transformers makes none; the row has it all."""
    return {
        "input_ids": row.input_ids,
        "position_ids": row.position_ids,
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=row.input_ids.device),
        "packed_row": row,
        "block_masks": BlockMasks(row) if flex else None,
    }


def _end_to_end(shape: torch.Size, device: torch.device) -> Tensor:
    """(N, L - 1): the indices of the tokens of N rows of L laid end to end, without each row's last."""
    rows, width = shape
    return torch.arange(rows * (width + 1), device=device).view(rows, width + 1)[:, :-1]


def _lay_out(outputs: Mapping[str, Tensor], counted: Tensor) -> dict[str, Tensor]:
    """Each (1, n) output as (2B, L - 1), 0 where nothing is counted; also for n = 0 it depends on the model."""
    return {name: value.new_zeros(counted.shape).masked_scatter(counted, value) for name, value in outputs.items()}
