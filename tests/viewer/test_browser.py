"""The pages of `metareward view` in Chromium: by mouse and by keyboard, at two widths, in light and dark."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fake_run import (
    HOSTILE,
    fake_record,
    fake_run,
    run_with_annotations,
    start,
    write_built,
    write_held_out,
    write_records,
)

from metareward.report.write import write_report
from metareward.storage.atomic import write_atomic
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore
from metareward.types import Candidate, Judgment, Message, Prompt, PromptRecord, Unparsed

pytestmark = pytest.mark.browser
CHROMIUM = os.environ.get("METAREWARD_CHROMIUM") or shutil.which("chromium")
PICTURES = os.environ.get("METAREWARD_PICTURES")
A4_WIDTH = 688  # CSS pixels between margins of 14 mm


@dataclass
class Site:
    """A server of runs, and what a browser complained about."""

    base: str
    runs: dict[str, RunDir]
    complaints: list[str] = field(default_factory=list)


def wait_for_count(page: Any, selector: str, count: int) -> None:
    """Wait until the page, which a click may still be loading, has so many of these elements."""
    page.wait_for_function(
        "([selector, count]) => document.querySelectorAll(selector).length === count", arg=[selector, count]
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A finished run, an empty folder, a half-done, a damaged and a hostile run, and one that a person judged."""
    uvicorn = pytest.importorskip("uvicorn")
    from metareward.viewer.annotations import CHOICES, Annotations, annotate, pair_question
    from metareward.viewer.runs import ViewedRun
    from metareward.viewer.server import application

    folder = tmp_path_factory.mktemp("site")
    whole = fake_run(folder / "whole", models=3)
    for t in (0, 1, 2):
        write_held_out(whole, t)
    (folder / "empty").mkdir()
    half = start(folder / "half")
    write_records(half, 1, [fake_record(1, number) for number in range(5)], failed={"long": "900 tokens, 512 fit"})
    damaged = fake_run(folder / "damaged", models=2)
    with RecordStore.open(damaged.iteration(1).records, {"seed": 0}) as store:
        store.put("torn", '{"prompt": 3}')
    write_atomic(damaged.iteration(1).pairs("actor"), b"PAR1 no more")
    hostile = start(folder / "hostile")
    answers = tuple(
        Candidate(at, text, "stop", 9, (Judgment(0, HOSTILE, 9, Unparsed("missing")),))
        for at, text in enumerate((HOSTILE, "x" * 1_000_000, "\u202eשלום " * 200))
    )
    write_records(hostile, 1, [PromptRecord(Prompt("<b>odd</b>/é", (Message("user", HOSTILE),)), answers, (), None)])
    write_built(hostile, 1)
    fake_run(folder / "judged", models=2)
    names = ("whole", "empty", "half", "damaged", "hostile", "judged")
    viewed = [ViewedRun(number, folder / name, folder / "cache") for number, name in enumerate(names)]
    viewed[-1].refresh()
    for number, choice in enumerate(CHOICES):
        trace = viewed[-1].trace(1, fake_record(1, number).prompt.id)
        for kind in ("actor", "judge"):
            if trace and (shown := pair_question(trace, kind, "ann")):
                Annotations(viewed[-1].annotations).add(annotate(shown, choice, "ann", blind=number > 0))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application(viewed, "token", person="ann"), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not (server.started and all(run.state.version and not run.state.indexing for run in viewed)):
        time.sleep(0.05)
    yield Site(f"http://127.0.0.1:{listening.getsockname()[1]}", {run.name: run.run for run in viewed})
    server.should_exit = True
    thread.join(timeout=20)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium: {error}")
        yield browser
        browser.close()


def opened(chromium: Any, site: Site, width: int = 1280, scheme: str = "light") -> Any:
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(120_000)  # pictures of long pages, on a busy machine
    page.on("console", lambda message: site.complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: site.complaints.append(str(error)))
    page.goto(f"{site.base}/?token=token")
    return page


@pytest.fixture
def page(chromium: Any, site: Site) -> Iterator[Any]:
    site.complaints.clear()
    page = opened(chromium, site)
    yield page
    page.context.close()
    assert site.complaints == []


