"""Measures how fast images are read, cropped and augmented.

    python -m benchmarks.input_pipeline --dir=PHOTOGRAPHS --size=192 --workers=1 --json

prints one measurement as a line of JSON. PHOTOGRAPHS holds one folder per class. With
``--shorter_side=400`` all of this measures photographs that were shrunk to 400 pixels, as
``experiments.prepare`` shrinks them.

    python -m benchmarks.input_pipeline --data=tfds:cifar10 --dir=TFDS --size=32 --batch=512 \
        --augmentation=small --images=500000 --on_device --json

measures the batches that the device makes of images that it holds.

    python -m benchmarks.input_pipeline --dir=PHOTOGRAPHS --target_rate=5500 \
        --augmentation=nfnet_f0_on_device

prints how many images a second a core reads, decodes and augments, and how many cores are wanted
for an accelerator that takes so many images a second.

    python -m benchmarks.input_pipeline --dir=PHOTOGRAPHS --cifar_dir=TFDS --peer_python=PYTHON

compares settings with each other and with tf.data, alternating in one run, and writes
``input_DEVICE.md``, ``.json`` and ``.png`` to ``benchmarks/results``.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax

from benchmarks import compare, machine
from benchmarks.photographs import shrunk
from nfnets_jax.data.augmentation import Augmentation
from nfnets_jax.data.batch_context import Stream
from nfnets_jax.data.decoding import DECODERS, Picture, Reading
from nfnets_jax.data.examples import TrainExamples
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.data.pipeline import Batches, train_batches
from nfnets_jax.data.reader import Reader
from nfnets_jax.data.resident import ResidentImages, ResidentReader, Stride, obstacle
from nfnets_jax.data.sources import fetch, open_dataset
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
    "nfnet_f0_on_device": {**_NFNET_F0, "on_device": True},
    "nfnet_f0_pairs": {**_NFNET_F0, "mixing": Mixing(0.2, True, mixtures_per_pair=2)},
    "small": {"flip": True, "crop": "pad", "padding": 4},
}
# Batches that the device makes without the host, as the configurations of CIFAR-10 log.
_STRIDE = 25
# Batches that are copied to measure it.
_COPIED = 4


def main() -> None:
    """Takes the measurement, or makes the table, that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", default="", help="photographs, or TFDS's data directory")
    parser.add_argument("--shorter_side", type=int, help="shrink photographs to it first, pixels")
    parser.add_argument("--size", type=int, default=192, help="side of the images, pixels")
    parser.add_argument("--workers", type=int, default=1, help="processes; 0 reads in threads")
    parser.add_argument("--on_device", action="store_true", help="the device holds the images")
    parser.add_argument("--json", action="store_true", help="print one measurement as JSON")
    parser.add_argument("--target_rate", type=float, help="images/s that an accelerator takes")
    parser.add_argument("--data", default="folder", help="folder, tfds:NAME or synthetic")
    parser.add_argument("--augmentation", default="flip", choices=_AUGMENTATIONS)
    parser.add_argument("--decoder", default="auto", choices=DECODERS, help="of JPEGs")
    parser.add_argument("--repeats", type=int, default=1, help="of each image in a batch")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=2000, help="number of images to time")
    parser.add_argument("--cifar_dir", default="", help="data directory of TFDS, for the table")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison")
    parser.add_argument("--peer_python", default=sys.executable, help="a Python with tensorflow")
    parser.add_argument("--out", type=Path, default=compare.RESULTS)
    arguments = parser.parse_args()
    try:
        with shrunk(arguments.dir, arguments.shorter_side) as arguments.dir:
            if arguments.json:
                print(json.dumps(measure(arguments)))
            elif arguments.target_rate is not None:
                print(as_text(measure(arguments), arguments.target_rate))
            else:
                tabulate(arguments)
    except InputError as error:
        sys.exit(str(error))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures images per second once the buffers of the reader are full."""
    dataset = open_dataset(arguments.data, arguments.dir, size=arguments.size)
    augmentation = Augmentation(arguments.size, **_AUGMENTATIONS[arguments.augmentation])
    batches = train_batches(
        dataset.train,
        augmentation,
        arguments.batch,
        seed=0,
        reading=Reading(decoder=arguments.decoder),
        repeats=arguments.repeats,
    )
    count = max(1, arguments.images // arguments.batch)
    measure_batches = _resident if arguments.on_device else _read
    rates = measure_batches(batches, count, arguments.workers)
    return {
        "data": arguments.data,
        "size": arguments.size,
        "batch": arguments.batch,
        "on_device": arguments.on_device,
        "workers": arguments.workers,
        "augmentation": arguments.augmentation,
        "decoder": arguments.decoder,
        "repeats": arguments.repeats,
        "images_per_second": arguments.batch / rates["seconds"],
        "decoded_per_second": arguments.batch * augmentation.images_per_example / rates["seconds"],
        **rates,
        "images_per_second_and_core": stages(batches),
        **machine.describe(),
    }


def _read(batches: Batches, count: int, workers: int) -> dict[str, float]:
    """Measures batches that the host reads.

    Returns:
      Seconds a batch; this process's processor time an image, which only passes batches on if
      others read; and the same for one copy of them, as a transfer to a device makes.
    """
    with contextlib.closing(Reader(batches, num_workers=workers)) as reader:
        for _ in itertools.islice(reader, 2 * (workers + 2)):
            pass
        start, processor = time.perf_counter(), time.process_time()
        for _ in itertools.islice(reader, count):
            pass
        seconds = time.perf_counter() - start
        processor = time.process_time() - processor
        held = [next(reader)["image"] for _ in range(_COPIED)]
    copy = np.ones_like(held[0])
    start = time.thread_time()
    for images in held:
        np.copyto(copy, images)
    copying = time.thread_time() - start
    return {
        "seconds": seconds / count,
        "own_seconds_per_image": processor / (count * batches.local_size),
        "copy_seconds_per_image": copying / (_COPIED * batches.local_size),
    }


def _resident(batches: Batches, count: int, workers: int) -> dict[str, float]:
    """Measures batches that one device makes of images that it holds, where nothing is copied."""
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
    start, processor = time.perf_counter(), time.process_time()
    strides = max(1, count // reader.longest_stride)
    for _ in range(strides):
        made.append(make(reader.take(reader.longest_stride)[1]))
        jax.block_until_ready(made.pop(0))  # The next one is queued.
    jax.block_until_ready(made)
    made_batches = strides * reader.longest_stride
    return {
        "seconds": (time.perf_counter() - start) / made_batches,
        "own_seconds_per_image": (time.process_time() - processor)
        / (made_batches * batches.local_size),
        "copy_seconds_per_image": 0.0,
    }


def stages(batches: Batches, rounds: int = 9) -> dict[str, float]:
    """Measures images per second of one core's time in each stage: the median of some batches."""
    examples = batches.examples
    assert isinstance(examples, TrainExamples)
    found: dict[str, list[float]] = {"reading": [], "decoding": [], "augmenting": []}
    for index in range(rounds + 1):  # The first one fills caches.
        indices = index * batches.batch_size + np.arange(batches.batch_size)
        positions = examples.records(indices)
        begin = time.process_time()
        pictures = []
        for record in fetch(examples.source, positions.tolist()):
            image = record["image"]
            content = image.read_bytes() if isinstance(image, Path) else image
            pictures.append((content, record["name"]))
        read = time.process_time()
        context = examples.context(indices)
        images = np.stack(
            [
                examples.transform.decode(
                    Picture(*picture, examples.reading), context.rng(i, Stream.CROP)
                )
                for i, picture in enumerate(pictures)
            ]
        )
        decoded = time.process_time()
        examples.transform.augment(images, context)
        times = (read - begin, decoded - read, time.process_time() - decoded)
        for values, seconds in zip(found.values(), times, strict=True):
            values.append(max(seconds, 1e-9) / len(indices))
    return {stage: 1 / statistics.median(values[1:]) for stage, values in found.items()}


