"""JSON on disk: canonical_json text and its SHA-256, JSON Lines, flattened settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

# JSON allows these in a string, but many line readers take them for line ends.
_LINE_ENDS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"})


def canonical_json(value: object) -> str:
    """``value`` as JSON text; equal values give equal text. Raises `TypeError` for what JSON can't hold."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint_of(mapping: Mapping[str, object]) -> str:
    """The SHA-256 of ``mapping`` as canonical_json JSON, 64 hex digits; the order of the keys doesn't count."""
    return hashlib.sha256(canonical_json(dict(mapping)).encode()).hexdigest()


def json_lines(rows: Iterable[Mapping[str, object]]) -> str:
    """``rows`` as JSON Lines, one line each for every line reader."""
    return "".join(json.dumps(row, ensure_ascii=False).translate(_LINE_ENDS) + "\n" for row in rows)


def flatten(value: Mapping[str, object] | Mapping[int, object], separator: str = ".") -> dict[str, object]:
    """Nested mappings as one: ``{"answers": {"n": 4}}`` becomes ``{"answers.n": 4}``. Lists stay values."""
    flat: dict[str, object] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= {f"{key}{separator}{name}": leaf for name, leaf in flatten(inner, separator).items()}
        else:
            flat[str(key)] = inner
    return flat
