"""One iteration: what it changes, what it skips, what it remembers."""

import copy
import gc
import logging
import signal
import weakref

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from soft_teacher.engine import train_step
from soft_teacher.engine.ema import EMATeacher
from soft_teacher.engine.loader_stream import LoaderStream
from soft_teacher.engine.precision import Precision
from soft_teacher.engine.train_step import SoftTeacherStep
from tiny import labeled_view, plain_view, tiny_model

EASY = {
    "SOFT_TEACHER__PSEUDO_LABELS__MIN_SCORE": 0.1,
    "SOFT_TEACHER__PSEUDO_LABELS__CLS_SCORE": 0.1,
    "SOFT_TEACHER__PSEUDO_LABELS__RPN_SCORE": 0.1,
    "SOFT_TEACHER__PSEUDO_LABELS__REG_VARIANCE": 10.0,
}


def labeled_stream():
    return LoaderStream(lambda start: ([labeled_view(start + i)] for i in range(1000)))


def unlabeled_stream():
    def build(start):
        for i in range(start, 1000):
            yield [{"weak": plain_view(500 + i), "strong": plain_view(500 + i)}]

    return LoaderStream(build)


def make_step(model, amp=False, lr=0.01, unlabeled=True, **kwargs) -> SoftTeacherStep:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return SoftTeacherStep(
        model,
        EMATeacher(model, 0.9),
        labeled_stream(),
        unlabeled_stream() if unlabeled else None,
        torch.optim.SGD(parameters, lr=lr, momentum=0.9),
        Precision("cpu", amp),
        **kwargs,
    )


def run(step: SoftTeacherStep, num_iters: int) -> EventStorage:
    with EventStorage(0) as storage:
        for i in range(num_iters):
            step.iter = storage.iter = i
            step.run_step()
    return storage


def state_of(model: nn.Module) -> dict:
    return copy.deepcopy(model.state_dict())


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def test_a_step_moves_the_student_and_the_teacher_follows_after_it():
    step = make_step(tiny_model(**EASY))
    before = state_of(step.student)
    run(step, 1)
    after = state_of(step.student)
    assert not same(before, after)
    # The first update keeps nothing of the teacher: the mean of all students so far.
    assert same(step.teacher.model.state_dict(), after)
    run(step, 1)
    expected = {
        k: torch.lerp(after[k], v, 0.5) if v.is_floating_point() else v
        for k, v in step.student.state_dict().items()
    }
    for key, value in step.teacher.model.state_dict().items():
        torch.testing.assert_close(value, expected[key])


def test_scalars_are_logged():
    storage = run(make_step(tiny_model(**EASY)), 2)
    logged = storage.latest()
    names = (
        "loss_cls loss_box_reg loss_rpn_cls loss_rpn_loc loss_cls_unsup loss_box_reg_unsup "
        "loss_rpn_cls_unsup loss_rpn_loc_unsup total_loss pseudo_boxes_rpn pseudo_boxes_cls "
        "pseudo_boxes_reg pseudo_score pseudo_variance background_weight ema_momentum data_time "
        "images_per_second grad_norm"
    )
    for name in names.split():
        assert name in logged, name
    assert logged["pseudo_boxes_cls"][0] > 0
    losses = [v for k, (v, _) in logged.items() if k.startswith("loss_")]
    assert logged["total_loss"][0] == pytest.approx(sum(losses), rel=1e-5)


def test_burn_in_uses_no_unlabeled_image():
    step = make_step(tiny_model(), burn_in_iters=2)
    storage = run(step, 3)
    assert step.unlabeled.num_consumed == 1
    assert step.labeled.num_consumed == 3
    assert storage.history("loss_cls_unsup").latest() >= 0
    assert len(storage.history("loss_cls_unsup").values()) == 1


def test_in_the_decay_the_first_images_of_each_batch_teach_and_none_at_its_end():
    step = make_step(tiny_model(), unlabeled_decay=lambda iteration: 2 - iteration)
    views = [plain_view(500 + i) for i in range(10)]
    pairs = [{"weak": x, "strong": x} for x in views]
    step.unlabeled = LoaderStream(lambda start: iter(zip(pairs[::2], pairs[1::2], strict=True)))
    fed = []
    forward = step.student.forward
    step.student.forward = lambda *args: fed.append(args) or forward(*args)
    storage = run(step, 3)
    assert step.unlabeled.num_consumed == 2
    assert step.labeled.num_consumed == 3
    assert len(storage.history("loss_cls_unsup").values()) == 2
    strong = [[x["image_id"] for x in args[1]] if len(args) > 1 else [] for args in fed]
    assert strong == [[500, 501], [502], []]


