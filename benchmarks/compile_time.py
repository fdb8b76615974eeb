"""Measures how long a model's gradient takes to compile; prints one line of JSON.

    python -m benchmarks.compile_time --model=nfnet_f6

Nothing is run, and no parameters are created. Equal blocks are stacked, as in training;
``--published`` keeps an array for each layer, and ``--unrolled`` compiles every block by itself, so
that nothing is stacked. ``--update`` compiles a whole training step, without clipping statistics.
"""

import argparse
import json
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

import nfnets_jax
from benchmarks import machine
from benchmarks.train_step import make_training
from nfnets_jax.models.registry import Model
from nfnets_jax.training import step


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nfnet_f6")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--unrolled", action="store_true")
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--update", action="store_true")
    arguments = parser.parse_args()
    overrides: dict[str, Any] = {"looped_blocks": 1000} if arguments.unrolled else {}
    model = nfnets_jax.create_model(arguments.model, **overrides)
    shape = (arguments.batch, arguments.size, arguments.size, 3)
    compile_program = _compile_update if arguments.update else _compile_gradient
    compilation = compile_program(model, shape, arguments.published)
    figures = {
        "trace_seconds": compilation.trace_seconds,
        "compile_seconds": compilation.compile_seconds,
        "seconds": compilation.seconds,
    }
    print(json.dumps({**vars(arguments), **figures, **machine.describe()}))


def _compile_gradient(model: Model, shape: tuple[int, ...], published: bool) -> machine.Compilation:
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    params, state = jax.eval_shape(model.init, jax.random.key(0), images)
    if not published:
        params = jax.eval_shape(model.stacked, params)

    @jax.jit
    @jax.grad
    def gradient(params: hk.Params, state: hk.State, images: jax.Array) -> jax.Array:
        outputs, _ = model.apply(params, state, None, images, False)
        return jnp.mean(jnp.square(outputs["logits"]))

    return machine.compilation(gradient, params, state, images)


def _compile_update(model: Model, shape: tuple[int, ...], published: bool) -> machine.Compilation:
    training = make_training(model, shape[1])

    def create() -> step.TrainState:
        state = step.create_state(model, training.optimizer, shape, 0)
        return state if published else model.stacked(state)

    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    on_one_device = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct((1, *array.shape), array.dtype),
        (jax.eval_shape(create), {"image": images, "label": labels}),
    )
    return machine.compilation(training.update, *on_one_device)


if __name__ == "__main__":
    main()