def as_text(figures: dict[str, Any], target_rate: float) -> str:
    """Describes the stages, and the cores that an accelerator of ``target_rate`` images/s wants."""
    rates, own = figures["images_per_second_and_core"], figures["own_seconds_per_image"]
    copying = figures["copy_seconds_per_image"]
    lines = [f"{stage}: {rate:,.0f} images/s on a core" for stage, rate in rates.items()]
    seconds = {stage: 1 / rate for stage, rate in rates.items()}
    working = target_rate * sum(seconds.values())
    share = 1 - seconds["augmenting"] / sum(seconds.values())
    lines.append(f"all of it: {share:.1%} of the speed of reading and decoding alone")
    lines.append(
        f"measured: {figures['images_per_second']:,.0f} images/s, {figures['workers']} workers"
    )
    if not figures["workers"]:
        return "\n".join([*lines, f"{target_rate:,.0f} images/s want {working:.1f} cores"])
    passing = target_rate * (own + copying)
    return "\n".join(
        [
            *lines,
            f"the program's own process: {own * 1000:.1%} of a core for 1,000 images/s, and "
            f"{copying * 1000:.1%} for one copy of them, as a transfer makes",
            f"{target_rate:,.0f} images/s want {working + passing:.1f} cores: {working:.1f} for "
            f"workers, {passing:.1f} for the program's own process",
        ]
    )


def tabulate(arguments: argparse.Namespace) -> None:
    """Measures the two sides of each comparison in turn and writes the table."""
    if not arguments.dir:
        raise InputError("no --dir: it takes a folder of one folder of photographs per class")
    command = [sys.executable, "-m", "benchmarks.input_pipeline", "--json"]
    shape = [f"--size={arguments.size}", f"--batch={arguments.batch}"]
    amount, longer = (f"--images={number}" for number in (arguments.images, 3 * arguments.images))
    ours = [*command, f"--dir={arguments.dir}", *shape, amount, f"--decoder={arguments.decoder}"]
    augmented, pair = [*ours, "--augmentation=nfnet_f0"], [*ours, "--workers=2"]
    twice, repeated = [*ours, "--augmentation=nfnet_f0_pairs"], [*augmented, "--repeats=4"]
    commands = {
        "F0, augmented on the host, with two mixtures of each pair, over one": (twice, augmented),
        "the same with each image four times in a batch, over once": (repeated, augmented),
        # Two read faster, so a time as long as the others' takes more images.
        "two processes, over one": ([*pair, longer], [*ours, longer]),
    }
    # What is decoded is compared: F0 as published makes one image of two.
    decoded = {
        f"images decoded for F0, augmented on the {where}, one process, over crop and flip alone": (
            [*ours, f"--augmentation={augmentation}"],
            ours,
        )
        for where, augmentation in {"device": "nfnet_f0_on_device", "host": "nfnet_f0"}.items()
    }
    keys = ("size", "batch", "shorter_side", "decoder")
    conditions = {key: getattr(arguments, key) for key in keys}
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
            name: compare.Comparison(*pair, arguments.rounds, figure)
            for figure, pairs in {
                "images_per_second": commands,
                "decoded_per_second": decoded,
            }.items()
            for name, pair in pairs.items()
        },
        conditions,
        arguments.out / "input",
    )


if __name__ == "__main__":
    main()
