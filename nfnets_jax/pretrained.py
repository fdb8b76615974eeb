"""Parameters from where they are kept: published files, runs of this repository, our own files."""

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import create_model
from nfnets_jax.weights import files
from nfnets_jax.weights.downloading import download, is_url
from nfnets_jax.weights.fitting import check, classifier, count_classes, parameter_shapes
from nfnets_jax.weights.published import Tree

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
    channels: int = 3,
    average: bool = True,
    sha256: str | None = None,
    seed: int = 0,
    **overrides: Any,
) -> Tree:
    """Parameters for ``create_model(name, num_classes)``, checked against it.

    Nothing in a file is run: a pickle is read by a reader that knows arrays and mappings alone.

    Args:
      name: of the model.
      path_or_url: a published file, a ``.safetensors`` of ``save_pretrained``, or the workdir of a
        run or its ``checkpoints`` or one of those; or the URL of a file, which is downloaded once
        to ``$NFNETS_CACHE`` or ``~/.cache/nfnets_jax``. Without it, the parameters that DeepMind
        published for the model.
      num_classes: of the model; as many as the file has if None. With another number than the
        file's, the classifier is a new one, and a line on standard error says so.
      channels: of the images.
      average: of a run, take the moving average of the parameters and not the last ones.
      sha256: hexadecimal digest that the file must have.
      seed: of a new classifier.
      **overrides: as ``create_model`` has them, where they change shapes.

    Returns:
      ``{module: {parameter: float32 NumPy array}}``.

    Raises:
      InputError: no such model or file, a file that is damaged or would run code, one for another
        model (the message lists what is missing, unexpected or of another shape), or one with
        values that are not finite.
    """
    create_model(name, **overrides)  # A wrong name should show before anything is downloaded.
    if path_or_url is None:
        if name not in PUBLISHED:
            raise InputError(
                f"no parameters of {name} were published, but of {', '.join(PUBLISHED)}: give a "
                "file or a run"
            )
        path_or_url = PUBLISHED[name]
    source = str(path_or_url)
    path = download(source, sha256=sha256) if is_url(source) else Path(source)
    shapes = functools.partial(parameter_shapes, name, channels=channels, **overrides)
    tree = _read(path, average)
    found = count_classes(tree, shapes)
    tree = check(source, tree, shapes(num_classes=found))
    if num_classes in (None, found):
        return tree
    print(
        f"{source} has {found} classes, not {num_classes}: the classifier is new, the rest is kept",
        file=sys.stderr,
    )
    model = create_model(name, num_classes, **overrides)
    new, _ = model.init(jax.random.key(seed), jnp.zeros((1, 32, 32, channels)))
    for module, parameter in classifier(shapes):
        tree[module][parameter] = np.asarray(new[module][parameter])
    return tree


def save_pretrained(path: str | Path, params: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes parameters ``{module: {parameter: array}}`` as ``.safetensors``, all or nothing.

    An array's name is ``MODULE/PARAMETER``.

    Raises:
      InputError: the path has another suffix, or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is not named .safetensors, which it would be")
    files.write_safetensors(path, files.flatten(params))


def _read(path: Path, average: bool) -> Tree:
    if not path.is_dir():
        return files.read_tree(path)
    # Orbax is for those who train.
    from nfnets_jax.training.checkpoints import read_params

    return read_params(path, average)
