"""How much memory training takes on each device and of the host, from the start model's folder alone.

    weights      4 bytes each where they are trained, plus 4 for the gradient and 8 for Adam's two averages; a base that
                 only carries an adapter has 2 (bfloat16), 4 (float32) or about 0.55 (4 bits) and nothing else
    reference    one more copy, unless it is the policy without its adapter
    activations  34 bytes (68 in float32) for each token, layer and hidden dimension (arXiv 2205.05198, section 4.1,
                 without the attention matrix, which is never stored), or with gradient checkpointing 2 and 34 for one
                 layer; and three float32 values of the vocabulary for each completion token

It is an upper bound for the longest rows that max_length allows, without the allocator's waste.

Beside GPUs the host has the weights while they are loaded and saved: policy and reference once for each process, but
nothing where each loads its part onto its own GPU (`loaded_in_parts`); then one model, as the first process writes it.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from metareward.training.config import Sharding

_TRAINED_WEIGHT, _ADAM_AND_GRADIENT = 4, 12
_FOUR_BIT_WEIGHT = 0.55
_LAYER = 34


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What of a model decides its memory: the number of weights, and its shape."""

    weights: int
    layers: int
    hidden: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class MemorySpec:
    """How the model is trained. ``tokens`` and ``completion_tokens`` are those of a micro-batch on one device.

    ``lora_r`` is 0 for full fine-tuning. ``bfloat16`` is the format of the computation.
    """

    tokens: int
    completion_tokens: int
    lora_r: int = 0
    four_bit: bool = False
    bfloat16: bool = True
    gradient_checkpointing: bool = False
    separate_reference: bool = True
    num_processes: int = 1
    sharding: Sharding = "ddp"
    loaded_in_parts: bool = False


def model_size(folder: Path) -> ModelSize | None:
    """The size of the model in a Hugging Face folder; None when there is none with safetensors weights."""
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    try:
        layers, hidden, vocabulary = (config[name] for name in ("num_hidden_layers", "hidden_size", "vocab_size"))
    except KeyError:
        return None
    weights = 0
    for path in files:
        with path.open("rb") as file:  # the header: 8 bytes of length, then JSON
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        weights += sum(math.prod(each["shape"]) for name, each in header.items() if name != "__metadata__")
    return ModelSize(weights, layers, hidden, vocabulary)


def training_bytes(size: ModelSize, spec: MemorySpec) -> int:
    """What one device needs, in bytes: weights, gradients and Adam's averages, and activations."""
    frozen = 2 if spec.bfloat16 and spec.lora_r else 4
    trained, base = size.weights, 0.0
    if spec.lora_r:
        trained = adapter_weights(size, spec.lora_r)
        base = size.weights * (_FOUR_BIT_WEIGHT if spec.four_bit else frozen)
    reference = size.weights * frozen if spec.separate_reference else 0
    weight_parts = spec.num_processes if spec.sharding in ("fsdp2", "zero3") else 1
    state_parts = spec.num_processes if spec.sharding != "ddp" else 1
    states = (base + reference + trained * _TRAINED_WEIGHT) / weight_parts + trained * _ADAM_AND_GRADIENT / state_parts
    # The 34 are bytes where a value has two; a few of them are masks of one byte, which is close enough.
    factor = 1 if spec.bfloat16 else 2
    stored = 2 * size.layers + _LAYER if spec.gradient_checkpointing else size.layers * _LAYER
    activations = spec.tokens * size.hidden * stored * factor + spec.completion_tokens * size.vocabulary * 3 * 4
    return round(states + activations)


def host_bytes(size: ModelSize, spec: MemorySpec) -> int:
    """What training on GPUs needs of the machine's own memory, in bytes: the larger of loading and saving.

    Saving takes a model in float32, and a copy in another format unless the weights are converted one by one.
    """
    loaded = 2 if spec.bfloat16 and spec.lora_r else 4
    loading = 0 if spec.loaded_in_parts else size.weights * loaded * (1 + spec.separate_reference) * spec.num_processes
    saving = size.weights * 4 * (1 if spec.loaded_in_parts else 2)
    return max(loading, saving)


def adapter_weights(size: ModelSize, lora_r: int) -> int:
    """Weights of an adapter on all linear layers: r (m + n) for each m x n matrix, all matrices taken as square."""
    matrices = size.weights / size.hidden**2
    return round(matrices * 2 * size.hidden * lora_r)
