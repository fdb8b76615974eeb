"""The flags by which a command is told the classifier that it works with."""

import argparse
from pathlib import Path

from nfnets_jax.errors import InputError
from nfnets_jax.serving.classifier import Classifier, open_classifier


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds those that ``open_named`` reads."""
    parser.add_argument("--model", help="such as nfnet_f0; a run knows its own")
    parser.add_argument("--weights", help="file, run or URL; the published parameters by default")
    parser.add_argument("--classes", type=Path, help="a file of class names, one a line")
    parser.add_argument("--size", type=int, help="side of the images, pixels")
    parser.add_argument("--precision", default="float32", help="or bfloat16, bfloat16_products")


def open_named(arguments: argparse.Namespace, features: bool = False) -> Classifier:
    """The classifier that the command line names.

    Raises:
      InputError: it cannot be opened, or its classes' names cannot be read.
    """
    return open_classifier(
        arguments.model,
        arguments.weights,
        class_names=_read_names(arguments.classes),
        size=arguments.size,
        precision=arguments.precision,
        features=features,
    )


def _read_names(path: Path | None) -> tuple[str, ...] | None:
    """Class names, one a line; None if there is no file to read."""
    if path is None:
        return None
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise InputError(f"class names in {path} cannot be read: {reason}") from error
