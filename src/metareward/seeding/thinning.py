"""Scores that are given too often are thinned, or the judge learns to give nothing else.

Self-Rewarding (section 3.1) found one score, 4, over-represented, and discarded some of its examples; how many it
doesn't say. Here no score may stand in more than a share s of the examples that are kept: each score keeps at most m of
its c_k examples, with the largest m for which

    min(c_k, m) <= max(s, 1 / number of different scores) * sum_k min(c_k, m)     for every k

Scores count as the whole number next to them: a judge may give 4.5.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from metareward.seeds import derive


def score_class(score: float) -> int:
    """The whole number next to ``score``; halves go up."""
    return math.floor(score + 0.5)


def most_of_each(counts: Sequence[int], share: float) -> int:
    """The largest m of the rule above, for the numbers of examples by score (all above 0)."""
    allowed = max(share, 1 / len(counts))
    downwards = range(max(counts), 0, -1)  # m = 1 always fits
    return next(m for m in downwards if m <= allowed * sum(min(count, m) for count in counts) + 1e-9)


def thinned(examples: Sequence[tuple[str, float]], share: float, seed: int) -> frozenset[str]:
    """Of examples (id, score), the ids that are kept; which ones of a score, ``seed`` decides, not their order."""
    if not examples:
        return frozenset()
    counts = Counter(score_class(score) for _, score in examples)
    most = most_of_each(tuple(counts.values()), share)
    kept: list[str] = []
    for wanted in counts:
        ids = (name for name, score in examples if score_class(score) == wanted)
        kept += sorted(ids, key=lambda name: (derive(seed, "thinning", name), name))[:most]
    return frozenset(kept)
