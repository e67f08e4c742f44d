"""A training that was stopped at any iteration goes on to what it would have been, to the bit."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.utils.events import get_event_storage

import train_net
from ddp_worker import launch_two
from resumed_trainings import (
    MAX_ITER,
    RESUMED,
    WHOLE,
    resume,
    resume_at_each,
    train,
    train_and_resume,
)
from soft_teacher.engine import trainer
from soft_teacher.engine.checkpointing import SoftTeacherCheckpointer
from soft_teacher.engine.precision import Precision
from soft_teacher.engine.trainer import SoftTeacherTrainer
from tiny_training import NARROW, assert_same, checkpoint, write_config

STOP = 3
# Of the teacher, after so many iterations; the best comes before STOP.
SCRIPTED_AP = {3: 50.0, 6: 20.0, 7: 30.0}


def assert_resumed_like(whole: Path, resumed: Path) -> None:
    """Every checkpoint of the resumed training is that of the whole one."""
    names = {x.name for x in resumed.glob("model_*.pth")} - {"model_best_teacher.pth"}
    assert len(names) > 2 and "model_final.pth" in names
    for name in names:
        assert_same(checkpoint(resumed, name), checkpoint(whole, name), name)


def test_one_process_resumes_exactly_with_and_without_workers(tmp_path):
    # In the middle of a period, at an evaluation that is still to come, and after it.
    stops = [1, 2, 4]
    config = write_config(tmp_path, **NARROW)
    train_and_resume(str(config), str(tmp_path), stops)
    for num_workers in ("0", "2"):
        for stop in stops:
            assert_resumed_like(
                tmp_path / num_workers / "whole", tmp_path / num_workers / str(stop)
            )
    assert_same(checkpoint(tmp_path / "0" / "whole"), checkpoint(tmp_path / "2" / "whole"))


def test_a_training_resumes_exactly_inside_the_decay_of_unlabeled_images(tmp_path):
    # Of two unlabeled images there are 2, 2, 1, 1, 1 and 0 in the last six iterations.
    config = write_config(tmp_path, **NARROW, SOFT_TEACHER__UNLABELED_DECAY_ITERS=6)
    whole = tmp_path / "whole"
    train(config, whole, *WHOLE)
    state = checkpoint(whole)["trainer"]["_trainer"]
    counts = (state["labeled"]["num_consumed"], state["unlabeled"]["num_consumed"])
    assert counts == (MAX_ITER, MAX_ITER - 1)
    for stop in (2, 4, 5):
        resume(config, whole, stop, tmp_path / str(stop), *RESUMED)
        assert_same(checkpoint(tmp_path / str(stop)), checkpoint(whole))


@pytest.mark.slow
def test_two_processes_resume_exactly_inside_the_decay_of_unlabeled_images(tmp_path):
    # Each process has its one unlabeled image in all but the last two of seven iterations.
    config = write_config(tmp_path, **NARROW, SOFT_TEACHER__UNLABELED_DECAY_ITERS=6)
    stops = [2, 4]
    launch_two(resume_at_each, config, tmp_path, stops)
    state = checkpoint(tmp_path / "whole")["trainer"]["_trainer"]
    counts = (state["labeled"]["num_consumed"], state["unlabeled"]["num_consumed"])
    assert counts == (MAX_ITER, MAX_ITER - 2)
    for stop in stops:
        assert_resumed_like(tmp_path / "whole", tmp_path / str(stop))


@pytest.mark.slow
def test_two_processes_resume_exactly_with_and_without_workers(tmp_path):
    stops = [2, 4]
    config = write_config(tmp_path, **NARROW)
    launch_two(train_and_resume, config, tmp_path, stops)
    for num_workers in ("0", "2"):
        place = tmp_path / num_workers
        for stop in stops:
            assert_resumed_like(place / "whole", place / str(stop))
    with pytest.raises(AssertionError):
        assert_same(checkpoint(tmp_path / "0" / "whole"), checkpoint(tmp_path / "0" / "forgot"))


class ScalingPrecision(Precision):
    """bfloat16 on the CPU with the gradient scaling of CUDA, whose scale grows every other step."""

    def __init__(self, device_type: str, enabled: bool, for_teacher: bool):
        super().__init__(device_type, enabled, for_teacher)
        self.scaler = torch.amp.GradScaler(
            device_type, init_scale=256.0, growth_interval=2, enabled=enabled
        )


def scripted_evaluation(cfg, models, stops) -> dict:
    value = SCRIPTED_AP[get_event_storage().iter + (get_event_storage().iter < MAX_ITER)]
    return {name: {"bbox": {"AP": value}} for name in models}


class Case:
    """A whole training with a gradient scaler and known evaluations, and ways to go on from it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = write_config(folder, **NARROW, SOLVER__AMP__ENABLED=True)
        self.whole = folder / "whole"
        train(self.config, self.whole, *WHOLE)

    def resume(self, output: Path, change=None, options=()) -> dict:
        resume(self.config, self.whole, STOP, output, *RESUMED, *options, change=change)
        return checkpoint(output)


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Iterator[Case]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Precision", ScalingPrecision)
        patch.setattr(trainer, "evaluate_models", scripted_evaluation)
        yield Case(tmp_path_factory.mktemp("exact_resume"))


