"""One iteration of Soft Teacher.

The step knows two calls: `teacher.annotate(weak) -> Guidance` and `student(labeled, strong,
guidance) -> dict of losses`. What kind of detector stands behind them is not its business.
"""

import logging
import math
import time
from collections.abc import Callable

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from soft_teacher.engine.ema import EMATeacher
from soft_teacher.engine.finite import (
    agree_on_flag,
    name_non_finite_gradients,
    name_non_finite_losses,
)
from soft_teacher.engine.loader_stream import LoaderStream
from soft_teacher.engine.precision import Precision
from soft_teacher.engine.running_statistics import RunningStatistics
from soft_teacher.modeling.guidance import Guidance

logger = logging.getLogger(__name__)

Observer = Callable[[int, list[dict], list[dict], Guidance], None]
"""(iteration, weak views, strong views, guidance), called after each semi-supervised forward."""


class SoftTeacherStep(SimpleTrainer):
    """Labeled and unlabeled batch, guidance, losses, one backward, optimizer, EMA.

    A step whose loss or gradient is not finite on any process is skipped on all of them: it
    changes neither the student nor the teacher.
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
        labeled, weak, strong = self._next_batches()
        data_time = time.perf_counter() - start

        self._running.remember()
        losses, statistics, failure = self._forward(labeled, weak, strong)
        total = sum(losses.values()) if failure is None else None
        finite, values = self._agree_that_finite(total, {**losses, **statistics})
        if not finite:
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

    def _next_batches(self) -> tuple[list[dict], list[dict], list[dict]]:
        labeled = next(self.labeled)
        if self.unlabeled is None or self.iter < self.burn_in_iters:
            return labeled, [], []
        unlabeled = next(self.unlabeled)
        return labeled, [x["weak"] for x in unlabeled], [x["strong"] for x in unlabeled]

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

    def _agree_that_finite(
        self, total: Tensor | None, scalars: dict[str, Tensor]
    ) -> tuple[bool, dict[str, float]]:
        """Whether the loss is finite on all processes, and the scalars as numbers.

        Flag and scalars come to the host together, in the one transfer that the step itself
        makes before backward.
        """
        device = next(self.model.parameters()).device
        failed = torch.ones((), device=device)
        if total is not None:
            failed = (~torch.isfinite(total.detach())).float()
        failed = agree_on_flag(failed)
        values = torch.stack([failed, *(x.detach().float() for x in scalars.values())]).tolist()
        return values[0] == 0, dict(zip(scalars, values[1:], strict=True))

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
