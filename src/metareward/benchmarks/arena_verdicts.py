"""The five verdicts of an Arena-Hard judge, and reading one from what it wrote.

[[A>>B]], [[A>B]], [[A=B]], [[B>A]], [[B>>A]]. In v0.1 a text that names two different labels has none; in v2 the last
label decides, and single brackets count where there are no double ones. Only the judge's own text is read.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from metareward.errors import UserError

Version = Literal["v0.1", "v2"]
Verdict = Literal["A>>B", "A>B", "A=B", "B>A", "B>>A"]

_DOUBLE = re.compile(r"\[\[([AB<>=]+)\]\]")
_SINGLE = re.compile(r"\[([AB<>=]+)\]")
_SAME: dict[str, Verdict] = {"B=A": "A=B", "A<B": "B>A", "A<<B": "B>>A", "B<A": "A>B", "B<<A": "A>>B"}
_VALUE: dict[Verdict, float] = {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}


def version_named(name: str) -> Version:
    """The version of that name. Raises `UserError` for another one."""
    found: Version | None = next((each for each in get_args(Version) if each == name), None)
    if found is None:
        raise UserError(f"--version {name}: no such version; there is {', '.join(get_args(Version))}")
    return found


def verdict(label: str) -> Verdict | None:
    """The verdict that a stored label is; None for none of the five. ``A<B`` is another way to write ``B>A``."""
    return next((each for each in get_args(Verdict) if each == label), _SAME.get(label))


def read_verdict(text: str, version: Version) -> Verdict | None:
    """The verdict that the judge's text ends in, or None."""
    if version == "v0.1":
        labels = set(_DOUBLE.findall(text))
        return verdict(labels.pop()) if len(labels) == 1 else None
    found = _DOUBLE.findall(text.upper()) or _SINGLE.findall(text.upper())
    return verdict(found[-1]) if found else None


def asks_again(text: str, version: Version) -> bool:
    """Whether a judge of v0.1 is asked to go on, once: it named no label at all. v2 doesn't ask twice."""
    return version == "v0.1" and not _DOUBLE.search(text)


def for_first(given: Verdict) -> float:
    """What assistant A gets: 1, one half or 0."""
    return _VALUE[given]


def strong(given: Verdict) -> bool:
    """Whether one side is called significantly better."""
    return ">>" in given
