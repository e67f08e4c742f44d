"""Reference figures computed by other implementations of Soft Teacher, stored as arrays."""

from pathlib import Path

import numpy as np
import torch

_FOLDER = Path(__file__).parent / "data" / "oracle"


def load_oracle(name: str) -> dict[str, torch.Tensor]:
    """Arrays of a reference case as tensors."""
    with np.load(_FOLDER / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays}
