"""What to say when a person's input cannot be used."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something a person gave cannot be used.

    The message is one line: what was wrong, and what would be right. Command-line programs print it
    and exit with a code other than 0; as a ``ValueError`` it needs no special care in other code.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names most like the one that is not, for the end of a message; else all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(known)}"


class UnreadableImageError(Exception):
    """An image that is missing, damaged or none at all. The message names it, with the reason."""


class WorkerError(Exception):
    """Processes that read images die again and again."""
