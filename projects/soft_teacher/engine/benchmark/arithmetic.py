"""What a step computes and the least that it must compute, counted instead of timed.

Counts do not depend on the machine. FLOPs are those of convolutions and matrix products, forward
and backward; a multiplication and an addition are two.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from soft_teacher.engine.benchmark.contenders import (
    InferenceContender,
    SoftTeacherContender,
    SupervisedContender,
)


@dataclass(frozen=True)
class Work:
    """What was counted while something ran.

    Attributes:
        flops: of convolutions and matrix products.
        traffic: bytes that all operations read and wrote, each by itself.
    """

    flops: int
    traffic: int


@dataclass(frozen=True)
class StepWork:
    """A step of Soft Teacher beside the least that it can be made of.

    Attributes:
        soft_teacher: the step.
        supervised: stock Detectron2's supervised step on the images that the student sees.
        inference: stock Detectron2's inference on those that the teacher sees.
        judging: the teacher's box head for the boxes that it must judge, all at once.
        rows: RoIs that went through the box heads: "teacher" those that it detects in, "judged"
            those that it judges, "labeled" and "unlabeled" those that the student learns from.
        background: the student's background RoIs, each of which needs a score of the teacher.
        jittered: copies of pseudo boxes, each of which needs to be refined.
    """

    soft_teacher: Work
    supervised: Work
    inference: Work
    judging: Work
    rows: dict[str, int]
    background: int
    jittered: int

    @property
    def floor(self) -> int:
        """FLOPs that a step cannot do without."""
        return self.supervised.flops + self.inference.flops + self.judging.flops

    @property
    def floor_traffic(self) -> int:
        """Bytes of what a step cannot do without."""
        return self.supervised.traffic + self.inference.traffic + self.judging.traffic

    @property
    def ratio(self) -> float:
        """FLOPs of the step over the floor."""
        return self.soft_teacher.flops / self.floor

    @property
    def traffic_ratio(self) -> float:
        """Traffic of the step over that of the floor."""
        return self.soft_teacher.traffic / self.floor_traffic


def count_work(run: Callable[[], object]) -> Work:
    """Run something once and count what it does."""
    traffic = _TrafficCounter()
    with FlopCounterMode(display=False) as flops, traffic:
        run()
    return Work(flops.get_total_flops(), traffic.num_bytes)


def count_step(
    soft_teacher: SoftTeacherContender,
    supervised: SupervisedContender,
    inference: InferenceContender,
    num_jittered: int,
) -> StepWork:
    """Count one step of each, of models with one box head.

    Args:
        soft_teacher, supervised, inference: of the same model and batch.
        num_jittered: copies of all pseudo boxes that must be refined.
    """
    with _watch_heads(soft_teacher) as seen:
        work = count_work(soft_teacher.run)
    num_judged = seen.background + num_jittered
    return StepWork(
        soft_teacher=work,
        supervised=count_work(supervised.run),
        inference=count_work(inference.run),
        judging=_work_of_box_head(soft_teacher.student.roi_heads, num_judged, seen.row_shape),
        rows=dict(seen.rows),
        background=seen.background,
        jittered=num_jittered,
    )


class _TrafficCounter(TorchDispatchMode):
    """Adds up the bytes of the inputs and outputs of all operations but views."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, outputs)) if isinstance(x, Tensor)]
            self.num_bytes += sum(x.numel() * x.element_size() for x in tensors)
        return outputs


class _Seen:
    """What the box heads of both models were asked in a step."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.row_shape: tuple[int, ...] = ()
        self.background = 0
        self.now = {"student": "labeled", "teacher": "teacher"}

    def count(self, who: str, pooled: Tensor) -> None:
        """Note RoIs (R, C, h, w) that enter the box head of a model."""
        self.rows[self.now[who]] += len(pooled)
        self.row_shape = tuple(pooled.shape[1:])

    @contextmanager
    def during(self, who: str, occupation: str) -> Iterator[None]:
        """RoIs that a model looks at in the body are for this."""
        before, self.now[who] = self.now[who], occupation
        try:
            yield
        finally:
            self.now[who] = before


@contextmanager
def _watch_heads(contender: SoftTeacherContender) -> Iterator[_Seen]:
    """Note what the RoI heads of both models do in the body."""
    seen = _Seen()
    student, teacher = contender.student.roi_heads, contender.step.teacher.model.roi_heads
    learn, judge = student.unlabeled_losses, teacher.score_and_refine
    losses_on_samples = student._losses_on_samples

    def watched_learn(*args):
        with seen.during("student", "unlabeled"):
            return learn(*args)

    def watched_judge(*args, **kwargs):
        with seen.during("teacher", "judged"):
            return judge(*args, **kwargs)

    def watched_losses(features, samples, *args):
        seen.background += sum(int((s.classes == student.num_classes).sum()) for s in samples)
        return losses_on_samples(features, samples, *args)

    student.unlabeled_losses, teacher.score_and_refine = watched_learn, watched_judge
    student._losses_on_samples = watched_losses
    hooks = [
        heads.box_head.register_forward_pre_hook(
            lambda module, inputs, who=who: seen.count(who, inputs[0])
        )
        for who, heads in (("student", student), ("teacher", teacher))
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        # What was set on the object hid the method of its class.
        del student.unlabeled_losses, teacher.score_and_refine, student._losses_on_samples


@torch.no_grad()
def _work_of_box_head(heads: nn.Module, num_rows: int, row_shape: tuple[int, ...]) -> Work:
    """The box head and its predictor for so many RoIs."""
    rows = next(heads.parameters()).new_zeros(num_rows, *row_shape)
    return count_work(lambda: heads.box_predictor(heads.box_head(rows)))
