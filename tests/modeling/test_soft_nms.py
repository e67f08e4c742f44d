"""Soft-NMS: against a loop over boxes, in each kind of head, in evaluation and nowhere else."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import nn

from cascades import CASCADE, cascade_model, iou
from masks import MASK_HEAD
from soft_teacher.engine.ema import build_teacher
from soft_teacher.engine.traced_export import _load_detector
from soft_teacher.modeling.soft_nms import SoftNms
from tiny import NUM_CLASSES, plain_view, random_boxes, tiny_config, tiny_model

SIZE = (64, 80)
ENABLED = {"MODEL.ROI_HEADS.SOFT_NMS.ENABLED": True}
# So that lowered detections are among those that are kept.
MANY = {
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3,
    "TEST.DETECTIONS_PER_IMAGE": 60,
}
HTC = {**CASCADE, "MODEL.ROI_HEADS.NAME": "SoftTeacherHTCROIHeads"}
HEADS = {"standard": {}, "cascade": CASCADE, "htc": HTC}
STOCK = {"standard": "StandardROIHeads", "cascade": "CascadeROIHeads"}


def by_hand(boxes, scores, classes, method, threshold=0.5, sigma=0.5, min_score=0.001):
    """(row, score) of what is left, best first: each class by itself, in plain numbers."""
    boxes, left, found = boxes.tolist(), scores.tolist(), []
    for k in set(classes.tolist()):
        open_rows = [i for i, c in enumerate(classes.tolist()) if c == k]
        while open_rows:
            best = max(open_rows, key=lambda i: left[i])
            open_rows.remove(best)
            found.append((best, left[best]))
            for i in open_rows:
                overlap = iou(boxes[best], boxes[i])
                if method == "gaussian":
                    left[i] *= math.exp(-(overlap**2) / sigma)
                elif overlap >= threshold:
                    left[i] *= 1 - overlap
    found = [x for x in found if x[1] >= min_score]
    return sorted(found, key=lambda x: -x[1])


def crowd(seed: int, num: int = 60) -> Instances:
    """Detections of three classes, many on top of each other."""
    generator = torch.Generator().manual_seed(seed)
    centers = random_boxes(seed, 6, SIZE).repeat(num // 6, 1)
    boxes = centers + torch.rand(len(centers), 4, generator=generator) * 6 - 3
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 2)
    return Instances(
        SIZE,
        pred_boxes=Boxes(boxes),
        scores=torch.rand(len(boxes), generator=generator),
        pred_classes=torch.randint(0, NUM_CLASSES, (len(boxes),), generator=generator),
    )


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("max_num", [-1, 20, 1])
def test_what_is_left_is_what_a_loop_over_boxes_leaves(method, max_num):
    for seed in range(3):
        found = crowd(seed)
        rows = by_hand(found.pred_boxes.tensor, found.scores, found.pred_classes, method)
        rows = rows[: max_num if max_num > 0 else None]
        kept = SoftNms(method, 0.5, 0.5, 0.001, max_num)(found)
        expected = found[torch.tensor([i for i, _ in rows])]
        torch.testing.assert_close(kept.scores, torch.tensor([s for _, s in rows]))
        assert torch.equal(kept.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert torch.equal(kept.pred_classes, expected.pred_classes)


def test_what_scores_too_low_in_the_end_is_dropped():
    found = crowd(0)
    rows = by_hand(
        found.pred_boxes.tensor, found.scores, found.pred_classes, "gaussian", min_score=0.3
    )
    kept = SoftNms("gaussian", 0.5, 0.5, 0.3, -1)(found)
    assert 0 < len(kept) == len(rows) < len(found)


def test_scores_of_merged_views_are_left_to_the_merger():
    found = crowd(0)
    lowered = SoftNms("linear", 0.5, 0.5, 0.1, 40)(found)
    kept = SoftNms("linear", 0.5, 0.5, 0.1, 40, lowers=False)(found)
    assert torch.equal(kept.pred_boxes.tensor, lowered.pred_boxes.tensor)
    assert set(kept.scores.tolist()) <= set(found.scores.tolist())
    assert bool((kept.scores >= lowered.scores).all())
    assert bool((kept.scores > lowered.scores).any())


@pytest.mark.parametrize("num", [0, 1])
def test_images_with_hardly_a_detection_are_no_exception(num):
    kept = SoftNms("linear", 0.5, 0.5, 0.001, 100)(crowd(0)[:num])
    assert len(kept) == num and kept.has("pred_classes")


def model_of(kind: str, **overrides) -> nn.Module:
    """A detector with something to say: classifiers of random weights that are not small."""
    keys = {**MANY, **MASK_HEAD, **overrides}
    if kind != "standard":
        return cascade_model(cfg=tiny_config(**HEADS[kind], **keys))
    model = tiny_model(**keys)
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    return model


def candidates(model: nn.Module, view: dict) -> Instances:
    """All that Detectron2's inference could suppress: its own, with NMS of no effect."""
    predictors = model.roi_heads.box_predictor
    for predictor in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
        predictor.test_nms_thresh, predictor.test_topk_per_image = 2.0, -1
    return model.inference([view], do_postprocess=False)[0]


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_evaluation_suppresses_softly_and_draws_masks_in_what_is_left(kind):
    model = model_of(kind, **ENABLED).eval()
    view = plain_view(1, SIZE)
    found = model([view])[0]["instances"]
    hard = model_of(kind).eval()
    hard.load_state_dict(model.state_dict())
    pool = candidates(hard, view)
    rows = by_hand(pool.pred_boxes.tensor, pool.scores, pool.pred_classes, "linear", 0.3)[:60]
    torch.testing.assert_close(found.scores, torch.tensor([s for _, s in rows]))
    expected = pool[torch.tensor([i for i, _ in rows])]
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert found.pred_masks.shape == (len(rows), *SIZE)
    # It made a difference, and the detector is as it was.
    assert any(s < float(pool.scores[i]) for i, s in rows)
    torch.testing.assert_close(model([view])[0]["instances"].scores, found.scores)


