"""Whether packed rows give a model's figures: rounding passes, wrong positions, masks and gradients don't."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from architectures import FIGURES, PACKED, UNPACKED, Batch, batch, build, draw
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.utils import add_fused_lm_head

from metareward.engines.chat import ChatEncoder
from metareward.pocket.world import MODEL
from metareward.training.prefix_sharing.check import PackingCheck
from metareward.training.prefix_sharing.forward import PrefixSharing
from metareward.types import Message

FAST = ("llama", "gemma3_text")
TYPES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in sorted(PACKED)]
DTYPES = [torch.float32, torch.bfloat16]


def two_pairs(seed: int = 0, even: bool = False) -> Batch:
    """Two pairs as a judge's: the prompts begin alike; ``even``: all rows have the same length."""
    generator = torch.Generator().manual_seed(seed)
    rubric = draw(generator, 30)
    prompts = [rubric + draw(generator, 20), rubric + draw(generator, 20 if even else 27)]
    sizes = (20, 20, 20, 20) if even else (20, 33, 25, 12)
    one, two, three, four = (draw(generator, size) for size in sizes)
    return batch(prompts, [one, two], [three, four])


def autocast(dtype: torch.dtype) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)


def tried(model: Any, rows: Batch, dtype: torch.dtype = torch.float32, with_gradient: bool = True) -> tuple[float, str]:
    """What the check finds; 1 and less is rounding."""
    sharing = PrefixSharing(model)
    check = PackingCheck(sharing, model, vars(rows), with_gradient, dtype, lambda: autocast(dtype))
    found = check.try_packed(flex=False)
    sharing.remove()
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model_type", TYPES)
def test_rounding_passes(model_type: str, dtype: torch.dtype) -> None:
    model = build(model_type)
    assert tried(model, two_pairs(), dtype)[0] < 0.8
    assert tried(model, two_pairs(even=True), dtype)[0] < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(20))
def test_rounding_passes_with_other_rows_and_weights(seed: int, dtype: torch.dtype) -> None:
    assert tried(build("llama", seed=seed), two_pairs(seed, even=seed % 3 == 0), dtype)[0] < 1


@pytest.mark.parametrize("with_gradient", [False, True])
def test_rounding_passes_where_rows_alone_are_the_batch_to_the_bit(with_gradient: bool) -> None:
    """The shipped model, more confident than random ones, on short rows: its gradients were called different."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    add_fused_lm_head(model, outputs=FIGURES)
    encoder, asked = ChatEncoder(AutoTokenizer.from_pretrained(MODEL)), []
    for instruction in ("Count from 25 to 27.", "Keep only the foods: pear, cheese, fox, bear."):
        asked.append((Message("user", instruction),))
    wrong = ("dog, 24, age 1", " order soup")
    answers = [encoder.encode_completion(*each) for each in zip(asked, wrong, strict=True)]
    shorter = min(map(len, answers))
    answers = [answer[:shorter] for answer in answers]
    rows = batch([encoder.encode(each) for each in asked], answers, answers[::-1])
    assert tried(model, rows, with_gradient=with_gradient)[0] < 0.8


def shift_positions(model: Any) -> None:
    """Make all tokens but those of the first chunk one position late, in packed rows."""

    def late(_: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if given.get("packed_row") is not None:
            positions = given["position_ids"].clone()
            positions[:, given["packed_row"].chunks[0].new :] += 1
            given = {**given, "position_ids": positions}
        return args, given

    model.base_model.register_forward_pre_hook(late, with_kwargs=True)


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model_type", TYPES)
def test_positions_off_by_one_are_noticed(model_type: str, dtype: torch.dtype, with_gradient: bool) -> None:
    model, rows = build(model_type), two_pairs()
    shift_positions(model)
    times, what = tried(model, rows, dtype, with_gradient)
    assert times > 2
    assert what.startswith("packed rows differ by ")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_wrong_backward_pass_is_noticed(dtype: torch.dtype) -> None:
    """The right log-probabilities, and a gradient that is 5 % too large in packed rows."""
    model = build("llama")

    def enlarge(module: Any, args: Any, given: dict[str, Any], output: Any) -> None:
        if given.get("packed_row") is not None and output[0].requires_grad:
            output[0].register_hook(lambda gradient: gradient * 1.05)

    model.model.layers[0].self_attn.register_forward_hook(enlarge, with_kwargs=True)
    times, what = tried(model, two_pairs(), dtype)
    assert times > 1
    assert what.startswith("gradients of packed rows differ by")
    assert tried(model, two_pairs(), dtype, with_gradient=False)[0] < 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_model_whose_figures_depend_on_padding_is_noticed(dtype: torch.dtype) -> None:
    """Its rows alone differ from the batch by far more than rounding, and so do packed rows."""
    model = build("llama")
    norm = model.base_model.layers[0].input_layernorm
    norm.register_forward_hook(lambda _, __, output: output + output.roll(1, dims=1))
    assert tried(model, two_pairs(), dtype)[0] > 1


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in UNPACKED if name != "gpt2"])
def test_types_that_pack_wrongly_are_noticed(name: str) -> None:
    assert tried(build(*UNPACKED[name]), two_pairs(), torch.bfloat16)[0] > 3


@pytest.mark.parametrize(
    "error", [ValueError("no such\nmask"), TypeError(), KeyError("x"), torch.OutOfMemoryError("no")]
)
def test_any_error_is_a_difference(error: Exception) -> None:
    model = build("llama")

    def refuse(_: Any, args: Any, given: dict[str, Any]) -> None:
        if given.get("packed_row") is not None:
            raise error

    model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    times, what = tried(model, two_pairs())
    assert times == float("inf")
    assert what == (" ".join(str(error).split()) or "TypeError")
    assert model.get_input_embeddings()._forward_hooks == {}
