"""Rude servers at default settings: no finished prompt is lost, no run crashes, and the API key shows up nowhere."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import scripted_models
from chat_server import FakeChatServer
from openai_setup import MODEL, QUICK
from rude_servers import KEY, RUDE, Rude, good_answer, refused

from metareward.engines.openai.engine import OpenAISettings, open_openai
from metareward.engines.openai.pool import Pauses
from metareward.errors import UserError
from metareward.generation.annotate import AnnotationSettings, annotation_fingerprint
from metareward.generation.progress import SILENT
from metareward.generation.runner import annotate_prompts
from metareward.storage.store import RecordStore

# Every kind of rudeness is in the default tests, which take the short pauses of `QUICK`.
SLICE = (
    *("500", "429, Retry-After on day 10^20", "reset in mid-reply", "bytes instead of HTTP", "no choices"),
    *("401", "the key in the answer", "a log-probability of 1e308", "choices in the wrong order"),
    *("from then on 401", "from then on closed"),
)


def annotation(expected: bool) -> AnnotationSettings:
    return replace(scripted_models.settings(k=2, n=1, meta_judge=False), min_valid=1, expected=expected)


@dataclass(frozen=True)
class Outcome:
    """The documents and the failures in the store, and the line with which the call ended if it did."""

    documents: dict[str, str]
    failures: dict[str, str]
    stopped: str = ""


async def annotate(server: FakeChatServer, store: Path, count: int, expected: bool, pauses: Pauses | None) -> Outcome:
    settings = annotation(expected)
    given = {"base_urls": [server.url], "model": MODEL, "api_key_env": "CANARY_KEY"}
    stopped = ""
    with RecordStore.open(store, annotation_fingerprint(settings)) as opened:
        engine = await open_openai(OpenAISettings.model_validate(given), pauses)
        try:
            await annotate_prompts(engine, scripted_models.prompts(count), settings, opened, SILENT)
        except UserError as error:
            stopped = str(error)
        finally:
            await engine.aclose()
        return Outcome(dict(opened.documents()), opened.failures(), stopped)


async def undisturbed(folder: Path, count: int, expected: bool) -> dict[str, str]:
    """The documents that a good server gives."""
    async with FakeChatServer(lambda body, _: good_answer(body)) as server:
        documents = (await annotate(server, folder / f"good-{expected}.sqlite", count, expected, None)).documents
    assert len(documents) == count
    return documents


async def problems_with(rude: Rude, folder: Path, wanted: dict[str, str], pauses: Pauses | None) -> list[str]:
    """What is not as the table says; empty if all is. ``wanted``: the documents of a good server."""
    store, found = folder / f"{re.sub(r'[^a-z0-9]+', '-', rude.name.lower())}.sqlite", list[str]()
    count = len(wanted)
    async with FakeChatServer(rude.manner(dies_after=count)) as server:
        outcome = await annotate(server, store, count, rude.expected, pauses)
        if rude.kind != "shows" and len(outcome.documents) == count:
            found += [] if rude.kind == "passes" else ["no prompt met it"]
    kept = {key for key, document in outcome.documents.items() if document != wanted[key]} if not rude.others else ()
    found += [f"other records: {sorted(kept)}"] if kept else []
    failed = {key for key in wanted if refused_key(key)} if rude.kind == "refuses" else set()
    if rude.kind == "dies":
        found += [] if outcome.stopped or outcome.failures else ["no prompt failed"]
    elif outcome.stopped or outcome.failures.keys() != failed:
        found.append(f"failed: {outcome.stopped or sorted(outcome.failures.items())[:2]}")
    said = [outcome.stopped, *outcome.failures.values()]
    found += [f"not one plain line: {line!r}" for line in said if line and not (line.isprintable() and len(line) < 900)]
    async with FakeChatServer(lambda body, _: good_answer(body)) as server:
        again = await annotate(server, store, count, rude.expected, None)
    same = again.documents == (outcome.documents if rude.others else wanted)
    found += [] if same and not again.failures else ["not the same with a good server afterwards"]
    kept_bytes = b"".join(path.read_bytes() for path in folder.glob(f"{store.stem}.*"))
    found += ["the key is stored or said"] if KEY.encode() in kept_bytes or KEY in "".join(said) else []
    return [f"{rude.name} ({rude.kind}): {each}" for each in found]


def refused_key(key: str) -> bool:
    return refused({"messages": [{"content": f"country {int(key[1:])}?"}]})


async def all_problems(chosen: Sequence[Rude], folder: Path, count: int, pauses: Pauses | None) -> list[str]:
    wanted = {expected: await undisturbed(folder, count, expected) for expected in (False, True)}
    at_once = asyncio.Semaphore(4)

    async def problems(rude: Rude) -> list[str]:
        async with at_once:
            return await problems_with(rude, folder, wanted[rude.expected], pauses)

    each = await asyncio.gather(*map(problems, chosen))
    return [problem for found in each for problem in found]


def test_the_table_is_long_and_has_every_kind() -> None:
    assert len({rude.name for rude in RUDE}) == len(RUDE) >= 60
    assert {rude.kind for rude in RUDE} == {"passes", "refuses", "dies", "shows"}


def test_a_slice_of_the_rude_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CANARY_KEY", KEY)
    caplog.set_level(logging.INFO)
    chosen = [rude for rude in RUDE if rude.name in SLICE]
    assert len(chosen) == len(SLICE)
    assert not "\n".join(asyncio.run(all_problems(chosen, tmp_path, 10, QUICK)))
    assert KEY not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
@pytest.mark.timeout(3600)
def test_every_rude_server_at_default_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, long: bool
) -> None:
    """The long ones are bounded by the time limits of a request and of patience, ten minutes each; all run at once."""
    monkeypatch.setenv("CANARY_KEY", KEY)
    caplog.set_level(logging.INFO)
    chosen = [rude for rude in RUDE if rude.long == long]
    assert not "\n".join(asyncio.run(all_problems(chosen, tmp_path, 200, None)))
    assert KEY not in caplog.text
