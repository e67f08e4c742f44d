"""mmdetection's two-stage and cascaded detectors, computed from their state dicts alone.

Written from mmdetection 3.3 (its `models/` and configs `_base_/models`) with torch and torchvision
only, so that converted models can be compared with something that shares no code with them.

Shape shorthand: R boxes, K classes (class K is the background), C channels.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import ops

from mmdet_layers import State
from mmdet_swin import Swin

STDS = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]


@dataclass
class Found:
    """R detections; masks (R, 2M, 2M) are probabilities of the predicted class, None without."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None


def prepare(image: Tensor, style: str) -> Tensor:
    """An RGB image (3, H, W) normalized and padded to multiples of 32, as (1, 3, H', W')."""
    if style == "caffe":
        x = image.flip(0) - torch.tensor([103.53, 116.28, 123.675])[:, None, None]
    else:
        mean, std = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])
        x = (image - mean[:, None, None]) / std[:, None, None]
    height, width = image.shape[1:]
    return F.pad(x, (0, -width % 32, 0, -height % 32))[None]


class Detector(Swin):
    """A detector of mmdetection by its state dict.

    Args:
        state: of one model.
        style: "caffe" or "pytorch", see mmdetection's ResNet.
        score_threshold: of detections.
        calibrates: see `Layers`.
    """

    def __init__(self, state: State, style: str, score_threshold: float, calibrates: bool = False):
        super().__init__(state, calibrates)
        self.style = style
        self.score_threshold = score_threshold

    def detect(self, image: Tensor) -> Found:
        """Detect on an RGB image (3, H, W), at its size."""
        size = tuple(image.shape[1:])
        x = prepare(image, self.style)
        is_swin = any(k.startswith("backbone.stages.") for k in self.state)
        levels = self._pyramid(self._swin(x) if is_swin else self._resnet(x))
        semantic = self._semantic(levels)
        boxes = self._proposals(levels, size)
        logits, deltas = self._cascade(levels, semantic, boxes, size)
        found = self._select(logits, deltas, size)
        if any(k.startswith("roi_head.mask_head.") for k in self.state):
            found.masks = self._masks(levels, semantic, found)
        return found

    # Backbones and neck.

    def _resnet(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self._batch_norm("backbone.bn1", self._conv("backbone.conv1", x, stride=2)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        outputs = []
        for i in range(1, 5):
            for j in range(self._count(f"backbone.layer{i}")):
                stride = 2 if i > 1 and j == 0 else 1
                x = self._block(f"backbone.layer{i}.{j}", x, stride)
            outputs.append(x)
        return outputs

    def _block(self, name: str, x: Tensor, stride: int) -> Tensor:
        is_bottleneck = f"{name}.conv3.weight" in self.state
        on_first = self.style == "caffe" or not is_bottleneck
        strides = [stride, 1, 1] if on_first else [1, stride, 1]
        y, last = x, 3 if is_bottleneck else 2
        for k in range(1, last + 1):
            y = self._batch_norm(f"{name}.bn{k}", self._conv(f"{name}.conv{k}", y, strides[k - 1]))
            y = F.relu(y) if k < last else y
        if f"{name}.downsample.0.weight" in self.state:
            x = self._conv(f"{name}.downsample.0", x, stride)
            x = self._batch_norm(f"{name}.downsample.1", x)
        return F.relu(x + y)

    def _pyramid(self, maps: list[Tensor]) -> list[Tensor]:
        x = [self._module(f"neck.lateral_convs.{i}", m, relu=False) for i, m in enumerate(maps)]
        for i in (3, 2, 1):
            x[i - 1] = x[i - 1] + F.interpolate(x[i], size=x[i - 1].shape[2:], mode="nearest")
        x = [self._module(f"neck.fpn_convs.{i}", m, relu=False) for i, m in enumerate(x)]
        return [*x, F.max_pool2d(x[-1], 1, stride=2)]

    def _semantic(self, levels: list[Tensor]) -> Tensor | None:
        """The semantic branch's embedding of stride 8, None without the branch."""
        head = "roi_head.semantic_head"
        if f"{head}.conv_logits.weight" not in self.state:
            return None
        size = levels[1].shape[2:]
        x = self._module(f"{head}.lateral_convs.1", levels[1])
        for i in (0, 2, 3, 4):
            level = F.interpolate(levels[i], size, mode="bilinear", align_corners=True)
            x = x + self._module(f"{head}.lateral_convs.{i}", level)
        for i in range(self._count(f"{head}.convs")):
            x = self._module(f"{head}.convs.{i}", x)
        return self._module(f"{head}.conv_embedding", x)

    # Boxes.

    def _proposals(self, levels: list[Tensor], size: tuple[int, int]) -> Tensor:
        boxes, scores, owners = [], [], []
        for i, level in enumerate(levels):
            x = level
            for j in range(self._count("rpn_head.rpn_conv")):
                if f"rpn_head.rpn_conv.{j}.conv.weight" in self.state:
                    x = self._module(f"rpn_head.rpn_conv.{j}", x)
            if "rpn_head.rpn_conv.weight" in self.state:
                x = F.relu(self._conv("rpn_head.rpn_conv", x))
            score = self._conv("rpn_head.rpn_cls", x).permute(0, 2, 3, 1).flatten().sigmoid()
            deltas = self._conv("rpn_head.rpn_reg", x).permute(0, 2, 3, 1).reshape(-1, 4)
            best = score.argsort(descending=True)[:1000]
            anchors = _anchors(*level.shape[2:], stride=4 * 2**i)
            boxes.append(decode(anchors[best], deltas[best], (1.0,) * 4, size))
            scores.append(score[best])
            owners.append(torch.full_like(best, i))
        boxes, scores, owners = torch.cat(boxes), torch.cat(scores), torch.cat(owners)
        valid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, scores, owners = boxes[valid], scores[valid], owners[valid]
        return boxes[ops.batched_nms(boxes, scores, owners, 0.7)[:1000]]

    def _pool(self, levels: list[Tensor], boxes: Tensor, resolution: int) -> Tensor:
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        owner = (sides / 56 + 1e-6).log2().floor().clamp(0, 3)
        pooled = boxes.new_zeros(len(boxes), levels[0].shape[1], resolution, resolution)
        for i, level in enumerate(levels[:4]):
            pooled[owner == i] = ops.roi_align(
                level, [boxes[owner == i]], resolution, 0.25 / 2**i, aligned=True
            )
        return pooled

    def _box_head(
        self, head: str, levels: list[Tensor], semantic: Tensor | None, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = self._pool(levels, boxes, 7)
        if semantic is not None:
            fused = ops.roi_align(semantic, [boxes], 14, 1 / 8, aligned=True)
            x = x + F.adaptive_avg_pool2d(fused, 7)
        for i in range(self._count(f"{head}shared_convs")):
            x = self._module(f"{head}shared_convs.{i}", x)
        x = x.flatten(1)
        for i in range(self._count(f"{head}shared_fcs")):
            x = F.relu(self._linear(f"{head}shared_fcs.{i}", x))
        return self._linear(f"{head}fc_cls", x), self._linear(f"{head}fc_reg", x)

    def _cascade(
        self,
        levels: list[Tensor],
        semantic: Tensor | None,
        boxes: Tensor,
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Mean logits (R, K+1), and boxes (R, K, 4) or (R, 1, 4) of the last stage."""
        if "roi_head.bbox_head.fc_cls.weight" in self.state:
            logits, deltas = self._box_head("roi_head.bbox_head.", levels, semantic, boxes)
            return logits, _decode_all(boxes, deltas, STDS[0], size)
        logits = []
        for k in range(3):
            found, deltas = self._box_head(f"roi_head.bbox_head.{k}.", levels, semantic, boxes)
            logits.append(found)
            boxes = decode(boxes, deltas, STDS[k], size)
        return sum(logits) / 3, boxes[:, None]

    def _select(self, logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> Found:
        """Each class by itself: threshold, NMS; then the best 100 of all."""
        scores = logits.softmax(1)
        found = []
        for label in range(logits.shape[1] - 1):
            kept = scores[:, label] > self.score_threshold
            of_class = boxes[kept, label if boxes.shape[1] > 1 else 0]
            best = ops.nms(of_class, scores[kept, label], 0.5)
            labels = torch.full((len(best),), label)
            found.append((of_class[best], scores[kept, label][best], labels))
        boxes, scores, labels = (torch.cat(x) for x in zip(*found, strict=True))
        best = scores.argsort(descending=True)[:100]
        return Found(boxes[best], scores[best], labels[best], None)

    def _masks(self, levels: list[Tensor], semantic: Tensor | None, found: Found) -> Tensor:
        x = self._pool(levels, found.boxes, 14)
        if semantic is not None:
            x = x + ops.roi_align(semantic, [found.boxes], 14, 1 / 8, aligned=True)
        if "roi_head.mask_head.conv_logits.weight" in self.state:
            heads = ["roi_head.mask_head."]
        else:
            heads = [f"roi_head.mask_head.{k}." for k in range(3)]
        total, trunk = 0, None
        for head in heads:
            logits, trunk = self._mask_head(head, x, trunk)
            probabilities = logits.sigmoid()
            if probabilities.shape[1] == 1:
                total = total + probabilities[:, 0]
            else:
                total = total + probabilities[torch.arange(len(found.classes)), found.classes]
        return total / len(heads)

    def _mask_head(self, head: str, x: Tensor, last: Tensor | None) -> tuple[Tensor, Tensor]:
        if last is not None and f"{head}conv_res.conv.weight" in self.state:
            x = x + self._module(f"{head}conv_res", last)
        for i in range(self._count(f"{head}convs")):
            x = self._module(f"{head}convs.{i}", x)
        weight, bias = self.state[f"{head}upsample.weight"], self.state[f"{head}upsample.bias"]
        up = F.relu(self._settle(f"{head}upsample", F.conv_transpose2d(x, weight, bias, stride=2)))
        return self._conv(f"{head}conv_logits", up), x


def _anchors(height: int, width: int, stride: int) -> Tensor:
    """mmdetection's: scale 8, ratios (h/w) 0.5, 1, 2, centered on the corner of each cell."""
    anchors = []
    for y in range(height):
        for x in range(width):
            for ratio in (0.5, 1.0, 2.0):
                w, h = 8 * stride / math.sqrt(ratio), 8 * stride * math.sqrt(ratio)
                x0, y0 = x * stride - w / 2, y * stride - h / 2
                anchors.append([x0, y0, x0 + w, y0 + h])
    return torch.tensor(anchors)


def decode(boxes: Tensor, deltas: Tensor, stds: tuple[float, ...], size: tuple[int, int]) -> Tensor:
    """mmdetection's delta2bbox: boxes (R, 4) moved by deltas (R, 4), clipped to (H, W)."""
    dx, dy, dw, dh = (deltas * torch.tensor(stds)).unbind(1)
    limit = abs(math.log(16 / 1000))
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2 + w * dx, (boxes[:, 1] + boxes[:, 3]) / 2 + h * dy
    w, h = w * dw.clamp(-limit, limit).exp(), h * dh.clamp(-limit, limit).exp()
    moved = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1)
    return ops.clip_boxes_to_image(moved, size)


def _decode_all(
    boxes: Tensor, deltas: Tensor, stds: tuple[float, ...], size: tuple[int, int]
) -> Tensor:
    """Boxes (R, K, 4) of the deltas (R, 4K) of all classes."""
    per_class = [decode(boxes, x, stds, size) for x in deltas.split(4, dim=1)]
    return torch.stack(per_class, dim=1)
