"""Classifies images: the five likeliest classes of each. Or finds what else a run has learned to.

    python -m experiments.predict photo.jpg --model=nfnet_f0
    python -m experiments.predict photos/ 'more/*.png' --weights=runs/nfnet_cifar10 --json
    python -m experiments.predict photo.jpg --weights=runs/detect_digits --save=drawn
    curl -s URL | python -m experiments.predict - --model=nfnet_f0 --weights=F0_haiku.npz

An IMAGE is a file, a folder, a pattern, or ``-`` for standard input: an image, or paths, one a
line. Exit codes: 0; 1, with one line that says why. An unreadable image does not stop the others.
"""

import glob
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import rich.console
import rich.progress

from nfnets_jax.data.decoding import Picture, Reading
from nfnets_jax.data.sources import IMAGE_SUFFIXES
from nfnets_jax.errors import InputError, UnreadableImageError

from . import classes, commands, opening, process  # noqa: F401, classes answers for classifiers
from .predictors import Answer, Predictor, find_predictor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Phones note how they were held.
_READING = Reading(upright=True)


class InputImage(NamedTuple):
    """An image that is not read yet: a file, or its content."""

    name: str
    image: Path | bytes


def main() -> None:
    """Answers for the images of the command line."""
    parser = commands.parser("predict", __doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    opening.add_flags(parser)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--json", action="store_true", help="one JSON object an image")
    parser.add_argument("--save", type=Path, help="folder for pictures with the answers drawn")
    arguments = parser.parse_args()
    process.keep_freed_memory()
    try:
        if arguments.batch_size < 1:
            raise InputError(f"--batch_size is {arguments.batch_size}; it takes a number from 1 on")
        inputs = list(find(arguments.images))
        predictor = find_predictor(opening.task_of(arguments.weights))(arguments)
        unreadable = 0
        for image, picture, answer in predict(predictor, inputs, arguments.batch_size):
            if picture is None or answer is None:
                unreadable += 1
                continue
            if arguments.json:
                print(json.dumps({"image": image.name, **answer.as_json()}))
            else:
                print("\n".join([image.name, *answer.as_lines()]))
            if arguments.save:
                save(answer.draw(picture), arguments.save, image.name)
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


def predict(
    predictor: Predictor, inputs: Sequence[InputImage], batch_size: int
) -> Iterator[tuple[InputImage, Picture | None, Answer | None]]:
    """Yields each image with the answer; without a picture if it is unreadable.

    Standard error gets a line for each unreadable image, and the progress if there are many images.
    """
    batch_size = min(batch_size, len(inputs))
    console = rich.console.Console(stderr=True)
    starts = rich.progress.track(
        range(0, len(inputs), batch_size),
        "predicting",
        console=console,
        transient=True,
        disable=len(inputs) <= batch_size or not console.is_terminal,
    )
    for start in starts:
        part = inputs[start : start + batch_size]
        pictures: list[Picture | None] = []
        seen: dict[int, np.ndarray] = {}
        for index, image in enumerate(part):
            pictures.append(None)
            try:
                picture = Picture(image.image, image.name, _READING)
                seen[index] = predictor.see(picture)
                pictures[index] = picture
            except UnreadableImageError as error:
                print(f"error: {error}", file=sys.stderr)
        answers: Sequence[Answer] = ()
        if seen:
            # All batches have one size, so that the network is compiled once.
            images = np.zeros((batch_size, *next(iter(seen.values())).shape), np.uint8)
            images[list(seen)] = np.stack(list(seen.values()))
            answers = predictor.answer(images, pictures)
        for index, shown in enumerate(pictures):
            yield part[index], shown, answers[index] if shown else None


def save(figure: "Figure", folder: Path, name: str) -> Path:
    """Saves a drawing as a PNG of the image's name, or of it and a number, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(name).stem}.png"
    number = 2
    while path.exists():
        path = folder / f"{Path(name).stem}-{number}.png"
        number += 1
    figure.savefig(path)
    return path


if __name__ == "__main__":
    main()
