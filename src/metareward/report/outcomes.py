"""How each prompt of one iteration ended: its pair, or why there is none, as the run recorded it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from metareward.pairfiles import read_dropped, read_pairs
from metareward.rundir import IterationDir
from metareward.types import Dropped, PreferencePair

Outcome = PreferencePair | Dropped


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Outcomes by prompt id, of actor pairs and of judge pairs."""

    actor: Mapping[str, Outcome]
    judge: Mapping[str, Outcome]


def read_outcomes(folder: IterationDir) -> Outcomes | None:
    """What the pair files of an iteration say; None when its pairs are not built yet."""
    if not folder.summary.is_file():
        return None
    found: list[Outcome] = [*read_dropped(folder.dropped)]
    for path in (folder.pairs("actor"), folder.pairs("judge")):
        if path.is_file():  # an iteration without judge pairs has no file of them
            found += read_pairs(path)
    return Outcomes(_of("actor", found), _of("judge", found))


def _of(kind: str, found: list[Outcome]) -> dict[str, Outcome]:
    return {outcome.prompt_id: outcome for outcome in found if outcome.kind == kind}
