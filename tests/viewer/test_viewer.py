"""Pages of `metareward view` through its ASGI application: what they show, what they refuse, what they leave alone."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pytest
from fake_run import (
    HOSTILE,
    PROMPTS,
    fake_record,
    fake_run,
    recipe_of,
    start,
    write_built,
    write_held_out,
    write_records,
)
from starlette.testclient import TestClient

from metareward.errors import UserError
from metareward.evaluation.worlds import oracle_of
from metareward.storage.atomic import write_atomic
from metareward.storage.records import record_to_json
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore
from metareward.types import Candidate, Judgment, Message, Prompt, PromptRecord, Scored, Unparsed, Won
from metareward.viewer.export import exported
from metareward.viewer.runs import ViewedRun, open_runs
from metareward.viewer.selection import Selection, select
from metareward.viewer.server import application


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that stands at M1, with held-out records of two models."""
    made = fake_run(tmp_path_factory.mktemp("viewed") / "short", models=2)
    for t in (0, 1):
        write_held_out(made, t)
    return made


@pytest.fixture(scope="module")
def viewed(run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> ViewedRun:
    return opened(run, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def client(viewed: ViewedRun) -> TestClient:
    return client_of(viewed)


def opened(run: RunDir, cache: Path) -> ViewedRun:
    found = ViewedRun(0, run.path, cache)
    found.refresh()
    return found


def client_of(*runs: ViewedRun, token: str | None = None) -> TestClient:
    return TestClient(application(runs, token), base_url="http://localhost", follow_redirects=False)


def links(html: str) -> list[str]:
    return [unescape(each) for each in re.findall(r'href="([^"]+)"', html)]


def keys(viewed: ViewedRun, query: str) -> set[str]:
    page = select(viewed.index, Selection.parse(query), size=1000)
    assert page.count == len(page.rows)
    return {row.key for row in page.rows}


def records() -> Iterator[PromptRecord]:
    return (fake_record(1, number) for number in range(PROMPTS))


def test_every_page_that_is_linked_can_be_opened(client: TestClient) -> None:
    seen, todo = Counter[str](), ["/"]
    while todo:
        address = todo.pop(0)
        if seen[address.split("?")[0]] >= 2:  # of each kind
            continue
        seen[address.split("?")[0]] += 1
        response = client.get(address)
        assert response.status_code == 200, address
        if response.headers["content-type"].startswith("text/html") and "export" not in address:
            assert "script-src 'self'" in response.headers["content-security-policy"]
            assert re.findall(r"<script(?! src=)|\son\w+=|style=", response.text) == []
            todo += [each for each in links(response.text) if each.startswith("/")]
    assert set(seen) >= {"/", "/run/0/prompts", "/run/0/prompt", "/run/0/held-out/prompt", "/compare/prompt"}


def test_filters_select_what_the_records_say(viewed: ViewedRun) -> None:
    flipped, unreadable, worded = set(), set(), set()
    for record in records():
        judgments = [judgment for answer in record.candidates_K for judgment in answer.judgments_N]
        if any(not isinstance(judgment.reading, Scored) for judgment in judgments):
            unreadable.add(record.prompt.id)
        if any("brief no" in judgment.text for judgment in judgments):
            worded.add(record.prompt.id)
        if record.dispute is not None:
            won = {(m.first, m.second): m.verdict.winner for m in record.dispute.meta if isinstance(m.verdict, Won)}
            both = [(won.get((a, b)), won.get((b, a))) for a, b in combinations(record.dispute.judgments_M, 2)]
            if any(None not in pair and pair[0] != pair[1] for pair in both):
                flipped.add(record.prompt.id)
    assert 0 < len(flipped) < PROMPTS and keys(viewed, "t=1&flipped=1") == flipped
    assert unreadable and keys(viewed, "t=1&unreadable=judgment") == unreadable
    assert worded and keys(viewed, "t=1&q=brief+no&within=judgments") >= worded
    assert keys(viewed, "t=1&q=zeppelin&within=judgments") == set()


def test_search_finds_text_in_prompts_and_answers_whatever_the_case(viewed: ViewedRun) -> None:
    record = fake_record(1, 4)
    some = record.candidates_K[0].text[3:14]
    wanted = {
        each.prompt.id
        for each in records()
        if any(
            some.lower() in text.lower()
            for text in (each.prompt.messages[0].content, *(a.text for a in each.candidates_K))
        )
    }
    assert record.prompt.id in wanted and keys(viewed, f"t=1&q={some.upper()}") == wanted
    assert keys(viewed, f"t=1&q={record.prompt.id}") == {record.prompt.id}


def test_pairs_and_drop_reasons_partition_the_prompts(viewed: ViewedRun) -> None:
    built, dropped = keys(viewed, "t=1&pair=yes"), keys(viewed, "t=1&pair=no")
    assert built and dropped and built | dropped == keys(viewed, "t=1") and not built & dropped
    assert keys(viewed, "t=1&pair=all_scores_equal") <= dropped
    margins = [row.actor_margin for row in select(viewed.index, Selection.parse("t=1&pair=yes&sort=margin"), 1000).rows]
    assert margins == sorted(margins, key=lambda margin: margin or 0.0)
    assert keys(viewed, "t=1&margin_low=2.5") < built


def test_an_address_comes_back_from_its_selection() -> None:
    query = "t=2&q=a%26b&kind=judge&pair=no&low=1.5&flipped=1&sort=best&page=3"
    assert Selection.parse(Selection.parse(query).query()) == Selection.parse(query)
    assert Selection.parse("t=1&sort=").sort == "id"


def test_a_prompt_page_has_everything_of_its_record(client: TestClient) -> None:
    record = next(each for each in records() if each.dispute is not None)
    html = client.get("/run/0/prompt", params={"t": 1, "id": record.prompt.id}).text
    for answer in record.candidates_K:
        assert f'id="answer-{answer.index}"' in html and unescape(answer.text) in unescape(html)
        assert all(f'id="judgment-{answer.index}-{judgment.index}"' in html for judgment in answer.judgments_N)
    assert record.dispute is not None
    assert all(f'id="meta-{meta.first}-{meta.second}"' in html for meta in record.dispute.meta)
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids)) and {each[1:] for each in links(html) if each[0] == "#"} <= set(ids)


