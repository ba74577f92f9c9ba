"""Which of the two outputs the judge of AlpacaEval 2 is shown first: random, but decided by the instruction alone.

Upstream draws ``Random("is_switched_outputs" + instruction + seed)`` with the annotator's seed, 0 on the leaderboard.
"""

from __future__ import annotations

import random

LEADERBOARD_SEED = 0


def model_first(instruction: str, seed: int = LEADERBOARD_SEED) -> bool:
    """Whether the evaluated model's output is shown first (as "m"), before the baseline's."""
    drawn = random.Random(f"is_switched_outputs{instruction}{seed}")
    return drawn.choices([False, True], k=1)[0]


def preference(first_share: float, model_was_first: bool) -> float:
    """The evaluated model's share of a preference whose first output got ``first_share``."""
    return first_share if model_was_first else 1 - first_share
