"""JPEG decoding by NVIDIA's nvimgcodec: on a GPU where there is one, else on the CPU.

Its CPU decoder gives the pixels of libjpeg-turbo, those of CMYK to one level. It repairs some
damage that libjpeg-turbo, as this library calls it, refuses. Its GPU decoders have not been tried.
"""

import functools
import importlib.util
import os
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from nfnets_jax.data.jpeg import Box

_INSTALL = "pip install 'nvidia-nvimgcodec-cu12[all]', or -cu13 for CUDA 13"


class _Local(threading.local):
    """The decoder of this thread, as none may be shared."""

    decoder: Any = None


_LOCAL = _Local()


def missing() -> str:
    """Returns a phrase that says what to install; empty where nvimgcodec is installed."""
    try:
        installed = importlib.util.find_spec("nvidia.nvimgcodec") is not None
    except ModuleNotFoundError:  # Nothing of NVIDIA's is.
        installed = False
    return "" if installed else f"nvimgcodec is not installed: {_INSTALL}"


def has_gpu() -> bool:
    """Returns whether this machine has a GPU to decode on."""
    return Path("/dev/nvidiactl").exists()


def decode(encoded: bytes, box: Box) -> np.ndarray | None:
    """Decodes a part of a JPEG file, at full resolution.

    Returns:
      ``[H, W, 3]`` uint8 of the box; None if nvimgcodec cannot decode the file.
    """
    codec = _codec()
    region = codec.Region(box.top, box.left, box.top + box.height, box.left + box.width)
    part = codec.CodeStream(encoded).get_sub_code_stream(region=region)
    parameters = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)
    image = _decoder().decode(part, params=parameters)
    return None if image is None else np.asarray(image.cpu())


def _decoder() -> Any:
    if _LOCAL.decoder is None:
        codec = _codec()
        where: dict[str, Any] = {}
        if not has_gpu():
            where["device_id"] = codec.NVIMGCODEC_DEVICE_CPU_ONLY
            where["backends"] = [codec.Backend(codec.CPU_ONLY)]
        _LOCAL.decoder = codec.Decoder(max_num_cpu_threads=1, **where)
    return _LOCAL.decoder


@functools.cache
def _codec() -> ModuleType:
    # What it cannot decode, libjpeg-turbo is asked to, which says why.
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    return importlib.import_module("nvidia.nvimgcodec")
