"""State outside `state_dict`: found, saved, restored, and untouched by a step that is skipped."""

from functools import partial

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.utils.events import EventStorage
from torch import nn

from soft_teacher.engine.checkpointing import SoftTeacherCheckpointer
from soft_teacher.engine.ema import EMATeacher
from soft_teacher.engine.hidden_state import HiddenState
from soft_teacher.engine.loader_stream import LoaderStream
from soft_teacher.engine.precision import Precision
from soft_teacher.engine.train_step import SoftTeacherStep
from tiny import NUM_CLASSES, labeled_view, tiny_config, tiny_model

RETINANET = {
    "MODEL__META_ARCHITECTURE": "RetinaNet",
    "MODEL__RETINANET__NUM_CLASSES": NUM_CLASSES,
    "MODEL__RETINANET__NUM_CONVS": 1,
    "MODEL__RETINANET__IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
}


def retinanet() -> nn.Module:
    torch.manual_seed(0)
    return build_model(tiny_config(**RETINANET)).train()


def fcos() -> nn.Module:
    """Detectron2 builds it without a config key of its own."""
    backbone = retinanet().backbone
    names = ["p2", "p3"]
    shapes = [backbone.output_shape()[x] for x in names]
    head = FCOSHead(
        input_shape=[ShapeSpec(channels=x.channels) for x in shapes],
        num_classes=NUM_CLASSES,
        conv_dims=[32],
    )
    return FCOS(
        backbone=backbone,
        head=head,
        head_in_features=names,
        num_classes=NUM_CLASSES,
        pixel_mean=[0.0] * 3,
        pixel_std=[255.0] * 3,
    ).train()


def forward(model: nn.Module, *seeds: int) -> None:
    with EventStorage():
        for seed in seeds:
            model([labeled_view(seed)])


@pytest.mark.parametrize("build", [retinanet, fcos])
def test_a_loss_normalizer_is_saved_and_restored(build, tmp_path):
    model = build()
    checkpointer = SoftTeacherCheckpointer(model, str(tmp_path))
    forward(model, 1, 2)
    checkpointer.save("model", iteration=1)
    expected = model.loss_normalizer
    assert expected not in (100, 300)

    # A model whose own training has gone another way since.
    other = build()
    checkpointer = SoftTeacherCheckpointer(other, str(tmp_path))
    forward(other, 3)
    assert other.loss_normalizer != expected
    checkpointer.load_training(str(tmp_path / "model.pth"))
    assert other.loss_normalizer == expected
    forward(model, 4)
    forward(other, 4)
    assert other.loss_normalizer == model.loss_normalizer != expected


def test_a_model_that_has_not_begun_is_restored_as_such(tmp_path):
    model = retinanet()
    checkpointer = SoftTeacherCheckpointer(model, str(tmp_path))
    checkpointer.save("model", iteration=0)
    forward(model, 1)
    checkpointer.load_training(str(tmp_path / "model.pth"))
    assert not hasattr(model, "loss_normalizer")


class Counting(nn.Module):
    """Keeps a number that it was built with, and two that change."""

    def __init__(self, threshold: float = 0.5):
        super().__init__()
        self.threshold = threshold
        self.num_calls = 0
        self.flag = False

    def forward(self) -> None:
        self.num_calls += 1
        self.flag = True
        self.average = 0.25 * self.num_calls


def test_any_number_that_changes_is_found_in_whatever_submodule():
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(Counting()))
    state = HiddenState(model)
    assert state.state_dict() == {}
    model[1][0]()
    assert state.state_dict() == {"1.0": {"num_calls": 1, "average": 0.25}}
    # What a config sets is the config's to say, also when training is resumed.
    other = nn.Sequential(nn.Linear(1, 1), nn.Sequential(Counting(threshold=0.9)))
    HiddenState(other).load_state_dict(state.state_dict())
    assert vars(other[1][0])["num_calls"] == 1
    assert other[1][0].threshold == 0.9
    assert other[1][0].average == 0.25


def test_the_models_of_soft_teacher_have_no_hidden_state():
    model = tiny_model()
    state = HiddenState(model)
    forward(model, 1)
    assert state.state_dict() == {}


@pytest.mark.parametrize("build", [retinanet, fcos])
def test_a_skipped_step_leaves_the_loss_normalizer_as_it_was(build, caplog):
    model = build()
    step = SoftTeacherStep(
        model,
        EMATeacher(model, 0.9),
        LoaderStream(lambda start: ([labeled_view(i)] for i in range(start, 100))),
        None,
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4),
        Precision("cpu", False),
    )
    update = model._ema_update
    with EventStorage() as storage:
        # In the first step the attribute comes into being, in the third it has been there.
        for i, poisoned in enumerate([True, False, True]):
            before = getattr(model, "loss_normalizer", None)
            model._ema_update = partial(poison, model, update) if poisoned else update
            step.iter = storage.iter = i
            step.run_step()
            assert (getattr(model, "loss_normalizer", None) == before) == poisoned
    assert step.num_skipped == 2
    assert torch.isfinite(torch.tensor(model.loss_normalizer))


def poison(model: nn.Module, update, name: str, value: float, initial_value: float) -> float:
    return update(name, float("nan"), initial_value)
