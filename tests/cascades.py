"""A small cascade, and what its stages do box by box in plain numbers."""

import math
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from torch import Tensor

from tiny import NUM_CLASSES, tiny_config

NUM_STAGES = 3
IOUS = (0.5, 0.6, 0.7)
WEIGHTS = ((10.0, 10, 5, 5), (20.0, 20, 10, 10), (30.0, 30, 15, 15))
CASCADE = {
    "MODEL.ROI_HEADS.NAME": "SoftTeacherCascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
}


def cascade_model(seed: int = 0, cfg: CfgNode | None = None, **overrides) -> torch.nn.Module:
    """A student in training mode whose stages move boxes by some pixels, each in its own way."""
    cfg = cfg or tiny_config(**CASCADE, **overrides)
    torch.manual_seed(seed)
    model = build_model(cfg).train()
    for predictor in model.roi_heads.box_predictor:
        torch.nn.init.normal_(predictor.bbox_pred.weight, std=0.3)
        torch.nn.init.normal_(predictor.cls_score.weight, std=0.3)
    return model


def stock_twin(model: torch.nn.Module, cfg: CfgNode) -> torch.nn.Module:
    """Detectron2's own model of the same config and weights."""
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    twin = build_model(cfg).train()
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin


class StageJudge:
    """Background scores that are a function of box and stage; it remembers what it was asked."""

    def __init__(self):
        self.calls: list[tuple[int | None, int]] = []

    def __call__(self, score_boxes, refine_boxes, refine_classes, stage=None):
        self.calls.append((stage, sum(map(len, refine_boxes))))
        background = [self.background(x, stage) for x in score_boxes]
        return [torch.stack([1 - b, b], dim=1) for b in background], refine_boxes

    @staticmethod
    def background(boxes: Tensor, stage: int | None) -> Tensor:
        lowest = 0.05 if stage is None else 0.2 + 0.2 * stage
        return lowest + 0.3 * boxes[:, 0] / 80


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / (sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - common)


def center_form(box: list[float]) -> tuple[float, float, float, float]:
    width, height = box[2] - box[0], box[3] - box[1]
    return box[0] + width / 2, box[1] + height / 2, width, height


def decode(box: list[float], delta: list[float], stage: int, size: tuple[int, int]) -> list[float]:
    """The box that a stage predicts, clipped to an image of (height, width)."""
    x, y, width, height = center_form(box)
    dx, dy, dw, dh = (d / w for d, w in zip(delta, WEIGHTS[stage], strict=True))
    x, y, width, height = (
        x + dx * width,
        y + dy * height,
        width * math.exp(dw),
        height * math.exp(dh),
    )
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return [min(max(c, 0.0), float(m)) for c, m in zip(corners, size[::-1] * 2, strict=True)]


def encode(box: list[float], target: list[float], stage: int) -> Tensor:
    """What a stage ought to predict."""
    (x, y, w, h), (tx, ty, tw, th) = center_form(box), center_form(target)
    delta = ((tx - x) / w, (ty - y) / h, math.log(tw / w), math.log(th / h))
    return torch.tensor([d * s for d, s in zip(delta, WEIGHTS[stage], strict=True)])


class Row(NamedTuple):
    """A RoI at a stage: its box, its label, the box it is matched with and the predictions."""

    box: list[float]
    label: int
    target: list[float] | None
    logits: Tensor
    delta: Tensor


def predict_stage(heads, features: dict, image: int, boxes: list[list[float]], stage: int):
    """Logits and deltas of boxes in one image by the layers of a stage."""
    levels = [features[f][image : image + 1] for f in heads.box_in_features]
    pooled = heads.box_pooler(levels, [Boxes(torch.tensor(boxes).reshape(-1, 4))])
    return heads.box_predictor[stage](heads.box_head[stage](pooled))


def label(box: list[float], targets: list, stage: int) -> tuple[int, list[float] | None]:
    """Class of a box by targets, pairs of box and class, and the best of these boxes."""
    if not targets:
        return NUM_CLASSES, None
    overlaps = [iou(box, x) for x, _ in targets]
    best = overlaps.index(max(overlaps))
    if overlaps[best] < IOUS[stage]:
        return NUM_CLASSES, None
    return targets[best][1], targets[best][0]


def run_by_hand(heads, features: dict, pools: list, targets: list, size) -> list[list[Row]]:
    """A whole cascade over all boxes of some images, one list of RoIs a stage.

    Args:
        heads: whose layers predict.
        features: of all images.
        pools: of each image the boxes that enter the first stage.
        targets: of each image pairs of box and class.
        size: (height, width) of every image.
    """
    stages: list[list[Row]] = [[] for _ in range(NUM_STAGES)]
    for image, (boxes, wanted) in enumerate(zip(pools, targets, strict=True)):
        for stage, rows in enumerate(stages):
            logits, deltas = predict_stage(heads, features, image, boxes, stage)
            rows += [
                Row(b, *label(b, wanted, stage), z, d)
                for b, z, d in zip(boxes, logits, deltas, strict=True)
            ]
            moved = [decode(b, d.tolist(), stage, size) for b, d in zip(boxes, deltas, strict=True)]
            boxes = [b for b in moved if b[2] > b[0] and b[3] > b[1]]
    return stages


def classification_loss(rows: list[Row], background) -> Tensor:
    """Eq. 4 and 5 of one stage, as the official code has it; background(box) is r_j."""
    total, weights = torch.zeros(()), 0.0
    for row in rows:
        weight = background(row.box) if row.label == NUM_CLASSES else 1.0
        total = total - weight * (row.logits[row.label] - row.logits.logsumexp(dim=0))
        weights += weight
    return total / max(weights, 1.0)


def regression_loss(rows: list[Row], stage: int, num_sampled: int) -> Tensor:
    """L1 of the foreground of one stage by the number of RoIs sampled for classification."""
    total = torch.zeros(())
    for row in rows:
        if row.label < NUM_CLASSES:
            total = total + (row.delta - encode(row.box, row.target, stage)).abs().sum()
    return total / num_sampled
