"""Converted models find what mmdetection's find, computed from its state dict independently."""

import pytest
import torch
from detectron2.modeling import build_model

from mmdet_reference import Detector
from mmdet_states import (
    by_names_of_swins_authors,
    random_image,
    random_state,
    save_mmdet_file,
)
from soft_teacher import load_config
from soft_teacher.engine.evaluation import load_models
from soft_teacher.engine.mmdet_checkpoint import convert_checkpoint

CASES = {
    "faster": {},
    "faster, R-18": {"blocks": (2, 2, 2, 2), "bottleneck": False, "width": 64},
    "faster, R-101, caffe": {"blocks": (3, 4, 23, 3), "style": "caffe"},
    "faster, ResNeXt-50": {"width": 16, "groups": 4},
    "faster, one class": {"num_classes": 1},
    "faster, unusual head": {
        "num_classes": 11,
        "rpn_dims": (16, 8),
        "box_convs": 2,
        "fc_dims": (20,),
        "class_agnostic": True,
    },
    "faster, norms": {"channels": 32, "fpn_norm": "bn", "box_convs": 1, "box_norm": "gn"},
    "mask": {"mask_convs": 4},
    "mask, unusual head": {"mask_convs": 2, "mask_dim": 12, "class_agnostic_mask": True},
    "mask, Swin": {"blocks": None, "mask_convs": 1},
}
CASCADE = {"num_stages": 3, "class_agnostic": True}
CASCADES = {
    "cascade": {},
    "cascade mask": {"mask_convs": 4},
    "cascade mask, caffe": {"mask_convs": 2, "style": "caffe", "num_classes": 1},
    "HTC": {"mask_convs": 4, "flow": True},
    "HTC, semantic": {"mask_convs": 4, "flow": True, "semantic_classes": 21},
    "HTC, Swin, semantic": {
        "blocks": None,
        "mask_convs": 4,
        "flow": True,
        "semantic_classes": 7,
        "num_classes": 3,
    },
}
CASES |= {name: CASCADE | keys for name, keys in CASCADES.items()}


def run(cfg, model, image):
    """What the model finds on an RGB image (3, H, W) at its size, masks not pasted."""
    pixels = image if cfg.INPUT.FORMAT == "RGB" else image.flip(0)
    with torch.no_grad():
        return model.eval().inference([{"image": pixels}], do_postprocess=False)[0]


@pytest.mark.parametrize("case", CASES)
def test_a_converted_model_finds_what_mmdetection_finds(case, tmp_path):
    keys = CASES[case]
    style = keys.get("style", "pytorch")
    state = random_state(**keys)
    file = save_mmdet_file(state, tmp_path / "mmdet.pth")
    done = convert_checkpoint(
        file, tmp_path / "ours.pth", None if keys.get("blocks", 1) is None else style
    )
    cfg = load_config(str(done.config_file), ["MODEL.DEVICE", "cpu"])
    models = load_models(cfg)
    assert list(models) == ["model"]

    image = random_image(seed=3, size=(110, 150))
    found = run(cfg, models["model"], image)
    threshold = 0.001 if case.startswith("HTC") else 0.05
    wanted = Detector(state, style, threshold).detect(image)

    assert len(wanted.boxes) >= 20
    assert len(set(wanted.classes.tolist())) >= min(2, keys.get("num_classes", 5))
    torch.testing.assert_close(found.scores, wanted.scores, rtol=0, atol=2e-5)
    assert torch.equal(found.pred_classes, wanted.classes)
    torch.testing.assert_close(found.pred_boxes.tensor, wanted.boxes, rtol=0, atol=2e-3)
    assert found.has("pred_masks") == (wanted.masks is not None)
    if wanted.masks is not None:
        assert wanted.masks.std() > 0.05
        torch.testing.assert_close(found.pred_masks[:, 0], wanted.masks, rtol=0, atol=2e-4)


