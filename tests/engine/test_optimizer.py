"""SOLVER.OPTIMIZER: what decays, what is clipped, and how a training with it is resumed."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import CycleBatchNormList, get_norm
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer as build_detectron2s
from torch import nn

import htc_plus_plus
from resumed_trainings import RESUMED, WHOLE, resume, train
from soft_teacher.engine.optimizer import build_optimizer
from soft_teacher.engine.trainer import SoftTeacherTrainer
from tiny import tiny_config
from tiny_training import assert_same, checkpoint, write_config

SWIN = {**htc_plus_plus.SWIN, "MODEL.SWIN.DROP_PATH_RATE": 0.3}
ADAMW = {**htc_plus_plus.ADAMW, "SOLVER.WEIGHT_DECAY": 0.05}
STOP, MAX_ITER = 2, 4


def keys(*sections: dict) -> dict:
    """Config keys as arguments."""
    return {key.replace(".", "__"): x for section in sections for key, x in section.items()}


def settings(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict]:
    """What holds for each parameter that is trained, by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: {key: x for key, x in group.items() if key != "params"}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def build(cfg: CfgNode) -> tuple[nn.Module, dict[str, dict], torch.optim.Optimizer]:
    model = build_model(cfg)
    optimizer = SoftTeacherTrainer.build_optimizer(cfg, model)
    return model, settings(optimizer, model), optimizer


def test_sgd_is_detectron2s_own():
    cfg = tiny_config(SOLVER__WEIGHT_DECAY_NORM=0.0, SOLVER__BIAS_LR_FACTOR=2.0)
    model, found, optimizer = build(cfg)
    expected = build_detectron2s(cfg, model)
    assert type(optimizer) is type(expected) is torch.optim.SGD
    assert found == settings(expected, model)


def test_adamw_decays_all_but_norms_and_position_embeddings():
    cfg = tiny_config(**keys(SWIN, ADAMW), MODEL__SWIN__APE=True, MODEL__SWIN__FROZEN_STAGES=0)
    model, found, optimizer = build(cfg)
    assert isinstance(optimizer, torch.optim.AdamW)
    expected = {}
    for name, parameter in model.named_parameters():
        owner, _, last = name.rpartition(".")
        is_norm = isinstance(model.get_submodule(owner), nn.LayerNorm | nn.GroupNorm)
        is_position = last in ("relative_position_bias_table", "absolute_pos_embed")
        if parameter.requires_grad:
            expected[name] = 0.0 if is_norm or is_position else 0.05
    assert {name: x["weight_decay"] for name, x in found.items()} == expected
    assert {(x["lr"], x["betas"]) for x in found.values()} == {(1e-3, (0.9, 0.999))}
    # Some of each kind: a table, an embedding, a level's norm, a norm of the pyramid, a bias.
    backbone = "backbone.bottom_up."
    assert expected[f"{backbone}layers.2.blocks.1.attn.relative_position_bias_table"] == 0
    assert expected[f"{backbone}absolute_pos_embed"] == expected[f"{backbone}norm3.bias"] == 0
    assert expected["backbone.fpn_lateral2.norm.weight"] == 0
    assert expected[f"{backbone}layers.0.blocks.0.mlp.fc1.bias"] == 0.05
    assert not any(name.startswith(f"{backbone}patch_embed") for name in expected)


def test_adamw_lets_norms_decay_if_the_config_says_so():
    _, found, _ = build(tiny_config(**keys(SWIN, ADAMW), SOLVER__WEIGHT_DECAY_NORM=0.02))
    assert found["backbone.bottom_up.norm3.weight"]["weight_decay"] == 0.02
    assert found["backbone.fpn_lateral2.norm.weight"]["weight_decay"] == 0.02


@pytest.mark.parametrize("of_norms", [0.0, 0.02])
@pytest.mark.parametrize("of_biases", [None, 0.03])
def test_detectron2s_own_norms_decay_as_its_group_norms_do(of_norms, of_biases):
    cfg = tiny_config(**keys(ADAMW), SOLVER__WEIGHT_DECAY_NORM=of_norms)
    cfg.SOLVER.WEIGHT_DECAY_BIAS = of_biases

    def decays(norm: nn.Module) -> dict[str, float]:
        head = nn.Sequential(norm, nn.Conv2d(8, 8, 1))
        found = settings(build_optimizer(cfg, head), head)
        return {name: x["weight_decay"] for name, x in found.items()}

    expected = decays(nn.GroupNorm(2, 8))
    assert (expected["0.weight"], expected["1.weight"]) == (of_norms, 0.05)
    assert decays(get_norm("LN", 8)) == expected
    assert decays(CycleBatchNormList(2, num_features=8)) == expected


def test_the_layer_norms_of_a_pyramid_do_not_decay():
    _, found, _ = build(tiny_config(**keys(ADAMW), MODEL__FPN__NORM="LN"))
    norms = [name for name in found if name.startswith("backbone.fpn") and "norm" in name]
    assert "backbone.fpn_lateral2.norm.weight" in norms
    assert {found[name]["weight_decay"] for name in norms} == {0.0}
    assert found["backbone.fpn_lateral2.weight"]["weight_decay"] == 0.05


