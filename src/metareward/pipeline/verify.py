"""``metareward verify``: whether everything in a run folder is what the run made, and what has to be made again.

Everything is read: each recorded file is hashed, each record's checksum is compared, and its scores and verdicts are
read again from its texts. Then the chain: the pairs come from these records, each model from these pairs and models,
each evaluation from this model. `metareward.pipeline.repair` has what is damaged made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from metareward.config.schema import load_recipe
from metareward.errors import UserError
from metareward.evaluation.held_out import held_out_from_json
from metareward.generation.annotate import AnnotationSettings, misread
from metareward.method.verdict_format import READER_VERSION
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.report.write import is_whole
from metareward.storage import manifest
from metareward.storage.custody import combined, digest, fingerprint_model, read_again, weights_deleted
from metareward.storage.manifest import STORE, Entry
from metareward.storage.records import record_from_json
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore
from metareward.training.checkpoints import damaged_resume_states
from metareward.training.lineage import read_lineage

_EVALUATED = "eval/records.sqlite"
_READ_FROM_TEXTS = ("iter-*/records.sqlite", "iter-*/eval/*.sqlite")
_STORES = (f"iter-*/*{STORE}", f"iter-*/eval/**/*{STORE}", f"verdicts/**/*{STORE}")


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with the file or folder ``name``, relative to the run folder. ``keys``: its damaged records.

    ``stale``: it is whole, but was made from another version of its inputs.
    """

    name: str
    problem: str
    keys: tuple[str, ...] = ()
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Verification:
    """What was read: ``files`` recorded ones and ``records``; what is wrong, and what isn't complete yet.

    ``other_readers``: stores whose scores and verdicts another version read from the texts, with that version.
    """

    files: int
    records: int
    findings: tuple[Finding, ...]
    unfinished: tuple[str, ...]
    other_readers: Mapping[str, object]


def verify(run: RunDir) -> Verification:
    """Read all of a run folder, finished or not. Writes nothing. Raises `UserError` for a folder that is no run."""
    read_again()
    if not run.manifest.is_file() and not run.resolved.is_file():
        run.require()
    findings: dict[str, Finding] = {}
    entries = entries_of(run, findings)
    for name, entry in entries.items():
        problem = manifest.problem_of(run, name, entry)
        if problem is not None and (now := entries_of(run, {}).get(name)) != entry:  # a run is active here
            problem = None if now is None else manifest.problem_of(run, name, now)
        if problem is not None:
            findings[name] = Finding(name, problem.reason)
    bound = _bound(run, findings)
    records, settings = 0, None if bound is None else bound.settings(1)  # all read verdicts alike
    other_readers = dict[str, object]()
    stores = (path for place in _STORES for path in run.path.glob(place))  # trackers have databases of their own
    for path in sorted(stores):
        records += _check_store(run, path, settings, findings, other_readers)
    for each in _broken_links(run, entries, bound):
        findings.setdefault(each.name, each)
    if entries and run.report.is_file() and not is_whole(run.report):
        findings["report.html"] = Finding("report.html", "isn't what was written")
    for state in damaged_resume_states(run.path):
        name = state.relative_to(run.path).as_posix()
        findings[name] = Finding(name, "this resume state of a training isn't what was saved")
    unfinished = tuple(_unfinished(run, bound))
    return Verification(len(entries), records, tuple(findings.values()), unfinished, other_readers)


def entries_of(run: RunDir, findings: dict[str, Finding]) -> dict[str, Entry]:
    """The manifest's entries, from its copy if it is damaged; without both, none."""
    try:
        found = manifest.read_manifest(run)
    except UserError as error:
        findings[run.manifest.name] = Finding(run.manifest.name, str(error))
        try:
            return manifest.read_manifest(run, copy=True)
        except UserError as broken:
            findings[run.manifest_copy.name] = Finding(run.manifest_copy.name, str(broken))
            return {}
    try:
        if found and manifest.read_manifest(run, copy=True) != found:
            findings[run.manifest_copy.name] = Finding(run.manifest_copy.name, "isn't a copy of the manifest")
    except UserError as error:
        findings[run.manifest_copy.name] = Finding(run.manifest_copy.name, str(error))
    return found


def _bound(run: RunDir, findings: dict[str, Finding]) -> BoundRecipe | None:
    """The run's bound, None if its recipe can't be read or what it names isn't there."""
    try:
        bound = BoundRecipe(run, load_recipe(str(run.resolved)))
        bound.settings(1)
    except UserError as error:
        findings.setdefault("resolved.json", Finding("resolved.json", f"can't be used: {error}"))
        return None
    return bound


# --- records ---


def _check_store(
    run: RunDir,
    path: Path,
    settings: AnnotationSettings | None,
    findings: dict[str, Finding],
    other_readers: dict[str, object],
) -> int:
    """Check every record of a store; how many there are."""
    name, count, bad = path.relative_to(run.path).as_posix(), 0, dict[str, str]()
    try:
        with RecordStore.read(path, immutable=True) as store:
            own = store.problems()
            version = store.field("judgments.reader_version")
            if version != READER_VERSION and any(map(Path(name).match, _READ_FROM_TEXTS)):
                other_readers[name], settings = version, None
            for key, document in store.checked_documents():
                problem = "its checksum is another one" if document is None else _misread(name, document, settings)
                count += 1
                if problem is not None:
                    bad[key] = problem
    except UserError as error:
        findings[name] = Finding(name, str(error))
        return count
    if bad:
        key, problem = next(iter(bad.items()))
        more = f", and {len(bad) - 1} other records" if len(bad) > 1 else ""
        findings[name] = Finding(name, f"{json.dumps(key)}: {problem}{more}", tuple(bad))
    elif own:
        findings[name] = Finding(name, f"SQLite's own check finds: {own[0]}")
    return count


