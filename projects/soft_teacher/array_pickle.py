"""Pickles of numpy arrays, as model zoos have them, read without calling what they name.

A pickle calls what it names with what it holds. It is harmless if it names nothing but containers
and what numpy builds arrays of numbers from, and if these get the arguments that numpy itself
writes. So the reader calls stand-ins, which look at their arguments: the real functions take
others too, by which a file can break numpy's memory. Arrays are made of what has passed.
"""

import collections
import math
import pickle
import re
from typing import Any, BinaryIO

import numpy as np

_NUMBERS = re.compile(r"[biufc](1|2|4|8|16)")


class _StandIn:
    """What a pickle gets in the place of a function or an object of numpy's.

    Without attributes: a pickle may set those.
    """

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes what is no array")


class _ArrayClass(_StandIn):
    """numpy.ndarray, only to be named."""

    __slots__ = ()


class _Type(_StandIn):
    """A dtype of numbers: `name` without the byte order, `size` of one in bytes."""

    __slots__ = ("name", "order", "size")

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        # Version, byte order, then what only records, strings and objects have.
        _require(state in [(3, order, None, None, None, -1, -1, 0) for order in "<>=|"], "a dtype")
        self.order = state[1]


class ArrayFound(_StandIn):
    """An array in the pickle: `array` is numpy's, read-only; there is none before its state."""

    __slots__ = ("array",)

    def __setstate__(self, state: Any) -> None:
        _require(isinstance(state, tuple) and len(state) == 5, "an array")
        version, shape, dtype, by_columns, data = state
        _require(version == 1 and isinstance(shape, tuple), "an array")
        _require(all(isinstance(x, int) and x >= 0 for x in shape), "the shape of an array")
        _require_bytes(data, dtype, math.prod(shape))
        raw = data.encode("latin1") if isinstance(data, str) else data
        flat = np.frombuffer(raw, np.dtype(dtype.order + dtype.name))
        self.array = flat.reshape(shape, order="F" if by_columns else "C")


class _MakeType(_StandIn):
    """numpy.dtype(name, align, copy): without the copy, state would go to numpy's own object."""

    __slots__ = ()

    def __call__(self, *args: Any) -> _Type:
        _require(len(args) == 3 and isinstance(args[0], str), "a dtype")
        name, align, copy = args
        match = _NUMBERS.fullmatch(name)
        _require(match is not None and not align and copy in (True, 1), "a dtype of numbers")
        return _Type(name, int(match[1]))


class _MakeArray(_StandIn):
    """numpy's _reconstruct(ndarray, (0,), "b")."""

    __slots__ = ()

    def __call__(self, *args: Any) -> ArrayFound:
        _require(len(args) == 3 and isinstance(args[0], _ArrayClass), "an array")
        _require(args[1] == (0,) and args[2] in ("b", b"b"), "an array")
        return ArrayFound()


class _MakeNumber(_StandIn):
    """numpy's scalar(dtype, data)."""

    __slots__ = ()

    def __call__(self, *args: Any) -> _StandIn:
        _require(len(args) == 2, "a number")
        _require_bytes(args[1], args[0], 1)
        return _StandIn()


class _Encode(_StandIn):
    """_codecs.encode(text, "latin1"), by which Python 3 writes bytes for Python 2."""

    __slots__ = ()

    def __call__(self, *args: Any) -> bytes:
        _require(len(args) == 2 and isinstance(args[0], str) and args[1] == "latin1", "bytes")
        return args[0].encode("latin1")


class _NoBytes(_StandIn):
    """bytes(), by which Python 3 writes none at all for Python 2."""

    __slots__ = ()

    def __call__(self, *args: Any) -> bytes:
        _require(not args, "bytes")
        return b""


_KNOWN = {
    ("__builtin__", "bytes"): _NoBytes(),
    ("_codecs", "encode"): _Encode(),
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy", "dtype"): _MakeType(),
    ("numpy", "ndarray"): _ArrayClass(),
    ("numpy.core.multiarray", "_reconstruct"): _MakeArray(),
    ("numpy.core.multiarray", "scalar"): _MakeNumber(),
    ("numpy._core.multiarray", "_reconstruct"): _MakeArray(),
    ("numpy._core.multiarray", "scalar"): _MakeNumber(),
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads a pickle of arrays, numbers, texts and containers, with stand-ins for the arrays.

    Args:
        file: the pickle. Text of Python 2 is taken for bytes, as Detectron2 does.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a file of weights")
        return _KNOWN[module, name]


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise pickle.UnpicklingError(f"{what} in it is not as numpy writes one")


def _require_bytes(data: Any, dtype: Any, count: int) -> None:
    _require(isinstance(dtype, _Type), "a dtype")
    _require(isinstance(data, bytes | str) and len(data) == count * dtype.size, "the data")
