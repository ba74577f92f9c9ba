"""Names resolved to files and files read as rows: every format, folders, patterns, and data sets of a local hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import serve_hub
from made_up import json_file, lines, table

from metareward.data.files import (
    Row,
    group_by,
    hub_errors,
    read_all_rows,
    read_rows,
    require_unique,
    resolve_file,
    resolve_files,
    splits_of,
)
from metareward.data.prompts import gather_prompts, load_prompts
from metareward.errors import UserError

TURNS = [{"role": "user", "content": "two"}]


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def texts(source: Path | str) -> list[str]:
    return [prompt.messages[-1].content for prompt in load_prompts(source)]


def test_prompts_from_parquet(tmp_path: Path) -> None:
    rows = [{"id": n, "prompt": f"question {n}", "messages": None} for n in range(5)]
    path = parquet(tmp_path / "a.parquet", rows)
    assert [prompt.id for prompt in load_prompts(path)] == ["0", "1", "2", "3", "4"]
    path = parquet(tmp_path / "b.parquet", [{"messages": TURNS}])
    assert texts(path) == ["two"]


def test_parquet_rows_are_counted_from_0(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": " "}])
    with pytest.raises(UserError, match=r'a\.parquet: row 2: field "prompt": is empty; fix:'):
        load_prompts(path)
    path = parquet(tmp_path / "b.parquet", [{"prompt": "a"}, {"prompt": "a"}])
    with pytest.raises(UserError, match=r"b\.parquet: row 1: the same prompt as in .*b\.parquet: row 0; fix:"):
        load_prompts(path)


def test_prompts_from_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"instruction": "one"}, "two"], indent=1))
    assert texts(path) == ["one", "two"]
    path.write_text(json.dumps([{"instruction": "one"}, 2]))
    with pytest.raises(UserError, match=r"data\.json: item 1: not a JSON object; fix:"):
        load_prompts(path)
    path.write_text('[{"instruction": "one"}')
    with pytest.raises(UserError, match=r"data\.json: not JSON .* fix: write one JSON object a line or one JSON list"):
        load_prompts(path)
    path.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    assert texts(path) == ["one", "two"]


def test_a_broken_parquet_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("a letter")
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file .*; fix:"):
        load_prompts(tmp_path / "a.parquet")


def test_prompts_from_a_folder_saved_by_datasets(tmp_path: Path) -> None:
    split = datasets.Dataset.from_list([{"prompt": "one"}, {"prompt": "two"}])
    split.save_to_disk(tmp_path / "one")
    assert texts(tmp_path / "one") == ["one", "two"]
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "both")
    assert texts(tmp_path / "both" / "train") == ["one", "two"]
    with pytest.raises(UserError, match=r"both: holds test, train; fix: name one of them, as .*both/test$"):
        load_prompts(tmp_path / "both")
    datasets.DatasetDict({"train": split}).save_to_disk(tmp_path / "only")
    assert texts(tmp_path / "only") == ["one", "two"]


def test_prompts_from_a_folder_of_shards(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    for part in (1, 0):
        parquet(folder / f"data/train-0000{part}-of-00002.parquet", [{"prompt": f"part {part}"}])
    (folder / "dataset_infos.json").write_text("{}")
    (folder / "README.md").write_text("words")
    assert texts(folder) == ["part 0", "part 1"]
    parquet(folder / "data/test-00000-of-00001.parquet", [{"prompt": "part 0"}])
    with pytest.raises(UserError, match=r"copy: holds data/test-\*\.parquet, data/train-\*\.parquet; fix: name one of"):
        load_prompts(folder)
    assert texts(f"{folder}/data/train-*.parquet") == ["part 0", "part 1"]
    with pytest.raises(UserError, match=r"row 0: the same prompt as in .*test-00000-of-00001\.parquet: row 0; fix:"):
        load_prompts(f"{folder}/data/*.parquet")


def test_a_pattern_or_folder_without_files_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no file matches"):
        load_prompts(f"{tmp_path}/*.jsonl")
    with pytest.raises(UserError, match="can't be read: no data files in it"):
        load_prompts(tmp_path)
    (tmp_path / "a.jsonl").write_text('"one"\n')
    monkeypatch.chdir(tmp_path)
    assert texts("*.jsonl") == ["one"]


def test_shards_of_a_split_are_grouped() -> None:
    names = [
        "data/train-00001-of-00002.parquet",
        "data/train-00000-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
    ]
    assert splits_of([*names, ".git/x.json", "state.json", "a.txt"]) == [(names[2],), (names[1], names[0])]


def test_prompts_from_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeffid,prompt,input\r\na,one,\r\nb,"two\r\nlines",x\r\nc,three,\r\n', encoding="utf-8")
    assert [(prompt.id, prompt.messages[-1].content) for prompt in load_prompts(path)] == [
        ("a", "one"),
        ("b", "two\r\nlines"),
        ("c", "three"),
    ]
    assert [row.where for row in read_rows(path)] == [f"{path}:2", f"{path}:3", f"{path}:5"]
    path.write_text("question\none\n", encoding="utf-8")
    with pytest.raises(UserError, match=r'a\.csv:2: field "prompt": missing \(fields here: "question"\)'):
        load_prompts(path)
    path.write_text("prompt\n" + "x" * 200_000 + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.csv:2: not CSV \(field larger than field limit"):
        load_prompts(path)


def test_prompts_from_text_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\r\n\r\n  two {\n", encoding="utf-8")
    assert texts(path) == ["one", "two {"]
    path.write_text('one\n{"prompt": "two"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.txt:2: JSON in a \.txt file, where each line is a prompt; fix: name it"):
        load_prompts(path)


@pytest.mark.parametrize("name", ["prompts.md", "prompts.jsonl", "prompts"])
def test_text_in_a_json_file_names_the_formats(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("Why?\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"{name}:1: not JSON .*fix: .*\.parquet, \.csv .*\.txt"):
        load_prompts(tmp_path / name)


# --- rows whose fields are checked ---


ROWS = [{"id": "a", "n": 1.5, "text": "x\u2028y"}, {"id": "b", "n": 2, "text": "z"}]


def test_all_formats_hold_the_same_rows(tmp_path: Path) -> None:
    whole, line, cells = tmp_path / "a.json", tmp_path / "a.jsonl", tmp_path / "a.csv"
    read = [read_rows(json_file(whole, ROWS)), read_rows(lines(line, ROWS)), read_rows(table(cells, ROWS))]
    for rows in read:
        assert [(row.text("id"), row.number("n"), row.text("text")) for row in rows] == [
            ("a", 1.5, "x\u2028y"),
            ("b", 2, "z"),
        ]
    assert [rows[1].where for rows in read] == [f"{whole}: item 1", f"{line}:2", f"{cells}:3"]


def test_line_separators_inside_a_line_do_not_end_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"text": "a\u2028b\x85c"}\n\n{"text": "d"}', encoding="utf-8")
    assert [row.text("text") for row in read_rows(path)] == ["a\u2028b\x85c", "d"]


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    lines(tmp_path / "b.jsonl", ROWS[1:])
    lines(tmp_path / "a.jsonl", ROWS[:1])
    assert [row.text("id") for row in read_all_rows(tmp_path)] == ["a", "b"]
    assert list(group_by(read_all_rows(tmp_path), "id")) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "a.jsonl: no rows in it"),
        (b'{"id": 1}\n{"id": ', "a.jsonl:2: not JSON"),
        (b"[1]", "a.jsonl: item 0: not a JSON object"),
        (b'{"id": 1}\n"text"', "a.jsonl:2: not a JSON object"),
        (b"fine\n\xff", "a.jsonl:2: this is not UTF-8"),
        (b"[" * 100_000, "a.jsonl: not JSON"),
    ],
)
def test_what_can_t_be_read_is_one_line(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_rows(path)
    assert str(error.value).startswith(f"{tmp_path}/{line}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "line"), [("[]", "a.json: no rows in it"), ("[1]", "a.json: item 0: not a JSON object")]
)
def test_a_list_without_objects_is_one_line(tmp_path: Path, content: str, line: str) -> None:
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_rows(tmp_path / "a.json")
    assert str(error.value).startswith(f"{tmp_path}/{line}")


def test_cells_that_are_missing_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n3\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.csv:3: not as many cells"):
        read_rows(path)


def test_what_isn_t_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be read"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"no \.jsonl files"):
        read_all_rows(tmp_path)


ROW = Row("f:1", {"text": "a", "number": "2.5", "flag": True, "nan": float("nan"), "list": [1], "none": None})


def test_fields_are_read_as_what_they_are() -> None:
    assert ROW.number("number") == 2.5
    assert ROW.optional_number("nan") is None
    assert ROW.optional_number("absent", "none") is None
    assert ROW.text("none", "text") == "a"
    assert ROW.has("text", "number") and not ROW.has("text", "none")


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: ROW.text("flag"), "flag"),
        (lambda: ROW.text("absent"), "absent"),
        (lambda: ROW.number("text"), "text"),
        (lambda: ROW.number("flag"), "flag"),
        (lambda: ROW.number("nan"), "nan"),
        (lambda: ROW.items("text"), "text"),
        (lambda: ROW.rows("list"), "list"),
        (lambda: ROW.row("list"), "list"),
        (lambda: require_unique([ROW, ROW], "text"), "text"),
    ],
)
def test_a_field_that_doesn_t_fit_is_named(call: object, field: str) -> None:
    with pytest.raises(UserError, match=rf'^f:1(?: list\[0\])?: field "{field}') as error:
        call()  # type: ignore[operator]
    assert "; fix: " in str(error.value)


def test_a_name_is_a_path_or_a_file_of_a_hub(tmp_path: Path) -> None:
    assert resolve_file(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="hub:OWNER/NAME/FILE"):
        resolve_file("hub:owner/name")


def test_an_example_is_one_of_those_that_ship() -> None:
    assert resolve_files("example:everyday") == (resolve_file("example:everyday"),)
    with pytest.raises(UserError, match="example:x: no such example; fix: name example:everyday or example:pocket"):
        resolve_file("example:x")


# --- the hub ---


def test_hub_names_need_the_network() -> None:
    for name in ("hub:someone/set", "hub:someone/set/data/train-*.parquet"):
        with pytest.raises(UserError, match="hub, and the network is off; fix: allow it"):
            load_prompts(name)
        with pytest.raises(UserError, match="the network is off"):
            load_prompts(Path(name))  # what a recipe gives
    with pytest.raises(UserError, match="names no data set; fix: write hub:OWNER/NAME"):
        resolve_files("hub:someone", network=True)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A hub with a data set of two splits and one of one split."""
    root = tmp_path / "hub"
    parquet(root / "someone/set/data/train-00000-of-00002.parquet", [{"prompt": "one"}])
    parquet(root / "someone/set/data/train-00001-of-00002.parquet", [{"prompt": "two"}])
    parquet(root / "someone/set/data/test-00000-of-00001.parquet", [{"prompt": "three"}])
    (root / "someone/single").mkdir()
    (root / "someone/single/train.jsonl").write_text('{"prompt": "four"}\n')
    (root / "someone/single/README.md").write_text("words")
    with serve_hub(root) as address:
        yield address


