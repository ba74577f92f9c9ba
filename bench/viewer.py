"""Speed and memory of `metareward view` on a made-up run of the papers' size: 5,000 prompts, each with 7 answers, 77
judgments and 110 meta-judgments.

    .venv/bin/python bench/viewer.py [--folder DIR] [--prompts 5000]

Makes the run (some 700 MB) in DIR, or a temporary folder, if it isn't there, indexes it in a server process, and times
pages over HTTP. ``cpu`` is the server's CPU seconds for a page, which other work on the machine doesn't lengthen much.
Writes bench/results/viewer.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from html import unescape
from itertools import permutations
from pathlib import Path

import httpx2

from metareward.config.schema import load_recipe, pairs_rules
from metareward.method.diagnostics import summarize
from metareward.method.pairs import build_pairs, of_kind
from metareward.storage.atomic import write_atomic
from metareward.storage.pair_files import write_dropped, write_pairs
from metareward.storage.records import read_records, record_to_json
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore
from metareward.types import (
    Candidate,
    Dispute,
    Dropped,
    Judgment,
    Message,
    MetaJudgment,
    PreferencePair,
    Prompt,
    PromptRecord,
    Reading,
    Scored,
    Unparsed,
    Won,
)

RESULT = Path(__file__).parent / "results" / "viewer.json"
K, N, T = 7, 11, 1
ANSWER, JUDGMENT, META = 1500, 600, 450  # characters


class Texts:
    """Stretches of one long text of made-up words, so that a gigabyte is made in seconds."""

    def __init__(self, seed: int = 0) -> None:
        draw = random.Random(seed)
        syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
        words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(20_000)]
        weights = [1 / (rank + 2) for rank in range(len(words))]
        self._text = " ".join(draw.choices(words, weights, k=600_000))
        self._draw = draw

    def take(self, characters: int) -> str:
        """About so many characters, half to one and a half times."""
        length = self._draw.randint(characters // 2, 3 * characters // 2)
        start = self._draw.randrange(len(self._text) - length)
        return self._text[start : start + length]


def record(number: int, texts: Texts) -> PromptRecord:
    """One prompt with all that the papers' settings ask for."""
    draw = random.Random(number)
    answers = []
    for k in range(K):
        quality = draw.gauss(3, 1)
        judgments = []
        for n in range(N):
            score = float(min(5, max(0, round(draw.gauss(quality, 0.9)))))
            reading: Reading = Scored(score) if draw.random() > 0.02 else Unparsed("missing")
            judgments.append(Judgment(n, f"{texts.take(JUDGMENT)}\nScore: {score:g}", 150, reading))
        answers.append(Candidate(k, texts.take(ANSWER), "stop", 350, tuple(judgments)))
    disputed = answers[number % K]
    valid = tuple(each.index for each in disputed.judgments_N if isinstance(each.reading, Scored))
    metas = tuple(
        MetaJudgment(a, b, texts.take(META), 110, Won(a if draw.random() < 0.55 else b))
        for a, b in permutations(valid, 2)
    )
    prompt = Prompt(f"prompt-{number:05d}", (Message("user", texts.take(300)),))
    return PromptRecord(prompt, tuple(answers), (), Dispute(disputed.index, valid, metas))


def make(folder: Path, prompts: int) -> RunDir:
    """The run: records and pairs of one iteration."""
    run, texts = RunDir(folder), Texts()
    recipe = load_recipe("meta-rewarding", ["name=viewer", "model=m", "prompts.source=p.jsonl"])
    place = run.iteration(T)
    place.path.mkdir(parents=True)
    with RecordStore.open(place.records, {"made": "up"}) as store:
        for number in range(prompts):
            store.put(f"prompt-{number:05d}", record_to_json(record(number, texts)))

    def batches() -> Iterator[tuple[PromptRecord, ...]]:
        with RecordStore.read(place.records) as store:
            batch = []
            for each in read_records(store):
                batch.append(each)
                if len(batch) == 500:
                    yield tuple(batch)
                    batch = []
            if batch:
                yield tuple(batch)

    pairs, dropped = list[PreferencePair](), list[Dropped]()
    for batch in batches():  # as the run would, but for the position weights
        built, left_out = build_pairs(batch, pairs_rules(recipe, T), seed=recipe.seed)
        pairs += built
        dropped += left_out
    write_pairs(place.pairs("actor"), of_kind(pairs, "actor"))
    write_pairs(place.pairs("judge"), of_kind(pairs, "judge"))
    write_dropped(place.dropped, dropped)
    write_atomic(place.summary, json.dumps(summarize(T, batch, pairs, dropped)))
    write_atomic(run.resolved, json.dumps(recipe.resolved()))
    return run