@pytest.mark.parametrize("kind", STOCK)
def test_without_it_inference_is_detectron2s(kind):
    model = model_of(kind).eval()
    cfg = tiny_config(**HEADS[kind], **MANY, **MASK_HEAD)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NAME = STOCK[kind]
    twin = build_model(cfg).eval()
    twin.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        found, expected = (x([plain_view(1, SIZE)])[0]["instances"] for x in (model, twin))
    assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("asked", [False, True])
def test_pseudo_boxes_are_chosen_by_it_only_if_asked(kind, asked):
    keys = {"SOFT_TEACHER.PSEUDO_LABELS.MIN_SCORE": 0.0}
    wanted = {"MODEL.ROI_HEADS.SOFT_NMS.PSEUDO_LABELS": asked}
    student = model_of(kind, **ENABLED, **keys, **wanted)
    other = model_of(kind, **keys)
    other.load_state_dict(student.state_dict())
    view = plain_view(1, SIZE)
    labels = build_teacher(student).annotate([view]).labels[0]
    hard = build_teacher(other).annotate([view]).labels[0]
    with torch.no_grad():
        soft = student.eval().inference([view], do_postprocess=False)[0]
    expected, different = (soft, hard) if asked else (hard, soft)
    torch.testing.assert_close(labels.scores, expected.scores)
    assert labels.scores.tolist() != different.scores.tolist()


def test_a_traced_detector_has_detectron2s_nms(tmp_path):
    cfg = tiny_config(**ENABLED)
    state = build_model(cfg).state_dict()
    torch.save({"model": state, "teacher": state}, tmp_path / "model.pth")
    assert build_model(cfg).soft_nms is not None
    assert _load_detector(tmp_path / "model.pth", "teacher", cfg).soft_nms is None
    assert cfg.MODEL.ROI_HEADS.SOFT_NMS.ENABLED


def test_detections_stay_hard_after_an_exception():
    model = model_of("standard", **ENABLED).eval()

    def fail(*_):
        raise RuntimeError("stop")

    handle = model.roi_heads.box_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"), torch.no_grad():
        model([plain_view(1, SIZE)])
    handle.remove()
    predictor = model.roi_heads.box_predictor
    assert model.roi_heads.soft_nms is None
    assert (predictor.test_nms_thresh, predictor.test_topk_per_image) == (0.3, 60)


@pytest.mark.parametrize(
    ("key", "value"), [("METHOD", "hard"), ("SIGMA", 0.0)], ids=["method", "sigma"]
)
def test_keys_without_meaning_are_refused_by_name(key, value):
    cfg = tiny_config(**ENABLED, **{f"MODEL.ROI_HEADS.SOFT_NMS.{key}": value})
    with pytest.raises(ValueError, match=rf"MODEL\.ROI_HEADS\.SOFT_NMS\.{key}"):
        SoftNms.from_config(cfg)


def test_heads_that_cannot_do_it_are_refused():
    assert not hasattr(StandardROIHeads, "soft_nms")
    with pytest.raises(ValueError, match=r"MODEL\.ROI_HEADS\.SOFT_NMS\.ENABLED"):
        tiny_model(**ENABLED, **{"MODEL.ROI_HEADS.NAME": "StandardROIHeads"})
