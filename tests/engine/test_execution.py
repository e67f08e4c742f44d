"""Faster or smaller ways to carry a model out give the same results."""

import copy
from functools import partial

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

import one_stage
from cascades import CASCADE
from soft_teacher.engine.ema import build_teacher
from soft_teacher.engine.execution import compile_parts, settle_execution
from soft_teacher.engine.forward import Batch, run_forward
from soft_teacher.engine.precision import Precision
from soft_teacher.modeling.folded_norms import FoldedConv2d
from tiny import labeled_view, plain_view, tiny_config


def shaken_model(seed: int = 0) -> nn.Module:
    """A model whose frozen norms do something, as those of trained weights do."""
    torch.manual_seed(seed)
    model = build_model(tiny_config()).train()
    for norm in model.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            for x in (norm.weight, norm.running_var):
                x.uniform_(0.5, 1.5)
            for x in (norm.bias, norm.running_mean):
                x.normal_(std=0.3)
    return model


def settled(model: nn.Module, **keys) -> nn.Module:
    """A copy of a model, carried out as the keys say."""
    other = copy.deepcopy(model)
    settle_execution(tiny_config(**keys), other)
    return other


def features_and_gradients(model: nn.Module) -> tuple[dict, dict]:
    """Feature maps of two images, and the gradients of a number made of all of them."""
    images = model.preprocess_image([labeled_view(1), labeled_view(2)]).tensor
    features = model.backbone(images.double())
    sum(x.square().mean() for x in features.values()).backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in features.items()}, gradients


WAYS = {
    "channels last": {"MODEL__CHANNELS_LAST": True},
    "folded norms": {"MODEL__FOLD_FROZEN_NORMS": True},
    "checkpointed": {"MODEL__BACKBONE__CHECKPOINT_ACTIVATIONS": True},
    "all": {
        "MODEL__CHANNELS_LAST": True,
        "MODEL__FOLD_FROZEN_NORMS": True,
        "MODEL__BACKBONE__CHECKPOINT_ACTIVATIONS": True,
    },
}


@pytest.mark.parametrize("keys", WAYS.values(), ids=WAYS.keys())
def test_features_gradients_and_names_stay_the_same(keys):
    # In float64, so that the order of sums does not matter.
    model = shaken_model().double()
    other = settled(model, **keys)
    assert list(other.state_dict()) == list(model.state_dict())
    features, gradients = features_and_gradients(model)
    found_features, found_gradients = features_and_gradients(other)
    torch.testing.assert_close(found_features, features, rtol=1e-9, atol=1e-12)
    assert gradients.keys() == found_gradients.keys()
    torch.testing.assert_close(found_gradients, gradients, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("keys", WAYS.values(), ids=WAYS.keys())
def test_a_step_still_learns(keys):
    model = settled(shaken_model(), **keys)
    with EventStorage():
        losses = model([labeled_view(1), labeled_view(2)])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_no_norm_touches_a_feature_map_once_folded(monkeypatch):
    model = settled(shaken_model(), MODEL__FOLD_FROZEN_NORMS=True)

    def refuse(self, x):
        raise AssertionError("a frozen norm was applied to a feature map")

    monkeypatch.setattr(FrozenBatchNorm2d, "forward", refuse)
    teacher = build_teacher(model)
    for each in (model, teacher):
        each.backbone(torch.rand(1, 3, 64, 64))


def test_a_folded_convolution_follows_its_weights():
    model = settled(shaken_model(), MODEL__FOLD_FROZEN_NORMS=True)
    convolution = next(x for x in model.modules() if isinstance(x, FoldedConv2d))
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        before = convolution.norm(nn.functional.conv2d(images, convolution.weight, None, 2, 3))
        torch.testing.assert_close(convolution(images), before, rtol=1e-4, atol=1e-5)
        convolution.weight.mul_(2)
        after = convolution.norm(nn.functional.conv2d(images, convolution.weight, None, 2, 3))
        torch.testing.assert_close(convolution(images), after, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after)


def kept_bytes(model: nn.Module) -> int:
    """Bytes of what the backbone's forward keeps for backward, weights aside."""
    weights = {x.data_ptr() for x in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.data_ptr() not in weights:
            kept[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = model.backbone(torch.rand(1, 3, 128, 128))
    assert outputs
    return sum(kept.values())


def test_checkpointing_keeps_less_for_backward():
    model = shaken_model()
    other = settled(model, MODEL__BACKBONE__CHECKPOINT_ACTIVATIONS=True)
    assert kept_bytes(other) < 0.7 * kept_bytes(model)


def test_what_does_not_go_with_the_model_is_refused():
    model = build_model(tiny_config(MODEL__RESNETS__NORM="BN", MODEL__BACKBONE__FREEZE_AT=0))
    with pytest.raises(ValueError, match=r"MODEL\.FOLD_FROZEN_NORMS"):
        settle_execution(tiny_config(MODEL__FOLD_FROZEN_NORMS=True), model)
    model.backbone.bottom_up = nn.Identity()
    with pytest.raises(ValueError, match=r"MODEL\.BACKBONE\.CHECKPOINT_ACTIVATIONS"):
        settle_execution(tiny_config(MODEL__BACKBONE__CHECKPOINT_ACTIVATIONS=True), model)


def losses_and_gradients(model: nn.Module, batch: list[dict]) -> tuple[dict, dict]:
    """Losses of a supervised step, and all gradients."""
    torch.manual_seed(0)
    model.zero_grad()
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in losses.items()}, gradients


TWO_STAGES = ["backbone", "proposal_generator.rpn_head"]


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (tiny_config, [*TWO_STAGES, "roi_heads.box_head"]),
        (
            partial(tiny_config, **CASCADE),
            [*TWO_STAGES, *(f"roi_heads.box_head.{i}" for i in range(3))],
        ),
        (partial(one_stage.config, "retinanet"), ["backbone", "head"]),
    ],
    ids=["Faster R-CNN", "cascade", "RetinaNet"],
)
def test_backbones_and_heads_are_compiled(config, parts):
    model = build_model(config())
    compile_parts(config(MODEL__COMPILE="aot_eager"), model)
    assert [k for k, x in model.named_modules() if x._compiled_call_impl is not None] == parts


