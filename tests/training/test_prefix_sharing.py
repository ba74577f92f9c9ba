from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_world import save_model
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, MistralConfig

from metareward.training.prefix_sharing import can_share, pack, share_prefixes, unpack, unshare_prefixes

Pair = tuple[list[int], list[int], list[int]]
_TOKENS = st.integers(5, 60)
_PAIRS = st.lists(
    st.tuples(st.lists(_TOKENS, min_size=1, max_size=8), st.lists(_TOKENS, max_size=6), st.lists(_TOKENS, max_size=6)),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = save_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(folder)


def batch(pairs: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as TRL's collator makes them: chosen above rejected, padded on the right; and the mask."""
    rows = [prompt + chosen for prompt, chosen, _ in pairs] + [prompt + rejected for prompt, _, rejected in pairs]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return ids, torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], True)


def test_a_pair_by_hand() -> None:
    ids, mask = batch([([7, 8], [1, 2], [3])])
    packing = pack(ids, mask.sum(dim=1))
    assert packing.input_ids.tolist() == [[7, 8, 1, 2, 3]]
    assert packing.positions.tolist() == [[0, 1, 2, 3, 2]]
    assert packing.mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    hidden = torch.arange(5.0).view(1, 5, 1)
    assert unpack(hidden, packing.places)[..., 0].tolist()[0] == [0, 1, 2, 3]
    assert unpack(hidden, packing.places)[..., 0].tolist()[1][:3] == [0, 1, 4]


@settings(max_examples=30, deadline=None)
@given(_PAIRS)
def test_hidden_states_and_gradients_are_those_of_separate_rows(model: Any, pairs: list[Pair]) -> None:
    ids, mask = batch(pairs)
    plain, gradient = _run(model, ids, mask)
    share_prefixes(model)
    shared, shared_gradient = _run(model, ids, mask)
    unshare_prefixes(model)
    assert torch.allclose(plain, shared, atol=1e-4)
    assert torch.allclose(gradient, shared_gradient, atol=1e-4 + 1e-3 * float(gradient.abs().max()))


def _run(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states, and how the sum of their first components depends on the embeddings (their norm is constant)."""
    model.zero_grad()
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state * mask[..., None]
    hidden[..., :5].sum().backward()
    return hidden.detach(), model.base_model.embed_tokens.weight.grad.clone()


def test_a_model_that_looks_back_only_so_far_is_left_alone(model: Any) -> None:
    assert can_share(model.config)
    windowed = MistralConfig(sliding_window=8)
    windowed._attn_implementation = "sdpa"
    assert not can_share(windowed)
    windowed.sliding_window = None
    assert can_share(windowed)
    windowed._attn_implementation = "eager"
    assert not can_share(windowed)
