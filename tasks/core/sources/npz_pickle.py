"""The pickle language, as far as NumPy arrays and plain values need it.

``pickle.Unpickler`` with a strict ``find_class`` runs no code of a stranger, and yet a few bytes can end the process
(a deeply nested tuple as a key overflows the stack of C when it is hashed), take gigabytes (64 MiB of empty lists),
or alter the functions that `find_class` lets through. So the instructions are carried out here: each that is not in
the table below is refused, nothing is ever imported or called, and what is built are plain values.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

STEPS_LIMIT = 2_000_000
"""Instructions of a pickle: what bounds its time (seconds) and its memory (some 200 MB)."""

DIMENSIONS_LIMIT = 64


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""Where an object lies in memory: no two runs would tell the same."""


def short(value: object) -> str:
    """A value as text of one line, for an error; the same value gives the same text."""
    text = _ADDRESS.sub("", " ".join(str(value).split()))
    return text if len(text) <= 120 else f"{text[:120]}..."


class PickleRefused(ValueError):
    """A pickle holds what no metadata needs; the message says what, as the end of "it holds ..."."""


class Known(Enum):
    """The globals that may be named; what each stands for is done here, not by NumPy."""

    RECONSTRUCT = "makes an empty array"
    NDARRAY = "the class that it makes"
    DTYPE = "makes a type"
    SCALAR = "makes a NumPy scalar"
    FROM_BUFFER = "makes an array of bytes"
    ENCODE = "how bytes are written before protocol 3"
    BYTES = "how no bytes are written before protocol 3"
    ORDERED_DICT = "a dictionary"


_GLOBALS = {
    "numpy ndarray": Known.NDARRAY,
    "numpy dtype": Known.DTYPE,
    "_codecs encode": Known.ENCODE,
    "__builtin__ bytes": Known.BYTES,
    "builtins bytes": Known.BYTES,
    "collections OrderedDict": Known.ORDERED_DICT,
} | {
    f"numpy.{core}.{name}": known
    for core in ("core", "_core")
    for name, known in (
        ("multiarray _reconstruct", Known.RECONSTRUCT),
        ("multiarray scalar", Known.SCALAR),
        ("numeric _frombuffer", Known.FROM_BUFFER),
    )
}


@dataclass(eq=False)
class Dtype:
    """A NumPy type by its short name ("f8", "U3"); `other` says what is unusual about it."""

    name: str
    order: str = "="
    other: str = ""

    @property
    def of_objects(self) -> bool:
        """Whether its values are Python objects."""
        return self.name.startswith("O")

    def numpy(self) -> np.dtype[Any] | None:
        """The type, None where its values are not plain ones."""
        if self.other or not _PLAIN.fullmatch(self.name):
            return None
        return np.dtype(self.order + self.name)


_PLAIN = re.compile(r"b1|[iu][1248]|f[248]|[US]\d{1,9}")
_ORDERS = ("<", ">", "=", "|")


@dataclass(eq=False)
class Array:
    """A NumPy array: a list of values where its type is of objects, else their bytes in C or Fortran order."""

    shape: tuple[int, ...] = ()
    dtype: Dtype | None = None
    data: bytes | list[Any] = b""

    def items(self) -> list[Any] | None:
        """The values as one list of plain values, None where they are of other kinds."""
        if isinstance(self.data, list):
            return self.data
        type_ = self.dtype.numpy() if self.dtype else None
        if type_ is None:
            return None
        if not type_.itemsize:
            return [type_.type().item()] * math.prod(self.shape)
        values: list[Any] = np.frombuffer(self.data, type_).tolist()
        return values


@dataclass(frozen=True, eq=False)
class Opaque:
    """A value of a kind that is no plain one; `kind` says which."""

    kind: str


def unpickled(data: bytes) -> object:
    """The value that a pickle describes, built of None, bool, int, float, str, bytes, list, tuple, dict and Array.

    Raises:
        PickleRefused: It names what is not needed for that, or it is damaged.
    """
    machine = _Machine()
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if step == STEPS_LIMIT:
                raise PickleRefused(f"more than {STEPS_LIMIT:,} values and instructions")
            action = _ACTIONS.get(opcode.name)
            if action is None:
                raise PickleRefused(f"the instruction {opcode.name}, which {_why(opcode.name)}")
            action(machine, argument)
    except PickleRefused:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError) as error:
        raise PickleRefused(f"a damaged pickle ({short(error)})") from error
    if len(machine.stack) != 1:
        raise PickleRefused("a damaged pickle (it does not end with one value)")
    return machine.stack[0]


def _why(opcode: str) -> str:
    if opcode in ("PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"):
        return "refers to something outside of the file"
    return "plain values and NumPy arrays do not need"


