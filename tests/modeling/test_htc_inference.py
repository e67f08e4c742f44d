"""What HTC finds: scores of all stages, boxes of the last one, masks of all of them."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torchvision import ops

from htc import (
    CASCADE,
    CASCADE_MASK,
    MASK_SIDE,
    NUM_STAGES,
    SEMANTIC,
    htc_config,
    htc_model,
    reference,
)
from rois import SIZE, features_of
from soft_teacher.engine.ema import build_teacher
from soft_teacher.modeling.score_average import average_scores
from soft_teacher.modeling.semantic_head import EMBEDDING
from tiny import NUM_CLASSES, plain_view, random_boxes

PROBABILITIES = {"MODEL.ROI_HTC.SCORE_AVERAGE": "probabilities"}
CASES = {
    "htc": {},
    "htc, semantic": SEMANTIC,
    "probabilities": PROBABILITIES,
    "cascade mask": CASCADE_MASK,
    "cascade mask, semantic": {**CASCADE_MASK, **SEMANTIC},
    "cascade": CASCADE,
}
EVERYTHING = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.02}


def by_hand(ref, image: int, boxes: torch.Tensor, kind: str):
    """Class probabilities (R, K+1) and boxes (R, 4) that the stages make of proposals."""
    logits = []
    for stage in range(NUM_STAGES):
        z, deltas = ref.box_stage(stage, image, boxes)
        logits.append(z)
        boxes = ref.move(stage, boxes, deltas, SIZE)
    if kind == "logits":
        return torch.stack(logits).mean(dim=0).softmax(dim=1), boxes
    return torch.stack([z.softmax(dim=1) for z in logits]).mean(dim=0), boxes


def detect(scores: torch.Tensor, boxes: torch.Tensor, threshold: float):
    """Boxes, scores and classes after a threshold and NMS in each class, best first."""
    found = []
    for label in range(NUM_CLASSES):
        rows = (scores[:, label] > threshold).nonzero()[:, 0]
        kept = rows[ops.nms(boxes[rows], scores[rows, label], 0.5)]
        found += [(float(scores[r, label]), label, boxes[r]) for r in kept]
    found.sort(key=lambda x: -x[0])
    return found[:100]


@pytest.mark.parametrize("case", CASES)
def test_detections_are_those_of_a_computation_by_hand(case):
    cfg = htc_config(**EVERYTHING, **CASES[case])
    model = htc_model(cfg=cfg).eval()
    proposals = [random_boxes(seed, 12, SIZE) for seed in (3, 4)]
    with torch.no_grad():
        features = features_of(model, 2)
        ref = reference(model, features)
        given = [Instances(SIZE, proposal_boxes=Boxes(x)) for x in proposals]
        results, losses = model.roi_heads(None, features, given)
        assert losses == {} and len(results) == 2
        for image, (found, boxes) in enumerate(zip(results, proposals, strict=True)):
            scores, last = by_hand(ref, image, boxes, cfg.MODEL.ROI_HTC.SCORE_AVERAGE)
            wanted = detect(scores, last, 0.02)
            assert len(found) == len(wanted) > 8
            assert found.pred_classes.tolist() == [label for _, label, _ in wanted]
            torch.testing.assert_close(
                found.scores, torch.tensor([s for s, _, _ in wanted]), rtol=0, atol=1e-5
            )
            torch.testing.assert_close(
                found.pred_boxes.tensor, torch.stack([b for *_, b in wanted]), rtol=0, atol=1e-3
            )
            assert found.has("pred_masks") == cfg.MODEL.MASK_ON
            if cfg.MODEL.MASK_ON:
                check_masks(ref, image, found)


def check_masks(ref, image: int, found: Instances) -> None:
    """Masks in the final boxes are the mean of the three heads' probabilities of the class."""
    rows, total = torch.arange(len(found)), 0
    stages = []
    for stage in range(NUM_STAGES):
        logits = ref.mask_stage(stage, image, found.pred_boxes.tensor, MASK_SIDE)
        stages.append(logits[rows, found.pred_classes].sigmoid())
        total = total + stages[-1]
    torch.testing.assert_close(found.pred_masks[:, 0], total / NUM_STAGES, rtol=0, atol=1e-5)
    # The last head alone, as in mmdetection 3.3, would be something else.
    assert (stages[-1] - total / NUM_STAGES).abs().max() > 0.05


