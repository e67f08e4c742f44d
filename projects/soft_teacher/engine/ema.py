"""The teacher: an exponential moving average of the student (section 3.1)."""

import copy
from collections.abc import Collection

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn


def build_teacher(student: nn.Module) -> nn.Module:
    """A frozen copy of the student in eval mode, with the student's weights of now."""
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    return teacher.eval()


def ema_momentum(num_updates: int, momentum: float) -> float:
    """Share of the teacher kept in update number `num_updates` (from 0).

    min(momentum, 1 - 1/(t+1)): the teacher is the mean of all students so far until the share
    reaches `momentum` (official; the paper does not say how the average starts).
    """
    return min(momentum, 1.0 - 1.0 / (num_updates + 1))


@torch.no_grad()
def settled_entries(teacher: nn.Module, student: nn.Module) -> set[str]:
    """Names of the entries that training leaves alone and that are equal in both models.

    These are frozen parameters and all that belongs to frozen batch norms.
    """
    frozen = {name for name, x in student.named_parameters() if not x.requires_grad}
    for name, module in student.named_modules():
        if isinstance(module, FrozenBatchNorm2d):
            frozen.update(f"{name}.{key}" for key in module.state_dict())
    state = teacher.state_dict()
    return {k for k, x in student.state_dict().items() if k in frozen and torch.equal(x, state[k])}


@torch.no_grad()
def update_average(
    teacher: nn.Module, student: nn.Module, momentum: float, settled: Collection[str] = ()
) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, entry by entry of the state.

    Parameters and floating-point buffers (running statistics) are averaged; integer buffers
    (counters, index tables) are copied.

    Args:
        teacher, student: models with the same state; the student without its DDP wrapper.
        momentum: share of the teacher that is kept; 0 copies the student exactly.
        settled: entries to pass over, see :func:`settled_entries`.
    """
    averages: list[Tensor] = []
    sources: list[Tensor] = []
    student_state = student.state_dict()
    teacher_state = teacher.state_dict()
    assert teacher_state.keys() == student_state.keys(), "teacher and student differ in keys"
    for name, value in teacher_state.items():
        if name in settled:
            continue
        source = student_state[name]
        if value.is_floating_point() and momentum > 0:
            averages.append(value)
            sources.append(source)
        else:
            value.copy_(source)
    if averages:
        torch._foreach_lerp_(averages, sources, 1.0 - momentum)


class EMATeacher:
    """Keeps a teacher up to date and counts its updates.

    Attributes:
        model: the teacher.
        num_updates: updates so far; part of the checkpoint.
    """

    def __init__(self, student: nn.Module, momentum: float):
        """
        Args:
            student: the student without its DDP wrapper.
            momentum: largest share kept, see :func:`ema_momentum`; 0 makes the teacher equal
                to the student.
        """
        self.model = build_teacher(student)
        self.momentum = momentum
        self.num_updates = 0
        self._settled: set[str] | None = None

    @property
    def current_momentum(self) -> float:
        """Share of the teacher that the next update keeps."""
        return ema_momentum(self.num_updates, self.momentum)

    def restart_from(self, student: nn.Module) -> None:
        """Make the teacher a copy of the student, as at the start of training."""
        update_average(self.model, student, momentum=0.0)
        self.num_updates = 0
        self._settled = None

    def update(self, student: nn.Module) -> None:
        """Fold the student's current weights into the teacher."""
        assert not self.model.training, "The teacher must stay in eval mode."
        if self._settled is None:
            self._settled = settled_entries(self.model, student)
        update_average(self.model, student, self.current_momentum, self._settled)
        self.num_updates += 1

    def state_dict(self) -> dict[str, int]:
        return {"num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.num_updates = state["num_updates"]
        self._settled = None
