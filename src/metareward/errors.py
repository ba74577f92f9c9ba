"""Errors that the user can fix: a wrong setting, a missing or damaged file, a full disk."""

from metareward.text import escape_control


class UserError(Exception):
    """A one-line message that names the file, the field and the fix; the command line prints it and exits with 2.

    What it quotes of a file may hold anything: line ends become spaces, invisible characters are escaped.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(escape_control(message).replace("\n", " "))


class JudgeHealthError(UserError):
    """A gate of judge health stopped the run; what is finished is kept, and the message says how to go on."""
