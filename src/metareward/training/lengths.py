"""How many tokens each pair takes, and which pairs fit.

A pair that is too long is left out and counted. TRL would cut it at its end, which is where an answer stops and
where a judgment has its verdict: the model would be trained on texts that nobody preferred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from metareward.errors import UserError
from metareward.training.job import DpoJob
from metareward.training.pairset import TrainingPair, Turns


@dataclass(frozen=True, slots=True)
class FittingPairs:
    """``pairs`` that fit with ``lengths``, the tokens of their longer side; ``too_long`` are left out.

    ``longest`` is the length of the longest pair that fits, ``limit`` what they have to fit in.
    """

    pairs: tuple[TrainingPair, ...]
    lengths: tuple[int, ...]
    too_long: tuple[TrainingPair, ...]
    longest: int
    limit: int


def fitting(pairs: Sequence[TrainingPair], tokenizer: Any, job: DpoJob, context: int | None) -> FittingPairs:
    """The pairs that fit in ``job.max_length`` and in the model's ``context``, both in tokens.

    Raises `UserError` when none fits, or when the chat template can't render one.
    """
    limit = min(job.max_length, context or job.max_length)
    chosen = _lengths([pair.prompt + pair.chosen for pair in pairs], tokenizer, job)
    rejected = _lengths([pair.prompt + pair.rejected for pair in pairs], tokenizer, job)
    lengths = [max(sides) for sides in zip(chosen, rejected, strict=True)]
    kept = [number for number, length in enumerate(lengths) if length <= limit]
    if not kept:
        raise UserError(_none_fits(lengths, limit, job, context))
    return FittingPairs(
        pairs=tuple(pairs[number] for number in kept),
        lengths=tuple(lengths[number] for number in kept),
        too_long=tuple(pair for pair, length in zip(pairs, lengths, strict=True) if length > limit),
        longest=max(lengths[number] for number in kept),
        limit=limit,
    )


def _lengths(conversations: Sequence[Turns], tokenizer: Any, job: DpoJob) -> list[int]:
    """Tokens of each conversation, counted the way TRL tokenizes it: the template writes the special tokens."""
    try:
        texts = tokenizer.apply_chat_template(list(conversations), tokenize=False)
    except TemplateError as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"{job.start}: its chat template can't render a pair ({why}); fix: change one of them"
        ) from None
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _none_fits(lengths: Sequence[int], limit: int, job: DpoJob, context: int | None) -> str:
    least = min(lengths)
    if context is not None and least > context:
        return f"{job.start}: it reads {context} tokens, the shortest pair has {least}; fix: use another model"
    return f"training job: no pair fits in max_length {limit}, the shortest has {least} tokens; fix: raise max_length"