def test_supervised_training_is_the_same_step_without_unlabeled_images():
    step = make_step(tiny_model(), unlabeled=False)
    storage = run(step, 1)
    assert not any(k.endswith("_unsup") for k in storage.latest())
    assert step.teacher.num_updates == 1


class Poison:
    """Makes the student's losses bad in chosen iterations."""

    def __init__(self, step: SoftTeacherStep, how: str, iterations: set[int]):
        self.step, self.how, self.iterations = step, how, iterations
        self.forward = step.model.forward
        step.model.forward = self

    def __call__(self, *args, **kwargs):
        losses = self.forward(*args, **kwargs)
        if self.step.iter in self.iterations:
            if self.how == "raise":
                raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")
            if self.how == "gradient":
                # Finite in itself, with an infinite slope at zero.
                zero = self.step.student.roi_heads.box_predictor.cls_score.bias * 0
                losses["loss_cls"] = losses["loss_cls"] + zero.sqrt().sum()
            else:
                losses["loss_cls"] = losses["loss_cls"] * float(self.how)
        return losses


@pytest.mark.parametrize("how", ["nan", "inf", "raise", "gradient"])
def test_a_non_finite_value_reaches_neither_weights_nor_teacher(how, caplog):
    step = make_step(tiny_model(**EASY))
    run(step, 1)
    student, teacher = state_of(step.student), state_of(step.teacher.model)
    optimizer = copy.deepcopy(step.optimizer.state_dict())
    Poison(step, how, {0})
    with caplog.at_level(logging.WARNING):
        storage = run(step, 1)
    assert same(student, step.student.state_dict())
    assert same(teacher, step.teacher.model.state_dict())
    assert all(
        torch.equal(a["momentum_buffer"], b["momentum_buffer"])
        for a, b in zip(
            optimizer["state"].values(), step.optimizer.state_dict()["state"].values(), strict=True
        )
    )
    assert step.teacher.num_updates == 1
    assert storage.latest()["skipped_steps"][0] == 1
    names = {"nan": "loss_cls", "inf": "loss_cls", "raise": "Inf/NaN", "gradient": "cls_score.bias"}
    assert names[how] in caplog.text
    step.iter = 1
    run_after = state_of(step.student)
    with EventStorage(1):
        step.run_step()
    assert not same(run_after, step.student.state_dict())
    assert step.num_skipped_in_a_row == 0 and step.num_skipped == 1


def test_too_many_skipped_steps_in_a_row_stop_training():
    step = make_step(tiny_model(), max_skipped_steps=3)
    Poison(step, "nan", {0, 2, 3, 4, 5})
    with pytest.raises(FloatingPointError, match=r"3 iterations in a row.*loss_cls.*BASE_LR"):
        run(step, 6)
    assert step.iter == 4


def test_bfloat16_autocast_is_really_used_on_the_cpu():
    step = make_step(tiny_model(**EASY), amp=True)
    dtypes = []
    step.student.backbone.fpn_output2.register_forward_hook(
        lambda module, args, output: dtypes.append(output.dtype)
    )
    teacher_dtypes = []
    step.teacher.model.backbone.fpn_output2.register_forward_hook(
        lambda module, args, output: teacher_dtypes.append(output.dtype)
    )
    storage = run(step, 2)
    assert set(dtypes) == set(teacher_dtypes) == {torch.bfloat16}
    assert storage.latest()["pseudo_boxes_cls"][0] > 0
    assert step.num_skipped == 0
    assert all(p.dtype == torch.float32 for p in step.student.parameters())


