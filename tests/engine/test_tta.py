"""Several looks at an image: equal to one look where they must be, and averaged by brute force."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import DatasetMapperTTA
from detectron2.structures import Boxes, Instances
from torch import nn

import train_net
from cascades import CASCADE, cascade_model
from masks import MASK_HEAD
from soft_teacher.analysis.metrics_log import read_metrics
from soft_teacher.analysis.suite_results import last_evaluation
from soft_teacher.engine import evaluate_models, evaluate_with_tta, load_models
from soft_teacher.engine.ema import build_teacher
from soft_teacher.engine.trainer import SoftTeacherTrainer
from soft_teacher.engine.tta import RCNNWithTTA
from soft_teacher.modeling.soft_nms import SoftNms
from tiny import plain_view, tiny_config, tiny_model
from tiny_training import write_config

SIZE = (64, 96)
KEYS = {
    **MASK_HEAD,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "TEST.DETECTIONS_PER_IMAGE": 12,
    "TEST.AUG.MAX_SIZE": 300,
}
SOFT = {"MODEL.ROI_HEADS.SOFT_NMS.ENABLED": True, "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3}
HTC = {
    **CASCADE,
    "MODEL.ROI_HEADS.NAME": "SoftTeacherHTCROIHeads",
    "MODEL.ROI_HTC.SEMANTIC_ON": True,
}
KINDS = {"standard": {}, "cascade": CASCADE, "htc": HTC}


def model_of(kind: str, **overrides) -> nn.Module:
    """A detector whose classes and masks differ from box to box, in eval mode."""
    cfg = tiny_config(**{**KINDS[kind], **KEYS, **overrides})
    if kind == "standard":
        model = tiny_model(**{**KEYS, **overrides})
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    else:
        model = cascade_model(cfg=cfg)
    for parameter in model.roi_heads.mask_head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def look(model: nn.Module, sizes: list[int], flip: bool, view: dict, **overrides) -> Instances:
    cfg = tiny_config(**{**KEYS, **overrides})
    views = DatasetMapperTTA(min_sizes=sizes, max_size=300, flip=flip)
    with torch.no_grad():
        return RCNNWithTTA(cfg, model, views)([view])[0]["instances"]


def raw(model: nn.Module, view: dict) -> Instances:
    """Detections without masks pasted, in the frame of the view."""
    with torch.no_grad():
        return model.inference([view], do_postprocess=False)[0]


def resized(view: dict, size: int, flip: bool = False) -> dict:
    """The view with another shorter side, and mirrored, as Detectron2 resizes images."""
    pixels = view["image"].permute(1, 2, 0).numpy()
    augs = [T.ResizeShortestEdge(size, 300), *([T.RandomFlip(prob=1.0)] if flip else [])]
    pixels, _ = T.apply_augmentations(augs, pixels.copy())
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return {**view, "image": image}


@pytest.mark.parametrize("soft", [{}, SOFT], ids=["nms", "soft_nms"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_look_at_the_image_as_it_is_is_plain_inference(kind, soft):
    model = model_of(kind, **soft)
    view = plain_view(1, SIZE)
    found = look(model, [SIZE[0]], False, view, **soft)
    with torch.no_grad():
        expected = model([view])[0]["instances"]
    assert len(expected) > 5
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert torch.equal(found.pred_masks, expected.pred_masks)
    assert 0 < int(found.pred_masks.sum()) < found.pred_masks.numel()


class Mirrored(DatasetMapperTTA):
    """The mirror image alone."""

    def __call__(self, record):
        return super().__call__(record)[1::2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_mirror_is_undone_for_boxes_and_masks(kind):
    """What is seen in the mirror image of a mirror image is what is in the image."""
    model = model_of(kind)
    view = plain_view(1, SIZE)
    mirrored = {**view, "image": view["image"].flip(2)}
    views = Mirrored(min_sizes=[SIZE[0]], max_size=300, flip=True)
    with torch.no_grad():
        found = RCNNWithTTA(tiny_config(**KEYS), model, views)([mirrored])[0]["instances"]
        plain = raw(model, view)
    boxes = plain.pred_boxes.tensor[:, [2, 1, 0, 3]]
    boxes[:, [0, 2]] = SIZE[1] - boxes[:, [0, 2]]
    torch.testing.assert_close(found.pred_boxes.tensor, boxes, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.scores, plain.scores)
    masks = paste_masks_in_image(plain.pred_masks[:, 0].flip(2), Boxes(boxes), SIZE)
    # At the edge of a mask, rounding decides.
    assert float((masks != found.pred_masks).float().mean()) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_the_union_of_all_looks_and_masks_their_mean(kind):
    model = model_of(kind)
    view = plain_view(1, SIZE)
    sizes, scale = [48, 64, 80], {48: 0.75, 64: 1.0, 80: 1.25}
    found = look(model, sizes, True, view)
    pool = []
    for size in sizes:
        for flip in (False, True):
            seen = raw(model, resized(view, size, flip))
            for box, score, k in zip(
                seen.pred_boxes.tensor.tolist(), seen.scores, seen.pred_classes, strict=True
            ):
                x0, y0, x1, y1 = (x / scale[size] for x in box)
                box = (SIZE[1] - x1, y0, SIZE[1] - x0, y1) if flip else (x0, y0, x1, y1)
                pool.append((float(score), int(k), box))
    kept = greedy_nms(pool, model.roi_heads)
    torch.testing.assert_close(found.scores, torch.tensor([x[0] for x in kept]))
    torch.testing.assert_close(
        found.pred_boxes.tensor, torch.tensor([x[2] for x in kept]), atol=1e-3, rtol=1e-4
    )
    masks = mean_masks(model, view, found, scale)
    expected = paste_masks_in_image(masks, found.pred_boxes, SIZE)
    assert float((expected != found.pred_masks).float().mean()) < 1e-3
    assert 0 < int(found.pred_masks.sum()) < found.pred_masks.numel()


def greedy_nms(pool: list, heads: nn.Module) -> list:
    """The best 12 of pairs of score, class and box, without those that a better one covers."""
    kept = []
    for score, k, box in sorted(pool, key=lambda x: -x[0]):
        if all(k != other or overlap(box, b) <= 0.5 for _, other, b in kept):
            kept.append((score, k, box))
    return kept[:12]


def overlap(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / (sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - common)


def mean_masks(
    model: nn.Module, view: dict, found: Instances, scale: dict[int, float]
) -> torch.Tensor:
    """Probabilities of the boxes' own classes, one look and one box after the other."""
    masks = []
    for size, factor in scale.items():
        for flip in (False, True):
            seen = resized(view, size, flip)
            with torch.no_grad():
                features = model.backbone(model.preprocess_image([seen]).tensor)
            for i, box in enumerate(found.pred_boxes.tensor.tolist()):
                x0, y0, x1, y1 = (x * factor for x in box)
                width = SIZE[1] * factor
                box = (width - x1, y0, width - x0, y1) if flip else (x0, y0, x1, y1)
                mask = one_mask(model, features, box, int(found.pred_classes[i]))
                masks.append(mask.flip(1) if flip else mask)
    return torch.stack(masks).reshape(-1, len(found), *masks[0].shape).mean(dim=0)


