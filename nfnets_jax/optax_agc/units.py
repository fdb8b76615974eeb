"""Units of a layer: which axes of an array run inside a unit, by the conventions of a framework.

A unit holds the weights of one output: a column of a Haiku matrix ``[I, O]``, a filter of a kernel
HWIO, a vector of an embedding, the whole of a bias. Its norm is taken over the axes that run inside
it.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Path = tuple[Any, ...]
Axes = int | Sequence[int]

# The axes inside a unit where optax has a rule for the rank: [I, O], [I, heads, O], HWIO, DHWIO.
_AXES_BY_RANK = {2: (0,), 3: (0,), 4: (0, 1, 2), 5: (0, 1, 2, 3)}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter as a convention sees it.

    Attributes:
      layer: names of the modules that hold it, outermost first.
      name: its own name.
      shape: its shape.
      siblings: shapes of all parameters of the same layer, by name.
    """

    layer: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    siblings: Mapping[str, tuple[int, ...]]

    def without_first_axis(self) -> "Parameter":
        """Returns one of the equal layers that the first axis counts."""
        siblings = {name: shape[1:] for name, shape in self.siblings.items()}
        return dataclasses.replace(self, shape=self.shape[1:], siblings=siblings)

    @property
    def is_vector(self) -> bool:
        """Whether at most one axis is longer than 1."""
        return _is_vector(self.shape)


@dataclasses.dataclass(frozen=True)
class Convention:
    """How a framework lays out its layers, recognized by names and shapes.

    A layer whose units cannot be recognized is an error; ``stacked`` and ``override`` say what it
    is.

    Attributes:
      name: of the framework, for messages.
      rule: returns the axes inside a unit of one layer's parameter; None if it does not know.
      stack: a regular expression. A part of a parameter's name that matches it whole means a first
        axis that counts equal layers.
      first: asked before the rule, ``(path, parameter) -> axes`` or None.
    """

    name: str
    rule: Callable[[Parameter], tuple[int, ...] | None]
    stack: str = "(?!)"
    first: Callable[[Path, jax.Array], Axes | None] | None = None

    def stacked(self, layers: str) -> "Convention":
        """Returns the convention with a first axis that counts equal layers in some layers.

        Flax's ``nn.scan`` and ``nnx.vmap`` make such layers, and Equinox's ``filter_vmap``.

        Args:
          layers: a regular expression that a part of the parameter's name, between slashes, must
            match whole.
        """
        return dataclasses.replace(self, stack=f"{self.stack}|{layers}")

    def override(self, unit_axes: Callable[[Path, jax.Array], Axes | None]) -> "Convention":
        """Returns the convention with ``(path, parameter) -> axes`` asked first.

        Where the function returns None, the convention decides.
        """
        return dataclasses.replace(self, first=unit_axes)

    def layer_axes(self, param: Parameter) -> int:
        """Returns the number of first axes that count equal layers."""
        return sum(re.fullmatch(self.stack, part) is not None for part in param.layer)

    def axes(self, param: Parameter) -> tuple[int, ...]:
        """Returns the axes of a parameter that run inside a unit, counted from 0.

        Raises:
          ValueError: the layer is not recognized.
        """
        stacks = self.layer_axes(param)
        one = param
        for _ in range(stacks):
            one = one.without_first_axis()
        axes = tuple(range(len(one.shape))) if one.is_vector else self.rule(one)
        if axes is None:
            name = "/".join((*param.layer, param.name))
            raise ValueError(
                f"the units of {name}, {param.shape}, cannot be recognized by names and shapes: "
                f"say unit_axes={self.name}.override(...), or {self.name}.stacked(...) if its "
                "first axis counts layers"
            )
        return tuple(stacks + axis for axis in axes)


UnitAxes = Axes | Callable[[Path, jax.Array], Axes | None] | Convention


