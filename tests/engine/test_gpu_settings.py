"""What is settled for GPUs, as far as it can be told without one."""

import pytest
import torch
from detectron2.layers import NaiveSyncBatchNorm
from torch import distributed as dist
from torch import nn

from soft_teacher.config import settle_device
from soft_teacher.engine.execution import compile_parts
from soft_teacher.engine.forward import ddp_devices, refuse_synchronized_norms
from soft_teacher.engine.precision import Precision
from soft_teacher.engine.random_state import get_random_state
from soft_teacher.engine.run_description import describe_run, differences
from tiny import tiny_config


def test_ddp_takes_the_device_of_the_model_and_not_the_number_of_the_process():
    only_one_visible = torch.device("cuda", 0)
    assert ddp_devices(only_one_visible) == [only_one_visible]
    assert ddp_devices(torch.device("cpu")) is None


@pytest.mark.parametrize("norm", [nn.SyncBatchNorm, NaiveSyncBatchNorm])
def test_synchronized_norms_are_refused_with_their_name(norm):
    refuse_synchronized_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    model = nn.ModuleDict({"fpn": nn.Sequential(nn.Conv2d(3, 4, 1), norm(4))})
    with pytest.raises(ValueError, match=r"fpn\.1 is a synchronized .* MODEL\.FPN\.NORM"):
        refuse_synchronized_norms(model)


def test_a_cpu_training_of_processes_that_talk_through_gpus_is_refused(monkeypatch):
    cfg = tiny_config(MODEL__DEVICE="cpu")
    settle_device(cfg)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    settle_device(cfg)
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE is cpu.* CUDA_VISIBLE_DEVICES="):
        settle_device(cfg)


def test_the_gpu_that_is_named_becomes_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settle_device(tiny_config(MODEL__DEVICE="cuda"))
    assert chosen == []
    settle_device(tiny_config(MODEL__DEVICE="cuda:1"))
    assert chosen == [torch.device("cuda", 1)]


def test_a_gpu_that_is_not_in_use_is_not_asked_for_its_random_state(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.ones(1))
    assert get_random_state()["cuda"] is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert torch.equal(get_random_state()["cuda"], torch.ones(1))


def test_a_lowered_scale_grows_only_after_a_whole_interval_of_good_steps():
    precision = Precision("cpu", True)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def step(factor: float) -> float:
        optimizer.zero_grad()
        precision.backward(factor * weight.sum())
        if torch.isfinite(precision.unscaled_grad_norm(optimizer)):
            precision.step(optimizer)
        else:
            precision.lower_scale()
        return precision.scaler.get_scale()

    assert [step(x) for x in (1.0, float("inf"), 1.0, 1.0)] == [64.0, 32.0, 32.0, 64.0]


def test_compiled_parts_are_not_split_by_the_buckets_of_ddp(monkeypatch):
    from torch import _dynamo

    monkeypatch.setattr(_dynamo.config, "optimize_ddp", True)
    compile_parts(tiny_config(), nn.Identity())
    assert _dynamo.config.optimize_ddp is True
    compile_parts(tiny_config(MODEL__COMPILE="eager"), nn.Identity())
    assert _dynamo.config.optimize_ddp is False


def test_mixed_precision_on_the_cpu_and_on_gpus_are_told_apart_when_a_training_goes_on():
    on_cpu, on_gpu = (
        describe_run(tiny_config(MODEL__DEVICE=x, SOLVER__AMP__ENABLED=True), 1)
        for x in ("cpu", "cuda")
    )
    assert list(differences(on_cpu, on_gpu)) == ["SOLVER.AMP.ENABLED"]
    plain = [describe_run(tiny_config(MODEL__DEVICE=x), 1) for x in ("cpu", "cuda")]
    assert differences(*plain) == {}
