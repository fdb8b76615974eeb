"""Compares decoders of random crops of JPEG photographs, on one core.

    python -m benchmarks.decoders --dir=PHOTOGRAPHS [--shorter_side=400]

decodes the crops that training takes, at full resolution, ours and each peer's in turn, and writes
``decoders_DEVICE.md``, ``.json`` and ``.png`` to ``benchmarks/results``. Peers that are not
installed are left out: nvimgcodec (``nvidia-nvimgcodec-cu12``) and DALI (``nvidia-dali-cuda120``),
with their decoders for CPUs.

With ``--shorter_side`` the photographs are first shrunk as ``experiments.prepare`` shrinks them.
One more row then compares decoding and resizing crops of these with decoding the photographs whole,
as they were, before their crops are cut out and resized.
"""

import argparse
import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg

from benchmarks import compare, machine
from benchmarks.photographs import shrunk
from nfnets_jax.data import nvimgcodec
from nfnets_jax.data.decoding import Picture, resize
from nfnets_jax.data.jpeg import Box
from nfnets_jax.data.sources.folder import open_folder
from nfnets_jax.data.transforms import distorted_box

# Side of resized crops, pixels: what NFNet-F0 is trained with.
_SIZE = 192


class Crop(NamedTuple):
    """A JPEG file, and the part of it that is wanted."""

    encoded: bytes
    box: Box


Decode = Callable[[Sequence[Crop]], list[np.ndarray]]


def main() -> None:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", required=True, help="one folder of photographs per class")
    parser.add_argument("--shorter_side", type=int, help="shrink the photographs to it, pixels")
    parser.add_argument("--images", type=int, default=200, help="number of photographs")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side")
    parser.add_argument("--out", type=Path, default=compare.RESULTS)
    arguments = parser.parse_args()
    with shrunk(arguments.dir, arguments.shorter_side) as directory:
        crops = random_crops(directory, arguments.images)
    comparisons = {}
    for name, decode in peers().items():
        levels = largest_difference(decode_with_ours(crops), decode(crops))
        comparisons[f"crops, over {name}, whose pixels differ by up to {levels} levels"] = (
            decode_with_ours,
            decode,
            crops,
        )
    if arguments.shorter_side:
        name = f"crops resized to {_SIZE} pixels, over decoding the photographs whole"
        originals = random_crops(arguments.dir, arguments.images)
        comparisons[name] = resize_with_ours, resize_whole, originals
    conditions = {"photographs": len(crops), "shorter_side": arguments.shorter_side}
    compare.measure(
        {
            name: compare.Comparison(
                functools.partial(measure, ours, crops),
                functools.partial(measure, theirs, their_crops),
                arguments.rounds,
                "images_per_second",
            )
            for name, (ours, theirs, their_crops) in comparisons.items()
        },
        conditions,
        arguments.out / "decoders",
    )


def random_crops(directory: str, count: int) -> list[Crop]:
    """Reads photographs, and draws a crop of each as NFNets are trained."""
    rng, crops, source = np.random.default_rng(0), [], open_folder(directory).train
    for index in range(min(count, len(source))):
        image = source[index]["image"]
        assert isinstance(image, Path)
        picture = Picture(image, image.name)
        whole = Box(0, 0, picture.height, picture.width)
        crops.append(Crop(image.read_bytes(), distorted_box(*whole[2:], rng) or whole))
    return crops


def decode_with_ours(crops: Sequence[Crop]) -> list[np.ndarray]:
    """Cuts JPEGs and decodes them by libjpeg-turbo, as the library does."""
    return [Picture(encoded, "").part(box) for encoded, box in crops]


def resize_with_ours(crops: Sequence[Crop]) -> list[np.ndarray]:
    """Decodes crops, at a lower resolution where that suffices, and resizes them."""
    resized = []
    for encoded, box in crops:
        part = Picture(encoded, "").part(box, shrink=min(box.height, box.width) / _SIZE)
        resized.append(resize(part, _SIZE, _SIZE))
    return resized


def resize_whole(crops: Sequence[Crop]) -> list[np.ndarray]:
    """Decodes whole photographs, and resizes the crops."""
    resized = []
    for encoded, box in crops:
        pixels = simplejpeg.decode_jpeg(encoded, strict=False)
        rows, columns = (
            slice(at, at + length) for at, length in zip(box[:2], box[2:], strict=True)
        )
        resized.append(resize(pixels[rows, columns], _SIZE, _SIZE))
    return resized


def peers() -> dict[str, Decode]:
    """Returns the decoders that are installed, by name; says which are not."""
    found: dict[str, Decode] = {}
    if missing := nvimgcodec.missing():
        print(f"no comparison with nvimgcodec: {missing}", flush=True)
    else:
        found["nvimgcodec"] = decode_with_nvimgcodec
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        found["DALI"] = DALI()
    else:
        print("no comparison with DALI: pip install nvidia-dali-cuda120", flush=True)
    return found


def decode_with_nvimgcodec(crops: Sequence[Crop]) -> list[np.ndarray]:
    """Decodes regions by nvimgcodec."""
    decoded = [nvimgcodec.decode(*crop) for crop in crops]
    return [pixels for pixels in decoded if pixels is not None]


class DALI:
    """Decodes slices by DALI's ``decoders.image_slice``, in batches and one thread."""

    def __init__(self, batch: int = 64):
        """Takes the number of images that are decoded together."""
        self._batch = batch

    @functools.cached_property
    def _pipeline(self) -> Any:
        from nvidia import dali

        @dali.pipeline_def(
            batch_size=self._batch, num_threads=1, device_id=None, exec_pipelined=False
        )
        def pipeline() -> Any:
            encoded, start, shape = (
                dali.fn.external_source(name=name) for name in ("encoded", "start", "shape")
            )
            return dali.fn.decoders.image_slice(
                encoded, start, shape, axes=[0, 1], device="cpu", adjust_orientation=False
            )

        built = pipeline()
        built.build()
        return built

    def __call__(self, crops: Sequence[Crop]) -> list[np.ndarray]:
        """Decodes crops."""
        decoded: list[np.ndarray] = []
        for first in range(0, len(crops), self._batch):
            part = crops[first : first + self._batch]
            feeds: dict[str, list[np.ndarray]] = {
                "encoded": [np.frombuffer(encoded, np.uint8) for encoded, _ in part],
                "start": [np.array(box[:2], np.int32) for _, box in part],
                "shape": [np.array(box[2:], np.int32) for _, box in part],
            }
            (images,) = self._pipeline.run(**feeds)
            decoded += [np.array(images[index]) for index in range(len(part))]
        return decoded


def largest_difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> int:
    """Returns the largest difference of two lists of images of the same sizes, levels of 255."""
    return max(
        int(np.abs(one.astype(int) - other).max()) for one, other in zip(ours, theirs, strict=True)
    )


def measure(decode: Decode, crops: Sequence[Crop]) -> dict[str, Any]:
    """Measures the images that a decoder decodes per second of the processor."""
    start = time.process_time()
    decode(crops)
    seconds = time.process_time() - start
    return {"images_per_second": len(crops) / seconds, **machine.describe()}


if __name__ == "__main__":
    main()
