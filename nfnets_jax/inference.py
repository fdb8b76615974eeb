"""Networks that have learned: folded to be fast, exported to be run with jax alone."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets_jax.errors import InputError
from nfnets_jax.models import folding
from nfnets_jax.models.nf_network import NetworkWeights, NFNetwork, NFNetworkConfig, nf_network
from nfnets_jax.models.registry import PRECISIONS, Model

Outputs = dict[str, jax.Array]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=["forward"]
)
@dataclasses.dataclass(frozen=True)
class Folded:
    """A network for inference: called with images, it classifies them.

    It is a pytree whose leaves are its weights, and so can be put on a device, given to ``jax.jit``
    or replicated.

    Attributes:
      weights: kernels standardized, with all constants of the network in them.
      forward: ``(weights, images) -> outputs``.
    """

    weights: Any
    forward: Callable[[Any, jax.Array], Outputs]

    def __call__(self, images: jax.Array) -> Outputs:
        """The outputs of ``Model.apply`` for normalized images ``[N, H, W, C]``."""
        return _run(self, images)


@jax.jit
def _run(network: Folded, images: jax.Array) -> Outputs:
    return network.forward(network.weights, images)


def fold(model: Model, params: Mapping[str, Mapping[str, Any]]) -> Folded:
    """The network with weights that are computed once and hold all its constants.

    Kernels are standardized; the activations' constants, beta, alpha and the skip gains move into
    the convolutions beside them.

    Args:
      model: a normalizer-free one.
      params: of the model.

    Raises:
      InputError: the model is batch-normalized.

    Example:
      >>> import nfnets_jax
      >>> model = nfnets_jax.create_model("nfnet_micro", num_classes=10)
      >>> images = jnp.zeros((1, 8, 8, 1))
      >>> params, _ = model.init(jax.random.key(0), images)
      >>> fold(model, params)(images)["logits"].shape
      (1, 10)
    """
    config = model.config
    if not isinstance(config, NFNetworkConfig):
        raise InputError(f"{model.name} is batch-normalized; networks without can be folded")

    @jax.jit
    def folded(params: hk.Params) -> NetworkWeights:
        first = params[f"{config.family.name}/~/{config.family.stem_name.format(0)}"]
        network = hk.transform(
            lambda: NFNetwork(config, model.num_classes, first["w"].shape[2]).weights(jnp.float32)
        )
        return folding.fold(network.apply(params, None), config, PRECISIONS[model.precision])

    forward = functools.partial(nf_network, config=config, features=model.features, folded=True)
    return Folded(folded(params), forward)
