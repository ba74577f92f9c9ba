"""The two judges that every judge is shown next to: one that only counts characters, and chance.

Human preferences go with length: on OpenAssistant's English trees, "score = number of characters" orders about 70 % of
the pairs as humans do. A trained judge means something only beside that number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from metareward.benchmarks.judge_files import Item, Pair, PairVerdicts, Winner
from metareward.benchmarks.judge_pairs import JudgedPair, mean
from metareward.benchmarks.judge_sections import Choice

LENGTH, CHANCE = "length only", "chance"


def graded_by_length(items: Sequence[Item]) -> tuple[Item, ...]:
    """``items`` with the number of characters as every response's only score."""
    return tuple(
        replace(item, responses=tuple(replace(each, scores_N=(float(len(each.text)),)) for each in item.responses))
        for item in items
    )


def chosen_by_length(pairs: Sequence[Pair], orders: int) -> tuple[PairVerdicts, ...]:
    """The longer output wins every pair, in as many orders as the judge beside it was asked; equal lengths tie."""
    return tuple(PairVerdicts(pair.item.id, (_longer(pair),) * orders) for pair in pairs)


def _longer(pair: Pair) -> Winner:
    one, other = (len(response.text) for response in pair.item.responses)
    return 0 if one == other else 1 if one > other else 2


def choices_by_length(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """The longer answer scores higher; a tie is wrong, as for any judge that scores."""
    return tuple(replace(each, credit=float(each.chars[0] > each.chars[1]), readable=True) for each in choices)


def chance_at_rankings(items: Sequence[Item]) -> Mapping[str, float | None]:
    """What random, different scores are expected to reach in the measures of `ranking_quality`."""
    ranks = [[each.rank for each in item.responses if each.rank is not None] for item in items]
    used = [those for those in ranks if len(those) > 1]
    firsts = [those.count(min(those)) for those in used]
    sizes = [len(those) for those in used]
    return {
        "pairwise_accuracy_ties_half": 0.5,
        "pairwise_accuracy_without_ties": 0.5,
        "exact_match": mean(
            [1 / math.factorial(len(those)) if len(set(those)) == len(those) else 0.0 for those in used]
        ),
        "five_best": sum(firsts) / sum(sizes) if sizes else None,
        "best_of_match_ties_shared": mean([n / size for n, size in zip(firsts, sizes, strict=True)]),
        "mean_spearman_defined": 0.0,
        "mean_kendall_tau_b_defined": 0.0,
    }


def chance_at_pairs(judged: Sequence[JudgedPair]) -> Mapping[str, float | None]:
    """What a coin thrown for every verdict is expected to reach in the measures of `pair_quality`."""
    both = any(len(pair.winners) == 2 for pair in judged)
    decided = sum(pair.label != 0 for pair in judged)
    return {
        "accuracy": 0.5,
        "accuracy_both_orders": 0.25 if both else None,
        "accuracy_readable": 0.5,
        "accuracy_without_ties": 0.5,
        "accuracy_three_classes": decided / len(judged) / 2 if judged else None,
        "positional_agreement": 0.5 if both else None,
        "positional_agreement_readable": 0.5 if both else None,
        "kappa": 0.0,
        "kappa_between_orders": 0.0 if both else None,
    }
