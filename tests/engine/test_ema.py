"""The teacher is an exponential moving average of the student."""

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from oracle import load_oracle
from soft_teacher.engine.ema import EMATeacher, build_teacher, ema_momentum, update_average


def small_model(case: dict, prefix: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    names = {"0": "fc", "1": "bn"}
    state = {key: case[f"{prefix}_{names[key[0]]}_{key[2:]}"] for key in model.state_dict()}
    model.load_state_dict(state)
    return model


def test_parameters_are_averaged_as_in_the_reference():
    case = load_oracle("f_ema")
    student, teacher = small_model(case, "student"), small_model(case, "teacher_before")
    expected = [small_model(case, f"mmdet_teacher_after{n}") for n in (1, 10)]
    keep = 1 - float(case["mmdet_momentum"])
    update_average(teacher, student, keep)
    for found, wanted in zip(teacher.parameters(), expected[0].parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    for _ in range(9):
        update_average(teacher, student, keep)
    for found, wanted in zip(teacher.parameters(), expected[1].parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_running_statistics_are_averaged_and_counters_copied():
    case = load_oracle("f_ema")
    student, teacher = small_model(case, "student"), small_model(case, "teacher_before")
    student[1].num_batches_tracked.fill_(41)
    wanted = small_model(case, "mmdet_withbuffers_after1")
    update_average(teacher, student, 1 - float(case["mmdet_momentum"]))
    torch.testing.assert_close(teacher[1].running_mean, wanted[1].running_mean)
    torch.testing.assert_close(teacher[1].running_var, wanted[1].running_var)
    assert int(teacher[1].num_batches_tracked) == 41


def test_momentum_starts_as_a_running_mean():
    case = load_oracle("f_ema")
    found = torch.tensor([ema_momentum(t, 0.999) for t in range(2000)], dtype=torch.float64)
    torch.testing.assert_close(found, case["ms_momentum_warmup0"].double())
    student = nn.Linear(2, 2)
    teacher = EMATeacher(student, momentum=0.999)
    weights = []
    for _ in range(5):
        with torch.no_grad():
            student.weight.normal_()
        weights.append(student.weight.detach().clone())
        teacher.update(student)
    torch.testing.assert_close(teacher.model.weight, torch.stack(weights).mean(dim=0))


def test_without_averaging_the_teacher_equals_the_student():
    student = nn.Linear(2, 2)
    teacher = EMATeacher(student, momentum=0.0)
    for _ in range(3):
        with torch.no_grad():
            student.weight.normal_()
        teacher.update(student)
        assert torch.equal(teacher.model.weight, student.weight)


def test_the_teacher_is_frozen_and_in_eval_mode_and_leaves_the_student_alone():
    student = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    teacher = build_teacher(student)
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    assert student.training


def frozen_start() -> nn.Sequential:
    """A frozen convolution and norm, then trained ones."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1).requires_grad_(False), FrozenBatchNorm2d(2), nn.Conv2d(2, 2, 1)
    )
    return model.append(nn.BatchNorm2d(2))


def test_updates_pass_over_what_is_frozen_and_equal_alone(monkeypatch):
    student = frozen_start()
    teacher = EMATeacher(student, momentum=0.9)
    before = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    touched: list[int] = []
    lerp = torch._foreach_lerp_

    def spy(averages, sources, weight):
        touched.extend(x.data_ptr() for x in averages)
        lerp(averages, sources, weight)

    monkeypatch.setattr(torch, "_foreach_lerp_", spy)
    for _ in range(20):
        with torch.no_grad():
            student[2].weight.normal_()
        teacher.update(student)
    state = teacher.model.state_dict()
    averaged = {k for k, v in state.items() if v.data_ptr() in touched}
    assert averaged == {f"2.{x}" for x in ("weight", "bias")} | {
        f"3.{x}" for x in ("weight", "bias", "running_mean", "running_var")
    }
    for name in ("0.weight", "0.bias", "1.running_var"):
        assert torch.equal(state[name], before[name])


def test_a_frozen_entry_that_differs_still_follows_the_student():
    # As after a change of MODEL.BACKBONE.FREEZE_AT in the middle of a training.
    student = frozen_start()
    teacher = EMATeacher(student, momentum=0.5)
    for _ in range(3):
        teacher.update(student)
    state = {k: v + 1 if k == "0.weight" else v for k, v in student.state_dict().items()}
    teacher.model.load_state_dict(state)
    teacher.load_state_dict({"num_updates": 9})
    for _ in range(2):
        teacher.update(student)
    difference = teacher.model[0].weight - student[0].weight
    torch.testing.assert_close(difference, torch.full_like(difference, 0.25))
