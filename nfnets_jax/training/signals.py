"""SIGINT and SIGTERM: a run is saved and stopped at the same step on every host."""

import signal
from collections import deque
from collections.abc import Sequence
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nfnets_jax.devices import local_devices

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818, an event and not a mistake
    """The run was stopped by SIGINT or SIGTERM; it is saved and can be resumed.

    Attributes:
      signal_number: the signal that this host received; SIGTERM if another host received one.
    """

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"{signal.Signals(signal_number).name}: saved at step {step}")
        self.signal_number = signal_number


class StopSignals:
    """A context manager that records SIGINT and SIGTERM and shares them with all hosts.

    After the first signal the previous handlers are back, so that a second one ends the process.

    The hosts share their flags by a collective sum on the devices, queued after each update: no
    host waits for another, and all hosts read the same sum after the same step.
    """

    def __init__(self, devices: Sequence[jax.Device], delay: int):
        """Prepares to share the signals.

        Args:
          devices: the devices of all hosts.
          delay: how many steps after its collective a sum is read, at least as many as are queued
            on the devices at once. A single host reads its flag at once.
        """
        self._received: int | None = None
        self._delay = delay
        self._sums: deque[jax.Array] = deque()
        self._local_count = len(local_devices(devices))

        def share(flag: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
            return lax.psum(flag, "hosts"), step

        self._share = jax.pmap(share, "hosts", devices=devices)

    def __enter__(self) -> "StopSignals":
        self._previous = {number: signal.signal(number, self._record) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore_handlers()

    def _record(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._received = number
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def number(self) -> int:
        """The signal that this host received, or SIGTERM if it received none."""
        return signal.SIGTERM if self._received is None else self._received

    def share(self, step: jax.Array) -> jax.Array:
        """Queues the exchange of the hosts' flags; every host calls this once after each update.

        Args:
          step: ``TrainState.step`` after the update, on all devices.

        Returns:
          ``step``, to be put back into the state. This makes the next update depend on the
          exchange: collectives that do not depend on each other may run in another order on each
          host, and would receive each other's messages after a host has died.
        """
        if jax.process_count() == 1:
            return step
        flag = self._received is not None
        total, step = self._share(jnp.full(self._local_count, flag, jnp.float32), step)
        self._sums.append(total)
        return step

    def stop_requested(self) -> bool:
        """Returns whether to stop, the same on every host; called once after each ``share``."""
        if jax.process_count() == 1:
            return self._received is not None
        if len(self._sums) <= self._delay:
            return False
        return bool(np.asarray(self._sums.popleft().addressable_shards[0].data).item())
