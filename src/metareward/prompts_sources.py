"""From a name to files: a file, a folder, a pattern, or a data set on the Hugging Face hub.

    FILE.jsonl   FILE.json   FILE.parquet   FOLDER   FOLDER/train-*.parquet
    hub:OWNER/NAME   hub:OWNER/NAME/data/train-*.parquet

A folder is one that `datasets` saved, or a copy of a data set's files. What isn't here is fetched only where the caller
allows the network. Of several splits one must be named: nothing is chosen or thrown together unasked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from metareward.errors import UserError
from metareward.prompts_rows import STATE

HUB = "hub:"
_SPLITS = "dataset_dict.json"  # stands in a folder that `datasets` saved several splits in
_DATA = (".parquet", ".jsonl", ".json")
_ABOUT = (STATE, _SPLITS, "dataset_info.json", "dataset_infos.json")  # JSON about the data, not data
_SHARD = re.compile(r"-\d+-of-\d+$")


def located(source: Path | str, network: bool = False) -> tuple[Path, ...]:
    """The files of ``source``, in the order of their names.

    Raises `UserError` when there are none, when there are several splits and none is named, or when the hub is named
    and ``network`` is false or it can't be reached.
    """
    name = str(source)
    if name.startswith(HUB):
        return _fetched(name, network)
    path = Path(name)
    if path.is_dir():
        return _in_folder(path)
    return _matching(path) if "*" in name and not path.exists() else (path,)


def _matching(pattern: Path) -> tuple[Path, ...]:
    root = Path(pattern.anchor or ".")
    files = tuple(sorted(root.glob(str(pattern.relative_to(pattern.anchor)))))
    if not files:
        raise UserError(f"{pattern}: no file is named like this; fix: name files that are there")
    return files


def _in_folder(folder: Path) -> tuple[Path, ...]:
    if (folder / STATE).is_file():
        return (folder,)
    if (folder / _SPLITS).is_file():
        splits = sorted(path.parent.name for path in folder.glob(f"*/{STATE}"))
        return _one(str(folder), [(split,) for split in splits], folder)
    files = (path for path in folder.rglob("*") if path.is_file())
    return _one(str(folder), splits_of(path.relative_to(folder).as_posix() for path in files), folder)


def splits_of(names: Iterable[str]) -> list[tuple[str, ...]]:
    """The data files among ``names``, those that are parts of one split together, each name as it is."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        path = PurePosixPath(name)
        hidden = any(part.startswith(".") for part in path.parts)
        if path.suffix in _DATA and path.name not in _ABOUT and not hidden:
            found.setdefault(_pattern(path), []).append(name)
    return [tuple(parts) for parts in found.values()]


def _pattern(path: PurePosixPath) -> str:
    """The name that all parts of the file's split share: ``data/train-*.parquet``; its own if it is no part."""
    stem = _SHARD.sub("-*", path.stem)
    return str(path.with_name(stem + path.suffix))


def _one(source: str, splits: Sequence[tuple[str, ...]], folder: Path) -> tuple[Path, ...]:
    if len(splits) != 1:
        raise _not_one(source, splits)
    return tuple(folder / name for name in splits[0])


def _not_one(source: str, splits: Sequence[tuple[str, ...]]) -> UserError:
    if not splits:
        return UserError(f"{source}: can't be read: no data files in it ({', '.join(_DATA)}); fix: name another")
    named = [_pattern(PurePosixPath(split[0])) for split in splits]
    return UserError(f"{source}: holds {', '.join(named[:8])}; fix: name one of them, as {source}/{named[0]}")


def _fetched(source: str, network: bool) -> tuple[Path, ...]:
    owner, _, rest = source.removeprefix(HUB).partition("/")
    name, _, pattern = rest.partition("/")
    if not (owner and name):
        raise UserError(f"{source}: names no data set; fix: write hub:OWNER/NAME or hub:OWNER/NAME/FILE")
    if not network:
        raise UserError(f"{source}: is on the Hugging Face hub, and the network is off; fix: allow it or name a copy")
    return _download(source, f"{owner}/{name}", pattern)


def _download(source: str, repository: str, pattern: str) -> tuple[Path, ...]:
    from huggingface_hub import HfApi, snapshot_download

    try:
        there = HfApi().list_repo_files(repository, repo_type="dataset")
        wanted = [name for name in there if not pattern or fnmatchcase(name, pattern)]
        splits = [tuple(sorted(wanted))] if pattern and wanted else splits_of(wanted)
        if len(splits) != 1:
            raise _not_one(source, splits)
        folder = snapshot_download(repository, repo_type="dataset", allow_patterns=list(splits[0]))
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0][:200]
        raise UserError(f"{source}: can't be fetched ({why}); fix: look at the name and the network") from None
    return tuple(Path(folder) / name for name in splits[0])
