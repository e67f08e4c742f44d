"""One network of each family of timm as a backbone: maps, norms, sizes, gradients."""

import functools

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.utils.events import EventStorage
from torch import nn

from soft_teacher.config import add_soft_teacher_config
from soft_teacher.engine.ema import build_teacher
from soft_teacher.modeling.backbones.timm_fpn import build_timm_backbone
from soft_teacher.modeling.backbones.timm_net import shifting_blocks
from tiny import labeled_view, plain_view, tiny_model

timm = pytest.importorskip("timm")

LEVELS = ["res2", "res3", "res4", "res5"]
SWIN = "swin_tiny_patch4_window7_224"
SWIN_CR = "swinv2_cr_tiny_224"
# Feature levels, whether they are normed, and of what images' sides are multiples.
FAMILIES = {
    "resnet10t": ((1, 2, 3, 4), False, 32),
    "tf_efficientnet_lite0": ((1, 2, 3, 4), False, 32),
    "convnext_atto": ((0, 1, 2, 3), True, 32),
    "mambaout_femto": ((0, 1, 2, 3), True, 32),  # channels last, without windows
    SWIN: ((0, 1, 2, 3), True, 7 * 32),  # channels last
    SWIN_CR: ((0, 1, 2, 3), True, 7 * 32),
}
WINDOWED = {SWIN, SWIN_CR}


def make_bottom_up(name: str, **timm_keys):
    cfg = get_cfg()
    add_soft_teacher_config(cfg)
    cfg.MODEL.TIMM.NAME = name
    for key, value in {"OUT_INDICES": (0, 1, 2, 3), **timm_keys}.items():
        setattr(cfg.MODEL.TIMM, key, value)
    torch.manual_seed(0)
    return build_timm_backbone(cfg, ShapeSpec(channels=3))


@functools.cache
def tiny_detector(name: str) -> nn.Module:
    """A student with this backbone, whose norms of levels are not those that they start with."""
    student = tiny_model(
        MODEL__BACKBONE__NAME="build_timm_fpn_backbone",
        MODEL__TIMM__NAME=name,
        MODEL__TIMM__OUT_INDICES=FAMILIES[name][0],
    )
    for norm in student.backbone.bottom_up.norms.values():
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return student


@pytest.mark.parametrize("name", FAMILIES)
def test_levels_are_timms_own_features_normed_where_they_are_bare(name):
    bottom_up = tiny_detector(name).backbone.bottom_up.eval()
    indices, normed, _ = FAMILIES[name]
    # Swin as timm has it is for one size.
    size, options = (64, 96), {}
    if name in WINDOWED:
        size = (224, 448)
        options = {"img_size": size, "always_partition": True}
    reference = timm.create_model(name, features_only=True, out_indices=indices, **options).eval()
    reference.load_state_dict(bottom_up.net.state_dict(), strict=True)
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        found, expected = bottom_up(images), reference(images)
    assert bool(bottom_up.norms) == normed
    assert list(found) == list(bottom_up.output_shape()) == LEVELS
    for (level, feature), other in zip(found.items(), expected, strict=True):
        spec = bottom_up.output_shape()[level]
        assert feature.shape == (1, spec.channels, *(side // spec.stride for side in size))
        if other.shape != feature.shape:
            other = other.permute(0, 3, 1, 2)
        if normed:
            norm = bottom_up.norms[level]
            mean, var = other.mean(1, keepdim=True), other.var(1, correction=0, keepdim=True)
            other = (other - mean) / (var + norm.eps).sqrt()
            other = other * norm.weight[:, None, None] + norm.bias[:, None, None]
        torch.testing.assert_close(feature, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_detector_learns_from_odd_sizes_and_gradients_reach_all_that_is_trained(name):
    student = tiny_detector(name).train()
    student.zero_grad()
    labeled, view = labeled_view(0, size=(61, 83)), plain_view(1, size=(75, 50))
    with EventStorage():
        losses = student([labeled], [view], build_teacher(student).annotate([view]))
    assert any(key.endswith("_unsup") for key in losses)
    assert all(torch.isfinite(x) for x in losses.values())
    sum(losses.values()).backward()
    backbone = dict(student.backbone.named_parameters())
    without = [key for key, p in backbone.items() if p.requires_grad and p.grad is None]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in backbone.values() if p.requires_grad)


@pytest.mark.parametrize("name", FAMILIES)
def test_images_are_padded_to_whole_windows_in_every_stage(name):
    student = tiny_detector(name)
    multiple = FAMILIES[name][2]
    assert student.backbone.size_divisibility == multiple
    padded = student.preprocess_image([plain_view(0, size=(61, 230))]).tensor
    assert padded.shape[2:] == (-(-61 // multiple) * multiple, -(-230 // multiple) * multiple)


def test_windows_of_different_sides_are_whole_together():
    # Windows of 7, 7, 14 and 7 tokens at strides 4, 8, 16 and 32.
    assert make_bottom_up("swin_s3_tiny_224").size_divisibility == 224


def test_windows_of_the_last_stage_are_shifted():
    # timm leaves that stage unshifted in a network that it builds for images of its own size.
    shifts = [block.shift_size for block in shifting_blocks(make_bottom_up(SWIN).net)]
    assert shifts == [(0, 0), (3, 3)] * 6


def test_norms_of_levels_can_be_chosen():
    assert not make_bottom_up("convnext_atto", OUT_NORM="none").norms
    resnet = make_bottom_up("resnet10t", OUT_INDICES=(1, 2, 3, 4), OUT_NORM="LN")
    assert list(resnet.norms) == LEVELS


def test_stochastic_depth_is_what_the_config_says_and_off_in_the_teacher():
    def rates(net) -> list[float]:
        return [m.drop_prob for m in net.modules() if isinstance(m, timm.layers.DropPath)]

    assert rates(make_bottom_up(SWIN)) == []  # timm's default is 0.1
    net = make_bottom_up("convnext_atto", DROP_PATH_RATE=0.5)
    assert max(rates(net)) == pytest.approx(0.5)
    images = torch.randn(1, 3, 64, 64)
    teacher = build_teacher(net)
    with torch.no_grad():
        first, second = teacher(images)["res5"], teacher(images)["res5"]
        assert torch.equal(first, second)
        assert not torch.equal(net(images)["res5"], net(images)["res5"])


def test_frozen_levels_of_a_transformer_are_the_same_in_training():
    net = make_bottom_up(SWIN, FREEZE_AT=2, DROP_PATH_RATE=0.9).train()
    frozen = ("patch_embed.", "layers_0.", "layers_1.")
    for key, parameter in net.net.named_parameters():
        assert parameter.requires_grad != key.startswith(frozen), key
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        first, second = net(images), net(images)
    for level in LEVELS:
        assert torch.equal(first[level], second[level]) == (level in ("res2", "res3")), level


def test_weights_of_the_whole_swin_network_load_by_name(tmp_path):
    full = timm.create_model(SWIN)
    torch.save(full.state_dict(), tmp_path / "w.pth")
    net = make_bottom_up(SWIN, WEIGHTS=str(tmp_path / "w.pth")).net
    for key, tensor in full.layers[2].state_dict().items():
        assert torch.equal(net.layers_2.state_dict()[key], tensor), key
