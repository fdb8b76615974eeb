"""Models by name."""

import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets_jax.errors import InputError, nearest
from nfnets_jax.kernels.convolution import rounded
from nfnets_jax.models import efficientnet, nf_convnet, nf_regnet, nf_resnet, nfnet, resnet
from nfnets_jax.models.initialization import initialize
from nfnets_jax.models.nf_network import (
    NFNetwork,
    NFNetworkConfig,
    layer_stacks,
    network_weights,
    nf_network,
)
from nfnets_jax.models.prepare import LayerStack, stacked, unstacked


class Precision(NamedTuple):
    """What is computed in ``dtype``, of what may be multiplied rounded to ``rounding``."""

    dtype: Any
    rounding: Any = None


PRECISIONS = {
    "float32": Precision(jnp.float32),
    "bfloat16": Precision(jnp.bfloat16),
    "bfloat16_products": Precision(jnp.float32, jnp.bfloat16),
}

_ModuleConfig = resnet.ResNetConfig | efficientnet.EfficientNetConfig | nf_convnet.NFConvNetConfig
_Config = NFNetworkConfig | _ModuleConfig
_MODULES: Mapping[type[_ModuleConfig], Callable[..., Any]] = {
    resnet.ResNetConfig: resnet.ResNet,
    efficientnet.EfficientNetConfig: efficientnet.EfficientNet,
    nf_convnet.NFConvNetConfig: nf_convnet.NFConvNet,
}
_REGISTRY: Mapping[str, _Config] = {
    **nfnet.VARIANTS,
    **nf_resnet.VARIANTS,
    **nf_regnet.VARIANTS,
    **resnet.VARIANTS,
    **efficientnet.VARIANTS,
    **nf_convnet.VARIANTS,
}


class _Network(NamedTuple):
    """What a ``Model`` is made of, by its methods' names."""

    init: Callable[[jax.Array, jax.Array], tuple[hk.MutableParams, hk.MutableState]]
    prepare: Callable[[hk.Params, jax.Array], Any]
    forward: Callable[..., tuple[dict[str, jax.Array], hk.MutableState]]
    stacks: tuple[LayerStack, ...] = ()


@dataclasses.dataclass(frozen=True)
class Model:
    """A network as pure functions.

    ``apply`` is ``forward`` of what ``prepare`` makes of the parameters. Whoever runs many batches
    with the same parameters does the two apart.

    Attributes:
      name: the name it was created by.
      num_classes: length of the logits.
      config: the variant's settings, overrides applied.
      precision: what is computed in.
      features: whether the outputs hold those of the stages.
    """

    name: str
    num_classes: int
    config: Any
    _network: _Network
    precision: str
    features: bool

    def init(
        self, rng: jax.Array, images: jax.Array, is_training: bool = True
    ) -> tuple[hk.MutableParams, hk.MutableState]:
        """New parameters and state.

        Args:
          rng: one random key.
          images: ``[N, H, W, C]`` floats; only the shape matters.
          is_training: accepted as ``apply`` has it; makes no difference.

        Returns:
          ``{module: {parameter: float32 array}}`` and the state: in the same form the
          running statistics of batch-normalized networks and of ``nf_convnet``, of others empty.
        """
        del is_training
        return self._network.init(rng, images)

    def apply(
        self,
        params: hk.Params,
        state: hk.State,
        rng: jax.Array | None,
        images: jax.Array,
        is_training: bool,
    ) -> tuple[dict[str, jax.Array], hk.MutableState]:
        """Runs the network.

        Args:
          params, state: as ``init`` gives them; the parameters also ``stacked``.
          rng: the randomness of stochastic depth and dropout: one key, or ``[N]`` keys, one an
            example, so that what happens to an example does not depend on the batch it is in. Not
            needed, and may be None, if ``is_training`` is false or the model has neither.
          images: ``[N, H, W, C]`` floats, normalized.
          is_training: whether stochastic depth and dropout are on, and batches normalized by their
            own statistics.

        Returns:
          ``{"logits": [N, num_classes], "pool": [N, features], ...}``, float32, and the state,
          which training has updated.
        """
        return self.forward(self.prepare(params, images), state, rng, images, is_training)

    def prepare(self, params: hk.Params, images: jax.Array) -> Any:
        """The arrays that ``forward`` computes with, kernels standardized, in the compute dtype.

        Args:
          params: as ``init`` gives them, or those ``stacked``.
          images: ``[N, H, W, C]``; only the channels matter.
        """
        return self._network.prepare(params, images)

    def stacked(self, tree: Any) -> Any:
        """Parameters with equal blocks as one, each array with a leading axis that counts them.

        NFNet-F6 has 165 arrays instead of 1457 then, and what is done with them compiles in less
        time. ``apply`` takes parameters in either form.

        Args:
          tree: parameters, or whatever is in their form or has parts in it: gradients, an
            optimizer's state. Numbers may stand for modules.
        """
        return stacked(tree, self._network.stacks)

    def unstacked(self, tree: Any) -> Any:
        """What ``stacked`` was given."""
        return unstacked(tree, self._network.stacks)

    def learning(self, modules: Collection[str]) -> "Model":
        """The same network, but gradients reach the parameters of these modules alone."""

        def prepare(params: hk.Params, images: jax.Array) -> Any:
            reached = {
                module: values if module in modules else jax.lax.stop_gradient(values)
                for module, values in self.unstacked(params).items()
            }
            return self._network.prepare(reached, images)

        return dataclasses.replace(self, _network=self._network._replace(prepare=prepare))

    def forward(
        self,
        weights: Any,
        state: hk.State,
        rng: jax.Array | None,
        images: jax.Array,
        is_training: bool,
    ) -> tuple[dict[str, jax.Array], hk.MutableState]:
        """``apply``, but of the weights that ``prepare`` gives."""
        keys = None if rng is None or not is_training else _example_keys(rng, len(images))
        with rounded(PRECISIONS[self.precision].rounding):
            return self._network.forward(weights, state, keys, images, is_training)


