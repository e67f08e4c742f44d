"""The indicators of table 7, against section 3.2 by hand."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from rois import CLS_ROWS, FixedJudge, features_of, guidance_for, stock_pass, targets
from soft_teacher.modeling.reliability import INDICATORS
from tiny import NUM_CLASSES, plain_view, tiny_config


def iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    areas = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return common / (areas - common)


def weights_by_hand(indicator, samples, logits, boxes):
    """Weight of each RoI: 1 for foreground, the indicator's reliability for background."""
    student = (logits.double().exp() / logits.double().exp().sum(1, keepdim=True))[:, -1].tolist()
    weights = []
    for sample, image_boxes, rows in zip(samples, boxes, CLS_ROWS, strict=True):
        for box, label in zip(sample.proposal_boxes.tensor, sample.gt_classes, strict=True):
            by_student = student[len(weights)]
            by_teacher = float(FixedJudge.background(box[None])[0])
            nearest = max(iou(box.tolist(), x.tolist()) for x in image_boxes[rows])
            reliability = {
                "teacher": by_teacher,
                "student": by_student,
                "pred_diff": 1 - abs(by_student - by_teacher),
                "iou": nearest,
                "reverse_iou": 1 - nearest,
                "none": 1.0,
            }[indicator]
            weights.append(reliability if label == NUM_CLASSES else 1.0)
    return torch.tensor(weights, dtype=torch.float64)


@pytest.mark.parametrize("indicator", [*INDICATORS, "none"])
def test_every_indicator_weighs_background_as_section_3_2_says(setting, indicator):
    _, model, boxes, guidance, proposals = setting
    heads = model.roi_heads
    heads.soft_teacher = replace(heads.soft_teacher, reliability=indicator)
    with EventStorage():
        features = features_of(model, 2)
        found = model.roi_heads.unlabeled_losses(
            features, proposals, guidance.seen_from([plain_view(0), plain_view(1)])
        )
        samples, logits, _ = stock_pass(model, features, proposals, targets(boxes, CLS_ROWS))
    weights = weights_by_hand(indicator, samples, logits.detach(), boxes)
    classes = torch.cat([x.gt_classes for x in samples])
    losses = F.cross_entropy(logits.double(), classes, reduction="none")
    expected = (weights * losses).sum() / max(float(weights.sum()), 1.0)
    assert float(found["loss_cls"]) == pytest.approx(float(expected), rel=1e-5)
    background = weights[classes == NUM_CLASSES]
    assert float(guidance.statistics["background_weight"]) == pytest.approx(
        float(background.mean()), rel=1e-5
    )
    # The weights are no function of the student that learns: its gradient is that of the losses.
    parameters = list(model.roi_heads.box_predictor.cls_score.parameters())
    gradients = torch.autograd.grad(found["loss_cls"], parameters)
    wanted = torch.autograd.grad(expected, parameters)
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("indicator", ["iou", "reverse_iou"])
def test_without_a_pseudo_box_no_region_overlaps_one(setting, indicator):
    cfg, model, boxes, _, proposals = setting
    heads = model.roi_heads
    heads.soft_teacher = replace(heads.soft_teacher, reliability=indicator)
    guidance = guidance_for(boxes, [[0.6] * 4, [0.6] * 3], [[0.5] * 4, [0.5] * 3], cfg)
    with EventStorage():
        losses = model.roi_heads.unlabeled_losses(
            features_of(model, 2),
            proposals,
            guidance.seen_from([plain_view(0), plain_view(1)]),
        )
    assert float(guidance.statistics["background_weight"]) == (indicator == "reverse_iou")
    assert (float(losses["loss_cls"]) > 0) == (indicator == "reverse_iou")
    assert losses["loss_cls"].requires_grad


def test_an_unknown_indicator_is_refused_by_name():
    cfg = tiny_config(**{"SOFT_TEACHER.BACKGROUND.RELIABILITY": "best"})
    with pytest.raises(ValueError, match=r"RELIABILITY is 'best'.*'reverse_iou', 'none'"):
        build_model(cfg)