@torch.no_grad()
def one_mask(model: nn.Module, features: dict, box, k: int) -> torch.Tensor:
    """Probabilities of one class in one box; of HTC the mean of those of three stages."""
    heads = model.roi_heads
    if isinstance(heads.mask_head, nn.ModuleList):
        heads._add_embedding(features)
    levels = [features[f] for f in heads.mask_in_features]
    pooled = heads.mask_pooler(levels, [Boxes(torch.tensor([box]))])
    if not isinstance(heads.mask_head, nn.ModuleList):
        return heads.mask_head.layers(pooled)[0, k].sigmoid()
    total, trunk = 0.0, None
    for head in heads.mask_head:
        x = pooled if trunk is None else pooled + head.conv_res(trunk)
        for conv in head.conv_norm_relus:
            x = conv(x)
        trunk = x
        total = total + head.predictor(head.deconv_relu(head.deconv(trunk)))[0, k].sigmoid()
    return total / 3


@pytest.mark.parametrize("kind", KINDS)
def test_softly_merged_views_are_lowered_once(kind):
    model = model_of(kind, **SOFT)
    view = plain_view(1, SIZE)
    found = look(model, [48, 64], False, view, **SOFT)
    soft = model.soft_nms
    boxes, scores, classes = [], [], []
    for size in (48, 64):
        model.soft_nms = SoftNms("linear", 0.3, 0.5, 0.001, 12, lowers=False)
        seen = raw(model, resized(view, size))
        boxes.append(seen.pred_boxes.tensor * SIZE[0] / size)
        scores.append(seen.scores)
        classes.append(seen.pred_classes)
    boxes = Boxes(torch.cat(boxes))
    boxes.clip(SIZE)
    union = Instances(
        SIZE, pred_boxes=boxes, scores=torch.cat(scores), pred_classes=torch.cat(classes)
    )
    expected = soft(union)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=1e-4
    )
    assert found.scores.tolist() != union.scores.sort(descending=True).values[:12].tolist()
    # The model's own rules are back, for the next image.
    model.soft_nms = soft
    again = look(model, [48, 64], False, view, **SOFT)
    assert model.soft_nms is soft and torch.equal(again.scores, found.scores)


