"""What an engine makes sure of before it serves: that it computes what the model does, and the same in any place."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metareward.engines.checkpoint import Checkpoint
from metareward.engines.engine import EngineError
from metareward.engines.slot_memory import SlotShape
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
        logits.append(slots.step(tokens_R, lengths_G, np.array([0, step]), shape, ())[-1])
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

    Prompts are read in passes of ``batch`` pieces of ``width`` tokens. In the first place steps look at as few columns
    as they may, in the last one at all. Raises `EngineError` unless all logits are equal bit for bit.
    """
    first, last = (_logits_at(Slots(checkpoint, shape, width), batch, checkpoint, last) for last in (False, True))
    if not torch.equal(first, last):
        raise EngineError(
            f"{checkpoint.folder}: on {checkpoint.device} in {checkpoint.dtype} a result depends on its place in the "
            f"batch ({shape}); set engine.deterministic to false, or try another dtype or number of rows"
        )


def _logits_at(slots: Slots, batch: int, checkpoint: Checkpoint, last: bool) -> Tensor:
    """Logits of one fixed request in the first or last slot, its neighbours in all passes being random."""
    slot = slots.shape.slots - 1 if last else 0
    read = _read_logits(slots, batch, checkpoint, slot)
    # As if it had been read and written up to there: random keys and values do as well as any.
    slots.fill(slot, seed=0)
    return torch.stack([*read, *_step_logits(slots, checkpoint, slot)])


def _read_logits(slots: Slots, batch: int, checkpoint: Checkpoint, slot: int) -> list[Tensor]:
    """Logits after each piece of a short prompt that is read into ``slot``."""
    shape, width = slots.shape, slots.width
    longest = min(shape.prompt, checkpoint.context - shape.suffix, 2 * width)
    prompt, logits = _random_ids(checkpoint, max(1, longest - 3), seed=0), []
    for start in range(0, len(prompt), width):
        probe = Piece(slot, prompt, start, min(start + width, len(prompt)))
        others = _neighbours(checkpoint, shape, width, batch - 1, slot, seed=1 + slot + start)
        pieces = [*others, probe] if slot else [probe, *others]
        logits.append(slots.read(pieces, batch)[pieces.index(probe)])
    return logits


def _step_logits(slots: Slots, checkpoint: Checkpoint, slot: int) -> list[Tensor]:
    """Logits of a request in ``slot`` at a few lengths of its prompt and of its text.

    In the first slot it is alone with what is before the cuts, and no column is looked at that it doesn't need. In
    another one all slots share what is before the cuts, and the longest have all columns.
    """
    shape, logits = slots.shape, []
    most = min(shape.prompt, checkpoint.context - shape.suffix)
    # The request first: of a family it is the first slot that is looked at.
    keys = {other: b"" if slot else str(other).encode() for other in (slot, *range(shape.slots))}
    for turn, share in enumerate((0.0, 0.5, 0.9)):
        shortest = min(most, max(shape.cuts, default=0) + 1)
        length, step = shortest + int(share * (most - shortest)), int(share * (shape.suffix - 1))
        used, others = (shape, (most, shape.suffix - 1)) if slot else (shape.trimmed(length, step + 1), (length, step))
        lengths_G, steps_G = (np.full(shape.slots, each) for each in others)
        lengths_G[slot], steps_G[slot] = length, step
        tokens_R = np.array(_random_ids(checkpoint, shape.rows, 2000 * (1 + slot) + turn))
        tokens_R[slot * shape.samples : (slot + 1) * shape.samples] = _random_ids(checkpoint, shape.samples, turn)
        found = slots.step(tokens_R, lengths_G, steps_G, used, [keys] * len(shape.cuts))
        logits.append(found[slot * shape.samples :][: shape.samples])
    return [each for rows in logits for each in rows]


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
