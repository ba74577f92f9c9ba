import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_run import fake_record, start, write_built, write_evaluation, write_records

from metareward.errors import UserError
from metareward.report.write import duration, page, write_report
from metareward.storage.run_dir import RunDir
from metareward.types import Candidate, Judgment, Message, MetaJudgment, Prompt, PromptRecord

VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})
HOSTILE = (
    '</div></details></article><script>alert("x")</script><img src=x onerror=alert(1)>'
    "\x00 \u202eright to left\u202c {{ 7 * 7 }} {% raw %} &amp; ]]> --> <style>*{display:none}</style>"
)


class Reader(HTMLParser):
    """Every element and attribute, and whether each end tag closes the element that is open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def html(whole: RunDir) -> str:
    return page(whole)


def test_the_report_is_one_file_in_the_run_folder(copied: RunDir) -> None:
    before = {path for path in copied.path.rglob("*") if "sqlite-" not in path.name}
    assert write_report(copied) == copied.report
    assert {path for path in copied.path.rglob("*") if "sqlite-" not in path.name} - before == {copied.report}


def test_every_element_is_closed_and_every_id_is_unique(html: str) -> None:
    reader = read(html)
    ids = Counter(value for name, value in reader.attributes if name == "id")
    assert [name for name, count in ids.items() if count > 1] == []
    links = {value[1:] for name, value in reader.attributes if name in ("href", "xlink:href") and value[:1] == "#"}
    assert links <= set(ids)


def test_the_page_loads_no_files_and_runs_no_scripts(html: str) -> None:
    reader = read(html)
    assert reader.tags["script"] == reader.tags["link"] == reader.tags["img"] == 0
    assert not any(name.startswith("on") or name == "src" for name, _ in reader.attributes)
    assert re.findall(r"https?://|@import|url\((?!#)", html) == []
    assert "default-src 'none'" in html


def test_the_same_folder_gives_the_same_bytes(short: RunDir) -> None:
    assert page(short) == page(short)


def test_the_page_has_the_main_contents(html: str) -> None:
    text = " ".join(" ".join(read(html).text).split()).replace("\u202f", " ")
    for part in (
        "Mean answer quality rose from 2.41 (M0) to 3.78 of 5 (M4)",
        "2.28 to 2.54",
        "+33.0 points",
        "all answers scored the same",
        "Winner flips with the order",
        "Reward margin",
        "Both pairs",
        "No pair",
        "Battle matrix",
        "Elo ratings",
        "7 min 08 s",
        "2026-03-14 09:26",
    ):
        assert part in text, part


def test_judge_health_and_paired_comparisons_come_first(copied: RunDir) -> None:
    path = copied.iteration(1).evaluation / "model.json"
    found = json.loads(path.read_text())
    paired = {"answer_quality": {"mean": 0.59, "low": 0.4, "high": 0.7, "n": 300}}
    paired["answer_truncated"] = {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 300}
    path.write_text(json.dumps({**found, "differences": paired}))
    text = page(copied)
    read(text)
    order = [
        text.index(f'<section id="{name}">') for name in ("judge-health", "comparisons", "trends", "judge-figures")
    ]
    assert order == sorted(order)
    compared = text[order[1] : order[2]]
    assert ">+0.59</span>" in compared and "+0.40 to +0.70" in compared and "the same on every prompt" in compared


def test_every_cell_of_a_wide_table_names_its_column(html: str) -> None:
    for table in re.findall(r"<table class=\"(?:metrics|dense)[^>]*>.*?</table>", html, re.DOTALL):
        assert [
            cell for cell in re.findall(r"<td[^>]*>", table) if "data-label" not in cell and "colspan" not in cell
        ] == []


def test_charts_say_their_numbers_to_screen_readers(html: str) -> None:
    told = re.findall(r'<svg role="img" aria-label="([^"]+)"', html)
    assert len(told) == len(re.findall(r"<svg\b", html)) and all(re.search(r"\d", each) for each in told)
    assert "Answer quality: M0 2.41, M1 3.00, M2 3.63, M3 3.81, M4 3.78" in told


def test_a_run_without_an_oracle_has_no_quality_metrics(unmeasured: RunDir) -> None:
    text = page(unmeasured)
    assert "Answer quality" not in text and "Meta-judge accuracy" not in text
    assert "no evidence of quality" in text


def test_charts_take_their_colours_from_the_page(html: str) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", drawn) == []
    assert "var(--blue)" in drawn and "prefers-color-scheme: dark" in html


def hostile(record: PromptRecord) -> PromptRecord:
    def judgment(of: Judgment) -> Judgment:
        return replace(of, text=HOSTILE + str(of.index))

    def candidate(of: Candidate) -> Candidate:
        return replace(of, text=HOSTILE + str(of.index), judgments_N=tuple(map(judgment, of.judgments_N)))

    def meta(of: MetaJudgment) -> MetaJudgment:
        return replace(of, text=HOSTILE)

    dispute = record.dispute and replace(record.dispute, meta=tuple(map(meta, record.dispute.meta)))
    prompt = Prompt(record.prompt.id + HOSTILE.replace("\x00", ""), (Message("user", HOSTILE),))
    return PromptRecord(prompt, tuple(map(candidate, record.candidates_K)), record.duplicates, dispute)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = start(tmp_path_factory.mktemp("runs") / "attacked")
    write_evaluation(run.iteration(0), 0)
    write_records(run, 1, [hostile(fake_record(1, number)) for number in range(6)], failed={"x<b>": HOSTILE})
    write_built(run, 1)
    return page(run)


def test_model_text_cannot_inject_markup(attacked: str) -> None:
    reader = read(attacked)
    assert reader.tags["script"] == reader.tags["img"] == 0 and reader.tags["style"] == 1
    assert not any(name.startswith("on") for name, _ in reader.attributes)
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in attacked
    assert "{{ 7 * 7 }} {% raw %}" in attacked


def test_invisible_characters_are_escaped_everywhere(attacked: str) -> None:
    assert "\x00" not in attacked and "\u202e" not in attacked
    assert "␀ ⟨U+202E⟩right to left⟨U+202C⟩" in attacked


@pytest.mark.parametrize("models", [0, 1])
def test_a_run_without_iterations_has_a_report(tmp_path: Path, models: int) -> None:
    run = start(tmp_path / "begun")
    if models:
        write_evaluation(run.iteration(0), 0)
    text = page(run)
    read(text)
    assert "This run is not finished" in text and "Iterations 1 to 4: not started." in text


def test_a_report_during_generation(tmp_path: Path) -> None:
    run = start(tmp_path / "under-way")
    write_evaluation(run.iteration(0), 0)
    write_records(run, 1, [fake_record(1, number) for number in range(5)])
    text = page(run)
    read(text)
    assert "Pairs not built yet" in text and "its pairs are not built yet" in text


def test_a_run_at_m1_lists_what_is_missing(short: RunDir) -> None:
    text = page(short)
    assert "Iterations 2 to 4: not started." in text and "1 of 4 done" in text


def test_a_diverged_training_is_drawn(copied: RunDir) -> None:
    lines = [{"step": step, "loss": loss} for step, loss in ((1, 0.69), (2, float("nan")), (3, float("inf")))]
    log = copied.iteration(1).path / "training.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    read(page(copied))


def test_records_without_a_readable_judgment(tmp_path: Path) -> None:
    run = start(tmp_path / "mute")
    write_evaluation(run.iteration(0), 0)
    bare = [fake_record(1, number) for number in range(3)]
    mute = [
        replace(r, candidates_K=tuple(replace(c, judgments_N=()) for c in r.candidates_K), dispute=None) for r in bare
    ]
    write_records(run, 1, mute)
    write_built(run, 1)
    text = page(run)
    read(text)
    assert "too few readable judgments for a score" in text


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        write_report(RunDir(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (500, "8 min 20 s"), (11100, "3 h 05 min")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
