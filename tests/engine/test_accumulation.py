"""Gradient accumulation: one process with k micro-steps trains as k processes do."""

import copy
from datetime import timedelta
from itertools import islice

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.utils.events import EventStorage
from torch import nn

import train_net
from ddp_worker import launch_two, lose_an_image, train
from shares import assert_equal_trainings, largest_difference, results_of_one, results_of_two
from soft_teacher.data import build_labeled_loader, build_unlabeled_loader
from soft_teacher.engine.ema import EMATeacher
from soft_teacher.engine.loader_stream import LoaderStream
from soft_teacher.engine.precision import Precision
from soft_teacher.engine.schedule import scale_to_world_size
from soft_teacher.engine.step_log import mean_of_known
from soft_teacher.engine.train_step import SoftTeacherStep, UnreadableDataError
from tiny import labeled_view, plain_view, tiny_config, tiny_model
from tiny_training import NARROW, assert_same, checkpoint, write_config

# Processes that wait for each other fail after this time.
PATIENCE = timedelta(seconds=60)
# Number of images of a step, and of micro-steps of each process.
TWO_SHARES, FOUR_SHARES = 2, 4


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    runs = {"two": (TWO_SHARES, 2), "four": (FOUR_SHARES, 4), "one batch": (TWO_SHARES, 1)}
    return results_of_one(tmp_path_factory.mktemp("one"), runs)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    runs = {"two": (TWO_SHARES, 1), "four": (FOUR_SHARES, 2)}
    return results_of_two(tmp_path_factory.mktemp("two"), runs)


@pytest.mark.parametrize("shares", ["two", "four"])
def test_micro_steps_train_as_processes_do(one_process, two_processes, shares):
    assert_equal_trainings(one_process[shares], two_processes[shares][0])


def test_each_micro_step_has_normalizers_of_its_own(one_process):
    accumulated, at_once = one_process["two"], one_process["one batch"]
    assert largest_difference(accumulated["gradients"][0], at_once["gradients"][0]) > 0.01


def test_the_teacher_follows_once_in_each_step(one_process):
    assert [one_process[x]["updates"] for x in ("one batch", "two", "four")] == [3, 3, 3]
    assert [one_process[x]["consumed"] for x in ("one batch", "two", "four")] == [3, 6, 12]


def test_processes_average_gradients_once_in_each_step(two_processes):
    plain, accumulated = two_processes["two"][0], two_processes["four"][0]
    assert set(plain["exchanges"]) == {0, 1, 2}
    assert accumulated["exchanges"] == plain["exchanges"]


def test_a_failure_in_a_micro_step_of_one_process_skips_the_step_on_both(tmp_path):
    launch_two(train, tmp_path, "rank", 3, timeout=PATIENCE)
    results = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    for result in results:
        assert (result["updates"], result["skipped"]) == ([1, 1, 1, 1, 2], 3)
        assert result["consumed"] == [15, 15]
    for model in ("student", "teacher"):
        first, second = (x[model] for x in results)
        assert all(torch.equal(first[k], second[k]) for k in first)
        assert all(torch.isfinite(x).all() for x in first.values())


def test_an_image_that_one_process_lacks_in_a_late_micro_step_stops_both(tmp_path):
    launch_two(lose_an_image, tmp_path, 2, timeout=PATIENCE)
    results = [torch.load(tmp_path / f"lost_{rank}.pth", weights_only=True) for rank in range(2)]
    assert results[0] == results[1]
    assert "Cannot read the image lost.png" in results[0]["message"]
    assert results[0]["consumed"] == [2, 2]


def labeled(start):
    for i in range(start, 1000):
        yield [labeled_view(i)]


def unlabeled(start):
    for i in range(start, 1000):
        yield [{"weak": plain_view(500 + i), "strong": plain_view(500 + i)}]


def make_step(accumulation_steps: int = 3) -> SoftTeacherStep:
    """A step whose student has a live batch norm, which every forward changes."""
    model = tiny_model()
    model.backbone.fpn_output2.add_module("live", nn.BatchNorm2d(3))

    def use_norm(module: nn.Module, args: tuple) -> None:
        module.backbone.fpn_output2.live(torch.ones(2, 3, 2, 2))

    model.register_forward_pre_hook(use_norm)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return SoftTeacherStep(
        model,
        EMATeacher(model, 0.9),
        LoaderStream(labeled),
        LoaderStream(unlabeled),
        torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
        Precision("cpu", False),
        accumulation_steps=accumulation_steps,
    )


