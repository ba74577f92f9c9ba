"""Files that a judge is evaluated on, as JSON Lines: human rankings, labelled pairs, and stored verdicts.

A ranking:  {"id", "conversation": [{"role", "text"}] or "prompt", "responses": [{"text", "rank"}]}; rank 0 is the best.
A pair:     {"id", "input", "output_1", "output_2", "label"}; the label names the better output, 0 says neither.
A verdict:  {"id", "evaluator", "winner_original_order", "winner_swapped_order"}; winners by the pair's own numbers,
            null where none could be read (the form of LLMBar's results, princeton-nlp/LLMBar). The judge's
            probability that output 1 is better may be in "probability_original_order" and "probability_swapped_order".

Public data sets are read as they are published, too (``published``).

A scoring judge adds ``score``, or ``scores`` of several judgments with null for unreadable ones, to a response, and
``score_1`` and ``score_2`` (``scores_1``, ``scores_2``) to a pair. A reference judge adds ``comparisons`` to a ranking,
{"first", "second", "winner"} with indices of responses in the order shown, "tie" or null; and ``reference`` to a pair,
a list with the winner in each order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, get_args

from metareward.data.files import Row, require_unique
from metareward.evaluation.input_checks import group_by_name, require_field, score_on_scale
from metareward.evaluation.judge_quality.published import pair_rows, ranking_rows, verdict_rows
from metareward.method.stats import EQUAL
from metareward.types import ChatRole, Message, Messages, Tied, Won

Winner = Literal[0, 1, 2]  # 0: neither
_ROLES: dict[str, ChatRole] = {"prompter": "user", "human": "user", "gpt": "assistant"}


@dataclass(frozen=True, slots=True)
class Response:
    """One answer. ``rank`` is the human rank (0 is best); ``scores_N`` are a judge's, None for an unreadable one.

    ``distributions_N``: the probabilities of the scores that each could have had, empty where they aren't known.
    """

    text: str
    rank: float | None = None
    scores_N: tuple[float | None, ...] = ()
    refused: bool = False
    distributions_N: tuple[Mapping[float, float], ...] = ()

    @property
    def score(self) -> float | None:
        """The mean of the readable scores, None without any."""
        valid = [score for score in self.scores_N if score is not None]
        return sum(valid) / len(valid) if valid else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A reference judge's verdict on two responses, by their indices, ``first`` shown first; None: unreadable.

    ``first_share`` is the probability that the judge gives to the first one, None if it is unknown. ``refused``: the
    judge couldn't be asked.
    """

    first: int
    second: int
    verdict: Won | Tied | None
    first_share: float | None = None
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt with its responses."""

    id: str
    messages: Messages
    responses: tuple[Response, ...]
    comparisons: tuple[Comparison, ...] = ()
    subset: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt and which is better; ``label`` is None where the reference contradicts itself."""

    item: Item
    label: Winner | None
    subset: str
    generators: tuple[str, str] | None

    @property
    def chars(self) -> tuple[int, int]:
        """The lengths of the two responses in characters."""
        one, other = self.item.responses
        return len(one.text), len(other.text)


@dataclass(frozen=True, slots=True)
class PairVerdicts:
    """One judge's verdicts on one pair, in one or both orders, by the pair's own numbers; None where unreadable.

    ``probabilities`` of output 1 being better are in the same orders, empty if they are unknown. ``refused``: the judge
    couldn't be asked in one of the orders, so the pair is left out.
    """

    id: str
    winners: tuple[Winner | None, ...]
    probabilities: tuple[float | None, ...] = ()
    refused: bool = False


Scale = tuple[float, float]  # the lowest and the highest score


def read_rankings(path: Path, scale: Scale | None = None) -> tuple[Item, ...]:
    """The items of a file of rankings. Raises `UserError` for a stored score off the ``scale``."""
    items, rows = [], require_unique(ranking_rows(path), "id")
    _require_scores_everywhere([each for row in rows for each in row.rows("responses")], ("score", "scores"))
    for row in rows:
        responses = tuple(
            Response(each.text("text"), each.optional_number("rank"), _scores(each, "", scale))
            for each in row.rows("responses")
        )
        stored = row.rows("comparisons") if row.has("comparisons") else ()
        comparisons = tuple(_comparison(each, len(responses)) for each in stored)
        subset = str(row.fields.get("subset") or "")
        items.append(Item(row.text("id"), _messages(row), responses, comparisons, subset))
    return tuple(items)


def _require_scores_everywhere(rows: Sequence[Row], names: tuple[str, str]) -> None:
    """Raise `UserError` where only some of the ``rows`` have a score, which may be null."""
    without = [row for row in rows if not set(names) & row.fields.keys()]
    if without and len(without) < len(rows):
        raise without[0].error(names[0], "is missing, but others have it", "give null for an unreadable one")


def _comparison(row: Row, count: int) -> Comparison:
    first, second = row.integer("first"), row.integer("second")
    if first == second or not {first, second} <= set(range(count)):
        raise row.error("first", "is not about two responses of this row", "give two indices of responses")
    if row.fields.get("winner") == "tie":
        return Comparison(first, second, Tied())
    winner = row.optional_number("winner")
    if winner not in (None, first, second):
        raise row.error("winner", "is not about two responses of this row", 'give an index of the two, "tie" or null')
    return Comparison(first, second, None if winner is None else Won(int(winner)))