@pytest.fixture(scope="module")
def reports(site: Site) -> dict[str, Path]:
    """The reports of the finished, half-done and hostile run, and of one with every kind of table."""
    rich = run_with_annotations(site.runs["whole"].path.with_name("rich"))
    for t in (1, 2):
        path = rich.iteration(t).evaluation / "model.json"
        win = {"judge": "oracle", "win_rate": 62.5, "low": 55.0, "high": 70.0, "wins": 9, "losses": 4, "draws": 1}
        win |= {"length_adjusted": 58.0, "length_adjusted_error": 3.24, "left_out": 2, "p_value": 0.003}
        paired = {"mean": 0.591, "low": 0.401, "high": 0.699, "n": 300}
        measured = {"differences": {"answer_quality": paired, "answer_perfect": paired}}
        told = json.loads(path.read_text())
        path.write_text(json.dumps({**told, **measured, "win_rates": [{"against": f"M{n}", **win} for n in range(t)]}))
    runs = {name: site.runs[name] for name in ("whole", "half", "hostile")} | {"rich": rich}
    return {f"report-{name}": write_report(run) for name, run in runs.items()}


FLIPPED = fake_record(1, 0).prompt.id
PAGES = {
    "overview": "/",
    "list": "/run/0/prompts?t=1&sort=flipped",
    "prompt": f"/run/0/prompt?t=1&id={FLIPPED}",
    "held-out": "/run/0/held-out",
    "held-out-prompt": "/run/0/held-out/prompt?id=held-2",
    "compare": "/compare?a=0.0&b=0.2",
    "side-by-side": "/compare/prompt?a=0.0&b=0.2&id=held-2",
    "compare-iterations": "/compare?on=prompts&a=0.1&b=5.1",
    "side-by-side-iterations": f"/compare/prompt?on=prompts&a=0.1&b=5.1&id={FLIPPED}",
    "judge": "/run/0/judge?t=1",
    "judge-seeing": "/run/0/judge?t=1&kind=judge&blind=0",
    "judged-none": "/run/0/judged",
    "judged": "/run/5/judged",
    "list-none": "/run/0/prompts?t=1&q=xyzzy",
    "empty": "/run/1",
    "half": "/run/2/prompts?t=1",
    "half-failed": "/run/2/prompt?t=1&id=long",
    "half-prompt": f"/run/2/prompt?t=1&id={FLIPPED}",
    "damaged": "/run/3/prompts?t=1&failed=1",
    "damaged-prompt": "/run/3/prompt?t=1&id=torn",
    "hostile": "/run/4/prompts?t=1",
    "hostile-prompt": f"/run/4/prompt?t=1&id={quote('<b>odd</b>/é')}",
    "hostile-text": f"/run/4/text?t=1&id={quote('<b>odd</b>/é')}&what=answer-2",
    "no-such-run": "/run/9",
}


