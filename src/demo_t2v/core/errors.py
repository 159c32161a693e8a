"""The base class of errors for bad input."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input. The message is one line: what, where (file, row, key), what would be right.

    The command line exits with code 2 for it, and with code 1 for every other error.
    """
