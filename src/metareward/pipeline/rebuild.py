"""Pairs by other rules from the stored records of a run: seconds instead of hours. The run itself stays as it is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean

from rich.table import Table

from metareward.config.schema import Recipe, load_recipe, pairs_rules
from metareward.errors import UserError
from metareward.method.pairs import build_pairs, of_kind
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.storage.atomic import write_atomic
from metareward.storage.pair_files import write_dropped, write_pairs
from metareward.storage.records import read_records
from metareward.storage.run_dir import IterationDir, RunDir
from metareward.storage.serialization import fingerprint_of, flatten
from metareward.storage.store import RecordStore
from metareward.types import Dropped, PairKind, PreferencePair

# Settings that decide pairs and not records.
_PAIR_SETTINGS = ("judge_pairs", "max_answer_chars", "max_judgment_chars", "rho")
_CHANGEABLE = ("pairs.*", "judgments.min_valid", *(f"iterations.*.{name}" for name in _PAIR_SETTINGS))
# Those that decide records, too, if the judgments came in rounds: which answers got more.
_OF_ROUNDS = ("pairs.mask_truncated_completions", "judgments.min_valid", "iterations.*.judge_pairs", "iterations.*.rho")
_KINDS: tuple[PairKind, ...] = ("actor", "judge")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Iteration ``t``'s pairs by the new rules, of ``prompts`` records."""

    t: int
    prompts: int
    pairs: tuple[PreferencePair, ...]
    dropped: tuple[Dropped, ...]


def rebuild(run: RunDir, overrides: Sequence[str]) -> tuple[Rebuilt, ...]:
    """The pairs of every iteration that has records, by the run's recipe changed by ``overrides``.

    Writes nothing. Raises `UserError` for a change that would need new records, for a rubric whose text has changed
    since, and when there are no records at all.
    """
    recipe = changed_recipe(run, overrides)
    stored = [t for t in recipe.iterations if run.iteration(t).records.is_file()]
    if not stored:
        raise UserError(f"{run.path}: no iteration has records yet; `metareward run` makes them")
    rubric = BoundRecipe(run, recipe).first_rubric()
    rebuilt = []
    for t in stored:
        with RecordStore.read(run.iteration(t).records) as store:
            records = tuple(read_records(store))
        rebuilt.append(Rebuilt(t, len(records), *build_pairs(records, pairs_rules(recipe, t), rubric, recipe.seed)))
    return tuple(rebuilt)


def changed_recipe(run: RunDir, overrides: Sequence[str]) -> Recipe:
    """The run's recipe with ``overrides``, none of which may change what the records say."""
    run.require()
    before, after = (load_recipe(str(run.resolved), changes) for changes in ((), overrides))
    if set(before.iterations) != set(after.iterations):
        raise UserError(f"--set iterations: this run has {len(before.iterations)}; none can be added or dropped here")
    old, new = flatten(before.resolved()), flatten(after.resolved())
    for key in {**old, **new}:
        if old.get(key) == new.get(key):
            continue
        if before.judgments.first_round is not None and any(fnmatchcase(key, pattern) for pattern in _OF_ROUNDS):
            raise UserError(
                f"--set {key}={json.dumps(new.get(key))}: the judgments came in rounds (judgments.first_round), asked "
                f"for {json.dumps(old.get(key))}; fix: `metareward run --from RUN --set ... --out NEW`"
            )
        if not any(fnmatchcase(key, pattern) for pattern in _CHANGEABLE):
            raise UserError(
                f"--set {key}={json.dumps(new.get(key))}: the records were made with {json.dumps(old.get(key))}; "
                f"only pairs.*, judgments.min_valid and {', '.join(_PAIR_SETTINGS)} of iterations.* can change here"
            )
    return after


def write_rebuilt(run: RunDir, overrides: Sequence[str], rebuilt: Sequence[Rebuilt], out: Path | None) -> Path:
    """Write Parquet and dropped prompts of each iteration to ``out``, or under the run's ``rebuilt`` by the rules.

    Returns the folder. Raises `UserError` when ``out`` is a run folder: its own pairs are what its models came from.
    """
    recipe = changed_recipe(run, overrides)
    rules = {str(each.t): asdict(pairs_rules(recipe, each.t)) for each in rebuilt}
    folder = out or run.path / "rebuilt" / fingerprint_of(rules)[:12]
    if RunDir(folder).resolved.exists():
        raise UserError(f"--out {folder}: this is a run folder, whose pairs are kept as they are; name another folder")
    for each in rebuilt:
        files = IterationDir(folder / f"iter-{each.t}")
        for kind in _KINDS:
            write_pairs(files.pairs(kind), of_kind(each.pairs, kind))
        write_dropped(files.dropped, each.dropped)
    write_atomic(folder / "rules.json", json.dumps(rules, indent=2) + "\n")
    return folder


def pair_counts_table(rebuilt: Sequence[Rebuilt]) -> Table:
    """How many pairs each iteration gives, how long they are, and why the other prompts give none."""
    table = Table(title="Pairs from stored records", title_justify="left")
    for name in ("iteration", "prompts", "kind", "pairs", "chosen chars", "rejected chars"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    table.add_column("dropped", overflow="fold")
    for each in rebuilt:
        for kind in _KINDS:
            pairs = of_kind(each.pairs, kind)
            drops = Counter(drop.reason for drop in each.dropped if drop.kind == kind)
            reasons = ", ".join(f"{reason.replace('_', ' ')} {count}" for reason, count in drops.most_common())
            lengths = (_mean_length(pair.chosen for pair in pairs), _mean_length(pair.rejected for pair in pairs))
            table.add_row(str(each.t), str(each.prompts), kind, str(len(pairs)), *lengths, reasons or "-")
    return table


def _mean_length(texts: Iterator[str]) -> str:
    lengths = [len(text) for text in texts]
    return f"{fmean(lengths):.0f}" if lengths else "-"
