"""A person's judgments: what is asked, what is stored, what follows from it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from fake_run import fake_record, fake_run, start, write_records
from starlette.testclient import TestClient

from metareward.errors import UserError
from metareward.evaluation.judge_quality.data import read_pairs, verdicts_from_scores
from metareward.evaluation.judge_quality.pairs import judged_pairs, pair_quality
from metareward.viewer.annotations import Annotation, Annotations, agreements, exported_pairs
from metareward.viewer.runs import ViewedRun
from metareward.viewer.server import application

ORIGIN = {"origin": "http://localhost"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ViewedRun:
    folder = tmp_path_factory.mktemp("judged")
    viewed = ViewedRun(0, fake_run(folder / "run", models=2).path, folder / "cache")
    viewed.refresh()
    return viewed


@pytest.fixture
def viewed(whole: ViewedRun, tmp_path: Path) -> ViewedRun:
    """The run, with a file of annotations for one test."""
    whole.annotations = tmp_path / "annotations.jsonl"
    return whole


def client_of(viewed: ViewedRun, person: str = "ann") -> TestClient:
    return TestClient(application([viewed], None, person=person), base_url="http://localhost", follow_redirects=False)


def fields(html: str) -> dict[str, str]:
    return {name: unescape(value) for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', html)}


def judge(client: TestClient, address: str, choice: str) -> dict[str, str]:
    """Answer the question at ``address``; the fields of its form."""
    form = fields(client.get(address).text)
    answer = client.post("/run/0/judge", data={**form, "choice": choice}, headers=ORIGIN)
    assert answer.status_code == 303
    return form


def test_a_blind_question_shows_two_texts_and_nothing_of_the_models_opinion(viewed: ViewedRun) -> None:
    html = client_of(viewed).get("/run/0/judge?t=1").text
    form = fields(html)
    trace = viewed.trace(1, form["id"])
    assert trace is not None
    texts = {str(answer.index): answer.text for answer in trace.record.candidates_K}
    shown = [unescape(each) for each in re.findall(r'<div class="text" dir="auto">(.*?)</div>', html, re.DOTALL)]
    assert shown[-2:] == [texts[form["first"]], texts[form["second"]]]
    visible = re.sub(r"<input[^>]*>", "", html)
    assert not re.search(r"chosen|rejected|mean score \d|Answer \d", visible)
    assert "mean score" in client_of(viewed).get("/run/0/judge?t=1&blind=0").text


def test_judging_goes_on_to_the_next_pair_until_all_are_judged(viewed: ViewedRun) -> None:
    client, seen = client_of(viewed), []
    while 'name="digest"' in (html := client.get("/run/0/judge?t=1&kind=judge").text):
        seen.append(fields(html)["id"])
        judge(client, "/run/0/judge?t=1&kind=judge", "tie")
    assert len(seen) == len(set(seen)) > 5 and seen != sorted(seen)
    assert f"All {len(seen)} pairs" in html
    assert 'name="digest"' in client_of(viewed, "bob").get("/run/0/judge?t=1&kind=judge").text


def test_chance_decides_what_is_shown_first(viewed: ViewedRun) -> None:
    client, firsts = client_of(viewed), []
    for _ in range(12):
        form = judge(client, "/run/0/judge?t=1", "skip")
        pair = viewed.index.outcome(1, "actor", form["id"])
        firsts.append(int(form["first"]) == getattr(pair, "chosen_index", None))
    assert 1 < sum(firsts) < 11


def test_agreement_counts_what_both_decide(viewed: ViewedRun) -> None:
    client = client_of(viewed)
    for choice in ("first", "second", "first", "tie", "skip"):
        judge(client, "/run/0/judge?t=1", choice)
    found, unread = Annotations(viewed.annotations).read()
    assert (len(found), unread) == (5, 0)
    right = [each for each in found if each.winner is not None and each.winner == each.model_winner]
    (everybody, *_) = agreements(found)
    assert everybody.share is not None and everybody.share.n == 3
    assert everybody.share.mean == pytest.approx(len(right) / 3) and (everybody.ties, everybody.skipped) == (1, 1)
    html = client.get("/run/0/judged").text
    assert f"{100 * len(right) / 3:.0f} % of 3" in html


def test_judged_pairs_are_read_by_evaluate_judge_quality(viewed: ViewedRun, tmp_path: Path) -> None:
    client = client_of(viewed)
    for choice in ("first", "second", "first", "tie", "second", "skip"):
        judge(client, "/run/0/judge?t=1", choice)
        judge(client, "/run/0/judge?t=1&kind=judge", choice)
    found, _ = Annotations(viewed.annotations).read()
    (of_answers, *_) = agreements(found)
    path = tmp_path / "pairs.jsonl"
    path.write_text(exported_pairs(viewed, "actor"), encoding="utf-8")
    pairs = read_pairs(path, (0.0, 5.0))
    assert len(pairs) == 5
    quality = pair_quality(judged_pairs(pairs, verdicts_from_scores(pairs)))
    assert of_answers.share is not None
    assert quality.accuracy == pytest.approx(of_answers.share.mean) and quality.n_label_ties == 1
    path.write_text(client.get("/run/0/judged/pairs.jsonl?kind=judge").text, encoding="utf-8")
    of_judgments = read_pairs(path)
    assert len(of_judgments) == 5 and all(pair.item.messages[-1].role == "user" for pair in of_judgments)


def test_people_who_disagree_give_no_label(viewed: ViewedRun, tmp_path: Path) -> None:
    address = f"/run/0/judge?t=1&id={next(iter(paired(viewed)))}"
    form = judge(client_of(viewed), address, "first")
    mine, theirs = form["first"], fields(client_of(viewed, "bob").get(address).text)["first"]
    judge(client_of(viewed, "bob"), address, "second" if mine == theirs else "first")
    assert json.loads(exported_pairs(viewed, "actor"))["label"] is None


def paired(viewed: ViewedRun) -> list[str]:
    trace = (viewed.trace(1, fake_record(1, number).prompt.id) for number in range(20))
    return [each.record.prompt.id for each in trace if each is not None and getattr(each.actor, "chosen", None)]


def test_a_later_judgment_of_the_same_person_counts(viewed: ViewedRun) -> None:
    client, address = client_of(viewed), f"/run/0/judge?t=1&id={paired(viewed)[0]}"
    judge(client, address, "first")
    judge(client, address, "second")
    ((kept,), _) = Annotations(viewed.annotations).read()
    assert kept.choice == "second" and len(viewed.annotations.read_bytes().splitlines()) == 2


def test_a_torn_line_is_counted_and_costs_no_other(viewed: ViewedRun) -> None:
    client = client_of(viewed)
    judge(client, "/run/0/judge?t=1", "first")
    with viewed.annotations.open("ab") as file:
        file.write(b'{"time": "2026-')
    judge(client, "/run/0/judge?t=1", "second")
    found, unread = Annotations(viewed.annotations).read()
    assert (len(found), unread) == (2, 1)
    assert "1 line of" in client.get("/run/0/judged").text


@pytest.mark.parametrize(
    "change", [{"choice": "best"}, {"first": "99"}, {"digest": "0"}, {"second": "x"}, {"id": "none"}]
)
def test_a_form_that_doesnt_fit_stores_nothing(viewed: ViewedRun, change: dict[str, str]) -> None:
    client = client_of(viewed)
    form = fields(client.get("/run/0/judge?t=1").text)
    answer = client.post("/run/0/judge", data={**form, "choice": "first", **change}, headers=ORIGIN)
    assert answer.status_code == 404 and not viewed.annotations.exists()


def test_an_id_that_no_field_can_hold_is_judged(tmp_path: Path) -> None:
    """Browsers make other line ends of a field's, and pages show invisible characters as something else."""
    run, prompt = start(tmp_path / "run"), fake_record(1, 0)
    for number, key in enumerate(("two\nlines", "\x1b[31m\u202e")):
        prompt = replace(fake_record(1, number), prompt=replace(prompt.prompt, id=key))
        write_records(run, 1, [prompt])
    viewed = ViewedRun(0, run.path, tmp_path / "cache")
    viewed.refresh()
    client = client_of(viewed)
    for key in ("two\nlines", "\x1b[31m\u202e"):
        html = client.get("/run/0/judge", params={"t": 1, "id": key, "first": 0, "second": 1}).text
        form = {name: value.replace("\n", "\r\n") for name, value in fields(html).items()}
        action = unescape(re.findall(r'method="post" action="([^"]+)"', html)[0])
        assert client.post(action, data={**form, "choice": "tie"}, headers=ORIGIN).status_code == 303
        assert Annotations(viewed.annotations).read()[0][-1].prompt_id == key


def test_another_site_can_store_nothing(viewed: ViewedRun) -> None:
    client = client_of(viewed)
    form = {**fields(client.get("/run/0/judge?t=1").text), "choice": "first"}
    for headers in ({}, {"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "same-site"}):
        assert client.post("/run/0/judge", data=form, headers=headers).status_code == 403
    assert not viewed.annotations.exists()


def test_a_file_that_cant_be_written_is_one_line(viewed: ViewedRun) -> None:
    viewed.annotations.mkdir()
    client = client_of(viewed)
    assert "annotations.jsonl" in client.get("/run/0/judge?t=1").text
    with pytest.raises(UserError, match=r"annotations\.jsonl"):
        Annotations(viewed.annotations).add(
            Annotation("now", "ann", 1, "actor", "p", None, 0, 1, "first", True, (1.0, 2.0), "")
        )
