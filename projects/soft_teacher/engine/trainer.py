"""The trainer: builds the parts from a config and wires them together."""

import logging
import os
import signal
import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils import comm
from fvcore.common.history_buffer import HistoryBuffer
from torch import nn

from soft_teacher.data import build_labeled_loader, build_unlabeled_loader, unlabeled_ground_truth
from soft_teacher.engine.checkpointing import FINAL_NAME, SoftTeacherCheckpointer
from soft_teacher.engine.ema import EMATeacher
from soft_teacher.engine.evaluation import (
    EvaluationStoppedError,
    evaluate_models,
    evaluate_with_tta,
)
from soft_teacher.engine.execution import compile_parts, settle_execution
from soft_teacher.engine.finite import agree_on_flags
from soft_teacher.engine.forward import ddp_devices, refuse_synchronized_norms
from soft_teacher.engine.global_normalizer import read_normalizer_scope
from soft_teacher.engine.hooks import BestTeacherKeeper, RetainingCheckpointer, SilenceWarner
from soft_teacher.engine.loader_stream import LoaderStream
from soft_teacher.engine.monitors import QualityMonitor, ViewPainter
from soft_teacher.engine.optimizer import build_optimizer, refuse_state_of_another
from soft_teacher.engine.precision import Precision
from soft_teacher.engine.run_description import describe_run
from soft_teacher.engine.schedule import read_unlabeled_decay, scale_to_world_size
from soft_teacher.engine.stop_signal import StopSignal, exit_status
from soft_teacher.engine.train_step import SoftTeacherStep, UnreadableDataError
from soft_teacher.engine.tta import check_tta

LOG_PERIOD = 20
HISTORY_LENGTH = 1000
"""Values kept of each logged scalar: the longest window that Detectron2's writers look at."""

logger = logging.getLogger(__name__)


