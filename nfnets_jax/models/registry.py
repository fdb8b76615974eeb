"""Models by name."""

import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets_jax.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from nfnets_jax.errors import InputError, nearest
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models import bn_nfnet, efficientnet, nf_regnet, nf_resnet, nfnet, resnet
from nfnets_jax.models.groups import Group, equal_modules, grouped, is_group, ungrouped
from nfnets_jax.models.initialization import initialize
from nfnets_jax.models.prepare import LayerStack, prepare, stacked, unstacked
from nfnets_jax.ranges import Range, check_ranges

# The dtype that a network computes in. ``"tensorfloat32"`` lets accelerators multiply with less
# precision than float32 has.
PRECISIONS: Mapping[str, Any] = {
    "float32": jnp.float32,
    "tensorfloat32": jnp.float32,
    "bfloat16": jnp.bfloat16,
}


class Network(Protocol):
    """A Haiku module that classifies images."""

    def __call__(
        self, images: jax.Array, keys: jax.Array | None, is_training: bool, features: bool
    ) -> dict[str, jax.Array]:
        """Returns ``logits`` ``[N, num_classes]`` and ``pool`` ``[N, features]``, float32.

        With ``num_classes`` of 0 the network has neither logits nor a classifier's parameters.

        Args:
          images: ``[N, H, W, C]`` floats, normalized, in the dtype to compute in.
          keys: ``[N]`` random keys, one an example; None turns what is random off.
          is_training: whether batches are normalized by their own statistics.
          features: also return ``stage_1`` ...
        """


class NetworkConfig(Protocol):
    """A frozen dataclass that holds a network's options; one path serves all families."""

    @property
    def train_size(self) -> int:
        """Side of the square training images, in pixels."""

    @property
    def test_size(self) -> int:
        """Side of the square test images, in pixels."""

    @property
    def test_crop(self) -> str:
        """How images are cropped for evaluation, as ``data.test_crop`` names it."""

    def network(self, num_classes: int, policy: Policy, prepared: bool) -> Any:
        """Makes the ``Network``, inside a ``hk.transform``.

        Args:
          num_classes: length of the logits; 0 for a network without a classifier.
          policy: how convolutions are computed.
          prepared: whether the parameters are those that ``models.prepare`` makes.
        """

    @property
    def classifier(self) -> str:
        """Full name of the classifier's module, whose ``w`` is ``[features, num_classes]``."""

    @property
    def first_conv(self) -> str:
        """Full name of the module with the first ``w`` ``[h, w, channels, O]``; or empty."""

    @property
    def layer_stacks(self) -> tuple[LayerStack, ...]:
        """Equal layers, whose parameters ``Model.stacked`` joins; none if empty."""


@dataclasses.dataclass(frozen=True)
class ModuleConfig:
    """The options of a network that is registered as a module.

    Attributes:
      module: ``num_classes -> Network``; a ``hk.Module`` class, for example. It leaves its
        classifier out if the number is 0.
      train_size, test_size: side of the square images, in pixels.
      test_crop: how images are cropped for evaluation, as ``data.test_crop`` names it.
      classifier, first_conv: full names of the modules of the classifier and of the first
        convolution, if the network has them.
    """

    module: Callable[[int], Any]
    train_size: int = 224
    test_size: int = 224
    test_crop: str = "resize"
    classifier: str = "linear"
    first_conv: str = ""
    layer_stacks: tuple[LayerStack, ...] = ()

    def network(self, num_classes: int, policy: Policy, prepared: bool) -> Any:
        """Makes the module, inside a ``hk.transform``; prepared parameters are the same."""
        del policy, prepared
        return self.module(num_classes)


# Side of the images by which strides are found, pixels; a multiple of every stride.
_TRACED_SIZE = 512

_REGISTRY: dict[str, NetworkConfig] = {
    **nfnet.VARIANTS,
    **nf_resnet.VARIANTS,
    **nf_regnet.VARIANTS,
    **bn_nfnet.VARIANTS,
    **resnet.VARIANTS,
    **efficientnet.VARIANTS,
}


class DataConfig(NamedTuple):
    """The images that a model expects.

    Attributes:
      train_size, test_size: side of the square images, in pixels.
      mean, std: of the pixels in [0, 1], a channel, by which they are normalized.
      test_crop: how an image is cropped for evaluation, as ``data.test_crop`` names it.
    """

    train_size: int
    test_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_crop: str


