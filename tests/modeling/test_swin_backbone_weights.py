"""Files of Swin weights: official, timm's, of detectors; resized to other windows."""

import math
import pickle

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from soft_teacher.config import add_soft_teacher_config
from soft_teacher.modeling.backbones.swin import build_swin_backbone

EMBED_DIM, DEPTHS, NUM_HEADS, WINDOW = 8, (2, 2, 2, 2), (1, 2, 2, 4), 4
LEVELS = ["res2", "res3", "res4", "res5"]


def make_cfg(**swin_keys):
    cfg = get_cfg()
    add_soft_teacher_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_swin_fpn_backbone"
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    small = {"EMBED_DIM": EMBED_DIM, "DEPTHS": DEPTHS, "NUM_HEADS": NUM_HEADS}
    for key, value in {**small, "WINDOW_SIZE": WINDOW, **swin_keys}.items():
        setattr(cfg.MODEL.SWIN, key, value)
    return cfg


def make_net(**swin_keys):
    return build_swin_backbone(make_cfg(**swin_keys), ShapeSpec(channels=3)).eval()


def official_state(window: int = WINDOW, ape: bool = False) -> dict[str, torch.Tensor]:
    """Random tensors with the names and shapes of Microsoft's classifiers."""
    torch.manual_seed(0)
    state = {
        "patch_embed.proj.weight": torch.randn(EMBED_DIM, 3, 4, 4) / 7,
        "patch_embed.proj.bias": torch.randn(EMBED_DIM),
        **norm("patch_embed.norm", EMBED_DIM),
    }
    if ape:
        state["absolute_pos_embed"] = torch.randn(1, 56 * 56, EMBED_DIM)
    for i, (depth, heads) in enumerate(zip(DEPTHS, NUM_HEADS, strict=True)):
        c = EMBED_DIM * 2**i
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            index = torch.randint(0, (2 * window - 1) ** 2, (window**2, window**2))
            state |= {
                **norm(f"{block}.norm1", c),
                f"{block}.attn.relative_position_bias_table": torch.randn(
                    (2 * window - 1) ** 2, heads
                ),
                f"{block}.attn.relative_position_index": index,
                **linear(f"{block}.attn.qkv", c, 3 * c),
                **linear(f"{block}.attn.proj", c, c),
                **norm(f"{block}.norm2", c),
                **linear(f"{block}.mlp.fc1", c, 4 * c),
                **linear(f"{block}.mlp.fc2", 4 * c, c),
            }
            if j % 2:
                state[f"{block}.attn_mask"] = torch.randn(4, window**2, window**2)
        if i < 3:
            state[f"layers.{i}.downsample.reduction.weight"] = torch.randn(2 * c, 4 * c) / c
            state |= norm(f"layers.{i}.downsample.norm", 4 * c)
    return state | norm("norm", c) | linear("head", c, 10)


def norm(name: str, channels: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.randn(channels), f"{name}.bias": torch.randn(channels)}


def linear(name: str, inside: int, outside: int) -> dict[str, torch.Tensor]:
    weight = torch.randn(outside, inside) / math.sqrt(inside)
    return {f"{name}.weight": weight, f"{name}.bias": torch.randn(outside)}


