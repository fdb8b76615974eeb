"""Classifies images: the five likeliest classes of each.

    python -m experiments.predict photo.jpg --model=nfnet_f0
    python -m experiments.predict photos/ 'more/*.png' --weights=runs/nfnet_cifar10 --json
    curl -s URL | python -m experiments.predict - --model=nfnet_f0 --weights=F0_haiku.npz

An IMAGE is a file, a folder, a pattern, or ``-`` for standard input: an image, or paths, one a
line. Exit codes: 0; 1, with one line that says why. An unreadable image does not stop the others.
"""

import glob
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rich.console
import rich.progress

from nfnets_jax.data.decoding import Picture, Reading
from nfnets_jax.data.sources import IMAGE_SUFFIXES
from nfnets_jax.errors import InputError, UnreadableImageError
from nfnets_jax.serving.classifier import Classifier

from . import commands, opening, process

_TOP = 5
# Phones note how they were held.
_READING = Reading(upright=True)


class Prediction(NamedTuple):
    """A class and its probability."""

    label: int
    name: str
    probability: float


class InputImage(NamedTuple):
    """An image that is not read yet: a file, or its content."""

    name: str
    image: Path | bytes


def main() -> None:
    """Classifies the images of the command line."""
    parser = commands.parser("predict", __doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    opening.add_flags(parser)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--json", action="store_true", help="one JSON object an image")
    parser.add_argument("--save", type=Path, help="folder for pictures with the classes drawn")
    arguments = parser.parse_args()
    process.keep_freed_memory()
    try:
        if arguments.batch_size < 1:
            raise InputError(f"--batch_size is {arguments.batch_size}; it takes a number from 1 on")
        inputs = list(find(arguments.images))
        classifier = opening.open_named(arguments)
        unreadable = 0
        for image, picture, classes in classify(classifier, inputs, arguments.batch_size):
            if picture is None:
                unreadable += 1
                continue
            print(as_json(image, classes) if arguments.json else as_table(image, classes))
            if arguments.save:
                draw(picture, classes, arguments.save, image.name)
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or 'output'}: {error.strerror}")
    sys.exit(1 if unreadable else 0)


def find(arguments: Iterable[str]) -> Iterator[InputImage]:
    """Finds the images that the arguments name.

    Raises:
      InputError: an argument names no image.
    """
    for argument in arguments:
        path = Path(argument)
        if argument == "-":
            yield from _standard_input()
        elif path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not files:
                raise InputError(f"no images in {path}: {', '.join(sorted(IMAGE_SUFFIXES))} files")
            yield from (InputImage(str(file), file) for file in files)
        elif path.is_file():
            yield InputImage(argument, path)
        elif files := [Path(name) for name in sorted(glob.glob(argument, recursive=True))]:
            yield from (InputImage(str(file), file) for file in files if file.is_file())
        else:
            raise InputError(f"no such image: {argument}")


def _standard_input() -> Iterator[InputImage]:
    content = sys.stdin.buffer.read()
    try:
        lines = content.decode("utf-8").split("\n") if b"\0" not in content else None
    except UnicodeDecodeError:
        lines = None
    if lines is None:
        yield InputImage("standard input", content)
        return
    paths = [line.strip() for line in lines if line.strip() not in ("", "-")]
    if not paths:
        raise InputError("nothing on standard input: it takes an image, or paths, one a line")
    yield from find(paths)


def classify(
    classifier: Classifier, inputs: Sequence[InputImage], batch_size: int
) -> Iterator[tuple[InputImage, Picture | None, list[Prediction]]]:
    """Yields each image with its likeliest classes; without a picture if it is unreadable.

    Standard error gets a line for each unreadable image, and the progress if there are many images.
    """
    batch_size = min(batch_size, len(inputs))
    console = rich.console.Console(stderr=True)
    starts = rich.progress.track(
        range(0, len(inputs), batch_size),
        "classifying",
        console=console,
        transient=True,
        disable=len(inputs) <= batch_size or not console.is_terminal,
    )
    for start in starts:
        part = inputs[start : start + batch_size]
        size = classifier.view.size
        images = np.zeros((batch_size, size, size, classifier.view.channels), np.uint8)
        pictures: list[Picture | None] = []
        for index, image in enumerate(part):
            try:
                picture = Picture(image.image, image.name, _READING)
                images[index] = classifier.view(picture)
            except UnreadableImageError as error:
                print(f"error: {error}", file=sys.stderr)
                pictures.append(None)
            else:
                pictures.append(picture)
        if any(pictures):
            probabilities = classifier(images)
        for index, shown in enumerate(pictures):
            classes = likeliest(classifier, probabilities[index]) if shown else []
            yield part[index], shown, classes


def likeliest(classifier: Classifier, probabilities: np.ndarray) -> list[Prediction]:
    """Returns the few likeliest of ``[num_classes]`` probabilities, the largest first."""
    order = np.argsort(-probabilities, kind="stable")[:_TOP].tolist()
    return [Prediction(k, classifier.name(k), float(probabilities[k])) for k in order]


def as_table(image: InputImage, classes: Sequence[Prediction]) -> str:
    """Formats the image's name, and below it a line a class."""
    return "\n".join([image.name, *(f"  {c.probability:7.2%}  {c.name}" for c in classes)])


def as_json(image: InputImage, classes: Sequence[Prediction]) -> str:
    """Formats one line of JSON."""
    return json.dumps({"image": image.name, "classes": [c._asdict() for c in classes]})


def draw(picture: Picture, classes: Sequence[Prediction], folder: Path, name: str) -> Path:
    """Saves the picture with its classes as a PNG of the same name, and returns its path."""
    from matplotlib.figure import Figure  # It takes a second to import.

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9, 4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    pixels = picture.pixels()
    left.imshow(pixels, cmap="gray" if pixels.shape[2] == 1 else None)
    left.set_axis_off()
    places = range(len(classes))[::-1]
    right.barh(places, [c.probability for c in classes])
    right.set_yticks(places, [c.name for c in classes], parse_math=False)
    right.set(xlim=(0, 1), xlabel="probability")
    path = folder / f"{Path(name).stem}.png"
    number = 2
    while path.exists():
        path = folder / f"{Path(name).stem}-{number}.png"
        number += 1
    figure.savefig(path)
    return path


if __name__ == "__main__":
    main()
