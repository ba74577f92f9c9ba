"""The pictures in README and docs, made in Chromium from the report and the viewer of a run of the demo.

    make pictures                               (or: python bench/pictures.py runs/pocket-1)

The run stays as it is. Writes docs/images/*.png, each with a palette of 128 colours and below 150 KB
(tests/docs/test_docs.py). METAREWARD_CHROMIUM names the browser; without it, it is the machine's `chromium`, or the
one that Playwright has fetched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from metareward.report.write import page as report_page
from metareward.storage.run_dir import RunDir

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH, COLOURS = 1100, 128


@contextmanager
def viewer(run: Path, cache: Path) -> Iterator[str]:
    """The address of `metareward view`, when the run is indexed."""
    words = ["view", str(run), "--no-token", "--cache", str(cache)]
    start = [sys.executable, "-c", "from metareward.cli.main import main; main()", *words]
    process = subprocess.Popen(start, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        base = next(line for line in process.stdout if "http://" in line).split()[-1].rstrip("/")
        while not is_indexed(base):
            time.sleep(0.2)
        yield base
    finally:
        process.terminate()
        process.wait()


def is_indexed(base: str) -> bool:
    """By the state that pages ask for while they follow a run."""
    with urlopen(f"{base}/state", timeout=60) as answer:
        _, _, done, total, indexing = answer.read().decode().split(".")
    return bool(indexing == "0" and done == total != "0")


def save(name: str, png: bytes) -> None:
    """Write a picture with fewer colours."""
    picture = Image.open(BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    path = IMAGES / f"{name}.png"
    picture.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB, {picture.width} x {picture.height}")


def top(page: Page, height: int) -> bytes:
    """The first part of a page."""
    return bytes(page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": height}, full_page=True))


def part(page: Page, selector: str, height: int) -> bytes:
    """The first part of an element."""
    box: Any = page.locator(selector).first.bounding_box()
    clip = {"x": 0, "y": max(0, box["y"] - 16), "width": WIDTH, "height": min(height, box["height"] + 32)}
    return bytes(page.screenshot(clip=clip, full_page=True))


def report_pictures(page: Page, run: Path, scratch: Path) -> None:
    """The report's first page, judge health, and an example prompt."""
    written = scratch / "report.html"
    written.write_text(report_page(RunDir(run)), encoding="utf-8")
    page.goto(written.as_uri())
    save("report", top(page, 1150))
    save("report-judge-health", part(page, "#judge-health", 900))
    save("report-pairs", part(page, "#pairs", 700))


def viewer_pictures(page: Page, run: Path, scratch: Path) -> None:
    """The list of an iteration's prompts, a prompt with both pairs, and two models beside each other."""
    with viewer(run, scratch) as base:
        page.goto(f"{base}/run/0/prompts?t=1&sort=flipped")
        save("view-list", top(page, 800))
        both = re.compile(r"pair\s+\+.*pair\s+\+", re.DOTALL)
        page.locator("tr", has_text=both).first.locator("a.row").click()
        page.wait_for_url("**/prompt?**")
        save("view-prompt", top(page, 1100))
        page.goto(f"{base}/compare?a=0.0&b=0.4")
        save("view-compare", top(page, 700))


def main() -> None:
    """Make all pictures."""
    run = Path(sys.argv[1])
    chromium = os.environ.get("METAREWARD_CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 800}, color_scheme="light")
        report_pictures(page, run, Path(scratch))
        viewer_pictures(page, run, Path(scratch))
        browser.close()


if __name__ == "__main__":
    main()