def test_the_two_averages_differ_and_are_what_they_are_named_after():
    logits = [torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[-3.0, 1.0, 0.0]])]
    of_logits = average_scores(logits, "logits")
    of_probabilities = average_scores(logits, "probabilities")
    torch.testing.assert_close(of_logits, torch.tensor([[-0.5, 0.5, -0.5]]).softmax(1))
    torch.testing.assert_close(of_probabilities, (logits[0].softmax(1) + logits[1].softmax(1)) / 2)
    assert (of_logits - of_probabilities).abs().max() > 0.1


@pytest.mark.parametrize("case", ["htc", "probabilities", "htc, semantic"])
@pytest.mark.parametrize("stage", [None, 1])
def test_the_teacher_judges_as_it_detects_or_by_one_stage(case, stage):
    cfg = htc_config(**CASES[case])
    model = htc_model(cfg=cfg).eval()
    score, refine = random_boxes(5, 6, SIZE), random_boxes(6, 4, SIZE)
    with torch.no_grad():
        features = features_of(model, 1)
        ref = reference(model, features)
        (probabilities,), (refined,) = model.roi_heads.score_and_refine(
            features, [SIZE], [score], [refine], [torch.zeros(4, dtype=torch.int64)], stage=stage
        )
        kind = cfg.MODEL.ROI_HTC.SCORE_AVERAGE
        wanted = by_hand(ref, 0, score, kind)[0]
        if stage is not None:
            wanted = ref.box_stage(stage, 0, score)[0].softmax(dim=1)
        torch.testing.assert_close(probabilities, wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(refined, by_hand(ref, 0, refine, kind)[1], rtol=0, atol=1e-3)


def test_the_semantic_branch_runs_once_for_the_teacher_and_gives_no_logits(monkeypatch):
    teacher = build_teacher(htc_model(**SEMANTIC))
    branch, calls = teacher.roi_heads.semantic_head, []
    forward = branch.forward
    monkeypatch.setattr(branch, "forward", lambda features: calls.append(1) or forward(features))
    monkeypatch.setattr(branch, "loss", None)
    guidance = teacher.annotate([plain_view(1, SIZE)])
    for stage in (0, 1, 2):
        guidance.score_boxes([random_boxes(1, 5, SIZE)], stage)
    assert len(calls) == 1


def test_masks_are_drawn_in_given_boxes_by_features_without_embedding():
    """As test-time augmentation asks for it."""
    model = htc_model(**SEMANTIC).eval()
    given = Instances(SIZE, pred_boxes=Boxes(random_boxes(1, 5, SIZE)))
    given.pred_classes = torch.arange(5) % NUM_CLASSES
    with torch.no_grad():
        (found,) = model.inference([plain_view(0, SIZE)], [given], do_postprocess=False)
        ref = reference(model, features_of(model, 1))
        check_masks(ref, 0, found)
    assert EMBEDDING not in model.backbone.output_shape()


@pytest.mark.parametrize("keys", [{}, SEMANTIC, CASCADE])
def test_without_proposals_nothing_is_found(keys):
    model = htc_model(**keys).eval()
    nothing = Instances(SIZE, proposal_boxes=Boxes(torch.zeros(0, 4)))
    with torch.no_grad():
        (found,), _ = model.roi_heads(None, features_of(model, 1), [nothing])
    assert len(found) == 0
    if "MODEL.MASK_ON" not in keys:
        assert found.pred_masks.shape == (0, 1, 2 * MASK_SIDE, 2 * MASK_SIDE)


def test_parameters_have_the_documented_names():
    names = set(htc_model(**SEMANTIC).roi_heads.state_dict())
    layers = {n.rpartition(".")[0] for n in names if n.startswith(("mask_head", "semantic_head"))}
    masks = {f"mask_head.{k}.{x}" for k in range(3) for x in ("mask_fcn1", "deconv", "predictor")}
    semantic = {"conv_embedding", "conv_logits"}
    semantic |= {f"lateral_convs.{i}" for i in range(5)} | {f"convs.{i}" for i in range(4)}
    assert layers == {
        *masks,
        *(f"mask_head.{k}.conv_res" for k in (1, 2)),
        *(f"semantic_head.{x}" for x in semantic),
    }
    boxes = {"box_head.{}.fc1", "box_predictor.{}.cls_score", "box_predictor.{}.bbox_pred"}
    assert {f"{x.format(k)}.weight" for x in boxes for k in range(3)} <= names
    without = htc_model(**CASCADE_MASK).roi_heads.state_dict()
    assert without.keys() == {n for n in names if "semantic" not in n and "conv_res" not in n}
