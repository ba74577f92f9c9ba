"""A model with shared prefixes gives the figures and gradients of one without, in every way it is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import FIGURES, PACKED, UNPACKED, VARIANTS, Batch, batch, build, some_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from metareward.training.prefix_sharing.forward import PACKED_MODEL_TYPES, PrefixSharing, why_not_packed

_TOKENS = st.lists(st.integers(5, 8), min_size=1, max_size=6)
_PAIRS = st.lists(
    st.tuples(st.lists(st.integers(5, 8), min_size=1, max_size=8), _TOKENS, _TOKENS), min_size=1, max_size=3
)
Outcome = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def run(model: Any, rows: Batch) -> Outcome:
    """Figures, and the gradients of a sum that weighs every row differently."""
    model.zero_grad()
    output = model(**vars(rows), fused_lm_head=True, use_cache=False)
    weights = torch.arange(1.0, len(rows.labels) + 1)[:, None]
    (output.log_probs * weights).sum().backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return {name: output[name].detach() for name in FIGURES}, gradients


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference, relative to the largest entry of each tensor (or, of tiny tensors, of all)."""
    assert one.keys() == other.keys()
    sizes = {name: float(each.float().abs().max()) for name, each in one.items()}
    least = max(1e-6, 1e-3 * max(sizes.values()))
    return max(float((one[name].float() - other[name].float()).abs().max()) / max(sizes[name], least) for name in one)


def with_lora(model: Any) -> Any:
    """An adapter that changes something from the beginning."""
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


FAST = ("llama", "gemma3_text")  # of the model types; the others are slow
TYPES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in sorted(PACKED)]


def test_every_packed_type_is_proven() -> None:
    """A type in the list needs a configuration in `PACKED`, with which the tests below must pass."""
    assert PACKED.keys() == PACKED_MODEL_TYPES
    assert set(FAST) <= PACKED_MODEL_TYPES
    assert {model_type for model_type, _ in UNPACKED.values()}.isdisjoint(PACKED_MODEL_TYPES)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("model_type", TYPES)
def test_figures_and_gradients_agree(model_type: str, lora: bool) -> None:
    check_equal(build(model_type), lora)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_figures_and_gradients_agree_in_other_configurations(variant: str) -> None:
    check_equal(build(*VARIANTS[variant]), False)


def check_equal(model: Any, lora: bool) -> None:
    model = with_lora(model) if lora else model
    assert why_not_packed(model.get_base_model() if lora else model) is None
    plain, gradients = run(model, some_batch())
    assert len(gradients) > (10 if lora else 8)
    sharing = PrefixSharing(model)
    for packed in (False, True):
        sharing.packed = packed
        figures, shared = run(model, some_batch())
        assert apart(plain, figures) < 1e-5
        assert apart(gradients, shared) < 1e-5
    sharing.remove()
    assert apart(gradients, run(model, some_batch())[1]) == 0.0


@pytest.mark.parametrize("packed", [False, True])
def test_the_head_runs_on_completion_tokens_only(packed: bool) -> None:
    model, rows = build("llama"), some_batch()
    sharing, hidden = PrefixSharing(model, packed), []
    handle = model.base_model.register_forward_hook(lambda *given: hidden.append(given[2].last_hidden_state.shape))
    run(model, rows)
    handle.remove()
    sharing.remove()
    assert hidden == [(1, int((rows.labels != -100).sum()), 32)]


def test_the_backbone_runs_what_is_shared_once() -> None:
    model, rows = build("llama"), some_batch()
    sharing, widths = PrefixSharing(model, packed=True), []
    handle = model.base_model.layers[0].register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[:2]))
    run(model, rows)
    handle.remove()
    sharing.remove()
    beginnings = {tuple(ids[: at + 1]) for ids in rows.input_ids.tolist() for at in range(len(ids)) if ids[at] != 0}
    assert widths == [(1, len(beginnings))]
    assert len(beginnings) < 0.7 * int(rows.attention_mask.sum())


@settings(max_examples=30, deadline=None)
@given(_PAIRS)
def test_any_pairs(pairs: list[tuple[list[int], list[int], list[int]]]) -> None:
    prompts, chosen, rejected = (list(side) for side in zip(*pairs, strict=True))
    rows = batch(prompts, chosen, rejected)
    model = build("llama")
    plain, gradients = run(model, rows)
    sharing = PrefixSharing(model, packed=True)
    figures, shared = run(model, rows)
    sharing.remove()
    assert apart(plain, figures) < 1e-4
    assert apart(gradients, shared) < 1e-3


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model = build("gemma3_text").train()
    model.enable_input_require_grads()
    _, gradients = run(model, some_batch())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    sharing = PrefixSharing(model, packed=True)
    _, shared = run(model, some_batch())
    sharing.remove()
    assert apart(gradients, shared) < 1e-5


def test_bfloat16() -> None:
    model = build("qwen3")
    exact, _ = run(model, some_batch())
    with torch.autocast("cpu", torch.bfloat16):
        plain, gradients = run(model, some_batch())
        sharing = PrefixSharing(model, packed=True)
        figures, shared = run(model, some_batch())
    sharing.remove()
    error = apart({"log_probs": exact["log_probs"]}, {"log_probs": plain["log_probs"]})
    assert apart({"log_probs": plain["log_probs"]}, {"log_probs": figures["log_probs"]}) < 2 * error
    assert apart(gradients, shared) < 0.1


def test_a_model_that_is_asked_for_something_else_is_left_alone() -> None:
    model, rows = build("llama"), some_batch()
    plain = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
    sharing = PrefixSharing(model, packed=True)
    shared = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
    sharing.remove()
    assert torch.equal(plain, shared)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "stablelm" else pytest.mark.slow) for name in UNPACKED]
)
def test_types_that_are_not_in_the_list_run_unpacked(name: str) -> None:
    model = build(*UNPACKED[name])
    assert why_not_packed(model) == f"packed rows are not tested with model type {UNPACKED[name][0]}"
    plain, gradients = run(model, some_batch())
    sharing = PrefixSharing(model)  # the head runs on completion tokens only all the same
    figures, spared = run(model, some_batch())
    sharing.remove()
    assert apart(plain, figures) < 1e-5
    assert apart(gradients, spared) < 1e-5


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("mixtral", {"num_local_experts": 4, "router_aux_loss_coef": 0.01}, "its router's auxiliary loss is over the"),
        ("llama", {"attn_implementation": "eager"}, "its attention is eager, not sdpa"),
    ],
)
def test_configurations_that_run_unpacked(model_type: str, changes: dict[str, Any], reason: str) -> None:
    assert str(why_not_packed(build(model_type, changes))).startswith(reason)


def test_layers_of_another_type_run_unpacked() -> None:
    model = build("llama")
    model.config.layer_types = ["full_attention", "conv"]
    assert why_not_packed(model) == "it has layers of type conv"
