from __future__ import annotations

from pathlib import Path

import pytest

from metareward.errors import UserError
from metareward.method.import_path import import_object


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_class_of_a_file_in_the_current_folder_is_instantiated(here: Path) -> None:
    source = "class Length:\n    def score(self): return 7\nready = Length()\n"
    (here / "reward_a.py").write_text(source)
    for name in ("Length", "ready"):
        found = import_object(f"reward_a:{name}", "reward", ("score",))
        assert found.value.score() == 7 and len(found.sha256) == 64


def test_a_changed_source_has_another_digest(here: Path) -> None:
    digests = []
    for number in (1, 2):
        (here / f"reward_b{number}.py").write_text(f"class R:\n    def score(self): return {number}\n")
        digests.append(import_object(f"reward_b{number}:R", "reward", ("score",)).sha256)
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "reward: can't import reward_c0:R: AttributeError"),
        ("1 / 0", "reward: can't import reward_c1:R: ZeroDivisionError: division by zero"),
        ("class R: pass", "reward: reward_c2:R has no method score; fix"),
        ("class R:\n    def __init__(self, a): ...", "reward: can't import reward_c3:R: TypeError"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_setting(
    here: Path, source: str, message: str, request: pytest.FixtureRequest
) -> None:
    number = message[message.index("reward_c") + 8]
    (here / f"reward_c{number}.py").write_text(source)
    with pytest.raises(UserError) as error:
        import_object(f"reward_c{number}:R", "reward", ("score",))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_an_unknown_module_is_named() -> None:
    with pytest.raises(UserError, match="judge: can't import no_such_module:J: ModuleNotFoundError"):
        import_object("no_such_module:J", "judge", ("judge",))
