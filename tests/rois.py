"""Proposals, pseudo boxes and a judge for tests of RoI heads on unlabeled images."""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from soft_teacher.modeling.guidance import Guidance, PseudoLabelRules
from tiny import NUM_CLASSES, detections, plain_view, random_boxes

SIZE = (64, 80)
EXHAUSTIVE = {
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 100000,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
}


def features_of(model, num_images: int) -> dict:
    views = [plain_view(i) for i in range(num_images)]
    images = model.preprocess_image(views)
    return model.backbone(images.tensor)


def proposals_near(boxes: torch.Tensor, seed: int, num_random: int = 30) -> Instances:
    """Random proposals, and shifted copies of the given boxes."""
    generator = torch.Generator().manual_seed(seed)
    shifts = torch.rand(3, *boxes.shape, generator=generator) * 6 - 3
    pool = torch.cat([random_boxes(seed, num_random, SIZE), (boxes + shifts).reshape(-1, 4)])
    pool = Boxes(pool)
    pool.clip(SIZE)
    return Instances(SIZE, proposal_boxes=pool, objectness_logits=torch.zeros(len(pool)))


class FixedJudge:
    """Background scores that are a function of the box, and given variances."""

    def __call__(self, score_boxes, refine_boxes, refine_classes):
        probabilities = []
        for boxes in score_boxes:
            background = self.background(boxes)
            probabilities.append(torch.stack([1 - background, background], dim=1))
        return probabilities, [b.clone() for b in refine_boxes]

    @staticmethod
    def background(boxes):
        return 0.1 + 0.8 * boxes[:, 0] / 80


def guidance_for(boxes, scores, variances, cfg) -> Guidance:
    guidance = Guidance(
        [detections(b, s) for b, s in zip(boxes, scores, strict=True)],
        [np.eye(3)] * len(boxes),
        FixedJudge(),
        PseudoLabelRules.from_config(cfg),
    )
    guidance._variance = [torch.tensor(v) for v in variances]
    return guidance


CLS_ROWS = [[0, 1], [0]]
REG_ROWS = [[0, 2, 3], [1]]


def targets(boxes, rows) -> list[Instances]:
    return [
        Instances(
            SIZE,
            gt_boxes=Boxes(b[r]),
            gt_classes=(torch.arange(len(b)) % NUM_CLASSES)[r],
        )
        for b, r in zip(boxes, rows, strict=True)
    ]


def stock_pass(model, features, proposals, targets_of_pass):
    """Detectron2's own matching, sampling and prediction: samples, logits, deltas."""
    heads = model.roi_heads
    samples = heads.label_and_sample_proposals(proposals, targets_of_pass)
    pooled = heads.box_pooler(
        [features[f] for f in heads.box_in_features], [x.proposal_boxes for x in samples]
    )
    return samples, *heads.box_predictor(heads.box_head(pooled))
