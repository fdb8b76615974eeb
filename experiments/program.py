"""What a compiled program does, counted in its optimized HLO: kernels, bytes, collectives."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0}
_SHAPE = re.compile(r"\b(pred|token|(?:bf|f|s|u|c)\d+)(?:e\dm\d\w*)?\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{")
_CALLED = re.compile(r"(?:to_apply|body|calls|called_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Scopes that networks give to their parts, and that of ``on_device.augment``.
_PARTS = {"images": re.compile("augmentation"), "network": re.compile(r"stem|stage_\d|head")}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that move nothing.
_FREE = frozenset(
    {
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
    }
)


class Kernel(NamedTuple):
    """An instruction that runs.

    Attributes:
      kind: ``fusion``, ``convolution``, ``product``, ``collective``, or the name of its operation.
      part: ``network`` for what bears the name of a network's part, ``images`` for augmentation,
        else ``parameters``: standardization, clipping, optimizer, moving average.
      bytes: of its operands and results, each counted once.
      runs: how often it runs: a loop runs its body as often as the compiler knows, or else once.
    """

    kind: str
    part: str
    bytes: int
    runs: int


class _Instruction(NamedTuple):
    name: str
    type: str
    operation: str
    rest: str


def count_kernels(hlo: str) -> list[Kernel]:
    """Returns the kernels of an optimized program, in the order of the text.

    A kernel in the body of a loop is one, and of a conditional the last branch runs, for true.

    Args:
      hlo: the text of the program, from ``compiled.as_text()``.
    """
    computations, entry = _parse(hlo)
    types = {each.name: each.type for body in computations.values() for each in body}
    kernels = []
    for instruction, runs in _executed(computations, entry):
        if instruction.operation in _FREE or instruction.operation.endswith("-done"):
            continue
        operands = re.findall(r"%([\w.-]+)", instruction.rest.split("), ")[0])
        moved = [instruction.type, *(types.get(operand, "") for operand in operands)]
        scope = re.search(r'op_name="([^"]*)"', instruction.rest)
        found = (part for part, name in _PARTS.items() if scope and name.search(scope[1]))
        part = next(found, "parameters")
        kernels.append(Kernel(_kind(instruction), part, sum(map(_bytes, moved)), runs))
    return kernels


def fusions(kernels: list[Kernel]) -> tuple[Counter[str], Counter[str]]:
    """Returns the number and the bytes of elementwise and reducing fusions, by part."""
    numbers: Counter[str] = Counter({"network": 0, "parameters": 0})
    moved: Counter[str] = Counter({"network": 0, "parameters": 0})
    for kernel in kernels:
        if kernel.kind == "fusion":
            numbers[kernel.part] += 1
            moved[kernel.part] += kernel.bytes
    return numbers, moved


def collective_bytes(kernels: list[Kernel]) -> int:
    """Returns the bytes of the results of all collectives, on one device."""
    # Operands and results are equally large.
    collectives = (kernel for kernel in kernels if kernel.kind == "collective")
    return sum(kernel.bytes // 2 * kernel.runs for kernel in collectives)


def moved_bytes(kernels: list[Kernel]) -> int:
    """Returns the bytes of the operands and results of all kernels, as often as they run."""
    return sum(kernel.bytes * kernel.runs for kernel in kernels)


def _kind(instruction: _Instruction) -> str:
    operation, name, rest = instruction.operation, instruction.name, instruction.rest
    if operation.removesuffix("-start") in _COLLECTIVES:
        return "collective"
    if operation == "custom-call":
        if "cudnn" in rest:
            return "convolution"
        return "product" if "cublas" in rest or "triton" in rest else operation
    if operation == "fusion":
        return "product" if "gemm" in name else operation
    return {"convolution": "convolution", "dot": "product"}.get(operation, operation)


def _parse(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns the instructions of each computation, and the name of the one that is run."""
    computations: dict[str, list[_Instruction]] = {}
    entry, body = "", []
    for line in hlo.splitlines():
        if head := _HEAD.match(line):
            body = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            body.append(_Instruction(*found.groups()))
    return computations, entry


def _executed(
    computations: dict[str, list[_Instruction]], name: str, runs: int = 1
) -> Iterator[tuple[_Instruction, int]]:
    for instruction in computations.get(name, []):
        called, often = _CALLED.findall(instruction.rest), runs
        if instruction.operation == "conditional":
            branches = _BRANCHES.search(instruction.rest)
            called = [branches[1].split(",")[-1].strip().lstrip("%")] if branches else []
        elif instruction.operation == "while":
            trips = _TRIPS.search(instruction.rest)
            often = runs * int(trips[1]) if trips else runs
        elif instruction.operation not in ("call", "async-start"):
            yield instruction, runs
            continue
        for inner in called:
            yield from _executed(computations, inner, often)


def _bytes(types: str) -> int:
    """Returns the size of the arrays in the text of a type, which may be a tuple."""
    total = 0
    for dtype, shape in _SHAPE.findall(types):
        bits = _BITS.get(dtype) or int(re.sub(r"\D", "", dtype) or 0)
        for length in filter(None, shape.split(",")):
            bits *= int(length)
        total += bits // 8
    return total
