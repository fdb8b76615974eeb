"""The time that the compilation of a model's gradient takes, as one line of JSON.

    python -m benchmarks.compile_time --model=nfnet_f6

Nothing is run and no parameters are made. ``--unrolled`` compiles every block by itself.
"""

import argparse
import json
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

import nfnets_jax
from benchmarks import machine


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nfnet_f6")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--unrolled", action="store_true")
    arguments = parser.parse_args()
    overrides: dict[str, Any] = {"looped_blocks": 1000} if arguments.unrolled else {}
    model = nfnets_jax.create_model(arguments.model, **overrides)
    images = jax.ShapeDtypeStruct((arguments.batch, arguments.size, arguments.size, 3), jnp.float32)
    params, state = jax.eval_shape(model.init, jax.random.key(0), images)

    @jax.jit
    @jax.grad
    def gradient(params: hk.Params, state: hk.State, images: jax.Array) -> jax.Array:
        outputs, _ = model.apply(params, state, None, images, False)
        return jnp.mean(jnp.square(outputs["logits"]))

    compilation = machine.compilation(gradient, params, state, images)
    figures = {
        "trace_seconds": compilation.trace_seconds,
        "compile_seconds": compilation.compile_seconds,
        "seconds": compilation.seconds,
    }
    print(json.dumps({**vars(arguments), **figures, **machine.describe()}))


if __name__ == "__main__":
    main()