ASK = "import sys; from metareward.data.prompts import load_prompts; " + (
    "print([p.messages[-1].content for p in load_prompts(sys.argv[1], network=True)])"
)


def ask(address: str, cache: Path, name: str) -> tuple[str, str]:
    """Load prompts in a new process: huggingface_hub reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", ASK, name]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    return done.stdout, done.stderr


def test_prompts_from_a_hub(hub: str, tmp_path: Path) -> None:
    assert ask(hub, tmp_path / "cache", "hub:someone/single")[0] == "['four']\n"
    assert ask(hub, tmp_path / "cache", "hub:someone/set/data/train-*.parquet")[0] == "['one', 'two']\n"
    assert ask(hub, tmp_path / "cache", "hub:someone/set/data/test-00000-of-00001.parquet")[0] == "['three']\n"
    told = ask(hub, tmp_path / "cache", "hub:someone/set")[1]
    assert (
        "hub:someone/set: holds data/test-*.parquet, data/train-*.parquet; fix: name one of them, as hub:some" in told
    )
    told = ask(hub, tmp_path / "cache", "hub:someone/nothing")[1]
    assert "hub:someone/nothing: can't be fetched (" in told


def test_a_hub_that_is_not_there_is_one_line() -> None:
    told = r"^hub:a/b: can't be fetched \(.*\); fix: check the name and the network$"
    with pytest.raises(UserError, match=told), hub_errors("hub:a/b"):
        httpx2.get("http://127.0.0.1:9")  # nothing listens there


def test_the_forms_of_public_prompt_sets(tmp_path: Path) -> None:
    seed_task = {"id": "s", "name": "n", "instruction": "one", "instances": [{"input": "", "output": "x"}]}
    forms: dict[str, list[object]] = {
        "self-instruct": [{**seed_task, "is_classification": False}],
        "koala": [{"id": "koala_0", "prompt": "one"}],
        "oasst": ["one"],
        "alpaca": [{"instruction": "one", "input": "", "output": "x"}],
    }
    for name, rows in forms.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert texts(path) == ["one"], name


def test_an_alpaca_list_with_repeated_prompts(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    rows = [{"instruction": f"task {n % 5}", "input": "", "output": str(n)} for n in range(7)]
    path.write_text(json.dumps(rows, indent=4))
    gathered = gather_prompts(path)
    assert (len(gathered.prompts), len(gathered.repeats)) == (5, 2)
    with pytest.raises(UserError, match=r"data\.json: item 5: the same prompt as in .*data\.json: item 0; fix:"):
        load_prompts(path)


def test_csv_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('id,prompt\na,one\nb,"two, and\nmore"\n')
    assert texts(path) == ["one", "two, and\nmore"]
    path.write_text("id,prompt\na\n")
    with pytest.raises(UserError, match=r"data\.csv:2: not as many cells as the first line"):
        load_prompts(path)


def test_one_file_of_a_hub_is_found_again_without_the_network(hub: str, tmp_path: Path) -> None:
    name = "hub:someone/single/train.jsonl"
    assert ask(hub, tmp_path / "cache", name)[0] == "['four']\n"
    assert ask("http://127.0.0.1:9", tmp_path / "cache", name)[0] == "['four']\n"