def test_the_scaler_and_the_best_metric_are_resumed_exactly(case, tmp_path):
    case.resume(tmp_path / "out")
    assert_resumed_like(case.whole, tmp_path / "out")
    state = checkpoint(tmp_path / "out")["trainer"]
    assert state["_trainer"]["precision"]["scale"] == 256.0 * 2 ** (MAX_ITER // 2)
    assert state["hooks"]["BestTeacherKeeper"] == {"best": 50.0}


def reset(content: dict, path: str) -> None:
    """Let a part of a checkpoint be what it is at the start of a training."""
    state = content["trainer"]["_trainer"]
    initial = {
        "EMA counter": (state["teacher"], "num_updates", 0),
        "scale": (state["precision"], "scale", 256.0),
        "growth of the scale": (state["precision"], "_growth_tracker", 1),
        "best metric": (content["trainer"]["hooks"]["BestTeacherKeeper"], "best", -float("inf")),
        "momentum": (state["optimizer"], "state", {}),
        "schedule": (content["trainer"]["hooks"]["LRScheduler"], "last_epoch", 0),
        "learning rate": (state["optimizer"]["param_groups"][0], "lr", 1e-5),
        "labeled position": (state["labeled"], "num_consumed", 0),
        "unlabeled position": (state["unlabeled"], "num_consumed", 0),
        "random generator": (content["random_states"][0], "torch", torch.Generator().get_state()),
        "teacher": (content, "teacher", content["model"]),
    }
    owner, key, value = initial[path]
    assert key in owner
    owner[key] = value


RESETS = [
    "EMA counter",
    "scale",
    "growth of the scale",
    "best metric",
    "momentum",
    "schedule",
    "learning rate",
    "labeled position",
    "unlabeled position",
    "random generator",
    "teacher",
]


@pytest.mark.parametrize("what", RESETS)
def test_the_comparison_sees_whatever_is_forgotten(case, tmp_path, what):
    resumed = case.resume(tmp_path / "out", lambda content: reset(content, what))
    with pytest.raises(AssertionError):
        assert_same(resumed, checkpoint(case.whole))


def test_a_stop_in_place_of_an_evaluation_costs_neither_it_nor_the_best_teacher(
    case, tmp_path, monkeypatch
):
    """The evaluation is left out when training stops, and done when it goes on."""
    run_step = SoftTeacherTrainer.run_step

    def run_step_and_stop(self):
        run_step(self)
        # All processes agree on the signal of a step in the next one.
        if self.iter in (1, 4):
            os.kill(os.getpid(), signal.SIGUSR2)

    monkeypatch.setattr(SoftTeacherTrainer, "run_step", run_step_and_stop)
    output = tmp_path / "out"
    for stop in (2, 5):
        with pytest.raises(SystemExit):
            train(case.config, output, "--resume", *RESUMED)
        assert (output / "last_checkpoint").read_text() == f"model_{stop:07d}.pth"
        assert (output / "model_best_teacher.pth").exists() == (stop > 2)
    train(case.config, output, "--resume", *RESUMED)
    assert_resumed_like(case.whole, output)
    best = checkpoint(output, "model_best_teacher.pth")
    assert_same(best, checkpoint(case.whole, "model_best_teacher.pth"))
    assert (best["iteration"], best["metric"]) == (3, 50.0)


def test_a_model_with_state_outside_its_state_dict_is_resumed_exactly(tmp_path):
    model = {
        "MODEL__META_ARCHITECTURE": "RetinaNet",
        "MODEL__RETINANET__NUM_CLASSES": 3,
        "MODEL__RETINANET__NUM_CONVS": 1,
        "MODEL__RETINANET__IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
        "SOFT_TEACHER__ENABLED": False,
        "DATASETS__TEST": (),
    }
    config = write_config(tmp_path, **NARROW, **model)
    whole = tmp_path / "whole"
    train(config, whole, *WHOLE)
    assert checkpoint(whole)["hidden_states"][0][""].keys() == {"loss_normalizer"}
    resume(config, whole, STOP, tmp_path / "resumed", *RESUMED)
    assert_resumed_like(whole, tmp_path / "resumed")

    def forget(content: dict) -> None:
        content["hidden_states"][0] = {}

    resume(config, whole, STOP, tmp_path / "forgot", *RESUMED, change=forget)
    with pytest.raises(AssertionError):
        assert_same(checkpoint(tmp_path / "forgot")["model"], checkpoint(whole)["model"])


def test_the_order_of_images_is_resumed_also_where_the_seed_is_left_to_chance(tmp_path):
    config = write_config(tmp_path, **NARROW, SEED=-1, DATASETS__TEST=())
    whole = tmp_path / "whole"
    train(config, whole, *WHOLE)
    resume(config, whole, STOP, tmp_path / "resumed", *RESUMED)
    assert_resumed_like(whole, tmp_path / "resumed")


@pytest.fixture(scope="module")
def other_trainer(case):
    """A new trainer to load checkpoints into, none of which it takes."""
    arguments = ["--config-file", case.config, *WHOLE, "OUTPUT_DIR", case.folder / "other"]
    args = default_argument_parser().parse_args([str(x) for x in arguments])
    return SoftTeacherTrainer(train_net.setup(args))


WEIGHT = "roi_heads.box_predictor.cls_score.weight"
MISSING = [
    ("teacher",),
    ("trainer",),
    ("random_states",),
    ("hidden_states",),
    ("run",),
    ("random_states", 0),
    ("model", WEIGHT),
    ("teacher", WEIGHT),
    *(
        ("trainer", *path.split("."))
        for path in (
            "iteration",
            "data_seed",
            "hooks.LRScheduler",
            "hooks.LRScheduler.last_epoch",
            "hooks.BestTeacherKeeper",
            "hooks.BestTeacherKeeper.best",
            "_trainer.optimizer",
            "_trainer.teacher.num_updates",
            "_trainer.precision.scale",
            "_trainer.precision._growth_tracker",
            "_trainer.labeled.num_consumed",
            "_trainer.unlabeled",
            "_trainer.num_skipped",
        )
    ),
]


def owner_of(content: dict, path: tuple) -> dict:
    for key in path[:-1]:
        content = content[key]
    return content


@pytest.mark.parametrize("path", MISSING, ids=lambda x: ".".join(map(str, x)))
def test_a_missing_part_or_key_is_an_error_that_names_it(case, other_trainer, tmp_path, path):
    content = checkpoint(case.whole)
    del owner_of(content, path)[path[-1]]
    assert_refused(other_trainer, content, tmp_path, path)


@pytest.mark.parametrize("path", [("model", "x"), ("teacher", "x"), ("trainer", "_trainer", "x")])
def test_an_unknown_key_is_an_error_that_names_it(case, other_trainer, tmp_path, path):
    content = checkpoint(case.whole)
    owner_of(content, path)[path[-1]] = torch.zeros(1)
    assert_refused(other_trainer, content, tmp_path, path)


def assert_refused(trainer, content: dict, folder: Path, path: tuple) -> None:
    torch.save(content, folder / "changed.pth")
    # One of Detectron2's checkpointers is of no further use after an error.
    checkpointer = SoftTeacherCheckpointer(
        trainer.student, "", teacher=trainer.teacher, trainer=trainer
    )
    checkpointer.run = trainer.checkpointer.run
    named = ".".join(x for x in path if isinstance(x, str))
    # The keys of the student are Detectron2's to check, which logs them.
    expected = "is of another model" if path[0] == "model" else f"changed.pth has .*{named}"
    with pytest.raises(ValueError, match=expected):
        checkpointer.load_training(str(folder / "changed.pth"))
