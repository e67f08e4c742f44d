"""Checkpoints: an ordinary Detectron2 model under "model", the teacher beside it.

A file holds "model" (the student), "teacher", "trainer" (iteration, optimizer, schedule, counts
of consumed batches and of EMA updates, best metric), "random_states" and "hidden_states" (one for
each process) and "run" (the settings on which all this depends). Either model loads into
Detectron2's own GeneralizedRCNN.
"""

import os
import re
from pathlib import Path

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from soft_teacher.engine.atomic_file import AtomicWrites
from soft_teacher.engine.hidden_state import HiddenState
from soft_teacher.engine.random_state import get_random_state, set_random_state
from soft_teacher.engine.resume_rules import adapt_state, key_differences
from soft_teacher.engine.run_description import (
    NUM_PROCESSES,
    cannot_be_accepted,
    differences,
)
from soft_teacher.safe_loading import check_pickle, is_complete, load_tensors

_NUMBERED = re.compile(r"model_(\d{7,})\.pth")
FINAL_NAME = "model_final"
"""Of the checkpoint after the last iteration, as Detectron2 calls it; .pth is added."""


class SoftTeacherCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer that writes atomically, keeps random states, loads nothing unsafe.

    :meth:`save` and :meth:`find_complete` are collective: all processes must call them.

    Attributes:
        run: see `run_description.describe_run`.
        accepts_changes: whether a checkpoint of a run that differs may be resumed all the same,
            SOFT_TEACHER.RESUME_WITH_CHANGES.
        saved_iteration: the iteration of the file that this object saved last, or went on from;
            None if there is none.
    """

    def __init__(self, model: nn.Module, save_dir: str, **checkpointables):
        super().__init__(model, save_dir, **checkpointables)
        self.path_manager = AtomicWrites(self.path_manager)
        self.run: dict = {}
        self.accepts_changes = False
        self._whole = ""
        self.saved_iteration: int | None = None
        self._hidden = HiddenState(self.model)
        self._resuming = False

    def save(self, name: str, **kwargs) -> None:
        """Save NAME.pth and let "last_checkpoint" name it.

        Raises:
            OSError: the first process could not write; on all processes alike.
        """
        states = comm.gather((get_random_state(), self._hidden.state_dict()))
        failure = None
        try:
            super().save(
                name,
                random_states=[x for x, _ in states],
                hidden_states=[x for _, x in states],
                run=self.run,
                **kwargs,
            )
        except OSError as error:
            failure = error
        # Nobody goes on before the file is there, and nobody waits for a process that has failed.
        failures = [x for x in comm.all_gather(failure) if x is not None]
        if failures:
            raise failure or failures[0]
        self.saved_iteration = kwargs.get("iteration")

    def find_complete(self) -> str | None:
        """The file that "last_checkpoint" names, or the newest complete one if that is not.

        Returns:
            The file, or None if there is no checkpoint at all. What the first process finds holds
            for all.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged.
        """
        found = self._search() if comm.is_main_process() else None
        path, broken = comm.all_gather(found)[0]
        if path is None and broken:
            raise ValueError(
                f"There is no complete checkpoint in {self.save_dir}: {', '.join(broken)} cannot "
                "be read. Put a copy in place, or remove them to start afresh."
            )
        return path

    def _search(self) -> tuple[str | None, list[str]]:
        """The file to take, if any, and what had to be passed over."""
        tagged = self.get_checkpoint_file() if self.has_checkpoint() else None
        broken = []
        if tagged is not None:
            if is_complete(tagged):
                return tagged, broken
            named = os.path.basename(tagged)
            broken.append(tagged if named else os.path.join(self.save_dir, "last_checkpoint"))
        chosen = None
        for path in self._newest_first():
            if path != tagged and is_complete(path):
                chosen = path
                break
            if path != tagged:
                broken.append(path)
        for path in broken:
            self.logger.warning(f"{path} is damaged, empty or missing, and is passed over")
        if chosen is not None:
            self.logger.warning(f"The newest complete checkpoint is {chosen}")
        return chosen, broken

    def _newest_first(self) -> list[str]:
        """All checkpoints of the folder, by iteration; the final one's stands in its content."""
        by_iteration = [(i, path) for i, path in numbered_files(self.save_dir).items()]
        final = os.path.join(self.save_dir, f"{FINAL_NAME}.pth")
        if os.path.isfile(final):
            iteration = load_tensors(final)["iteration"] if is_complete(final) else -1
            by_iteration.append((iteration, final))
        return [path for _, path in sorted(by_iteration, reverse=True)]

    def load_training(self, path: str) -> None:
        """Load everything that is needed to go on with training, random generators included.

        Raises:
            ValueError: the file lacks a part or a weight, or is of a run that differs in `run`
                and this was not accepted.
        """
        self._resuming = True
        try:
            rest = self.load(path)
        finally:
            self._resuming = False
        rank, world_size = comm.get_rank(), comm.get_world_size()
        same_processes = len(rest["random_states"]) == world_size
        if same_processes:
            set_random_state(rest["random_states"][rank])
        self._hidden.load_state_dict(rest["hidden_states"][rank if same_processes else 0])
        self.saved_iteration = rest["iteration"]

    def load_whole(self, path: str) -> dict:
        """Load a file that must hold all weights of the model; what else it holds is returned.

        Raises:
            ValueError: it lacks weights, or has them in other shapes.
        """
        self._whole = path
        try:
            return self.load(path)
        finally:
            self._whole = ""

    def _load_file(self, filename: str) -> dict:
        if filename.endswith(".pkl"):
            check_pickle(filename)
        elif filename.endswith(".pyth"):
            # Detectron2 reads these by torch.load as the environment has it.
            load_tensors(filename)
        loaded = super()._load_file(filename)
        if self._resuming:
            self._check_parts(filename, loaded)
            changed = self._check_run(filename, loaded["run"])
            self._check_keys(filename, loaded, changed)
        return loaded

    def _check_parts(self, filename: str, loaded: dict) -> None:
        parts = {"model", "iteration", "random_states", "hidden_states", "run"}
        missing = sorted((parts | set(self.checkpointables)) - set(loaded))
        if missing:
            raise ValueError(
                f"{filename} has no {', '.join(missing)}: it cannot be resumed from. To start "
                "from its weights, set MODEL.WEIGHTS to it and take another OUTPUT_DIR."
            )

    def _check_run(self, filename: str, saved: dict) -> set[str]:
        """The names of the settings that differ, if that is accepted."""
        changes = differences(saved, self.run)
        is_final = cannot_be_accepted(saved, self.run)
        if changes and (is_final or not self.accepts_changes):
            accept = "set SOFT_TEACHER.RESUME_WITH_CHANGES to True to go on with the new ones, "
            raise ValueError(
                f"{filename} is of another run: {'; '.join(changes.values())}. Resume with the "
                f"settings that it was trained with, {'' if is_final else accept}or "
                "start from its weights (MODEL.WEIGHTS) in another OUTPUT_DIR."
            )
        for change in changes.values():
            self.logger.warning(f"Resuming with a change: {change}")
        return set(changes)

    def _check_keys(self, filename: str, loaded: dict, changed: set[str]) -> None:
        """Raise a ValueError for a missing or unknown key of what is to be loaded.

        Detectron2 checks those of the student, see :meth:`_log_incompatible_keys`.
        """
        found = []
        for name, part in self.checkpointables.items():
            expected = part.state_dict()
            if name == "trainer":
                for action in adapt_state(loaded[name], expected, changed):
                    self.logger.warning(f"Because of that {action}")
            found += key_differences(loaded[name], expected, name)
        for name in ("random_states", "hidden_states"):
            if NUM_PROCESSES not in changed and len(loaded[name]) != comm.get_world_size():
                found.append(f"{name} of {len(loaded[name])} processes")
        if found:
            raise ValueError(
                f"{filename} has {', '.join(found[:5])}{', ...' if found[5:] else ''}: it is of "
                "another model or version, or incomplete. Resume with the config and the version "
                "that it was trained with, or from another checkpoint."
            )

    def _torch_load(self, f: str) -> dict:
        return load_tensors(f)

    def _log_incompatible_keys(self, incompatible) -> None:
        super()._log_incompatible_keys(incompatible)
        lacking = [*incompatible.missing_keys, *(x[0] for x in incompatible.incorrect_shapes)]
        if self._whole and lacking:
            raise ValueError(
                f"{self._whole} lacks {len(lacking)} weights of the model that the config "
                f"describes, or has them in other shapes, such as {lacking[0]} (see the lines "
                "above). Set MODEL.WEIGHTS to trained weights of this model, or take the config "
                "that belongs to these."
            )
        if self._resuming and any(incompatible):
            raise ValueError(
                "The checkpoint is of another model (see the keys above); resume with the config "
                "that it was trained with, or take another OUTPUT_DIR."
            )


def numbered_files(folder: str) -> dict[int, str]:
    """The checkpoints of a folder that bear an iteration in their name, by iteration."""
    found = {}
    for path in Path(folder).glob("model_*.pth"):
        match = _NUMBERED.fullmatch(path.name)
        if match:
            found[int(match[1])] = str(path)
    return dict(sorted(found.items()))
