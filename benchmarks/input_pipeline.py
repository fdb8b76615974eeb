"""Measures how fast images are read, cropped and augmented.

    python -m benchmarks.input_pipeline --dir=PHOTOGRAPHS --size=192 --workers=1 --json

prints one measurement as a line of JSON. PHOTOGRAPHS holds one folder per class.

    python -m benchmarks.input_pipeline --data=tfds:cifar10 --dir=TFDS --size=32 --batch=512 \
        --augmentation=small --images=500000 --on_device --json

measures the batches that the device makes of images that it holds.

    python -m benchmarks.input_pipeline --dir=PHOTOGRAPHS --cifar_dir=TFDS --peer_python=PYTHON

compares settings with each other and with tf.data, alternating in one run, and writes
``input_DEVICE.md``, ``.json`` and ``.png`` to ``benchmarks/results``.
"""

import argparse
import contextlib
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
from jax import lax

from benchmarks import compare, machine
from nfnets_jax.data.augmentation import Augmentation
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.data.pipeline import Batches, train_batches
from nfnets_jax.data.reader import Reader
from nfnets_jax.data.resident import ResidentImages, ResidentReader, Stride, obstacle
from nfnets_jax.data.sources import open_dataset
from nfnets_jax.errors import InputError

_NFNET_F0 = {
    "flip": True,
    "mixing": Mixing(0.2, True),
    "randaugment_layers": 4,
    "randaugment_magnitude": 5,
}
_AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "flip": {"flip": True},
    "nfnet_f0": _NFNET_F0,
    "nfnet_f0_pairs": {**_NFNET_F0, "mixing": Mixing(0.2, True, mixtures_per_pair=2)},
    "small": {"flip": True, "crop": "pad", "padding": 4},
}
# Batches that the device makes without the host, as the configurations of CIFAR-10 log.
_STRIDE = 25


def main() -> None:
    """Takes the measurement, or makes the table, that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", default="", help="photographs, or TFDS's data directory")
    parser.add_argument("--size", type=int, default=192, help="side of the images, pixels")
    parser.add_argument("--workers", type=int, default=1, help="processes; 0 reads in threads")
    parser.add_argument("--on_device", action="store_true", help="the device holds the images")
    parser.add_argument("--json", action="store_true", help="print one measurement as JSON")
    parser.add_argument("--data", default="folder", help="folder, tfds:NAME or synthetic")
    parser.add_argument("--augmentation", default="flip", choices=_AUGMENTATIONS)
    parser.add_argument("--repeats", type=int, default=1, help="of each image in a batch")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=2000, help="number of images to time")
    parser.add_argument("--cifar_dir", default="", help="data directory of TFDS, for the table")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison")
    parser.add_argument("--peer_python", default=sys.executable, help="a Python with tensorflow")
    parser.add_argument("--out", type=Path, default=compare.RESULTS)
    arguments = parser.parse_args()
    try:
        if arguments.json:
            print(json.dumps(measure(arguments)))
        else:
            tabulate(arguments)
    except InputError as error:
        sys.exit(str(error))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures images per second once the buffers of the reader are full."""
    dataset = open_dataset(arguments.data, arguments.dir, size=arguments.size)
    augmentation = Augmentation(arguments.size, **_AUGMENTATIONS[arguments.augmentation])
    batches = train_batches(
        dataset.train, augmentation, arguments.batch, seed=0, repeats=arguments.repeats
    )
    count = max(1, arguments.images // arguments.batch)
    seconds = (_resident if arguments.on_device else _read)(batches, count, arguments.workers)
    return {
        "data": arguments.data,
        "size": arguments.size,
        "batch": arguments.batch,
        "on_device": arguments.on_device,
        "workers": arguments.workers,
        "augmentation": arguments.augmentation,
        "repeats": arguments.repeats,
        "seconds": seconds,
        "images_per_second": arguments.batch / seconds,
        **machine.describe(),
    }


def _read(batches: Batches, count: int, workers: int) -> float:
    """Returns the seconds a batch that the host reads."""
    with contextlib.closing(Reader(batches, num_workers=workers)) as reader:
        for _ in itertools.islice(reader, 2 * (workers + 2)):
            pass
        start = time.perf_counter()
        for _ in itertools.islice(reader, count):
            pass
        return (time.perf_counter() - start) / count


def _resident(batches: Batches, count: int, workers: int) -> float:
    """Returns the seconds a batch that one device makes of images that it holds, draws included."""
    del workers
    if why_not := obstacle(batches):
        raise InputError(f"--on_device: {why_not}")

    def make(stride: Stride) -> Any:
        # Each batch is written over the one before.
        return lax.fori_loop(0, stride.count[0], lambda i, _: stride.batch(i), stride.batch(0))

    make = jax.pmap(make, devices=jax.devices()[:1])
    reader = ResidentReader(ResidentImages(batches), jax.devices()[:1], 0, min(count, _STRIDE))
    made = [make(reader.take(reader.longest_stride)[1])]
    jax.block_until_ready(made)
    start = time.perf_counter()
    strides = max(1, count // reader.longest_stride)
    for _ in range(strides):
        made.append(make(reader.take(reader.longest_stride)[1]))
        jax.block_until_ready(made.pop(0))  # The next one is queued.
    jax.block_until_ready(made)
    return (time.perf_counter() - start) / (strides * reader.longest_stride)


def tabulate(arguments: argparse.Namespace) -> None:
    """Measures the two sides of each comparison in turn and writes the table."""
    if not arguments.dir:
        raise InputError("no --dir: it takes a folder of one folder of photographs per class")
    command = [sys.executable, "-m", "benchmarks.input_pipeline", "--json"]
    shape = [f"--size={arguments.size}", f"--batch={arguments.batch}"]
    amount = f"--images={arguments.images}"
    ours = [*command, f"--dir={arguments.dir}", *shape, amount]
    augmented, pair = [*ours, "--augmentation=nfnet_f0"], [*ours, "--workers=2"]
    twice, repeated = [*ours, "--augmentation=nfnet_f0_pairs"], [*augmented, "--repeats=4"]
    commands = {
        "RandAugment 4 x 5, MixUp and CutMix, one process, over without": (augmented, ours),
        "the same with two mixtures of each pair, over one": (twice, augmented),
        "the same with each image four times in a batch, over once": (repeated, augmented),
        "two processes, over one": (pair, ours),
    }
    conditions = {"size": arguments.size, "batch": arguments.batch}
    try:
        script, versions = compare.peer(
            "tfdata_pipeline.py", arguments.peer_python, ("tensorflow",)
        )
    except compare.CommandError as error:
        print(f"no comparison with tf.data: {error}", flush=True)
    else:
        conditions.update(versions)
        theirs = [arguments.peer_python, str(script), arguments.dir, *shape, amount, "--threads=1"]
        name = "decoding, random crop, flip, one process, over tf.data with one thread"
        commands = {name: (ours, theirs), **commands}
    if arguments.cifar_dir:
        small = [*command, "--data=tfds:cifar10", f"--dir={arguments.cifar_dir}", "--size=32"]
        small += ["--batch=512", "--augmentation=small", "--images=500000"]
        name = "CIFAR-10, batches of 512, shift and flip, in threads, over one process"
        commands[name] = ([*small, "--workers=0"], small)
    compare.measure(
        {
            name: compare.Comparison(*pair, arguments.rounds, "images_per_second")
            for name, pair in commands.items()
        },
        conditions,
        arguments.out / "input",
    )


if __name__ == "__main__":
    main()