def timm_state(official: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same by timm's names: patches are merged at the start of a stage."""
    renamed = {}
    for key, tensor in official.items():
        for i in (0, 1, 2):
            key = key.replace(f"layers.{i}.downsample", f"layers.<{i + 1}>.downsample")
        key = key.replace("<", "").replace(">", "").replace("head.", "head.fc.")
        if not key.endswith(("relative_position_index", "attn_mask")):
            renamed[key] = tensor
    return renamed


def saved(tmp_path, content) -> str:
    torch.save(content, tmp_path / "w.pth")
    return str(tmp_path / "w.pth")


def features(net) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return net(torch.randn(1, 3, 128, 256, generator=generator))


def test_every_official_tensor_but_those_of_the_classifier_is_loaded(tmp_path):
    state = official_state()
    net = make_net(WEIGHTS=saved(tmp_path, {"model": state, "epoch": 300}))
    loaded = net.state_dict()
    nothing = torch.empty(0)
    left_out = {key for key in state if not torch.equal(loaded.get(key, nothing), state[key])}
    assert left_out == {
        key
        for key in state
        if key.startswith(("head.", "norm."))
        or key.endswith(("attn_mask", "relative_position_index"))
    }
    # What is left of the network: indices as Detectron2 makes them, and new norms.
    fresh = make_net().state_dict()
    for key in loaded.keys() - (state.keys() - left_out):
        assert torch.equal(loaded[key], fresh[key]), key


@pytest.mark.parametrize("layout", ["official", "timm"])
def test_official_and_timm_files_give_the_features_of_timms_own_network(tmp_path, layout):
    timm = pytest.importorskip("timm")
    reference = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=(128, 256),
        embed_dim=EMBED_DIM,
        depths=DEPTHS,
        num_heads=NUM_HEADS,
        window_size=WINDOW,
        num_classes=10,
        always_partition=True,
    ).eval()
    state = official_state()
    reference.load_state_dict(timm_state(state), strict=True)
    content = {"model": state} if layout == "official" else reference.state_dict()
    # Whole windows in every stage: only there does timm compute what the official code does.
    found = features(make_net(WEIGHTS=saved(tmp_path, content)))
    levels = []
    for layer in reference.layers:
        layer.register_forward_hook(lambda _module, _input, output: levels.append(output))
    features(reference)
    for level, expected in zip(found.values(), levels, strict=True):
        normed = nn.functional.layer_norm(expected, expected.shape[-1:]).permute(0, 3, 1, 2)
        torch.testing.assert_close(level, normed, rtol=1e-4, atol=1e-4)


def test_the_backbone_of_a_detector_is_loaded_with_its_norms(tmp_path):
    torch.manual_seed(1)
    detector = build_backbone(make_cfg())
    for parameter in detector.parameters():
        nn.init.normal_(parameter, std=0.2)
    state = {f"backbone.{key}": tensor for key, tensor in detector.state_dict().items()}
    content = {"model": {**state, "proposal_generator.rpn_head.conv.weight": torch.zeros(1)}}
    path = saved(tmp_path, content)
    expected = features(detector.bottom_up.eval())
    found = features(make_net(WEIGHTS=path))
    for key in LEVELS:
        assert torch.equal(found[key], expected[key])
    # A network with fewer levels leaves the norms of the others out.
    fewer = features(make_net(WEIGHTS=path, OUT_FEATURES=("res4", "res5")))
    assert list(fewer) == ["res4", "res5"] and torch.equal(fewer["res4"], expected["res4"])
    del content["model"]["backbone.bottom_up.norm1.weight"]
    with pytest.raises(ValueError, match=r"norm1\.weight is absent in the file"):
        make_net(WEIGHTS=saved(tmp_path, content))


def test_a_detector_of_the_model_zoo_is_loaded_from_its_pickle_of_arrays(tmp_path):
    torch.manual_seed(2)
    detector = build_backbone(make_cfg())
    for parameter in detector.parameters():
        nn.init.normal_(parameter, std=0.2)
    arrays = {f"backbone.{key}": x.numpy() for key, x in detector.state_dict().items()}
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    expected = features(detector.bottom_up.eval())
    found = features(make_net(WEIGHTS=str(path)))
    for key in LEVELS:
        assert torch.equal(found[key], expected[key])


