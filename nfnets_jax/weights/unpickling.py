"""Reads pickles of arrays without running their code.

Python's own reader imports and calls whatever a file names. This one takes the instructions from
``pickletools``, knows only those that containers of arrays need, and looks up every name in the
caller's table of constructors. It imports nothing.
"""

import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NoReturn

from nfnets_jax.errors import InputError

# The largest published file has some 50,000. Each takes less than a hundred bytes beside the file's
# own, so that this bounds the memory too.
_MOST_INSTRUCTIONS = 1_000_000

_CONSTANTS: Mapping[str, Any] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
}
_LITERALS = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
_TUPLES: Mapping[str, int] = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# Errors of instructions that do not fit each other.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


class Buildable:
    """An object of a constructor that a state, later in the file, completes."""

    def build(self, state: Any) -> None:
        """Takes the state; any error of ``_DAMAGE`` means that the file is damaged."""
        raise NotImplementedError


class Constructor:
    """An allowed name, which a file may call."""

    def __init__(self, call: Callable[..., Any]):
        self.call = call


class RefusedError(ValueError):
    """The file asks for something that files of parameters do not need."""


def unpickle(
    file: BinaryIO,
    name: str,
    constructors: Mapping[str, Callable[..., Any]],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads the object in a pickle of protocol 2 to 5.

    Args:
      file: read from its position; a read must not take more memory than the rest of the file, as
        with ``mmap`` and ``io.BytesIO``.
      name: for messages.
      constructors: ``{"module.name": function}``; functions are called with the file's arguments
        and must check them.
      persistent: returns the object of a persistent id; None if there are none.

    Raises:
      InputError: the file is damaged, or asks for something else, which the message names.
    """
    machine = _Machine(constructors, persistent)
    try:
        return machine.run(file)
    except RefusedError as error:
        raise InputError(f"{name}: refused {error}; files of parameters do not need it") from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise InputError(f"{name} is damaged or not a file of parameters: {reason}") from error


class _Machine:
    """The stack machine that runs a pickle."""

    def __init__(
        self,
        constructors: Mapping[str, Callable[..., Any]],
        persistent: Callable[[Any], Any] | None,
    ):
        self._constructors = {name: Constructor(call) for name, call in constructors.items()}
        self._persistent = persistent
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        """Runs all instructions and returns the result."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count == _MOST_INSTRUCTIONS:
                raise RefusedError(f"more than {_MOST_INSTRUCTIONS:,} instructions")
            if opcode.name == "STOP":
                return self._stack.pop()
            self._execute(opcode.name, argument)
        raise ValueError("it ends early")

    def _execute(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        if opcode in _LITERALS:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _TUPLES:
            size = _TUPLES[opcode]
            stack.append(tuple(self._pop() for _ in range(size))[::-1])
        else:
            match opcode:
                case "PROTO" | "FRAME" | "READONLY_BUFFER":
                    pass
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "MARK":
                    self._outer.append(stack)
                    self._stack = []
                case "TUPLE":
                    items = tuple(self._pop_to_mark())
                    self._stack.append(items)
                case "POP":
                    self._pop()
                case "MEMOIZE":
                    self._memo[len(self._memo)] = stack[-1]
                case "BINPUT" | "LONG_BINPUT":
                    self._memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(self._memo[argument])
                case "SETITEM":
                    value, key = self._pop(), self._pop()
                    self._set_items([key, value])
                case "SETITEMS":
                    self._set_items(self._pop_to_mark())
                case "APPEND":
                    self._extend([self._pop()])
                case "APPENDS":
                    self._extend(self._pop_to_mark())
                case "GLOBAL":
                    stack.append(self._find(*argument.split(" ", 1)))
                case "STACK_GLOBAL":
                    attribute, module = self._pop(), self._pop()
                    stack.append(self._find(module, attribute))
                case "REDUCE" | "NEWOBJ":
                    arguments, constructor = self._pop(), self._pop()
                    stack.append(_called(constructor, arguments))
                case "BUILD":
                    state = self._pop()
                    if not isinstance(stack[-1], Buildable):
                        raise RefusedError(f"a state for a {type(stack[-1]).__name__}")
                    stack[-1].build(state)
                case "BINPERSID" if self._persistent:
                    stack.append(self._persistent(self._pop()))
                case _:
                    raise RefusedError(f"the instruction {opcode}")

    def _pop(self) -> Any:
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise RefusedError(f"items for a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing deeply nested tuples would overflow the stack.
            if not isinstance(key, str):
                raise RefusedError(f"a key that is a {type(key).__name__}, not a string")
            target[key] = value

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise RefusedError(f"items for a {type(self._stack[-1]).__name__}")
        self._stack[-1].extend(items)

    def _find(self, module: Any, attribute: Any) -> Constructor:
        if not (isinstance(module, str) and isinstance(attribute, str)):
            _refuse_name("that is no string")
        name = f"{module}.{attribute}"
        if name not in self._constructors:
            _refuse_name(repr(name[:100]))
        return self._constructors[name]


def _refuse_name(name: str) -> NoReturn:
    raise RefusedError(f"the name {name}")


def _called(constructor: Any, arguments: Any) -> Any:
    if not isinstance(constructor, Constructor) or not isinstance(arguments, tuple):
        raise RefusedError(f"a call of a {type(constructor).__name__}")
    return constructor.call(*arguments)
