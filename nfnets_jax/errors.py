"""Errors for input that cannot be used, and messages that name the nearest right value."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A user's input cannot be used.

    The message is one line: what is wrong, and what would be right. Commands print it and exit with
    a code other than 0. Other code can catch it as a ``ValueError``.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the known names most like an unknown one, for a message; all if none is like it."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(known)}"


class UnreadableImageError(Exception):
    """An image is missing or damaged, or is not an image. The message names it and says why."""


class WorkerError(Exception):
    """Worker processes that read images die again and again."""
