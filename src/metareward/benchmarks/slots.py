"""Benchmarks' prompt texts are filled byte for byte, because published scores were made so: nothing is defanged.

One pass replaces ``{name}``; what was put in is never scanned again, and other braces stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from metareward.errors import UserError

_SLOT = re.compile(r"\{(\w+)\}")


def fill(template: str, slots: Mapping[str, str]) -> str:
    """``template`` with every ``{name}`` that ``slots`` knows replaced."""
    return _SLOT.sub(lambda slot: slots.get(slot[1], slot[0]), template)


def require(template: str, where: str, *names: str) -> None:
    """Raise `UserError` naming every slot that ``template``, which comes from ``where``, lacks."""
    missing = [f"{{{name}}}" for name in names if f"{{{name}}}" not in template]
    if missing:
        raise UserError(f"{where}: the prompt text lacks {', '.join(missing)}; fix: name the benchmark's own file")