def _scores(row: Row, suffix: str, scale: Scale | None) -> tuple[float | None, ...]:
    low, high = scale or (-math.inf, math.inf)
    if row.has(f"scores{suffix}"):
        given = enumerate(row.items(f"scores{suffix}"))
        rows = [(f"scores{suffix}[{i}]", each) for i, each in given]
        return tuple(score_on_scale(Row(row.where, {name: each}), name, low, high) for name, each in rows)
    name = f"score{suffix}"
    return (score_on_scale(row, name, low, high),) if name in row.fields else ()


def _messages(row: Row) -> Messages:
    if not row.has("conversation"):
        return (Message("user", row.text("prompt", "input", "instruction")),)
    messages = []
    for turn in row.rows("conversation"):
        name = turn.text("role")
        role = next((each for each in get_args(ChatRole) if each == name), _ROLES.get(name))
        if role is None:
            raise turn.error("role", f"is {name!r}", "use system, user or assistant")
        messages.append(Message(role, turn.text("text", "content")))
    return tuple(messages)


def read_pairs(path: Path, scale: Scale | None = None) -> tuple[Pair, ...]:
    """The pairs of a file. The label is ``label``, else the verdict of ``reference`` if both orders agree.

    Raises `UserError` for a stored score off the ``scale``.
    """
    pairs, rows = [], require_unique(pair_rows(path), "id")
    for n in (1, 2):
        _require_scores_everywhere(rows, (f"score_{n}", f"scores_{n}"))
    labelled = any("label" in row.fields for row in rows)
    for row in rows:
        responses = tuple(Response(row.text(f"output_{n}"), None, _scores(row, f"_{n}", scale)) for n in (1, 2))
        named = row.has("generator_1", "generator_2")
        item = Item(row.text("id"), _messages(row), responses)
        label: Winner | None
        if row.has("reference"):
            if len(row.items("reference")) != 2:
                raise row.error("reference", "hasn't a winner in each of two orders", "give two, null if unreadable")
            orders = {_winner(row, "reference", each) for each in row.items("reference")}
            label = orders.pop() if len(orders) == 1 else None
        else:
            if labelled:
                require_field(row, "label", "give 1, 2, 0 for neither, or null where nobody knows")
            label = _winner(row, "label", row.fields.get("label"))
        generators = (row.text("generator_1"), row.text("generator_2")) if named else None
        pairs.append(Pair(item, label, str(row.fields.get("subset") or ""), generators))
    return tuple(pairs)


def _winner(row: Row, field: str, value: Any) -> Winner | None:
    if value is None or value == "":
        return None
    found: Winner | None = next((each for each in get_args(Winner) if str(value) == str(each)), None)
    if found is None:
        raise row.error(field, f"is {value!r}"[:80], "give 1, 2, 0 for neither, or null")
    return found


def read_verdicts(path: Path) -> dict[str, tuple[PairVerdicts, ...]]:
    """The verdicts of a file by evaluator; rows without that field belong to an evaluator named after the file."""
    rows = verdict_rows(path)
    names = ("winner_original_order", "winner_swapped_order")
    found: dict[str, tuple[PairVerdicts, ...]] = {}
    for evaluator, those in group_by_name(rows, "evaluator", default=path.stem).items():
        verdicts = []
        for row in require_unique(those, "id"):
            given = [name for name in names if name in row.fields]
            if not given:
                raise row.error(names[0], "is missing", "give the winner, or null where none could be read")
            if (names[1] in row.fields) != (names[1] in those[0].fields):
                raise row.error(names[1], "is in some rows only", "give every pair's winner in both orders, or in one")
            winners = tuple(_winner(row, name, row.fields[name]) for name in given)
            shares = [name.replace("winner", "probability") for name in given]
            probabilities = tuple(_probability(row, name) for name in shares) if set(shares) & row.fields.keys() else ()
            verdicts.append(PairVerdicts(row.text("id"), winners, probabilities))
        found[evaluator] = tuple(verdicts)
    return found


def _probability(row: Row, field: str) -> float | None:
    value = row.optional_number(field)
    if value is not None and not 0 <= value <= 1:
        raise row.error(field, f"is {value:g}", "give a probability from 0 to 1, or null")
    return value


def verdicts_from_scores(pairs: Sequence[Pair]) -> tuple[PairVerdicts, ...]:
    """A scoring judge's verdicts: in one order, a tie where the mean scores are equal.

    Its probability is the share of the pairs of readable scores that output 1 wins, equal scores half; a score whose
    distribution is known counts as all scores that it could have been, with their probabilities.
    """
    found = []
    for pair in pairs:
        one, other = (response.score for response in pair.item.responses)
        winner: Winner | None = None
        if one is not None and other is not None:
            winner = 0 if abs(one - other) <= EQUAL else 1 if one > other else 2
        refused = any(response.refused for response in pair.item.responses)
        found.append(PairVerdicts(pair.item.id, (winner,), (_share_of_first(*pair.item.responses),), refused))
    return tuple(found)


def _share_of_first(first: Response, second: Response) -> float | None:
    one, other = _possible_scores(first), _possible_scores(second)
    if not one or not other:
        return None
    won = sum(p * q * (0.5 if abs(a - b) <= EQUAL else float(a > b)) for a, p in one.items() for b, q in other.items())
    return min(1.0, won / (sum(one.values()) * sum(other.values())))


def _possible_scores(response: Response) -> dict[float, float]:
    """How often each score was given to the response, or could have been."""
    weights: dict[float, float] = {}
    for score, distribution in zip_longest(response.scores_N, response.distributions_N):
        if score is not None:
            for value, probability in (distribution or {score: 1.0}).items():
                weights[value] = weights.get(value, 0.0) + probability
    return weights