def create_model(
    name: str,
    num_classes: int = 1000,
    *,
    features: bool = False,
    precision: str = "float32",
    **overrides: Any,
) -> Model:
    """The model called ``name``.

    Args:
      name: one of ``list_models()``.
      num_classes: length of the logits.
      features: whether the outputs also hold those of the stages, ``"stage_1"`` ...
      precision: ``"float32"`` or ``"bfloat16"``, what is computed in. Parameters, weight
        standardization, pooling and logits are float32 in either. ``"bfloat16_products"`` is
        float32, but what is multiplied may be rounded to bfloat16 where that is faster, as in 3x3
        convolutions on CPUs that have instructions for it.
      **overrides: fields of the variant's settings to replace, such as ``dropout_rate=0.0``.

    Raises:
      InputError: no such model, precision or field; the message names the nearest ones.

    Example:
      >>> model = create_model("nfnet_micro", num_classes=10)
      >>> images = jnp.zeros((1, 8, 8, 1))
      >>> params, state = model.init(jax.random.key(0), images)
      >>> apply = jax.jit(model.apply, static_argnames="is_training")
      >>> outputs, state = apply(params, state, None, images, is_training=False)
      >>> outputs["logits"].shape
      (1, 10)
    """
    if name not in _REGISTRY:
        raise InputError(f"no model {name!r}; {nearest(name, _REGISTRY)}")
    if precision not in PRECISIONS:
        raise InputError(f"no precision {precision!r}; there are {', '.join(PRECISIONS)}")
    config = _REGISTRY[name]
    fields = [field.name for field in dataclasses.fields(config)]
    for override in overrides:
        if override not in fields:
            raise InputError(f"{name} has no setting {override!r}; {nearest(override, fields)}")
    config = dataclasses.replace(config, **overrides)
    settings = (num_classes, PRECISIONS[precision].dtype, features)
    if isinstance(config, NFNetworkConfig):
        network = _normalizer_free(config, *settings)
    else:
        network = _of_modules(config, *settings)
    return Model(name, num_classes, config, network, precision, features)


def list_models(pattern: str = "*") -> list[str]:
    """The names that ``create_model`` knows and a shell-style pattern (``"nfnet_f?"``) matches."""
    return fnmatch.filter(_REGISTRY, pattern)


def _normalizer_free(
    config: NFNetworkConfig, num_classes: int, dtype: Any, features: bool
) -> _Network:
    def weights(images: jax.Array) -> Any:
        return NFNetwork(config, num_classes, images.shape[-1]).weights(dtype)

    def forward(
        weights: Any,
        state: hk.State,
        keys: jax.Array | None,
        images: jax.Array,
        is_training: bool,
    ) -> tuple[dict[str, jax.Array], hk.MutableState]:
        return nf_network(weights, images, keys, config=config, features=features), {}

    return _Network(
        functools.partial(initialize, weights),
        lambda params, images: network_weights(params, config, num_classes, dtype),
        forward,
        layer_stacks(config),
    )


def _of_modules(config: _ModuleConfig, num_classes: int, dtype: Any, features: bool) -> _Network:
    def network(images: jax.Array, keys: jax.Array | None, is_training: bool) -> Any:
        module = _MODULES[type(config)](config, num_classes)
        return module(images.astype(dtype), keys, is_training, features)

    def forward(
        weights: hk.Params,
        state: hk.State,
        keys: jax.Array | None,
        images: jax.Array,
        is_training: bool,
    ) -> Any:
        run = hk.transform_with_state(network).apply
        return run(weights, state, None, images, keys, is_training)

    return _Network(
        lambda rng, images: initialize(network, rng, images, None, False),
        lambda params, images: params,
        forward,
    )


def _example_keys(rng: jax.Array, examples: int) -> jax.Array:
    """``[N]`` typed keys from one key or from as many, typed or raw."""
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.wrap_key_data(rng)
    return jax.random.split(rng, examples) if rng.ndim == 0 else rng
