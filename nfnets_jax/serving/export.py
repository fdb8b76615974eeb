"""Networks that have learned: folded to be fast, exported to be run with jax alone."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import haiku as hk
import jax
import jax.export
import jax.numpy as jnp
from jax import lax

from nfnets_jax.errors import InputError
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models.nfnet import NFBlock, NFNet, NFNetConfig
from nfnets_jax.models.registry import Model
from nfnets_jax.serving import folding

Outputs = dict[str, jax.Array]

_DEFAULT = Policy()
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=["forward"]
)
@dataclasses.dataclass(frozen=True)
class Frozen:
    """A network that learns no more: called with images, it classifies them.

    It is a pytree whose leaves are its weights, and so can be put on a device, given to ``jax.jit``
    or replicated.

    Attributes:
      weights: all arrays that are computed with.
      forward: ``(weights, images, policy=Policy()) -> outputs``.
    """

    weights: Any
    forward: Callable[..., Outputs]

    def __call__(self, images: jax.Array) -> Outputs:
        """The outputs of ``Model.apply`` for normalized images ``[N, H, W, C]``."""
        return _run(self, images)


@jax.jit
def _run(network: Frozen, images: jax.Array) -> Outputs:
    return network.forward(network.weights, images)


def freeze(
    model: Model, params: Mapping[str, Mapping[str, Any]], state: Mapping[str, Any] | None = None
) -> Frozen:
    """The network with these parameters, folded if it is one that ``fold`` takes.

    Args:
      model: any.
      params: of the model.
      state: of the model, its running statistics; those that ``fold`` takes have none.

    Raises:
      InputError: the model has running statistics, and there is no state.
    """
    if _is_foldable(model):
        return fold(model, params)
    _, expected = jax.eval_shape(model.init, jax.random.key(0), _image())
    if expected and not state:
        raise InputError(
            f"the running statistics of {model.name} are missing; the workdir of a run has them"
        )

    def forward(weights: Any, images: jax.Array, policy: Policy = _DEFAULT) -> Outputs:
        params, state = weights
        return model.with_policy(policy).forward(params, state, None, images, False)[0]

    prepared = jax.jit(lambda params: model.prepare(params, _image()))(params)
    return Frozen((prepared, state or {}), forward)


def _is_foldable(model: Model) -> bool:
    """Returns whether ``folding`` knows the network's blocks."""
    return isinstance(model.config, NFNetConfig) and model.config.block is NFBlock


def _image() -> Any:
    return jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)


def fold(model: Model, params: Mapping[str, Mapping[str, Any]]) -> Frozen:
    """The network with weights that are computed once and hold all its constants.

    Kernels are standardized; the activations' constants, beta, alpha and the skip gains move into
    the convolutions beside them.

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
        weights = folding.fold(exact.prepare(params, _image()), config)
        return {
            module: values if module == model.classifier else jax.tree.map(_cast(dtype), values)
            for module, values in weights.items()
        }

    def forward(weights: Any, images: jax.Array, policy: Policy = _DEFAULT) -> Outputs:
        def network(images: jax.Array) -> Outputs:
            module = NFNet(config, model.num_classes, policy, prepared=True, folded=True)
            return module(images.astype(dtype), features=model.features)

        return hk.transform(network).apply(weights, None, images)

    return Frozen(folded(params), forward)


def _cast(dtype: Any) -> Callable[[jax.Array], jax.Array]:
    return lambda array: array.astype(dtype)


def export(
    network: Frozen,
    image_shape: Sequence[int],
    *,
    batch: int | None = None,
    dtype: Any = jnp.float32,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> bytes:
    """The network with its weights as a StableHLO artifact, to be run with jax alone.

    Args:
      network: what is exported.
      image_shape: ``[H, W, C]``.
      batch: how many images it takes; any number if None.
      dtype: of the images.
      platforms: of ``PLATFORMS``, those that it can run on.

    Returns:
      What ``jax.export.deserialize`` takes, in any process with jax and flatbuffers. Its ``call``
      maps images to the outputs of ``network``.

    Raises:
      InputError: an unknown platform, or flatbuffers is not installed.

    Example:
      >>> import nfnets_jax
      >>> model = nfnets_jax.create_model("nfnet_micro", num_classes=10)
      >>> images = jnp.zeros((2, 8, 8, 1))
      >>> params, _ = model.init(jax.random.key(0), images)
      >>> artifact = export(fold(model, params), image_shape=(8, 8, 1))
      >>> jax.export.deserialize(bytearray(artifact)).call(images)["logits"].shape
      (2, 10)
    """
    unknown = [platform for platform in platforms if platform not in PLATFORMS]
    if unknown or not platforms:
        raise InputError(f"no platform {''.join(unknown[:1])!r}; there are {', '.join(PLATFORMS)}")

    of_cpus, of_others = _form(network, "cpu"), _form(network, "other")

    def run(images: jax.Array) -> Outputs:
        if "cpu" not in platforms:
            return of_others(images)
        return lax.platform_dependent(images, cpu=of_cpus, default=of_others)

    size: Any = jax.export.symbolic_shape("batch")[0] if batch is None else batch
    images = jax.ShapeDtypeStruct((size, *image_shape), dtype)
    exported = jax.export.export(jax.jit(run), platforms=platforms)(images)
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise InputError("an artifact needs a package: pip install flatbuffers") from error


def export_onnx(network: Frozen, image_shape: Sequence[int], dtype: Any = jnp.float32) -> bytes:
    """The network with its weights as an ONNX model, by jax2onnx.

    Its input ``images`` is ``[N, H, W, C]``, of any ``N``; its outputs are those of ``network``, by
    their names.

    Args:
      network: what is exported.
      image_shape: ``[H, W, C]``.
      dtype: of the images.

    Raises:
      InputError: jax2onnx is not installed.
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise InputError("ONNX needs a package: pip install jax2onnx") from error
    # ONNX has grouped convolutions, as the backends other than XLA's for CPUs do.
    run = _form(network, "onnx")
    names = sorted(jax.eval_shape(run, jax.ShapeDtypeStruct((1, *image_shape), dtype)))
    any_number: Any = jax.ShapeDtypeStruct(("N", *image_shape), dtype)
    model = jax2onnx.to_onnx(
        lambda images: tuple(run(images)[name] for name in names),
        [any_number],
        input_names=["images"],
        output_names=names,
    )
    return model.SerializeToString()


def _form(network: Frozen, backend: str) -> Callable[[jax.Array], Outputs]:
    """Returns the network as a function of images, in the form for a backend."""
    return lambda images: network.forward(network.weights, images, Policy(backend=backend))
