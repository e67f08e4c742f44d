"""Checkpoints: an ordinary Detectron2 model under "model", the teacher beside it.

A file holds "model" (the student), "teacher", "trainer" (iteration, optimizer, schedule, counts
of consumed batches and of EMA updates), "random_states" (one for each process) and "run" (the
settings on which all this depends). Either model loads into Detectron2's own GeneralizedRCNN.
"""

import io
import pickle

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

from soft_teacher.engine.random_state import get_random_state
from soft_teacher.engine.run_description import differences

_SAFE_PICKLE_GLOBALS = {
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and plain containers, and refuses everything else."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _SAFE_PICKLE_GLOBALS:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a file of weights")
        return super().find_class(module, name)


def check_pickle(filename: str) -> None:
    """Refuse a model-zoo pickle that would do more than build arrays.

    Raises:
        ValueError: the file names anything else, or is no pickle.
    """
    with PathManager.open(filename, "rb") as f:
        data = f.read()
    try:
        _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{filename} is not a safe file of weights: {error}.") from error


class SoftTeacherCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer that keeps random states and loads nothing unsafe.

    :meth:`save` is collective: all processes must call it.

    Attributes:
        run: see `run_description.describe_run`.
    """

    def __init__(self, model: nn.Module, save_dir: str, **checkpointables):
        super().__init__(model, save_dir, **checkpointables)
        self.run: dict = {}
        self._required_parts: set[str] = set()

    def save(self, name: str, **kwargs) -> None:
        states = comm.gather(get_random_state())
        super().save(name, random_states=states, run=self.run, **kwargs)

    def load_training(self, path: str) -> dict:
        """Load everything that is needed to go on with training.

        Returns:
            What the file holds beyond model, teacher and trainer.

        Raises:
            ValueError: the file lacks a part or a weight, or is of a run that differs in `run`.
        """
        self._required_parts = {"model", "random_states", "run", *self.checkpointables}
        try:
            return self.load(path)
        finally:
            self._required_parts = set()

    def _load_file(self, filename: str) -> dict:
        if filename.endswith(".pkl"):
            check_pickle(filename)
        loaded = super()._load_file(filename)
        missing = sorted(self._required_parts - set(loaded))
        if missing:
            raise ValueError(
                f"{filename} has no {', '.join(missing)}: it cannot be resumed from. To start "
                "from its weights, set MODEL.WEIGHTS to it and take another OUTPUT_DIR."
            )
        changes = differences(loaded["run"], self.run) if self._required_parts else []
        if changes:
            raise ValueError(
                f"{filename} is of another run: {'; '.join(changes)}. Resume with the settings "
                "that it was trained with, or start from its weights in another OUTPUT_DIR."
            )
        return loaded

    def _torch_load(self, f: str) -> dict:
        return torch.load(f, map_location="cpu", weights_only=True)

    def _log_incompatible_keys(self, incompatible) -> None:
        super()._log_incompatible_keys(incompatible)
        if self._required_parts and any(incompatible):
            raise ValueError(
                "The checkpoint is of another model (see the keys above); resume with the config "
                "that it was trained with, or take another OUTPUT_DIR."
            )
