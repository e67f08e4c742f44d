"""Mask R-CNN under Soft Teacher, supervised and with unlabeled images, against stock Detectron2."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.utils.events import EventStorage

from htc import htc_model
from masks import MASK_HEAD, SIZE, confident_with_masks, labeled_view_with_masks
from soft_teacher.engine import SoftTeacherCheckpointer
from soft_teacher.engine.ema import build_teacher
from soft_teacher.engine.export import export_model
from tiny import labeled_view, plain_view, tiny_config, tiny_model

LOSSES = ("rpn_cls", "rpn_loc", "cls", "box_reg", "mask")
KEYS = {
    **MASK_HEAD,
    # Untrained models do not reach the usual thresholds.
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.2,
    "SOFT_TEACHER.PSEUDO_LABELS.REG_VARIANCE": 10.0,
}


def mask_model(seed: int = 0, **keys):
    """A student whose masks are not all 0.5, as those of an untrained head nearly are."""
    model = tiny_model(seed, **{**KEYS, **keys})
    torch.nn.init.normal_(model.roi_heads.mask_head.predictor.weight, std=0.5)
    return model


def stock_twin(model, **keys):
    """Detectron2's own model of the same config and weights."""
    names = {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    }
    twin = build_model(tiny_config(**{**KEYS, **names, **keys})).train()
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin


def losses_of(model, batch):
    torch.manual_seed(5)
    with EventStorage():
        return model(copy.deepcopy(batch))


@pytest.mark.parametrize("agnostic", [False, True])
def test_supervised_losses_are_exactly_those_of_stock_mask_rcnn(agnostic):
    keys = {"MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": agnostic}
    model = mask_model(**keys)
    batch = [labeled_view_with_masks(1), labeled_view_with_masks(2)]
    found, expected = losses_of(model, batch), losses_of(stock_twin(model, **keys), batch)
    assert set(found) == {f"loss_{x}" for x in LOSSES} == set(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_masks_at_test_are_exactly_those_of_stock_mask_rcnn():
    model = mask_model()
    twin = stock_twin(model)
    with torch.no_grad():
        found = model.eval()([plain_view(1)])[0]["instances"]
        expected = twin.eval()([plain_view(1)])[0]["instances"]
    assert len(found) > 0 and found.pred_masks.any()
    assert torch.equal(found.pred_masks, expected.pred_masks)


def test_the_teachers_masks_come_with_its_labels_and_are_not_pasted():
    keys = {f"SOFT_TEACHER.PSEUDO_LABELS.{x}_SCORE": 0.25 for x in ("MIN", "CLS", "RPN")}
    teacher = build_teacher(mask_model(**keys))
    guidance = teacher.annotate([plain_view(1), plain_view(2)])
    detected = [x for x in guidance.labels if len(x)]
    assert detected
    for labels in detected:
        assert labels.pred_masks.shape == (len(labels), 1, 8, 8)
        assert 0 < labels.pred_masks.min() and labels.pred_masks.max() < 1
        assert not labels.pred_masks.requires_grad


@pytest.mark.parametrize("build", [mask_model, htc_model])
@pytest.mark.parametrize("rank", [3, 0])
def test_masks_are_drawn_in_the_detections_alone_that_are_looked_at(monkeypatch, build, rank):
    teacher = build_teacher(build())
    views, pooled = [plain_view(1), plain_view(2)], []
    with torch.no_grad():
        images = teacher.preprocess_image(views)
        features = teacher.backbone(images.tensor)
        proposals, _ = teacher.proposal_generator(images, features, None)
        everything, _ = teacher.roi_heads(images, features, proposals, None)
    scores = torch.cat([x.scores for x in everything]).sort(descending=True).values
    assert len(scores) > 5 and len(scores.unique()) == len(scores)
    teacher.rules = replace(teacher.rules, min_score=float(scores[rank]))
    pool = teacher.roi_heads.mask_pooler.forward
    monkeypatch.setattr(
        teacher.roi_heads.mask_pooler,
        "forward",
        lambda maps, boxes: pooled.append(sum(map(len, boxes))) or pool(maps, boxes),
    )
    guidance = teacher.annotate(views)
    assert pooled == [rank]
    for found, every in zip(guidance.labels, everything, strict=True):
        expected = every[every.scores > scores[rank]]
        assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
        torch.testing.assert_close(found.pred_masks, expected.pred_masks)


@pytest.mark.parametrize("agnostic", [False, True])
def test_one_backward_reaches_every_parameter_of_the_mask_head(agnostic):
    student = mask_model(**{"MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": agnostic})
    teacher = build_teacher(student)
    flip = [[-1.0, 0, SIZE[1]], [0, 1, 0], [0, 0, 1]]
    views = [plain_view(1, matrix=flip), plain_view(2)]
    with EventStorage():
        guidance = confident_with_masks(teacher, [plain_view(1), plain_view(2)])
        losses = student([labeled_view_with_masks(3)], views, guidance)
    assert set(losses) == {f"loss_{x}{suffix}" for x in LOSSES for suffix in ("", "_unsup")}
    assert "loss_mask_unsup" in guidance.normalizers
    losses["loss_mask_unsup"].backward(retain_graph=True)
    for name, parameter in student.roi_heads.mask_head.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    # Masks teach the features too, but no box.
    assert student.backbone.fpn_output2.weight.grad.abs().max() > 0
    assert student.roi_heads.box_predictor.cls_score.weight.grad is None
    sum(losses.values()).backward()
    missing = [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(p.grad is None for p in teacher.parameters())


def test_mixed_precision_gives_nearly_the_same_loss_in_float():
    student = mask_model()
    teacher = build_teacher(student)
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            guidance = confident_with_masks(teacher, [plain_view(1)])
            losses = student([labeled_view_with_masks(3)], [plain_view(1)], guidance)
        found.append(losses["loss_mask_unsup"])
    assert found[1].dtype == torch.float32 and found[1].requires_grad
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0)


def test_alpha_multiplies_the_mask_loss():
    student = mask_model()
    teacher = build_teacher(student)
    found = []
    for alpha in (1.0, 4.0):
        student.unsup_loss_weight = alpha
        torch.manual_seed(0)
        with EventStorage():
            guidance = confident_with_masks(teacher, [plain_view(1)])
            losses = student([labeled_view_with_masks(3)], [plain_view(1)], guidance)
        found.append(losses["loss_mask_unsup"])
    torch.testing.assert_close(found[1], 4 * found[0])


@pytest.mark.parametrize("boxes", [0, 2])
def test_images_without_objects_give_finite_connected_losses(boxes):
    """A labeled image without objects has no field of masks either."""
    student = mask_model()
    teacher = build_teacher(student)
    batch = [labeled_view(1, num_boxes=0)]
    if boxes:
        batch.append(labeled_view_with_masks(2, boxes))
    with EventStorage():
        guidance = confident_with_masks(teacher, [plain_view(1)])
        guidance.labels = [x[:0] for x in guidance.labels]
        losses = student(batch, [plain_view(1)], guidance)
    assert float(losses["loss_mask_unsup"]) == 0
    assert (float(losses["loss_mask"]) > 0) == bool(boxes)
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is not None for p in student.roi_heads.mask_head.parameters())


