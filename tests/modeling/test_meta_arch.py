"""The model as student and as teacher."""

import copy

import pytest
import torch
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.utils.events import EventStorage

from soft_teacher.engine.ema import build_teacher
from soft_teacher.modeling.guidance import Guidance
from tiny import detections, labeled_view, plain_view, random_boxes, tiny_config, tiny_model

# Every sure pseudo box teaches regression too, however the random teacher refines it.
ALL_TEACH = {"SOFT_TEACHER.PSEUDO_LABELS.REG_VARIANCE": 10.0}
FLIP = [[-1.0, 0, 80], [0, 1, 0], [0, 0, 1]]


def confident(teacher, weak) -> Guidance:
    """The teacher's guidance with its detections replaced by sure ones."""
    guidance = teacher.annotate(weak)
    labels = [detections(random_boxes(i, 3, (64, 80)), [0.99] * 3) for i in range(len(weak))]
    return Guidance(labels, guidance.matrices, guidance._judge, guidance.rules)


def stock_twin(model, cfg):
    """Detectron2's own model of the same config and weights."""
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    twin = build_model(cfg).train()
    incompatible = twin.load_state_dict(model.state_dict(), strict=True)
    assert not incompatible.missing_keys and not incompatible.unexpected_keys
    return twin


def test_supervised_losses_are_exactly_those_of_detectron2():
    model = tiny_model()
    twin = stock_twin(model, tiny_config())
    batch = [labeled_view(1), labeled_view(2)]
    found, expected = [], []
    for each, losses in ((model, found), (twin, expected)):
        torch.manual_seed(5)
        with EventStorage():
            losses.append(each(copy.deepcopy(batch)))
    assert found[0].keys() == expected[0].keys()
    for key, value in expected[0].items():
        assert torch.equal(found[0][key], value), key


def test_inference_is_that_of_detectron2():
    model = tiny_model(**{"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0})
    twin = stock_twin(model, tiny_config(**{"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}))
    with torch.no_grad():
        found = model.eval()([plain_view(1)])[0]["instances"]
        expected = twin.eval()([plain_view(1)])[0]["instances"]
    assert len(found) > 0
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)


def test_the_teacher_is_untouched_by_forward_and_backward():
    student = tiny_model()
    teacher = build_teacher(student)
    before = copy.deepcopy(teacher.state_dict())
    weak, strong = [plain_view(1), plain_view(2)], [plain_view(1, matrix=FLIP), plain_view(2)]
    with EventStorage():
        losses = student([labeled_view(3)], strong, confident(teacher, weak))
        sum(losses.values()).backward()
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None for p in teacher.parameters())


def test_one_backward_reaches_every_trainable_parameter():
    student = tiny_model(**ALL_TEACH)
    teacher = build_teacher(student)
    with EventStorage():
        losses = student([labeled_view(3)], [plain_view(1)], confident(teacher, [plain_view(1)]))
    assert set(losses) == {
        f"loss_{name}{suffix}"
        for name in ("rpn_cls", "rpn_loc", "cls", "box_reg")
        for suffix in ("", "_unsup")
    }
    assert all(float(v) > 0 for v in losses.values())
    unlabeled = sum(v for k, v in losses.items() if k.endswith("_unsup"))
    unlabeled.backward()
    missing = [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert student.roi_heads.box_predictor.bbox_pred.weight.grad.abs().max() > 0


def test_alpha_multiplies_every_unlabeled_loss():
    student = tiny_model(**ALL_TEACH)
    teacher = build_teacher(student)
    results = []
    for alpha in (1.0, 4.0):
        student.unsup_loss_weight = alpha
        torch.manual_seed(0)
        with EventStorage():
            guidance = confident(teacher, [plain_view(1)])
            results.append(student([labeled_view(3)], [plain_view(1)], guidance))
    for key in results[0]:
        assert float(results[0][key]) > 0
        factor = 4.0 if key.endswith("_unsup") else 1.0
        torch.testing.assert_close(results[1][key], results[0][key] * factor)


@pytest.mark.parametrize("name", ["no pseudo boxes", "black image"])
def test_hopeless_images_give_finite_connected_losses(name):
    student = tiny_model(
        **{f"SOFT_TEACHER.PSEUDO_LABELS.{key}_SCORE": 1.0 for key in ("MIN", "RPN", "CLS")}
    )
    teacher = build_teacher(student)
    view = plain_view(1)
    if name == "black image":
        view["image"].zero_()
    with EventStorage():
        guidance = teacher.annotate([view])
        assert len(guidance.labels[0]) == 0
        losses = student([labeled_view(3)], [view], guidance)
        total = sum(v for k, v in losses.items() if k.endswith("_unsup"))
        assert torch.isfinite(total)
        total.backward()
    assert student.roi_heads.box_predictor.bbox_pred.weight.grad is not None


def test_annotate_refuses_a_teacher_in_training_mode():
    with pytest.raises(AssertionError, match="eval"):
        tiny_model().annotate([plain_view(1)])


def test_guidance_carries_no_graph():
    teacher = build_teacher(tiny_model())
    guidance = confident(teacher, [plain_view(1)])
    scores = guidance.score_boxes([random_boxes(1, 4, (64, 80))])
    assert not scores[0].requires_grad and not scores[0].is_inference()
    assert not guidance.variance[0].requires_grad


def test_the_rpn_learns_from_its_own_pseudo_boxes():
    student = tiny_model(
        **{
            "SOFT_TEACHER.PSEUDO_LABELS.RPN_SCORE": 0.6,
            "SOFT_TEACHER.PSEUDO_LABELS.CLS_SCORE": 0.9,
        }
    )
    teacher = build_teacher(student)
    guidance = teacher.annotate([plain_view(1)])
    boxes = random_boxes(0, 3, (64, 80))
    guidance.labels = [detections(boxes, [0.95, 0.7, 0.55])]
    received = []
    student.proposal_generator.register_forward_pre_hook(
        lambda module, args: received.append(args[2])
    )
    with EventStorage():
        student([labeled_view(3)], [plain_view(1)], guidance)
    torch.testing.assert_close(received[1][0].gt_boxes.tensor, boxes[:2])


def test_an_error_on_unlabeled_images_leaves_the_names_in_the_log_alone(monkeypatch):
    student = tiny_model()
    guidance = build_teacher(student).annotate([plain_view(1)])
    with torch.no_grad():
        student.proposal_generator.rpn_head.anchor_deltas.bias.fill_(float("nan"))
    monkeypatch.setattr(GeneralizedRCNN, "forward", lambda self, batch: {})
    with EventStorage() as storage:
        with pytest.raises(FloatingPointError):
            student([labeled_view(3)], [plain_view(1)], guidance)
        storage.put_scalar("x", 1.0)
        assert "x" in storage.latest()
