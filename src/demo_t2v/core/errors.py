"""The base of all errors that a person can mend."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input. The message is one line: what, where (file, row, key), what would be right.

    The command line ends with exit code 2 for it; every other error is a failure (exit code 1).
    """