def test_student_and_teacher_of_a_soft_teacher_find_each_what_they_did(tmp_path):
    states = {
        "student": random_state(style="caffe"),
        "teacher": random_state(style="caffe", seed=1),
    }
    joined = {f"{name}.{k}": v for name, state in states.items() for k, v in state.items()}
    file = save_mmdet_file(joined, tmp_path / "mmdet.pth")
    done = convert_checkpoint(file, tmp_path / "ours.pth")
    cfg = load_config(str(done.config_file), ["MODEL.DEVICE", "cpu"])
    models = load_models(cfg)
    assert list(models) == ["student", "teacher"]
    image = random_image(seed=3)
    for name, model in models.items():
        found = run(cfg, model, image)
        wanted = Detector(states[name], "caffe", 0.05).detect(image)
        assert len(wanted.boxes) >= 20
        torch.testing.assert_close(found.scores, wanted.scores, rtol=0, atol=2e-5)
        torch.testing.assert_close(found.pred_boxes.tensor, wanted.boxes, rtol=0, atol=2e-3)


def test_the_style_matters(tmp_path):
    # Otherwise a wrong stride or channel order would pass the tests above.
    state = random_state()
    file = save_mmdet_file(state, tmp_path / "mmdet.pth")
    done = convert_checkpoint(file, tmp_path / "ours.pth", "caffe")
    cfg = load_config(str(done.config_file), ["MODEL.DEVICE", "cpu"])
    found = run(cfg, load_models(cfg)["model"], random_image(seed=3))
    wanted = Detector(state, "pytorch", 0.05).detect(random_image(seed=3))
    assert len(found) != len(wanted.scores) or not torch.allclose(found.scores, wanted.scores)


def test_swin_needs_its_channels_reordered(tmp_path):
    state = random_state(blocks=None)
    file = save_mmdet_file(state, tmp_path / "mmdet.pth")
    done = convert_checkpoint(file, tmp_path / "ours.pth")
    weights = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    cfg = load_config(str(done.config_file), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    model = build_model(cfg)
    model.load_state_dict(weights)
    image = random_image(seed=3)
    scores = run(cfg, model, image).scores
    for i in range(3):
        key = f"layers.{i}.downsample.reduction.weight"
        as_in_mmdet = state[f"backbone.stages.{i}.downsample.reduction.weight"]
        assert not torch.equal(weights[f"backbone.bottom_up.{key}"], as_in_mmdet)
        weights[f"backbone.bottom_up.{key}"] = as_in_mmdet
    model.load_state_dict(weights)
    other = run(cfg, model, image).scores
    assert len(other) != len(scores) or not torch.allclose(other, scores, atol=1e-3)


def test_a_detector_of_swins_authors_becomes_the_one_of_mmdetection_that_is_proved_above(tmp_path):
    state = random_state(**CASES["mask, Swin"])
    theirs = by_names_of_swins_authors(state)
    in_backbone = [name for name in state if name.startswith("backbone.")]
    assert {x for x in in_backbone if x in theirs} == {
        f"backbone.{norm}.{kind}"
        for norm in ("patch_embed.norm", "norm0", "norm1", "norm2", "norm3")
        for kind in ("weight", "bias")
    }
    (expected, expected_cfg), (found, found_cfg) = (
        converted(x, tmp_path / name) for x, name in ((state, "mmdet"), (theirs, "authors"))
    )
    assert found_cfg == expected_cfg
    assert found.keys() == expected.keys()
    assert [k for k, v in expected.items() if not torch.equal(found[k], v)] == []


def converted(state, folder):
    """The weights and the config, without the place of the weights, that a state becomes."""
    folder.mkdir()
    file = save_mmdet_file(state, folder / "theirs.pth")
    done = convert_checkpoint(file, folder / "ours.pth")
    cfg = load_config(str(done.config_file), ["MODEL.WEIGHTS", ""])
    return torch.load(folder / "ours.pth", weights_only=True)["model"], cfg
