"""Evaluates a classifier on a folder of images, or a split of a TFDS dataset or Parquet files.

    python -m experiments.evaluate --model=nfnet_f0 --data.dir=imagenet/val
    python -m experiments.evaluate --model=nfnet_f0 --data.dir=val --data.labels=val.csv
    python -m experiments.evaluate --weights=runs/nfnet_cifar10 --data.split=test --json

It prints top-1, top-5, the accuracy of each class, the expected calibration error, and images a
second, and says which parameters it took. A run knows its model and its data. ``--confusion`` takes
a folder, or the start of a path, and writes the confusion matrix as ``.csv`` and ``.png``. Exit
codes: 0; 1, with one line that says why.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import rich.console
import rich.progress

from nfnets_jax.atomic import check_writable
from nfnets_jax.data.pipeline import eval_batches
from nfnets_jax.data.read_errors import ReadErrors, check_readable
from nfnets_jax.data.reader import Reader
from nfnets_jax.data.sources import Source, open_split
from nfnets_jax.errors import InputError, WorkerError, nearest
from nfnets_jax.ranges import WORKERS
from nfnets_jax.serving.classifier import Classifier
from nfnets_jax.serving.confusion import draw_confusion, write_confusion_table
from nfnets_jax.serving.metrics import Accuracy
from nfnets_jax.weights import hub
from nfnets_jax.weights.run import read_run

from . import commands, opening, process

# How many classes the text shows, those with the lowest accuracy.
_WORST = 5


def main() -> None:
    """Evaluates what the command line names."""
    parser = commands.parser("evaluate", __doc__)
    opening.add_flags(parser)
    parser.add_argument(
        "--data.name", dest="name", help="folder, parquet, tfds:NAME, digits, synthetic"
    )
    parser.add_argument("--data.dir", dest="dir", default="", help="as of a run")
    parser.add_argument("--data.labels", dest="labels", default="", help="a file of FILE,CLASS")
    parser.add_argument("--data.split", dest="split", default="", help="such as validation")
    parser.add_argument("--data.num_workers", dest="workers", default="auto")
    parser.add_argument("--data.max_unreadable", dest="max_unreadable", type=float, default=0.001)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--confusion", type=Path, help="write a confusion matrix: folder or prefix")
    parser.add_argument("--json", action="store_true", help="one JSON object, with every class")
    arguments = parser.parse_args()
    process.keep_freed_memory()
    try:
        if arguments.batch_size < 1:
            raise InputError(f"--batch_size is {arguments.batch_size}; it takes a number from 1 on")
        if arguments.workers not in WORKERS:
            raise InputError(f"--data.num_workers is {arguments.workers}; it takes {WORKERS}")
        table, picture = _confusion_files(arguments.confusion)
        arguments.weights = arguments.weights and hub.local(arguments.weights)
        source, names = _data(arguments)
        classifier = opening.open_named(arguments)
        labels = label_map(names, classifier)
        figures, confusion = evaluate(
            classifier,
            source,
            labels,
            arguments.batch_size,
            workers=WORKERS.parse(arguments.workers),
            max_unreadable=arguments.max_unreadable,
        )
        if table and picture:
            known = [classifier.name(label) for label in range(classifier.num_classes)]
            write_confusion_table(table, confusion, known)
            draw_confusion(picture, confusion, known)
    except (InputError, WorkerError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(figures) if arguments.json else as_text(figures))
    if table and not arguments.json:
        print(f"{table}\n{picture}")


def _confusion_files(prefix: Path | None) -> tuple[Path | None, Path | None]:
    """Returns the paths of the confusion matrix's table and picture, none without a prefix.

    Raises:
      InputError: one of them cannot be written.
    """
    if prefix is None:
        return None, None
    if prefix.is_dir():
        prefix /= "confusion"
    name = prefix.stem if prefix.suffix in (".csv", ".png") else prefix.name
    table, picture = prefix.with_name(f"{name}.csv"), prefix.with_name(f"{name}.png")
    check_writable(table)
    check_writable(picture)
    return table, picture


def _data(arguments: argparse.Namespace) -> tuple[Source, tuple[str, ...]]:
    """Returns the images and their class names: those of the flags, or else the run's own."""
    name, directory, labels = arguments.name, arguments.dir, arguments.labels
    if not name and not directory and opening.is_run(arguments.weights):
        data = read_run(Path(arguments.weights)).config["data"]
        name, size = data["name"], data["test_image_size"]
        tested = "test_" if data["test_dir"] else ""
        directory = data[f"{tested}dir"]
        labels = labels or data.get(f"{tested}labels", "")  # Older runs have none.
        return open_split(name, directory, arguments.split, size, labels=labels)
    size = arguments.size or 32
    return open_split(name or "folder", directory, arguments.split, size, labels=labels)