def test_an_image_without_a_detection_has_none():
    for soft in ({}, SOFT):
        model = model_of("standard", **soft, **{"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.999999})
        found = look(model, [48, 64], True, plain_view(1, SIZE), **soft)
        assert len(found) == 0 and found.has("pred_masks")


def test_a_teacher_can_look_several_times_and_stays_in_eval_mode():
    teacher = build_teacher(model_of("cascade"))
    before = copy.deepcopy(teacher.state_dict())
    found = look(teacher, [48, 64], True, plain_view(1, SIZE))
    assert len(found) > 0 and not teacher.training and teacher.roi_heads.mask_on
    assert all(torch.equal(x, before[key]) for key, x in teacher.state_dict().items())


def test_detectors_that_are_no_r_cnn_are_refused_before_the_training(tmp_path):
    config = write_config(
        tmp_path,
        MODEL__META_ARCHITECTURE="SoftTeacherRetinaNet",
        MODEL__BACKBONE__NAME="build_resnet_p6p7_fpn_backbone",
        MODEL__RESNETS__OUT_FEATURES=["res3", "res4", "res5"],
        MODEL__FPN__IN_FEATURES=["res3", "res4", "res5"],
        MODEL__RETINANET__NUM_CLASSES=3,
        TEST__AUG__ENABLED=True,
    )
    cfg = train_net.load_config(str(config), ["OUTPUT_DIR", str(tmp_path / "out")])
    with pytest.raises(ValueError, match=r"TEST\.AUG\.ENABLED.*SoftTeacherRetinaNet"):
        SoftTeacherTrainer(cfg)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training that ends with both evaluations."""
    folder = tmp_path_factory.mktemp("tta")
    config = write_config(
        folder,
        SOLVER__MAX_ITER=2,
        TEST__AUG__ENABLED=True,
        TEST__AUG__MIN_SIZES=(48, 64),
        MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.2,
    )
    return config, run(config, folder / "out"), folder / "out"


def run(config: Path, output: Path, *options) -> dict:
    keys = ["OUTPUT_DIR", str(output)]
    args = train_net.default_argument_parser().parse_args(
        ["--config-file", str(config), *map(str, options), *keys]
    )
    return train_net.main(args)


def test_training_ends_with_an_evaluation_of_student_and_teacher_under_names_of_its_own(trained):
    _, _, output = trained
    lines = [json.loads(x) for x in (output / "metrics.json").read_text().splitlines()]
    last = {key for line in lines for key in line}
    for model in ("student", "teacher"):
        assert {f"{model}/bbox/AP", f"{model}/bbox_TTA/AP"} <= last
        found = list((output / "inference_TTA" / model).rglob("coco_instances_results.json"))
        assert len(found) == 1 and json.loads(found[0].read_text())
    # Suites read both from there.
    final = lines[-1]
    for model, found in last_evaluation(read_metrics(output / "metrics.json")).items():
        assert found["AP"] == final[f"{model}/bbox/AP"]
        assert found["multi-scale AP"] == final[f"{model}/bbox_TTA/AP"]


def test_eval_only_gives_both_and_looks_at_the_image_in_its_own_size(trained, tmp_path):
    config, _, output = trained
    weights = ["--eval-only", "MODEL.WEIGHTS", output / "model_final.pth"]
    results = run(config, tmp_path / "both", *weights, "INPUT.MIN_SIZE_TEST", 48)
    assert set(results["teacher"]) == {"bbox", "bbox_TTA"} == set(results["student"])
    # One look at the size of the file is what evaluation at that size is, whatever
    # INPUT.MIN_SIZE_TEST says: images are not made small before they are looked at.
    keys = ["TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", False]
    again = run(config, tmp_path / "one", *weights, "INPUT.MIN_SIZE_TEST", 48, *keys)
    cfg = train_net.load_config(str(config), ["MODEL.WEIGHTS", str(output / "model_final.pth")])
    cfg.OUTPUT_DIR = str(tmp_path / "plain")
    models = load_models(cfg)
    plain = evaluate_models(cfg, models)
    for name, found in plain.items():
        assert again[name]["bbox_TTA"] == pytest.approx(found["bbox"], nan_ok=True)
    with pytest.raises(ValueError, match=r"TEST\.AUG\.ENABLED"):
        evaluate_with_tta(cfg, {"other": nn.Linear(1, 1)})
