"""The most probable tokens at every step, noted for the requests that ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metareward.engines.token_texts import token_texts
from metareward.types import Step, TopLogprob

# As many as hosted servers give.
MAX_TOP_LOGPROBS = 20

Ints = NDArray[np.int64]


class Notes:
    """For each row and step the ids and log-probabilities of up to ``most`` tokens, of the model's own distribution.

    Temperature and top-p bear on what is drawn, not on what is noted.
    """

    def __init__(self, rows: int, steps: int, most: int) -> None:
        self._ids_RTA = np.zeros((rows, steps, most), np.int64)
        self._logprobs_RTA = np.zeros((rows, steps, most), np.float32)

    def take(self, logits_BV: Tensor, rows_B: Ints, steps_B: Ints) -> None:
        """Note what these rows could write at these steps."""
        logprobs_BV = torch.log_softmax(logits_BV.float(), dim=-1)
        values, ids = logprobs_BV.topk(min(self._ids_RTA.shape[2], logits_BV.shape[1]), dim=-1)
        found = values.shape[1]
        self._ids_RTA[rows_B, steps_B, :found] = ids.cpu().numpy()
        self._logprobs_RTA[rows_B, steps_B, :found] = values.cpu().numpy()
        self._logprobs_RTA[rows_B, steps_B, found:] = -np.inf

    def steps(self, row: int, ids: Sequence[int], most: int, decode: Callable[[list[int]], str]) -> tuple[Step, ...]:
        """What was noted of a row that wrote ``ids``."""
        return tuple(
            Step(text, tuple(self._alternatives(row, place, most, decode)))
            for place, text in enumerate(token_texts(decode, ids))
        )

    def _alternatives(self, row: int, place: int, most: int, decode: Callable[[list[int]], str]) -> list[TopLogprob]:
        noted = zip(self._ids_RTA[row, place, :most], self._logprobs_RTA[row, place, :most], strict=True)
        return [TopLogprob(decode([int(token)]), float(logprob)) for token, logprob in noted if logprob > -np.inf]
