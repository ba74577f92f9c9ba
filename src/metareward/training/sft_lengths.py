"""How many tokens each example takes, and which fit.

One that is too long is left out and counted: cut at its end, it would teach answers that stop in the middle and
judgments without a verdict. What the template writes before an answer must be what it writes when it asks for one, or
the model would be taught in another place than where it will be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from metareward.errors import UserError
from metareward.training.sft_examples import Example
from metareward.training.sft_job import SftJob


@dataclass(frozen=True, slots=True)
class FittingExamples:
    """``examples`` that fit with their ``lengths`` in tokens; ``too_long`` are left out.

    ``longest`` is the length of the longest example that fits, ``limit`` what they have to fit in.
    """

    examples: tuple[Example, ...]
    lengths: tuple[int, ...]
    too_long: tuple[Example, ...]
    longest: int
    limit: int


def fitting(examples: Sequence[Example], tokenizer: Any, job: SftJob, context: int | None) -> FittingExamples:
    """The examples that fit in ``job.max_length`` and in the model's ``context``, both in tokens.

    Raises `UserError` when none fits, or when the chat template can't render one or renders its prompt in two ways.
    """
    limit = min(job.max_length, context or job.max_length)
    lengths = _lengths(examples, tokenizer, job)
    kept = [number for number, length in enumerate(lengths) if length <= limit]
    if not kept:
        least = min(lengths)
        raise UserError(
            f"training job: no example fits in {limit} tokens, the shortest has {least}; "
            "fix: raise max_length, or use a model that reads more"
        )
    return FittingExamples(
        examples=tuple(examples[number] for number in kept),
        lengths=tuple(lengths[number] for number in kept),
        too_long=tuple(example for example, length in zip(examples, lengths, strict=True) if length > limit),
        longest=max(lengths[number] for number in kept),
        limit=limit,
    )


def _lengths(examples: Sequence[Example], tokenizer: Any, job: SftJob) -> list[int]:
    """Tokens of each example, counted the way TRL tokenizes it: the template writes the special tokens."""
    try:
        asked = [tokenizer.apply_chat_template(e.prompt, tokenize=False, add_generation_prompt=True) for e in examples]
        texts = [tokenizer.apply_chat_template(e.prompt + e.completion, tokenize=False) for e in examples]
    except TemplateError as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"{job.start}: its chat template can't render an example ({why}); fix: change one of them"
        ) from None
    if not all(text.startswith(prompt) for prompt, text in zip(asked, texts, strict=True)):
        raise UserError(
            f"{job.start}: its chat template writes a prompt in one way to ask and in another before an answer; "
            "fix: use a chat template that writes it in one way"
        )
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