TIMM = {
    "MODEL.BACKBONE.NAME": "build_timm_fpn_backbone",
    "MODEL.TIMM.OUT_INDICES": (0, 1, 2, 3),
}


# timm renames the modules of the first, and wraps the second.
@pytest.mark.parametrize(
    ("name", "parts", "some"),
    [
        (
            "swinv2_tiny_window8_256",
            (".cpb_mlp.", ".logit_scale"),
            "layers_3.blocks.1.attn.cpb_mlp.0.bias",
        ),
        ("mvitv2_tiny", (".rel_pos_h", ".rel_pos_w"), "model.stages.3.blocks.1.attn.rel_pos_h"),
    ],
)
def test_position_biases_of_timms_networks_do_not_decay_either(name, parts, some):
    pytest.importorskip("timm")
    cfg = tiny_config(**keys(TIMM, ADAMW), MODEL__TIMM__NAME=name, MODEL__TIMM__FREEZE_AT=1)
    model = build_model(cfg)
    drawn = torch.get_rng_state()
    found = settings(build_optimizer(cfg, model), model)
    assert torch.equal(torch.get_rng_state(), drawn)
    expected = {}
    for key, parameter in model.named_parameters():
        owner = model.get_submodule(key.rpartition(".")[0])
        is_norm = isinstance(owner, nn.LayerNorm | nn.GroupNorm)
        if parameter.requires_grad:
            expected[key] = 0.0 if is_norm or any(part in key for part in parts) else 0.05
    assert {key: x["weight_decay"] for key, x in found.items()} == expected
    assert expected[f"backbone.bottom_up.net.{some}"] == 0


def test_sgd_with_timms_networks_is_detectron2s_own_too():
    pytest.importorskip("timm")
    cfg = tiny_config(**keys(TIMM), MODEL__TIMM__NAME="tiny_vit_5m_224", MODEL__FPN__NORM="LN")
    model, found, _ = build(cfg)
    assert model.backbone.bottom_up.parameters_without_decay()
    assert found == settings(build_detectron2s(cfg, model), model)


def test_norms_of_timms_levels_do_not_decay():
    pytest.importorskip("timm")
    cfg = tiny_config(**keys(TIMM, ADAMW), MODEL__TIMM__NAME="convnext_atto")
    _, found, _ = build(cfg)
    norms = [name for name in found if "norm" in name]
    assert "backbone.bottom_up.norms.res5.weight" in norms
    assert {found[name]["weight_decay"] for name in norms} == {0.0}


@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
@pytest.mark.parametrize(("kind", "clipped"), [("value", [1.0, -1.0]), ("norm", [0.8, -0.6])])
def test_gradients_are_clipped_as_detectron2_does(name, kind, clipped):
    cfg = tiny_config(SOLVER__OPTIMIZER=name)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = kind
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    model = nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(cfg, model)
    model.weight.grad = torch.tensor([[4.0, -3.0]])
    optimizer.step()
    torch.testing.assert_close(model.weight.grad[0], torch.tensor(clipped))


def test_other_optimizers_are_refused():
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER is 'LION'.*ADAMW"):
        build_optimizer(tiny_config(SOLVER__OPTIMIZER="LION"), nn.Linear(1, 1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training with AdamW and Swin, of which every iteration is saved."""
    folder = tmp_path_factory.mktemp("adamw")
    clipping = {"SOLVER.CLIP_GRADIENTS.ENABLED": True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01}
    config = write_config(folder, **keys(SWIN, ADAMW, clipping))
    train(config, folder / "whole", *WHOLE, "SOLVER.MAX_ITER", MAX_ITER)
    return config, folder


def test_a_training_with_adamw_and_stochastic_depth_resumes_exactly(trained):
    config, folder = trained
    resume(config, folder / "whole", STOP, folder / "on", *RESUMED, "SOLVER.MAX_ITER", MAX_ITER)
    expected = checkpoint(folder / "whole")
    assert_same(checkpoint(folder / "on"), expected)
    states = expected["trainer"]["_trainer"]["optimizer"]["state"]
    assert states and all(x["step"] == MAX_ITER for x in states.values())
    assert any(x["exp_avg_sq"].any() for x in states.values())


def test_a_training_is_not_resumed_with_another_optimizer(trained, tmp_path):
    config, folder = trained
    options = [*RESUMED, "SOLVER.MAX_ITER", MAX_ITER]
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER is 'SGD'.*trained with 'ADAMW'"):
        resume(config, folder / "whole", STOP, tmp_path / "a", *options, "SOLVER.OPTIMIZER", "SGD")

    def of_sgd(content: dict) -> None:
        for group in content["trainer"]["_trainer"]["optimizer"]["param_groups"]:
            del group["betas"]
            group["momentum"] = 0.9

    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER is 'ADAMW'.*trained with 'SGD'"):
        resume(config, folder / "whole", STOP, tmp_path / "b", *options, change=of_sgd)
    # Neither is it after other settings of the optimizer were accepted, which go to its groups.
    accepted = ["SOFT_TEACHER.RESUME_WITH_CHANGES", True, "SOLVER.WEIGHT_DECAY", 0.01]
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER is 'ADAMW'.*trained with 'SGD'"):
        resume(config, folder / "whole", STOP, tmp_path / "c", *options, *accepted, change=of_sgd)
