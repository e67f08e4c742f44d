"""HTC's heads computed from their parameters alone, with torch and torchvision, box by box.

Nothing here comes from the project or from Detectron2. Boxes are lists of four floats or tensors
(R, 4); maps are of all images, (N, C, h, w).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import ops

STRIDES = (4, 8, 16, 32)
IOUS = (0.5, 0.6, 0.7)


class Row(NamedTuple):
    """A RoI of a stage: its image and box, what it is matched with, and the predictions."""

    image: int
    box: Tensor
    label: int
    target: int | None
    logits: Tensor
    delta: Tensor


class Reference:
    """The heads.

    Args:
        parameters: of the heads, by name; gradients flow into them.
        maps: p2 to p6.
        weights: box regression weights of each stage.
        num_classes: K.
        flow: whether mask heads take in the trunks of those before them.
    """

    def __init__(self, parameters: dict[str, Tensor], maps: dict, weights, num_classes: int, flow):
        self.parameters = parameters
        self.maps = [maps[f"p{i}"] for i in range(2, 7)]
        self.weights = weights
        self.num_classes = num_classes
        self.flow = flow
        has_branch = any(name.startswith("semantic_head.") for name in parameters)
        self.fused = self._fuse() if has_branch else None

    def _conv(self, name: str, x: Tensor) -> Tensor:
        weight, bias = (self.parameters[f"{name}.{part}"] for part in ("weight", "bias"))
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, *(self.parameters[f"{name}.{part}"] for part in ("weight", "bias")))

    # The semantic branch.

    def _fuse(self) -> Tensor:
        size, total = self.maps[1].shape[2:], 0
        for i, level in enumerate(self.maps):
            level = F.interpolate(level, size=size, mode="bilinear", align_corners=True)
            total = total + self._conv(f"semantic_head.lateral_convs.{i}", level).relu()
        for i in range(4):
            total = self._conv(f"semantic_head.convs.{i}", total).relu()
        return total

    def semantic_logits(self) -> Tensor:
        return self._conv("semantic_head.conv_logits", self.fused)

    def _semantic_features(self, image: int, boxes: Tensor) -> Tensor:
        embedding = self._conv("semantic_head.conv_embedding", self.fused).relu()
        rois = F.pad(boxes, (1, 0), value=float(image))
        return ops.roi_align(embedding, rois, 14, 1 / 8, sampling_ratio=0, aligned=True)

    # RoIs.

    def pool(self, image: int, boxes: Tensor, side: int) -> Tensor:
        """Features (R, C, side, side) of boxes in an image, each from the level of its size."""
        pooled = [self._empty(side)]
        for box in boxes:
            area = float((box[2] - box[0]) * (box[3] - box[1]))
            level = min(max(math.floor(4 + math.log2(math.sqrt(area) / 224 + 1e-8)), 2), 5) - 2
            roi = torch.cat([box.new_tensor([image]), box])[None]
            scale = 1 / STRIDES[level]
            pooled.append(ops.roi_align(self.maps[level], roi, side, scale, 0, aligned=True))
        pooled = torch.cat(pooled)
        if self.fused is None:
            return pooled
        return pooled + F.adaptive_avg_pool2d(self._semantic_features(image, boxes), side)

    def _empty(self, side: int) -> Tensor:
        return self.maps[0].new_zeros(0, self.maps[0].shape[1], side, side)

    def box_stage(self, stage: int, image: int, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, K+1) and deltas (R, 4)."""
        x = self.pool(image, boxes, 7).flatten(1)
        for i in (1, 2):
            x = self._linear(f"box_head.{stage}.fc{i}", x).relu()
        name = f"box_predictor.{stage}"
        return self._linear(f"{name}.cls_score", x), self._linear(f"{name}.bbox_pred", x)

    def mask_stage(self, stage: int, image: int, boxes: Tensor, side: int) -> Tensor:
        """Logits (R, K, 2 side, 2 side)."""
        pooled, trunk = self.pool(image, boxes, side), None
        for k in range(stage + 1):
            head = f"mask_head.{k}"
            x = pooled
            if self.flow and k > 0:
                x = x + self._conv(f"{head}.conv_res", trunk).relu()
            i = 1
            while f"{head}.mask_fcn{i}.weight" in self.parameters:
                x = self._conv(f"{head}.mask_fcn{i}", x).relu()
                i += 1
            trunk = x
        weight, bias = (self.parameters[f"{head}.deconv.{part}"] for part in ("weight", "bias"))
        up = F.conv_transpose2d(trunk, weight, bias, stride=2).relu()
        return self._conv(f"{head}.predictor", up)

    def move(self, stage: int, boxes: Tensor, deltas: Tensor, size: tuple[int, int]) -> Tensor:
        """What a stage makes of boxes, clipped to an image of (height, width)."""
        dx, dy, dw, dh = (deltas.detach() / boxes.new_tensor(self.weights[stage])).unbind(1)
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        x, y = boxes[:, 0] + width / 2 + dx * width, boxes[:, 1] + height / 2 + dy * height
        width, height = width * dw.exp(), height * dh.exp()
        moved = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=1)
        return ops.clip_boxes_to_image(moved, size)

    def encode(self, stage: int, box: Tensor, target: Tensor) -> Tensor:
        """What a stage ought to predict for a box."""
        (w, h), (tw, th) = (b[2:] - b[:2] for b in (box, target))
        dx, dy = (target[:2] + target[2:] - box[:2] - box[2:]) / 2 / torch.stack([w, h])
        return torch.stack([dx, dy, (tw / w).log(), (th / h).log()]) * box.new_tensor(
            self.weights[stage]
        )

    # Stages.

    def label(self, stage: int, box: Tensor, targets: Tensor, classes) -> tuple[int, int | None]:
        """The class of a box, and the row of its match among targets (T, 4)."""
        if len(targets) == 0:
            return self.num_classes, None
        overlaps = ops.box_iou(box[None], targets)[0]
        best = int(overlaps.argmax())
        if overlaps[best] < IOUS[stage]:
            return self.num_classes, None
        return int(classes[best]), best

    def run_stage(
        self, stage: int, image: int, boxes: Tensor, targets: Tensor, classes
    ) -> list[Row]:
        """All boxes (R, 4) that enter a stage and, behind them, the targets, as its RoIs."""
        boxes = torch.cat([boxes, targets])
        logits, deltas = self.box_stage(stage, image, boxes)
        return [
            Row(image, box, *self.label(stage, box, targets, classes), z, d)
            for box, z, d in zip(boxes, logits, deltas, strict=True)
        ]

    def leave_stage(self, stage: int, rows: list[Row], num_targets: int, size) -> Tensor:
        """What enters the next stage: all of `run_stage` but the targets, moved."""
        rows = rows[: len(rows) - num_targets]
        if not rows:
            return torch.zeros(0, 4)
        boxes, deltas = (torch.stack([getattr(r, x) for r in rows]) for x in ("box", "delta"))
        moved = self.move(stage, boxes, deltas, size)
        return moved[(moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])]

    def mask_rois(
        self, stage: int, rows: list[Row], left: Tensor, targets: Tensor, classes, interleaved: bool
    ) -> list[tuple[Tensor, int, int]]:
        """Box, class and target of each RoI of an image that the masks of a stage learn from."""
        if not interleaved:
            return [(r.box, r.label, r.target) for r in rows if r.target is not None]
        found = [(b, *self.label(stage, b, targets, classes)) for b in torch.cat([left, targets])]
        return [x for x in found if x[2] is not None]
