"""The time of Adaptive Gradient Clipping, over optax's and over what memory allows.

    python -m benchmarks.agc --rounds=3

Writes ``agc_DEVICE.md``, ``.json`` and ``.png`` to ``benchmarks/results``. The trees are NFNet-F0's
and a transformer's of 124M parameters (GPT-2 small); the gradients are given up to the result, as
in a training step. The floor is the sum of two arrays of all the parameters' length, in place: it
reads gradients and parameters once and writes once. ``--only=ours --tree=nfnet_f0`` prints one
figure as JSON.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import nfnets_jax
from benchmarks import compare, machine
from nfnets_jax import optax_agc

_CLIPPING = 0.01


def main() -> None:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="updates that are timed, after two")
    parser.add_argument("--only", choices=RUNS)
    parser.add_argument("--tree", choices=TREES, default="nfnet_f0")
    parser.add_argument("--out", type=Path, default=compare.RESULTS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.tree, arguments.steps)))
        return
    command = [sys.executable, "-m", "benchmarks.agc", f"--steps={arguments.steps}"]
    comparisons = {
        f"AGC of {tree}, over {other}": compare.Comparison(
            [*command, f"--tree={tree}", "--only=ours"],
            [*command, f"--tree={tree}", f"--only={which}"],
            arguments.rounds,
        )
        for tree in TREES
        for which, other in (("optax", "optax's"), ("floor", "the memory's floor"))
    }
    compare.measure(comparisons, {"optax": optax.__version__}, arguments.out / "agc")


def measure(which: str, tree: str, steps: int) -> dict[str, Any]:
    """The median time of one update, and what it was measured on."""
    key = jax.random.key(0)
    shapes = TREES[tree]()
    params, grads = (
        jax.tree.map(lambda s, scale=scale: scale * jax.random.normal(key, s.shape), shapes)
        for scale in (0.05, 0.005)
    )
    count = sum(param.size for param in jax.tree.leaves(params))
    if which == "floor":
        params, grads = jnp.ones(count), jnp.ones(count)
    compilation = machine.compilation(jax.jit(RUNS[which], donate_argnums=0), grads, params)

    def run() -> Any:
        nonlocal grads
        grads = compilation.run(grads, params)
        return grads

    machine.seconds(run, 2)
    seconds = statistics.median(machine.seconds(run, steps))
    return {
        "seconds": seconds,
        "parameters": count,
        "bytes_per_second": 3 * 4 * count / seconds,
        "compile_seconds": compilation.seconds,
        **machine.describe(),
    }


def _update(agc: optax.GradientTransformation) -> Callable[[Any, Any], Any]:
    return lambda grads, params: agc.update(grads, agc.init(params), params)[0]


def _nfnet_f0() -> Any:
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    model = nfnets_jax.create_model("nfnet_f0")
    params, _ = jax.eval_shape(model.init, jax.random.key(0), images)
    return params


def _transformer() -> Any:
    """GPT-2 small (Radford et al. 2019), in Haiku's layout, its embedding tied."""
    width, layers, tokens, positions = 768, 12, 50257, 1024
    linear = {
        "query": (width, width),
        "key": (width, width),
        "value": (width, width),
        "linear": (width, width),
        "up": (width, 4 * width),
        "down": (4 * width, width),
    }
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "tokens": {"embeddings": (tokens, width)},
        "positions": {"embeddings": (positions, width)},
        "norm": {"scale": (width,), "offset": (width,)},
    }
    for layer in range(layers):
        for name, shape in linear.items():
            shapes[f"block_{layer}/{name}"] = {"w": shape, "b": shape[1:]}
        for name in ("norm", "norm_1"):
            shapes[f"block_{layer}/{name}"] = {"scale": (width,), "offset": (width,)}
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


TREES: dict[str, Callable[[], Any]] = {"nfnet_f0": _nfnet_f0, "transformer_124m": _transformer}
RUNS: dict[str, Callable[[Any, Any], Any]] = {
    "ours": _update(optax_agc.adaptive_grad_clip(_CLIPPING)),
    "optax": _update(optax.adaptive_grad_clip(_CLIPPING)),
    "floor": jnp.add,
}


if __name__ == "__main__":
    main()
