"""Model folders that can't be served are rejected in one line that names the folder and the fix."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import make_tokenizer
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    GPT2Config,
    GptOssConfig,
    MambaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from metareward.engines.local.checkpoint import (
    Checkpoint,
    OneDNNLinear,
    choose_device,
    choose_dtype,
    load,
    use_onednn_linear,
)
from metareward.engines.local.engine import open_core
from metareward.engines.local.selfcheck import check_model
from metareward.errors import UserError
from metareward.types import Message

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "vocab_size": 320,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def refusal(folder: Path, device: str = "cpu", dtype: str = "float32") -> str:
    with pytest.raises(UserError) as caught:
        open_core(folder, device=device, dtype=dtype, max_num_seqs=4, deterministic=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_no_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == f"{tmp_path / 'none'}: no such model folder"


def test_no_config(tmp_path: Path) -> None:
    assert "no config.json" in refusal(tmp_path)


def test_no_safetensors(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert refusal(copy).startswith(f"{copy}: no *.safetensors weights")


def test_truncated_weights(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "can't load the weights" in refusal(copy)


def test_broken_config(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    assert str(copy) in refusal(copy)


def test_no_tokenizer(copy: Path) -> None:
    for file in copy.glob("*token*"):
        file.unlink()
    assert "can't load the tokenizer" in refusal(copy)


def test_no_chat_template(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    assert "no chat template" in refusal(copy)


def test_missing_weights(copy: Path) -> None:
    edit(copy, num_hidden_layers=3)
    assert "the weights lack model.layers.2." in refusal(copy)


def test_unknown_devices_and_dtypes(llama: Path) -> None:
    assert "engine.device 'cuda:9'" in refusal(llama, device="cuda:9")
    assert "engine.device 'warp'" in refusal(llama, device="warp")
    assert "engine.dtype 'float8'" in refusal(llama, dtype="float8")


def test_models_with_their_own_code_are_rejected(copy: Path) -> None:
    edit(copy, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}, model_type="evil")
    (copy / "evil.py").write_text("raise SystemExit('ran')")
    assert str(copy) in refusal(copy)


def test_unsupported_architectures(tmp_path: Path) -> None:
    oss = GptOssConfig(
        **TINY, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_local_experts=2
    )
    models = {
        "t5": T5ForConditionalGeneration(T5Config(d_model=32, num_layers=1, num_heads=2, vocab_size=320)),
        "mamba": AutoModelForCausalLM.from_config(MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=320)),
        "bert": AutoModelForCausalLM.from_config(BertConfig(**TINY, intermediate_size=32, num_attention_heads=2)),
        "bloom": AutoModelForCausalLM.from_config(BloomConfig(hidden_size=32, n_head=2, n_layer=1, vocab_size=320)),
        "gpt_oss": AutoModelForCausalLM.from_config(oss),
    }
    reasons = {
        "t5": "encoder-decoder",
        "mamba": "linear_attention",
        "bert": "its logits",
        "bloom": "max_position_embeddings",
        "gpt_oss": "GptOssAttention",
    }
    for kind, model in models.items():
        folder = tmp_path / kind
        make_tokenizer().save_pretrained(folder)
        model.save_pretrained(folder)
        assert reasons[kind] in refusal(folder)


def test_the_context_has_another_name_in_gpt2(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    make_tokenizer().save_pretrained(tmp_path)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    checkpoint = load(tmp_path, "cpu", "float32")
    assert checkpoint.context == 64
    with torch.inference_mode():
        check_model(checkpoint)


def test_stop_ids_come_from_the_generation_config_and_the_tokenizer(copy: Path) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert load(copy, "cpu", "float32").stop_ids == {7, 9, 1}
    (copy / "generation_config.json").unlink()
    edit(copy, eos_token_id=5)
    assert load(copy, "cpu", "float32").stop_ids == {5, 1}


def test_length_dependent_rotary_angles_limit_the_context(copy: Path) -> None:
    stretched = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64}
    edit(copy, rope_parameters=stretched | {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6})
    assert load(copy, "cpu", "float32").context == 64


def test_encoding_ends_with_the_assistant_header(llama: Path) -> None:
    checkpoint: Checkpoint = load(llama, "cpu", "float32")
    ids = checkpoint.encode((Message("system", "be kind"), Message("user", "red")))
    assert checkpoint.tokenizer.decode(ids) == "<s><|system|>be kind</s><|user|>red</s><|assistant|>"
    assert checkpoint.decode([*checkpoint.encode((Message("user", " red "),))]) == " red "


def test_auto_is_resolved() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_dtype("auto", torch.device("cuda", 0)) == torch.bfloat16
    assert choose_dtype("auto", torch.device("mps")) == torch.float32
    assert choose_dtype("float32", torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 48), (3, 7, 48), (300, 48)])
@torch.inference_mode()
def test_onednn_linear_computes_the_same_product(dtype: torch.dtype, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    plain = nn.Linear(48, 80, bias=bias, dtype=dtype)
    inputs = torch.randn(shape, dtype=dtype)
    exact = nn.functional.linear(inputs.double(), plain.weight.double(), plain.bias.double() if bias else None)
    rounding = 1e-5 if dtype == torch.float32 else 2e-2
    reordered = OneDNNLinear(plain)(inputs)
    assert reordered.shape == exact.shape and reordered.dtype == dtype
    torch.testing.assert_close(reordered.double(), exact, rtol=rounding, atol=rounding)


class Odd(nn.Linear):
    """A linear layer that does more."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


@torch.inference_mode()
def test_only_plain_linear_layers_are_replaced() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Odd(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    inputs = torch.randn(5, 4)
    before = model(inputs)
    use_onednn_linear(model)
    kinds = [type(module) for module in model.modules() if not isinstance(module, nn.Sequential)]
    assert kinds == [OneDNNLinear, Odd, nn.ReLU, OneDNNLinear]
    torch.testing.assert_close(model(inputs), before)