class FeatureInfo(NamedTuple):
    """A stage's output, as a model with ``features=True`` returns it.

    Attributes:
      name: its key in the outputs, ``"stage_1"`` ...
      channels: its last axis.
      stride: pixels of the image between neighbouring outputs.
    """

    name: str
    channels: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Model:
    """A network as pure functions.

    ``apply`` is ``forward`` of what ``prepare`` makes of the parameters. A program that runs many
    batches with the same parameters calls the two by themselves.

    Attributes:
      name: the name it was created by.
      num_classes: length of the logits; 0 for a network without a classifier.
      config: the variant's options, overrides applied.
      precision: a key of ``PRECISIONS``.
      features: whether the outputs hold those of the stages.
      policy: how convolutions are computed.
      trains_classifier_only: whether gradients reach the classifier's parameters alone.

    Raises:
      InputError: ``num_classes`` is no whole number from 0 on.
    """

    name: str
    num_classes: int
    config: Any
    precision: str = "float32"
    features: bool = False
    policy: Policy = Policy()  # noqa: RUF009, it is immutable
    trains_classifier_only: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, {"num_classes": Range(0, whole=True)})

    @property
    def classifier(self) -> str:
        """Full name of the classifier's module in the parameters."""
        return self.config.classifier

    @property
    def first_conv(self) -> str:
        """Full name of the first convolution's module in the parameters, empty if there is none."""
        return self.config.first_conv

    @property
    def data_config(self) -> DataConfig:
        """The images that the model expects: sizes, normalization, crop."""
        config = self.config
        return DataConfig(
            config.train_size, config.test_size, IMAGENET_MEAN, IMAGENET_STD, config.test_crop
        )

    @functools.cached_property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """The stages' outputs, from the largest resolution down.

        The network is traced once, on an image of a size that every stride divides.

        Example:
          >>> create_model("nf_resnet50", output_stride=16).feature_info[-1]
          FeatureInfo(name='stage_4', channels=2048, stride=16)
        """
        model = dataclasses.replace(self, features=True, policy=Policy(native=True))
        image = jax.ShapeDtypeStruct((1, _TRACED_SIZE, _TRACED_SIZE, 3), jnp.float32)

        def outputs(key: jax.Array, image: jax.Array) -> dict[str, jax.Array]:
            params, state = model.init(key, image)
            return model.apply(params, state, None, image, False)[0]

        shapes = jax.eval_shape(outputs, jax.random.key(0), image)
        # A traced dictionary comes back sorted, "stage_10" before "stage_2".
        stages = [f"stage_{number}" for number in range(1, len(shapes) + 1)]
        return tuple(
            FeatureInfo(name, shapes[name].shape[-1], _TRACED_SIZE // shapes[name].shape[1])
            for name in stages
            if name in shapes
        )

    def init(
        self, rng: jax.Array, images: jax.Array, is_training: bool = True
    ) -> tuple[hk.MutableParams, hk.MutableState]:
        """Returns new parameters and state.

        Args:
          rng: one random key.
          images: ``[N, H, W, C]`` floats; only the shape matters.
          is_training: accepted as ``apply`` has it; makes no difference.

        Returns:
          ``{module: {parameter: float32 array}}``, and in the same form the state: running
          statistics, or nothing in normalizer-free networks.
        """
        del is_training
        return self._initialize(rng, images)

    def _initialize(
        self, rng: jax.Array, images: jax.Array, only: str | None = None
    ) -> tuple[hk.MutableParams, hk.MutableState]:
        # XLA's own convolutions are traced in the least time, and only shapes matter.
        network = self.with_policy(Policy(native=True))._network(prepared=False)
        return initialize(network, rng, images, None, False, only=only)

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
          params, state: as ``init`` returns them; the parameters may be ``stacked``.
          rng: the randomness of stochastic depth and dropout: one key, or ``[N]`` keys, one an
            example, so that an example's draws do not depend on its batch. It is not needed, and
            may be None, if ``is_training`` is false or the model has neither.
          images: ``[N, H, W, C]`` floats, normalized.
          is_training: whether stochastic depth and dropout are on, and batches are normalized by
            their own statistics.

        Returns:
          ``{"logits": [N, num_classes], "pool": [N, features], ...}``, float32, without the logits
          if ``num_classes`` is 0; and the state, which training updates.
        """
        return self.forward(self.prepare(params, images), state, rng, images, is_training)

    def prepare(self, params: hk.Params, images: jax.Array) -> hk.MutableParams:
        """Returns the parameters in the form that ``forward`` computes with.

        Equal blocks are stacked, except on a GPU; kernels are standardized and cast
        (``models.prepare``).

        Args:
          params: as ``init`` returns them; they may be ``stacked``.
          images: accepted as ``apply`` has it; makes no difference.
        """
        del images
        params = stacked(params, self._stacks)
        if self.trains_classifier_only:
            params = {
                module: values if module == self.classifier else jax.lax.stop_gradient(values)
                for module, values in params.items()
            }
        return prepare(params, self.dtype)

    def forward(
        self,
        weights: hk.Params,
        state: hk.State,
        rng: jax.Array | None,
        images: jax.Array,
        is_training: bool,
    ) -> tuple[dict[str, jax.Array], hk.MutableState]:
        """Runs the network as ``apply`` does, by the parameters that ``prepare`` returns."""
        is_grouped = any(map(is_group, state))
        if is_grouped or any(map(is_group, weights)):
            weights, state = ungrouped((weights, state), self._groups)
        keys = None if rng is None or not is_training else _example_keys(rng, len(images))
        run = hk.transform_with_state(self._network(prepared=True)).apply
        outputs, state = run(weights, state, None, images, keys, is_training)
        return outputs, grouped(state, self._groups) if is_grouped else state

    def stacked(self, tree: Any) -> Any:
        """Returns the form of the parameters in which their update is fastest.

        Equal blocks are stacked, as ``models.prepare.stacked`` does: NFNet-F6 then has 165 arrays
        instead of 1457. On a GPU equal modules are grouped instead, as ``models.groups`` does.

        Args:
          tree: parameters, or any tree that holds their form: gradients, an optimizer's state.
            Numbers may stand for modules.
        """
        return grouped(stacked(tree, self._stacks), self._groups)

    def unstacked(self, tree: Any) -> Any:
        """Undoes ``stacked``."""
        return unstacked(ungrouped(tree, self._groups), self._stacks)

    @property
    def _stacks(self) -> tuple[LayerStack, ...]:
        return () if self.policy.for_gpu else self.config.layer_stacks

    @functools.cached_property
    def _groups(self) -> tuple[Group, ...]:
        if not self.policy.for_gpu:
            return ()
        size = self.config.train_size
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        params, _ = jax.eval_shape(self.init, jax.random.key(0), images)
        # The shape of the first convolution depends on the images.
        return equal_modules(params, alone=(self.classifier, self.first_conv))

    def reset_classifier(
        self,
        params: Mapping[str, Mapping[str, Any]],
        num_classes: int,
        rng: jax.Array | None = None,
    ) -> tuple["Model", dict[str, dict[str, Any]]]:
        """Returns the network for another number of classes, and its parameters.

        Args:
          params: of this network; they may be ``stacked``. They stay as they are.
          num_classes: length of the new logits; 0 removes the classifier.
          rng: one random key, which draws the new classifier; removing it needs none.

        Returns:
          The model, and its parameters: a new classifier, and every other array of ``params``. The
          state stays valid.

        Raises:
          InputError: a key is missing, or the network has no module of the classifier's name.

        Example:
          >>> model = create_model("nfnet_micro", num_classes=10)
          >>> params, _ = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
          >>> model, params = model.reset_classifier(params, 3, jax.random.key(1))
          >>> params["NFNet/~/linear"]["w"].shape
          (512, 3)
        """
        model = dataclasses.replace(self, num_classes=num_classes)
        unknown = (
            f"{self.name} has no module {self.classifier!r}: ModuleConfig names the classifier"
        )
        if self.num_classes and self.classifier not in params:
            raise InputError(unknown)
        kept = {name: dict(values) for name, values in params.items() if name != self.classifier}
        if not num_classes:
            return model, kept
        if rng is None:
            raise InputError("a new classifier needs a random key")
        size = self.config.train_size
        new, _ = model._initialize(rng, jnp.zeros((1, size, size, 3)), only=self.classifier)
        if not new:
            raise InputError(unknown)
        return model, {**kept, self.classifier: dict(new[self.classifier])}

    def with_policy(self, policy: Policy) -> "Model":
        """Returns the same network with its convolutions computed otherwise."""
        return dataclasses.replace(self, policy=policy)

    def with_frozen_backbone(self) -> "Model":
        """Returns the same network, of which gradients reach the classifier alone."""
        return dataclasses.replace(self, trains_classifier_only=True)

    @property
    def product_policy(self) -> Policy:
        """``policy``, with the precision of products."""
        is_rounded = self.precision == "tensorfloat32"
        return dataclasses.replace(self.policy, tensorfloat32=is_rounded)

    @property
    def dtype(self) -> Any:
        """The dtype that the network computes in."""
        return PRECISIONS[self.precision]

    def _network(self, prepared: bool) -> Callable[..., dict[str, jax.Array]]:
        def network(images: jax.Array, keys: jax.Array | None, is_training: bool) -> Any:
            module = self.config.network(self.num_classes, self.product_policy, prepared)
            outputs = module(images.astype(self.dtype), keys, is_training, self.features)
            if not self.num_classes and "logits" in outputs:
                raise InputError(
                    f"{self.name} has logits with num_classes=0, for which its module should leave "
                    "them and the classifier out"
                )
            return outputs

        return network


def create_model(
    name: str,
    num_classes: int = 1000,
    *,
    features: bool = False,
    precision: str = "float32",
    **overrides: Any,
) -> Model:
    """Returns the model called ``name``.

    Args:
      name: one of ``list_models()``.
      num_classes: length of the logits; 0 leaves them and the classifier out, and the outputs are
        ``"pool"`` and, with ``features``, the stages.
      features: whether the outputs also hold those of the stages, ``"stage_1"`` ...
      precision: ``"float32"`` or ``"bfloat16"``, the dtype of the computation. Parameters, weight
        standardization, pooling and logits are float32 in either. ``"tensorfloat32"`` is float32
        whose convolutions multiply with less precision on accelerators, and faster.
      **overrides: fields of the variant's options to replace, such as ``dropout_rate=0.0``.

    Raises:
      InputError: no such model, precision or field, where the message names the nearest ones; or
        a number of classes below 0.

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
    config: Any = _REGISTRY[name]
    fields = [field.name for field in dataclasses.fields(config)]
    for override in overrides:
        if override not in fields:
            raise InputError(f"{name} has no setting {override!r}; {nearest(override, fields)}")
    config = dataclasses.replace(config, **overrides)
    return Model(name, num_classes, config, precision, features)


def register_model(name: str, config_or_module: NetworkConfig | Callable[[int], Any]) -> None:
    """Makes a network a name that ``create_model`` and every command know.

    Args:
      name: replaces a model of that name.
      config_or_module: a config as the families have them, such as an ``NFNetConfig`` with a block
        of one's own; or a function of the number of classes that makes a Haiku module, as
        ``ModuleConfig`` says. The module is a ``Network``.

    Raises:
      InputError: it is neither.

    Example:
      >>> from nfnets_jax.models.nfnet import VARIANTS
      >>> wide = dataclasses.replace(VARIANTS["nfnet_micro"], width=(128, 256, 512))
      >>> register_model("nfnet_micro_wide", wide)
      >>> create_model("nfnet_micro_wide").config.width
      (128, 256, 512)
    """
    config: Any = config_or_module
    if not hasattr(config, "network"):
        if not callable(config):
            raise InputError(
                f"{name!r} takes a config with a method network, or a function of the number of "
                f"classes, not {type(config).__name__}"
            )
        config = ModuleConfig(config)
    _REGISTRY[name] = config


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of models that match a shell-style pattern such as ``"nfnet_f?"``."""
    return fnmatch.filter(_REGISTRY, pattern)


def _example_keys(rng: jax.Array, examples: int) -> jax.Array:
    """Returns ``[N]`` typed keys from one key or from as many, typed or raw."""
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.wrap_key_data(rng)
    return jax.random.split(rng, examples) if rng.ndim == 0 else rng
