"""Runs a stage of residual blocks, of which all but the first are equal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import haiku as hk
import jax

from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.kernels.loop import loop
from nfnets_jax.kernels.remat import keep_arguments, rematerialization

REMAT = ("none", "block", "full")

# ``name=... -> module``, whose ``__call__`` maps ``x, *inputs`` to the next ``x``.
MakeBlock = Callable[..., hk.Module]


class Stage:
    """A stage of residual blocks.

    Args:
      first: makes the first block.
      equal: makes each of the others.
      names: of the blocks' modules, in order.
      network: name of the module that the blocks' names are below.
      stack: name of the module that holds the equal blocks' parameters, with a leading axis, to be
        run as a loop; None if each block has arrays of its own.
      prepared: whether the parameters are those of ``models.prepare``. If not, the blocks are
        ordinary modules, one after the other.
      remat: ``"none"`` keeps for the backward pass what is fastest, ``"block"`` the input of each
        block, ``"full"`` the input of the stage.
      policy: how the network is computed.
    """

    def __init__(
        self,
        first: MakeBlock,
        equal: MakeBlock,
        names: Sequence[str],
        *,
        network: str,
        stack: str | None,
        prepared: bool,
        remat: str,
        policy: Policy,
    ):
        self._first = first
        self._equal = equal
        self._names = names
        self._network = network
        self._stack = stack
        self._remat = remat
        self._rematerialize = rematerialization(remat, policy)
        self._modules: list[Any] | None = None
        if not prepared:
            makers = [first, *[equal] * (len(names) - 1)]
            self._modules = [make(name=name) for make, name in zip(makers, names, strict=True)]

    def __call__(self, x: jax.Array, *inputs: Any) -> jax.Array:
        """Applies the blocks one after the other.

        Args:
          x: the first block's input.
          *inputs: further inputs, arrays ``[blocks, ...]`` or None.

        Returns:
          The last block's output.
        """
        if self._modules is not None:
            for place, module in enumerate(self._modules):
                x = module(x, *_at(place, inputs))
            return x
        run = keep_arguments(self._run) if self._remat == "full" else self._run
        return run(self._parameters(), x, *inputs)

    def _parameters(self) -> tuple[hk.Params, Any]:
        """Returns the first block's parameters and the others', stacked or a tree a block."""
        params = hk.get_params()
        first, *rest = (_below(f"{self._network}/~/{name}", params) for name in self._names)
        if self._stack is None:
            return first, rest
        return first, _below(f"{self._network}/~/{self._stack}", params)

    def _run(self, params: tuple[hk.Params, Any], x: jax.Array, *inputs: Any) -> jax.Array:
        first, rest = params
        x = self._rematerialize(_function(self._first))(first, x, *_at(0, inputs))
        equal = _function(self._equal)
        if self._stack is not None:
            return loop(equal, rest, x, _at(slice(1, None), inputs), self._rematerialize)
        run = self._rematerialize(equal)
        for place, block in enumerate(rest, start=1):
            x = run(block, x, *_at(place, inputs))
        return x


# What a block is called while it runs as a function.
_BLOCK = "block"


def _function(make: MakeBlock) -> Callable[..., jax.Array]:
    """Returns a block as a function of its parameters and inputs."""

    def block(x: jax.Array, *inputs: Any) -> jax.Array:
        module: Any = make(name=_BLOCK)
        return module(x, *inputs)

    apply = hk.transform(block).apply
    return lambda params, x, *inputs: apply(params, None, x, *inputs)


def _below(module: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a block's parameters, named as a block called ``_BLOCK`` names them."""
    return {
        _BLOCK + name.removeprefix(module): values
        for name, values in params.items()
        if name == module or name.startswith(f"{module}/")
    }


def _at(place: int | slice, arrays: Any) -> Any:
    """Returns the arrays' entries at a place; None stays None."""
    return jax.tree.map(lambda array: array[place], arrays)
