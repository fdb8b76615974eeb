"""What the hosts of a run agree on; with one host, nothing takes any time."""

import faulthandler
import os
from collections import deque
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from nfnets_jax.errors import InputError

# After so long without a word a host is taken for dead, and the others end.
_SILENCE_SECONDS = 30
# Of a job with several processes: SLURM, Open MPI, Cloud TPU pods.
_CLUSTERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES")


def connect(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other hosts of a run; before anything else is done with JAX.

    Args:
      coordinator_address, num_processes, process_id: as ``jax.distributed`` names them. Without
        them the surroundings decide: on a TPU pod and under SLURM or Open MPI with more than one
        process JAX knows them, elsewhere this host is alone.

    Raises:
      InputError: some are given and some are not, or the others do not come.
    """
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    absent = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(absent) < len(given):
        raise InputError(f"several hosts need {' and '.join(absent)} too, or none of the three")
    if absent and not in_cluster():
        return
    try:
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=_SILENCE_SECONDS)  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the hosts do not find each other: {reason}") from error
    # JAX says which host died and aborts; where each thread then stood is of no interest.
    faulthandler.disable()


def in_cluster() -> bool:
    """Whether JAX knows other hosts from its surroundings."""
    return any(name in os.environ for name in _CLUSTERS)


def is_first() -> bool:
    """Whether this host is the one that tells and writes for all."""
    return jax.process_index() == 0


def check_equal(value: str, what: str) -> None:
    """Makes sure that all hosts have the same.

    Raises:
      RuntimeError: they do not; something is wrong with a machine or with this library.
    """
    if jax.process_count() == 1:
        return
    encoded = np.frombuffer(value.encode(), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(encoded))
    if (gathered != gathered[0]).any():
        raise RuntimeError(f"the hosts have different {what}: trust none of them")


class Votes:
    """How many hosts want something, known to all of them at the same step.

    The count comes with the steps' own work on the devices, so that nobody waits for it.
    """

    def __init__(self, devices: Sequence[jax.Device]):
        """Begins to vote; ``devices`` are those of all hosts."""
        self._alone = jax.process_count() == 1
        self._here = sum(device.process_index == jax.process_index() for device in devices)
        self._cast: deque[jax.Array | float] = deque()

        def add(vote: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
            return lax.psum(vote, "hosts"), step

        self._add = jax.pmap(add, "hosts", devices=devices)

    def cast(self, vote: bool, step: jax.Array) -> jax.Array:
        """This host's vote of a step; all hosts vote at each.

        Args:
          vote: whether this host wants it.
          step: the state's counter of steps, ``[devices]``, after the step.

        Returns:
          ``step``, for the state. It comes by way of the votes because what the devices send each
          other must keep its order where some of it fails, as when a host has died: steps and votes
          that do not need each other would take each other's messages.
        """
        if self._alone:
            self._cast.append(float(vote))
            return step
        votes, step = self._add(jnp.full(self._here, vote, jnp.float32), step)
        self._cast.append(votes)
        return step

    def count(self, before: int) -> float:
        """Votes of the step so many steps ago; with one host, of the newest."""
        if self._alone:
            return float(self._cast.pop())
        if len(self._cast) <= before:
            return 0.0
        votes = self._cast.popleft()
        assert isinstance(votes, jax.Array)
        return float(np.asarray(votes.addressable_shards[0].data).item())