def cubic(x: float) -> float:
    """Keys' kernel with a = -0.75."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def resampling(old: int, new: int) -> np.ndarray:
    """new,old weights of a bicubic resize of pixels, with the border repeated."""
    weights = np.zeros((new, old))
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            weights[i, min(max(tap, 0), old - 1)] += cubic(place - tap)
    return weights


@pytest.mark.parametrize("window", [3, 6])
def test_bias_tables_for_other_windows_are_resized_as_images(tmp_path, window):
    state = official_state()
    net = make_net(WEIGHTS=saved(tmp_path, {"model": state}), WINDOW_SIZE=window)
    old, new = 2 * WINDOW - 1, 2 * window - 1
    weights = resampling(old, new)
    tables = [key for key in state if key.endswith("bias_table")]
    assert len(tables) == sum(DEPTHS)
    for key in tables:
        image = state[key].double().numpy().reshape(old, old, -1)
        expected = np.einsum("yi,xj,ijh->yxh", weights, weights, image).reshape(new * new, -1)
        found = net.state_dict()[key]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
        # The bias of a token to itself is as it was.
        torch.testing.assert_close(found[len(found) // 2], state[key][len(state[key]) // 2])
    for key, parameter in net.named_parameters():
        assert key in tables or key not in state or torch.equal(parameter, state[key]), key
    assert features(net)["res5"].isfinite().all()


def test_the_position_embedding_of_a_classifier_becomes_an_image(tmp_path):
    state = official_state(ape=True)
    net = make_net(WEIGHTS=saved(tmp_path, {"model": state}), APE=True)
    row, column = 3, 11
    torch.testing.assert_close(
        net.absolute_pos_embed[0, :, row, column],
        state["absolute_pos_embed"][0, row * 56 + column],
    )


def test_files_that_do_not_fit_are_refused_with_the_names_of_the_tensors(tmp_path):
    state = official_state()

    def message(content, **keys) -> str:
        with pytest.raises(ValueError, match=r"MODEL\.SWIN\.WEIGHTS") as error:
            make_net(WEIGHTS=saved(tmp_path, content), **keys)
        return str(error.value)

    cut = {k: v for k, v in state.items() if k != "layers.2.blocks.1.mlp.fc2.bias"}
    assert "layers.2.blocks.1.mlp.fc2.bias is absent in the file, (32,) in MODEL.SWIN" in message(
        cut
    )
    more = {**state, "layers.2.blocks.2.norm1.weight": torch.zeros(32)}
    assert "layers.2.blocks.2.norm1.weight is (32,) in the file, absent in MODEL.SWIN" in message(
        more
    )
    assert "patch_embed.proj.weight is (8, 3, 4, 4) in the file, (16, 3, 4, 4)" in message(
        state, EMBED_DIM=16
    )
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    cropped = {**state, table: torch.zeros(48, 1)}
    assert f"{table} is (48, 1) in the file, (49, 1)" in message(cropped)
    assert "absolute_pos_embed" in message(official_state(ape=True))
    # As mmdetection names them; its order of merged channels is another one, too.
    assert "stages.0" in message({"stages.0.norm1.weight": torch.zeros(8)} | state)
    assert "dictionary of tensors" in message({"epoch": 3})


def test_missing_files_are_named_with_their_key():
    with pytest.raises(ValueError, match=r"MODEL\.SWIN\.WEIGHTS is 'no\.pth'.*no file"):
        make_net(WEIGHTS="no.pth")


class Attack:
    def __reduce__(self):
        return print, ("this ran",)


def test_weights_that_run_code_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"MODEL\.SWIN\.WEIGHTS.*not a file of tensors"):
        make_net(WEIGHTS=saved(tmp_path, {"model": Attack()}))
    path = tmp_path / "attack.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": Attack()}}))
    with pytest.raises(ValueError, match=r"MODEL\.SWIN\.WEIGHTS.*not a safe file of weights"):
        make_net(WEIGHTS=str(path))
    path.write_bytes(pickle.dumps({"model": {"a": 1}}))
    with pytest.raises(ValueError, match=r"MODEL\.SWIN\.WEIGHTS.*not a dictionary of arrays"):
        make_net(WEIGHTS=str(path))
    assert "this ran" not in capsys.readouterr().out
