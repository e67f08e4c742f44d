"""Which sizes of images timm's networks take, and which networks are refused for theirs."""

import pytest
import torch
from detectron2.modeling import build_backbone
from detectron2.structures import ImageList

from tiny import tiny_config

timm = pytest.importorskip("timm")

# A network of each kind of windows that fail or resize other maps, and of what images' sides are
# multiples: windows of 8 tokens, blocks of 8 and 7, patches of 2, at stride 32.
WINDOWED = {
    "maxvit_rmlp_pico_rw_256": 8 * 32,
    "halonet26t": 8 * 32,
    "haloregnetz_b": 7 * 32,
    "mobilevitv2_050": 2 * 32,
}


def make_pyramid(name: str, out_indices: tuple[int, ...] = (1, 2, 3, 4), **timm_keys):
    cfg = tiny_config(
        MODEL__BACKBONE__NAME="build_timm_fpn_backbone",
        MODEL__TIMM__NAME=name,
        MODEL__TIMM__OUT_INDICES=out_indices,
    )
    for key, value in timm_keys.items():
        setattr(cfg.MODEL.TIMM, key, value)
    torch.manual_seed(0)
    return build_backbone(cfg)


def smallest_side(net: torch.nn.Module) -> int:
    """The first multiple of 32 whose images pass through a network at its promised strides."""
    for side in range(32, 512, 32):
        try:
            with torch.no_grad():
                levels = net(torch.zeros(1, 3, side, 2 * side))
        except (RuntimeError, AssertionError):
            continue
        strides = net.feature_info.reduction()
        if [x.shape[2:] for x in levels] == [(side // s, 2 * side // s) for s in strides]:
            return side
    raise AssertionError("none")


@pytest.mark.parametrize("name", WINDOWED)
def test_images_are_padded_to_the_smallest_size_that_the_network_takes(name):
    backbone = make_pyramid(name).eval()
    assert backbone.size_divisibility == WINDOWED[name] == smallest_side(backbone.bottom_up.net)
    # Of odd sizes, in a batch.
    images = [torch.rand(3, 61, 300), torch.rand(3, 83, 75)]
    batch = ImageList.from_tensors(images, backbone.size_divisibility).tensor
    with torch.no_grad():
        pyramid = backbone(batch)
    for level, stride in zip(("p2", "p3", "p4", "p5"), (4, 8, 16, 32), strict=True):
        assert pyramid[level].shape[2:] == (batch.shape[2] // stride, batch.shape[3] // stride)
        assert torch.isfinite(pyramid[level]).all()


@pytest.mark.parametrize(
    ("name", "out_indices", "reason"),
    [
        ("efficientformerv2_s0", (0, 1, 2, 3), "RuntimeError"),
        ("hiera_tiny_224", (0, 1, 2, 3), "RuntimeError"),
        ("coatnet_nano_rw_224", (1, 2, 3, 4), "RuntimeError"),
        ("botnet26t_256", (1, 2, 3, 4), "AssertionError"),
        # Its first convolutions lose the borders.
        ("inception_v3", (1, 2, 3, 4), r"levels of 96 x 160 pixels are .*not \[\(24, 40\)"),
    ],
)
def test_networks_for_images_of_one_size_are_refused(name, out_indices, reason):
    says = rf"(?s)MODEL\.TIMM\.NAME '{name}' does not take images of every size.*{reason}.*Choose"
    with pytest.raises(ValueError, match=says):
        make_pyramid(name, out_indices)


def test_networks_without_values_are_judged_too():
    with torch.device("meta"):
        assert make_pyramid("resnet18").size_divisibility == 32
        with pytest.raises(ValueError, match=r"MODEL\.TIMM\.NAME 'inception_v3'"):
            make_pyramid("inception_v3")


def test_levels_of_a_network_with_windows_are_frozen_like_others():
    bottom_up = make_pyramid("maxvit_rmlp_pico_rw_256", FREEZE_AT=2).bottom_up
    assert bottom_up.training
    for name, parameter in bottom_up.net.named_parameters():
        frozen = name.startswith(("stem.", "stages_0.", "stages_1."))
        assert parameter.requires_grad != frozen, name
