"""The steps that are compared: Soft Teacher's, and stock Detectron2's on like work."""

import itertools

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from soft_teacher.engine.benchmark.phase_clock import OTHER, TOTAL, PhaseClock
from soft_teacher.engine.benchmark.synthetic import SyntheticBatch, replace_labels
from soft_teacher.engine.ema import EMATeacher
from soft_teacher.engine.execution import compile_parts, settle_execution
from soft_teacher.engine.loader_stream import LoaderStream
from soft_teacher.engine.optimizer import build_optimizer
from soft_teacher.engine.precision import Precision
from soft_teacher.engine.train_step import SoftTeacherStep

# In the order in which they are told; the forward of stock Detectron2 is plainly "forward".
PHASES = (
    TOTAL,
    "teacher annotate",
    "student forward",
    "teacher judging",
    "forward",
    "backward",
    "optimizer",
    "ema",
    OTHER,
)


class SoftTeacherContender:
    """The project's own training step, with the given pseudo boxes.

    The teacher does all of its work on the weak views; then its detections are replaced. What
    follows, jittering and the judgement of the student's boxes included, is as in training.
    """

    def __init__(self, cfg: CfgNode, student: nn.Module, batch: SyntheticBatch, clock: PhaseClock):
        """
        Args:
            cfg: the config.
            student: the model that is trained, on its device.
            batch: what every step works on.
            clock: measures the steps.
        """
        ema = cfg.SOFT_TEACHER.EMA
        self.cfg = cfg
        self.clock = clock
        self.student = student
        teacher = EMATeacher(student, ema.MOMENTUM if ema.ENABLED else 0.0)
        compile_parts(cfg, student, teacher.model)
        self.step = SoftTeacherStep(
            student,
            teacher,
            LoaderStream(lambda start: itertools.repeat(batch.labeled)),
            LoaderStream(lambda start: itertools.repeat(batch.pairs)),
            build_optimizer(cfg, student),
            build_precision(cfg, student),
        )
        self._storage = EventStorage()
        self._force_pseudo_boxes(batch)
        self._attach_clock()

    def run(self) -> dict[str, float]:
        """Run one step and return its seconds by phase."""
        with self._storage:
            seconds = self.clock.measure(self.step.run_step)
            self._storage.step()
        self.step.iter += 1
        return seconds

    @property
    def pseudo_boxes(self) -> dict[str, float]:
        """Pseudo boxes per image that taught each loss in the last step."""
        latest = self._storage.latest()
        names = {loss: f"pseudo_boxes_{loss}" for loss in ("rpn", "cls", "reg")}
        # One-stage detectors have no RPN.
        return {loss: latest[name][0] for loss, name in names.items() if name in latest}

    def _force_pseudo_boxes(self, batch: SyntheticBatch) -> None:
        teacher = self.step.teacher.model
        annotate = teacher.annotate

        def annotate_and_replace(weak: list[dict]):
            guidance = annotate(weak)
            replace_labels(guidance, batch.truth)
            self.clock.attach(guidance, "score_boxes", "teacher judging")
            return guidance

        teacher.annotate = annotate_and_replace

    def _attach_clock(self) -> None:
        step, clock = self.step, self.clock
        clock.attach(step.teacher.model, "annotate", "teacher annotate")
        clock.attach(step.model, "forward", "student forward")
        clock.attach(step.optimizer, "zero_grad", "optimizer")
        clock.attach(step.precision, "backward", "backward")
        clock.attach(step.precision, "unscaled_grad_norm", "optimizer")
        clock.attach(step.precision, "step", "optimizer")
        clock.attach(step.teacher, "update", "ema")


class SupervisedContender:
    """Detectron2's supervised step on all images that the student sees in Soft Teacher's."""

    def __init__(
        self, cfg: CfgNode, plain: CfgNode, state: dict, batch: SyntheticBatch, clock: PhaseClock
    ):
        """
        Args:
            cfg: the config, for optimizer, precision and execution.
            plain: the config of the same model in Detectron2.
            state: weights of the model.
            batch: what every step works on.
            clock: measures the steps.
        """
        self.model = build_stock_model(cfg, plain, state).train()
        self._optimizer = build_optimizer(cfg, self.model)
        self._precision = build_precision(cfg, self.model)
        self._inputs = batch.supervised
        self._storage = EventStorage()
        self._clock = clock

    def run(self) -> dict[str, float]:
        """Run one step and return its seconds by phase."""
        with self._storage:
            return self._clock.measure(self._step)

    def _step(self) -> None:
        """What Detectron2's SimpleTrainer and AMPTrainer do, logging apart."""
        clock = self._clock
        with clock.phase("forward"), self._precision.autocast():
            loss = sum(self.model(self._inputs).values())
        with clock.phase("optimizer"):
            self._optimizer.zero_grad()
        with clock.phase("backward"):
            self._precision.backward(loss)
        with clock.phase("optimizer"):
            self._precision.step(self._optimizer)


class InferenceContender:
    """Detectron2's inference, without gradients, on the images that the teacher sees."""

    def __init__(
        self, cfg: CfgNode, plain: CfgNode, state: dict, batch: SyntheticBatch, clock: PhaseClock
    ):
        """As :class:`SupervisedContender`."""
        self.model = build_stock_model(cfg, plain, state).eval()
        self._precision = build_precision(cfg, self.model)
        self._inputs = batch.weak
        self._clock = clock

    def run(self) -> dict[str, float]:
        """Run once and return the seconds."""
        return self._clock.measure(self._step)

    def _step(self) -> None:
        with torch.no_grad(), self._precision.teacher_autocast():
            self.model(self._inputs)


def build_stock_model(cfg: CfgNode, plain: CfgNode, state: dict) -> nn.Module:
    """Detectron2's model `plain` with the given weights, carried out as `cfg` says."""
    model = build_model(plain)
    model.load_state_dict(state)
    settle_execution(cfg, model)
    compile_parts(cfg, model)
    return model


def build_precision(cfg: CfgNode, model: nn.Module) -> Precision:
    """The precision that the trainer would choose."""
    device_type = next(model.parameters()).device.type
    return Precision(device_type, cfg.SOLVER.AMP.ENABLED, cfg.SOFT_TEACHER.AMP_TEACHER)
