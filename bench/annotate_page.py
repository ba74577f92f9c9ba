"""The tables of docs/performance.md, from what bench/annotate.py has written; ``make docs`` puts them there."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from annotate import RESULTS, Scale, Seen, shares
from annotate_models import SIZES

# Their order in a table, and what they are called there.
CONTESTANTS = {
    "ours": "ours, `deterministic: false`",
    "ours-deterministic": "ours, the default",
    "generate": "`generate`",
    "continuous": "transformers' continuous batching",
    "vllm": "vLLM",
    "distilabel": "distilabel's TransformersLLM",
}
WEIGHTS = {"t30": "28 M weights", "t5": "4 M weights"}
# Of each kind of work what is counted, and how many of it a round has.
COUNTED: dict[str, tuple[str, Callable[[Scale], int]]] = {
    "judge": ("prompts/s", lambda scale: scale.prompts),
    "unlike": ("prompts/s", lambda scale: scale.prompts),
    "meta": ("calls/s", lambda scale: scale.judgments * (scale.judgments - 1)),
    "unit": ("units/s", lambda scale: scale.questions),
}


def tables(kind: str) -> str:
    """All tables of this kind of work, each headed by its model."""
    record = json.loads(RESULTS.read_text())
    scale, found = Scale(**record["scale"]), record["results"]
    written = []
    for about in (f"{model}, {dtype}" for model in WEIGHTS for dtype in ("bfloat16", "float32")):
        if kind in found.get(about, {}):
            rows = _rows(kind, about, found[about], scale)
            written.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n" + "\n\n".join(written) + "\n\n"


def _rows(kind: str, about: str, found: dict[str, Any], scale: Scale) -> Iterator[list[str]]:
    model, dtype = about.split(", ")
    seen = {
        name: Seen(**found[kind]["contestants"][name]) for name in CONTESTANTS if name in found[kind]["contestants"]
    }
    per, count = COUNTED[kind]
    extra = ["of peak, reading", "of peak, writing"] if kind == "unlike" else []
    yield [f"Llama, {WEIGHTS[model]}, {dtype}", "tokens/s", per, "x `generate`", "x vLLM", "peak memory", *extra]
    yield ["---"] * (6 + len(extra))
    for name, each in seen.items():
        rates = [each.tokens / seconds for seconds in each.seconds]
        spread = f" ({min(rates):,.0f}–{max(rates):,.0f})" if len(rates) > 1 else ""
        ratios = [f"{seen[other].median / each.median:.2f}" if other in seen else "–" for other in ("generate", "vllm")]
        peaks = shares(each, scale, SIZES[model], found["matrix_product_peak_flops"]) if extra else ()
        yield [
            CONTESTANTS[name],
            f"{statistics.median(rates):,.0f}{spread}",
            f"{count(scale) / each.median:.2f}",
            *ratios,
            f"{each.peak_bytes / 1e6:,.0f} MB",
            *(f"{share:.0%}" for share in peaks),
        ]