def _all_but(axis: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(i for i in range(len(shape)) if i != axis % len(shape))


def _is_embedding(param: Parameter) -> bool:
    """Returns whether it is a table of vectors; each is a unit, tied to the logits or not."""
    return "embed" in param.name and len(param.shape) in (2, 3)


def _haiku(param: Parameter) -> tuple[int, ...] | None:
    rank, shape = len(param.shape), param.shape
    bias = param.siblings.get("b")
    if _is_embedding(param):
        return (rank - 1,)
    if param.name in ("b", "scale", "offset", "bias", "gain") or rank > 5:
        return None
    if rank == 2:
        return (0,)
    if not param.name.startswith("w") or (bias and not _is_vector(bias)):
        return None
    # Transposed convolutions have [..., O, I], the others [..., I, O].
    if "transpose" in param.layer[-1]:
        return _all_but(-2, shape)
    if bias is None or math.prod(bias) == shape[-1]:
        return _all_but(-1, shape)
    return _all_but(-2, shape) if math.prod(bias) == shape[-2] else None


_PROJECTION = re.compile(r"query|key|value|qkv")
_MAY_BE_GENERAL = re.compile(r"(?i)dense|linear|einsum|query|key|value|qkv|^out")


def _flax(param: Parameter) -> tuple[int, ...] | None:
    rank, shape = len(param.shape), param.shape
    layer = param.layer[-1] if param.layer else ""
    if _is_embedding(param):
        return (rank - 1,)
    if param.name == "bias":
        kernel = param.siblings.get("kernel", ())
        return tuple(range(rank)) if _fits(kernel, shape) else None
    if param.name == "scale":
        return None
    if rank == 2:
        return (0,)
    if param.name != "kernel":
        return None
    if rank == 3 and _PROJECTION.fullmatch(layer):
        return (0,)
    if rank == 3 and layer == "out":
        return (0, 1)
    if bias := param.siblings.get("bias"):
        return tuple(range(rank - len(bias))) if _fits(shape, bias) else None
    if "conv" in layer.lower() or (rank in (4, 5) and not _MAY_BE_GENERAL.search(layer)):
        return _all_but(-1, shape)
    return None


def _fits(kernel: tuple[int, ...], bias: tuple[int, ...]) -> bool:
    """Returns whether a kernel is surely ``[inputs..., outputs...]`` for a bias ``[outputs...]``.

    It is not sure if both may have a first axis of layers.
    """
    outputs = len(bias)
    if len(kernel) <= outputs or kernel[-outputs:] != bias:
        return False
    return outputs == 1 or kernel[0] != bias[0] or kernel[1 - outputs :] != bias[1:]


def _output_first(param: Parameter, transposed: bool = False) -> tuple[int, ...] | None:
    rank, shape = len(param.shape), param.shape
    layer = "/".join(param.layer).lower()
    bias = param.siblings.get("bias") if param.name == "weight" else None
    if _is_embedding(param):
        return (rank - 1,)
    if "bias" in param.name or (bias is not None and not _is_vector(bias)):
        return None
    if rank == 2:
        return (1,)
    if param.name != "weight" or (bias is None and rank == 3 and "conv" not in layer):
        return None
    outputs = math.prod(bias) if bias else None
    if transposed and re.search("transpose|deconv", layer):
        return _all_but(1, shape) if outputs in (None, shape[1]) else None
    if outputs in (None, shape[0]):
        return _all_but(0, shape)
    return _all_but(1, shape) if transposed and outputs == shape[1] else None


def _pytorch(param: Parameter) -> tuple[int, ...] | None:
    return _output_first(param, transposed=True)


#: ``[I, O]``, ``WIO``, ``HWIO``, ``DHWIO``; ``[..., O, I]`` of transposed convolutions; the vectors
#: of ``hk.Embed``; layers of ``hk.experimental.layer_stack``.
haiku = Convention("haiku", _haiku, stack="__layer_stack.*")

#: Linen and NNX: ``[inputs..., outputs...]`` of ``Dense``, ``DenseGeneral``, attention and
#: convolutions; the vectors of ``Embed``; layers of ``nn.scan`` by Linen's names, ``ScanBlock_0``.
#: In kernels with more than two axes and no known name, the bias says which axes are outputs.
flax = Convention("flax", _flax, stack="Scan[A-Z].*")

#: ``[O, I]`` and ``[O, I, ...]``, transposed convolutions likewise; the rows of ``Embedding``.
equinox = Convention("equinox", _output_first)

#: The layout of Equinox, but ``[I, O, ...]`` of transposed convolutions, recognized by their name
#: or their bias.
pytorch = Convention("pytorch", _pytorch)


def name_of(path: Path) -> str:
    """Returns a parameter's name, ``layer/kernel``, for its path in a tree."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    # The leaf of a flax.nnx.Param is an attribute of it.
    of_variable = isinstance(path[-1], jax.tree_util.GetAttrKey) if path else False
    return name.removesuffix("/value") if of_variable else name


def with_paths(tree: Any, none_is_leaf: bool = False) -> list[tuple[Path, Any]]:
    """Returns the leaves of a tree with their paths."""
    return jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=(lambda x: x is None) if none_is_leaf else None
    )


def describe(params: Any) -> dict[str, Parameter]:
    """Returns every parameter of a tree as a convention sees it, by its name."""
    shapes = {name_of(path): jnp.shape(param) for path, param in with_paths(params)}
    layers: dict[tuple[str, ...], dict[str, tuple[int, ...]]] = {}
    split = {name: tuple(re.split(r"[/.]", name)) for name in shapes}
    for name, shape in shapes.items():
        *layer, own = split[name]
        layers.setdefault(tuple(layer), {})[own] = shape
    return {
        name: Parameter(parts[:-1], parts[-1], shapes[name], layers[parts[:-1]])
        for name, parts in split.items()
    }


def axes_of(
    path: Path, param: jax.Array, unit_axes: UnitAxes | None, described: Mapping[str, Parameter]
) -> tuple[int, ...]:
    """Returns the axes of a parameter that run inside a unit, counted from 0.

    Args:
      path: of the parameter in its tree.
      param: the parameter.
      unit_axes: a convention, a function, axes for all, or None for the rules by rank.
      described: all parameters, as ``describe`` returns them.

    Raises:
      ValueError: the units are not recognized, or an axis is out of range.
    """
    name = name_of(path)
    asked = unit_axes.first if isinstance(unit_axes, Convention) else unit_axes
    axes = asked(path, param) if callable(asked) else asked
    if axes is None and isinstance(unit_axes, Convention):
        axes = unit_axes.axes(described[name])
    if axes is None:
        axes = _axes_by_rank(name, param.shape)
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    for axis in axes:
        if not -param.ndim <= axis < param.ndim:
            raise ValueError(f"{name}, {param.shape}, has no axis {axis}, which unit_axes gave")
    return tuple(sorted({axis % param.ndim for axis in axes}))


def _axes_by_rank(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if _is_vector(shape):
        return tuple(range(len(shape)))
    if len(shape) not in _AXES_BY_RANK:
        raise ValueError(
            f"{name} has {len(shape)} axes, {shape}: say with unit_axes which of them run inside a "
            "unit"
        )
    return _AXES_BY_RANK[len(shape)]


def _is_vector(shape: tuple[int, ...]) -> bool:
    return sum(length != 1 for length in shape) <= 1
