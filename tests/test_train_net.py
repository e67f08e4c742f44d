"""train_net.py as a user runs it, on a few tiny images."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_net
from ddp_worker import launch_two, run_train_net
from soft_teacher.engine.trainer import refuse_what_would_be_ignored
from tiny import tiny_config
from tiny_training import assert_same, checkpoint, write_config


@pytest.fixture
def config_file(tmp_path):
    """A config of six iterations with evaluation and checkpoint after every two."""
    return write_config(tmp_path)


def run(config_file: Path, output: Path, *options: str, **opts) -> dict | None:
    arguments = ["--config-file", str(config_file), *options, "OUTPUT_DIR", str(output)]
    arguments += [str(x) for k, v in opts.items() for x in (k.replace("__", "."), v)]
    torch.manual_seed(0)
    return train_net.main(default_argument_parser().parse_args(arguments))


def metrics(output: Path) -> list[dict]:
    return [json.loads(x) for x in (output / "metrics.json").read_text().splitlines()]


LOSSES = [f"loss_{x}" for x in ("cls", "box_reg", "rpn_cls", "rpn_loc")]
WATCHED = {
    *("total_loss", *LOSSES, *(f"{x}_unsup" for x in LOSSES)),
    *("pseudo_boxes_rpn", "pseudo_boxes_cls", "pseudo_boxes_reg"),
    *("pseudo_score", "pseudo_variance", "background_weight", "ema_momentum"),
    # The unlabeled set of these tests has ground truth.
    *("pseudo_precision", "pseudo_recall"),
    *("data_time", "time", "images_per_second", "lr", "student/bbox/AP", "teacher/bbox/AP"),
}


def test_a_run_evaluates_both_models_and_resumes_exactly(config_file, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # Of six iterations the log would have nothing but the end.
    monkeypatch.setattr("soft_teacher.engine.trainer.LOG_PERIOD", 2)
    run(config_file, whole)

    logged = metrics(whole)
    assert not (WATCHED | {"eta_seconds"}) - {key for entry in logged for key in entry}
    events = EventAccumulator(str(whole)).Reload().Tags()
    assert not WATCHED - set(events["scalars"])
    assert "pseudo_labels" in events["images"]
    assert (whole / "model_best_teacher.pth").is_file()
    assert (whole / "last_checkpoint").read_text() == "model_final.pth"
    assert list((whole / "inference" / "teacher").rglob("coco_instances_results.json"))
    best = checkpoint(whole, "model_best_teacher.pth")
    assert best["metric"] >= max(x.get("teacher/bbox/AP", -1) for x in logged) - 1e-9

    # Stop after the checkpoint of iteration 3, go on in a new trainer.
    run(config_file, parts, SOLVER__MAX_ITER=6, **{"SOLVER.CHECKPOINT_PERIOD": 4})
    (parts / "last_checkpoint").write_text("model_0000003.pth")
    (parts / "model_final.pth").unlink()
    run(config_file, parts, "--resume")
    assert_same(checkpoint(whole), checkpoint(parts))


def test_a_training_that_lacks_only_its_final_checkpoint_is_completed(config_file, tmp_path):
    output = tmp_path / "out"
    run(config_file, output)
    final = checkpoint(output)
    (output / "model_final.pth").unlink()
    run(config_file, output, "--resume")
    assert_same(checkpoint(output), final)
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    written = (output / "model_final.pth").stat().st_mtime_ns
    run(config_file, output, "--resume")
    assert (output / "model_final.pth").stat().st_mtime_ns == written


def test_two_processes_train_evaluate_and_resume_exactly(config_file, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for output in (whole, parts):
        launch_two(run_train_net, config_file, output, False)
    logged = metrics(whole)
    for key in ("student/bbox/AP", "teacher/bbox/AP", "pseudo_boxes_cls", "images_per_second"):
        assert any(key in x for x in logged), key
    (parts / "last_checkpoint").write_text("model_0000003.pth")
    (parts / "model_final.pth").unlink()
    launch_two(run_train_net, config_file, parts, True)
    final = checkpoint(whole)
    assert_same(final, checkpoint(parts))
    assert len(final["random_states"]) == 2
    assert not torch.equal(*(x["torch"] for x in final["random_states"]))

    # One process cannot go on where two stopped: its counters would mean something else.
    with pytest.raises(ValueError, match="number of processes was 2 and is 1"):
        run(config_file, whole, "--resume")


def test_a_checkpoint_without_the_teacher_is_not_resumed(config_file, tmp_path):
    output = tmp_path / "out"
    run(config_file, output, SOLVER__MAX_ITER=1)
    content = checkpoint(output)
    del content["teacher"]
    torch.save(content, output / "model_final.pth")
    with pytest.raises(ValueError, match=r"model_final\.pth has no teacher"):
        run(config_file, output, "--resume")


def test_eval_only_evaluates_both_models_of_a_checkpoint(config_file, tmp_path):
    output = tmp_path / "out"
    run(config_file, output, SOLVER__MAX_ITER=1)
    results = run(
        config_file, tmp_path / "eval", "--eval-only", MODEL__WEIGHTS=output / "model_final.pth"
    )
    assert set(results) == {"student", "teacher"}
    assert "AP" in results["teacher"]["bbox"]
    assert_same(run(config_file, output, "--eval-only", "--resume"), results)


def test_eval_only_without_a_set_says_so(config_file, tmp_path):
    with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty"):
        run(config_file, tmp_path / "eval", "--eval-only", DATASETS__TEST=())


def test_supervised_training_needs_no_unlabeled_set_and_evaluates_the_student(
    config_file, tmp_path
):
    output = tmp_path / "out"
    run(
        config_file,
        output,
        SOFT_TEACHER__ENABLED=False,
        SOFT_TEACHER__EMA__ENABLED=False,
        DATASETS__UNLABELED="()",
        SOLVER__MAX_ITER=2,
    )
    logged = metrics(output)
    assert any("student/bbox/AP" in x for x in logged)
    assert not any("teacher/bbox/AP" in x or "loss_cls_unsup" in x for x in logged)


def test_channels_last_changes_the_layout_of_the_weights_and_losses_by_rounding_only(
    config_file, tmp_path
):
    first, models = {}, {}
    for channels_last in (False, True):
        output = tmp_path / str(channels_last)
        run(config_file, output, SOLVER__MAX_ITER=1, MODEL__CHANNELS_LAST=channels_last)
        models[channels_last] = checkpoint(output)
        first[channels_last] = metrics(output)[0]
    # The RPN's anchors, unlike the proposals, cannot change places by a rounding.
    for name in ("loss_rpn_cls", "loss_rpn_loc"):
        assert first[True][name] == pytest.approx(first[False][name], rel=1e-4)
    weight = "backbone.bottom_up.res3.0.conv1.weight"
    for channels_last, content in models.items():
        for part in ("model", "teacher"):
            layout = content[part][weight].is_contiguous(memory_format=torch.channels_last)
            assert layout == channels_last


def test_an_unreadable_test_image_stops_with_its_name_and_costs_nothing_that_is_finished(
    config_file, tmp_path
):
    options = {"SOLVER__MAX_ITER": 3, "SOLVER__CHECKPOINT_PERIOD": 100, "TEST__EVAL_PERIOD": 2}
    run(config_file, tmp_path / "whole", **options)
    image = tmp_path / "val_1.png"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=r"Cannot read the image .*val_1\.png"):
        run(config_file, tmp_path / "cut", **options)
    assert checkpoint(tmp_path / "cut", "model_0000001.pth")["iteration"] == 1
    image.write_bytes(content)
    run(config_file, tmp_path / "cut", "--resume", **options)
    assert_same(checkpoint(tmp_path / "cut"), checkpoint(tmp_path / "whole"))


def test_a_config_that_would_run_python_is_refused(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("SEED: !!python/object/apply:os.getpid []\n")
    with pytest.raises(ValueError, match=r"bad\.yaml.*no plain YAML"):
        run(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("TEST.PRECISE_BN.ENABLED", True),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
    ],
)
def test_a_key_that_would_be_ignored_is_an_error(key, value):
    with pytest.raises(ValueError, match=key):
        refuse_what_would_be_ignored(tiny_config(**{key: value}))
