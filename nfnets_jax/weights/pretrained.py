"""Loads parameters for a model: published files, runs of this repository, our own files, timm's."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import Model, create_model
from nfnets_jax.weights import files, hub
from nfnets_jax.weights.checking import check, count_channels, count_classes, shapes_of
from nfnets_jax.weights.downloading import download, is_url
from nfnets_jax.weights.published import Tree
from nfnets_jax.weights.run import read_params
from nfnets_jax.weights.timm_names import from_timm

# F6 was trained with SAM (Foret et al. 2021, arXiv:2010.01412).
PUBLISHED: Mapping[str, str] = MappingProxyType(
    {
        f"nfnet_f{index}": f"https://storage.googleapis.com/dm-nfnets/F{index}_haiku.npz"
        for index in range(7)
    }
)


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
      num_classes: of the model; None takes the number that the file has. If the numbers differ, the
        classifier is new, and a line on standard error says so.
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
    model = create_model(name, **overrides)  # A wrong name ends before a download starts.
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
    tree = check(source, tree, shapes_of(create_model(name, found, **overrides), channels))
    if num_classes in (None, found):
        return tree
    print(
        f"{source} has {found} classes, not {num_classes}: the classifier is new, the rest is kept",
        file=sys.stderr,
    )
    wanted = create_model(name, num_classes, **overrides)
    new, _ = wanted.init(jax.random.key(seed), jnp.zeros((1, 32, 32, channels)))
    tree[model.classifier] = jax.tree.map(np.asarray, dict(new[model.classifier]))
    return tree


def save_pretrained(path: str | Path, params: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes parameters ``{module: {parameter: array}}`` as ``.safetensors``, all or nothing.

    The name of an array is ``MODULE/PARAMETER``.

    Raises:
      InputError: the path has another suffix, or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path} must end in .safetensors")
    files.write_safetensors(path, files.flatten(params))


def _read(path: Path, average: bool, model: Model) -> Tree:
    """Reads parameters under the published names, without checking them."""
    if path.is_dir():
        return read_params(path, average)
    arrays = files.read_arrays(path)
    if any("/" in name for name in arrays):
        return files.unflatten(path, arrays)
    return from_timm(arrays, model.config, shapes_of(model, channels=3))
