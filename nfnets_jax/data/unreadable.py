"""The account of images that cannot be read."""

from collections.abc import Callable, Iterable

from nfnets_jax.errors import InputError


class Unreadable:
    """Keeps the names of what could not be read, tells each once, and ends when they are too many.

    Attributes:
      names: so far, in the order they were met.
    """

    def __init__(
        self,
        what: str,
        length: int,
        max_share: float,
        tell: Callable[[str], None],
        names: Iterable[str] = (),
    ):
        """Begins an account.

        Args:
          what: is read, for messages, such as ``"training images"``.
          length: how many of them there are.
          max_share: of them, beyond which it ends.
          tell: is given a line for each.
          names: known before.
        """
        self.names = list(names)
        self._what, self._length, self._max_share, self._tell = what, length, max_share, tell

    def add(self, names: Iterable[str]) -> None:
        """Takes up what is not known yet.

        Raises:
          InputError: with the list, if there are too many.
        """
        for name in names:
            if name not in self.names:
                self.names.append(str(name))
                self._tell(f"not readable, left out: {name}")
        if len(self.names) > self._max_share * self._length:
            raise InputError(
                f"{len(self.names)} of {self._length} {self._what} cannot be read, more than "
                f"data.max_unreadable = {self._max_share:g} of them; repair them, take them away "
                "or allow more:\n" + "\n".join(self.names)
            )
