"""RoI heads: judging boxes as a teacher, learning from pseudo boxes as a student."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from rois import (
    CLS_ROWS,
    REG_ROWS,
    SIZE,
    FixedJudge,
    features_of,
    guidance_for,
    proposals_near,
    stock_pass,
    targets,
)
from soft_teacher.modeling.guidance import Guidance, PseudoLabelRules
from soft_teacher.modeling.roi_settings import ROISettings
from tiny import NUM_CLASSES, detections, plain_view, random_boxes, tiny_config, tiny_model


def test_one_pass_equals_two_separate_passes(setting):
    """The definition in roi_sampling, with samples that hold the whole pool."""
    _, model, boxes, guidance, proposals = setting
    with EventStorage():
        features = features_of(model, 2)
        found = model.roi_heads.unlabeled_losses(
            features, proposals, guidance.seen_from([plain_view(0), plain_view(1)])
        )
        cls_samples, logits, _ = stock_pass(model, features, proposals, targets(boxes, CLS_ROWS))
        reg_samples, reg_logits, deltas = stock_pass(
            model, features, proposals, targets(boxes, REG_ROWS)
        )
        stock_reg = model.roi_heads.box_predictor.losses((reg_logits, deltas), reg_samples)
    classes = torch.cat([x.gt_classes for x in cls_samples])
    pool = torch.cat([x.proposal_boxes.tensor for x in cls_samples])
    weights = torch.where(
        classes == NUM_CLASSES, FixedJudge.background(pool), torch.ones(len(pool))
    ).double()
    losses = F.cross_entropy(logits.double(), classes, reduction="none")
    assert (classes < NUM_CLASSES).sum() > 3
    assert float(found["loss_cls"]) == pytest.approx(
        float((weights * losses).sum() / weights.sum()), rel=1e-5
    )
    num_reg, num_cls = sum(map(len, reg_samples)), sum(map(len, cls_samples))
    assert num_reg != num_cls
    assert float(found["loss_box_reg"]) == pytest.approx(
        float(stock_reg["loss_box_reg"]) * num_reg / num_cls, rel=1e-5
    )
    assert float(found["loss_box_reg"]) > 0


def test_literal_equation_10_is_a_mean_over_foreground_then_images(setting):
    _, model, boxes, guidance, proposals = setting
    heads = model.roi_heads
    heads.soft_teacher = replace(heads.soft_teacher, reg_normalizer="foreground")
    with EventStorage():
        features = features_of(model, 2)
        found = model.roi_heads.unlabeled_losses(
            features, proposals, guidance.seen_from([plain_view(0), plain_view(1)])
        )
        samples, _, deltas = stock_pass(model, features, proposals, targets(boxes, REG_ROWS))
    means, start = [], 0
    for sample in samples:
        rows = deltas[start : start + len(sample)].view(len(sample), NUM_CLASSES, 4)
        start += len(sample)
        total, count = 0.0, 0
        for row, label, box, gt in zip(
            rows, sample.gt_classes, sample.proposal_boxes, sample.gt_boxes, strict=True
        ):
            if label < NUM_CLASSES:
                wanted = model.roi_heads.box_predictor.box2box_transform.get_deltas(
                    box[None], gt[None]
                )[0]
                total += float((row[label] - wanted).abs().sum())
                count += 1
        means.append(total / count)
    assert float(found["loss_box_reg"]) == pytest.approx(sum(means) / 2, rel=1e-4)


def test_regression_positives_outside_the_sample_are_added_and_limited():
    cfg = tiny_config(
        **{
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
            "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
        }
    )
    torch.manual_seed(0)
    model = build_model(cfg).train()
    boxes = [random_boxes(10, 4, SIZE)]
    guidance = guidance_for(boxes, [[0.6] * 4], [[0.01] * 4], cfg)
    seen = []
    predict = model.roi_heads._predict_given_boxes
    model.roi_heads._predict_given_boxes = lambda f, b: seen.append(b) or predict(f, b)
    with EventStorage():
        model.roi_heads.unlabeled_losses(
            features_of(model, 1),
            [proposals_near(boxes[0], 1)],
            guidance.seen_from([plain_view(0)]),
        )
    # No box teaches classification, so all 16 sampled RoIs are background; regression has more
    # than 4 positives and may use 16 * 0.25 of them.
    assert 16 < len(seen[0][0]) <= 16 + 4


def test_soft_weighting_off_is_the_plain_mean(setting):
    _, model, boxes, guidance, proposals = setting
    heads = model.roi_heads
    heads.soft_teacher = replace(heads.soft_teacher, reliability="none")
    with EventStorage():
        features = features_of(model, 2)
        found = model.roi_heads.unlabeled_losses(
            features, proposals, guidance.seen_from([plain_view(0), plain_view(1)])
        )
        samples, logits, _ = stock_pass(model, features, proposals, targets(boxes, CLS_ROWS))
    expected = F.cross_entropy(logits, torch.cat([x.gt_classes for x in samples]))
    assert float(found["loss_cls"]) == pytest.approx(float(expected), rel=1e-5)


def predict_one(heads, features, box):
    """Logits and deltas of one box of one image."""
    levels = [features[f] for f in heads.box_in_features]
    return heads.box_predictor(heads.box_head(heads.box_pooler(levels, [Boxes(box[None])])))


@pytest.mark.parametrize("agnostic", [False, True])
def test_score_and_refine_equal_detectron2_box_by_box(agnostic):
    model = tiny_model(**{"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": agnostic}).eval()
    heads = model.roi_heads
    torch.nn.init.normal_(heads.box_predictor.bbox_pred.weight, std=0.5)
    score = [random_boxes(0, 5, SIZE), random_boxes(1, 0, SIZE)]
    refine = [random_boxes(2, 3, SIZE), random_boxes(3, 4, SIZE)]
    classes = [torch.tensor([2, 0, 1]), torch.tensor([1, 1, 0, 2])]
    with torch.no_grad():
        features = features_of(model, 2)
        probabilities, refined = heads.score_and_refine(
            features, [SIZE, SIZE], score, refine, classes
        )
        for image in range(2):
            one = {k: v[image : image + 1] for k, v in features.items()}
            for row, box in enumerate(score[image]):
                logits, _ = predict_one(heads, one, box)
                torch.testing.assert_close(
                    probabilities[image][row], logits.softmax(dim=1)[0], rtol=1e-4, atol=1e-6
                )
            for row, box in enumerate(refine[image]):
                predictions = predict_one(heads, one, box)
                proposal = Instances(
                    SIZE,
                    proposal_boxes=Boxes(box[None]),
                    gt_classes=classes[image][row : row + 1].clone(),
                )
                expected = Boxes(
                    heads.box_predictor.predict_boxes_for_gt_classes(predictions, [proposal])[0]
                )
                expected.clip(SIZE)
                torch.testing.assert_close(
                    refined[image][row], expected.tensor[0], rtol=1e-4, atol=1e-3
                )


def test_proposals_wholly_missing_give_losses_connected_to_the_graph():
    cfg = tiny_config()
    model = build_model(cfg).train()
    guidance = Guidance(
        [detections([], [])], [np.eye(3)], FixedJudge(), PseudoLabelRules.from_config(cfg)
    )
    nothing = Instances(
        SIZE, proposal_boxes=Boxes(torch.zeros(0, 4)), objectness_logits=torch.zeros(0)
    )
    with EventStorage():
        losses = model.roi_heads.unlabeled_losses(
            features_of(model, 1), [nothing], guidance.seen_from([plain_view(0)])
        )
    sum(losses.values()).backward()
    assert {k: float(v) for k, v in losses.items()} == {"loss_cls": 0, "loss_box_reg": 0}
    assert model.roi_heads.box_predictor.cls_score.weight.grad is not None


def test_a_head_without_background_probability_is_refused():
    cfg = tiny_config(**{"MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True})
    with pytest.raises(ValueError, match=r"MODEL\.ROI_BOX_HEAD\.USE_SIGMOID_CE"):
        ROISettings.from_config(cfg)


def test_autocast_does_not_round_the_boxes_to_judge():
    """Half-precision RoIs would swallow the jitter at the right end of a large image."""
    model = tiny_model().eval()
    near = torch.tensor([[601.0, 20, 640, 60]])
    shifted = near + torch.tensor([[0.4, 0, 0, 0]])
    features = {f"p{i + 2}": torch.rand(1, 32, 64 >> i, 256 >> i).bfloat16() for i in range(4)}
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        probabilities, _ = model.roi_heads.score_and_refine(
            features,
            [(256, 1024)],
            [torch.cat([near, shifted])],
            [near[:0]],
            [torch.zeros(0, dtype=torch.int64)],
        )
    pooled = []
    for box in (near, shifted):
        levels = [features[f].float() for f in model.roi_heads.box_in_features]
        pooled.append(model.roi_heads.box_pooler(levels, [Boxes(box)]))
    assert not torch.equal(*pooled)
    assert not torch.equal(probabilities[0][0], probabilities[0][1])
