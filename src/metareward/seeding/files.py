"""What the seed sets look like on the disk.

ift.jsonl and eft.jsonl are in TRL's conversational prompt-completion format, with ids, kinds, scores and ranks beside:
`metareward sft` takes them, and so does TRL. held_out.jsonl keeps ranked answers for measuring judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from metareward.prompts import turns_of
from metareward.rundir import json_lines, write_atomic
from metareward.seeding.ranked import Ranked
from metareward.types import Message, Messages

IFT, EFT, HELD_OUT = "ift.jsonl", "eft.jsonl", "held_out.jsonl"
Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class EftExample:
    """A judgment to learn: of the answer at ``place`` among those to a prompt, which people gave ``rank``."""

    prompt_id: str
    place: int
    question: Messages
    judgment: str
    rank: float
    score: float

    @property
    def id(self) -> str:
        """Tells it from every other example."""
        return f"{self.prompt_id}/eft/{self.place}"


def ift_rows(ranked: Iterable[Ranked]) -> Iterator[Row]:
    """Prompts with the answers that people like best."""
    for each in ranked:
        yield {
            "id": f"{each.prompt.id}/ift",
            "kind": "ift",
            "prompt": turns_of(each.prompt.messages),
            "completion": turns_of((Message("assistant", each.best.text),)),
            "prompt_id": each.prompt.id,
            "rank": each.best.rank,
        }


def eft_rows(examples: Iterable[EftExample]) -> Iterator[Row]:
    """The judge's question about an answer, with the judgment that is to be learned."""
    for each in examples:
        yield {
            "id": each.id,
            "kind": "eft",
            "prompt": turns_of(each.question),
            "completion": turns_of((Message("assistant", each.judgment),)),
            "prompt_id": each.prompt_id,
            "rank": each.rank,
            "score": each.score,
        }


def held_out_rows(ranked: Iterable[Ranked]) -> Iterator[Row]:
    """Rankings, as Open Assistant's flat export has them."""
    for each in ranked:
        yield {
            "id": each.prompt.id,
            "conversation": [_turn(message) for message in each.prompt.messages],
            "responses": [{"text": answer.text, "rank": answer.rank} for answer in each.answers],
        }


def _turn(message: Message) -> dict[str, str]:
    return {"role": "prompter" if message.role == "user" else message.role, "text": message.content}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write ``rows`` as JSON Lines, all or nothing."""
    write_atomic(path, json_lines(rows))
