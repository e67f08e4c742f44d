"""HTC++'s layer behind the last stage of Swin, against torch's attention step by step."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torchvision.ops import StochasticDepth

from soft_teacher.engine.ema import build_teacher
from soft_teacher.engine.optimizer import build_optimizer
from soft_teacher.modeling.backbones.global_attention import GlobalAttention
from soft_teacher.modeling.backbones.swin import SwinBackbone, build_swin_backbone
from tiny import tiny_config

CHANNELS, HEADS = 64, 4
SWIN = {
    "MODEL.BACKBONE.NAME": "build_swin_fpn_backbone",
    "MODEL.SWIN.EMBED_DIM": 8,
    "MODEL.SWIN.DEPTHS": (2, 2, 2, 2),
    "MODEL.SWIN.NUM_HEADS": (1, 2, 2, HEADS),
    "MODEL.SWIN.WINDOW_SIZE": 4,
}
ENABLED = {"MODEL.SWIN.GLOBAL_ATTENTION.ENABLED": True}


def swin_cfg(**overrides) -> CfgNode:
    return tiny_config(**{**SWIN, **ENABLED, **overrides})


def make_net(**overrides) -> SwinBackbone:
    torch.manual_seed(0)
    return build_swin_backbone(swin_cfg(**overrides), ShapeSpec(channels=3))


def random_layer(drop_path_rate: float = 0.0) -> GlobalAttention:
    torch.manual_seed(0)
    layer = GlobalAttention(CHANNELS, HEADS, drop_path_rate)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def images(*size: int) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


def by_steps(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The layer's output N,C,H,W by its weights, from torch's functions alone."""

    def norm(tokens, name):
        return F.layer_norm(
            tokens, (CHANNELS,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5
        )

    def linear(tokens, name):
        return F.linear(tokens, state[f"{name}.weight"], state[f"{name}.bias"])

    out = []
    for image in x:
        tokens = image.reshape(CHANNELS, -1).T  # T,C
        qkv = F.linear(
            norm(tokens, "norm1"),
            state["attention.in_proj_weight"],
            state["attention.in_proj_bias"],
        )
        # heads,T,C/heads each
        q, k, v = (t.reshape(len(tokens), HEADS, -1).transpose(0, 1) for t in qkv.chunk(3, dim=1))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(len(tokens), -1)
        tokens = tokens + linear(seen, "attention.out_proj")
        hidden = F.gelu(linear(norm(tokens, "norm2"), "mlp.0"))
        tokens = norm(tokens + linear(hidden, "mlp.2"), "norm")
        out.append(tokens.T.reshape(image.shape))
    return torch.stack(out)


@pytest.mark.parametrize("grad", [True, False])
def test_the_layer_is_attention_and_mlp_each_behind_a_norm_and_added(grad):
    layer = random_layer().double().eval()
    x = torch.randn(2, CHANNELS, 3, 5, dtype=torch.float64)
    expected = by_steps(layer.state_dict(), x)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x).detach(), expected)
    assert layer.mlp[0].out_features == 4 * CHANNELS


def test_the_layer_is_that_of_torchs_encoder_with_a_norm_behind():
    layer = random_layer().eval()
    twin = torch.nn.TransformerEncoderLayer(
        CHANNELS, HEADS, 4 * CHANNELS, 0.0, "gelu", batch_first=True, norm_first=True
    ).eval()
    names = {"attention.": "self_attn.", "mlp.0.": "linear1.", "mlp.2.": "linear2."}
    state = {}
    for key, value in layer.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        if not key.startswith("norm."):
            state[key] = value
    twin.load_state_dict(state, strict=True)
    x = torch.randn(2, CHANNELS, 3, 5)
    with torch.no_grad():
        expected = layer.norm(twin(x.flatten(2).transpose(1, 2)))
        torch.testing.assert_close(layer(x), expected.transpose(1, 2).reshape(x.shape))


def test_every_place_sees_every_other_one_of_its_image():
    layer = random_layer().eval()
    x = torch.randn(2, CHANNELS, 3, 5, requires_grad=True)
    # A weighted sum: the plain sum of a normed place is constant.
    (layer(x)[0, :, 0, 0] * torch.randn(CHANNELS)).sum().backward()
    seen = x.grad.abs().sum(dim=1) > 0
    assert seen[0].all() and not seen[1].any()


def test_only_the_last_level_is_changed_and_by_the_layer_alone():
    net = make_net().eval()
    plain = make_net(**{"MODEL.SWIN.GLOBAL_ATTENTION.ENABLED": False}).eval()
    state = {k: x for k, x in net.state_dict().items() if not k.startswith("global_attention.")}
    assert len(state) < len(net.state_dict())
    plain.load_state_dict(state, strict=True)
    assert net.output_shape() == plain.output_shape()
    with torch.no_grad():
        found, before = net(images(64, 96)), plain(images(64, 96))
        assert all(torch.equal(found[name], before[name]) for name in ("res2", "res3", "res4"))
        expected = by_steps(net.global_attention.state_dict(), before["res5"])
        torch.testing.assert_close(found["res5"], expected)
    assert net.global_attention.attention.num_heads == HEADS


