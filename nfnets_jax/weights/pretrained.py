"""Loads parameters and class names: published files, runs of this repository, ours, timm's."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import Model, create_model
from nfnets_jax.weights import files, hub
from nfnets_jax.weights.checking import (
    check,
    check_class_names,
    count_channels,
    count_classes,
    shapes_of,
)
from nfnets_jax.weights.downloading import download, is_url
from nfnets_jax.weights.published import Tree
from nfnets_jax.weights.run import read_params, read_run
from nfnets_jax.weights.timm_names import from_timm

# F6 was trained with SAM (Foret et al. 2021, arXiv:2010.01412).
PUBLISHED: Mapping[str, str] = MappingProxyType(
    {
        f"nfnet_f{index}": f"https://storage.googleapis.com/dm-nfnets/F{index}_haiku.npz"
        for index in range(7)
    }
)

# The key of the metadata of ``.safetensors``, and the most characters of its value.
_CLASS_NAMES = "class_names"
_LONGEST_NAMES = 2**22


def load_pretrained(
    name: str,
    path_or_url: str | Path | None = None,
    *,
    num_classes: int | None = None,
    average: bool = True,
    sha256: str | None = None,
    seed: int = 0,
    **overrides: Any,
) -> Tree:
    """Loads parameters for ``create_model(name, num_classes)`` and checks them against it.

    Nothing in a file runs: the reader of pickles knows arrays and mappings alone.

    Args:
      name: of the model.
      path_or_url: a published file, a ``.safetensors`` of ``save_pretrained``, a state dict of timm
        in ``.safetensors`` or ``.pth``, the workdir of a run or one of its ``checkpoints``; the
        URL of a file, which is downloaded once, to ``$NFNETS_CACHE`` or ``~/.cache/nfnets_jax``;
        or ``hf://OWNER/NAME``, or ``hf://OWNER/NAME@REVISION``, of the Hugging Face hub.
        None is the file that DeepMind published for the model.
      num_classes: of the model; None takes the number that the file has, 0 without a classifier. 0
        leaves the classifier out. If the numbers differ otherwise, the classifier is new, and a
        line on standard error says so.
      average: whether to take a run's moving average of the parameters, not the last ones.
      sha256: hexadecimal digest that the file of a URL must have.
      seed: of a new classifier.
      **overrides: as for ``create_model``, where they change shapes.

    Returns:
      ``{module: {parameter: float32 NumPy array}}``.

    Raises:
      InputError: no such model or file, a file that is damaged or would run code, one for another
        model (the message lists what is missing, unexpected or of another shape), or one with
        values that are not finite.
    """
    # A wrong name or number ends before a download starts.
    create_model(name, num_classes or 0, **overrides)
    model = create_model(name, **overrides)
    if path_or_url is None:
        if name not in PUBLISHED:
            raise InputError(
                f"no parameters of {name} were published, but of {', '.join(PUBLISHED)}: give a "
                "file or a run"
            )
        path_or_url = PUBLISHED[name]
    source = str(path_or_url)
    if sha256 and hub.is_hub(source):
        raise InputError(f"sha256 goes with a URL; {source}@COMMIT is always the same files")
    path = download(source, sha256=sha256) if is_url(source) else Path(hub.local(source))
    tree = _read(path, average, model)
    found, channels = count_classes(model, tree), count_channels(model, tree)
    model = create_model(name, found, **overrides)
    tree = check(source, tree, shapes_of(model, channels))
    if num_classes is None or num_classes == found:
        return tree
    if num_classes:
        print(
            f"{source} has {found or 'no'} classes, not {num_classes}: the classifier is new, the "
            "rest is kept",
            file=sys.stderr,
        )
    _, params = model.reset_classifier(tree, num_classes, jax.random.key(seed))
    return jax.tree.map(np.asarray, params)


def save_pretrained(
    path: str | Path,
    params: Mapping[str, Mapping[str, Any]],
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes parameters ``{module: {parameter: array}}`` as ``.safetensors``, all or nothing.

    The name of an array is ``MODULE/PARAMETER``.

    Args:
      path: of the file.
      params: the parameters.
      class_names: in the order of the labels, for ``load_class_names``; None writes none.

    Raises:
      InputError: the path has another suffix, or cannot be written; or the names are not such as
        ``load_class_names`` takes.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path} must end in .safetensors")
    files.write_safetensors(path, files.flatten(params), class_names_metadata(class_names))


def class_names_metadata(class_names: Sequence[str] | None) -> dict[str, str]:
    """Returns the metadata of a ``.safetensors`` file that hold class names, empty for None.

    Raises:
      InputError: the names are not such as ``load_class_names`` takes.
    """
    if class_names is None:
        return {}
    content = json.dumps(check_class_names("the model", class_names))
    if len(content) > _LONGEST_NAMES:
        raise InputError(f"class names of {len(content)} characters; {_LONGEST_NAMES} fit a file")
    return {_CLASS_NAMES: content}


def load_class_names(path_or_url: str | Path, num_classes: int) -> tuple[str, ...] | None:
    """Loads the class names that parameters bring with them, in the order of the labels.

    A run has them in ``classes.json``, and a ``.safetensors`` file in its metadata, as a JSON list
    under ``class_names``, if it was written from such a run. Other files have none.

    Args:
      path_or_url: as ``load_pretrained`` takes it.
      num_classes: of the parameters.

    Returns:
      The names; None if there are none.

    Raises:
      InputError: there is no such file; or the names are not a list of strings without control
        characters, are longer than 4 MiB, or are not as many as the classes.
    """
    source = str(path_or_url)
    path = download(source) if is_url(source) else Path(hub.local(source))
    if path.is_dir():
        names: Any = read_run(path).class_names
    else:
        content = files.read_metadata(path).get(_CLASS_NAMES, "null")
        if len(content) > _LONGEST_NAMES:
            raise InputError(f"{source} has class names of {len(content)} characters")
        try:
            names = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the class names of {source} are no JSON") from error
    return None if names is None else check_class_names(source, names, num_classes)


def _read(path: Path, average: bool, model: Model) -> Tree:
    """Reads parameters under the published names, without checking them."""
    if path.is_dir():
        return read_params(path, average)
    arrays = files.read_arrays(path)
    if any("/" in name for name in arrays):
        return files.unflatten(path, arrays)
    return from_timm(arrays, model.config, shapes_of(model, channels=3))