def _misread(name: str, document: str, settings: AnnotationSettings | None) -> str | None:
    """What is wrong with a record whose checksum fits."""
    first, *inside = Path(name).parts
    if not first.startswith("iter-"):
        return None
    try:
        if inside in (["records.sqlite"], ["earlier.sqlite"]):
            record = record_from_json(document)
            candidates, comparisons = record.candidates_K, record.dispute.meta if record.dispute else ()
        elif len(inside) == 2 and inside[0] == "eval":
            held_out = held_out_from_json(document)
            candidates = (*held_out.own, *held_out.anchors_K)
            comparisons = tuple(each.meta for each in held_out.comparisons)
        else:
            return None
    except (UserError, ValueError) as error:
        return str(error)
    if settings is None or inside == ["earlier.sqlite"]:
        return None
    return misread(candidates, comparisons, settings)


# --- the chain ---


def _broken_links(run: RunDir, entries: Mapping[str, Entry], bound: BoundRecipe | None) -> Iterator[Finding]:
    """What was made from other versions of its inputs, by the digests in the manifest and in the files.

    An input counts as it was recorded: what was made from a model before it was damaged isn't stale.
    """
    for t in manifest.iterations(run):
        folder, head = run.iteration(t), f"iter-{t}"
        pairs = entries.get(f"{head}/pairs/summary.json")
        records = entries.get(f"{head}/records.sqlite")
        if pairs and records and pairs.made_from not in ("", records.sha256):
            yield Finding(f"{head}/pairs", "were built from other records than those that are there", stale=True)
        if bound is None:
            continue
        if t and (folder.model / "lineage.json").is_file():
            yield from _broken_lineage(run, entries, bound, t)
        model, first = (_model_digest(run, entries, bound, each) for each in (t, 0))
        made_with = {f"{head}/{_EVALUATED}": {"model": model, "anchors": first}}
        if t:
            made_with[f"{head}/records.sqlite"] = {"model": _model_digest(run, entries, bound, t - 1)}
        for name, fields in made_with.items():
            for field, expected in fields.items():
                if expected is not None and _field(run.path / name, field) not in (None, expected):
                    yield Finding(name, f"was made with another {field} than the one that is there", stale=True)


def _broken_lineage(run: RunDir, entries: Mapping[str, Entry], bound: BoundRecipe, t: int) -> Iterator[Finding]:
    name = f"iter-{t}/model"
    try:
        lineage = read_lineage(run.iteration(t).model)
    except UserError:
        return  # its digest says so, too
    files = [f"iter-{t}/pairs/{kind}.parquet" for kind in ("actor", "judge")]
    pairs = {_file_digest(run, entries, file) for file in files}
    if None not in pairs and not pairs.issuperset(lineage.sources):
        yield Finding(name, "was trained on other pairs than those that are there", stale=True)
    if bound.recipe.training.start == "previous":
        start = _model_digest(run, entries, bound, t - 1)
        if start is not None and lineage.start.sha256 != start:
            yield Finding(name, f"was trained from another M{t - 1} than the one that is there", stale=True)


def _file_digest(run: RunDir, entries: Mapping[str, Entry], name: str) -> str | None:
    if name in entries:
        return entries[name].sha256
    return digest(run.path / name) if (run.path / name).is_file() else None


def _model_digest(run: RunDir, entries: Mapping[str, Entry], bound: BoundRecipe, t: int) -> str | None:
    """The digest of M_t as it was recorded, else as it is; None if it isn't there."""
    folder = bound.model(t)
    try:
        if t == 0:
            return str(json.loads(run.inputs.read_bytes())["the model's files"])
        recorded = {
            name: entry.sha256 for name, entry in entries.items() if Path(name).parent == Path(f"iter-{t}/model")
        }
        if recorded and not weights_deleted(folder):
            return combined({Path(name).name: each for name, each in recorded.items()})
        return fingerprint_model(folder)
    except (UserError, OSError, ValueError, LookupError, TypeError):
        return None


def _field(path: Path, name: str) -> object:
    """A field of a store's fingerprint; None for a store that isn't there or is damaged, which is another finding."""
    try:
        with RecordStore.read(path, immutable=True) as store:
            return store.field(name)
    except (UserError, ValidationError):
        return None


# --- what is said ---


def _unfinished(run: RunDir, bound: BoundRecipe | None) -> Iterator[str]:
    """The iterations that the next start goes on with."""
    if bound is None:
        return
    for t in range(1, bound.last + 1):
        if not run.iteration(t).done.is_file():
            yield f"iteration {t}"


def verification_text(run: RunDir, found: Verification) -> str:
    """The result as a few lines for the terminal."""
    lines = [f"{run.path}: {found.files} recorded files and {found.records:,} records read"]
    if not found.files:
        lines += ["there is no manifest: the run was begun by an earlier version; its next start writes one"]
    for name, version in found.other_readers.items():
        why = f"its scores and verdicts were read by version {version} of the readers, and this is {READER_VERSION}"
        lines += [f"not compared with its texts: {name}: {why}"]
    lines += [f"damaged: {each.name}: {each.problem}" for each in found.findings if not each.stale]
    lines += [f"out of date: {each.name}: {each.problem}" for each in found.findings if each.stale]
    if found.unfinished:
        lines += [f"not done yet: {', '.join(found.unfinished)}"]
    lines += [] if found.findings else ["all of it is what the run made"]
    return "\n".join(lines) + "\n"
