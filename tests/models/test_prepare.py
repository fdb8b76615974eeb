from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest

import nfnets_jax
from nfnets_jax.models.prepare import LayerStack, stacked, unstacked

STACKS = (LayerStack("net/~/__layer_stack_1/block", ("net/~/block_1", "net/~/block_2")),)
SINGLE = {"net/~/block": {"gain": np.ones(3)}, "net/~/block_10/~/conv": {"w": np.ones(2)}}


def layer(by: float) -> dict[str, np.ndarray]:
    return {"w": by * np.arange(6.0).reshape(3, 2), "gain": by * np.ones(2)}


def published() -> dict[str, Any]:
    blocks = {f"net/~/block_{place}/~/conv": layer(place) for place in (1, 2)}
    gains = {f"net/~/block_{place}": {"gain": np.float32(place)} for place in (1, 2)}
    return SINGLE | blocks | gains


def test_equal_layers_become_one_module_and_the_rest_stays() -> None:
    tree = stacked(published(), STACKS)
    assert tree.keys() == SINGLE.keys() | {
        "net/~/__layer_stack_1/block",
        "net/~/__layer_stack_1/block/~/conv",
    }
    np.testing.assert_array_equal(tree["net/~/__layer_stack_1/block"]["gain"], [1, 2])
    kernels = tree["net/~/__layer_stack_1/block/~/conv"]["w"]
    np.testing.assert_array_equal(kernels, [layer(1)["w"], layer(2)["w"]])
    np.testing.assert_array_equal(tree["net/~/block_10/~/conv"]["w"], np.ones(2))
    assert stacked(tree, STACKS).keys() == tree.keys()


@pytest.mark.parametrize(
    "on", [lambda tree: tree, lambda tree: jax.tree.map(jax.numpy.array, tree)]
)
def test_unstacked_undoes_stacked(on: Callable[[Any], Any]) -> None:
    tree = on({"step": np.int32(3), "params": published(), "moments": (published(), [])})
    back = unstacked(stacked(tree, STACKS), STACKS)
    assert str(jax.tree.structure(back)) == str(jax.tree.structure(tree))
    jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_unstacked_copies_nothing_on_the_host() -> None:
    tree = stacked(published(), STACKS)
    part = unstacked(tree, STACKS)["net/~/block_2/~/conv"]["w"]
    assert np.shares_memory(part, tree["net/~/__layer_stack_1/block/~/conv"]["w"])


@pytest.mark.parametrize("name", ["nfnet_f2", "nf_resnet101", "nf_regnet_b1"])
def test_a_deep_network_has_all_its_parameters_in_either_form(name: str) -> None:
    """An optimizer's state stacks too, and ``apply`` reads the stacked names."""
    model = nfnets_jax.create_model(name, 10, looped_blocks=2)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    params, state = jax.eval_shape(model.init, jax.random.key(0), images)
    moments = jax.eval_shape(optax.adam(0.1).init, params)
    tree = jax.eval_shape(model.stacked, (params, moments))
    assert len(jax.tree.leaves(tree)) < 0.6 * len(jax.tree.leaves((params, moments)))
    assert jax.eval_shape(model.unstacked, tree) == (params, moments)
    outputs, _ = jax.eval_shape(
        lambda params, images: model.apply(params, state, None, images, False), tree[0], images
    )
    assert outputs["logits"].shape == (1, 10)
