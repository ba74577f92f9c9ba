"""How a model's attention reaches this engine: through transformers' attention interface, one call a layer."""

from __future__ import annotations

import itertools
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from metareward.engines.attention import Scores
from metareward.engines.engine import EngineError

_names = itertools.count()


class Pass(Protocol):
    """One run of the model over some tokens; it is called once for every layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention output (rows, tokens, heads, D) for query, key, value (rows, heads, tokens, D)."""
        ...


class AttentionDoor:
    """The attention function a model is loaded with, under ``name``; it hands each call to the pass under way."""

    def __init__(self) -> None:
        self.name = f"metareward_{next(_names)}"
        self.under_way: Pass | None = None
        AttentionInterface.register(self.name, self._attend)

    def _attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        _: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **__: Any,
    ) -> tuple[Tensor, None]:
        layer = module.layer_idx
        if self.under_way is None or s_aux is not None or not isinstance(layer, int):
            raise EngineError(f"{type(module).__name__} has a kind of attention that this engine does not know")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return self.under_way.attend(layer, query, key, value, Scores(scale, sliding_window, softcap)), None
