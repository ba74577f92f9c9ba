"""Errors that the user can fix: a wrong setting, a missing or damaged file, a full disk."""


class UserError(Exception):
    """A one-line message that names the file, the field and the fix; the command line prints it and exits with 2."""


class JudgeHealthError(UserError):
    """A gate of judge health stopped the run; what is finished is kept, and the message says how to go on."""
