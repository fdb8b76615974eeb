"""The flags that name a classifier, and how a command opens it."""

import argparse
from pathlib import Path
from typing import Any

from nfnets_jax.errors import InputError
from nfnets_jax.serving.classifier import Classifier, open_classifier
from nfnets_jax.weights import hub
from nfnets_jax.weights.downloading import is_url
from nfnets_jax.weights.run import read_run

from . import cifar10  # noqa: F401, runs of nf_convnet may lack the field that imports it
from .projects import import_projects


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that ``open_named`` reads."""
    parser.add_argument("--model", help="such as nfnet_f0; a run knows its own")
    parser.add_argument("--weights", help="file, run or URL; the published parameters by default")
    parser.add_argument("--classes", type=Path, help="a file of class names, one a line")
    parser.add_argument("--raw", action="store_true", help="a run's last parameters, unaveraged")
    parser.add_argument("--size", type=int, help="side of the images, pixels")
    parser.add_argument("--precision", default="float32", help="or bfloat16, tensorfloat32")


def open_named(arguments: argparse.Namespace, features: bool = False) -> Classifier:
    """Opens the classifier that the command line names.

    Raises:
      InputError: it cannot be opened, or the names of its classes cannot be read.
    """
    if arguments.size is not None and arguments.size < 1:
        raise InputError(f"--size is {arguments.size}; it takes a number from 1 on")
    arguments.weights = arguments.weights and hub.local(arguments.weights)
    find_model(arguments.model, arguments.weights)
    if (task := task_of(arguments.weights)) != "classification":
        raise InputError(f"{arguments.weights} is a run of {task}, and no classifier")
    if arguments.raw and not is_run(arguments.weights):
        raise InputError("--raw takes the last parameters of a run, and --weights names no run")
    return open_classifier(
        arguments.model,
        arguments.weights,
        class_names=read_class_names(arguments.classes),
        size=arguments.size,
        precision=arguments.precision,
        features=features,
        average=not arguments.raw,
    )


def task_of(weights: str | None) -> str:
    """Returns the task that the weights were trained for, the projects of a run imported.

    Raises:
      InputError: the weights cannot be read.
    """
    local = weights and hub.local(weights)
    if local is None or not is_run(local):
        return "classification"
    model_of_run(local)
    return read_run(Path(local)).config.get("task", {}).get("name", "classification")


def find_model(model: str | None, weights: str | None) -> dict[str, Any]:
    """Returns the settings of the model of ``--model`` and ``--weights``, its projects imported.

    Raises:
      InputError: there are no such weights, no model is named, or a run cannot be read.
    """
    settings = model_of_run(weights)
    if settings or model:
        return settings or {"name": model}
    if _is_missing(weights):
        raise InputError(f"no such weights: {weights}")
    raise InputError("no model is named: give --model, such as nfnet_f0")


def is_run(weights: str | None) -> bool:
    """Returns whether ``--weights`` names the folder of a run."""
    return weights is not None and Path(weights).is_dir()


def _is_missing(weights: str | None) -> bool:
    return weights is not None and not is_url(weights) and not Path(weights).exists()


def model_of_run(weights: str | None) -> dict[str, Any]:
    """Returns the settings of a run's model, its projects imported; {} if it is not a run.

    Raises:
      InputError: the run or a module that it imports cannot be read.
    """
    if weights is None or not is_run(weights):
        return {}
    config = read_run(Path(weights)).config
    import_projects(config.get("imports", ()))
    return dict(config["model"])


def read_class_names(path: Path | None) -> tuple[str, ...] | None:
    """Returns class names, one a line of a file; None without a file.

    Raises:
      InputError: they cannot be read.
    """
    if path is None:
        return None
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"class names in {path} cannot be read: {reason}") from error
