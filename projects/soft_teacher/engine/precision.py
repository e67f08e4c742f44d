"""Mixed precision on whatever device the model is on."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor


class Precision:
    """Autocast and gradient scaling, or plain float32.

    On CUDA mixed precision is float16 with dynamic loss scaling, as in the official recipe; on
    the CPU it is bfloat16, whose range needs no scaling. (Detectron2's AMPTrainer is CUDA only.)
    """

    def __init__(self, device_type: str, enabled: bool, for_teacher: bool = False):
        """
        Args:
            device_type: "cuda" or "cpu".
            enabled: SOLVER.AMP.ENABLED.
            for_teacher: SOFT_TEACHER.AMP_TEACHER, for its detections alone if not `enabled`.
        """
        self.device_type = device_type
        self.enabled = enabled
        self.for_teacher = for_teacher or enabled
        self.dtype = torch.float16 if device_type == "cuda" else torch.bfloat16
        self.scaler = torch.amp.GradScaler(
            device_type, enabled=enabled and self.dtype == torch.float16
        )

    def autocast(self) -> AbstractContextManager:
        """Context for the student's forward, and for what it asks the teacher."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.enabled)

    def teacher_autocast(self) -> AbstractContextManager:
        """Context for the teacher's detections on weak views."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.for_teacher)

    def backward(self, loss: Tensor) -> None:
        """Backpropagate the loss, scaled if need be."""
        self.scaler.scale(loss).backward()

    def unscaled_grad_norm(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Undo the scaling of the gradients and return their norm, 0-d."""
        self.scaler.unscale_(optimizer)
        grads = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        return torch.nn.utils.get_total_norm(grads)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step the optimizer after :meth:`unscaled_grad_norm` was found finite."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def lower_scale(self) -> None:
        """In place of :meth:`step`, after gradients whose norm is not finite."""
        if self.scaler.is_enabled():
            self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())
            # As after the scaler's own lowering: it may grow again after that many good steps.
            self.scaler.load_state_dict({**self.scaler.state_dict(), "_growth_tracker": 0})

    def state_dict(self) -> dict:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
