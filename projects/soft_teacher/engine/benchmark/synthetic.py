"""Made-up batches and models that do as much work as real ones.

Boxes are xyxy in pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from soft_teacher.modeling.guidance import Guidance

# Above all of the official thresholds (0.5 and 0.9).
PSEUDO_SCORE = 0.95


@dataclass(frozen=True)
class BatchShape:
    """What one step works on.

    Attributes:
        labeled, unlabeled: numbers of images.
        height, width: of each image, in pixels.
        num_boxes: in each image, ground truth or pseudo boxes.
    """

    labeled: int
    unlabeled: int
    height: int
    width: int
    num_boxes: int


@dataclass(frozen=True)
class SyntheticBatch:
    """Images of noise with random boxes.

    The weak and strong view of an unlabeled image show different noise in the same frame.

    Attributes:
        labeled: views with `instances`.
        weak, strong: views without any.
        truth: for each unlabeled image the boxes that are to be its pseudo boxes.
    """

    labeled: list[dict]
    weak: list[dict]
    strong: list[dict]
    truth: list[Instances]

    @classmethod
    def draw(cls, shape: BatchShape, num_classes: int) -> "SyntheticBatch":
        """Draw a batch from torch's global generator."""
        return cls(
            labeled=[
                {**_draw_view(shape), "instances": _draw_boxes(shape, num_classes)}
                for _ in range(shape.labeled)
            ],
            weak=[_draw_view(shape) for _ in range(shape.unlabeled)],
            strong=[_draw_view(shape) for _ in range(shape.unlabeled)],
            truth=[_draw_boxes(shape, num_classes) for _ in range(shape.unlabeled)],
        )

    @property
    def supervised(self) -> list[dict]:
        """All images that the student sees in a step, with the boxes that it learns from."""
        return self.labeled + [
            {**view, "instances": boxes}
            for view, boxes in zip(self.strong, self.truth, strict=True)
        ]

    @property
    def pairs(self) -> list[dict]:
        """The unlabeled images as their loader yields them."""
        return [{"weak": w, "strong": s} for w, s in zip(self.weak, self.strong, strict=True)]


def replace_labels(guidance: Guidance, truth: list[Instances]) -> None:
    """Put these boxes in the place of what the teacher detected, in place, as sure detections."""
    for i, (boxes, labels) in enumerate(zip(truth, guidance.labels, strict=True)):
        device = labels.scores.device
        guidance.labels[i] = Instances(
            labels.image_size,
            pred_boxes=boxes.gt_boxes.to(device),
            pred_classes=boxes.gt_classes.to(device),
            scores=torch.full((len(boxes),), PSEUDO_SCORE, device=device),
        )


@torch.no_grad()
def settle_frozen_norms(model: nn.Module, views: list[dict]) -> None:
    """Give the frozen batch norms of a random model the statistics of images, in place.

    Without statistics each residual block doubles the features of a random ResNet, and its boxes
    become so large that after NMS few proposals are left to work on.

    Args:
        model: a detector with `preprocess_image` and `backbone`.
        views: images to take the statistics of.
    """

    def settle(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        norm.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
        norm.running_var.copy_(inputs[0].var(dim=(0, 2, 3)))

    norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    handles = [norm.register_forward_pre_hook(settle) for norm in norms]
    model.backbone(model.preprocess_image(views).tensor)
    for handle in handles:
        handle.remove()


def _draw_view(shape: BatchShape) -> dict:
    size = (shape.height, shape.width)
    return {
        "image": torch.randint(0, 256, (3, *size), dtype=torch.uint8),
        "matrix": np.eye(3),
        "height": shape.height,
        "width": shape.width,
    }


def _draw_boxes(shape: BatchShape, num_classes: int) -> Instances:
    """Boxes inside the image, with sides of 5 to 50 % of its own, and their classes."""
    size = torch.tensor([shape.width, shape.height], dtype=torch.float32)
    sides = size * (0.05 + 0.45 * torch.rand(shape.num_boxes, 2))
    corners = (size - sides) * torch.rand(shape.num_boxes, 2)
    return Instances(
        (shape.height, shape.width),
        gt_boxes=Boxes(torch.cat([corners, corners + sides], dim=1)),
        gt_classes=torch.randint(num_classes, (shape.num_boxes,)),
    )
