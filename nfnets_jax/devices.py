"""Arrays on several devices: replicated, split along the batch, fetched back; the CPU's name."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import chex
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Name of the axis over all devices of all hosts, for collectives such as ``lax.pmean``.
AXIS = "devices"

DeviceBatch = dict[str, jax.Array]


def local_devices(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Returns the devices that belong to this host, in their order."""
    return [device for device in devices if device.process_index == jax.process_index()]


def replicate(tree: chex.ArrayTree, devices: Sequence[jax.Device]) -> chex.ArrayTree:
    """Copies a tree of arrays to every device.

    Args:
      tree: arrays of any shape, the same on every host.
      devices: the devices of all hosts.

    Returns:
      The tree as ``jax.pmap`` takes it: each array has a leading axis of this host's devices.
    """
    # Under another axis name, pmap would compile the update again for its first outputs.
    copy = jax.pmap(lambda _, leaves: leaves, AXIS, in_axes=(0, None), devices=devices)
    return copy(np.arange(len(local_devices(devices))), tree)


def transfer(batch: Mapping[str, np.ndarray], devices: Sequence[jax.Device]) -> DeviceBatch:
    """Splits this host's part of a batch over its devices.

    Args:
      batch: arrays ``[B, ...]``, with ``B`` a multiple of the number of this host's devices.
      devices: the devices of all hosts.

    Returns:
      Arrays ``[devices, B / devices, ...]``, each device holding its own part.
    """
    local = local_devices(devices)
    sharding = NamedSharding(Mesh(np.array(local), (AXIS,)), PartitionSpec(AXIS))
    parts = {name: array.reshape(len(local), -1, *array.shape[1:]) for name, array in batch.items()}
    return jax.device_put(parts, sharding)


def fetch(tree: chex.ArrayTree) -> chex.ArrayTree:
    """Copies a replicated tree from this host's first device to NumPy arrays."""
    return jax.tree.map(lambda leaf: np.array(leaf.addressable_shards[0].data)[0], tree)


def processor() -> str:
    """Returns the name of the CPU."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or platform.machine()
