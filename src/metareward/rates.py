"""How long completions are and how fast they come, measured on the records of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from metareward.errors import UserError
from metareward.measuring import Rates
from metareward.progress import ANSWERS, JUDGMENTS, META
from metareward.recipe import load_recipe
from metareward.records import from_json
from metareward.rundir import RunDir, read_done
from metareward.store import RecordStore
from metareward.types import PromptRecord


def measured_rates(run: RunDir, tokens_per_second: float | None = None) -> Rates:
    """The mean length of completions by role in the records a run has, and how fast finished iterations wrote them.

    The rate comes from iterations whose done-mark says how many ``seconds`` their ``generating`` took;
    ``tokens_per_second`` goes before it.
    """
    if not run.resolved.is_file():
        raise UserError(f"{run.path}: no {run.resolved.name} here, so this is not a run folder; name one, as runs/NAME")
    recipe = load_recipe(str(run.resolved))
    written = [_written(run.iteration(t).records) for t in recipe.iterations]
    seconds = [_generating_seconds(run.iteration(t).done) for t in recipe.iterations]
    timed = [(each.tokens.total(), spent) for each, spent in zip(written, seconds, strict=True) if spent]
    spent = sum(spent for _, spent in timed)
    measured = sum(tokens for tokens, _ in timed) / spent if spent else None
    tokens = sum((each.tokens for each in written), Counter[str]())
    calls = sum((each.calls for each in written), Counter[str]())
    return Rates(tokens_per_second or measured, {role: tokens[role] / calls[role] for role in calls})


def _generating_seconds(done: Path) -> float | None:
    seconds = (read_done(done) or {}).get("seconds")
    spent = seconds.get("generating") if isinstance(seconds, Mapping) else None
    return float(spent) if isinstance(spent, int | float) and spent > 0 else None


@dataclass(frozen=True, slots=True)
class _Written:
    """Completions and tokens by role."""

    calls: Counter[str]
    tokens: Counter[str]


def _written(records: Path) -> _Written:
    calls, tokens = Counter[str](), Counter[str]()
    if records.is_file():
        with RecordStore.read(records) as store:
            for _, document in store.documents():
                for role, count in _completions(from_json(document)):
                    calls[role] += 1
                    tokens[role] += count
    return _Written(calls, tokens)


def _completions(record: PromptRecord) -> Iterator[tuple[str, int]]:
    """The role and the tokens of everything that was written for a prompt."""
    for answer in record.candidates_K:
        yield ANSWERS, answer.tokens
        yield from ((JUDGMENTS, judgment.tokens) for judgment in answer.judgments_N)
    if record.dispute is not None:
        yield from ((META, meta.tokens) for meta in record.dispute.meta)