class Server:
    """`metareward view` as a process of its own."""

    def __init__(self, run: Path, cache: Path) -> None:
        code = "from metareward.cli.main import main; main()"
        words = [sys.executable, "-c", code, "view", str(run), "--cache", str(cache), "--no-token"]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.base = self._process.stdout.readline().strip().rstrip("/")
        self.client = httpx2.Client(base_url=self.base, timeout=600)

    def get(self, address: str) -> tuple[float, str]:
        """(seconds, page)."""
        start = time.perf_counter()
        response = self.client.get(address)
        response.raise_for_status()
        return time.perf_counter() - start, response.text

    def usage(self) -> tuple[float, float]:
        """(CPU seconds, highest resident memory in MB)."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        ticks = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, ticks[11:13])) / 100, int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024

    def stop(self) -> None:
        """End it."""
        self.client.close()
        self._process.terminate()
        self._process.wait()


def measure(run: RunDir) -> dict[str, object]:
    """Seconds of each kind of page, of the index, and memory."""
    cache = run.path.with_name("cache")
    shutil.rmtree(cache, ignore_errors=True)
    server, started = Server(run.path, cache), time.perf_counter()
    during, done, total, indexing = 0.0, "0", "0", "1"
    while indexing != "0" or done != total or total == "0":
        during = server.get("/run/0/prompts?t=1")[0]
        time.sleep(1)
        _, _, done, total, indexing = server.get("/state")[1].split(".")
    indexed = {"seconds": time.perf_counter() - started, "cpu_seconds": server.usage()[0], "mb": server.usage()[1]}
    indexed["list_while_indexing_seconds"] = during
    server.stop()
    server = Server(run.path, cache)
    first, listing = server.get("/run/0/prompts?t=1")
    started_cpu, load = server.usage()[0], os.getloadavg()[0]
    links = [unescape(each) for each in re.findall(r'class="row" href="([^"]+)"', listing)]
    word, phrase = listing_words(listing)
    queries = {
        "list": ["/run/0/prompts?t=1", "/run/0/prompts?t=1&sort=margin", "/run/0/prompts?t=1&page=77"],
        "prompt": links[:10],
        "search_text": [f"/run/0/prompts?t=1&q={word}", f"/run/0/prompts?t=1&q={phrase}", "/run/0/prompts?t=1&q=xyzzy"],
        "search_judgments": [f"/run/0/prompts?t=1&within=judgments&q={each}" for each in (word, phrase, "xyzzy")],
        "filter": [
            f"/run/0/prompts?t=1&{each}"
            for each in ("flipped=1&sort=flipped", "unreadable=judgment", "low=4&margin_low=0.5", "pair=no", "lost=1")
        ],
        "overview": ["/"],
    }
    pages = {}
    for name, addresses in queries.items():
        before = server.usage()[0]
        seconds = [server.get(address)[0] for _ in range(3) for address in addresses]
        cpu = (server.usage()[0] - before) / len(seconds)
        pages[name] = {"median": statistics.median(seconds), "max": max(seconds), "cpu": cpu, "n": len(seconds)}
    _, mb = server.usage()
    server.stop()
    store = run.iteration(T).records
    return {
        "prompts": int(total),
        "judgments_per_prompt": K * N,
        "meta_judgments_per_prompt": N * (N - 1),
        "records_mb": store.stat().st_size / 2**20,
        "index_mb": sum(path.stat().st_size for path in cache.iterdir()) / 2**20,
        "index": indexed,
        "first_page_of_a_new_server_seconds": first,
        "start_and_first_page_cpu_seconds": started_cpu,
        "load_average": load,
        "pages_seconds": pages,
        "server_mb": mb,
    }


def listing_words(html: str) -> tuple[str, str]:
    """A word, and three words in a row, of the first prompt on a page."""
    title = re.findall(r'class="title" dir="auto">([^<]+)', html)[0].split()
    return title[3], "+".join(title[3:6])


def main(
    description: str | None,
    name: str,
    make: Callable[[Path, int], RunDir],
    measure: Callable[[RunDir], dict[str, object]],
    result: Path,
) -> None:
    """Make the run in the folder ``name`` of --folder unless it is there, measure it, write ``result``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--prompts", type=int, default=5000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)) / name
        run = RunDir(folder) if folder.is_dir() else make(folder, given.prompts)
        measured = measure(run)
    result.write_text(json.dumps(rounded(measured), indent=2) + "\n")
    print(result.read_text())


def rounded(value: object) -> object:
    """Floats with three decimals."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main(__doc__, "run", make, measure, RESULT)
