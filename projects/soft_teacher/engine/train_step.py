"""One iteration of Soft Teacher.

The step knows two calls: `teacher.annotate(weak) -> Guidance` and `student(labeled, strong,
guidance) -> dict of losses`. What kind of detector stands behind them is not its business.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from soft_teacher.engine.ema import EMATeacher
from soft_teacher.engine.finite import (
    agree_on_flags,
    name_non_finite_gradients,
    name_non_finite_losses,
)
from soft_teacher.engine.loader_stream import LoaderStream
from soft_teacher.engine.precision import Precision
from soft_teacher.engine.random_state import get_random_state, set_random_state
from soft_teacher.engine.running_statistics import RunningStatistics
from soft_teacher.engine.stop_signal import StopSignal
from soft_teacher.modeling.guidance import Guidance

logger = logging.getLogger(__name__)

Observer = Callable[[int, list[dict], list[dict], Guidance], None]
"""(iteration, weak views, strong views, guidance), called after each semi-supervised forward."""


class UnreadableDataError(OSError):
    """A process could not read its images; raised on all, which are as if the step never began."""


class Agreement(NamedTuple):
    """What all processes know of each other between forward and backward.

    Attributes:
        finite: whether all losses are finite.
        stop_signal: number of the signal that asks for a stop after this step, or 0.
        has_data: whether all could read their images.
        values: the scalars of this process as numbers.
    """

    finite: bool
    stop_signal: int
    has_data: bool
    values: dict[str, float]


class SoftTeacherStep(SimpleTrainer):
    """Labeled and unlabeled batch, guidance, losses, one backward, optimizer, EMA.

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
        burn_in_iters: int = 0,
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
            burn_in_iters: supervised steps before unlabeled images are used.
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
        self.burn_in_iters = burn_in_iters
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
        model = self.model
        return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model

    def run_step(self) -> None:
        """Run one iteration; see the class."""
        assert self.model.training, "The student was left in eval mode."
        start = time.perf_counter()
        self._remember()
        labeled, weak, strong, data_error = self._next_batches()
        data_time = time.perf_counter() - start

        if data_error is None:
            losses, statistics, failure = self._forward(labeled, weak, strong)
        else:
            losses, statistics, failure = self._enter_forward(data_error)
        total = sum(losses.values()) if failure is None else None
        agreed = self._agree(total, {**losses, **statistics}, data_error is None)
        values, self.agreed_signal = agreed.values, agreed.stop_signal
        if not agreed.has_data:
            self._give_up(data_error)
        if not agreed.finite:
            self._skip(failure or name_non_finite_losses(values))
            return

        self.optimizer.zero_grad()
        self.precision.backward(total)
        grad_norm = self.precision.unscaled_grad_norm(self.optimizer)
        if not torch.isfinite(grad_norm):
            self.precision.lower_scale()
            self._skip(name_non_finite_gradients(self.student))
            return
        momentum = self.teacher.current_momentum
        self.precision.step(self.optimizer)
        self._running.average_over_processes()
        self.teacher.update(self.student)
        self.num_skipped_in_a_row = 0

        num_images = len(labeled) + len(strong)
        values["ema_momentum"] = momentum
        values["grad_norm"] = float(grad_norm)
        values["images_per_second"] = num_images / (time.perf_counter() - start)
        self._log(values, set(losses), data_time)

    @property
    def _streams(self) -> list[LoaderStream]:
        return [x for x in (self.labeled, self.unlabeled) if x is not None]

    def _remember(self) -> None:
        """Keep what the step changes before all have agreed to it."""
        self._running.remember()
        self._states_before = [get_random_state(), *(x.state_dict() for x in self._streams)]

    def _next_batches(self) -> tuple[list[dict], list[dict], list[dict], OSError | None]:
        """Labeled, weak and strong views, or the reason why there are none."""
        semi_supervised = self.unlabeled is not None and self.iter >= self.burn_in_iters
        # Opened before anything is read: an error in reading must not keep a process away.
        for stream in self._streams if semi_supervised else [self.labeled]:
            stream.open()
        try:
            labeled = next(self.labeled)
            unlabeled = next(self.unlabeled) if semi_supervised else []
        except OSError as error:
            return [], [], [], error
        return labeled, [x["weak"] for x in unlabeled], [x["strong"] for x in unlabeled], None

    def _forward(
        self, labeled: list[dict], weak: list[dict], strong: list[dict]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], str | None]:
        """Losses and statistics, or the reason why there are none.

        Detectron2's RPN raises inside forward when it predicts non-finite values; on other
        processes the same step may be fine, so the error becomes a flag that all agree on.
        """
        try:
            with self.precision.autocast():
                if not weak:
                    return self.model(labeled), {}, None
                guidance = self.teacher.model.annotate(weak)
                losses = self.model(labeled, strong, guidance)
        except FloatingPointError as error:
            return {}, {}, str(error)
        for observe in self.observers:
            observe(self.iter, weak, strong, guidance)
        return losses, guidance.statistics, None

    def _enter_forward(self, error: OSError) -> tuple[dict, dict, str]:
        """In place of :meth:`_forward` on a process without images.

        In one of the first forward passes DDP's processes exchange how they sort gradients, so
        none may stay away; the student itself has nothing to do.
        """

        def refuse(module: nn.Module, args: tuple) -> NoReturn:
            raise error

        logger.error(f"Iteration {self.iter}: {error}")
        hook = self.student.register_forward_pre_hook(refuse)
        with contextlib.suppress(OSError):
            self.model([])
        hook.remove()
        return {}, {}, str(error)

    def _agree(self, total: Tensor | None, scalars: dict[str, Tensor], has_data: bool) -> Agreement:
        """What is true of all processes, and this one's scalars as numbers.

        Flags and scalars come to the host together, in the one transfer that the step itself
        makes before backward.
        """
        device = next(self.model.parameters()).device
        failed = torch.ones((), device=device)
        if total is not None:
            failed = (~torch.isfinite(total.detach())).float()
        # Made on the device, so that nothing is copied to it.
        known_here = (float(self._stop_signal.number), float(not has_data))
        flags = torch.stack([failed, *(torch.full((), x, device=device) for x in known_here)])
        flags = agree_on_flags(flags)
        packed = torch.cat([flags, *(x.detach().float().reshape(1) for x in scalars.values())])
        failed, number, no_data, *values = packed.tolist()
        return Agreement(
            failed == 0, int(number), no_data == 0, dict(zip(scalars, values, strict=True))
        )

    def _give_up(self, error: OSError | None) -> NoReturn:
        """Undo what the step did so far, as its images could not be read on some process.

        All processes get here together.

        Args:
            error: what happened on this process, if it did.

        Raises:
            UnreadableDataError: always.
        """
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
        """Undo what forward did to the student and count; stop after too many in a row.

        All processes get here together.

        Args:
            reason: what was wrong on this process; empty if nothing was.

        Raises:
            FloatingPointError: `max_skipped_steps` steps in a row were skipped.
        """
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
            )

    def _log(self, values: dict[str, float], losses: set[str], data_time: float) -> None:
        """Log scalars, averaged over processes: rates add up, data time is the slowest's.

        A mean over nothing (say, the variance when there was no pseudo box) is left out.
        """
        if comm.get_world_size() > 1 and (self.iter + 1) % self.log_period != 0:
            return
        gathered = comm.gather({**values, "data_time": data_time})
        if not comm.is_main_process():
            return
        means = {}
        for name in values:
            known = [x[name] for x in gathered if math.isfinite(x[name])]
            if known:
                means[name] = sum(known) / len(known)
        means["images_per_second"] = sum(x["images_per_second"] for x in gathered)
        storage = get_event_storage()
        storage.put_scalar("data_time", max(x["data_time"] for x in gathered))
        storage.put_scalar("total_loss", sum(means[k] for k in losses))
        storage.put_scalars(**means)

    def state_dict(self) -> dict:
        state = super().state_dict()
        state["teacher"] = self.teacher.state_dict()
        state["precision"] = self.precision.state_dict()
        state["labeled"] = self.labeled.state_dict()
        if self.unlabeled is not None:
            state["unlabeled"] = self.unlabeled.state_dict()
        state["num_skipped"] = self.num_skipped
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.teacher.load_state_dict(state_dict["teacher"])
        self.precision.load_state_dict(state_dict["precision"])
        self.labeled.load_state_dict(state_dict["labeled"])
        if self.unlabeled is not None:
            self.unlabeled.load_state_dict(state_dict["unlabeled"])
        self.num_skipped = state_dict["num_skipped"]
