"""Another config is an error that names the difference, or a choice that is logged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resumed_trainings import resume, train
from soft_teacher.engine.resume_rules import adapt_state
from soft_teacher.engine.run_description import differences
from tiny_training import NARROW, checkpoint, write_config

STOP = 1
ACCEPT = ["SOFT_TEACHER.RESUME_WITH_CHANGES", True]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a training of three iterations, all saved; its config lies beside it."""
    folder = tmp_path_factory.mktemp("changed_resume")
    write_config(
        folder,
        **NARROW,
        SOLVER__MAX_ITER=3,
        SOLVER__CHECKPOINT_PERIOD=1,
        DATASETS__TEST=(),
        TEST__EVAL_PERIOD=0,
        VIS_PERIOD=0,
    )
    train(folder / "config.yaml", folder / "whole")
    return folder / "whole"


def go_on(
    whole: Path, output: Path, *options, change: Callable[[dict], None] | None = None
) -> dict:
    """Resume in a new folder; the state of the trainer at the end."""
    resume(whole.parent / "config.yaml", whole, STOP, output, *options, change=change)
    return checkpoint(output)["trainer"]["_trainer"]


@pytest.mark.parametrize(
    ("options", "difference", "consumed"),
    [
        (["SOLVER.IMS_PER_BATCH", 4], "SOLVER.IMS_PER_BATCH was 2 and is 4", [1, 1]),
        (
            ["SOLVER.IMS_PER_BATCH_UNLABELED", 1],
            "SOLVER.IMS_PER_BATCH_UNLABELED was 2 and is 1",
            [1, 1],
        ),
        (["SOLVER.ACCUMULATION_STEPS", 2], "SOLVER.ACCUMULATION_STEPS was 1 and is 2", [2, 2]),
        (["SOFT_TEACHER.ENABLED", False], "SOFT_TEACHER.ENABLED was True and is False", [1, None]),
        (["SEED", 7], "SEED was 1 and is 7", [1, 1]),
        (["SOLVER.AMP.ENABLED", True], "SOLVER.AMP.ENABLED was False and is 'in bfloat16'", [3, 3]),
        (["SOLVER.BASE_LR", 0.001], "SOLVER.BASE_LR was 0.005 and is 0.001", [3, 3]),
    ],
    ids=lambda x: str(x[0]) if isinstance(x, list) else "",
)
def test_another_config_is_an_error_or_a_logged_choice(
    whole, tmp_path, options, difference, consumed
):
    with pytest.raises(ValueError, match=rf"model_0000001\.pth .*{difference}.*RESUME_WITH_CHAN"):
        go_on(whole, tmp_path / "refused", *options)
    state = go_on(whole, tmp_path / "accepted", *ACCEPT, *options)
    log = (tmp_path / "accepted" / "log.txt").read_text()
    assert f"Resuming with a change: {difference}" in log
    # What has been drawn since the resume, or since the start where positions keep their meaning.
    found = [state.get(x, {}).get("num_consumed") for x in ("labeled", "unlabeled")]
    assert found == consumed
    if consumed[0] < 3:
        assert "position in the labeled images starts afresh" in log


def test_an_accepted_learning_rate_takes_effect_at_the_same_point_of_the_schedule(whole, tmp_path):
    expected = checkpoint(whole)["trainer"]["_trainer"]["optimizer"]["param_groups"]
    state = go_on(whole, tmp_path / "out", *ACCEPT, "SOLVER.BASE_LR", 0.001)
    groups = state["optimizer"]["param_groups"]
    assert [x["lr"] for x in groups] == pytest.approx([x["lr"] / 5 for x in expected])
    assert not torch.equal(
        checkpoint(whole)["model"]["roi_heads.box_predictor.cls_score.weight"],
        checkpoint(tmp_path / "out")["model"]["roi_heads.box_predictor.cls_score.weight"],
    )


def test_nothing_changes_where_changes_would_be_accepted(whole, tmp_path):
    go_on(whole, tmp_path / "out", *ACCEPT)
    expected, found = (
        checkpoint(x)["model"]["backbone.fpn_lateral2.weight"] for x in (whole, tmp_path / "out")
    )
    assert torch.equal(expected, found)


