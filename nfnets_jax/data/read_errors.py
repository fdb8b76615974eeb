"""Images that cannot be read: a check before a run, and a limit during it."""

from collections.abc import Callable, Iterable

import numpy as np

from nfnets_jax.data.decoding import AS_USUAL, Picture, Reading
from nfnets_jax.data.sources import Source
from nfnets_jax.errors import InputError, UnreadableImageError


def check_readable(source: Source, samples: int = 16, reading: Reading = AS_USUAL) -> None:
    """Decodes records spread over a source, up to the first that can be decoded.

    Args:
      source: the records.
      samples: how many to try.
      reading: how files are read.

    Raises:
      InputError: none of them can be decoded.
    """
    errors: list[str] = []
    for index in np.unique(np.linspace(0, len(source) - 1, samples, dtype=int)):
        try:
            record = source[int(index)]
            Picture(record["image"], record["name"], reading).pixels()
        except UnreadableImageError as error:
            errors.append(str(error))
        else:
            return
    raise InputError(f"no image can be read; the first: {errors[0]}")


class ReadErrors:
    """Collects the images that cannot be read, warns once of each, and fails if they are too many.

    Attributes:
      messages: the name and the reason of each image, in the order in which they were found.
    """

    def __init__(
        self,
        what: str,
        total: int,
        max_share: float,
        warn: Callable[[str], None],
        messages: Iterable[str] = (),
    ):
        """Starts with the errors that are known.

        Args:
          what: the images, for messages, such as ``"training images"``.
          total: their number.
          max_share: largest share of them that may be unreadable.
          warn: called with a line of text for each new error.
          messages: errors found before.
        """
        self.messages = list(messages)
        self._what, self._total, self._max_share, self._warn = what, total, max_share, warn

    def add(self, messages: Iterable[str]) -> None:
        """Adds the errors that are new.

        Raises:
          InputError: too many images cannot be read; the message lists them.
        """
        for message in messages:
            if message not in self.messages:
                self.messages.append(str(message))
                self._warn(f"not readable, left out: {message}")
        if len(self.messages) > self._max_share * self._total:
            raise InputError(
                f"{len(self.messages)} of {self._total} {self._what} cannot be read, more than the "
                f"share of {self._max_share:g} that is allowed; repair them, remove them or allow "
                "more:\n" + "\n".join(self.messages)
            )
