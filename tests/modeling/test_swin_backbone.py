"""Detectron2's Swin Transformer from YAML keys, as student and as teacher."""

import copy
import sys

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.swin import SwinTransformer
from detectron2.utils.events import EventStorage
from torchvision.ops import StochasticDepth

from soft_teacher.config import add_soft_teacher_config
from soft_teacher.engine.ema import build_teacher, update_average
from soft_teacher.modeling.backbones.swin import SwinBackbone, build_swin_backbone
from tiny import labeled_view, plain_view, tiny_model

SMALL = {"EMBED_DIM": 8, "DEPTHS": (2, 2, 2, 2), "NUM_HEADS": (1, 2, 2, 4), "WINDOW_SIZE": 4}
LEVELS = ["res2", "res3", "res4", "res5"]


def make_cfg(**swin_keys) -> CfgNode:
    cfg = get_cfg()
    add_soft_teacher_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_swin_fpn_backbone"
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    for key, value in {**SMALL, **swin_keys}.items():
        setattr(cfg.MODEL.SWIN, key, value)
    return cfg


def make_net(seed: int = 0, **swin_keys) -> SwinBackbone:
    torch.manual_seed(seed)
    return build_swin_backbone(make_cfg(**swin_keys), ShapeSpec(channels=3))


def images(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_pyramid_is_found_in_the_registry_and_has_five_levels():
    backbone = build_backbone(make_cfg())
    out = backbone(torch.rand(1, 3, 64, 96))
    assert {k: tuple(v.shape[1:]) for k, v in out.items()} == {
        "p2": (16, 16, 24),
        "p3": (16, 8, 12),
        "p4": (16, 4, 6),
        "p5": (16, 2, 3),
        "p6": (16, 1, 2),
    }
    assert backbone.size_divisibility == backbone.bottom_up.size_divisibility == 32


def test_one_stage_detectors_get_p3_to_p7():
    cfg = make_cfg(OUT_FEATURES=("res3", "res4", "res5"))
    cfg.MODEL.BACKBONE.NAME = "build_swin_p6p7_fpn_backbone"
    out = build_backbone(cfg)(torch.rand(1, 3, 64, 128))
    assert {k: tuple(v.shape[2:]) for k, v in out.items()} == {
        "p3": (8, 16),
        "p4": (4, 8),
        "p5": (2, 4),
        "p6": (1, 2),
        "p7": (1, 1),
    }
    cfg.MODEL.SWIN.OUT_FEATURES = LEVELS
    with pytest.raises(ValueError, match=r"MODEL\.SWIN\.OUT_FEATURES"):
        build_backbone(cfg)


@pytest.mark.parametrize("size", [(64, 96), (50, 71)])
def test_levels_are_those_of_detectron2s_class_by_other_names(size):
    net = make_net().eval()
    stock = SwinTransformer(
        embed_dim=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), window_size=4, drop_path_rate=0
    ).eval()
    stock.load_state_dict(net.state_dict(), strict=True)
    with torch.no_grad():
        expected, found = stock(images(*size)), net(images(*size))
    assert list(found) == list(net.output_shape()) == LEVELS
    for a, b, spec in zip(
        found.values(), expected.values(), net.output_shape().values(), strict=True
    ):
        assert torch.equal(a, b)
        # Swin pads by itself, so that sides are rounded up.
        assert a.shape[1:] == (spec.channels, *(-(-side // spec.stride) for side in size))


def test_stochastic_depth_grows_as_in_detectron2():
    pytest.importorskip("timm")
    net = make_net(DROP_PATH_RATE=0.3)
    stock = SwinTransformer(
        embed_dim=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), window_size=4, drop_path_rate=0.3
    )
    for layer, stock_layer in zip(net.layers, stock.layers, strict=True):
        for block, other in zip(layer.blocks, stock_layer.blocks, strict=True):
            rate = getattr(block.drop_path, "p", 0.0)
            assert rate == pytest.approx(getattr(other.drop_path, "drop_prob", 0.0))
    assert net.layers[3].blocks[1].drop_path.p == pytest.approx(0.3)


def test_a_dropped_branch_is_dropped_for_whole_images_and_the_rest_is_scaled_up():
    net = make_net(DROP_PATH_RATE=0.5)
    drop = net.layers[3].blocks[1].drop_path
    torch.manual_seed(0)
    out = drop(torch.ones(200, 4, 8))
    assert {tuple(x.unique().tolist()) for x in out} == {(0.0,), (2.0,)}


def test_the_teacher_drops_nothing_while_the_student_does():
    student = make_net(DROP_PATH_RATE=0.9).train()
    teacher = build_teacher(student)
    with torch.no_grad():
        first, second = (teacher(images(64, 64))["res5"] for _ in range(2))
        assert torch.equal(first, second)
        drawn = [student(images(64, 64))["res5"] for _ in range(2)]
        assert not torch.equal(*drawn)
        # What it does in training it does at random around the same network.
        assert torch.equal(student.eval()(images(64, 64))["res5"], first)


def test_the_teacher_is_a_copy_that_follows_by_its_moving_average():
    student = make_net(USE_CHECKPOINT=True)
    teacher = build_teacher(student)
    before = copy.deepcopy(student.state_dict())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    update_average(teacher, student, momentum=0.75)
    for key, value in teacher.state_dict().items():
        new = student.state_dict()[key]
        expected = 0.75 * before[key] + 0.25 * new if value.is_floating_point() else new
        torch.testing.assert_close(value, expected)
    # It computes with its own weights.
    alone = make_net()
    alone.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        assert torch.equal(teacher(images(64, 64))["res5"], alone.eval()(images(64, 64))["res5"])


@pytest.mark.parametrize(
    ("frozen_stages", "prefixes"),
    [
        (-1, ()),
        (0, ("patch_embed.",)),
        (2, ("patch_embed.", "layers.0.")),
        (5, ("patch_embed.", "layers.")),
    ],
)
def test_frozen_stages_stay_frozen_and_in_evaluation_mode(frozen_stages, prefixes):
    net = make_net(FROZEN_STAGES=frozen_stages, DROP_PATH_RATE=0.5)
    assert net.eval() is net and not any(m.training for m in net.modules())
    assert net.train() is net and net.training
    for key, parameter in net.named_parameters():
        assert parameter.requires_grad != key.startswith(prefixes), key
    for key, module in net.named_modules():
        if isinstance(module, StochasticDepth):
            assert module.training != key.startswith(prefixes), key


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_checkpointing_changes_no_gradient_of_two_batches_of_different_sizes(drop_path_rate):
    # The transposed size has as many tokens: a mix-up of the two would not raise an error.
    batches = images(64, 96), images(96, 64, seed=1)
    grads = []
    for use_checkpoint in (False, True):
        net = make_net(USE_CHECKPOINT=use_checkpoint, DROP_PATH_RATE=drop_path_rate).train()
        torch.manual_seed(1)
        sum(out.square().mean() for x in batches for out in net(x).values()).backward()
        grads.append({key: p.grad for key, p in net.named_parameters()})
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, msg=key)


def test_checkpointing_recomputes_blocks_in_the_backward_pass():
    calls = []
    net = make_net(USE_CHECKPOINT=True).train()
    net.layers[0].blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    out = net(images(64, 64))["res5"]
    assert len(calls) == 1
    out.sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("keys", [{}, {"OUT_FEATURES": ("res4", "res5")}, {"APE": True}])
def test_gradients_reach_every_parameter(keys):
    net = make_net(DROP_PATH_RATE=0.0, **keys).train()
    out = net(images(64, 64))
    assert list(out) == list(keys.get("OUT_FEATURES", LEVELS))
    # Every weight its own: the sum over a normed level is constant.
    sum((x * torch.randn_like(x)).sum() for x in out.values()).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


def test_channels_last_changes_nothing():
    net = make_net().eval()
    with torch.no_grad():
        expected = net(images(64, 96))
        net.to(memory_format=torch.channels_last)
        found = net(images(64, 96).to(memory_format=torch.channels_last))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


def test_a_network_without_values_can_be_built():
    with torch.device("meta"):
        net = make_net(DROP_PATH_RATE=0.2).to("meta")
    assert next(net.parameters()).is_meta


def test_a_detector_learns_from_images_of_odd_sizes_with_and_without_unlabeled_ones():
    overrides = {f"MODEL__SWIN__{key}": value for key, value in SMALL.items()}
    student = tiny_model(MODEL__BACKBONE__NAME="build_swin_fpn_backbone", **overrides)
    teacher = build_teacher(student)
    labeled = [labeled_view(0, size=(61, 83)), labeled_view(1, size=(75, 50))]
    views = [plain_view(2, size=(53, 77)), plain_view(3, size=(90, 41))]
    with EventStorage():
        supervised = student(labeled)
        losses = student(labeled, views, teacher.annotate(views))
    assert all(torch.isfinite(x) for x in losses.values())
    assert losses.keys() == {*supervised, *(f"{key}_unsup" for key in supervised)}
    sum(losses.values()).backward()
    for key, parameter in student.backbone.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
    found = student.eval()([plain_view(4, size=(37, 91))])
    assert found[0]["instances"].image_size == (37, 91)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"DEPTHS": (2, 2, 2)}, r"MODEL\.SWIN\.DEPTHS"),
        ({"NUM_HEADS": (3, 2, 2, 4)}, r"MODEL\.SWIN\.NUM_HEADS"),
        ({"OUT_FEATURES": ("p0", "p1", "p2", "p3")}, r"MODEL\.SWIN\.OUT_FEATURES"),
        ({"OUT_FEATURES": ("res2", "res3", "res4")}, r"MODEL\.SWIN\.OUT_FEATURES"),
        ({"OUT_FEATURES": ()}, r"MODEL\.SWIN\.OUT_FEATURES"),
        ({"FROZEN_STAGES": 6}, r"MODEL\.SWIN\.FROZEN_STAGES"),
        ({"DROP_PATH_RATE": 1.0}, r"MODEL\.SWIN\.DROP_PATH_RATE"),
    ],
)
def test_impossible_settings_name_their_key(keys, says):
    with pytest.raises(ValueError, match=says):
        make_net(**keys)


def test_without_timm_swin_trains_and_only_files_of_weights_need_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    net = make_net(DROP_PATH_RATE=0.5).train()
    sum(x.sum() for x in net(images(64, 64)).values()).backward()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ImportError, match=r"MODEL\.SWIN\.WEIGHTS needs timm: pip install"):
        make_net(WEIGHTS=str(tmp_path / "w.pth"))


def test_images_with_other_than_three_channels_are_refused():
    with pytest.raises(ValueError, match=r"MODEL\.PIXEL_MEAN"):
        build_swin_backbone(make_cfg(), ShapeSpec(channels=1))


def test_in_features_that_contradict_the_levels_are_refused():
    cfg = make_cfg()
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    with pytest.raises(ValueError, match=r"IN_FEATURES.*MODEL\.SWIN\.OUT_FEATURES"):
        build_backbone(cfg)
