"""Hooks that Detectron2 lacks."""

import logging
import math
import os

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

from soft_teacher.engine.atomic_file import open_atomically, remove_leftovers
from soft_teacher.engine.checkpointing import SoftTeacherCheckpointer, numbered_files
from soft_teacher.safe_loading import load_tensors

logger = logging.getLogger(__name__)


class RetainingCheckpointer(hooks.PeriodicCheckpointer):
    """PeriodicCheckpointer that also counts, and deletes, what this run saved before a restart.

    It runs on all processes, because saving gathers their random states; the first deletes.
    """

    def __init__(self, checkpointer: SoftTeacherCheckpointer, period: int, num_kept: int):
        """
        Args:
            checkpointer: what saves.
            period: iterations between checkpoints, SOLVER.CHECKPOINT_PERIOD.
            num_kept: checkpoints kept beside the final one, SOLVER.CHECKPOINTS_TO_KEEP.
        """
        super().__init__(checkpointer, period)
        if num_kept < 1:
            raise ValueError(f"SOLVER.CHECKPOINTS_TO_KEEP is {num_kept}; keep at least 1.")
        self._num_kept = num_kept

    def before_train(self) -> None:
        super().before_train()
        if not comm.is_main_process():
            return
        for path in remove_leftovers(self.checkpointer.save_dir):
            logger.warning(f"Removed {path}, which a save that was killed had left")
        # Files of later iterations are of a future that this run has left; it will overwrite them.
        self.recent_checkpoints = [
            path
            for iteration, path in numbered_files(self.checkpointer.save_dir).items()
            if iteration < self.trainer.start_iter
        ]

    def step(self, iteration: int, **kwargs) -> None:
        super().step(iteration, **kwargs)
        if (iteration + 1) % self.period == 0:
            self._retain(iteration)

    def save_unless_saved(self, iteration: int) -> None:
        """Save outside the schedule, if this iteration is not the one that was saved last."""
        if self.checkpointer.saved_iteration != iteration:
            self.checkpointer.save(self._name(iteration), iteration=iteration)
            self._retain(iteration)

    def _name(self, iteration: int) -> str:
        return f"{self.file_prefix}_{iteration:07d}"

    def _retain(self, iteration: int) -> None:
        """Count the file of this iteration and delete the oldest ones beyond the number kept."""
        if not comm.is_main_process():
            return
        folder = self.checkpointer.save_dir
        self.recent_checkpoints.append(os.path.join(folder, f"{self._name(iteration)}.pth"))
        while len(self.recent_checkpoints) > self._num_kept:
            oldest = self.recent_checkpoints.pop(0)
            try:
                self.path_manager.rm(oldest)
            except OSError as error:
                # Training is worth more than the space.
                logger.warning(f"Cannot delete the old checkpoint {oldest}: {error}")


class BestTeacherKeeper(HookBase):
    """Keeps the weights of the best teacher evaluated so far in a file of its own.

    The file is a plain Detectron2 weight file with the metric and the number of iterations
    in it, and "last_checkpoint" never points to it (Detectron2's BestCheckpointer retags it and
    forgets the best). Checkpoints remember the best value over a restart.
    """

    def __init__(self, teacher: nn.Module, path: str, period: int, metric: str):
        """
        Args:
            teacher: the model to save.
            path: file to write.
            period: iterations between evaluations, TEST.EVAL_PERIOD.
            metric: name in the event storage, higher is better.
        """
        self._teacher = teacher
        self._path = path
        self._period = period
        self._metric = metric
        self._best = -math.inf

    def before_train(self) -> None:
        """Take note of an evaluation of the very checkpoint that is resumed.

        It came after the checkpoint was saved, which does not know its result. That matters at the
        end of a training that is made longer: its last evaluation is not done again.
        """
        if self.trainer.start_iter == 0 or not PathManager.isfile(self._path):
            return
        kept = load_tensors(self._path)
        if kept["iteration"] == self.trainer.start_iter:
            self._best = max(self._best, kept["metric"])

    def state_dict(self) -> dict[str, float]:
        return {"best": self._best}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._best = state["best"]

    def after_step(self) -> None:
        iteration = self.trainer.iter + 1
        if comm.is_main_process() and self._period > 0 and iteration % self._period == 0:
            self._keep_if_best(iteration)

    def after_train(self) -> None:
        # Detectron2 has counted past the last iteration by now, unless training was cut off; and
        # by one more if there was no iteration left.
        if comm.is_main_process() and self.trainer.iter >= self.trainer.max_iter:
            self._keep_if_best(self.trainer.max_iter)

    def _keep_if_best(self, num_finished: int) -> None:
        latest = self.trainer.storage.latest().get(self._metric)
        if latest is None or latest[1] != self.trainer.iter or not latest[0] > self._best:
            return
        self._best = latest[0]
        kept = {
            "model": self._teacher.state_dict(),
            "iteration": num_finished,
            "metric": self._best,
        }
        with open_atomically(self._path) as f:
            torch.save(kept, f)
        logger.info(f"Best teacher so far: {self._metric} = {self._best:.3f}, in {self._path}")


class SilenceWarner(HookBase):
    """Warns when no logged iteration has had a pseudo box for classification for long.

    Iterations without unlabeled images, at the start or the end of training, do not count.
    """

    def __init__(self, num_iters: int, cls_score: float):
        """
        Args:
            num_iters: iterations of silence after which to warn, again and again.
            cls_score: SOFT_TEACHER.PSEUDO_LABELS.CLS_SCORE, for the message.
        """
        self._num_iters = num_iters
        self._cls_score = cls_score
        self._last_heard: int | None = None
        self._num_warnings = 0

    def after_step(self) -> None:
        logged = self.trainer.storage.latest().get("pseudo_boxes_cls")
        if logged is None:
            return
        count, iteration = logged
        if count > 0 or self._last_heard is None:
            self._last_heard, self._num_warnings = iteration, 0
        # Only what was logged is known: each iteration of a single process, or one in LOG_PERIOD
        # of several.
        silence = iteration - self._last_heard
        num_due = silence // self._num_iters
        if num_due > self._num_warnings:
            self._num_warnings = num_due
            logger.warning(
                f"None of the iterations logged over the last {silence} had a pseudo box for "
                f"classification: no detection of the teacher scored above {self._cls_score}. "
                "Likely causes: the teacher is still untrained (wait, raise "
                "SOFT_TEACHER.BURN_IN_ITERS, or start from a supervised model with MODEL.WEIGHTS); "
                "SOFT_TEACHER.PSEUDO_LABELS.CLS_SCORE is too high for this data; SOLVER.BASE_LR is "
                "too low or too high; the unlabeled images show none of the classes; INPUT.FORMAT "
                "or MODEL.PIXEL_MEAN does not fit the weights."
            )
