"""FlexAttention of packed rows, as far as a CPU has it: block masks, forward pass, and its own backward formula.

On a CPU PyTorch compiles FlexAttention's forward pass only, and `flex_attention` refuses tensors that need a gradient.
Below it is an operator with a backward pass in plain tensor operations, which shows that mask and gradients are right;
the compiled backward kernels of GPUs are checked by `PackingCheck` before the first step.
"""

from __future__ import annotations

import pytest
import torch
from architectures import WINDOW, build, some_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._higher_order_ops.flex_attention import flex_attention
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode

from metareward.training.prefix_sharing.check import PackingCheck
from metareward.training.prefix_sharing.forward import BlockMasks, PrefixSharing, packed_attention
from metareward.training.prefix_sharing.packing import PackedRow, pack

_ROWS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=150), min_size=1, max_size=6)
_WINDOWS = st.sampled_from([None, 1, 7, 200])


def packed(rows: list[list[int]]) -> PackedRow:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return pack(ids, torch.tensor([len(row) for row in rows]))


def blocks(mask: BlockMask) -> list[list[list[int]]]:
    """The indices of the partial and of the full blocks of each row of blocks, by row and by column."""
    found = []
    for counts, indices in (
        (mask.kv_num_blocks, mask.kv_indices),
        (mask.full_kv_num_blocks, mask.full_kv_indices),
        (mask.q_num_blocks, mask.q_indices),
        (mask.full_q_num_blocks, mask.full_q_indices),
    ):
        assert counts is not None and indices is not None
        assert counts.dtype == indices.dtype == torch.int32
        rows = zip(counts[0, 0].tolist(), indices[0, 0].tolist(), strict=True)
        found.append([row[:count] for count, row in rows])
    return found


@settings(max_examples=15, deadline=None)
@given(_ROWS, _WINDOWS)
def test_block_masks_are_those_of_pytorch(rows: list[list[int]], window: int | None) -> None:
    row = packed(rows)
    width = row.input_ids.shape[1]
    ours = BlockMasks(row)[window]
    theirs = create_block_mask(ours.mask_mod, None, None, width, width, device="cpu")
    assert blocks(ours) == blocks(theirs)
    assert (ours.BLOCK_SIZE, ours.seq_lengths) == (theirs.BLOCK_SIZE, theirs.seq_lengths)


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes of the largest tensor that an operation has made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self.bytes = max(self.bytes, output.numel() * output.element_size())
        return output


def test_a_block_mask_of_8192_columns_takes_few_megabytes() -> None:
    row = packed([[1] * 4096, [1] * 2048 + [2] * 4096])
    assert row.input_ids.shape[1] == 8192
    with _Largest() as largest:  # type: ignore[no-untyped-call]
        BlockMasks(row)[None]
    assert largest.bytes <= 128 * 8192 * 8  # one row of blocks as int64; the whole mask has 64 MiB as booleans


@settings(max_examples=10, deadline=None)
@given(_ROWS, _WINDOWS)
def test_forward_and_backward_are_those_of_the_chunks(rows: list[list[int]], window: int | None) -> None:
    row = packed(rows)
    width = row.input_ids.shape[1]
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, width, 8, requires_grad=True) for _ in range(3))
    weights = torch.randn(1, width, 2, 8)
    module = torch.nn.Module()
    module.is_causal = True  # type: ignore[assignment]
    chunks, _ = packed_attention(module, query, key, value, None, row, None, window, scaling=0.3, dropout=0.0)
    mask = BlockMasks(row)[window].as_tuple()
    flexible = flex_attention(query, key, value, lambda score, *_: score, mask, 0.3, {}, (), ())[0].transpose(1, 2)
    assert torch.allclose(chunks, flexible, atol=1e-5)
    gradients, expected = (
        torch.autograd.grad((each * weights).sum(), (query, key, value)) for each in (flexible, chunks)
    )
    for one, other in zip(gradients, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_the_models_forward_pass(model_type: str) -> None:
    """Not compiled, and without gradient."""
    model = build(model_type)
    assert model_type == "llama" or model.config.sliding_window == WINDOW
    sharing = PrefixSharing(model)
    with torch.compiler.set_stance("force_eager"):
        times, _ = PackingCheck(sharing, model, vars(some_batch()), with_gradient=False).try_packed(flex=True)
    assert sharing.flex
    sharing.remove()
    assert times < 1
