"""Pickles that name things which are not there, as hostile or foreign programs write them."""

import io
import pickle
from typing import Any


class Call:
    """Pickles as a call of ``"module.attribute"``, which then gets items and a state."""

    def __init__(
        self, name: str, *arguments: Any, state: Any = None, items: dict[str, Any] | None = None
    ):
        self.name, self.arguments, self.state, self.items = name, arguments, state, items or {}


class Name:
    """Pickles as the thing of that name."""

    def __init__(self, name: str):
        self.name = name


class Persistent:
    """Pickles as a persistent id."""

    def __init__(self, identity: Any):
        self.identity = identity


# The pickler that is written in Python can be changed; it has no types.
_InPython: Any = pickle._Pickler


class _Pickler(_InPython):
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Name):
            module, _, attribute = obj.name.rpartition(".")
            self.write(b"c" + f"{module}\n{attribute}\n".encode())
        elif isinstance(obj, Call):
            self.save(Name(obj.name))
            self.save(obj.arguments)
            self.write(b"R")
            for item in obj.items.items():
                for part in item:
                    self.save(part)
                self.write(b"s")
            if obj.state is not None:
                self.save(obj.state)
                self.write(b"b")
        elif isinstance(obj, Persistent):
            self.save(obj.identity)
            self.write(b"Q")
        else:
            super().save(obj, save_persistent_id)


def dumps(obj: Any, protocol: int = 4) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol).dump(obj)
    return file.getvalue()
