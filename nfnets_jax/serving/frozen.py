"""Networks with fixed parameters, prepared once and folded where that is possible."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets_jax.errors import InputError
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models.nfnet import NFBlock, NFNet, NFNetConfig
from nfnets_jax.models.registry import Model
from nfnets_jax.serving import folding

Outputs = dict[str, jax.Array]

_DEFAULT_POLICY = Policy()
# ``Model.prepare`` takes images and does not look at them.
_NO_IMAGES: Any = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=["forward"]
)
@dataclasses.dataclass(frozen=True)
class Frozen:
    """A network with fixed weights: called with images, it classifies them.

    It is a pytree of its weights, so that it can be put on a device, replicated, or passed to
    ``jax.jit``.

    Attributes:
      weights: all arrays of the computation.
      forward: ``(weights, images, policy=Policy()) -> outputs``.
    """

    weights: Any
    forward: Callable[..., Outputs]

    def __call__(self, images: jax.Array) -> Outputs:
        """Returns the outputs of ``Model.apply`` for normalized images ``[N, H, W, C]``."""
        return _run(self, images)


@jax.jit
def _run(network: Frozen, images: jax.Array) -> Outputs:
    return network.forward(network.weights, images)


def freeze(
    model: Model, params: Mapping[str, Mapping[str, Any]], state: Mapping[str, Any] | None = None
) -> Frozen:
    """Fixes a network's parameters; ``fold`` folds them if it knows the network.

    Args:
      model: any.
      params: of the model.
      state: its running statistics, if it has some.

    Raises:
      InputError: the model has running statistics, and there is no state.
    """
    if _is_foldable(model):
        return fold(model, params)
    _, expected = jax.eval_shape(model.init, jax.random.key(0), _NO_IMAGES)
    if expected and not state:
        raise InputError(
            f"the running statistics of {model.name} are missing; the workdir of a run has them"
        )

    def forward(weights: Any, images: jax.Array, policy: Policy = _DEFAULT_POLICY) -> Outputs:
        params, state = weights
        return model.with_policy(policy).forward(params, state, None, images, False)[0]

    prepared = jax.jit(lambda params: model.prepare(params, _NO_IMAGES))(params)
    return Frozen((prepared, state or {}), forward)


def fold(model: Model, params: Mapping[str, Mapping[str, Any]]) -> Frozen:
    """Fixes a network's parameters with all constants computed once and folded into them.

    Kernels are standardized; the activations' gains, beta, alpha and the skip gains move into the
    convolutions beside them.

    Args:
      model: an NFNet, NF-ResNet or NF-RegNet.
      params: of the model.

    Raises:
      InputError: the model is none of these.

    Example:
      >>> import nfnets_jax
      >>> model = nfnets_jax.create_model("nfnet_micro", num_classes=10)
      >>> images = jnp.zeros((1, 8, 8, 1))
      >>> params, _ = model.init(jax.random.key(0), images)
      >>> fold(model, params)(images)["logits"].shape
      (1, 10)
    """
    if not _is_foldable(model):
        raise InputError(f"{model.name} cannot be folded; NFNets, NF-ResNets and NF-RegNets can")
    config, dtype = model.config, model.dtype

    @jax.jit
    def folded(params: hk.Params) -> hk.MutableParams:
        exact = dataclasses.replace(model, precision="float32")
        weights = folding.fold(exact.prepare(params, _NO_IMAGES), config)
        return {
            module: {
                name: array if module == model.classifier else array.astype(dtype)
                for name, array in values.items()
            }
            for module, values in weights.items()
        }

    def forward(weights: Any, images: jax.Array, policy: Policy = _DEFAULT_POLICY) -> Outputs:
        def network(images: jax.Array) -> Outputs:
            products = model.with_policy(policy).product_policy
            module = NFNet(config, model.num_classes, products, prepared=True, folded=True)
            return module(images.astype(dtype), features=model.features)

        return hk.transform(network).apply(weights, None, images)

    return Frozen(folded(params), forward)


def _is_foldable(model: Model) -> bool:
    """Returns whether ``folding`` knows the network's blocks."""
    return isinstance(model.config, NFNetConfig) and model.config.block is NFBlock
