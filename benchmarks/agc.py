"""Times Adaptive Gradient Clipping beside optax's, and beside the floor that memory sets.

    python -m benchmarks.agc --rounds=100
    python -m benchmarks.agc --target=h100   # compiles for a GPU that is not there

Writes ``agc_DEVICE.md``, ``.json`` and ``.png`` to ``benchmarks/results``. The trees are NFNet-F0's
and a transformer's of 124M parameters (GPT-2 small); the gradients are donated, as in a training
step. The floor adds two arrays with as many numbers as the parameters, in place: it reads gradients
and parameters once and writes once. A round is one update of each, in one process. With
``--target`` it prints the kernels and bytes of either update instead, a line of JSON a tree.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import nfnets_jax
from benchmarks import compare, machine
from experiments import program
from experiments.targets import Target, open_target
from nfnets_jax import optax_agc

_CLIPPING = 0.01


def main() -> None:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=compare.RESULTS)
    parser.add_argument("--target", help="as experiments.plan takes it")
    arguments = parser.parse_args()
    if arguments.target:
        _compile(open_target(arguments.target))
        return
    comparisons = {}
    for name, tree in TREES.items():
        shapes = tree()
        ours, optaxs = _sides(
            shapes,
            _update(optax_agc.adaptive_grad_clip(_CLIPPING)),
            _update(optax.adaptive_grad_clip(_CLIPPING)),
        )
        (floor,) = _sides(_flat(shapes), jnp.add)
        for other, theirs in {"optax's": optaxs, "the memory's floor": floor}.items():
            title = f"AGC of {name}, over {other}"
            comparisons[title] = compare.Comparison(ours, theirs, arguments.rounds)
    compare.measure(comparisons, {"optax": optax.__version__}, arguments.out / "agc")


def _compile(target: Target) -> None:
    clips = {
        "ours": optax_agc.adaptive_grad_clip(_CLIPPING),
        "optax": optax.adaptive_grad_clip(_CLIPPING),
    }
    for tree, shapes in TREES.items():
        arrays = target.on_first_device(shapes())
        figures: dict[str, Any] = {"tree": tree, "target": target.name}
        for name, agc in clips.items():
            update = jax.jit(_update(agc), donate_argnums=0).lower(arrays, arrays)
            kernels = program.count_kernels(str(update.compile().as_text()))
            figures[name] = {"kernels": len(kernels), "bytes": program.moved_bytes(kernels)}
        print(json.dumps(figures), flush=True)


_Side = Callable[[], dict[str, Any]]


def _sides(shapes: Any, *updates: Callable[[Any, Any], Any]) -> list[_Side]:
    """Returns a function for each update that runs it once and returns its time and conditions.

    All work on the same arrays, as their place in memory changes the time by some percent.
    """
    key = jax.random.key(0)
    params, grads = (
        jax.tree.map(lambda s, scale=scale: scale * jax.random.normal(key, s.shape), shapes)
        for scale in (0.05, 0.005)
    )

    def side(update: Callable[[Any, Any], Any]) -> _Side:
        compilation = machine.compilation(jax.jit(update, donate_argnums=0), grads, params)
        described = {"compile_seconds": compilation.seconds, **machine.describe()}

        def run() -> Any:
            nonlocal grads
            grads = compilation.run(grads, params)
            return grads

        machine.seconds(run, 2)
        return lambda: {"seconds": machine.seconds(run, 1)[0], **described}

    return [side(update) for update in updates]


def _flat(shapes: Any) -> jax.ShapeDtypeStruct:
    count = sum(shape.size for shape in jax.tree.leaves(shapes))
    return jax.ShapeDtypeStruct((count,), jnp.float32)


def _update(agc: optax.GradientTransformation) -> Callable[[Any, Any], Any]:
    return lambda grads, params: agc.update(grads, agc.init(params), params)[0]


def _nfnet_f0() -> Any:
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    model = nfnets_jax.create_model("nfnet_f0")
    params, _ = jax.eval_shape(model.init, jax.random.key(0), images)
    return params


def _transformer() -> Any:
    """Returns the shapes of GPT-2 small (Radford et al. 2019), in Haiku's layout."""
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


if __name__ == "__main__":
    main()
