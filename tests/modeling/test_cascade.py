"""Cascade R-CNN under Soft Teacher: each stage is judged, matched and taught by itself."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from cascades import (
    CASCADE,
    IOUS,
    NUM_STAGES,
    WEIGHTS,
    StageJudge,
    cascade_model,
    classification_loss,
    decode,
    predict_stage,
    regression_loss,
    run_by_hand,
    stock_twin,
)
from rois import CLS_ROWS, EXHAUSTIVE, REG_ROWS, SIZE, features_of, guidance_for, proposals_near
from soft_teacher.engine.ema import build_teacher
from soft_teacher.modeling.guidance import Guidance, PseudoLabelRules
from tiny import NUM_CLASSES, detections, labeled_view, plain_view, random_boxes, tiny_config

NAMES = [f"loss_{name}_stage{k}" for k in range(NUM_STAGES) for name in ("cls", "box_reg")]
VIEWS = [plain_view(0), plain_view(1)]


def make(judge: str = "stage", **keys):
    """Two images; boxes that teach both losses, one of them, or none."""
    cfg = tiny_config(**CASCADE, **EXHAUSTIVE, SOFT_TEACHER__CASCADE__JUDGE=judge, **keys)
    model = cascade_model(cfg=cfg)
    boxes = [random_boxes(10, 4, SIZE), random_boxes(11, 3, SIZE)]
    # One that teaches regression alone lies in one that teaches classification alone.
    boxes[1][1] = boxes[1][0] + torch.tensor([0.3, 0.3, -0.3, -0.3])
    scores = [[0.95, 0.95, 0.7, 0.6], [0.99, 0.6, 0.6]]
    variances = [[0.01, 0.5, 0.01, 0.01], [0.5, 0.01, 0.5]]
    guidance = guidance_for(boxes, scores, variances, cfg)
    guidance._judge = StageJudge()
    proposals = [proposals_near(b, i) for i, b in enumerate(boxes)]
    return model, boxes, guidance, proposals


def pairs(boxes, rows):
    """Of each image the chosen pseudo boxes with their classes."""
    return [
        [(b.tolist(), r % NUM_CLASSES) for r, b in zip(chosen, image[chosen], strict=True)]
        for image, chosen in zip(boxes, rows, strict=True)
    ]


def expected_losses(model, features, proposals, boxes, judge: str) -> dict[str, torch.Tensor]:
    """Two cascades by hand, over proposals and the boxes of one set each."""
    found = []
    for rows in (CLS_ROWS, REG_ROWS):
        targets = pairs(boxes, rows)
        pools = [
            p.proposal_boxes.tensor.tolist() + [b for b, _ in t]
            for p, t in zip(proposals, targets, strict=True)
        ]
        found.append(run_by_hand(model.roi_heads, features, pools, targets, SIZE))
    losses = {}
    for stage, (cls_rows, reg_rows) in enumerate(zip(*found, strict=True)):
        asked = stage if judge == "stage" else None

        def background(box, asked=asked):
            return float(StageJudge.background(torch.tensor([box]), asked)[0])

        assert sum(row.label < NUM_CLASSES for row in cls_rows) > 3
        assert sum(row.label < NUM_CLASSES for row in reg_rows) > 3
        losses[f"loss_cls_stage{stage}"] = classification_loss(cls_rows, background)
        losses[f"loss_box_reg_stage{stage}"] = regression_loss(reg_rows, stage, len(cls_rows))
    return losses


@pytest.mark.parametrize("judge", ["stage", "ensemble"])
def test_one_pass_equals_a_cascade_by_hand_for_each_set_of_pseudo_boxes(judge):
    model, boxes, guidance, proposals = make(judge)
    with torch.no_grad():
        features = features_of(model, 2)
    features = {k: v.requires_grad_() for k, v in features.items()}
    with EventStorage():
        found = model.roi_heads.unlabeled_losses(features, proposals, guidance.seen_from(VIEWS))
    expected = expected_losses(model, features, proposals, boxes, judge)
    assert list(found) == NAMES
    for name in NAMES:
        assert float(found[name].detach()) > 0
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)
    # Detectron2 scales what features learn from a cascade, and so the gradient, by 1/3.
    levels = [features[f] for f in model.roi_heads.box_in_features]
    weights = [p for n, p in model.roi_heads.named_parameters() if "weight" in n]
    gradients = torch.autograd.grad(sum(found.values()), levels + weights)
    wanted = torch.autograd.grad(sum(expected.values()), levels + weights)
    for i, (gradient, other) in enumerate(zip(gradients, wanted, strict=True)):
        scale = 1 / NUM_STAGES if i < len(levels) else 1.0
        torch.testing.assert_close(gradient, scale * other, rtol=1e-3, atol=1e-6)


def test_stages_differ_in_what_is_foreground():
    """The setting above would not tell a wrong threshold or unmoved boxes otherwise."""
    model, boxes, _, proposals = make()
    targets = pairs(boxes, REG_ROWS)
    pools = [p.proposal_boxes.tensor.tolist() for p in proposals]
    with torch.no_grad():
        stages = run_by_hand(model.roi_heads, features_of(model, 2), pools, targets, SIZE)
    labels = [[row.label for row in rows] for rows in stages]
    assert labels[0] != labels[1] and labels[1] != labels[2]
    moves = [abs(a.box[0] - b.box[0]) for a, b in zip(*stages[:2], strict=True)]
    assert max(moves) > 1


def test_configured_thresholds_and_weights_are_those_of_the_computation_by_hand():
    cascade = tiny_config().MODEL.ROI_BOX_CASCADE_HEAD
    assert (cascade.IOUS, cascade.BBOX_REG_WEIGHTS) == (IOUS, WEIGHTS)


@pytest.mark.parametrize(("judge", "stages"), [("stage", [0, 1, 2]), ("ensemble", [None] * 3)])
def test_jittered_boxes_are_judged_once_together_with_the_first_stage(judge, stages):
    model, _, guidance, proposals = make(judge)
    guidance._variance = None
    with EventStorage():
        model.roi_heads.unlabeled_losses(
            features_of(model, 2), proposals, guidance.seen_from(VIEWS)
        )
    assert guidance._judge.calls == list(zip(stages, [10 * 7, 0, 0], strict=True))


def test_background_weights_are_noted_for_every_stage():
    model, _, guidance, proposals = make()
    with EventStorage():
        in_view = guidance.seen_from(VIEWS)
        model.roi_heads.unlabeled_losses(features_of(model, 2), proposals, in_view)
    weights = [float(guidance.statistics[f"background_weight_stage{k}"]) for k in range(NUM_STAGES)]
    # The judge scores a stage's boxes 0.2 higher than those of the stage before.
    assert 0.2 < weights[0] < weights[1] < weights[2] < 0.9
    assert list(in_view.normalizers) == NAMES


def by_hand(heads, features, image, box, size):
    """Probabilities of a box by each stage where the stages before moved it, and its last place."""
    probabilities = []
    for stage in range(NUM_STAGES):
        logits, deltas = predict_stage(heads, features, image, [box], stage)
        probabilities.append(logits[0].softmax(dim=0))
        box = decode(box, deltas[0].tolist(), stage, size)
    return probabilities, box


@pytest.mark.parametrize("stage", [None, 0, 1, 2])
def test_the_teacher_scores_by_the_stage_that_is_asked_and_refines_by_all(stage):
    model = cascade_model().eval()
    heads = model.roi_heads
    score = [random_boxes(0, 5, SIZE), random_boxes(1, 0, SIZE)]
    refine = [random_boxes(2, 3, SIZE), random_boxes(3, 4, SIZE)]
    classes = [torch.zeros(len(x), dtype=torch.int64) for x in refine]
    with torch.no_grad():
        features = features_of(model, 2)
        probabilities, refined = heads.score_and_refine(
            features, [SIZE, SIZE], score, refine, classes, stage=stage
        )
        assert [x.shape for x in probabilities] == [(5, NUM_CLASSES + 1), (0, NUM_CLASSES + 1)]
        for box, found in zip(score[0].tolist(), probabilities[0], strict=True):
            if stage is None:
                wanted = sum(by_hand(heads, features, 0, box, SIZE)[0]) / NUM_STAGES
            else:
                wanted = predict_stage(heads, features, 0, [box], stage)[0][0].softmax(dim=0)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
        for image in range(2):
            for box, found in zip(refine[image].tolist(), refined[image], strict=True):
                wanted = by_hand(heads, features, image, box, SIZE)[1]
                torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-3)


def test_scoring_alone_runs_no_other_stage():
    model = cascade_model().eval()
    run, stages = model.roi_heads._run_stage, []
    model.roi_heads._run_stage = lambda f, p, stage: stages.append(stage) or run(f, p, stage)
    nothing = [torch.zeros(0, 4)]
    model.roi_heads.score_and_refine(
        features_of(model, 1), [SIZE], [random_boxes(0, 5, SIZE)], nothing, [], stage=1
    )
    assert stages == [1]


def test_the_whole_teacher_scores_and_refines_as_detectron2_detects():
    keys = {
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": -1.0,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 1.0,
        "TEST.DETECTIONS_PER_IMAGE": 1000,
    }
    model = cascade_model(**keys).eval()
    twin = stock_twin(model, tiny_config(**CASCADE, **keys)).eval()
    boxes = random_boxes(4, 6, SIZE)
    with torch.no_grad():
        features = features_of(model, 1)
        (scores,), (refined,) = model.roi_heads.score_and_refine(
            features, [SIZE], [boxes], [boxes], [torch.zeros(6, dtype=torch.int64)]
        )
        (detected,) = twin.roi_heads._forward_box(
            features, [Instances(SIZE, proposal_boxes=Boxes(boxes))]
        )
    # Nothing is suppressed: every box is detected as every class, in the order of the scores.
    assert len(detected) == 6 * NUM_CLASSES
    rows, labels = scores[:, :-1].flatten().argsort(descending=True), detected.pred_classes
    torch.testing.assert_close(detected.pred_boxes.tensor, refined[rows // NUM_CLASSES])
    torch.testing.assert_close(detected.scores, scores[rows // NUM_CLASSES, labels])
    assert torch.equal(labels, rows % NUM_CLASSES)


def test_supervised_losses_are_exactly_those_of_detectron2():
    model = cascade_model()
    batch, losses = [labeled_view(1), labeled_view(2)], []
    for each in (model, stock_twin(model, tiny_config(**CASCADE))):
        torch.manual_seed(5)
        with EventStorage():
            losses.append(each(copy.deepcopy(batch)))
    assert losses[0].keys() == losses[1].keys() == {*NAMES, "loss_rpn_cls", "loss_rpn_loc"}
    for key, value in losses[1].items():
        assert torch.equal(losses[0][key], value), key


def test_inference_is_that_of_detectron2():
    keys = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}
    model = cascade_model(**keys)
    twin = stock_twin(model, tiny_config(**CASCADE, **keys)).eval()
    with torch.no_grad():
        found = model.eval()([plain_view(1)])[0]["instances"]
        expected = twin([plain_view(1)])[0]["instances"]
    assert len(found) > 0
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)


def confident(teacher, weak) -> Guidance:
    """The teacher's guidance with its detections replaced by sure ones."""
    guidance = teacher.annotate(weak)
    labels = [detections(random_boxes(i, 3, SIZE), [0.99] * 3) for i in range(len(weak))]
    return Guidance(labels, guidance.matrices, guidance._judge, guidance.rules)


