"""Checks before serving: the engine's logits match the model's own attention, and don't depend on the batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from metareward.engines.base import EngineError
from metareward.engines.local.checkpoint import Checkpoint
from metareward.engines.local.kv_cache import BucketShape
from metareward.engines.local.model_runner import ROW_MULTIPLE, Chunk, ModelRunner, compact_widths
from metareward.errors import UserError

_PROMPT, _CHUNK_SIZE, _STEPS = 24, 16, 3
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2}


def check_model(checkpoint: Checkpoint) -> None:
    """Compare our prefill and decode logits with those of the model's own attention, on one short random text.

    Raises `UserError` if they differ by more than rounding: then the architecture has a feature that we lack.
    """
    ids = _random_ids(checkpoint, _PROMPT + _STEPS, seed=0)
    try:
        ours, reference = _runner_logits(checkpoint, ids), _reference_logits(checkpoint, ids)
    except (TypeError, AttributeError, RuntimeError, ValueError, IndexError, EngineError) as error:
        raise UserError(_unsupported(checkpoint, " ".join(str(error).split())[:200])) from error
    if not bool(torch.isfinite(reference).all()):
        raise UserError(_not_finite(checkpoint))
    difference = float((ours - reference).norm() / reference.norm())
    if not difference < _TOLERANCE[checkpoint.dtype]:
        raise UserError(_unsupported(checkpoint, f"its logits differ by {difference:.1%} from transformers'"))


def _not_finite(checkpoint: Checkpoint) -> str:
    """The error message for a model that gives NaN or infinite logits by transformers' own code, too."""
    for path in sorted(checkpoint.folder.glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  (a handle, no mapping)
                if not bool(torch.isfinite(weights.get_tensor(name)).all()):
                    return f"{path}: the weight {name} holds NaN or infinite values; fix: restore the file"
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    return f"{checkpoint.folder}: the model's logits in {dtype} are NaN or infinite; fix: try engine.dtype float32"


def _runner_logits(checkpoint: Checkpoint, ids: list[int]) -> Tensor:
    shape = BucketShape(slots=2, samples=2, prompt=_PROMPT, suffix=_STEPS + 1)
    runner = ModelRunner(checkpoint, shape, _CHUNK_SIZE)
    chunks = [Chunk(1, ids, start, min(start + _CHUNK_SIZE, _PROMPT)) for start in range(0, _PROMPT, _CHUNK_SIZE)]
    logits = [runner.prefill(chunks, len(chunks) + 1)[len(chunks) - 1]]
    lengths_G = np.array([0, _PROMPT])
    for step in range(_STEPS):
        tokens_R = np.full(shape.rows, ids[_PROMPT + step])
        logits.append(runner.decode(tokens_R, lengths_G, np.array([0, step]), shape, (), np.arange(shape.rows))[-1])
    return torch.stack(logits).float()


def _reference_logits(checkpoint: Checkpoint, ids: list[int]) -> Tensor:
    model = checkpoint.model
    model.set_attn_implementation("eager")
    outputs = model(input_ids=torch.tensor([ids], device=checkpoint.device), use_cache=False)
    model.set_attn_implementation(checkpoint.attention.name)
    logits: Tensor = outputs.logits[0, _PROMPT - 1 :].float()
    return logits


def _unsupported(checkpoint: Checkpoint, why: str) -> str:
    kind = checkpoint.model.config.model_type
    return f"{checkpoint.folder}: the local engine can't run models of type {kind}: {why}; fix: use another engine"


def bytes_per_position(checkpoint: Checkpoint) -> int:
    """Bytes of keys and values per token position, over all layers."""
    runner = ModelRunner(checkpoint, BucketShape(slots=1, samples=1, prompt=1, suffix=1), chunk_size=1)
    runner.prefill([Chunk(0, [0], 0, 1)], 1)
    return runner.cache.bytes // runner.shape.positions


def check_batch_invariance(checkpoint: Checkpoint, shape: BucketShape, chunk_size: int, batch: int) -> None:
    """Run one request in the first and in the last slot of this shape, among different other requests.

    Prefill passes have ``batch`` chunks of ``chunk_size`` tokens. In the first slot decode steps cover as few columns
    as possible, in the last slot all; where the shape is compact, there are steps of every number of rows and passes of
    every width that occur. Raises `EngineError` at the first logits that aren't equal bit for bit.
    """
    last = list(_logits_in_slot(ModelRunner(checkpoint, shape, chunk_size), batch, checkpoint, last=True))
    first = _logits_in_slot(ModelRunner(checkpoint, shape, chunk_size), batch, checkpoint, last=False)
    if not all(torch.equal(*pair) for pair in zip(first, last, strict=True)):
        raise EngineError(
            f"{checkpoint.folder}: on {checkpoint.device} in {checkpoint.dtype} a request's result depends on its slot "
            f"and on the rest of the batch ({shape.slots} requests of {shape.samples} completions); fix: set "
            "engine.deterministic to false, or use another engine.dtype or engine.max_num_seqs"
        )


def _logits_in_slot(runner: ModelRunner, batch: int, checkpoint: Checkpoint, last: bool) -> Iterator[Tensor]:
    """Logits of a fixed request in the first or last slot, with random requests in the other slots, as they are made.

    Those after each chunk of its short prompt, then those of `_decode_logits`.
    """
    shape, size, slot = runner.shape, runner.chunk_size, runner.shape.slots - 1 if last else 0
    longest = min(shape.prompt, checkpoint.context - shape.suffix, 2 * size)
    prompt = _random_ids(checkpoint, max(1, longest - 3), seed=0)
    widths = compact_widths(batch) if shape.compact else (batch,) * 2
    starts = range(0, len(prompt), size)
    for turn, start in enumerate(starts):
        probe = Chunk(slot, prompt, start, min(start + size, len(prompt)))
        others = _other_chunks(checkpoint, shape, size, batch - 1, slot, seed=1 + slot + start)
        own = widths[turn :: len(starts)]
        if slot:
            yield from [runner.prefill([*others, probe], batch)[len(others)]] * len(own)
        else:
            yield from (runner.prefill([probe, *others][:width], width)[0] for width in own)
    # Random keys and values serve as well as those of a real prompt and its completions.
    runner.cache.fill_random(slot, seed=0)
    yield from _decode_logits(runner, checkpoint, slot)


def _decode_logits(runner: ModelRunner, checkpoint: Checkpoint, slot: int) -> Iterator[Tensor]:
    """Logits of the request in ``slot`` for a few lengths of its prompt and of its completion.

    In the first slot it shares no prefix and steps cover only the columns that it needs, and where the shape is compact
    a third of the numbers of rows for each length. In any other slot all slots share their prefixes, and the other
    requests are as long as possible.
    """
    shape = runner.shape
    longest = min(shape.prompt, checkpoint.context - shape.suffix)
    # The probed slot comes first: a prefix group reads the keys and values of its first slot.
    keys = {other: b"" if slot else str(other).encode() for other in (slot, *range(shape.slots))}
    for turn, share in enumerate((0.0, 0.5, 0.9)):
        shortest = min(longest, max(shape.split_points, default=0) + 1)
        length, step = shortest + int(share * (longest - shortest)), int(share * (shape.suffix - 1))
        if slot:
            used, other_length, other_step = shape, longest, shape.suffix - 1
        else:
            used, other_length, other_step = shape.trimmed(length, step + 1), length, step
        counts = _row_counts(shape)[turn::3]
        lengths_G, steps_G = np.full(shape.slots, other_length), np.full(shape.slots, other_step)
        lengths_G[slot], steps_G[slot] = length, step
        tokens_R = np.array(_random_ids(checkpoint, shape.rows, 2000 * (1 + slot) + turn))
        tokens_R[slot * shape.samples : (slot + 1) * shape.samples] = _random_ids(checkpoint, shape.samples, turn)
        if slot:
            full = [keys] * len(shape.split_points)
            found = runner.decode(tokens_R, lengths_G, steps_G, used, full, np.arange(shape.rows))
            own = found[slot * shape.samples :]
            yield from (logit for count in counts for logit in own[:count])
            continue
        for count in counts:
            slots = -(-count // shape.samples)
            some = {other: key for other, key in keys.items() if other < slots}
            part, several = replace(used, slots=slots), [some] * len(shape.split_points)
            found = runner.decode(tokens_R, lengths_G, steps_G, part, several, np.arange(count))
            yield from found[: shape.samples]


def _row_counts(shape: BucketShape) -> list[int]:
    """The numbers of rows that a step may have; at least three, the full one among them."""
    counts = [*range(ROW_MULTIPLE, shape.rows, ROW_MULTIPLE)] if shape.compact else []
    return [*counts, *[shape.rows] * max(1, 3 - len(counts))]


def _other_chunks(
    checkpoint: Checkpoint, shape: BucketShape, size: int, count: int, slot: int, seed: int
) -> list[Chunk]:
    """``count`` random first chunks for slots other than ``slot``, or none if it is the only one."""
    others = [other for other in range(shape.slots) if other != slot]
    length = min(size, shape.prompt)
    chunks = [Chunk(other, _random_ids(checkpoint, length, seed * 1000 + other), 0, length) for other in others]
    return (chunks * count)[:count]


def _random_ids(checkpoint: Checkpoint, count: int, seed: int) -> list[int]:
    size = checkpoint.model.get_input_embeddings().num_embeddings
    ids: list[int] = np.random.default_rng(seed).integers(0, size, count).tolist()
    return ids
