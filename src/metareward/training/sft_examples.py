"""The examples of one supervised run: prompts with the answers to be learned, from files of any kind.

TRL's conversational prompt-completion format is what `metareward seed build` writes; every other form that ends with
an answer will do (`metareward.data.prompts`). ``kind`` is counted where a row has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from metareward.data.files import iter_rows, resolve_files
from metareward.data.prompts import chat_turns, parse_example
from metareward.errors import UserError

Turns = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation and the one turn that answers it, as the chat template wants them."""

    kind: str
    prompt: Turns
    completion: Turns


def read_examples(sources: Sequence[Path]) -> tuple[Example, ...]:
    """All examples of ``sources``, in order. Raises `UserError` naming the file and row that won't do."""
    examples = tuple(example for source in sources for example in _examples(source))
    if not examples:
        names = ", ".join(map(str, sources))
        raise UserError(f"{names}: no examples at all to learn from; fix: name files that hold some")
    return examples


def count_kinds(examples: Iterable[Example]) -> dict[str, int]:
    """How many examples there are of each kind."""
    return dict(sorted(Counter(example.kind for example in examples).items()))


def _examples(source: Path) -> Iterator[Example]:
    for row in (row for path in resolve_files(source) for row in iter_rows(path)):
        messages, answer = parse_example(row.value, row.where)
        kind = row.value.get("kind")
        answered = [{"role": "assistant", "content": answer}]
        yield Example(kind if isinstance(kind, str) else "unlabelled", chat_turns(messages), answered)
