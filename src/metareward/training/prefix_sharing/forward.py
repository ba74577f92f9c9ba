"""A model's forward pass with shared prefixes computed once, and the language-model head on completion tokens only.

TRL runs 2B rows, chosen above rejected, padded to the longest; both rows of a pair begin with the same prompt, judge
prompts begin with the same rubric, and on a CPU the head scores every position, prompts and padding included. Here
the rows are packed into one (`packing`), and only those hidden states go through the head from which a completion token
is predicted. The outputs are then laid out again as 2B rows, so TRL's losses and metrics stay as they are. The same
numbers come out (up to rounding).

Three hooks do it, and no method of the trainer or the model is replaced: one changes the model's inputs, one selects
hidden states behind its backbone, one lays out the outputs. In a packed row each chunk attends to its own path and to
nothing else: transformers reaches that through its attention interface, as `ATTENTION`.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from metareward.training.prefix_sharing.packing import PackedRow, pack

ATTENTION = "metareward_packed_rows"
# Model types of which tests/training/prefix_sharing shows that packed rows give the same log-probabilities and
# gradients. Any other model trains on unpacked rows.
PACKED_MODEL_TYPES = frozenset({
    "apertus", "arcee", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma3_text", "glm", "glm4", "gpt_neox",
    "granite", "helium", "hunyuan_v1_dense", "llama", "ministral", "ministral3", "mistral", "mixtral", "nanochat",
    "olmo", "olmo2", "olmo3", "olmoe", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss",
    "smollm3", "starcoder2",
})  # fmt: skip
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
IGNORE_INDEX = -100  # a label that isn't to be predicted
_BLOCK = 128  # rows, and columns, of a block of FlexAttention's masks


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_row: PackedRow | None = None,
    block_masks: BlockMasks | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention output (1, T, heads, D) for query, key, value (1, heads, T, D) of a packed row.

    With ``block_masks``, and without dropout, FlexAttention does all chunks at once; it has no backward pass on a CPU.
    PyTorch's attention takes the chunks one by one, so that no time goes into what a mask would hide: the first of a
    group of rows is plain causal attention, every further one queries with its few new tokens only. Without a packed
    row it is PyTorch's own attention.
    """
    if packed_row is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return plain
    if block_masks is not None and not options.get("dropout"):
        flexible, _ = flex_attention_forward(module, query, key, value, block_masks[sliding_window], **options)
        return flexible, None
    keys, values = (torch.split(each, list(packed_row.segments), dim=2) for each in (key, value))
    queries = torch.split(query, [chunk.new for chunk in packed_row.chunks], dim=2)
    outputs = []
    for chunk, part in zip(packed_row.chunks, queries, strict=True):
        mask = packed_row.mask(chunk, sliding_window)
        key, value = (torch.cat([each[index] for index in chunk.path], dim=2) for each in (keys, values))
        outputs.append(sdpa_attention_forward(module, part, key, value, mask, **options)[0])
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class BlockMasks(dict[int | None, BlockMask]):
    """FlexAttention's block masks of one packed row, by the layer's sliding window; each made once."""

    def __init__(self, row: PackedRow) -> None:
        super().__init__()
        (_, width), device = row.input_ids.shape, row.input_ids.device
        starts = [0, *accumulate(row.segments)]
        paths = torch.zeros(len(row.chunks), width, dtype=torch.bool)  # which columns are on each chunk's path
        for number, chunk in enumerate(row.chunks):
            for segment in chunk.path:
                paths[number, starts[segment] : starts[segment + 1]] = True
        sizes = torch.tensor([chunk.new for chunk in row.chunks])
        self._chunks = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(device)  # the chunk of each column
        self._paths, self._positions, self._width = paths.to(device), row.position_ids[0], width

    def __missing__(self, window: int | None) -> BlockMask:
        """Each column of the row attends to its own path up to itself, no further back than the ``window``."""
        chunks, paths, positions, width = self._chunks, self._paths, self._positions, self._width
        back = width if window is None else window

        def visible(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
            distance = positions[query] - positions[key]
            return paths[chunks[query], key] & (distance >= 0) & (distance < back)

        # As `create_block_mask` does, but for one row of blocks at a time: the whole mask is T x T, several times over.
        columns, none = torch.arange(width, device=positions.device), torch.zeros((), device=positions.device)
        rows_of_blocks = (visible(none, none, rows[:, None], columns[None]) for rows in torch.split(columns, _BLOCK))
        counts = torch.stack([_block_sums(mask) for mask in rows_of_blocks])
        full = counts == _BLOCK * _BLOCK
        blocks = [_ordered(each) for each in ((counts > 0) & ~full, full)]
        self[window] = BlockMask.from_kv_blocks(
            *blocks[0], *blocks[1], BLOCK_SIZE=_BLOCK, mask_mod=visible, seq_lengths=(width, width)
        )
        return self[window]


def _block_sums(mask: Tensor) -> Tensor:
    """(C): the True entries of each block of ``mask``, which is one row of blocks: (up to block size, T)."""
    sums = mask.sum(dim=0)
    return nn.functional.pad(sums, (0, -len(sums) % _BLOCK)).view(-1, _BLOCK).sum(dim=1)


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(1, 1, R) numbers and (1, 1, R, C) indices of the True blocks of each row of ``blocks`` (R, C), those first."""
    order = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(dim=1)[None, None].int(), order[None, None].int()


def why_not_packed(model: PreTrainedModel) -> str | None:
    """Why rows of this model can't be packed, in a few words; None when they can.

    Its type must be in `PACKED_MODEL_TYPES`, its attention PyTorch's own through transformers' interface.
    """
    config = model.config.get_text_config()
    plain = config.to_dict()
    other_layers = sorted(set(plain.get("layer_types") or ()) - _LAYER_TYPES)
    if model.config.model_type not in PACKED_MODEL_TYPES:
        return f"packed rows are not tested with model type {model.config.model_type}"
    if config._attn_implementation not in ("sdpa", ATTENTION):
        return f"its attention is {config._attn_implementation}, not sdpa"
    if other_layers:
        return f"it has layers of type {', '.join(other_layers)}"
    if plain.get("router_aux_loss_coef") and "output_router_logits" in plain:
        return "its router's auxiliary loss is over the unpacked rows (router_aux_loss_coef)"
    return None


class PrefixSharing:
    """The hooks of one model. ``packed`` says whether rows are packed; the head runs on completion tokens either way.

    With ``flex`` packed rows go through FlexAttention.
    """

    flex = False

    def __init__(self, model: Any, packed: bool = False) -> None:
        """Hook ``model``, a causal language model with TRL's fused head, or what PEFT made of one."""
        self.model: PreTrainedModel = model.get_base_model() if is_peft_model(model) else model
        # Of a running call: which labels count (2B, L - 1), and the hidden states from which they are predicted, as
        # indices into the backbone's rows laid end to end.
        self._call: tuple[Tensor, Tensor] | None = None
        self._packed = False
        self._handles: tuple[RemovableHandle, ...] = (
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            self.model.base_model.register_forward_hook(self._after_backbone),
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
            self.model.set_attn_implementation(ATTENTION)
        elif self.model.config._attn_implementation == ATTENTION:
            self.model.set_attn_implementation("sdpa")

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
        counted = labels != IGNORE_INDEX
        changed = {"labels": None, "shift_labels": labels[counted][None]}
        if self._packed:
            row = pack(given["input_ids"], given["attention_mask"].sum(dim=1))
            columns = row.columns
            changed |= {
                "input_ids": row.input_ids,
                "position_ids": row.position_ids,
                # Of four dimensions, so that transformers makes no mask; the row has it all.
                "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=labels.device),
                "packed_row": row,
                "block_masks": BlockMasks(row) if self.flex else None,
            }
        else:
            columns = torch.arange(given["labels"].numel(), device=labels.device).view(given["labels"].shape)
        self._call = counted, columns[:, :-1][counted]
        return args, {**given, **changed}

    def _after_backbone(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if self._call is not None:
            hidden = output.last_hidden_state
            output.last_hidden_state = hidden.flatten(0, 1).index_select(0, self._call[1])[None]
        return output

    def _after(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        """Lay out each (1, n) output as (2B, L - 1), 0 where nothing is counted; for n = 0 it depends on the model."""
        if self._call is not None:
            counted, self._call = self._call[0], None
            for name, value in list(output.items()):
                if isinstance(value, Tensor) and value.dim() == 2:
                    output[name] = value.new_zeros(counted.shape).masked_scatter(counted, value)
        return output