def run(step: SoftTeacherStep, num_iters: int = 1) -> EventStorage:
    with EventStorage() as storage:
        for _ in range(num_iters):
            step.run_step()
            step.iter += 1
    return storage


def state_of(step: SoftTeacherStep) -> dict:
    """All that a step may change, but for positions and counts."""
    return copy.deepcopy(
        {
            "student": step.student.state_dict(),
            "teacher": step.teacher.model.state_dict(),
            "optimizer": step.optimizer.state_dict(),
            "updates": step.teacher.num_updates,
        }
    )


def fail_in(step: SoftTeacherStep, number: int, fail) -> None:
    """Let `fail` change the losses of one forward, counted from now."""
    forward, calls = step.model.forward, []

    def failing(*args, **kwargs):
        losses = forward(*args, **kwargs)
        calls.append(None)
        return fail(losses) if len(calls) == number + 1 else losses

    step.model.forward = failing


def to_nan(losses):
    return {**losses, "loss_cls": losses["loss_cls"] * float("nan")}


def to_error(losses):
    raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")


@pytest.mark.parametrize("fail", [to_nan, to_error])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_bad_micro_step_skips_the_whole_step(number, fail):
    step = make_step()
    run(step)
    before = state_of(step)
    fail_in(step, number, fail)
    storage = run(step)
    assert_same(state_of(step), before)
    assert all(p.grad is None for p in step.student.parameters())
    assert storage.latest()["skipped_steps"][0] == 1
    # The next step is the one that it would have been.
    for stream in (step.labeled, step.unlabeled):
        assert stream.num_consumed == 6
    run(step)
    assert step.teacher.num_updates == 2 and step.num_skipped_in_a_row == 0


def break_stream(stream: LoaderStream, after: int) -> None:
    """Let the stream fail after so many batches."""

    def broken(iterator):
        yield from islice(iterator, after)
        raise OSError("Cannot read the image here.png")

    stream._iterator = broken(stream._iterator)


