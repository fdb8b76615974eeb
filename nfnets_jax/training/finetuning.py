"""Fine-tuning: pretrained parameters to start from, and layer-wise learning-rate decay."""

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
from nfnets_jax.weights import hub
from nfnets_jax.weights.checking import count_channels, count_classes
from nfnets_jax.weights.pretrained import load_pretrained
from nfnets_jax.weights.run import read_model_state

Tree = Mapping[str, Mapping[str, Any]]

PUBLISHED = "published"


class Pretrained(NamedTuple):
    """Arrays that replace a model's initial ones, ``{module: {parameter: array}}``.

    A parameter or statistic that is absent keeps its initial value.
    """

    params: Tree
    model_state: Tree


def load_initial_weights(
    config: ml_collections.ConfigDict, dataset: Dataset, model: Model
) -> Pretrained:
    """Loads the weights that ``config.init`` names.

    Leaves the classifier out if it has another number of classes than the dataset, or if
    ``init.new_classifier`` is set, and says so on standard error.

    Args:
      config: the configuration of the run.
      dataset: the dataset to fine-tune on.
      model: the network.

    Raises:
      InputError: the weights cannot be loaded, or are for images with other channels.
    """
    weights = config.init.weights
    if not weights:
        return Pretrained({}, {})
    params, model_state = _load(config, dataset, model)
    known, wanted = count_classes(model, params), len(dataset.class_names)
    if config.init.new_classifier or known != wanted:
        if known:
            _, params = model.reset_classifier(params, 0)
        print(
            f"{weights}: a new classifier for {wanted} classes replaces "
            f"{f'the one for {known}' if known else 'none'}; all other parameters are kept",
            file=sys.stderr,
        )
    return Pretrained(params, model_state)


def load_backbone_weights(
    config: ml_collections.ConfigDict, dataset: Dataset, model: Model
) -> Pretrained:
    """Loads the weights that ``config.init`` names for a backbone, without their classifier.

    Args:
      config: the configuration of the run.
      dataset: the dataset to learn.
      model: a network that has the backbone's parameters under their own names.

    Raises:
      InputError: as ``load_initial_weights``.
    """
    if not config.init.weights:
        return Pretrained({}, {})
    return Pretrained(*_load(config, dataset, model, num_classes=0))


def _load(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    model: Model,
    num_classes: int | None = None,
) -> tuple[dict[str, Any], Tree]:
    """Loads parameters, as ``load_pretrained`` takes the number of classes, and statistics."""
    weights = config.init.weights
    overrides = {field: value for field, value in config.model.items() if field != "name"}
    source = None if weights == PUBLISHED else hub.local(weights)
    params = load_pretrained(config.model.name, source, num_classes=num_classes, **overrides)
    channels = count_channels(model, params)
    if channels != dataset.channels:
        raise InputError(
            f"{weights} is for images of {channels} channels, and those of {config.data.name} have "
            f"{dataset.channels}"
        )
    is_run = source is not None and Path(source).is_dir()
    return params, read_model_state(Path(str(source)), average=True) if is_run else {}


def merge_params(initial: Tree, pretrained: Tree) -> dict[str, dict[str, Any]]:
    """Replaces the initial arrays of which there is a pretrained one."""
    return {
        module: {
            name: pretrained.get(module, {}).get(name, array) for name, array in arrays.items()
        }
        for module, arrays in initial.items()
    }


def layer_depths(model: Model, channels: int) -> dict[str, int]:
    """Counts the layers between each module and the logits.

    A layer is a direct part of the network: a block or a layer outside the blocks. The classifier
    has depth 0 and the first convolution the largest depth.

    Args:
      model: the network.
      channels: of the input images.
    """
    modules: list[str] = []

    def init(key: jax.Array) -> None:
        params, _ = model.init(key, jnp.zeros((1, 32, 32, channels)))
        modules.extend(params)  # They are in the order of the network; eval_shape would sort them.

    jax.eval_shape(init, jax.random.key(0))
    layers = {module: [part for part in module.split("/") if part != "~"][1] for module in modules}
    order = list(dict.fromkeys(layers.values()))
    return {module: len(order) - 1 - order.index(layer) for module, layer in layers.items()}


def layerwise_decay(decay: float, depths: Mapping[str, Any]) -> optax.GradientTransformation:
    """Multiplies the updates of each module by ``decay ** depth``.

    This is discriminative fine-tuning (Howard and Ruder 2018, arXiv:1801.06146, section 3.2). A
    decay of 0 trains the classifier alone.

    Args:
      decay: ratio of the learning rates of a layer and the one above it, in [0, 1].
      depths: an integer for each module, or for stacked layers an array with one for each.
    """

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params

        def scale(depth: Any, update: jax.Array) -> jax.Array:
            factor = np.asarray(decay ** np.asarray(depth), np.float32)
            return update * factor.reshape(factor.shape + (1,) * (update.ndim - factor.ndim))

        return {
            module: jax.tree.map(functools.partial(scale, depths[module]), arrays)
            for module, arrays in updates.items()
        }

    return optax.stateless(update)
