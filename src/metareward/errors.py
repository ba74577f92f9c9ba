"""Errors whose cause is the user's to mend."""


class UserError(Exception):
    """One line that names the file or folder, the field, and the fix. The command line prints it and exits with 2."""
