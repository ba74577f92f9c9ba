"""A model with shared prefixes gives the figures and gradients of one without, in every way it is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import APART, FIGURES, SHARING, Batch, batch, build, some_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from metareward.training.prefix_sharing.forward import PrefixSharing, why_not_packed

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


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", SHARING)
def test_figures_and_gradients_agree(architecture: str, lora: bool) -> None:
    model = build(SHARING[architecture])
    model = with_lora(model) if lora else model
    plain, gradients = run(model, some_batch())
    assert len(gradients) > (20 if lora else 10)
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
    model, rows = build(SHARING["llama"]), some_batch()
    sharing, hidden = PrefixSharing(model, packed), []
    handle = model.base_model.register_forward_hook(lambda *given: hidden.append(given[2].last_hidden_state.shape))
    run(model, rows)
    handle.remove()
    sharing.remove()
    assert hidden == [(1, int((rows.labels != -100).sum()), 32)]


def test_the_backbone_runs_what_is_shared_once() -> None:
    model, rows = build(SHARING["llama"]), some_batch()
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
    model = build(SHARING["llama"])
    plain, gradients = run(model, rows)
    sharing = PrefixSharing(model, packed=True)
    figures, shared = run(model, rows)
    sharing.remove()
    assert apart(plain, figures) < 1e-4
    assert apart(gradients, shared) < 1e-3


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model = build(SHARING["gemma3"]).train()
    model.enable_input_require_grads()
    _, gradients = run(model, some_batch())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    sharing = PrefixSharing(model, packed=True)
    _, shared = run(model, some_batch())
    sharing.remove()
    assert apart(gradients, shared) < 1e-5


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_flex_attention_forward(architecture: str) -> None:
    """Not compiled, and without gradient: on a CPU it has none."""
    model, rows = build(SHARING[architecture]), some_batch()
    sharing = PrefixSharing(model)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        plain = model(**vars(rows), fused_lm_head=True).log_probs
        sharing.packed, sharing.flex = True, True
        flexible = model(**vars(rows), fused_lm_head=True).log_probs
    sharing.remove()
    assert apart({"": plain}, {"": flexible}) < 1e-5


def test_bfloat16() -> None:
    model = build(SHARING["qwen3"])
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
    model, rows = build(SHARING["llama"]), some_batch()
    plain = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
    sharing = PrefixSharing(model, packed=True)
    shared = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
    sharing.remove()
    assert torch.equal(plain, shared)


@pytest.mark.parametrize("architecture", APART)
def test_architectures_that_are_run_apart_say_why(architecture: str) -> None:
    config, reason = APART[architecture]
    model = build(config)
    assert why_not_packed(model) == reason
    plain, gradients = run(model, some_batch())
    sharing = PrefixSharing(model)  # the head is sparing all the same
    figures, spared = run(model, some_batch())
    sharing.remove()
    assert apart(plain, figures) < 1e-5
    assert apart(gradients, spared) < 1e-5


@pytest.mark.parametrize("architecture", SHARING)
def test_architectures_that_share(architecture: str) -> None:
    assert why_not_packed(build(SHARING[architecture])) is None
