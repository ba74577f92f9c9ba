"""How much memory a training takes on each device, told from the start model's folder alone.

    weights    4 bytes each where they are trained, with 4 for the gradient and 8 for Adam's two averages; a base that
               only carries an adapter has 2 (bfloat16), 4 (float32) or about 0.55 (4 bits) and nothing else
    reference  one more set, unless it is the base less its adapter
    computing  34 bytes (68 in float32) for each token, layer and hidden dimension (arXiv 2205.05198, section 4.1,
               without the attention matrix, which is never stored), or 2 with checkpointing and 34 for one layer;
               and three float32 values of the vocabulary for each completion token

It is an upper bound with the longest rows that max_length allows, and says nothing of the allocator's waste.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from metareward.training.job import Sharding

_TRAINED, _ADAM_AND_GRADIENT = 4, 12
_FOUR_BIT = 0.55
_LAYER = 34


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What of a model decides its memory: how many weights, and its shape."""

    weights: int
    layers: int
    hidden: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Load:
    """How it is trained. ``tokens`` and ``completion_tokens`` are those of one micro-batch on one device.

    ``adapter`` is the rank of a low-rank adapter, 0 for full fine-tuning. ``two_bytes`` says that the computation is
    in bfloat16.
    """

    tokens: int
    completion_tokens: int
    adapter: int = 0
    four_bit: bool = False
    two_bytes: bool = True
    checkpointing: bool = False
    separate_reference: bool = True
    processes: int = 1
    sharding: Sharding = "ddp"


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
    return ModelSize(sum(map(_count, files)), layers, hidden, vocabulary)


def _count(path: Path) -> int:
    """The weights in a safetensors file, from its header: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return sum(math.prod(each["shape"]) for name, each in header.items() if name != "__metadata__")


def training_bytes(size: ModelSize, load: Load) -> int:
    """What one device needs, in bytes."""
    return round(_states(size, load) + _computing(size, load))


def _states(size: ModelSize, load: Load) -> float:
    parts = load.processes
    whole = parts if load.sharding in ("fsdp2", "zero3") else 1  # what weights are divided by
    rest = parts if load.sharding != "ddp" else 1  # and gradients and averages
    held = 2 if load.two_bytes else 4
    if load.adapter:
        trained = adapter_weights(size, load.adapter)
        base = size.weights * (_FOUR_BIT if load.four_bit else held)
    else:
        trained, base = size.weights, 0.0
        held = 4
    reference = size.weights * held if load.separate_reference else 0
    return (base + reference + trained * _TRAINED) / whole + trained * _ADAM_AND_GRADIENT / rest


def adapter_weights(size: ModelSize, rank: int) -> int:
    """Weights of an adapter on all linear layers: of each m x n matrix, rank (m + n); layers taken as square ones."""
    matrices = size.weights / size.hidden**2
    return round(matrices * 2 * size.hidden * rank)


def _computing(size: ModelSize, load: Load) -> float:
    # The 34 are bytes where a value has two; a few of them are masks of one byte, which is close enough.
    each = 1 if load.two_bytes else 2
    stored = 2 * size.layers + _LAYER if load.checkpointing else size.layers * _LAYER
    return load.tokens * size.hidden * stored * each + load.completion_tokens * size.vocabulary * 3 * 4
