"""One iteration of Soft Teacher.

The step knows two calls: `teacher.annotate(weak) -> Guidance` and `student(labeled, strong,
guidance) -> dict of losses`. What kind of detector stands behind them is not its business.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import NoReturn

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from soft_teacher.engine.ema import EMATeacher
from soft_teacher.engine.finite import (
    NonFiniteStepError,
    agree_on_flags,
    name_non_finite_gradients,
    name_non_finite_losses,
)
from soft_teacher.engine.forward import Batch, Forward, run_forward, without_ddp
from soft_teacher.engine.global_normalizer import normalize_globally
from soft_teacher.engine.loader_stream import LoaderStream
from soft_teacher.engine.precision import Precision
from soft_teacher.engine.random_state import get_random_state, set_random_state
from soft_teacher.engine.running_statistics import RunningStatistics
from soft_teacher.engine.step_log import MicroStep, log_step
from soft_teacher.engine.stop_signal import StopSignal
from soft_teacher.modeling.guidance import Guidance

logger = logging.getLogger(__name__)

Observer = Callable[[int, list[dict], list[dict], Guidance], None]
"""(iteration, weak views, strong views, guidance), called after the first forward of each
semi-supervised iteration."""


class UnreadableDataError(OSError):
    """A process could not read its images; raised on all, which are as if the step never began."""


class SoftTeacherStep(SimpleTrainer):
    """Labeled and unlabeled batch, guidance, losses, one backward, optimizer, EMA.

    With accumulation all that comes before the optimizer is done several times, as a micro-step,
    and the gradients are averaged: as many processes would have done the same, one micro-step
    each. An iteration is one step of the optimizer.

    A step whose loss or gradient is not finite on any process is skipped on all of them: it
    changes neither the student nor the teacher.

    Attributes:
        agreed_signal: number of the stop signal that all processes know of since the last step,
            or 0. To stop is up to whoever runs the steps.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: EMATeacher,
        labeled: LoaderStream,
        unlabeled: LoaderStream | None,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        *,
        accumulation_steps: int = 1,
        normalizer_scope: str = "rank",
        burn_in_iters: int = 0,
        unlabeled_decay: Callable[[int], int] | None = None,
        max_skipped_steps: int = 50,
        log_period: int = 20,
        stop_signal: StopSignal | None = None,
    ):
        """
        Args:
            student: the model that is trained, wrapped in DDP when there are several processes.
            teacher: its moving average.
            labeled: batches of labeled views.
            unlabeled: batches of {"weak", "strong"} views; None for supervised training.
            optimizer: of the student.
            precision: how to autocast and to scale gradients.
            accumulation_steps: batches, each with a forward and a backward, of one iteration.
            normalizer_scope: "global" if processes have the normalizers of their unlabeled losses
                in common, "rank" if each has its own.
            burn_in_iters: supervised steps before unlabeled images are used.
            unlabeled_decay: from an iteration to the unlabeled images of a batch that are used, at
                its start, the same on all processes; of none, the batch is not taken. None for all.
            max_skipped_steps: consecutive skipped steps after which training stops.
            log_period: with several processes, scalars are averaged over them and logged every
                so many steps; a single process logs each step.
            stop_signal: notes the signals that this process gets; None if they do not matter.
        """
        super().__init__(student, labeled, optimizer)
        self.teacher = teacher
        self.labeled = labeled
        self.unlabeled = unlabeled
        self.precision = precision
        self.accumulation_steps = accumulation_steps
        self.normalizer_scope = normalizer_scope
        self.burn_in_iters = burn_in_iters
        self.unlabeled_decay = unlabeled_decay
        self.max_skipped_steps = max_skipped_steps
        self.log_period = log_period
        self.observers: list[Observer] = []
        self.agreed_signal = 0
        self._stop_signal = stop_signal or StopSignal()
        self._states_before: list[dict] = []
        self.num_skipped = 0
        self.num_skipped_in_a_row = 0
        self._running = RunningStatistics(self.student)

    @property
    def student(self) -> nn.Module:
        """The student without its DDP wrapper."""
        return without_ddp(self.model)

    def run_step(self) -> None:
        """Run one iteration; see the class."""
        assert self.model.training, "The student was left in eval mode."
        start = time.perf_counter()
        self._remember()
        self.optimizer.zero_grad()
        micro_steps: list[MicroStep] = []
        try:
            for number in range(self.accumulation_steps):
                micro_steps.append(self._run_micro_step(number))
            grad_norm = self._finite_grad_norm()
        except NonFiniteStepError as error:
            self._pass_over(self.accumulation_steps - len(micro_steps) - 1)
            self._skip(str(error))
            return
        momentum = self.teacher.current_momentum
        self.precision.step(self.optimizer)
        self._running.average_over_processes()
        self.teacher.update(self.student)
        self.num_skipped_in_a_row = 0
        if comm.get_world_size() == 1 or (self.iter + 1) % self.log_period == 0:
            common = {"ema_momentum": momentum, "grad_norm": grad_norm}
            log_step(micro_steps, common, time.perf_counter() - start)

    def _run_micro_step(self, number: int) -> MicroStep:
        """One forward and backward, which adds to the gradients.

        Args:
            number: of the micro-step, from 0. Observers see the first one; with the last one all
                processes average their gradients.

        Raises:
            NonFiniteStepError: a loss is not finite on some process; on all of them together.
            UnreadableDataError: some process has no images; on all of them together.
        """
        start = time.perf_counter()
        batch = self._next_batch()
        data_time = time.perf_counter() - start
        with self._gradient_exchange(number == self.accumulation_steps - 1):
            forward = run_forward(self.model, self.teacher.model, self.precision, batch)
            if not self._agree(forward, batch.error):
                raise NonFiniteStepError(forward.failure or name_non_finite_losses(forward.losses))
            if number == 0 and forward.guidance is not None:
                for observe in self.observers:
                    observe(self.iter, batch.weak, batch.strong, forward.guidance)
            losses = forward.losses
            if self.normalizer_scope == "global":
                losses = normalize_globally(losses, forward.normalizers)
            self.precision.backward(sum(losses.values()) / self.accumulation_steps)
        losses = {k: v.detach() for k, v in losses.items()}
        num_images = len(batch.labeled) + len(batch.strong)
        return MicroStep(losses, forward.statistics, num_images, data_time)

    def _pass_over(self, num_batches: int) -> None:
        """Take the batches that a step leaves unused, so that the next one begins with its own.

        All processes get here together.

        Raises:
            UnreadableDataError: as in a step that uses them.
        """
        for _ in range(num_batches):
            self._agree(Forward({}, failure="passed over"), self._next_batch().error)

    def _gradient_exchange(self, wanted: bool) -> contextlib.AbstractContextManager:
        """Context of a forward and backward in which processes average their gradients, or not."""
        if wanted or self.model is self.student:
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _finite_grad_norm(self) -> float:
        """The norm of the gradients, which is the same on all processes.

        Raises:
            NonFiniteStepError: it is not finite.
        """
        grad_norm = float(self.precision.unscaled_grad_norm(self.optimizer))
        if not math.isfinite(grad_norm):
            self.precision.lower_scale()
            raise NonFiniteStepError(name_non_finite_gradients(self.student))
        return grad_norm

    @property
    def _streams(self) -> list[LoaderStream]:
        return [x for x in (self.labeled, self.unlabeled) if x is not None]

    def open_streams(self) -> None:
        """Build the loaders now instead of when they are needed; on all processes together."""
        for stream in self._streams:
            stream.open()

    def _remember(self) -> None:
        """Keep what the step changes before all have agreed to it."""
        self._running.remember()
        self._states_before = [get_random_state(), *(x.state_dict() for x in self._streams)]

    def _next_batch(self) -> Batch:
        """The views of the next micro-step, or the reason why there are none."""
        decay = self.unlabeled_decay
        # Of None images, all are taken.
        num_unlabeled = None if decay is None else decay(self.iter)
        semi_supervised = (
            self.unlabeled is not None and self.iter >= self.burn_in_iters and num_unlabeled != 0
        )
        # Opened before anything is read: an error in reading must not keep a process away.
        for stream in self._streams if semi_supervised else [self.labeled]:
            stream.open()
        try:
            labeled = next(self.labeled)
            unlabeled = next(self.unlabeled)[:num_unlabeled] if semi_supervised else []
        except OSError as error:
            logger.error(f"Iteration {self.iter}: {error}")
            return Batch([], [], [], error)
        return Batch(labeled, [x["weak"] for x in unlabeled], [x["strong"] for x in unlabeled])

    def _agree(self, forward: Forward, data_error: OSError | None) -> bool:
        """Whether all processes can go on to backward, which they do together or not at all.

        Every process comes here after every forward. The flags come to the host in the one
        transfer that the step itself makes before backward.

        Raises:
            UnreadableDataError: some process has no images; on all of them together.
        """
        device = next(self.model.parameters()).device
        failed = torch.ones((), device=device)
        if forward.failure is None:
            failed = (~torch.isfinite(sum(forward.losses.values()).detach())).float()
        # Made on the device, so that nothing is copied to it.
        known_here = (float(self._stop_signal.number), float(data_error is not None))
        flags = torch.stack([failed, *(torch.full((), x, device=device) for x in known_here)])
        any_failed, number, any_without_data = agree_on_flags(flags).tolist()
        self.agreed_signal = int(number)
        if any_without_data:
            self._give_up(data_error)
        return not any_failed

    def _give_up(self, error: OSError | None) -> NoReturn:
        """Undo what the step did so far, as its images could not be read on some process.

        All processes get here together.

        Args:
            error: what happened on this process, if it did.

        Raises:
            UnreadableDataError: always.
        """
        self.optimizer.zero_grad()
        self._running.restore()
        random_state, *positions = self._states_before
        set_random_state(random_state)
        for stream, position in zip(self._streams, positions, strict=True):
            stream.load_state_dict(position)
        # A worker's error comes with its traceback; the last line is the error itself.
        reason = str(error).strip().splitlines()[-1] if error is not None else ""
        reasons = "; ".join(dict.fromkeys(x for x in comm.all_gather(reason) if x))
        raise UnreadableDataError(
            f"Iteration {self.iter} has no images: {reasons}. What was finished before it is "
            "saved. Mend the file, then go on with --resume."
        ) from error

    def _skip(self, reason: str) -> None:
        """Undo what the step did so far and count; stop after too many in a row.

        All processes get here together.

        Args:
            reason: what was wrong on this process; empty if nothing was.

        Raises:
            FloatingPointError: `max_skipped_steps` steps in a row were skipped.
        """
        self.optimizer.zero_grad()
        self._running.restore()
        reason = "; ".join(dict.fromkeys(x for x in comm.all_gather(reason) if x))
        self.num_skipped += 1
        self.num_skipped_in_a_row += 1
        get_event_storage().put_scalar("skipped_steps", self.num_skipped, smoothing_hint=False)
        logger.warning(f"Iteration {self.iter} skipped: {reason}")
        if self.num_skipped_in_a_row >= self.max_skipped_steps:
            raise FloatingPointError(
                f"{self.num_skipped_in_a_row} iterations in a row had a non-finite loss or "
                f"gradient; the last: {reason}. The weights are those before the first of them. "
                "Lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS or set "
                "SOLVER.CLIP_GRADIENTS.ENABLED; SOFT_TEACHER.MAX_SKIPPED_STEPS sets this limit."
            ) from None

    def state_dict(self) -> dict:
        state = super().state_dict()
        state["teacher"] = self.teacher.state_dict()
        state["precision"] = self.precision.state_dict()
        state["labeled"] = self.labeled.state_dict()
        if self.unlabeled is not None:
            state["unlabeled"] = self.unlabeled.state_dict()
        state["num_skipped"] = self.num_skipped
        state["num_skipped_in_a_row"] = self.num_skipped_in_a_row
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.teacher.load_state_dict(state_dict["teacher"])
        self.precision.load_state_dict(state_dict["precision"])
        self.labeled.load_state_dict(state_dict["labeled"])
        if self.unlabeled is not None:
            self.unlabeled.load_state_dict(state_dict["unlabeled"])
        self.num_skipped = state_dict["num_skipped"]
        self.num_skipped_in_a_row = state_dict["num_skipped_in_a_row"]
