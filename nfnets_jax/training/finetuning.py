"""Fine-tuning: parameters to start from, and which layers learn how fast."""

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from nfnets_jax.data.sources import Dataset
from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import Model
from nfnets_jax.training.checkpoints import read_model_state
from nfnets_jax.weights.fitting import Fit
from nfnets_jax.weights.pretrained import load_pretrained

Tree = dict[str, dict[str, np.ndarray]]

PUBLISHED = "published"


class Start(NamedTuple):
    """What a run starts from instead of random numbers; an empty tree replaces nothing."""

    params: Tree
    model_state: Tree


def read_start(config: ml_collections.ConfigDict, dataset: Dataset) -> Start:
    """What ``config.init`` names, without the classifier where that has to be a new one.

    It has to be if it is for another number of classes than the dataset's, or by
    ``init.new_classifier``; a line on standard error says so.

    Raises:
      InputError: as ``load_pretrained``, or the images have other channels.
    """
    weights = config.init.weights
    if not weights:
        return Start({}, {})
    overrides = {field: value for field, value in config.model.items() if field != "name"}
    fit = Fit(config.model.name, overrides)
    source = None if weights == PUBLISHED else weights
    params = load_pretrained(config.model.name, source, **overrides)
    if fit.channels(params) != dataset.channels:
        raise InputError(
            f"{weights} is for images of {fit.channels(params)} channels, and those of "
            f"{config.data.name} have {dataset.channels}"
        )
    known, wanted = fit.num_classes(params), len(dataset.class_names)
    if config.init.new_classifier or known != wanted:
        for module, parameter in fit.classifier:
            del params[module][parameter]
        print(
            f"{weights}: a new classifier for {wanted} classes in place of that for {known}; the "
            "rest is kept",
            file=sys.stderr,
        )
    return Start(params, read_model_state(Path(weights)) if Path(weights).is_dir() else {})


def replaced(new: Mapping[str, Mapping[str, Any]], start: Tree) -> Tree:
    """A new tree with what the start has in place of its own."""
    return {
        module: {name: start.get(module, {}).get(name, value) for name, value in values.items()}
        for module, values in new.items()
    }


def heights(model: Model, channels: int) -> dict[str, int]:
    """How many layers lie above each module: 0 of the classifier, most of the first convolution.

    A layer is what the network itself consists of: a block, the stem's and the last convolution.
    """
    modules: list[str] = []

    def init(key: jax.Array) -> None:
        params, _ = model.init(key, jnp.zeros((1, 32, 32, channels)))
        modules.extend(params)  # Still in the order of the network; JAX would sort them.

    jax.eval_shape(init, jax.random.key(0))
    layers = {module: [part for part in module.split("/") if part != "~"][1] for module in modules}
    order = list(dict.fromkeys(layers.values()))
    return {module: len(order) - 1 - order.index(layer) for module, layer in layers.items()}


def scale_by_layer(decay: float, heights: Mapping[str, Any]) -> optax.GradientTransformation:
    """Multiplies updates by ``decay ** height``: discriminative fine-tuning.

    Howard and Ruder 2018, arXiv:1801.06146, section 3.2. A decay of 0 leaves the
    classifier alone to learn. A height is a number or, of stacked layers, one for each.
    """

    def scale(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params

        def scaled(height: Any, update: jax.Array) -> jax.Array:
            rates = np.asarray(decay ** np.asarray(height), np.float32)
            return update * rates.reshape(rates.shape + (1,) * (update.ndim - rates.ndim))

        return {
            module: jax.tree.map(functools.partial(scaled, heights[module]), values)
            for module, values in updates.items()
        }

    return optax.stateless(scale)