def test_hostile_texts_are_shown_as_text(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    long = "\U0001f600" * 30_000
    answers = (
        Candidate(0, HOSTILE, "stop", 9, (Judgment(0, HOSTILE, 9, Unparsed("missing")),)),
        Candidate(1, long, "stop", 9, ()),
    )
    record = PromptRecord(Prompt('a"><script>/é?&#', (Message("user", HOSTILE),)), answers, (), None)
    write_records(run, 1, [record])
    write_built(run, 1)
    client = client_of(viewed := opened(run, tmp_path / "cache"))
    listed = client.get("/run/0/prompts?t=1").text
    address = next(each for each in links(listed) if "/prompt?" in each)
    page = client.get(address).text
    whole = client.get(next(each for each in links(page) if "what=answer-1" in each)).text
    export = exported(viewed, Selection())
    pieces = re.findall(r'<div class="piece" dir="auto">([^<]*)</div>', whole)
    assert "".join(pieces) == long and long not in page
    for html in (listed, page, export):
        tags = re.findall(r"<(script|img|style)\b([^>]*)", html)
        assert [tag for tag in tags if "viewer.js" not in tag[1]] == ([("style", "")] if html == export else [])
        assert "\x00" not in html and "\x1b" not in html and "\u202e" not in html
        assert "{{ 7 * 7 }}" in unescape(html)


def test_the_run_folder_stays_as_it_is(run: RunDir, tmp_path: Path) -> None:
    def digests() -> dict[str, str]:
        return {
            str(path.relative_to(run.path)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(run.path.rglob("*"))
            if path.is_file()
        }

    for path in run.path.rglob("*.sqlite-*"):  # of readers before
        path.unlink()
    before = digests()
    client = client_of(opened(run, tmp_path / "cache"))
    for address in ("/", "/run/0/prompts?t=1", f"/run/0/prompt?t=1&id={fake_record(1, 0).prompt.id}", "/compare"):
        assert client.get(address).status_code == 200
    assert digests() == before


def test_new_records_appear_and_a_replaced_store_is_read_anew(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    write_records(run, 1, [fake_record(1, 0)], failed={"long": "900 tokens, 512 fit"})
    viewed = opened(run, tmp_path / "cache")
    assert keys(viewed, "t=1") == {fake_record(1, 0).prompt.id, "long"}
    assert keys(viewed, "t=1&failed=1") == {"long"}
    version = viewed.state.version
    with RecordStore.open(run.iteration(1).records, {"seed": 0}) as store:
        viewed.refresh()
        assert viewed.state.version == version
        write_records(run, 1, [fake_record(1, 1)])
        store.put("long", store.get(fake_record(1, 1).prompt.id) or "")
        viewed.refresh()
    assert viewed.state.version > version and keys(viewed, "t=1&failed=1") == set()
    write_built(run, 1)
    viewed.refresh()
    assert keys(viewed, "t=1&pair=yes") | keys(viewed, "t=1&pair=no") == {fake_record(1, 1).prompt.id}
    run.iteration(1).records.unlink()
    viewed.refresh()
    assert keys(viewed, "t=1") == set()
    write_records(run, 1, [fake_record(1, 2)])
    viewed.refresh()
    assert keys(viewed, "t=1") == {fake_record(1, 2).prompt.id}


def test_empty_and_damaged_runs_give_one_clear_line(run: RunDir, tmp_path: Path) -> None:
    empty = opened(RunDir(tmp_path / "nothing"), tmp_path / "cache")
    assert "this is no run folder" in client_of(empty).get("/").text
    assert client_of(empty).get("/run/0/prompts?t=1").status_code == 404
    damaged = RunDir(Path(shutil.copytree(run.path, tmp_path / "damaged")))
    with RecordStore.open(damaged.iteration(1).records, {"seed": 0}) as store:
        store.put("torn", '{"prompt": 3}')
    write_atomic(damaged.iteration(1).pairs("actor"), b"PAR1 no more")
    write_atomic(damaged.iteration(1).evaluation / "model.json", "{")
    client = client_of(opened(damaged, tmp_path / "cache"))
    overview = client.get("/").text
    assert "model.json" in overview and '<td data-label="Actor pairs">–</td>' in overview.split("Iteration 2")[0]
    listed = client.get("/run/0/prompts?t=1").text
    assert "not a readable Parquet file" in listed and "record: field prompt" in listed
    torn = client.get("/run/0/prompt?t=1&id=torn")
    assert torn.status_code == 200 and "records.sqlite" in torn.text and "Traceback" not in torn.text
    assert 'rel="prev"' in torn.text and client.get("/run/0/prompt?t=1&id=none").status_code == 404
    write_atomic(damaged.iteration(1).records, b"no database" * 400)
    assert "no record store" in client_of(opened(damaged, tmp_path / "cache")).get("/run/0/prompts?t=1").text


def test_a_record_that_contradicts_itself_is_one_line(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    record = next(each for each in records() if each.dispute is not None)
    assert record.dispute is not None
    for at, broken in enumerate((replace(record.dispute, judgments_M=(0, 99)), replace(record.dispute, candidate=99))):
        prompt = replace(record.prompt, id=f"broken-{at}")
        write_records(run, 1, [replace(record, prompt=prompt, dispute=broken)])
    client = client_of(opened(run, tmp_path / "cache"))
    for at in (0, 1):
        page = client.get(f"/run/0/prompt?t=1&id=broken-{at}")
        assert page.status_code == 200 and "contradicts itself" in page.text


def test_no_link_of_a_half_done_run_leads_nowhere(run: RunDir, tmp_path: Path) -> None:
    """A browser logs an error for every page that isn't there; the other run lacks the iteration."""
    half, other = start(tmp_path / "half"), RunDir(Path(shutil.copytree(run.path, tmp_path / "other")))
    write_records(half, 1, [fake_record(1, 0)], failed={"long": "900 tokens, 512 fit"})
    shutil.rmtree(other.iteration(1).path)
    runs = [ViewedRun(number, each.path, tmp_path / "cache") for number, each in enumerate((half, other))]
    for each in runs:
        each.refresh()
    client = client_of(*runs)
    seen, todo = set[str](), ["/"]
    while todo:
        if (address := todo.pop()) in seen:
            continue
        seen.add(address)
        page = client.get(address)
        assert page.status_code == 200, address
        todo += [each for each in links(page.text) if each.startswith("/") and "static" not in each]
    assert {"/run/0/prompt?t=1&id=long", "/compare", "/compare?on=prompts&a=0.1"} <= seen


def test_a_damaged_index_is_made_anew(run: RunDir, tmp_path: Path) -> None:
    viewed = opened(run, tmp_path / "cache")
    whole = keys(viewed, "t=1")
    write_atomic(viewed.index.path, b"no index" * 1000)
    assert keys(opened(run, tmp_path / "cache"), "t=1") == whole


@pytest.mark.parametrize(
    "query",
    [
        "t=one",
        "low=x",
        "sort=hidden",
        "pair=%00",
        "t=99&q=%22OR",
        "q=%ff%fe&within=judgments",
        "q=%22*&within=judgments",
    ],
)
def test_odd_addresses_are_no_crash(client: TestClient, query: str) -> None:
    assert client.get(f"/run/0/prompts?{query}").status_code in (200, 404)
    assert client.get(f"/run/{'9' * 5000}?{query}").status_code == 404


def test_two_models_are_compared_by_prompt(client: TestClient) -> None:
    html = client.get("/compare?a=0.0&b=0.1&metric=score").text
    assert "over 6 prompts" in html
    scores = [(float((n + 1) % 6) - float(n % 6)) for n in range(6)]
    assert f"{sum(scores) / 6:+.3f}" in html
    assert "M1" in client.get("/compare/prompt?a=0.0&b=0.1&id=held-2").text
    for query in ("a=0.7&b=0.1", "a=0", "metric=best", "sort=best"):
        assert client.get(f"/compare?{query}").status_code == 404
    assert client.get("/run/0/held-out?metric=best").status_code == 404


def test_two_runs_are_compared_on_the_prompts_of_an_iteration(tmp_path: Path) -> None:
    """The same prompts with answers that are a word longer; one id is of another prompt there, one is missing."""
    asked = Prompt("asked", (Message("user", "Name 3 colours."),))
    before = [*records(), replace(fake_record(1, 0), prompt=asked)]
    after = []
    for record in before[1:]:
        answers = [replace(answer, text=f"Indeed {answer.text}") for answer in record.candidates_K]
        after.append(replace(record, candidates_K=tuple(answers)))
    after[0] = replace(after[0], prompt=Prompt(after[0].prompt.id, (Message("user", "Something else?"),)))
    folders = [start(tmp_path / name) for name in ("one", "other")]
    for folder, written in zip(folders, (before, after), strict=True):
        write_records(folder, 1, written)
    viewed = [ViewedRun(number, folder.path, tmp_path / "cache") for number, folder in enumerate(folders)]
    for each in viewed:
        each.refresh()
    client = client_of(*viewed)
    html = client.get("/compare?on=prompts&metric=chars").text
    assert "M0 in iteration 1 of other" in html and "1 id stands for different prompts" in html
    assert f"over {PROMPTS - 1} prompts" in html and html.count("+7.0") >= PROMPTS - 1
    side = client.get(f"/compare/prompt?on=prompts&a=0.1&b=1.1&id={after[3].prompt.id}").text
    assert side.count("<mark>Indeed") == 1 and "all of it" in side
    oracle = oracle_of("pocket", 0, 5)
    assert oracle is not None
    truth = fmean(oracle.answer_score(asked, each.text) for each in before[-1].candidates_K)
    told = client.get("/compare?on=prompts&metric=truth&a=0.1&b=1.1").text
    assert f"over 1 prompt: {truth:.2f} and" in told
    for query in ("on=prompts&a=0.0", "on=prompts&metric=anchor_score", "on=elsewhere"):
        assert client.get(f"/compare?{query}").status_code == 404


def test_a_comparison_begins_with_what_is_known_of_both(tmp_path: Path) -> None:
    """Of the other run's prompts no program knows the right answers."""
    folders = [start(tmp_path / "one"), start(tmp_path / "other", ["prompts.source=mine.jsonl", "benchmarks=[]"])]
    for folder in folders:
        write_records(folder, 1, [fake_record(1, number) for number in range(3)])
    viewed = [ViewedRun(number, folder.path, tmp_path / "cache") for number, folder in enumerate(folders)]
    for each in viewed:
        each.refresh()
    html = client_of(*viewed).get("/compare?on=prompts").text
    assert 'value="score" selected' in html and "over 3 prompts" in html
    infinite = record_to_json(fake_record(1, 0)).replace('"score":', '"score":1e999,"was":', 1)
    for each in viewed:
        with RecordStore.open(each.run.iteration(1).records, {"seed": 0}) as store:
            store.put("damaged", infinite)
        each.refresh()
    assert "finite values" in client_of(*viewed).get("/compare?on=prompts").text


def test_pages_of_a_run_whose_index_is_not_made_yet(run: RunDir, tmp_path: Path) -> None:
    viewed = ViewedRun(0, run.path, tmp_path / "cache")
    viewed.begin()
    assert viewed.state.version > 0
    listed = client_of(viewed).get("/run/0/prompts?t=1")
    assert listed.status_code == 200 and "No prompt of this iteration" in listed.text
    assert client_of(viewed).get("/").status_code == 200


OURS = ("localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:80")
FOREIGN = ("", "evil.example", "localhost.evil.example", "evil.example@localhost", "[::1", "localhost:80:80")
HOSTS = dict.fromkeys(OURS, 200) | dict.fromkeys(FOREIGN, 403)


@pytest.mark.parametrize(("host", "status"), HOSTS.items())
def test_only_known_hosts_are_served(viewed: ViewedRun, host: str, status: int) -> None:
    assert client_of(viewed).get("/state", headers={"host": host}).status_code == status


def test_an_allowed_host_name_is_served_whatever_its_case(viewed: ViewedRun) -> None:
    client = TestClient(application([viewed], None, frozenset({"Node01"})))
    assert client.get("/state", headers={"host": "node01:8000"}).status_code == 200
    assert client.get("/state", headers={"host": "node02:8000"}).status_code == 403


def test_requests_of_other_sites_are_refused(client: TestClient) -> None:
    opened = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.get("/", headers={"sec-fetch-site": "cross-site", **opened}).status_code == 200
    assert client.get("/", headers={"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}).status_code == 403
    assert client.get("/", headers={"sec-fetch-site": "same-origin"}).status_code == 200
    assert client.post("/", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/").status_code == 403
    assert client.post("/", headers={"origin": "http://localhost"}).status_code == 405


def test_the_token_opens_and_a_cookie_keeps_open(viewed: ViewedRun) -> None:
    client = client_of(viewed, token="secret")
    assert client.get("/").status_code == 401
    assert client.get("/?token=wrong").status_code == 401
    entered = client.get("/run/0/prompts?t=1&token=secret")
    assert (entered.status_code, entered.headers["location"]) == (303, "/run/0/prompts?t=1")
    assert "HttpOnly" in entered.headers["set-cookie"]
    assert client.get("/").status_code == 200
    other = client_of(viewed, token="another")  # on another port: browsers send it the same cookies
    other.cookies = client.cookies
    assert other.get("/").status_code == 401 and other.get("/?token=another").status_code == 303
    assert other.get("/").status_code == client.get("/").status_code == 200


def test_a_missing_folder_and_a_shared_file_are_refused(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        open_runs([tmp_path / "typo"], tmp_path / "cache")
    with pytest.raises(UserError, match="is for one run"):
        open_runs([run.path, run.path], tmp_path / "cache", tmp_path / "annotations.jsonl")
    with pytest.raises(UserError, match=r"resolved\.json is missing"):
        exported(opened(RunDir(tmp_path), tmp_path / "cache"), Selection())


def test_a_misspelled_filter_or_id_is_refused_and_not_left_out(viewed: ViewedRun) -> None:
    with pytest.raises(UserError, match="'fliped' is no field"):
        Selection.parse("t=1&fliped=1", strict=True)
    with pytest.raises(UserError, match="has no prompt 'typo'"):
        exported(viewed, Selection(), [fake_record(1, 0).prompt.id, "typo"])


def test_the_recipe_of_the_run_is_used(viewed: ViewedRun, run: RunDir) -> None:
    assert viewed.recipe == recipe_of(run)