def test_it_is_off_unless_the_config_says_so():
    keys = {
        "MODEL.SWIN.GLOBAL_ATTENTION.ENABLED": tiny_config().MODEL.SWIN.GLOBAL_ATTENTION.ENABLED
    }
    assert make_net(**keys).global_attention is None


def test_the_student_drops_its_branches_at_random_and_the_teacher_does_not():
    student = make_net(**{"MODEL.SWIN.DROP_PATH_RATE": 0.0}).train()
    assert student.global_attention.drop_path.p == 0.3
    student.global_attention.drop_path.p = 0.9
    teacher = build_teacher(student)
    with torch.no_grad():
        first, second = (teacher(images(64, 64))["res5"] for _ in range(2))
        assert torch.equal(first, second)
        drawn = [student(images(64, 64))["res5"] for _ in range(8)]
        assert any(not torch.equal(drawn[0], x) for x in drawn[1:])


def test_a_branch_is_dropped_for_whole_images():
    layer = random_layer(drop_path_rate=0.5).train()
    assert isinstance(layer.drop_path, StochasticDepth) and layer.drop_path.mode == "row"
    x = torch.randn(1, CHANNELS, 2, 2).repeat(400, 1, 1, 1)
    with torch.no_grad():
        kinds = layer(x).flatten(1).round(decimals=4).unique(dim=0)
    # Each of two branches is there or not.
    assert len(kinds) == 4


def test_its_norms_do_not_decay_and_its_matrices_do():
    net = make_net()
    cfg = swin_cfg(SOLVER__OPTIMIZER="ADAMW", SOLVER__WEIGHT_DECAY=0.05)
    names = {id(p): name for name, p in net.named_parameters()}
    decay = {
        names[id(p)].removeprefix("global_attention."): group["weight_decay"]
        for group in build_optimizer(cfg, net).param_groups
        for p in group["params"]
        if names[id(p)].startswith("global_attention.")
    }
    free = {f"{norm}.{kind}" for norm in ("norm", "norm1", "norm2") for kind in ("weight", "bias")}
    assert {name for name, x in decay.items() if x == 0.0} == free
    assert {x for name, x in decay.items() if name not in free} == {0.05}
    assert "attention.in_proj_weight" in decay


def test_it_starts_afresh_with_weights_of_a_classifier_and_is_loaded_with_those_of_a_detector(
    tmp_path,
):
    pytest.importorskip("timm")
    without = make_net(**{"MODEL.SWIN.GLOBAL_ATTENTION.ENABLED": False})
    torch.save(without.state_dict(), tmp_path / "without.pth")
    fresh = make_net()
    net = make_net(**{"MODEL.SWIN.WEIGHTS": str(tmp_path / "without.pth")})
    assert torch.equal(net.norm3.weight, without.norm3.weight)
    torch.testing.assert_close(
        net.global_attention.norm1.weight, fresh.global_attention.norm1.weight
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    detector = {f"backbone.bottom_up.{key}": x for key, x in net.state_dict().items()}
    torch.save({"model": detector}, tmp_path / "with.pth")
    loaded = make_net(**{"MODEL.SWIN.WEIGHTS": str(tmp_path / "with.pth")})
    for key, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    # A layer that the network lacks is not lost unnoticed, nor is half a layer taken.
    with pytest.raises(ValueError, match="global_attention"):
        make_net(
            **{
                "MODEL.SWIN.GLOBAL_ATTENTION.ENABLED": False,
                "MODEL.SWIN.WEIGHTS": str(tmp_path / "with.pth"),
            }
        )
    half = copy.deepcopy(detector)
    del half["backbone.bottom_up.global_attention.mlp.0.weight"]
    torch.save({"model": half}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match=r"global_attention\.mlp\.0\.weight"):
        make_net(**{"MODEL.SWIN.WEIGHTS": str(tmp_path / "half.pth")})


def test_a_rate_that_is_no_probability_names_its_key():
    with pytest.raises(ValueError, match=r"MODEL\.SWIN\.GLOBAL_ATTENTION\.DROP_PATH_RATE"):
        make_net(**{"MODEL.SWIN.GLOBAL_ATTENTION.DROP_PATH_RATE": 1.0})


def test_a_network_without_values_can_be_built():
    with torch.device("meta"):
        net = make_net().to("meta")
    assert all(parameter.is_meta for parameter in net.parameters())
