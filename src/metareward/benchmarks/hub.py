"""A benchmark's file by name: a path, or ``hub:OWNER/NAME/FILE`` for a file of a data set on the Hugging Face hub."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from metareward.errors import UserError

HUB = "hub:"


def located(name: str, network: bool = True) -> Path:
    """The path of ``name``; a hub's file is fetched into the hub's own cache, or found there, if ``network`` allows it.

    Raises `UserError` when the name has no file in it, or the hub can't be reached or doesn't have it.
    """
    if not name.startswith(HUB):
        return Path(name)
    owner, _, rest = name.removeprefix(HUB).partition("/")
    data_set, _, file = rest.partition("/")
    if not (owner and data_set and file):
        raise UserError(f"{name}: names no file of a data set; fix: write hub:OWNER/NAME/FILE")
    if not network:
        raise UserError(f"{name}: is on the Hugging Face hub; fix: set prompts.network to true, or name a local copy")
    return _fetched(name, f"{owner}/{data_set}", file)


@cache
def _fetched(name: str, repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset"))
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0][:200]
        raise UserError(f"{name}: can't be fetched ({why}); fix: allow the network, or name a local copy") from None
