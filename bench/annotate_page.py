"""The tables of docs/performance.md, from what bench/annotate.py has written; ``make docs`` puts them there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from annotate import RESULTS, Scale, Seen, figures
from annotate_models import SIZES

# Their order in a table, and what they are called there.
CONTESTANTS = {
    "ours": "metareward, `deterministic: false`",
    "ours-deterministic": "metareward, the default",
    "generate": "`generate`",
    "continuous": "transformers' continuous batching",
    "vllm": "vLLM",
    "distilabel": "distilabel's TransformersLLM",
}
WEIGHTS = {"t30": "28 M parameters", "t5": "4 M parameters"}


def tables(kind: str) -> str:
    """All tables of this kind of work, each headed by its model."""
    record = json.loads(RESULTS.read_text())
    scale, found = Scale(**record["scale"]), record["results"]
    abouts = [(model, dtype) for model in WEIGHTS for dtype in ("bfloat16", "float32")]
    there = [(model, dtype) for model, dtype in abouts if kind in found.get(f"{model}, {dtype}", {})]
    return (
        "\n"
        + "\n".join(
            "\n".join(_lines(kind, model, dtype, found[f"{model}, {dtype}"], scale)) + "\n" for model, dtype in there
        )
        + "\n"
    )


def _lines(kind: str, model: str, dtype: str, found: dict[str, Any], scale: Scale) -> Iterator[str]:
    measured = found[kind]["contestants"]
    seen = {name: Seen(**measured[name]) for name in CONTESTANTS if name in measured}
    heads, *rows = figures(kind, seen, scale, SIZES[model], found["matrix_product_peak_flops"])
    yield _line([f"Llama, {WEIGHTS[model]}, {dtype}", *heads[1:]])
    yield _line(["---"] * len(heads))
    for name, *cells in rows:
        yield _line([CONTESTANTS[name], *cells])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
