"""RetinaNet and FCOS as student and as teacher."""

import copy
from dataclasses import replace

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.utils.events import EventStorage
from fvcore.nn import sigmoid_focal_loss

from one_stage import (
    DETECTORS,
    FLIP,
    SIZE,
    annotated,
    config,
    excited,
    student_of,
    sure,
)
from soft_teacher.engine.ema import EMATeacher, build_teacher
from soft_teacher.engine.loader_stream import LoaderStream
from soft_teacher.engine.precision import Precision
from soft_teacher.engine.train_step import SoftTeacherStep
from soft_teacher.modeling.dense_guidance import DenseGuidance
from soft_teacher.modeling.dense_settings import DenseSettings
from soft_teacher.modeling.fixed_labels import fixed_guidance
from tiny import NUM_CLASSES, detections, labeled_view, plain_view, random_boxes

BOTH = pytest.mark.parametrize("name", list(DETECTORS))
LOSSES = {
    "retinanet": {"loss_cls", "loss_box_reg"},
    "fcos": {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"},
}
CLS_LOSS = {"retinanet": "loss_cls_unsup", "fcos": "loss_fcos_cls_unsup"}


def stock_twin(name: str, model: torch.nn.Module) -> torch.nn.Module:
    """Detectron2's own model of the same config and weights."""
    cfg = config(name)
    if name == "retinanet":
        cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
        twin = build_model(cfg)
    else:
        head = FCOSHead(
            input_shape=[ShapeSpec(channels=64)] * 5,
            num_classes=NUM_CLASSES,
            conv_dims=[64],
            norm="GN",
        )
        twin = FCOS(
            backbone=build_backbone(cfg),
            head=head,
            head_in_features=["p3", "p4", "p5", "p6", "p7"],
            num_classes=NUM_CLASSES,
            test_score_thresh=0.05,
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
        )
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin.train()


@BOTH
def test_supervised_losses_are_exactly_those_of_detectron2(name):
    model = student_of(name)
    twin = stock_twin(name, model)
    batch = [labeled_view(1), labeled_view(2)]
    with EventStorage():
        found, expected = model(copy.deepcopy(batch)), twin(copy.deepcopy(batch))
    assert found.keys() == expected.keys() == LOSSES[name]
    for key, value in expected.items():
        assert float(value) > 0
        assert torch.equal(found[key], value), key


@BOTH
def test_inference_is_that_of_detectron2_and_the_pseudo_boxes_are_its_detections(name):
    model = excited(student_of(name))
    twin = stock_twin(name, model).eval()
    views = [plain_view(1), plain_view(2)]
    with torch.no_grad():
        found, expected = model.eval()(views), twin(views)
    guidance = model.annotate(views)
    for each, other, labels in zip(found, expected, guidance.labels, strict=True):
        each, other = each["instances"], other["instances"]
        assert len(other) > 3
        assert torch.equal(each.pred_boxes.tensor, other.pred_boxes.tensor)
        assert torch.equal(each.scores, other.scores)
        chosen = other[other.scores > guidance.rules.min_score]
        assert len(chosen) > 0
        torch.testing.assert_close(labels.pred_boxes.tensor, chosen.pred_boxes.tensor)
        assert torch.equal(labels.scores, chosen.scores)
        assert torch.equal(labels.pred_classes, chosen.pred_classes)


@BOTH
def test_one_backward_reaches_every_trainable_parameter(name):
    student = student_of(name)
    guidance = sure(annotated(student))
    with EventStorage():
        losses = student([labeled_view(3)], [plain_view(1, matrix=FLIP), plain_view(2)], guidance)
    assert losses.keys() == LOSSES[name] | {f"{k}_unsup" for k in LOSSES[name]}
    assert all(float(v) > 0 for v in losses.values())
    sum(v for k, v in losses.items() if k.endswith("_unsup")).backward()
    assert missing_gradients(student) == []
    assert student.head.bbox_pred.weight.grad.abs().max() > 0


def missing_gradients(model: torch.nn.Module) -> list[str]:
    return [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


@BOTH
@pytest.mark.parametrize("num_boxes", [0, 3])
def test_without_pseudo_boxes_losses_are_finite_and_connected(name, num_boxes):
    student = student_of(name)
    # Scored 0, boxes are there but teach nothing.
    guidance = sure(annotated(student), num_boxes=0)
    if num_boxes:
        guidance = sure(guidance, num_boxes, score=0.6)
        guidance._variance = [torch.full((num_boxes,), torch.inf)] * 2
    with EventStorage():
        losses = student([labeled_view(3)], [plain_view(1), plain_view(2)], guidance)
    unsup = {k: v for k, v in losses.items() if k.endswith("_unsup")}
    assert all(torch.isfinite(v) for v in unsup.values())
    assert {k for k, v in unsup.items() if float(v) != 0} == {CLS_LOSS[name]}
    sum(unsup.values()).backward()
    assert missing_gradients(student) == []


@BOTH
def test_alpha_multiplies_every_unlabeled_loss(name):
    results = []
    for alpha in (1.0, 4.0):
        student = student_of(name)
        student.soft_teacher = replace(student.soft_teacher, unsup_loss_weight=alpha)
        guidance = sure(annotated(student, [plain_view(1)]))
        with EventStorage():
            results.append(student([labeled_view(3)], [plain_view(1)], guidance))
    for key, value in results[0].items():
        factor = 4.0 if key.endswith("_unsup") else 1.0
        torch.testing.assert_close(results[1][key], factor * value)


@BOTH
def test_with_all_background_alike_pseudo_boxes_are_as_good_as_ground_truth(name):
    """Unlabeled losses equal Detectron2's on the same views and boxes, normalizers apart."""
    settings = {"SOFT_TEACHER__BACKGROUND__RELIABILITY": "none"}
    student = student_of(name, SOFT_TEACHER__UNSUP_LOSS_WEIGHT=1.0, **settings)
    views = [plain_view(1), plain_view(2)]
    guidance = sure(annotated(student, views))
    truth = [
        {**view, "instances": targets}
        for view, targets in zip(views, guidance.seen_from(views).targets, strict=True)
    ]
    with EventStorage():
        found = student([labeled_view(3)], views, guidance)
        twin = stock_twin(name, student)
        expected = twin(truth)
    for key, value in expected.items():
        sums = found[f"{key}_unsup"] * guidance.normalizers[f"{key}_unsup"]
        torch.testing.assert_close(sums, value * twin.loss_normalizer)


@BOTH
def test_classification_and_places_learn_from_sets_of_their_own(name):
    """A box that only classification may use changes its loss alone, and the other way round."""
    student = student_of(name, SOFT_TEACHER__BACKGROUND__RELIABILITY="none")
    views, sums = [plain_view(1)], {}
    for case, (score, variance) in {
        "both": (0.99, 0.0),
        "cls": (0.99, 1.0),
        "reg": (0.6, 0.0),
        "none": (0.6, 1.0),
    }.items():
        guidance = sure(annotated(student, views), num_boxes=2, score=score)
        guidance._variance = [torch.full((2,), variance)]
        with EventStorage():
            losses = copy.deepcopy(student)([labeled_view(3)], views, guidance)
        sums[case] = {k: float(v * guidance.normalizers[k]) for k, v in losses.items() if "un" in k}
    for key in sums["both"]:
        same, other = ("cls", "reg") if key == CLS_LOSS[name] else ("reg", "cls")
        assert sums[same][key] == pytest.approx(sums["both"][key])
        assert sums[other][key] == pytest.approx(sums["none"][key])
        assert sums["both"][key] != pytest.approx(sums["none"][key])


@BOTH
def test_the_classification_loss_is_that_of_a_loop_over_anchors(name):
    student = excited(student_of(name))
    guidance = sure(annotated(student))
    strong = [plain_view(1, matrix=FLIP), plain_view(2)]
    with EventStorage():
        losses = student([labeled_view(3)], strong, guidance)
        in_view = guidance.seen_from(strong)
        features, (logits, *_) = student._predict(student.preprocess_image(strong).tensor)
    labels, _ = student.label_anchors(student.anchor_generator(features), in_view.targets)
    reliability = in_view.background_reliability(student._pyramid(features))
    assert float(reliability.min()) < 0.7 < 0.9 < float(reliability.max())

    logits = torch.cat(logits, dim=1)
    negative = torch.stack(labels) == NUM_CLASSES
    mean = reliability[negative].double().mean()
    total, weight_sum = 0.0, 0.0
    for image, image_labels in enumerate(labels):
        for anchor, label in enumerate(image_labels.tolist()):
            if label < 0:
                continue
            target = torch.zeros(NUM_CLASSES)
            target[label:] = 0.0
            if label < NUM_CLASSES:
                target[label] = 1.0
            loss = sigmoid_focal_loss(
                logits[image, anchor].detach(), target, alpha=0.25, gamma=2.0, reduction="sum"
            )
            weight = 1.0 if label < NUM_CLASSES else float(reliability[image, anchor] / mean)
            weight_sum += weight if label == NUM_CLASSES else 0.0
            total += weight * float(loss)
    assert weight_sum == pytest.approx(int(negative.sum()), rel=1e-5)
    key = CLS_LOSS[name]
    found = losses[key] * guidance.normalizers[key] / student.soft_teacher.unsup_loss_weight
    assert float(found) == pytest.approx(total, rel=1e-4)


@BOTH
def test_unlabeled_images_have_normalizers_of_their_own(name):
    student, twin = student_of(name), student_of(name)
    with EventStorage():
        for seed in range(3):
            twin([labeled_view(seed)])
            guidance = sure(annotated(student, [plain_view(1)]))
            student([labeled_view(seed)], [plain_view(1)], guidance)
    assert student.loss_normalizer == twin.loss_normalizer
    assert student.unsup_cls_normalizer != student.loss_normalizer
    assert not hasattr(twin, "unsup_cls_normalizer")


def test_a_teacher_that_finds_nothing_does_not_make_negatives_count_more():
    """The normalizer of pseudo labels never falls below that of as many labeled images."""
    student = student_of("retinanet")
    views = [plain_view(1), plain_view(2), plain_view(3)]
    for _ in range(30):
        guidance = sure(annotated(student, views), num_boxes=0)
        with EventStorage():
            student([labeled_view(3), labeled_view(4)], views, guidance)
    assert float(guidance.normalizers["loss_cls_unsup"]) == pytest.approx(
        student.loss_normalizer * 3 / 2
    )
    assert student.loss_normalizer > 10


@BOTH
def test_fixed_labels_teach_without_a_teacher(name):
    student = student_of(
        name,
        SOFT_TEACHER__PSEUDO_LABELS__FILES=("labels.json",),
        SOFT_TEACHER__EMA__ENABLED=False,
        SOFT_TEACHER__JITTER__ENABLED=False,
        SOFT_TEACHER__BACKGROUND__RELIABILITY="none",
    )
    weak = {**plain_view(1), "pseudo_labels": detections(random_boxes(0, 3, SIZE), [0.95] * 3)}
    guidance = build_teacher(student).annotate([weak])
    expected = fixed_guidance([weak], student.soft_teacher.rules, student.device)
    assert torch.equal(guidance.labels[0].scores, expected.labels[0].scores)
    with EventStorage():
        losses = student([labeled_view(3)], [plain_view(1)], guidance)
    assert all(float(v) > 0 for v in losses.values())


@BOTH
@pytest.mark.parametrize("semi_supervised", [False, True])
def test_real_training_steps_change_student_and_teacher(name, semi_supervised):
    student = student_of(name, SOFT_TEACHER__PSEUDO_LABELS__MIN_SCORE=0.0)
    pairs = [{"weak": plain_view(7), "strong": plain_view(7, matrix=FLIP)}]
    step = SoftTeacherStep(
        student,
        EMATeacher(student, 0.9),
        LoaderStream(lambda start: ([labeled_view(i)] for i in range(start, 100))),
        LoaderStream(lambda start: (pairs for _ in range(start, 100))) if semi_supervised else None,
        torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=1e-3),
        Precision("cpu", False),
    )
    before = copy.deepcopy(student.state_dict())
    with EventStorage() as storage:
        for i in range(2):
            step.iter = storage.iter = i
            step.run_step()
        logged = storage.latest()
    assert step.num_skipped == 0
    key = "head.bbox_pred.weight"
    assert not torch.equal(student.state_dict()[key], before[key])
    assert not torch.equal(step.teacher.model.state_dict()[key], before[key])
    assert ("pseudo_boxes_cls" in logged) == ("background_weight" in logged) == semi_supervised


@BOTH
def test_weights_that_are_not_finite_are_a_floating_point_error(name):
    student = student_of(name)
    with torch.no_grad():
        student.head.bbox_pred.bias.fill_(float("nan"))
    with EventStorage(), pytest.raises(FloatingPointError, match="boxes that are not finite"):
        student([labeled_view(3)])
    with pytest.raises(FloatingPointError, match="boxes that are not finite"):
        build_teacher(student).annotate([plain_view(1)])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOFT_TEACHER.BACKGROUND.RELIABILITY", "student"),
        ("SOFT_TEACHER.BACKGROUND.NORMALIZER", "mean"),
        ("SOFT_TEACHER.REGRESSION.NORMALIZER", "foreground"),
        ("SOFT_TEACHER.SPREAD.IOU", 1.0),
        ("SOFT_TEACHER.SPREAD.MIN_BOXES", 1),
    ],
)
def test_a_key_that_means_nothing_here_is_an_error_that_names_it(key, value):
    with pytest.raises(ValueError, match=key):
        DenseSettings.from_config(config("fcos", **{key: value}))


def test_there_is_no_rpn_to_teach():
    student = student_of("fcos")
    guidance = sure(annotated(student, [plain_view(1)]))
    in_view = guidance.seen_from([plain_view(1)])
    in_view.note_pseudo_labels()
    assert not in_view.teaches_rpn[0].any() and in_view.teaches_cls[0].all()
    assert isinstance(guidance, DenseGuidance)
    assert "pseudo_boxes_rpn" not in guidance.statistics
