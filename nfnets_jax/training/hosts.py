"""Several hosts: joining them, and agreement between them. A single host does not wait."""

import faulthandler
import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from nfnets_jax.errors import InputError

# A host that sends no heartbeat for this long counts as dead, and the others end.
_HEARTBEAT_TIMEOUT_SECONDS = 30
# Variables of a job with several processes: SLURM, Open MPI, Cloud TPU pods.
_CLUSTER_VARIABLES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES")


def connect(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other hosts of a run; called before any other use of JAX.

    Without arguments, JAX finds the other hosts on a TPU pod and under SLURM or Open MPI; anywhere
    else this host stays alone.

    Args:
      coordinator_address: host and port of process 0, as ``HOST:PORT``.
      num_processes: number of hosts.
      process_id: index of this host, from 0.

    Raises:
      InputError: some arguments are given and others are not, or the hosts do not connect.
    """
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    absent = [name for name, value in given.items() if value is None]
    if 0 < len(absent) < len(given):
        raise InputError(f"several hosts need {' and '.join(absent)} too, or none of the three")
    if absent and not in_cluster():
        return
    try:
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_SECONDS)  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the hosts cannot connect: {reason}") from error
    # When a host dies, JAX names it and aborts the others; their stack traces would bury that line.
    faulthandler.disable()


def in_cluster() -> bool:
    """Returns whether environment variables describe other hosts to JAX."""
    return any(name in os.environ for name in _CLUSTER_VARIABLES)


def is_first() -> bool:
    """Returns whether this host is the one that prints and writes for all."""
    return jax.process_index() == 0


def smallest(value: float) -> float:
    """Returns the smallest of the hosts' values, in float32; every host calls it at once."""
    return float(np.min(multihost_utils.process_allgather(np.float32(value))))


def check_equal(value: str, what: str) -> None:
    """Checks that all hosts have the same value.

    Args:
      value: strings of the same length on every host.
      what: a plural noun for the message.

    Raises:
      RuntimeError: the values differ; a machine or this library is faulty.
    """
    if jax.process_count() == 1:
        return
    encoded = np.frombuffer(value.encode(), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(encoded))
    if (gathered != gathered[0]).any():
        raise RuntimeError(f"the hosts have different {what}: do not use any of them")
