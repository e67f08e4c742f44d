"""Files of weights, read without running what might be in them."""

import io
import os
import pickle
import struct
import zipfile
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager

from soft_teacher.array_pickle import ArrayFound, ArrayUnpickler

# What reading a damaged pickle raises, depending on the place of the damage.
_DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    SystemError,
    TypeError,
    ValueError,
)


def check_pickle(filename: str) -> None:
    """Refuse a model-zoo pickle that would do more than build arrays.

    Raises:
        ValueError: the file holds anything else, or is no pickle.
    """
    _read_pickle(filename)


def load_arrays(filename: str) -> dict[str, torch.Tensor]:
    """The tensors of a model-zoo pickle: those below its "model", or all of it.

    Raises:
        ValueError: the file holds anything else, or is no pickle.
    """
    content = _read_pickle(filename)
    found = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(isinstance(x, ArrayFound) for x in found.values()):
        raise ValueError(f"{filename} is not a dictionary of arrays.")
    return {name: _to_tensor(x.array) for name, x in found.items()}


def _read_pickle(filename: str) -> Any:
    with PathManager.open(filename, "rb") as f:
        data = f.read()
    try:
        return ArrayUnpickler(io.BytesIO(data)).load()
    except _DAMAGED as error:
        raise ValueError(f"{filename} is not a safe file of weights: {error}.") from error


def _to_tensor(array: np.ndarray) -> torch.Tensor:
    """A copy in the byte order of this machine, the only one that torch knows."""
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def load_tensors(filename: str) -> dict:
    """What torch.save wrote, on the CPU: tensors, numbers, strings and plain containers.

    Raises:
        ValueError: the file holds anything else or is damaged.
    """
    try:
        return torch.load(filename, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise ValueError(
            f"{filename} is no file of weights that can be read safely: it is damaged, or holds "
            "more than tensors and plain containers and could run code. Use another checkpoint, "
            "or get the file again from where you trust it."
        ) from error


def is_complete(filename: str) -> bool:
    """Whether a file is all that torch.save wrote, by its checksums; false if there is none.

    torch.load itself takes a file with a changed byte as it is.
    """
    if not os.path.isfile(filename):
        return False
    try:
        with zipfile.ZipFile(filename) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False
