"""Conversion of mmdetection's checkpoints is complete, or refused with all reasons."""

import pytest
import torch

from mmdet_states import random_state, save_mmdet_file
from soft_teacher import load_config
from soft_teacher.engine.mmdet_checkpoint import (
    Settings,
    config_of,
    convert_checkpoint,
    convert_state,
    detect_architecture,
    numeric_differences,
)
from soft_teacher.engine.mmdet_checkpoint.names import convert_name
from soft_teacher.engine.mmdet_checkpoint.swin_names import reorder_merged_patches

CASCADE = {"num_stages": 3, "class_agnostic": True, "mask_convs": 1}


@pytest.fixture(scope="module")
def faster():
    return random_state()


def convert(state, tmp_path, style="pytorch", **meta):
    return convert_checkpoint(
        save_mmdet_file(state, tmp_path / "mmdet.pth", **meta), tmp_path / "ours.pth", style
    )


def changed(state, **tensors):
    """A copy with tensors added, replaced or, by None, taken away; keys with "__" for "."."""
    copy = dict(state)
    for key, tensor in tensors.items():
        copy[key.replace("__", ".")] = tensor
    return {k: v for k, v in copy.items() if v is not None}


def test_every_tensor_is_taken_over_or_reported(faster, tmp_path):
    done = convert(faster, tmp_path)
    counters = [x for x in faster if x.endswith("num_batches_tracked")]
    assert list(done.dropped) == counters
    assert done.num_tensors == len(faster) - len(counters)
    assert done.left_behind == ("optimizer",)
    content = torch.load(tmp_path / "ours.pth", weights_only=True)
    # All numbers of the file are there, under whatever name.
    ours = sorted(float(x.double().sum()) for x in content["model"].values())
    theirs = sorted(float(v.double().sum()) for k, v in faster.items() if k not in counters)
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert all(x.is_contiguous() for x in content["model"].values())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"neck__extra__weight": torch.zeros(1)}, ["neck.extra.weight"]),
        (
            {"roi_head__bbox_head__fc_cls__scale": torch.zeros(1), "ema_x": torch.zeros(1)},
            ["roi_head.bbox_head.fc_cls.scale", "ema_x"],
        ),
        (
            {"backbone__bn1__bias": None, "rpn_head__rpn_reg__bias": None},
            [
                "backbone.bottom_up.stem.conv1.norm.bias is absent in the file",
                "proposal_generator.rpn_head.anchor_deltas.bias is absent in the file",
            ],
        ),
        (
            {"backbone__layer1__0__conv4__weight": torch.zeros(1)},
            ["backbone.layer1.0.conv4.weight"],
        ),
        (
            {"backbone__layer2__0__downsample__0__bias": torch.zeros(64)},
            ["res3.0.shortcut.bias is (64,) in the file, absent in the model"],
        ),
        (
            {"roi_head__bbox_head__fc_reg__bias": torch.zeros(7)},
            ["bbox_pred.bias is (7,) in the file, (20,) in the model"],
        ),
        (
            {"backbone__layer1__0__bn1__num_updates": torch.zeros(())},
            ["backbone.layer1.0.bn1.num_updates"],
        ),
    ],
)
def test_each_weight_without_a_partner_is_named_and_nothing_is_written(
    faster, tmp_path, change, named
):
    with pytest.raises(ValueError, match="nothing was converted") as error:
        convert(changed(faster, **change), tmp_path)
    for text in named:
        assert text in str(error.value)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["mmdet.pth"]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"bbox_head.retina_cls.weight": torch.zeros(1)}, "one-stage detector or of mmdetection 1"),
        ({"a.b": torch.zeros(1)}, "has no rpn_head.rpn_cls.weight"),
    ],
)
def test_other_detectors_are_refused(state, reason):
    with pytest.raises(ValueError, match=reason):
        detect_architecture(state)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rpn_head__rpn_cls__weight": torch.zeros(6, 12, 1, 1)}, "softmax"),
        (
            {
                "rpn_head__rpn_cls__weight": torch.zeros(9, 12, 1, 1),
                "rpn_head__rpn_reg__weight": torch.zeros(36, 12, 1, 1),
            },
            "9 anchors",
        ),
        ({"backbone__layer4__2__conv1__weight": None}, r"\(3, 4, 6, 2\) bottleneck blocks"),
        ({"backbone__conv1__weight": None}, r"neither a ResNet .* backbone\.bn1"),
        ({f"roi_head__bbox_head__shared_fcs__{i}__weight": None for i in range(2)}, "shared_fcs"),
        ({"neck__fpn_convs__4__conv__weight": torch.zeros(16, 16, 3, 3)}, "5 levels"),
    ],
)
def test_parts_that_this_project_does_not_have_are_refused(faster, change, reason):
    with pytest.raises(ValueError, match=reason):
        detect_architecture(changed(faster, **change))