def serious(found: Any) -> list[str]:
    """axe's faults that are serious or critical."""
    bad = [each for each in found.response["violations"] if each["impact"] in ("serious", "critical")]
    return [f"{each['id']}: {each['nodes'][0]['html'][:150]}" for each in bad]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_are_accessible_and_log_no_error(chromium: Any, site: Site, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    site.complaints.clear()
    page = opened(chromium, site, width, scheme)
    problems = []
    for name, address in PAGES.items():
        page.goto(site.base + address)
        for details in page.locator("details").all():
            details.evaluate("each => { each.open = true; }")
        beyond = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        faults = serious(axe.run(page))
        if beyond > 0 or faults:
            problems.append((name, beyond, faults))
        if PICTURES:
            page.screenshot(path=Path(PICTURES) / f"{name}-{width}-{scheme}.png", full_page=True)
    page.context.close()
    assert problems == []
    assert len(site.complaints) == 1 and "404" in site.complaints[0]  # the run that isn't there


CUT = """() => [...document.querySelectorAll("body *")].filter(each => {
  const style = getComputedStyle(each), box = each.getBoundingClientRect();
  return (each.scrollWidth > each.clientWidth + 1 && style.overflowX !== "visible" && each.clientWidth > 0)
    || box.right > document.documentElement.clientWidth + 1;
}).map(each => `${each.tagName} ${each.getAttribute("class")} ${each.textContent.trim().slice(0, 40)}`)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_of_a_report_is_cut_or_inaccessible(
    chromium: Any, site: Site, reports: dict[str, Path], width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    site.complaints.clear()
    page = opened(chromium, site, width, scheme)
    problems = []
    for name, path in reports.items():
        page.goto(path.as_uri())
        if PICTURES:
            page.screenshot(path=Path(PICTURES) / f"{name}-{width}-{scheme}.png", full_page=True)
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        cut = page.evaluate(CUT)
        faults = serious(axe.run(page))
        if cut or faults:
            problems.append((name, cut, faults))
    page.context.close()
    assert problems == []
    assert site.complaints == []


def test_a_report_is_printed_whole_and_in_light_colours(chromium: Any, site: Site, reports: dict[str, Path]) -> None:
    page = opened(chromium, site, A4_WIDTH, "dark")
    page.emulate_media(media="print", color_scheme="dark")
    for name, path in reports.items():
        page.goto(path.as_uri())
        assert page.evaluate(CUT) == [], name
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 28, 30)"
        printed = page.pdf(prefer_css_page_size=True)
        assert printed.startswith(b"%PDF")
        if PICTURES:
            (Path(PICTURES) / f"{name}.pdf").write_bytes(printed)
    page.context.close()


def test_from_the_overview_to_a_meta_judgment_by_mouse(page: Any) -> None:
    page.get_by_role("link", name="Iteration 1").first.click()
    page.get_by_label("Sort").select_option("flipped")
    page.get_by_label("verdicts flip with the order").check()
    page.get_by_role("button", name="Show").click()
    page.locator("a.row").first.click()
    assert page.locator("#actor-pair mark, #judge-pair mark").count() > 0
    cell = page.locator(".heat td.flipped a").first
    target = cell.get_attribute("href")
    cell.click()
    page.wait_for_function("id => document.querySelector(id).checkVisibility()", arg=target)
    page.locator("#dispute tbody th a").first.click()
    assert page.evaluate("document.querySelector(location.hash).checkVisibility()")
    page.get_by_role("link", name="Next", exact=True).click()
    assert "flipped=1" in page.url


def test_a_search_and_filters_by_keyboard_alone(page: Any, site: Site) -> None:
    page.goto(f"{site.base}/run/0/prompts?t=1")
    page.keyboard.press("/")
    page.keyboard.type(fake_record(1, 7).prompt.id)
    page.keyboard.press("Enter")
    page.wait_for_url("**q=pocket*")
    wait_for_count(page, "a.row", 1)
    page.wait_for_load_state()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=everything here was generated by M0")
    page.wait_for_load_state()
    page.keyboard.press("u")
    page.wait_for_url("**/prompts?**")
    page.goto(f"{site.base}/run/0/prompts?t=1")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    page.wait_for_url("**/prompt?**")
    page.wait_for_load_state()
    first = page.locator("h1").inner_text()
    page.keyboard.press("j")
    page.wait_for_function("name => document.querySelector('h1').innerText !== name", arg=first)
    page.keyboard.press("k")
    page.wait_for_function("name => document.querySelector('h1').innerText === name", arg=first)


def test_pairs_are_judged_by_keys_and_by_mouse(page: Any, site: Site) -> None:
    page.goto(f"{site.base}/run/0/judge?t=1")
    for count, key in enumerate(("1", "2", "0", "s"), start=1):
        page.keyboard.press(key)
        page.wait_for_selector(f"text=/^{count} of/")
        page.wait_for_load_state()  # with the script that reads the keys
    page.get_by_role("button", name="First is better").click()
    page.wait_for_selector("text=/^5 of/")
    page.get_by_role("link", name="Your judgments").click()
    lines = site.runs["whole"].annotations.read_bytes().splitlines()
    assert len(lines) == 5
    wait_for_count(page, "a.row", 5)
    with page.expect_download() as download:
        page.get_by_role("link", name="answers", exact=True).click()
    assert len(Path(download.value.path()).read_bytes().splitlines()) == 4


def test_a_selection_is_exported_and_opens_without_a_server(page: Any, site: Site, tmp_path: Path) -> None:
    page.goto(f"{site.base}/run/0/prompts?t=1&pair=yes")
    count = page.locator("a.row").count()
    with page.expect_download() as download:
        page.get_by_role("link", name="Export as one file").click()
    download.value.save_as(tmp_path / "export.html")
    page.goto((tmp_path / "export.html").as_uri())
    assert page.locator("details.exported").count() == count
    page.locator("details.exported summary").first.click()
    assert page.locator("details.exported").first.locator("mark").count() > 0
    assert page.evaluate("document.querySelectorAll('script, link, a[href^=\"/\"]').length") == 0


def test_two_models_side_by_side(page: Any, site: Site) -> None:
    page.goto(f"{site.base}/run/0/held-out")
    page.get_by_role("link", name="Compare two models").click()
    page.locator("select[name=a]").select_option("0.1")
    page.locator("select[name=metric]").select_option("chars")
    page.get_by_role("button", name="Compare").click()
    page.wait_for_selector("text=No difference is shown")
    page.locator("a.row").first.click()
    wait_for_count(page, "section.model", 2)
    wait_for_count(page, "section.model mark", 2)


def test_new_records_appear_without_loading_the_page(page: Any, site: Site) -> None:
    page.goto(f"{site.base}/run/2/prompts?t=1")
    before = page.locator("a.row").count()
    page.locator("a.row").first.focus()
    focused = page.evaluate("document.activeElement.innerText")
    write_records(site.runs["half"], 1, [fake_record(1, 15)])
    page.wait_for_function(
        "count => document.querySelectorAll('a.row').length === count", arg=before + 1, timeout=15_000
    )
    assert page.evaluate("document.activeElement.innerText") == focused


def test_no_script_of_a_model_runs(page: Any, site: Site) -> None:
    page.on("dialog", lambda _: site.complaints.append("a dialog was opened"))
    page.goto(site.base + PAGES["hostile-prompt"])
    assert page.locator("img, main script, main style").count() == 0
    assert "<script>alert" in page.locator("#answer-0 .text").first.inner_text()
    page.get_by_role("link", name="the whole text").click()
    assert len(page.locator(".text").text_content()) == 1_000_000


@dataclass
class Commands:
    """``metareward`` commands in ``folder``, ended after the test."""

    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *words: str) -> subprocess.Popen[str]:
        code = "from metareward.cli.main import main; main()"
        shown = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.started.append(
            subprocess.Popen([sys.executable, "-c", code, *words], cwd=self.folder, text=True, **shown)  # type: ignore[call-overload]
        )
        return self.started[-1]


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    made = Commands(tmp_path)
    yield made
    for each in made.started:
        each.kill()
        each.wait()


def test_a_real_run_is_followed_from_its_start_to_its_report(chromium: Any, commands: Commands) -> None:
    """`metareward run` and `metareward view` as a user starts them; no page is loaded by hand while the run goes on."""
    sizes = {"prompts.per_iteration": 30, "prompts.held_out": 8, "answers.k": 3, "judgments.n": 3}
    changes = [f"--set={name}={value}" for name, value in (sizes | {"benchmarks": "[]"}).items()]
    run = commands.start("run", "pocket", *changes, "--out", "live")
    folder = commands.folder / "live"
    while not (folder / "resolved.json").is_file():
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.2)
    viewer = commands.start("view", "live", "--cache", "cache")
    assert viewer.stdout is not None
    address = viewer.stdout.readline().strip()
    complaints: list[str] = []
    context = chromium.new_context()
    context.set_default_timeout(200_000)
    page, overview = context.new_page(), context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    overview.goto(page.url)
    page.get_by_role("link", name="Iteration 1").first.click()
    marked = "() => { window.stays = true; }"
    page.evaluate(marked), overview.evaluate(marked)
    page.wait_for_function("() => document.querySelectorAll('a.row').length > 3")
    some = page.locator("a.row").count()
    page.wait_for_function("count => document.querySelectorAll('a.row').length > count", arg=some)
    overview.wait_for_selector("td[data-label='Actor pairs'] a")  # iteration 1's pairs are built
    assert page.evaluate("window.stays") and overview.evaluate("window.stays")
    page.locator("a.row").first.click()
    page.wait_for_selector("text=everything here was generated by M0")
    told, _ = run.communicate(timeout=200)
    assert run.returncode == 0, told
    overview.wait_for_function("() => document.querySelectorAll(\"td[data-label='Actor pairs'] a\").length === 4")
    assert overview.evaluate("window.stays") and complaints == []
    context.close()
