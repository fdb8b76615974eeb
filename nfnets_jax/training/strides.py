"""Strides: consecutive steps that the devices take without the host."""

from collections.abc import Callable, Iterator

from nfnets_jax.training import hosts

# A stop signal is obeyed at the end of a stride, two of which may be queued.
_STRIDE_SECONDS = 0.3
# Length of strides until one has been timed.
_UNTIMED_STEPS = 4


class Strides:
    """Divides the steps of a run into strides, the same on every host.

    A stride ends where the host has something to do, and before it takes long.

    Attributes:
      is_timed: whether the length is settled.
    """

    def __init__(self, start: int, last: int, longest: int, host_is_due: Callable[[int], bool]):
        """Prepares to divide.

        Args:
          start: the step before the first.
          last: the last step.
          longest: most steps of a stride.
          host_is_due: whether the host has something to do after a step.
        """
        self._start, self._last, self._host_is_due = start, last, host_is_due
        self._longest, self._most = longest, min(longest, _UNTIMED_STEPS)
        self.is_timed = longest == 1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yields the first and the last step of each stride."""
        first = self._start + 1
        while first <= self._last:
            most = min(first + self._most - 1, self._last)
            last = next(filter(self._host_is_due, range(first, most)), most)
            yield first, last
            first = last + 1

    def settle(self, seconds: float) -> None:
        """Settles the length of strides; every host calls it at once, with its seconds a step."""
        self._most = int(hosts.smallest(_STRIDE_SECONDS / max(seconds, 1e-9)))
        self._most = max(1, min(self._most, self._longest))
        self.is_timed = True
