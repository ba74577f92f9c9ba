"""``metareward push``: a model or the pairs of a run on the Hugging Face hub, with its card. Nothing is sent unasked.

What is sent holds no path of this machine: the lineage names models as M0, M1 ... with their digests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from metareward.data.files import hub_errors
from metareward.errors import UserError
from metareward.pipeline.engines import model_folder
from metareward.report.cards import CARD, base_of, model_card, pairs_card, portable_name
from metareward.report.facts import Run, evaluated_digest, gather
from metareward.storage import manifest
from metareward.storage.custody import LINEAGE, ModelRef, fingerprint_model, require_weights
from metareward.storage.run_dir import RunDir
from metareward.text import escape_control
from metareward.training.lineage import Lineage, read_lineage

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_KB = 1000


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file of a repository: the ``content`` itself, or the file that holds it."""

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True, slots=True)
class Publication:
    """All files of a repository; ``kind`` is the hub's. ``warnings``: what to know before it is sent."""

    kind: str
    repository: str
    title: str
    files: tuple[PublishedFile, ...]
    warnings: tuple[str, ...]


def model_publication(
    run: RunDir, repository: str, t: int | None = None, base: str | None = None, licence: str | None = None
) -> Publication:
    """M_t of a run (the last one that is done) as a model repository OWNER/NAME.

    ``base`` and ``licence`` of M0 take the place of what its folder says. Raises `UserError` for a wrong name, when
    there is no such model, and for one that isn't the model that was evaluated.
    """
    facts = _checked(run, repository)
    done = [each.number for each in facts.iterations if each.number and each.done]
    t = t if t is not None else max(done, default=1)
    folder = run.iteration(t).model
    if t not in done:
        raise UserError(f"{run.path}: iteration {t} is not done; fix: finish the run, or name another with --iteration")
    require_weights(folder)
    if evaluated_digest(run, t) not in (None, fingerprint_model(folder)):
        raise UserError(f"{folder}: not the model that was evaluated: its files have changed; fix: restore them")
    known_base, known_licence = base_of(facts.recipe.model, model_folder(facts.recipe.model))
    base, licence = base or known_base, licence or known_licence
    first = base or Path(facts.recipe.model).name
    lineages = {number: _portable(run, number, first) for number in range(1, t + 1)}
    texts = {CARD: model_card(run, t, base, licence), LINEAGE: lineages.pop(t)}
    texts |= {f"lineage/M{number}.json": text for number, text in lineages.items()}
    files = [PublishedFile(each.relative_to(folder).as_posix(), each) for each in _files(folder, (CARD, LINEAGE))]
    manifest.require_whole(run, *(each.content for each in files if isinstance(each.content, Path)))
    files += [PublishedFile(name, text.encode()) for name, text in texts.items()]
    warnings = [] if licence else ["the licence of the base model is unknown; fix: say it with --licence"]
    warnings += [] if base else ["the hub's name of the base model is unknown; fix: say it with --base, if it has one"]
    ordered = tuple(sorted(files, key=lambda file: file.name))
    return Publication("model", repository, f"M{t} of {run.path}", ordered, tuple(warnings))


def pairs_publication(run: RunDir, repository: str, licence: str | None = None) -> Publication:
    """The pairs of all iterations as a data set repository OWNER/NAME. Raises `UserError` when there are none."""
    facts = _checked(run, repository)
    if not facts.summaries:
        raise UserError(f"{run.path}: no pairs yet; fix: go on with the run")
    _, known = base_of(facts.recipe.model, model_folder(facts.recipe.model))
    licence = licence or known
    files = [PublishedFile(CARD, pairs_card(run, licence).encode())]
    for each in facts.summaries:
        for path in sorted((run.iteration(each.iteration).path / "pairs").glob("*.parquet")):
            if getattr(each, f"{path.stem}_pairs", 0):
                manifest.require_whole(run, path)
                files.append(PublishedFile(f"iter-{each.iteration}/{path.name}", path))
    warnings = ["the pairs hold your prompts and the model's texts in full"]
    warnings += [] if licence else ["the licence of the base model is unknown; fix: say it with --licence"]
    return Publication("dataset", repository, f"pairs of {run.path}", tuple(files), tuple(warnings))


def push(publication: Publication, private: bool) -> str:
    """Create the repository if it isn't there, and send all files as one commit. Returns its address.

    The token is huggingface_hub's: ``HF_TOKEN``, or that of ``hf auth login``. Raises `UserError` when the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    api, name, kind = HfApi(), publication.repository, publication.kind
    operations = [
        CommitOperationAdd(each.name, each.content if isinstance(each.content, bytes) else str(each.content))
        for each in publication.files
    ]
    fix = "log in (hf auth login, or HF_TOKEN) with a token that may write there, and check the name and the network"
    with hub_errors(name, "pushed", fix):
        address = api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        api.create_commit(
            name, operations, commit_message=f"{publication.title.rpartition('/')[2]}, by metareward", repo_type=kind
        )
    return str(address)


def publication_table(publication: Publication) -> Table:
    """The files with their sizes."""
    total = sum(each.size for each in publication.files)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right")
    for each in publication.files:
        table.add_row(escape_control(each.name), _size(each.size))
    table.add_row(f"{len(publication.files)} files", _size(total))
    return table


def _checked(run: RunDir, repository: str) -> Run:
    if not _NAME.fullmatch(repository):
        raise UserError(f"--to {repository}: expected OWNER/NAME, a repository of the Hugging Face hub")
    return gather(run)


def _files(folder: Path, without: tuple[str, ...]) -> Iterator[Path]:
    """The files of a model folder, those of its adapter included."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder).as_posix() not in without and not path.name.endswith(".tmp"):
            yield path


def _portable(run: RunDir, t: int, first: str) -> str:
    """The lineage of M_t with names in the place of paths."""
    lineage: Lineage = read_lineage(run.iteration(t).model)

    def named(reference: ModelRef | None) -> ModelRef | None:
        return None if reference is None else replace(reference, path=portable_name(reference, t, run, first))

    start = named(lineage.start)
    assert start is not None
    found = replace(lineage, start=start, reference=named(lineage.reference), base=named(lineage.base))
    return json.dumps(json.loads(found.to_json()), indent=2, ensure_ascii=False) + "\n"


def _size(size: int) -> str:
    for unit in ("B", "kB", "MB"):
        if size < _KB:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _KB  # type: ignore[assignment]
    return f"{size:.1f} GB"