@pytest.mark.parametrize("name", ["labeled", "unlabeled"])
def test_another_split_under_the_same_name_is_an_error_or_a_logged_choice(whole, tmp_path, name):
    path = whole.parent / f"{name}.json"
    before = path.read_text()
    content = json.loads(before)
    content["images"].pop()
    path.write_text(json.dumps(content))
    try:
        key = {"labeled": "TRAIN", "unlabeled": "UNLABELED"}[name]
        with pytest.raises(ValueError, match=rf"DATASETS\.{key} hold other images or annotations"):
            go_on(whole, tmp_path / "refused")
        state = go_on(whole, tmp_path / "accepted", *ACCEPT)
    finally:
        path.write_text(before)
    log = (tmp_path / "accepted" / "log.txt").read_text()
    assert f"Resuming with a change: The sets in DATASETS.{key} hold other images" in log
    assert state[name]["num_consumed"] == 1
    assert state["labeled" if name == "unlabeled" else "unlabeled"]["num_consumed"] == 3


def test_other_classes_are_an_error_whatever_is_accepted(whole, tmp_path):
    def rename(content: dict) -> None:
        content["run"]["classes"] = ["r", "y", "b"]

    with pytest.raises(ValueError, match=r"without \['y'\] and with \['g'\]") as refusal:
        go_on(whole, tmp_path / "out", *ACCEPT, change=rename)
    assert "RESUME_WITH_CHANGES" not in str(refusal.value)


def test_another_number_of_processes_is_an_error_or_a_logged_choice(whole, tmp_path):
    def double(content: dict) -> None:
        content["run"]["number of processes"] = 2
        for name in ("random_states", "hidden_states"):
            content[name] *= 2

    with pytest.raises(ValueError, match="number of processes was 2 and is 1"):
        go_on(whole, tmp_path / "refused", change=double)
    state = go_on(whole, tmp_path / "accepted", *ACCEPT, change=double)
    log = (tmp_path / "accepted" / "log.txt").read_text()
    assert "random generators start afresh" in log
    assert state["labeled"]["num_consumed"] == 1


def test_iterations_of_another_number_of_gpus_are_an_error_whatever_is_accepted(whole, tmp_path):
    """A recipe for one GPU is half as long with two: iteration 2 of 3 would be its end."""

    def scale(content: dict) -> None:
        content["run"]["SOLVER.REFERENCE_WORLD_SIZE"] = 1

    options = [*ACCEPT, "SOLVER.REFERENCE_WORLD_SIZE", 1, "SOLVER.ACCUMULATION_STEPS", 2]
    with pytest.raises(ValueError, match="those of 1 GPUs and this run's are those of 2") as error:
        go_on(whole, tmp_path / "refused", *options, change=scale)
    assert "set SOFT_TEACHER.RESUME_WITH_CHANGES" not in str(error.value)
    assert not (tmp_path / "refused" / "model_final.pth").exists()
    # With numbers of its own from there, and with as many GPUs in another way.
    for name, own in (("own", 0), ("as_many", 1)):
        options = [*ACCEPT, "SOLVER.REFERENCE_WORLD_SIZE", own]
        assert go_on(whole, tmp_path / name, *options, change=scale)["iteration"] == 2


def test_classes_in_another_order_are_told_from_other_classes():
    changes = differences({"classes": ["a", "b"]}, {"classes": ["b", "a"]})
    assert changes == {"classes": "classes have another order"}


def test_parameters_that_are_grouped_in_another_way_are_an_error():
    def state(*groups: list[int]) -> dict:
        optimizer = {"param_groups": [{"params": x, "lr": 1.0, "initial_lr": 1.0} for x in groups]}
        return {"_trainer": {"optimizer": optimizer}, "hooks": {"LRScheduler": {"base_lrs": []}}}

    with pytest.raises(ValueError, match=r"groups parameters in another way.*SOLVER\.WEIGHT_DECAY"):
        adapt_state(state([0, 1]), state([0], [1]), {"SOLVER.WEIGHT_DECAY"})