def test_compiled_parts_compute_the_same_for_all_sizes():
    torch.manual_seed(0)
    model = build_model(tiny_config()).train()
    compiled = copy.deepcopy(model)
    compile_parts(tiny_config(MODEL__COMPILE="aot_eager"), compiled)
    assert list(compiled.state_dict()) == list(model.state_dict())
    for size in ((64, 80), (96, 128)):
        batch = [labeled_view(seed, size=size) for seed in (1, 2)]
        losses, gradients = losses_and_gradients(model, batch)
        found_losses, found_gradients = losses_and_gradients(compiled, batch)
        torch.testing.assert_close(found_losses, losses, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found_gradients, gradients, rtol=1e-3, atol=1e-4)


def test_models_are_compiled_only_if_asked():
    model = shaken_model()
    compile_parts(tiny_config(), model)
    assert all(x._compiled_call_impl is None for x in model.modules())


@pytest.mark.parametrize(
    ("amp", "amp_teacher", "expected"),
    [
        (False, False, ("float32", "float32", "float32")),
        (False, True, ("bfloat16", "float32", "float32")),
        (True, False, ("bfloat16", "bfloat16", "float32")),
    ],
)
def test_the_teacher_alone_can_detect_in_mixed_precision(amp, amp_teacher, expected):
    model = shaken_model()
    teacher = build_teacher(model)
    types = {}

    def remember(name):
        def hook(module, inputs, outputs):
            types[name] = str(outputs["p2"].dtype).removeprefix("torch.")

        return hook

    teacher.backbone.register_forward_hook(remember("teacher"))
    model.backbone.register_forward_hook(remember("student"))
    pooler = teacher.roi_heads.box_pooler

    def note_judging(module, inputs):
        types["judging"] = str(inputs[0][0].dtype).removeprefix("torch.")

    pooler.register_forward_pre_hook(note_judging)
    views = [plain_view(7)]
    with EventStorage():
        forward = run_forward(
            model,
            teacher,
            Precision("cpu", amp, amp_teacher),
            Batch([labeled_view(1)], views, views),
        )
    sum(forward.losses.values()).backward()
    assert (types["teacher"], types["student"], types["judging"]) == expected
