"""Prompts by name: files of every kind, folders, patterns, and data sets on a hub that the test plays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import serve_hub

from metareward.data.files import located, splits_of
from metareward.data.prompts import gather_prompts, load_prompts
from metareward.errors import UserError

TURNS = [{"role": "user", "content": "two"}]


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def texts(source: Path | str) -> list[str]:
    return [prompt.messages[-1].content for prompt in load_prompts(source)]


def test_parquet_rows(tmp_path: Path) -> None:
    rows = [{"id": n, "prompt": f"question {n}", "messages": None} for n in range(5)]
    path = parquet(tmp_path / "a.parquet", rows)
    assert [prompt.id for prompt in load_prompts(path)] == ["0", "1", "2", "3", "4"]
    path = parquet(tmp_path / "b.parquet", [{"messages": TURNS}])
    assert texts(path) == ["two"]


def test_a_row_of_parquet_is_counted_from_0(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": " "}])
    with pytest.raises(UserError, match=r'a\.parquet: row 2: field "prompt": is empty; fix:'):
        load_prompts(path)
    path = parquet(tmp_path / "b.parquet", [{"prompt": "a"}, {"prompt": "a"}])
    with pytest.raises(UserError, match=r"b\.parquet: row 1: the same prompt as in row 0; fix:"):
        load_prompts(path)


def test_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"instruction": "one"}, "two"], indent=1))
    assert texts(path) == ["one", "two"]
    path.write_text(json.dumps([{"instruction": "one"}, 2]))
    with pytest.raises(UserError, match=r"data\.json: item 1: not a JSON object; fix:"):
        load_prompts(path)
    path.write_text('[{"instruction": "one"}')
    with pytest.raises(UserError, match=r"data\.json: not JSON .* fix: write one JSON list of objects"):
        load_prompts(path)
    path.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    assert texts(path) == ["one", "two"]


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("a letter")
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file .*; fix:"):
        load_prompts(tmp_path / "a.parquet")


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    split = datasets.Dataset.from_list([{"prompt": "one"}, {"prompt": "two"}])
    split.save_to_disk(tmp_path / "one")
    assert texts(tmp_path / "one") == ["one", "two"]
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "both")
    assert texts(tmp_path / "both" / "train") == ["one", "two"]
    with pytest.raises(UserError, match=r"both: holds test, train; fix: name one of them, as .*both/test$"):
        load_prompts(tmp_path / "both")
    datasets.DatasetDict({"train": split}).save_to_disk(tmp_path / "only")
    assert texts(tmp_path / "only") == ["one", "two"]


def test_a_folder_of_files(tmp_path: Path) -> None:
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


def test_patterns_and_folders_without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no file is named like this"):
        load_prompts(f"{tmp_path}/*.jsonl")
    with pytest.raises(UserError, match="can't be read: no data files in it"):
        load_prompts(tmp_path)
    (tmp_path / "a.jsonl").write_text('"one"\n')
    monkeypatch.chdir(tmp_path)
    assert texts("*.jsonl") == ["one"]


def test_parts_belong_together_and_splits_do_not() -> None:
    names = [
        "data/train-00001-of-00002.parquet",
        "data/train-00000-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
    ]
    assert splits_of([*names, ".git/x.json", "state.json", "a.txt"]) == [(names[2],), (names[1], names[0])]


# --- the hub ---


def test_the_hub_is_only_asked_where_the_network_is_allowed() -> None:
    for name in ("hub:someone/set", "hub:someone/set/data/train-*.parquet"):
        with pytest.raises(UserError, match="and the network is off; fix: set prompts"):
            load_prompts(name)
        with pytest.raises(UserError, match="the network is off"):
            load_prompts(Path(name))  # what a recipe gives
    with pytest.raises(UserError, match="names no data set; fix: write hub:OWNER/NAME"):
        located("hub:someone", network=True)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A hub with one data set in two splits, and one in one."""
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
    """A process of its own: the hub's library reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", ASK, name]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    return done.stdout, done.stderr


def test_data_sets_of_a_hub(hub: str, tmp_path: Path) -> None:
    assert ask(hub, tmp_path / "cache", "hub:someone/single")[0] == "['four']\n"
    assert ask(hub, tmp_path / "cache", "hub:someone/set/data/train-*.parquet")[0] == "['one', 'two']\n"
    assert ask(hub, tmp_path / "cache", "hub:someone/set/data/test-00000-of-00001.parquet")[0] == "['three']\n"
    told = ask(hub, tmp_path / "cache", "hub:someone/set")[1]
    assert (
        "hub:someone/set: holds data/test-*.parquet, data/train-*.parquet; fix: name one of them, as hub:some" in told
    )
    told = ask(hub, tmp_path / "cache", "hub:someone/nothing")[1]
    assert "hub:someone/nothing: can't be fetched (" in told


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
    with pytest.raises(UserError, match=r"data\.json: item 5: the same prompt as in item 0; fix:"):
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