class SoftTeacherTrainer(DefaultTrainer):
    """Detectron2's default trainer with a labeled and an unlabeled loader and an EMA teacher.

    Student and teacher are evaluated side by side; the student is the checkpoint's "model".
    """

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's constructor builds a loader and a trainer of its own.
        TrainerBase.__init__(self)
        refuse_what_would_be_ignored(cfg)
        self.cfg = cfg = scale_to_world_size(cfg, comm.get_world_size())
        student = self.build_model(cfg)
        settle_execution(cfg, student)
        optimizer = self.build_optimizer(cfg, student)
        device = next(student.parameters()).device
        if comm.get_world_size() > 1:
            refuse_synchronized_norms(student)
        model = create_ddp_model(student, broadcast_buffers=False, device_ids=ddp_devices(device))
        st = cfg.SOFT_TEACHER
        teacher = EMATeacher(student, st.EMA.MOMENTUM if st.EMA.ENABLED else 0.0)
        compile_parts(cfg, student, teacher.model)
        self._stop_signal = StopSignal()
        self._loader_cfg = with_seed(cfg)
        labeled = self._stream(build_labeled_loader, "DATASETS.TRAIN")
        unlabeled = None
        if st.ENABLED:
            unlabeled = self._stream(build_unlabeled_loader, "DATASETS.UNLABELED")
        self._trainer = SoftTeacherStep(
            model,
            teacher,
            labeled,
            unlabeled,
            optimizer,
            Precision(device.type, cfg.SOLVER.AMP.ENABLED, st.AMP_TEACHER),
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            normalizer_scope=read_normalizer_scope(cfg),
            burn_in_iters=st.BURN_IN_ITERS,
            unlabeled_decay=read_unlabeled_decay(cfg, comm.get_world_size()),
            max_skipped_steps=st.MAX_SKIPPED_STEPS,
            log_period=LOG_PERIOD,
            stop_signal=self._stop_signal,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SoftTeacherCheckpointer(
            model, cfg.OUTPUT_DIR, teacher=self.teacher, trainer=weakref.proxy(self)
        )
        self.checkpointer.run = describe_run(cfg, comm.get_world_size())
        self.checkpointer.accepts_changes = st.RESUME_WITH_CHANGES
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self._trainer.observers = self.build_observers()
        self.register_hooks(self.build_hooks())

    def _stream(self, build_loader: Callable[[CfgNode, int], Iterable], sets: str) -> LoaderStream:
        cfg = self._loader_cfg
        return LoaderStream(
            lambda start: build_loader(cfg, start),
            digest_of=lambda loader: loader.digest,
            sets=sets,
            accepts_changes=cfg.SOFT_TEACHER.RESUME_WITH_CHANGES,
        )

    @property
    def student(self) -> nn.Module:
        """The student without its DDP wrapper."""
        return self._trainer.student

    @property
    def teacher(self) -> nn.Module:
        return self._trainer.teacher.model

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the newest complete checkpoint of OUTPUT_DIR, or start from MODEL.WEIGHTS.

        Args:
            resume: whether to look for a checkpoint. Without one training starts afresh.

        Raises:
            ValueError: the checkpoint lacks something that training needs, or is of another run,
                or all are damaged.
        """
        checkpoint = self.checkpointer.find_complete() if resume else None
        if checkpoint is not None:
            self.checkpointer.load_training(checkpoint)
            self.start_iter = self.iter + 1
            if self.start_iter < self.max_iter:
                self._trainer.open_streams()
            elif not checkpoint.endswith(f"{FINAL_NAME}.pth"):
                # The training was ended between its last two saves; no step is left to save after.
                self.checkpointer.save(FINAL_NAME, iteration=self.iter)
        else:
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
            self._trainer.teacher.restart_from(self.student)

    def state_dict(self) -> dict:
        return {**super().state_dict(), "data_seed": self._loader_cfg.SEED}

    def load_state_dict(self, state_dict: dict) -> None:
        refuse_state_of_another(self.cfg.SOLVER.OPTIMIZER, state_dict["_trainer"]["optimizer"])
        super().load_state_dict(state_dict)
        self._loader_cfg.SEED = state_dict["data_seed"]

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    def build_hooks(self) -> list:
        """Timer, schedule, checkpoints, evaluation of both models, writers; in this order."""
        cfg = self.cfg
        self._saving = RetainingCheckpointer(
            self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINTS_TO_KEEP
        )
        result = [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self._saving,
        ]
        self._evaluation_hooks = [hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self.evaluate)]
        if cfg.SOFT_TEACHER.EMA.ENABLED and cfg.DATASETS.TEST:
            # With several test sets Detectron2 puts their names in between; the first counts.
            test_set = f"{cfg.DATASETS.TEST[0]}/" if len(cfg.DATASETS.TEST) > 1 else ""
            self._evaluation_hooks.append(
                BestTeacherKeeper(
                    self.teacher,
                    os.path.join(cfg.OUTPUT_DIR, "model_best_teacher.pth"),
                    cfg.TEST.EVAL_PERIOD,
                    f"teacher/{test_set}bbox/AP",
                )
            )
        result += self._evaluation_hooks
        if cfg.TEST.AUG.ENABLED:
            check_tta(cfg, self.student)
            result.append(hooks.EvalHook(0, self.evaluate_with_tta))
        if comm.is_main_process():
            st = cfg.SOFT_TEACHER
            if st.ENABLED:
                result.append(
                    SilenceWarner(st.WARN_NO_PSEUDO_BOX_ITERS, st.PSEUDO_LABELS.CLS_SCORE)
                )
            result.append(hooks.PeriodicWriter(self.build_writers(), period=LOG_PERIOD))
        return result

    def build_observers(self) -> list:
        """What watches the pseudo labels: of the first process, whose log is the one kept."""
        cfg = self.cfg
        if not cfg.SOFT_TEACHER.ENABLED or not comm.is_main_process():
            return []
        observers = []
        # Training itself does without these annotations, whatever they are.
        truth = unlabeled_ground_truth(cfg, skip_unusable=True)
        if truth:
            observers.append(QualityMonitor(truth, LOG_PERIOD))
        if cfg.VIS_PERIOD > 0:
            observers.append(ViewPainter(cfg.VIS_PERIOD, cfg.INPUT.FORMAT))
        return observers

    def train(self) -> dict | None:
        """Train to the end, or until a stop signal reaches any process.

        Raises:
            SystemExit: training was stopped, after the step that was under way and with a
                checkpoint of it, or inside an evaluation, before which there is always one; the
                status is 128 plus the signal's number.
            UnreadableDataError: images could not be read; what was finished is saved.
        """
        with self._stop_signal.caught():
            return super().train()

    def before_train(self) -> None:
        # Detectron2 keeps a million of each scalar, which takes several KB more with every step.
        self.storage.histories().default_factory = partial(HistoryBuffer, max_length=HISTORY_LENGTH)
        super().before_train()
        period = self.cfg.TEST.EVAL_PERIOD
        if 0 < self.start_iter < self.max_iter and period > 0 and self.start_iter % period == 0:
            self._catch_up_on_evaluation()
            self._stop_if_agreed()

    def _catch_up_on_evaluation(self) -> None:
        """Evaluate what is resumed from, as it is saved before its evaluation.

        That one may have been cut off, or left out for a stop; if it was not, it is the same again.
        """
        self.iter = self.storage.iter = self.start_iter - 1
        for hook in self._evaluation_hooks:
            hook.after_step()
        self.iter = self.storage.iter = self.start_iter

    def run_step(self) -> None:
        try:
            super().run_step()
        except UnreadableDataError:
            # Back to the last iteration that is finished.
            self.iter = self._trainer.iter = self.iter - 1
            if self.iter >= self.start_iter:
                self._saving.save_unless_saved(self.iter)
            raise

    def after_step(self) -> None:
        super().after_step()
        if self._trainer.agreed_signal:
            self._saving.save_unless_saved(self.iter)
        self._stop_if_agreed()

    def _stop_if_agreed(self) -> None:
        """End the program if a stop signal has reached any process; all know of the same one."""
        number = self._trainer.agreed_signal
        if number:
            logger.info(f"Stopped by {signal.Signals(number).name}; --resume goes on from here")
            raise SystemExit(exit_status(number))

    def after_train(self) -> None:
        # Only evaluation is left, which may be cut off: the final checkpoint is there. When
        # training stops, further signals are still held off until the logs are written.
        if not self._trainer.agreed_signal:
            self._stop_signal.release()
        super().after_train()

    def evaluate(self) -> dict:
        """Evaluate student and, where it differs, teacher on DATASETS.TEST.

        Not when training is about to stop, and no further than to a stop signal: there may be
        little time left. What was learned is saved first: a test image may be unreadable, and a
        long evaluation may be killed.
        """
        if self._trainer.agreed_signal:
            logger.info("Evaluation is left out, because training stops")
            return {}
        # After the last iteration, when Detectron2 has counted past it, the final one is there.
        is_last = self.iter >= self.max_iter
        if not is_last:
            self._saving.save_unless_saved(self.iter)
        start = time.perf_counter()
        try:
            results = evaluate_models(self.cfg, self._models(), None if is_last else self._stops)
        except EvaluationStoppedError:
            logger.info("The evaluation is cut off, because training stops")
            return {}
        seconds = time.perf_counter() - start
        self.storage.put_scalar("eval_seconds", seconds, smoothing_hint=False)
        # TEST.EXPECTED_RESULTS, which Detectron2 compares with this, are the student's.
        self._last_eval_results = results["student"]
        return results

    def _stops(self) -> bool:
        """Whether a stop signal has reached any process by now; all processes ask together."""
        device = next(self.student.parameters()).device
        number = torch.full((), float(self._stop_signal.number), device=device)
        self._trainer.agreed_signal = int(agree_on_flags(number))
        return self._trainer.agreed_signal > 0

    def evaluate_with_tta(self) -> dict:
        """The same with the test-time augmentation of TEST.AUG, after the last iteration."""
        return {} if self._trainer.agreed_signal else evaluate_with_tta(self.cfg, self._models())

    def _models(self) -> dict[str, nn.Module]:
        """What is evaluated: the student and, where it differs, the teacher."""
        teacher = {"teacher": self.teacher} if self.cfg.SOFT_TEACHER.EMA.ENABLED else {}
        return {"student": self.student, **teacher}


def with_seed(cfg: CfgNode) -> CfgNode:
    """A copy that has the seed of the data in SEED, drawn if the config leaves it to chance.

    All processes call this together. A resumed training needs the same order of images.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed()
    return cfg


def refuse_what_would_be_ignored(cfg: CfgNode) -> None:
    """Raise a ValueError for keys of Detectron2's trainer that mean nothing to this one."""
    if cfg.TEST.PRECISE_BN.ENABLED:
        raise ValueError(
            "TEST.PRECISE_BN.ENABLED has no meaning here: the teacher's running statistics are "
            "averages already. Set it to False."
        )
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}; labeled and unlabeled "
            "images have samplers of their own, set it to 'TrainingSampler'."
        )
