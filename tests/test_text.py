import pytest

from metareward.errors import UserError
from metareward.text import escape_control


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text,\n\twith lines", "plain text,\n\twith lines"),
        ("a\x00b", "a␀b"),
        ("\x1b[2Jgone", "␛[2Jgone"),
        ("end\r\nof line\ralone", "end\nof line␍alone"),
        ("\x7f\x85", "␡⟨U+0085⟩"),
        ("pay \u202e001\u202c", "pay ⟨U+202E⟩001⟨U+202C⟩"),
        ("zero\u200bwidth\ufeff", "zero⟨U+200B⟩width⟨U+FEFF⟩"),
        ("\U000e0041 tag", "⟨U+E0041⟩ tag"),
        ("\ufe0f\U000e0101", "\ufe0f⟨U+E0101⟩"),
        ("line\u2028separator", "line⟨U+2028⟩separator"),
        ("half \ud83d", "half ⟨U+D83D⟩"),
    ],
)
def test_invisible_characters_are_escaped(text: str, shown: str) -> None:
    assert escape_control(text) == shown


def test_joiners_of_scripts_and_emoji_are_kept() -> None:
    for text in ("می‌خواهم", "👩‍👩‍👧", "हिन्दी", "שלום", "naïve café"):
        assert escape_control(text) == text


def test_escaped_text_can_always_be_encoded() -> None:
    escape_control("".join(map(chr, range(0x20000)))).encode()


def test_an_error_for_users_is_one_printable_line_whatever_it_quotes() -> None:
    assert str(UserError('field "a\r\nb\x1b[31m\u202e": no')) == 'field "a b␛[31m⟨U+202E⟩": no'