def test_gradients_are_scaled_and_unscaled_again():
    """The scaler of CUDA's float16, here on the CPU with float32 gradients."""
    plain, scaled = (make_step(tiny_model()) for _ in range(2))
    scaled.precision.scaler = torch.amp.GradScaler("cpu", enabled=True)
    for step in (plain, scaled):
        torch.manual_seed(3)
        run(step, 1)
    for a, b in zip(plain.student.parameters(), scaled.student.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    scale = scaled.precision.scaler.get_scale()
    assert scale > 1
    Poison(scaled, "gradient", {0})
    run(scaled, 1)
    assert scaled.precision.scaler.get_scale() == scale / 2


def flags_of_another(monkeypatch, index: int, value: float) -> list[int]:
    """Let another process raise a flag; returns the number of agreements, one entry each."""
    agreements = []

    def agree(flags):
        agreements.append(len(flags))
        flags[index] = max(flags[index], value)
        return flags

    monkeypatch.setattr(train_step, "agree_on_flags", agree)
    return agreements


def test_a_stop_signal_of_another_process_is_known_after_the_step_that_it_came_in(monkeypatch):
    step = make_step(tiny_model(**EASY))
    run(step, 1)
    assert step.agreed_signal == 0
    before = state_of(step.student)
    agreements = flags_of_another(monkeypatch, 1, signal.SIGUSR2)
    run(step, 1)
    assert step.agreed_signal == signal.SIGUSR2
    assert len(agreements) == 1
    assert not same(before, step.student.state_dict())


class Unreadable:
    """A stream that fails at one of its batches."""

    def __init__(self, stream, position: int):
        self.stream, self.left = stream, position

    def __iter__(self):
        return self

    def __next__(self):
        self.left -= 1
        if self.left < 0:
            raise OSError("Cannot read the image here.png: it is a cat")
        return next(self.stream)


@pytest.mark.parametrize("where", ["labeled", "unlabeled", "another process"])
def test_a_step_without_images_leaves_all_as_the_last_step_did(where, monkeypatch):
    model, norm = tiny_model(**EASY), nn.BatchNorm2d(3)
    model.backbone.fpn_output2.add_module("live", norm)
    step = make_step(model)
    run(step, 2)
    before = copy.deepcopy((step.state_dict(), state_of(step.student)))
    random_state = torch.get_rng_state()
    statistics = norm.running_mean.clone()
    if where == "another process":
        agreements = flags_of_another(monkeypatch, 2, 1.0)

        def change_statistics(module, args):
            norm(torch.ones(2, 3, 2, 2))

        step.student.register_forward_pre_hook(change_statistics)
        message = "has no images"
    else:
        agreements = flags_of_another(monkeypatch, 2, 0.0)
        stream = getattr(step, where)
        stream._iterator = Unreadable(stream._iterator, 0)
        message = r"has no images: .*here\.png: it is a cat\. .*--resume"
    with pytest.raises(train_step.UnreadableDataError, match=message):
        run(step, 1)
    assert len(agreements) == 1
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(norm.running_mean, statistics)
    after = (step.state_dict(), step.student.state_dict())
    for name in ("labeled", "unlabeled"):
        assert after[0][name] == before[0][name]
        assert after[0][name]["num_consumed"] == 2
    assert same(before[1], after[1])
    assert next(step.labeled)[0]["file_name"] == "2.png"
    assert next(step.unlabeled)[0]["weak"]["file_name"] == "502.png"


def test_observers_see_what_the_student_saw():
    step = make_step(tiny_model(**EASY))
    seen = []
    step.observers = [lambda *args: seen.append(args)]
    run(step, 2)
    assert [x[0] for x in seen] == [0, 1]
    assert seen[1][1][0]["file_name"] == "501.png"
    assert "pseudo_boxes_cls" in seen[1][3].statistics


def test_guidance_is_gone_after_the_step():
    """By reference count alone: it holds feature maps, which must not wait for the collector."""
    step = make_step(tiny_model(**EASY))
    seen = []
    step.observers = [lambda *args: seen.append(weakref.ref(args[3]))]
    gc.disable()
    try:
        run(step, 1)
        assert seen[0]() is None
    finally:
        gc.enable()


def test_gradients_whose_norm_overflows_do_not_reach_the_weights():
    """Each finite, so that GradScaler alone would let them pass."""
    step = make_step(tiny_model())
    step.precision.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = state_of(step.student)
    step.precision.unscaled_grad_norm = lambda optimizer: (
        step.precision.scaler.unscale_(optimizer),
        torch.tensor(float("inf")),
    )[1]
    run(step, 1)
    assert same(before, step.student.state_dict())
    assert step.precision.scaler.get_scale() == 2.0


def test_a_skipped_step_leaves_live_batch_norms_as_they_were():
    model = tiny_model()
    model.backbone.fpn_output2.add_module("live", nn.BatchNorm2d(32))
    norm = model.backbone.fpn_output2.live
    norm.running_mean.fill_(0.5)
    step = make_step(model, unlabeled=False)

    def forward_with_norm(*args, **kwargs):
        norm(torch.full((1, 32, 2, 2), float("nan") if step.iter == 0 else 1.0))
        losses = type(model).forward(model, *args, **kwargs)
        return {k: v * (float("nan") if step.iter == 0 else 1.0) for k, v in losses.items()}

    model.forward = forward_with_norm
    run(step, 1)
    assert step.num_skipped == 1
    assert torch.equal(norm.running_mean, torch.full((32,), 0.5))
    assert torch.equal(norm.running_var, torch.ones(32))


def test_state_counts_consumed_batches_and_resumes_the_stream():
    step = make_step(tiny_model())
    run(step, 3)
    other = make_step(tiny_model())
    other.load_state_dict(copy.deepcopy(step.state_dict()))
    assert next(other.labeled)[0]["file_name"] == next(step.labeled)[0]["file_name"] == "3.png"
    assert next(other.unlabeled)[0]["weak"]["file_name"] == "503.png"
    assert other.teacher.num_updates == 3