def test_detectors_that_this_project_does_not_have_are_refused():
    narrow = random_state(blocks=(2, 2, 2, 2), bottleneck=False, width=16)
    with pytest.raises(ValueError, match="ResNet-18 has 16 channels"):
        detect_architecture(narrow)
    cascade = random_state(**CASCADE)
    by_class = changed(cascade, roi_head__bbox_head__0__fc_reg__weight=torch.zeros(20, 24))
    with pytest.raises(ValueError, match="regresses boxes by class"):
        detect_architecture(by_class)
    two = {k: v for k, v in cascade.items() if "_head.2." not in k}
    with pytest.raises(ValueError, match="cascade of 2 stages"):
        detect_architecture(two)


def test_windows_arranged_in_another_way_are_refused(tmp_path):
    state = random_state(blocks=None)
    key = "backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"
    state[key] = state[key].T.contiguous()
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.relative_position_index arr"):
        convert(state, tmp_path, None)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({}, "Faster R-CNN, ResNet-50, 5 classes"),
        ({"mask_convs": 1, "groups": 2, "num_classes": 2}, "Mask R-CNN, ResNeXt-50, 2 classes"),
        (CASCADE | {"mask_convs": None}, "Cascade R-CNN, ResNet-50, 5 classes"),
        (CASCADE, "Cascade Mask R-CNN, ResNet-50, 5 classes"),
        (CASCADE | {"flow": True}, "HTC without semantic branch, ResNet-50, 5 classes"),
        (
            CASCADE | {"flow": True, "semantic_classes": 9, "blocks": None},
            "HTC with semantic branch, Swin Transformer of 8 channels, 5 classes",
        ),
    ],
)
def test_the_detector_is_recognized(keys, name):
    architecture = detect_architecture(random_state(**keys))
    assert architecture.name == name
    has_masks = keys.get("mask_convs") is not None
    assert any("Masks are the mean" in x for x in numeric_differences(architecture)) == (
        has_masks and "num_stages" in keys
    )


def test_the_config_says_what_the_file_does_not(faster):
    architecture = detect_architecture(faster)
    caffe, pytorch = (config_of(architecture, Settings(x)) for x in ("caffe", "pytorch"))
    assert caffe.INPUT.FORMAT == "BGR"
    assert caffe.MODEL.PIXEL_STD == [1.0, 1.0, 1.0]
    assert caffe.MODEL.PIXEL_MEAN == pytorch.MODEL.PIXEL_MEAN[::-1]
    assert caffe.MODEL.RESNETS.STRIDE_IN_1X1
    assert pytorch.INPUT.FORMAT == "RGB"
    assert pytorch.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    assert not pytorch.MODEL.RESNETS.STRIDE_IN_1X1
    assert pytorch.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.05
    lower = config_of(architecture, Settings("pytorch", score_threshold=0.001))
    assert lower.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.001
    with pytest.raises(ValueError, match="style is 'torch'"):
        config_of(architecture, Settings("torch"))


@pytest.mark.parametrize(
    ("prefixes", "meta", "asked", "order", "remark"),
    [
        ([""], {}, None, "RGB", "'pytorch' is assumed"),
        (["student.", "teacher."], {}, None, "BGR", "'caffe' is assumed"),
        ([""], {"config": "style='caffe'"}, None, "BGR", "config in the file says style 'caffe'"),
        ([""], {"cfg": "style='caffe'"}, "pytorch", "RGB", "'pytorch' was asked for"),
    ],
)
def test_where_the_style_comes_from_is_said(faster, tmp_path, prefixes, meta, asked, order, remark):
    state = {p + k: v for p in prefixes for k, v in faster.items()}
    done = convert(state, tmp_path, asked, **meta)
    assert load_config(str(done.config_file)).INPUT.FORMAT == order
    assert any(remark in x for x in done.remarks)


def test_a_swin_transformer_has_no_style(tmp_path):
    state = random_state(blocks=None)
    with pytest.raises(ValueError, match="no caffe style"):
        convert(state, tmp_path, "caffe")
    done = convert(state, tmp_path, None)
    assert not any("style" in x for x in done.remarks)


def test_names_of_classes_come_along(faster, tmp_path):
    done = convert(faster, tmp_path, CLASSES=("e", "d", "c", "b", "a"))
    stored = torch.load(tmp_path / "ours.pth", weights_only=True)["categories"]
    assert [x["name"] for x in stored] == ["e", "d", "c", "b", "a"]
    assert [x["id"] for x in stored] == [1, 2, 3, 4, 5]
    assert "DATASETS" not in done.config_file.read_text()
    for names in (("a", "b"), ("a", "a", "b", "c", "d")):
        done = convert(faster, tmp_path, CLASSES=names)
        assert "categories" not in torch.load(tmp_path / "ours.pth", weights_only=True)
        assert any("names are left out" in x for x in done.remarks)


def test_the_classes_of_coco_have_their_ids_and_their_test_set(tmp_path):
    state = random_state(num_classes=80)
    done = convert(state, tmp_path)
    assert any("COCO's are assumed" in x for x in done.remarks)
    stored = torch.load(tmp_path / "ours.pth", weights_only=True)["categories"]
    assert stored[0] == {"id": 1, "name": "person"}
    assert stored[11] == {"id": 13, "name": "stop sign"}
    assert stored[79] == {"id": 90, "name": "toothbrush"}
    assert "coco_2017_val" in done.config_file.read_text()
    done = convert(state, tmp_path, CLASSES=[f"mine {i}" for i in range(80)])
    assert "coco_2017_val" not in done.config_file.read_text()


