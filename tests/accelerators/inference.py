"""Compiles a network's inference for an H100, and prints what its kernels move."""

import argparse
import json

import jax
import jax.numpy as jnp

import nfnets_jax
from experiments import program
from experiments.targets import open_target
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.serving.frozen import freeze


def main() -> None:
    """Compiles what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", required=True)
    arguments = parser.parse_args()
    target = open_target("h100")
    model = nfnets_jax.create_model(arguments.model, precision=arguments.precision)
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    network = freeze(model, params)
    photographs = jax.ShapeDtypeStruct((16, 96, 96, 3), jnp.float32)
    weights, images = target.on_first_device((network.weights, photographs))
    policy = Policy(backend=target.backend)
    run = jax.jit(lambda weights, images: network.forward(weights, images, policy))
    kernels = program.count_kernels(str(run.lower(weights, images).compile().as_text()))
    figures = {"kernels": len(kernels), "bytes": program.moved_bytes(kernels)}
    print(json.dumps({**vars(arguments), **figures}))


if __name__ == "__main__":
    main()