def test_a_student_learns_the_masks_of_its_teacher():
    """The head alone learns from unlabeled images until it draws what the teacher draws."""
    student = mask_model()
    teacher = build_teacher(student)
    optimizer = torch.optim.SGD(student.roi_heads.mask_head.parameters(), 0.5, momentum=0.9)
    torch.manual_seed(0)
    agreements = []
    for _ in range(30):
        with EventStorage():
            guidance = confident_with_masks(teacher, [plain_view(1)])
            losses = student([labeled_view_with_masks(3)], [plain_view(1)], guidance)
        optimizer.zero_grad()
        losses["loss_mask_unsup"].backward()
        optimizer.step()
        agreements.append(float(guidance.statistics["pseudo_mask_agreement"]))
    assert agreements[0] < 0.75 < 0.9 < agreements[-1]


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_an_exported_model_draws_in_plain_detectron2_what_the_original_draws(tmp_path, name):
    keys = {**KEYS, "INPUT.FORMAT": "RGB", "INPUT.MIN_SIZE_TEST": 64, "INPUT.MAX_SIZE_TEST": 96}
    models = {"student": mask_model(1), "teacher": mask_model(2)}
    checkpointer = SoftTeacherCheckpointer(
        models["student"], str(tmp_path), teacher=models["teacher"]
    )
    checkpointer.save("model_final")
    exported = export_model(
        tmp_path / "model_final.pth", name, tiny_config(**keys), tmp_path / "plain.pth"
    )
    cfg = get_cfg()
    cfg.merge_from_file(str(exported), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    predictor = DefaultPredictor(cfg)
    assert type(predictor.model) is GeneralizedRCNN
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    found = predictor(picture)["instances"]
    rgb = torch.from_numpy(picture[:, :, ::-1].transpose(2, 0, 1).copy())
    view = {"image": rgb, "height": SIZE[0], "width": SIZE[1]}
    with torch.no_grad():
        wanted = models[name].eval()([view])[0]["instances"]
    assert len(wanted) > 0 and wanted.pred_masks.any()
    assert torch.equal(found.pred_masks, wanted.pred_masks)