def test_student_and_teacher_become_a_checkpoint_with_both(faster, tmp_path):
    teacher = {k: v + 1 if v.is_floating_point() else v for k, v in faster.items()}
    both = {f"student.{k}": v for k, v in faster.items()}
    both |= {f"teacher.{k}": v for k, v in teacher.items()}
    done = convert(both, tmp_path, "caffe")
    assert done.models == ("model", "teacher")
    content = torch.load(tmp_path / "ours.pth", weights_only=True)
    key = "roi_heads.box_predictor.cls_score.bias"
    wanted = faster["roi_head.bbox_head.fc_cls.bias"]
    assert torch.equal(content["model"][key], wanted)
    assert torch.equal(content["teacher"][key], wanted + 1)
    other = random_state(num_classes=4)
    mixed = {k: v for k, v in both.items() if k.startswith("student.")}
    mixed |= {f"teacher.{k}": v for k, v in other.items()}
    with pytest.raises(ValueError, match="different architectures"):
        convert(mixed, tmp_path, "caffe")


def test_the_weights_are_no_place_for_the_weights(faster, tmp_path):
    path = save_mmdet_file(faster, tmp_path / "mmdet.pth")
    for target in (path, tmp_path / "ours.bin"):
        with pytest.raises(ValueError, match="no place for the weights"):
            convert_checkpoint(path, target)


def test_heads_of_cascades_and_of_htc_have_the_names_of_this_project():
    pairs = {
        "roi_head.bbox_head.2.shared_fcs.1.weight": "roi_heads.box_head.2.fc2.weight",
        "roi_head.bbox_head.0.fc_cls.bias": "roi_heads.box_predictor.0.cls_score.bias",
        "roi_head.bbox_head.1.fc_reg.weight": "roi_heads.box_predictor.1.bbox_pred.weight",
        "roi_head.mask_head.0.convs.3.conv.bias": "roi_heads.mask_head.0.mask_fcn4.bias",
        "roi_head.mask_head.1.upsample.weight": "roi_heads.mask_head.1.deconv.weight",
        "roi_head.mask_head.2.conv_logits.bias": "roi_heads.mask_head.2.predictor.bias",
        "roi_head.mask_head.2.conv_res.conv.weight": "roi_heads.mask_head.2.conv_res.weight",
    }
    semantic = "semantic_head"
    pairs |= {
        f"roi_head.{semantic}.{theirs}": f"roi_heads.{semantic}.{ours}"
        for theirs, ours in {
            "lateral_convs.4.conv.weight": "lateral_convs.4.weight",
            "convs.3.conv.bias": "convs.3.bias",
            "conv_embedding.conv.weight": "conv_embedding.weight",
            "conv_logits.weight": "conv_logits.weight",
        }.items()
    }
    assert {theirs: convert_name(theirs) for theirs in pairs} == pairs


def test_the_names_of_swins_authors_are_those_of_detectron2():
    for name in (
        "layers.0.blocks.1.attn.relative_position_bias_table",
        "layers.2.downsample.reduction.weight",
        "patch_embed.proj.bias",
        "norm3.weight",
    ):
        tensor = torch.rand(8, 16)
        (ours, kept), *rest = convert_state({f"backbone.{name}": tensor}).items()
        assert (ours, rest) == (f"backbone.bottom_up.{name}", [])
        assert kept is tensor


def test_merged_patches_are_reordered_as_the_two_networks_read_them():
    # x[c, y, x] = 100 c + 10 y + x, of 3 channels and one token of 2 x 2.
    c, y, x = torch.meshgrid(torch.arange(3), torch.arange(2), torch.arange(2), indexing="ij")
    image = (100 * c + 10 * y + x).float()[None]
    unfolded = torch.nn.functional.unfold(image, 2, stride=2)[0, :, 0]
    parts = [image[0, :, i, j] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
    name = "backbone.stages.1.downsample.norm.weight"
    assert torch.equal(reorder_merged_patches(name, unfolded), torch.cat(parts))
    rows = torch.stack([unfolded, 2 * unfolded])
    reduced = reorder_merged_patches("backbone.stages.1.downsample.reduction.weight", rows)
    assert torch.equal(reduced, torch.stack([torch.cat(parts), 2 * torch.cat(parts)]))
    assert reorder_merged_patches("backbone.stages.1.blocks.0.norm1.weight", rows) is rows


def test_box_weights_of_cascades_are_one_over_mmdetections_deviations():
    cfg = config_of(detect_architecture(random_state(**CASCADE)), Settings("pytorch"))
    first, second, third = cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
    assert first == (10, 10, 5, 5)
    assert second == (20, 20, 10, 10)
    assert third == pytest.approx([1000 / 33, 1000 / 33, 1000 / 67, 1000 / 67])
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN == 2000