@pytest.mark.parametrize("name", ["labeled", "unlabeled"])
@pytest.mark.parametrize(("after", "bad"), [(0, None), (2, None), (2, 0)])
def test_an_unreadable_image_of_any_micro_step_leaves_all_as_before_the_step(name, after, bad):
    """Also one of a micro-step that is passed over because another one is bad."""
    step = make_step()
    run(step)
    before, random_state = state_of(step), torch.get_rng_state()
    break_stream(getattr(step, name), after)
    if bad is not None:
        fail_in(step, bad, to_nan)
    with pytest.raises(UnreadableDataError, match=r"here\.png"):
        run(step)
    assert_same(state_of(step), before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [step.labeled.num_consumed, step.unlabeled.num_consumed] == [3, 3]
    assert next(step.labeled)[0]["file_name"] == "3.png"
    assert next(step.unlabeled)[0]["weak"]["file_name"] == "503.png"


def test_gradients_of_all_micro_steps_are_scaled_alike():
    """The scaler of CUDA's float16, here on the CPU with float32 gradients."""
    plain, scaled = make_step(2), make_step(2)
    scaled.precision.scaler = torch.amp.GradScaler("cpu", enabled=True)
    for step in (plain, scaled):
        torch.manual_seed(3)
        run(step)
    assert scaled.precision.scaler.get_scale() > 1
    for a, b in zip(plain.student.parameters(), scaled.student.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_all_micro_steps_learn_from_the_same_teacher_and_observers_see_the_first():
    step, teachers, seen = make_step(3), [], []
    annotate = step.teacher.model.annotate

    def annotate_and_note(weak):
        teachers.append((step.teacher.num_updates, weak[0]["file_name"]))
        return annotate(weak)

    step.teacher.model.annotate = annotate_and_note
    step.observers = [lambda iteration, weak, *_: seen.append((iteration, weak[0]["file_name"]))]
    run(step, 2)
    assert teachers == [(i // 3, f"{500 + i}.png") for i in range(6)]
    assert seen == [(0, "500.png"), (1, "503.png")]


def test_a_mean_is_over_what_is_known():
    nan = float("nan")
    rows = [{"a": 1.0, "b": nan, "c": nan}, {"a": 3.0, "b": 5.0, "c": float("inf")}]
    assert mean_of_known(rows) == {"a": 2.0, "b": 5.0}


@pytest.fixture
def config_file(tmp_path):
    keys = {"SOLVER__IMS_PER_BATCH_UNLABELED": 4, "SOLVER__MAX_ITER": 3, "DATASETS__TEST": ()}
    return write_config(tmp_path, **NARROW, **keys)


def run_train_net(config_file, output, *options: str) -> None:
    arguments = ["--config-file", str(config_file), *options, "OUTPUT_DIR", str(output)]
    torch.manual_seed(0)
    train_net.main(default_argument_parser().parse_args(arguments))


def test_a_run_counts_whole_steps_and_resumes_exactly(config_file, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    accumulate = ("SOLVER.ACCUMULATION_STEPS", "2")
    run_train_net(config_file, whole, *accumulate)
    final = checkpoint(whole)
    assert final["iteration"] == 2
    state = final["trainer"]["_trainer"]
    assert state["teacher"]["num_updates"] == 3
    assert state["labeled"]["num_consumed"] == state["unlabeled"]["num_consumed"] == 6

    run_train_net(config_file, parts, *accumulate)
    (parts / "last_checkpoint").write_text("model_0000001.pth")
    (parts / "model_final.pth").unlink()
    run_train_net(config_file, parts, "--resume", *accumulate)
    assert_same(checkpoint(parts), final)

    with pytest.raises(ValueError, match=r"SOLVER\.ACCUMULATION_STEPS was 2 and is 1"):
        run_train_net(config_file, whole, "--resume")


def read_config(config_file):
    cfg = tiny_config()
    cfg.merge_from_file(str(config_file))
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 90)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    return cfg


def pixels_of(batch) -> list[torch.Tensor]:
    views = [v for x in batch for v in ((x["weak"], x["strong"]) if "weak" in x else (x,))]
    return [v["image"] for v in views]


@pytest.mark.parametrize("build", [build_labeled_loader, build_unlabeled_loader])
@pytest.mark.parametrize("scale_per_step", [False, True])
def test_micro_steps_see_the_very_pixels_of_as_many_processes(
    config_file, monkeypatch, build, scale_per_step
):
    cfg = read_config(config_file)
    cfg.INPUT.AUG.SCALE_PER_STEP = scale_per_step
    ranks = []
    with monkeypatch.context() as patch:
        patch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
        patch.setattr("detectron2.utils.comm.all_gather", lambda x: [x, x])
        for rank in range(2):
            patch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
            ranks.append(list(islice(build(cfg), 4)))
    cfg.SOLVER.ACCUMULATION_STEPS = 2
    micro_batches = list(islice(build(cfg), 8))
    expected = [batch for step in zip(*ranks, strict=True) for batch in step]
    for found, wanted in zip(micro_batches, expected, strict=True):
        assert_same(pixels_of(found), pixels_of(wanted))
    # In the middle of a step and after it.
    for start in (1, 2):
        (batch,) = islice(build(cfg, start), 1)
        assert_same(pixels_of(batch), pixels_of(micro_batches[start]))


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (build_labeled_loader, "IMS_PER_BATCH"),
        (build_unlabeled_loader, "IMS_PER_BATCH_UNLABELED"),
    ],
)
def test_images_that_micro_steps_cannot_share_are_an_error_that_names_both_keys(
    config_file, build, key
):
    cfg = read_config(config_file)
    cfg.SOLVER.ACCUMULATION_STEPS = 3
    match = rf"SOLVER\.{key} is \d.*SOLVER\.ACCUMULATION_STEPS \(3\), 3\. Change one"
    with pytest.raises(ValueError, match=match):
        build(cfg)


def recipe(**solver):
    keys = {"REFERENCE_WORLD_SIZE": 8, "IMS_PER_BATCH": 8, "STEPS": (600,), "BASE_LR": 0.01}
    return tiny_config(**{f"SOLVER.{k}": v for k, v in {**keys, **solver}.items()})


@pytest.mark.parametrize(("world_size", "steps"), [(1, 8), (2, 4), (4, 2)])
def test_a_recipe_for_eight_gpus_is_whole_on_fewer_that_accumulate(world_size, steps):
    cfg = recipe(ACCUMULATION_STEPS=steps)
    assert scale_to_world_size(cfg, world_size) is cfg


def test_a_recipe_is_scaled_to_processes_and_micro_steps_alike():
    accumulated = scale_to_world_size(recipe(ACCUMULATION_STEPS=2), 1)
    expected = scale_to_world_size(recipe(), 2)
    expected.SOLVER.ACCUMULATION_STEPS = 2
    assert accumulated == expected
    assert accumulated.SOLVER.IMS_PER_BATCH == 2


@pytest.mark.parametrize("steps", [0, -1])
def test_a_step_without_a_batch_is_an_error_that_names_the_key(steps):
    with pytest.raises(ValueError, match=rf"SOLVER\.ACCUMULATION_STEPS is {steps}"):
        scale_to_world_size(recipe(ACCUMULATION_STEPS=steps), 1)
