"""Measures the time of a training step or of inference; prints one line of JSON.

    python -m benchmarks.train_step --model=nfnet_f0 --batch=8 --size=192 --steps=5

The training step is that of ``experiments.run`` on one device: loss, gradient, AGC, SGD with
Nesterov momentum, and the moving average of the parameters. ``--forward`` measures inference,
``--forward --folded`` that of the weights from ``nfnets_jax.serving.frozen.fold``.
"""

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

import nfnets_jax
from benchmarks import machine
from experiments import process
from nfnets_jax.data.sources import open_dataset
from nfnets_jax.devices import fetch, replicate, transfer
from nfnets_jax.errors import InputError
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models import counting
from nfnets_jax.models.nfnet import WSConv2D
from nfnets_jax.models.registry import PRECISIONS, Model
from nfnets_jax.models.stage import REMAT
from nfnets_jax.serving.frozen import fold
from nfnets_jax.training import step
from nfnets_jax.training.memory import planned_bytes
from nfnets_jax.training.recipe import sgd_in_place

_CLASSES = 1000
_EMA_DECAY = 0.9999
_WARMUP_STEPS = 2


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nfnet_f0")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--size", type=int, default=192, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after two untimed ones")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--remat", default="none", choices=REMAT)
    parser.add_argument("--forward", action="store_true", help="inference instead of training")
    parser.add_argument("--folded", action="store_true", help="folded weights; with --forward")
    parser.add_argument("--plain", action="store_true", help="XLA's own convolutions")
    parser.add_argument(
        "--batch_norm", action="store_true", help="an NFNet's convolutions normalize batches"
    )
    arguments = parser.parse_args()
    process.keep_freed_memory()
    try:
        if arguments.folded and not arguments.forward:
            raise InputError("--folded applies to inference: add --forward")
        print(json.dumps(measure(arguments)))
    except InputError as error:
        sys.exit(str(error))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns settings, seconds, images per second, bytes, FLOPs and the machine, by name."""
    # Not all networks have the setting.
    remat = {} if arguments.remat == "none" else {"remat": arguments.remat}
    model = nfnets_jax.create_model(
        arguments.model, _CLASSES, precision=arguments.precision, **remat
    )
    shape = (arguments.batch, arguments.size, arguments.size, 3)
    if arguments.plain:
        model = model.with_policy(Policy(native=True))
    normalizing = hk.intercept_methods(_normalize) if arguments.batch_norm else nullcontext()
    with normalizing:
        if arguments.forward:
            measured = _measure_forward(model, shape, arguments.steps, arguments.folded)
        else:
            measured = _measure_training(model, shape, arguments.steps)
    forward = 2.0 * counting.summarize(model, arguments.size).work.multiply_adds
    flops_per_image = forward * (1 if arguments.forward else 3)
    rate = flops_per_image * arguments.batch / measured["seconds"]
    precision = model.product_policy.precision_of(model.dtype)
    matmul_rate = machine.matmul_rate(model.dtype, precision)
    return {
        **vars(arguments),
        **measured,
        "images_per_second": arguments.batch / measured["seconds"],
        "flops_per_image": flops_per_image,
        "flops_per_second": rate,
        "matmul_flops_per_second": matmul_rate,
        "share_of_matmul_rate": rate / matmul_rate,
        **machine.describe(),
    }


def _normalize(call: Callable[..., Any], args: Any, kwargs: Any, context: hk.MethodContext) -> Any:
    """Normalizes what a convolution of an NFNet returns by the batch's statistics."""
    x = call(*args, **kwargs)
    if not isinstance(context.module, WSConv2D) or context.method_name != "__call__":
        return x
    wide, axes = x.astype(jnp.float32), (0, 1, 2)
    mean = jnp.mean(wide, axes)
    scale = jax.lax.rsqrt(jnp.mean(wide**2, axes) - mean**2 + 1e-5)
    return x * scale.astype(x.dtype) - (mean * scale).astype(x.dtype)


class Training(NamedTuple):
    """The optimizer and the update of a training step, from ``nfnets_jax.training.step``."""

    optimizer: optax.GradientTransformation
    update: Any


def make_training(model: Model, size: int) -> Training:
    """Returns the training step on one device, for images of ``size`` pixels a side."""
    optimizer = sgd_in_place(0.1)
    update = step.make_update(
        model,
        optimizer,
        open_dataset("synthetic", size=size),
        label_smoothing=0.1,
        ema_decay=_EMA_DECAY,
        devices=jax.devices()[:1],
    )
    return Training(optimizer, update)


def _measure_training(model: Model, shape: tuple[int, ...], steps: int) -> dict[str, Any]:
    devices = jax.devices()[:1]
    optimizer, update = make_training(model, shape[1])
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, shape, np.uint8), rng.integers(0, _CLASSES, shape[:1])
    batch = transfer({"image": images, "label": labels}, devices)
    new = step.create_state(model, optimizer, shape, 0)
    state = replicate(model.stacked(new), devices)
    compilation = machine.compilation(update, state, batch)

    def run() -> Any:
        nonlocal state
        state, metrics = compilation.run(state, batch)
        return metrics

    machine.seconds(run, _WARMUP_STEPS)
    median = statistics.median(machine.seconds(run, steps))
    optimizer_seconds = _optimizer_seconds(optimizer, fetch(state), steps)
    return {
        "seconds": median,
        "compile_seconds": compilation.seconds,
        "peak_bytes": _peak_bytes(compilation.run),
        "optimizer_share": optimizer_seconds / median,
    }


def _measure_forward(
    model: Model, shape: tuple[int, ...], steps: int, folded: bool
) -> dict[str, Any]:
    images = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    params, state = jax.jit(model.init)(jax.random.key(0), images)
    if folded:
        network: Any = fold(model, params)
        forward = jax.jit(lambda network, x: network(x)["logits"])
    else:
        network = params
        forward = jax.jit(lambda params, x: model.apply(params, state, None, x, False)[0]["logits"])
    compilation = machine.compilation(forward, network, images)

    def run() -> Any:
        return compilation.run(network, images)

    machine.seconds(run, _WARMUP_STEPS)
    return {
        "seconds": statistics.median(machine.seconds(run, steps)),
        "compile_seconds": compilation.seconds,
        "peak_bytes": _peak_bytes(compilation.run),
    }


def _optimizer_seconds(
    optimizer: optax.GradientTransformation, state: step.TrainState, steps: int
) -> float:
    """Returns the median time of an update from given gradients: AGC, momentum and average."""
    apply = functools.partial(step.apply_gradients, optimizer, ema_decay=_EMA_DECAY)
    donating = jax.jit(apply, donate_argnums=0)
    grads = jax.tree.map(lambda param: 1e-3 * jnp.ones_like(param), state.params)
    state = jax.device_put(state)

    def run() -> Any:
        nonlocal state
        state = donating(state, grads)
        return state

    machine.seconds(run, _WARMUP_STEPS)
    return statistics.median(machine.seconds(run, steps))


def _peak_bytes(compiled: Any) -> int:
    """Returns the largest number of bytes in use: the device's count, or the compiler's plan."""
    counted = jax.devices()[0].memory_stats()
    if counted:
        return counted["peak_bytes_in_use"]
    return planned_bytes(compiled)


if __name__ == "__main__":
    main()
