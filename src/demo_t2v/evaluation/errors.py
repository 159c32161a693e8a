"""The error of this package."""

from __future__ import annotations

from demo_t2v.core.errors import UserError


class EvaluationError(UserError):
    """A model, video, report or card that cannot be scored, read or written."""
