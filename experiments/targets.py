"""Accelerators that a program can be compiled for without having one."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
from jax.experimental import topologies

from nfnets_jax.errors import InputError, nearest


@dataclasses.dataclass(frozen=True)
class Rates:
    """What one device of a kind does at best, by its maker's data sheet.

    Attributes:
      products: FLOP/s of dense products, by the network's precision.
      bytes: reads and writes of its memory, bytes/s.
      memory: bytes.
    """

    products: Mapping[str, float]
    bytes: float
    memory: int


@dataclasses.dataclass(frozen=True)
class _GPU:
    """A GPU, as XLA's compiler describes one."""

    name: str
    rates: Rates
    capability: tuple[int, int]
    cores: int
    clock_ghz: float
    l2_bytes: int
    shared_per_core: int

    def description(self) -> str:
        """Returns the ``GpuTargetConfigProto``, as text."""
        # A block gets 48 KiB of shared memory, and on request all but 1 KiB of the core's.
        major, minor = self.capability
        return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {self.cores}
  fpus_per_core: {128 if major >= 9 else 64}
  clock_rate_ghz: {self.clock_ghz}
  device_memory_size: {self.rates.memory}
  memory_bandwidth: {int(self.rates.bytes)}
  l2_cache_size: {self.l2_bytes}
  shared_memory_per_core: {self.shared_per_core}
  shared_memory_per_block: {48 * 1024}
  shared_memory_per_block_optin: {self.shared_per_core - 1024}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{self.name}"
"""


def _gpu_products(bfloat16: float, float32: float) -> Mapping[str, float]:
    by_precision = {"bfloat16": bfloat16, "tensorfloat32": bfloat16 / 2, "float32": float32}
    return MappingProxyType(by_precision)


def _tpu_products(bfloat16: float) -> Mapping[str, float]:
    """Returns the rates of a TPU, which multiplies float32 as several products of bfloat16."""
    by_precision = {"bfloat16": bfloat16, "tensorfloat32": bfloat16 / 3, "float32": bfloat16 / 6}
    return MappingProxyType(by_precision)


# Data sheets of the SXM modules; their dense rates, not those of sparse matrices. They round the
# memory down: an H100 of 80 GB has 84.9e9 bytes.
_H100 = _GPU(
    "NVIDIA H100 80GB HBM3",
    Rates(_gpu_products(989e12, 67e12), 3.35e12, 80 * 10**9),
    (9, 0),
    cores=132,
    clock_ghz=1.98,
    l2_bytes=50 * 2**20,
    shared_per_core=228 * 2**10,
)
_GPUS: Mapping[str, _GPU] = MappingProxyType(
    {
        "a100": _GPU(
            "NVIDIA A100-SXM4-80GB",
            Rates(_gpu_products(312e12, 19.5e12), 2.039e12, 80 * 10**9),
            (8, 0),
            cores=108,
            clock_ghz=1.41,
            l2_bytes=40 * 2**20,
            shared_per_core=164 * 2**10,
        ),
        "h100": _H100,
        "h200": dataclasses.replace(
            _H100,
            name="NVIDIA H200",
            rates=dataclasses.replace(_H100.rates, bytes=4.8e12, memory=141 * 10**9),
        ),
    }
)

# Rates of a chip. JAX sees the two cores of a v4 chip as two devices when it compiles for one that
# is not there.
_TPUS: Mapping[str, Rates] = MappingProxyType(
    {
        "v4": Rates(_tpu_products(275e12), 1.2e12, 32 * 2**30),
        "v5e": Rates(_tpu_products(197e12), 0.82e12, 16 * 2**30),
        "v5p": Rates(_tpu_products(459e12), 2.77e12, 95 * 2**30),
        "v6e": Rates(_tpu_products(918e12), 1.64e12, 32 * 2**30),
    }
)


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      name: ``h100``, ``v4:4x4x4`` and the like; several GPUs of a host as ``8xh100``.
      backend: as ``jax.default_backend`` names it, ``gpu`` or ``tpu``.
      devices: all devices, those of each host together.
      rates: of one device.
    """

    name: str
    backend: str
    devices: list[Any]
    rates: Rates

    def on_first_device(self, tree: Any) -> Any:
        """Returns the shapes of arrays, to compile a ``jax.jit`` of them for the first device."""
        sharding = jax.sharding.SingleDeviceSharding(self.devices[0])
        return jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), tree
        )


def open_target(name: str) -> Target:
    """Describes devices to JAX; to be called before JAX computes anything.

    Args:
      name: a GPU (``a100``, ``h100``, ``h200``), several on one host (``8xh100``), or a TPU kind
        with its topology of chips (``v4:4x4x4``, ``v5e:4x4``).

    Raises:
      InputError: no such target, or the compiler for it is not installed.
    """
    kind, _, chips = name.partition(":")
    if kind in _TPUS:
        if not re.fullmatch(r"\d+(x\d+){1,2}", chips):
            raise InputError(f"no target {name!r}; write {kind}:CHIPS, CHIPS as 4x4 or 4x4x4")
        return _open_tpus(name, kind, chips)
    match = re.fullmatch(r"(?:([1-9]\d*)x)?(\w+)", name)
    if match is None or match[2] not in _GPUS:
        raise InputError(f"no target {name!r}; {nearest(name, [*_GPUS, *_TPUS])}")
    return _open_gpus(name, _GPUS[match[2]], int(match[1] or 1))


def _open_gpus(name: str, gpu: _GPU, count: int) -> Target:
    if not any(importlib.util.find_spec(f"jax_cuda{cuda}_plugin") for cuda in (12, 13)):
        raise InputError(
            f"to compile for {name}, install '.[cuda]' in an environment of its own (5 GB)"
        )
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    jax.config.update("jax_platforms", "cpu,cuda")
    topology = _topology(
        name, platform="cuda", target_config=gpu.description(), topology=f"1x1x{count}"
    )
    return Target(name, "gpu", topology.devices, gpu.rates)


def _open_tpus(name: str, kind: str, chips: str) -> Target:
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"to compile for {name}, install '.[tpu]' in an environment of its own (2 GB)"
        )
    # No device is touched, so several processes may compile at a time.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    jax.config.update("jax_platforms", "cpu")
    topology = _topology(name, platform="tpu", topology_name=f"{kind}:{chips}")
    per_chip = len(topology.devices) // len({tuple(d.coords) for d in topology.devices})
    rates = _TPUS[kind]
    return Target(
        name,
        "tpu",
        topology.devices,
        Rates(
            {precision: rate / per_chip for precision, rate in rates.products.items()},
            rates.bytes / per_chip,
            rates.memory // per_chip,
        ),
    )


def _topology(name: str, **arguments: Any) -> Any:
    try:
        return topologies.get_topology_desc(**arguments)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the compiler does not know {name}: {reason}") from error
