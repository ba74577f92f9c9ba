"""What an engine makes sure of before it serves: that it computes what the model does, and the same in any place."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metareward.engines.checkpoint import Checkpoint
from metareward.engines.engine import EngineError
from metareward.engines.shared_prefix import SlotShape
from metareward.engines.slots import Piece, Slots
from metareward.errors import UserError

_PROMPT, _WIDTH, _STEPS = 24, 16, 3
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2}


def check_model(checkpoint: Checkpoint) -> None:
    """Compare slots of shared prefixes with the model's own attention, on a prompt and a few tokens after it.

    Raises `UserError` if they differ by more than rounding: the architecture needs something this engine lacks.
    """
    ids = _random_ids(checkpoint, _PROMPT + _STEPS, seed=0)
    try:
        ours, reference = _slot_logits(checkpoint, ids), _plain_logits(checkpoint, ids)
    except (TypeError, AttributeError, RuntimeError, ValueError, IndexError, EngineError) as error:
        raise UserError(_unsuited(checkpoint, " ".join(str(error).split())[:200])) from error
    difference = float((ours - reference).norm() / reference.norm())
    if not difference < _TOLERANCE[checkpoint.dtype]:
        raise UserError(_unsuited(checkpoint, f"its logits come out {difference:.1%} off"))


def _slot_logits(checkpoint: Checkpoint, ids: list[int]) -> Tensor:
    shape = SlotShape(slots=2, samples=2, prompt=_PROMPT, suffix=_STEPS + 1)
    slots = Slots(checkpoint, shape, _WIDTH)
    pieces = [Piece(1, ids, start, min(start + _WIDTH, _PROMPT)) for start in range(0, _PROMPT, _WIDTH)]
    logits = [slots.read(pieces, len(pieces) + 1)[len(pieces) - 1]]
    lengths_G = np.array([0, _PROMPT])
    for step in range(_STEPS):
        tokens_R = np.full(shape.rows, ids[_PROMPT + step])
        logits.append(slots.step(tokens_R, lengths_G, np.array([0, step]), shape, {})[-1])
    return torch.stack(logits).float()


def _plain_logits(checkpoint: Checkpoint, ids: list[int]) -> Tensor:
    model = checkpoint.model
    model.set_attn_implementation("eager")
    outputs = model(input_ids=torch.tensor([ids], device=checkpoint.device), use_cache=False)
    model.set_attn_implementation(checkpoint.attention.name)
    logits: Tensor = outputs.logits[0, _PROMPT - 1 :].float()
    return logits


def _unsuited(checkpoint: Checkpoint, why: str) -> str:
    kind = checkpoint.model.config.model_type
    return f"{checkpoint.folder}: the local engine can't run models of type {kind}: {why}; serve it elsewhere"


def bytes_per_position(checkpoint: Checkpoint) -> int:
    """Bytes of keys and values that one token position takes, over all layers."""
    slots = Slots(checkpoint, SlotShape(slots=1, samples=1, prompt=1, suffix=1), width=1)
    slots.read([Piece(0, [0], 0, 1)], 1)
    return slots.bytes // slots.shape.positions


def check_rows(checkpoint: Checkpoint, shape: SlotShape, width: int, batch: int) -> None:
    """Run the same request in the first and in the last place of this shape, with other neighbours each time.

    Prompts are read in passes of ``batch`` pieces of ``width`` tokens. Raises `EngineError` unless all logits are
    equal bit for bit.
    """
    first = _logits_at(Slots(checkpoint, shape, width), batch, checkpoint, last=False)
    last = _logits_at(Slots(checkpoint, shape, width), batch, checkpoint, last=True)
    if not torch.equal(first, last):
        raise EngineError(
            f"{checkpoint.folder}: on {checkpoint.device} in {checkpoint.dtype} a result depends on its place in the "
            f"batch ({shape}); set engine.deterministic to false, or try another dtype or number of rows"
        )


def _logits_at(slots: Slots, batch: int, checkpoint: Checkpoint, last: bool) -> Tensor:
    """Logits of one fixed request in the first or last slot, its neighbours in all passes being random.

    Where slots have a trunk, in the first one the request is alone with its own, in the last one all share it.
    """
    shape, width, seed = slots.shape, slots.width, 1 + int(last)
    slot, row = (shape.slots - 1, shape.rows - 1) if last else (0, 0)
    longest = min(shape.prompt, checkpoint.context - shape.suffix, shape.trunk + 2 * width)
    prompt = _random_ids(checkpoint, max(1, longest - 3), seed=0)
    logits = []
    for start in range(0, shape.trunk, width * batch):
        ends = range(start + width, min(start + width * batch, shape.trunk) + 1, width)
        slots.read([Piece(slot, prompt, end - width, end) for end in ends], batch)
    for start in range(shape.trunk, len(prompt), width):
        probe = Piece(slot, prompt, start, min(start + width, len(prompt)))
        others = _neighbours(checkpoint, shape, width, batch - 1, slot, seed + start)
        logits.append(slots.read([*others, probe] if last else [probe, *others], batch)[len(others) if last else 0])
    lengths_G = np.full(shape.slots, min(width, shape.prompt))
    lengths_G[slot] = len(prompt)
    trunks = {other: b"" if last else str(other).encode() for other in (slot, *range(shape.slots))}
    for step in range(min(_STEPS, shape.suffix)):
        tokens_R = np.array(_random_ids(checkpoint, shape.rows, seed * 2000 + step))
        tokens_R[row] = _random_ids(checkpoint, 1, 3000 + step)[0]
        logits.append(slots.step(tokens_R, lengths_G, np.full(shape.slots, step), shape, trunks)[row])
    return torch.stack(logits)


def _neighbours(checkpoint: Checkpoint, shape: SlotShape, width: int, count: int, slot: int, seed: int) -> list[Piece]:
    """``count`` random first pieces for slots other than ``slot``, or none if it is the only one."""
    others = [other for other in range(shape.slots) if other != slot]
    length = min(width, shape.prompt)
    pieces = [Piece(other, _random_ids(checkpoint, length, seed * 1000 + other), 0, length) for other in others]
    return (pieces * count)[:count]


def _random_ids(checkpoint: Checkpoint, count: int, seed: int) -> list[int]:
    size = checkpoint.model.get_input_embeddings().num_embeddings
    ids: list[int] = np.random.default_rng(seed).integers(0, size, count).tolist()
    return ids
