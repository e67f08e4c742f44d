"""Cascade Mask R-CNN under Soft Teacher: Detectron2's has one mask head, for the first stage."""

import torch
from detectron2.utils.events import EventStorage

from cascades import CASCADE, NUM_STAGES, cascade_model, stock_twin
from masks import MASK_HEAD, confident_with_masks, labeled_view_with_masks, with_masks
from rois import EXHAUSTIVE, SIZE, features_of, guidance_for, proposals_near
from soft_teacher.engine.ema import build_teacher
from tiny import plain_view, random_boxes, tiny_config, tiny_model


def test_one_backward_reaches_the_mask_head_and_every_stage():
    student = cascade_model(**MASK_HEAD)
    with EventStorage():
        weak = [plain_view(1, SIZE)]
        guidance = confident_with_masks(build_teacher(student), weak)
        losses = student([labeled_view_with_masks(3)], weak, guidance)
    unlabeled = {k: v for k, v in losses.items() if k.endswith("_unsup")}
    assert "loss_mask_unsup" in guidance.normalizers
    assert {f"loss_cls_stage{NUM_STAGES - 1}_unsup", "loss_mask_unsup"} <= unlabeled.keys()
    sum(unlabeled.values()).backward()
    missing = [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_masks_learn_from_the_rois_of_the_first_stage():
    """A head without stages loses the same on masks, from the same proposals."""
    cascade = cascade_model(**MASK_HEAD, **EXHAUSTIVE)
    plain = tiny_model(**MASK_HEAD, **EXHAUSTIVE)
    plain.roi_heads.mask_head.load_state_dict(cascade.roi_heads.mask_head.state_dict())
    boxes = random_boxes(10, 4, SIZE)
    with torch.no_grad():
        features = features_of(cascade, 1)
    losses = []
    for model in (cascade, plain):
        guidance = guidance_for([boxes], [[0.95] * 4], [[0.01] * 4], tiny_config(**MASK_HEAD))
        guidance.labels = [with_masks(x) for x in guidance.labels]
        if model is cascade:
            guidance._judge = stage_blind(guidance._judge)
        with EventStorage():
            losses.append(
                model.roi_heads.unlabeled_losses(
                    features, [proposals_near(boxes, 0)], guidance.seen_from([plain_view(0)])
                )["loss_mask"]
            )
    assert float(losses[0].detach()) > 0
    torch.testing.assert_close(losses[0], losses[1])


def stage_blind(judge):
    """A judge of any stage."""
    return lambda *boxes, stage: judge(*boxes)


def test_supervised_losses_are_exactly_those_of_stock_cascade_mask_rcnn():
    model = cascade_model(**MASK_HEAD)
    batch = [labeled_view_with_masks(1), labeled_view_with_masks(2)]
    losses = []
    for each in (model, stock_twin(model, tiny_config(**CASCADE, **MASK_HEAD))):
        torch.manual_seed(0)
        with EventStorage():
            losses.append(each(batch))
    found, expected = losses
    assert found.keys() == expected.keys() >= {"loss_mask", f"loss_cls_stage{NUM_STAGES - 1}"}
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_the_teacher_finds_masks_as_detectron2_does():
    keys = {**MASK_HEAD, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}
    model = cascade_model(**keys)
    twin = stock_twin(model, tiny_config(**CASCADE, **keys)).eval()
    teacher = build_teacher(model)
    guidance = teacher.annotate([plain_view(1)])
    with torch.no_grad():
        expected = twin.inference([plain_view(1)], do_postprocess=False)[0]
    expected = expected[expected.scores > guidance.rules.min_score]
    assert len(expected) > 0
    torch.testing.assert_close(guidance.labels[0].pred_masks, expected.pred_masks)
