"""A stream of tokenized demonstrations, in an order that the seed alone decides."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from tokenizers import Tokenizer

from metareward.pocket.corpus import Demonstration, Lesson, Part, demonstrations
from metareward.pocket.markup import ASSISTANT, END, USER
from metareward.seeds import derive

SHARD = 4_000  # demonstrations drawn, and sorted by length, at a time

# Its tokens, how many of them are the prompt, and whose role it shows.
Example = tuple[list[int], int, Part]


def shard(seed: int, backend: str, lesson: Lesson, count: int = SHARD, held_out: bool = False) -> list[Example]:
    """``count`` demonstrations, tokenized by the tokenizer whose JSON is ``backend``."""
    tokenizer = Tokenizer.from_str(backend)
    shown = list(demonstrations(count, seed, lesson, held_out))
    prompts = tokenizer.encode_batch([_asked(one) for one in shown])
    completions = tokenizer.encode_batch([one.completion + END for one in shown])
    return [
        (prompt.ids + completion.ids, len(prompt.ids), one.part)
        for one, prompt, completion in zip(shown, prompts, completions, strict=True)
    ]


def _asked(shown: Demonstration) -> str:
    return f"{USER}{shown.messages[-1].content}{END}{ASSISTANT}"


def batches(examples: list[Example], batch_tokens: int, seed: int) -> list[list[Example]]:
    """Examples of like length together, at most ``batch_tokens`` with padding, in random order."""
    made: list[list[Example]] = [[]]
    for example in sorted(examples, key=lambda one: len(one[0])):
        if (len(made[-1]) + 1) * len(example[0]) > batch_tokens:
            made.append([])
        made[-1].append(example)
    random.Random(seed).shuffle(made)
    return made


def batches_of(backend: str, lesson: Lesson, seed: int, batch_tokens: int) -> Iterator[list[Example]]:
    """Batches without end."""
    for number in itertools.count():
        examples = shard(derive(seed, number), backend, lesson)
        yield from batches(examples, batch_tokens, derive(seed, "order", number))
