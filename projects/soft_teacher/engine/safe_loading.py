"""Files of weights, read without running what might be in them."""

import io
import os
import pickle
import struct
import zipfile

import torch
from detectron2.utils.file_io import PathManager

from soft_teacher.engine.array_pickle import ArrayUnpickler

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
    with PathManager.open(filename, "rb") as f:
        data = f.read()
    try:
        ArrayUnpickler(io.BytesIO(data)).load()
    except _DAMAGED as error:
        raise ValueError(f"{filename} is not a safe file of weights: {error}.") from error


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
