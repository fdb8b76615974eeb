"""Exports a classifier to be run without this repository: as StableHLO, or as ONNX.

    python -m experiments.export nfnet_f0.stablehlo --model=nfnet_f0
    python -m experiments.export digits.onnx --weights=runs/nfnet_digits

The artifact maps pixels, ``[N, H, W, C]`` uint8 of any N, to the logits and the pooled features.
``TARGET.json`` beside it describes the images and the classes. StableHLO runs with jax and
flatbuffers alone:

    jax.export.deserialize(bytearray(open("nfnet_f0.stablehlo", "rb").read())).call(images)

Exit codes: 0; 1, with one line that says why.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfnets_jax.atomic import atomic_write_for_user
from nfnets_jax.errors import InputError
from nfnets_jax.serving.classifier import Classifier
from nfnets_jax.serving.export import export, export_onnx

from . import commands, opening

_FORMATS = {".stablehlo": "StableHLO", ".onnx": "ONNX"}
# Largest error of the artifact's logits, over their standard deviation.
_TOLERANCE = 1e-5


def main() -> None:
    """Exports the classifier of the command line."""
    parser = commands.parser("export", __doc__)
    parser.add_argument("target", type=Path, help=f"file to write: {', '.join(_FORMATS)}")
    opening.add_flags(parser)
    parser.add_argument("--batch", type=int, help="images in a batch; any number by default")
    parser.add_argument("--platforms", default="cpu,cuda,tpu", help="platforms of StableHLO")
    parser.add_argument("--features", action="store_true", help="also the outputs of the stages")
    arguments = parser.parse_args()
    try:
        if arguments.target.suffix not in _FORMATS:
            raise InputError(f"{arguments.target} must end in one of {', '.join(_FORMATS)}")
        if arguments.batch is not None and arguments.batch < 1:
            raise InputError(f"--batch is {arguments.batch}; it takes a number from 1 on")
        classifier = opening.open_named(arguments, arguments.features)
        content = _artifact(classifier, arguments)
        with atomic_write_for_user(arguments.target) as partial:
            partial.write_bytes(content)
        description = arguments.target.with_name(f"{arguments.target.name}.json")
        with atomic_write_for_user(description) as partial:
            partial.write_text(json.dumps(describe(classifier), indent=1) + "\n")
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.target}  {len(content) / 1e6:.1f} MB")
    print(description)


def _artifact(classifier: Classifier, arguments: argparse.Namespace) -> bytes:
    view = classifier.view
    shape = (view.size, view.size, view.channels)
    if arguments.target.suffix == ".onnx":
        return export_onnx(classifier.network, shape, jnp.uint8)
    platforms = arguments.platforms.split(",")
    content = export(
        classifier.network, shape, batch=arguments.batch, dtype=jnp.uint8, platforms=platforms
    )
    if jax.default_backend().replace("gpu", "cuda") in platforms:
        _check(content, classifier, (arguments.batch or 1, *shape))
    return content


def _check(content: bytes, classifier: Classifier, shape: tuple[int, ...]) -> None:
    """Compares the logits of the artifact with those of the classifier."""
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    logits = jax.export.deserialize(bytearray(content)).call(images)["logits"]
    expected = classifier.network(images)["logits"]
    error = float(jnp.max(jnp.abs(logits - expected)) / jnp.std(expected))
    if not error <= _TOLERANCE:
        raise InputError(f"the artifact is wrong by {error:.1e}: please report it as a bug")


def describe(classifier: Classifier) -> dict[str, Any]:
    """Describes the images and the classes for users of the artifact."""
    view = classifier.view
    images = jax.ShapeDtypeStruct((1, view.size, view.size, view.channels), jnp.uint8)
    return {
        "images": {**dataclasses.asdict(view), "dtype": "uint8"},
        "outputs": sorted(jax.eval_shape(classifier.network, images)),
        "classes": classifier.class_names,
    }


if __name__ == "__main__":
    main()