@pytest.mark.parametrize("amp", [False, True])
def test_one_backward_reaches_every_parameter_of_every_stage(amp):
    student = cascade_model(**{"SOFT_TEACHER.PSEUDO_LABELS.REG_VARIANCE": 10.0})
    teacher = build_teacher(student)
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        guidance = confident(teacher, [plain_view(1)])
        losses = student([labeled_view(3)], [plain_view(1)], guidance)
    unlabeled = {k: v for k, v in losses.items() if k.endswith("_unsup")}
    names = [f"{name}_unsup" for name in NAMES]
    assert unlabeled.keys() == {*names, "loss_rpn_cls_unsup", "loss_rpn_loc_unsup"}
    assert list(guidance.normalizers) == names
    assert all(v.dtype == torch.float32 and float(v.detach()) > 0 for v in unlabeled.values())
    sum(unlabeled.values()).backward()
    missing = [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(p.grad is None for p in teacher.parameters())


def hopeless(case: str, model):
    """Guidance and proposals that leave some stage without boxes."""
    nothing = Instances(SIZE, proposal_boxes=Boxes(torch.zeros(0, 4)))
    boxes = random_boxes(10, 4, SIZE)
    if case == "no proposals":
        return detections([], []), nothing
    if case == "no pseudo boxes":
        return detections([], []), proposals_near(boxes, 0)
    assert case == "boxes leave the image"
    with torch.no_grad():
        model.roi_heads.box_predictor[0].bbox_pred.bias[0] = 1000.0
    return detections(boxes, [0.95] * 4), proposals_near(boxes, 0)


@pytest.mark.parametrize("case", ["no proposals", "no pseudo boxes", "boxes leave the image"])
def test_stages_without_boxes_give_finite_connected_losses(case):
    cfg = tiny_config(**CASCADE)
    model = cascade_model(cfg=cfg)
    labels, proposals = hopeless(case, model)
    rules = PseudoLabelRules.from_config(cfg)
    guidance = Guidance([labels], [VIEWS[0]["matrix"]], StageJudge(), rules)
    with EventStorage():
        losses = model.roi_heads.unlabeled_losses(
            features_of(model, 1), [proposals], guidance.seen_from(VIEWS[:1])
        )
    sum(losses.values()).backward()
    found = {k: float(v.detach()) for k, v in losses.items()}
    assert all(0 <= v < 1e4 for v in found.values())
    later = [found[name] for name in NAMES[2:]]
    assert (max(later) == 0) == (case != "no pseudo boxes")
    assert all(p.grad is not None for p in model.roi_heads.parameters())


@pytest.mark.parametrize("labeled", [False, True])
def test_boxes_that_are_not_finite_are_an_error_that_the_step_skips(labeled):
    model, _, guidance, proposals = make()
    with torch.no_grad():
        model.roi_heads.box_predictor[1].bbox_pred.bias.fill_(float("inf"))
    with EventStorage(), pytest.raises(FloatingPointError, match="stage of the cascade"):
        if labeled:
            model([labeled_view(1)])
        else:
            model.roi_heads.unlabeled_losses(
                features_of(model, 2), proposals, guidance.seen_from(VIEWS)
            )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOFT_TEACHER.CASCADE.JUDGE", "last"),
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False),
    ],
)
def test_a_bad_value_is_an_error_that_names_its_key(key, value):
    cfg = tiny_config(**CASCADE)
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=key):
        build_model(cfg)
