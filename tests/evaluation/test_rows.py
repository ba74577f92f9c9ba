"""Files as rows: every format, and one clear line for what can't be read."""

from pathlib import Path

import pytest
from made_up import json_file, lines, table

from metareward.data.files import located_file
from metareward.errors import UserError
from metareward.evaluation.rows import Row, group, read_folder, read_rows, unique

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
    assert [row.text("id") for row in read_folder(tmp_path)] == ["a", "b"]
    assert list(group(read_folder(tmp_path), "id")) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "a.jsonl: no rows in it"),
        (b'{"id": 1}\n{"id": ', "a.jsonl:2: not JSON"),
        (b"[1]", "a.jsonl:1: not a JSON object"),
        (b'{"id": 1}\n"text"', "a.jsonl:2: not a JSON object"),
        (b"fine\n\xff", "a.jsonl:2: this is not UTF-8"),
        (b"[" * 100_000, "a.jsonl:1: not JSON"),
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
        read_folder(tmp_path)


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
        (lambda: unique([ROW, ROW], "text"), "text"),
    ],
)
def test_a_field_that_doesn_t_fit_is_named(call: object, field: str) -> None:
    with pytest.raises(UserError, match=rf'^f:1(?: list\[0\])?: field "{field}') as error:
        call()  # type: ignore[operator]
    assert "; fix: " in str(error.value)


def test_a_name_is_a_path_or_a_file_of_a_hub(tmp_path: Path) -> None:
    assert located_file(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="hub:OWNER/NAME/FILE"):
        located_file("hub:owner/name")
