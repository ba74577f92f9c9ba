"""The examples of a supervised run: read from files of any kind, and left out where they are too long.

TRL's conversational prompt-completion format is what `metareward seed build` writes; every other format that ends with
an answer will do (`metareward.data.prompts`). ``kind`` is counted where a row has it.

An example that is too long is left out and counted: truncated, it would teach answers that stop in the middle and
judgments without a verdict. The chat template must write a prompt before an answer as it writes it before generation,
or the model would be trained on another context than it will be given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from metareward.data.files import iter_rows, resolve_files
from metareward.data.prompts import chat_turns, parse_example
from metareward.errors import UserError
from metareward.training.config import SftJob
from metareward.training.pairs import FittingData, Turns


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation and the one turn that answers it, as the chat template wants them."""

    kind: str
    prompt: Turns
    completion: Turns


def read_examples(sources: Sequence[Path]) -> tuple[Example, ...]:
    """All examples of ``sources``, in order. Raises `UserError` naming the file and row with an error."""
    examples = tuple(example for source in sources for example in _examples(source))
    if not examples:
        names = ", ".join(map(str, sources))
        raise UserError(f"{names}: no examples at all to learn from; fix: name files that hold some")
    return examples


def _examples(source: Path) -> Iterator[Example]:
    for row in (row for path in resolve_files(source) for row in iter_rows(path)):
        messages, answer = parse_example(row.value, row.where)
        kind = row.value.get("kind")
        completion = [{"role": "assistant", "content": answer}]
        yield Example(kind if isinstance(kind, str) else "unlabelled", chat_turns(messages), completion)


def fit_examples(examples: Sequence[Example], tokenizer: Any, job: SftJob, context: int | None) -> FittingData[Example]:
    """The examples that fit in ``max_length`` and in the model's ``context``, both in tokens.

    Raises `UserError` when none fits, or when the chat template can't render one or renders its prompt in two ways.
    """
    max_length = job.settings.max_length
    limit = min(max_length, context or max_length)
    lengths = _lengths(examples, tokenizer, job)
    if min(lengths) > limit:
        raise UserError(
            f"training job: no example fits in {limit} tokens, the shortest has {min(lengths)}; "
            "fix: raise max_length, or use a model with a longer context"
        )
    return FittingData.select(examples, lengths, limit)


def _lengths(examples: Sequence[Example], tokenizer: Any, job: SftJob) -> list[int]:
    """Tokens of each example, counted the way TRL tokenizes it: the template writes the special tokens."""
    try:
        render = partial(tokenizer.apply_chat_template, tokenize=False)
        prompts = [render(example.prompt, add_generation_prompt=True) for example in examples]
        texts = [render(example.prompt + example.completion) for example in examples]
    except TemplateError as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"{job.start}: its chat template can't render an example ({why}); fix: change one of them"
        ) from None
    if not all(text.startswith(prompt) for prompt, text in zip(prompts, texts, strict=True)):
        raise UserError(
            f"{job.start}: its chat template writes a prompt differently before generation and before an answer; "
            "fix: use a chat template that writes it in one way"
        )
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