def label_map(names: Sequence[str], classifier: Classifier) -> np.ndarray:
    """Returns the classifier's labels ``[K]`` for those of the data, matched by name.

    Where the classifier has no names, those of the data may be its labels, from 0 on.

    Raises:
      InputError: the data have classes that the classifier does not know, or knows several of the
        same name.
    """
    if classifier.class_names is None:
        if all(name.isdecimal() and int(name) < classifier.num_classes for name in names):
            return np.array([int(name) for name in names])
        if len(names) != classifier.num_classes:
            raise InputError(
                f"the data have {len(names)} classes and the classifier {classifier.num_classes}, "
                "whose names are not known: give --classes, a file of names, one a line"
            )
        return np.arange(len(names))
    places = {name: label for label, name in enumerate(classifier.class_names)}
    if len(places) < classifier.num_classes:
        twice = next(n for n in places if classifier.class_names.count(n) > 1)
        raise InputError(
            f"several classes are called {twice!r}, and images are matched by name: give "
            "--classes, a file of other names, one a line"
        )
    unknown = [name for name in names if name not in places]
    if unknown:
        more = f" and {len(unknown) - 1} more" if unknown[1:] else ""
        raise InputError(
            f"the classifier does not know the class {unknown[0]!r}{more}; "
            f"{nearest(unknown[0], classifier.class_names[:20])}"
        )
    return np.array([places[name] for name in names])


def evaluate(
    classifier: Classifier,
    source: Source,
    labels: np.ndarray,
    batch_size: int,
    *,
    workers: int | Literal["auto"] = 0,
    max_unreadable: float = 0.001,
) -> tuple[dict[str, Any], np.ndarray]:
    """Evaluates a classifier on all images of a source.

    Args:
      classifier: the classifier.
      source: images and labels.
      labels: as ``label_map`` returns them.
      batch_size: over all devices.
      workers: processes that read images, as ``Reader`` takes them.
      max_unreadable: share of unreadable images above which the evaluation ends.

    Returns:
      The figures: ``Accuracy.summary``; ``parameters``, as ``Classifier`` has it;
      ``images_per_second``, without the first batch, which compiles (None if there is no other);
      ``unreadable``; and ``classes``: ``{name: {"top1", "examples"}}``. And the confusion matrix,
      ``Accuracy.confusion``.

    Raises:
      InputError: too many images cannot be read, or all of the first few.
      WorkerError: processes that read images keep dying.
    """
    check_readable(source)
    console = rich.console.Console(stderr=True)
    errors = ReadErrors("images", len(source), max_unreadable, _warn)
    accuracy = Accuracy(classifier.num_classes)
    batches = eval_batches(source, classifier.view, classifier.view.channels, batch_size)
    begun: tuple[float, int] | None = None
    with contextlib.closing(Reader(batches, 0, workers, warn=_warn)) as reader:
        for batch in rich.progress.track(
            reader,
            "evaluating",
            total=batches.count,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ):
            errors.add(batch["unreadable"])
            counted = batch["mask"] > 0
            probabilities = classifier(batch["image"])
            accuracy.add(probabilities[counted], labels[batch["label"][counted]])
            begun = begun or (time.monotonic(), accuracy.examples)
    seconds, rest = 0.0, 0
    if begun:
        seconds, rest = time.monotonic() - begun[0], accuracy.examples - begun[1]
    figures = {
        **accuracy.summary(),
        "parameters": classifier.parameters,
        "images_per_second": round(rest / seconds, 1) if rest else None,
        "device": f"{len(classifier.devices)} x {jax.devices()[0].device_kind}",
        "unreadable": len(errors.messages),
        "classes": {
            classifier.name(label): {"top1": top1, "examples": examples}
            for label, (top1, examples) in accuracy.per_class().items()
        },
    }
    return figures, accuracy.confusion


def as_text(figures: dict[str, Any]) -> str:
    """Formats the figures, with the few worst classes."""
    rate = figures["images_per_second"]
    lines = [
        f"top-1 {figures['top1']:.2%}  top-5 {figures['top5']:.2%}  "
        f"ECE {figures['ece']:.2%}  {figures['examples']} images  "
        f"parameters: {figures['parameters']}",
        f"{rate} images/s, {figures['device']}" if rate else "one batch: no rate",
    ]
    worst = sorted(figures["classes"].items(), key=lambda item: item[1]["top1"])[:_WORST]
    lines += [f"  {c['top1']:7.2%} of {c['examples']:5}  {name}" for name, c in worst]
    return "\n".join(lines)


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
