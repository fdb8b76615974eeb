"""Exports networks to be run without this repository: StableHLO and ONNX."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jax import lax

from nfnets_jax.errors import InputError
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.serving.frozen import Frozen, Outputs

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    network: Frozen,
    image_shape: Sequence[int],
    *,
    batch: int | None = None,
    dtype: Any = jnp.float32,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> bytes:
    """Exports a network with its weights as a StableHLO artifact, which runs with jax alone.

    Args:
      network: the network.
      image_shape: ``[H, W, C]``.
      batch: number of images that it takes; any number if None.
      dtype: of the images.
      platforms: those of ``PLATFORMS`` that it runs on.

    Returns:
      The artifact; ``jax.export.deserialize`` reads it in any process with jax and flatbuffers. Its
      ``call`` maps images to the outputs of ``network``.

    Raises:
      InputError: an unknown platform, or flatbuffers is not installed.

    Example:
      >>> import nfnets_jax
      >>> from nfnets_jax.serving.frozen import freeze
      >>> model = nfnets_jax.create_model("nfnet_micro", num_classes=10)
      >>> images = jnp.zeros((2, 8, 8, 1))
      >>> params, _ = model.init(jax.random.key(0), images)
      >>> artifact = export(freeze(model, params), image_shape=(8, 8, 1))
      >>> jax.export.deserialize(bytearray(artifact)).call(images)["logits"].shape
      (2, 10)
    """
    unknown = [platform for platform in platforms if platform not in PLATFORMS]
    if unknown or not platforms:
        raise InputError(f"no platform {''.join(unknown[:1])!r}; there are {', '.join(PLATFORMS)}")

    on_cpu, elsewhere = _form(network, "cpu"), _form(network, "other")

    def run(images: jax.Array) -> Outputs:
        if "cpu" not in platforms:
            return elsewhere(images)
        return lax.platform_dependent(images, cpu=on_cpu, default=elsewhere)

    size: Any = jax.export.symbolic_shape("batch")[0] if batch is None else batch
    images = jax.ShapeDtypeStruct((size, *image_shape), dtype)
    exported = jax.export.export(jax.jit(run), platforms=platforms)(images)
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise InputError("an artifact needs a package: pip install flatbuffers") from error


def export_onnx(network: Frozen, image_shape: Sequence[int], dtype: Any = jnp.float32) -> bytes:
    """Exports a network with its weights as an ONNX model, by jax2onnx.

    Its input ``images`` is ``[N, H, W, C]``, of any ``N``; its outputs have the names of the
    outputs of ``network``.

    Args:
      network: the network.
      image_shape: ``[H, W, C]``.
      dtype: of the images.

    Raises:
      InputError: jax2onnx is not installed.
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise InputError("ONNX needs a package: pip install jax2onnx") from error
    # ONNX has grouped convolutions of its own.
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
    policy = Policy(backend=backend)
    return lambda images: network.forward(network.weights, images, policy)