class _Machine:
    """What a pickle's instructions work on."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: object) -> None:
        self.stack.append(value)

    def mark(self, _: object) -> None:
        self.marks.append(len(self.stack))

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def top(self, type_: type) -> Any:
        value = self.stack[-1]
        if type(value) is not type_:
            raise TypeError(f"a {type_.__name__} was expected")
        return value

    def last(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise IndexError("a value is missing")
        values = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return values

    def remember(self, place: int | None) -> None:
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def recall(self, place: int) -> None:
        self.push(self.memo[place])

    def append(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is not str:
                raise PickleRefused(f"a key that is no text but of type {type(key).__name__}")
            target[key] = value

    def make_dict(self, values: list[Any]) -> None:
        self.push({})
        self.set_items(values)

    def name(self, name: str) -> None:
        known = _GLOBALS.get(name)
        if known is None:
            raise PickleRefused(f"a reference to {short(name.replace(' ', '.', 1))!r}, which is not a plain value")
        self.push(known)

    def name_of_stack(self, _: object) -> None:
        module, name = self.last(2)
        self.name(f"{module} {name}" if type(module) is str and type(name) is str else "?")

    def reduce(self, _: object) -> None:
        known, arguments = self.last(2)
        if type(known) is not Known or known not in _CALLS or type(arguments) is not tuple:
            raise PickleRefused("a call of something that cannot be called")
        self.push(_CALLS[known](*arguments))

    def build(self, _: object) -> None:
        (state,) = self.last(1)
        target = self.stack[-1]
        if type(state) is not tuple:
            raise PickleRefused(f"a state that is no tuple, for a {type(target).__name__}")
        if type(target) is Array:
            _set_array(target, *state)
        elif type(target) is Dtype:
            _set_dtype(target, *state)
        else:
            raise PickleRefused(f"a state for a {type(target).__name__}, which has none")


_Action = Callable[[_Machine, Any], None]

_ACTIONS: dict[str, _Action] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(
        ("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _Machine.push
    ),
    **dict.fromkeys(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(
        ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"), lambda machine, value: machine.push(bytes(value))
    ),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": _Machine.mark,
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "APPEND": lambda machine, _: machine.append(list(machine.last(1))),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(machine.last(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.last(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.last(3)),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": lambda machine, _: machine.make_dict(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items(list(machine.last(2))),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.recall),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_of_stack,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}


def _reconstruct(class_: object, shape: object, code: object) -> Array:
    if class_ is not Known.NDARRAY:
        raise PickleRefused("an array of a class of its own")
    return Array()


def _dtype(name: object, align: object = False, copy: object = True) -> Dtype:
    if type(name) is not str or len(name) > 20:
        raise PickleRefused("a NumPy type that has no short name")
    return Dtype(name)


def _scalar(dtype: object, data: object = b"") -> object:
    if type(dtype) is not Dtype:
        raise TypeError("a NumPy scalar without a type")
    if dtype.of_objects:
        raise PickleRefused("a NumPy scalar that holds a Python object")
    type_ = dtype.numpy()
    if type_ is None:
        return Opaque(f"NumPy's {dtype.other or dtype.name}")
    if type(data) is not bytes or len(data) != type_.itemsize:
        raise TypeError(f"a NumPy scalar of type {dtype.name} with other bytes than it needs")
    return np.frombuffer(data, type_)[0].item() if data else type_.type().item()


def _from_buffer(data: object, dtype: object, shape: object, order: object) -> Array:
    array = Array()
    _set_array(array, 1, shape, dtype, order == "F", data)
    return array


def _encode(text: object, encoding: object) -> bytes:
    if type(text) is not str or encoding != "latin1":
        raise PickleRefused("bytes in an encoding that pickles do not use")
    return text.encode("latin1")


def _ordered_dict() -> dict[str, object]:
    return {}  # its items come as instructions; `dict` itself would take keys of any kind


_CALLS: dict[Known, Callable[..., object]] = {
    Known.RECONSTRUCT: _reconstruct,
    Known.DTYPE: _dtype,
    Known.SCALAR: _scalar,
    Known.FROM_BUFFER: _from_buffer,
    Known.ENCODE: _encode,
    Known.BYTES: lambda: b"",
    Known.ORDERED_DICT: _ordered_dict,
}


def _set_dtype(
    target: Dtype, version: object, order: object, subarray: object, names: object, fields: object, *more: object
) -> None:
    """The state of a dtype, as NumPy's `dtype.__reduce__` gives it: version, byte order, parts, sizes and flags."""
    if order not in _ORDERS:
        raise ValueError("a byte order that does not exist")
    target.order = str(order)
    if subarray is not None or names is not None or fields is not None:
        target.other = "structured values"


def _set_array(target: Array, version: object, shape: object, dtype: object, fortran: object, data: object) -> None:
    """The state of an array, as NumPy's `ndarray.__reduce__` gives it: version, shape, type, order and values."""
    if type(shape) is int:
        shape = (shape,)
    if type(dtype) is not Dtype or type(shape) is not tuple or len(shape) > DIMENSIONS_LIMIT:
        raise TypeError("an array without a type or a shape")
    if any(type(one) is not int or not 0 <= one < 1 << 48 for one in shape):
        raise ValueError("an array of a shape that cannot be")
    count = math.prod(shape)
    if dtype.of_objects:
        if type(data) is not list or len(data) != count:
            raise ValueError(f"an array of shape {short(shape)} with another number of values")
    else:
        type_ = dtype.numpy()
        if type(data) is not bytes or (type_ is not None and len(data) != count * type_.itemsize):
            raise ValueError(f"an array of shape {short(shape)} with another number of bytes")
    target.shape, target.dtype, target.data = shape, dtype, data
