"""Hooks and monitors: the best teacher, silence, quality of pseudo boxes."""

import logging
import re
from operator import attrgetter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from torch import nn

from soft_teacher.engine.checkpointing import SoftTeacherCheckpointer
from soft_teacher.engine.hooks import BestTeacherKeeper, RetainingCheckpointer, SilenceWarner
from soft_teacher.engine.monitors import QualityMonitor, ViewPainter
from soft_teacher.modeling.guidance import Guidance, PseudoLabelRules
from tiny import detections, plain_view, tiny_config


def run_hook(hook, values: dict[int, float], key: str, num_iters: int, start: int = 0):
    """Run a hook over iterations; `values` are put into the storage after the iteration."""
    with EventStorage(start) as storage:
        trainer = SimpleNamespace(storage=storage, iter=start, max_iter=num_iters, start_iter=start)
        hook.trainer = trainer
        hook.before_train()
        for i in range(start, num_iters):
            trainer.iter = storage.iter = i
            if i in values:
                storage.put_scalar(key, values[i])
            hook.after_step()
        # As Detectron2 does: counted past the last iteration, whose evaluation comes now.
        trainer.iter = storage.iter = num_iters
        if num_iters in values:
            storage.put_scalar(key, values[num_iters])
        hook.after_train()


def test_the_best_teacher_is_kept_and_remembered_over_a_restart(tmp_path):
    path = str(tmp_path / "best.pth")
    model = nn.Linear(1, 1)

    def run(values, start, stop, checkpoint=None):
        hook = BestTeacherKeeper(model, path, 2, "AP")
        if checkpoint is not None:
            hook.load_state_dict(checkpoint)
        with torch.no_grad():
            model.weight.fill_(float(stop))
        run_hook(hook, values, "AP", stop, start)
        checkpoints.append(hook.state_dict())
        return torch.load(path, weights_only=True)

    checkpoints = []
    kept = run({1: 5.0, 3: 7.0, 6: 9.0}, 0, 6)
    assert (kept["iteration"], kept["metric"]) == (6, 9.0)
    # The checkpoint at the end of a training is saved before its last evaluation.
    kept = run({7: 8.0}, 6, 8, {"best": 7.0})
    assert (kept["iteration"], kept["metric"]) == (6, 9.0)
    assert float(kept["model"]["weight"]) == 6.0
    kept = run({9: 8.5}, 8, 10, checkpoints[-1])
    assert (kept["iteration"], kept["metric"]) == (6, 9.0)
    kept = run({11: 9.5}, 10, 12, checkpoints[-1])
    assert (kept["iteration"], kept["metric"]) == (12, 9.5)
    # A run that starts over from before the best one forgets it.
    kept = run({1: 1.0}, 0, 2)
    assert (kept["iteration"], kept["metric"]) == (2, 1.0)


def test_the_best_teacher_is_replaced_by_a_complete_file_only(tmp_path, monkeypatch):
    path = tmp_path / "best.pth"
    model = nn.Linear(1, 1)
    run_hook(BestTeacherKeeper(model, str(path), 2, "AP"), {1: 5.0}, "AP", 2)
    before = path.read_bytes()

    def torn(content, file):
        file.write(before[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        run_hook(BestTeacherKeeper(model, str(path), 2, "AP"), {3: 6.0}, "AP", 4, start=2)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def run_saving(folder, start: int, stop: int, period: int = 1, num_kept: int = 3) -> list[str]:
    """Save over some iterations in a process of its own; names of the files afterwards."""
    checkpointer = SoftTeacherCheckpointer(nn.Linear(1, 1), str(folder))
    run_hook(RetainingCheckpointer(checkpointer, period, num_kept), {}, "", stop, start)
    return sorted(x.name for x in folder.glob("model_*"))


def test_checkpoints_of_before_a_restart_are_counted_and_removed(tmp_path):
    for name in ("model_best_teacher.pth", "model_zoo.pth"):
        (tmp_path / name).touch()
    kept = ["model_best_teacher.pth", "model_final.pth", "model_zoo.pth"]

    def numbered(*iterations):
        return [*(f"model_{i:07d}.pth" for i in iterations), *kept]

    assert run_saving(tmp_path, 0, 5) == numbered(2, 3, 4)
    (tmp_path / "model_0000004.pth.tmp").touch()
    assert run_saving(tmp_path, 5, 6) == numbered(3, 4, 5)
    assert run_saving(tmp_path, 6, 9) == numbered(6, 7, 8)
    # Fewer are to be kept from now on.
    assert run_saving(tmp_path, 9, 10, num_kept=1) == numbered(9)
    # Back to an earlier iteration: what this run has not saved is not its to delete.
    assert run_saving(tmp_path, 3, 5, num_kept=1) == numbered(4, 9)


def test_a_checkpoint_outside_the_schedule_is_saved_once_and_counted(tmp_path):
    checkpointer = SoftTeacherCheckpointer(nn.Linear(1, 1), str(tmp_path))
    hook = RetainingCheckpointer(checkpointer, 2, 2)
    run_hook(hook, {}, "", 4)
    written = (tmp_path / "model_0000003.pth").stat().st_mtime_ns
    hook.save_unless_saved(3)
    assert (tmp_path / "model_0000003.pth").stat().st_mtime_ns == written
    hook.save_unless_saved(4)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    names = sorted(x.name for x in tmp_path.glob("model_0*"))
    assert names == ["model_0000003.pth", "model_0000004.pth"]


def test_an_old_checkpoint_that_cannot_be_deleted_does_not_end_training(tmp_path, caplog):
    (tmp_path / "model_0000000.pth").mkdir()
    assert "model_0000002.pth" in run_saving(tmp_path, 1, 3, num_kept=1)
    assert "Cannot delete the old checkpoint" in caplog.text


def test_silence_is_warned_of_with_its_length(caplog):
    hook = SilenceWarner(num_iters=10, cls_score=0.9)
    values = {i: 0.0 for i in range(40)} | {5: 1.0}
    with caplog.at_level(logging.WARNING):
        run_hook(hook, values, "pseudo_boxes_cls", 30)
    warnings = [x.getMessage() for x in caplog.records]
    assert ["the last 10 had" in warnings[0], "the last 20 had" in warnings[1]] == [True, True]
    assert len(warnings) == 2 and "0.9" in warnings[0]


def test_silence_names_its_likely_causes_by_keys_that_there_are(caplog):
    hook = SilenceWarner(num_iters=10, cls_score=0.9)
    run_hook(hook, {i: 0.0 for i in range(12)}, "pseudo_boxes_cls", 12)
    (record,) = caplog.records
    named = set(re.findall(r"[A-Z][A-Z_]*(?:\.[A-Z_]+)+", record.getMessage()))
    assert named == {
        "SOFT_TEACHER.BURN_IN_ITERS",
        "MODEL.WEIGHTS",
        "SOFT_TEACHER.PSEUDO_LABELS.CLS_SCORE",
        "SOLVER.BASE_LR",
        "INPUT.FORMAT",
        "MODEL.PIXEL_MEAN",
    }
    for key in named:
        attrgetter(key)(tiny_config())


def test_silence_of_a_sparse_log_is_warned_of_once_and_not_taken_for_complete(caplog):
    hook = SilenceWarner(num_iters=10, cls_score=0.9)
    # As several processes log: one iteration in 20.
    run_hook(hook, {i: 0.0 for i in range(19, 80, 20)}, "pseudo_boxes_cls", 80)
    warnings = [x.getMessage().partition(" had ")[0] for x in caplog.records]
    assert warnings == [f"None of the iterations logged over the last {n}" for n in (20, 40, 60)]


def test_iterations_without_unlabeled_images_are_no_silence(caplog):
    hook = SilenceWarner(num_iters=10, cls_score=0.9)
    with caplog.at_level(logging.WARNING):
        run_hook(hook, {i: 1.0 for i in range(5)}, "pseudo_boxes_cls", 40)
    assert not caplog.records


def guidance(scores):
    boxes = [[10.0, 10, 30, 30], [40, 10, 60, 30], [10, 40, 30, 60]]
    rules = PseudoLabelRules.from_config(tiny_config(SOFT_TEACHER__JITTER__ENABLED=False))
    return Guidance([detections(boxes, scores)], [np.eye(3)], None, rules)


def test_precision_and_recall_are_measured_in_the_weak_view():
    # The weak view is twice as large as the original.
    double = [[2.0, 0, 0], [0, 2, 0], [0, 0, 1]]
    weak = [plain_view(7, matrix=double)]
    truth = {
        "7.png": [
            {"bbox": [5, 5, 10, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0},
            {"bbox": [20, 5, 10, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2},
            {"bbox": [0, 0, 3, 3], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1},
            {"bbox": [5, 20, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2, "iscrowd": 1},
        ]
    }
    monitor = QualityMonitor(truth, period=2)
    unknown = guidance([0.99, 0.99, 0.99])
    with EventStorage(0) as storage:
        monitor(0, weak, weak, guidance([0.95, 0.95, 0.6]))
        # An image of another set, of which nothing is known.
        monitor(0, [plain_view(8)], [plain_view(8)], unknown)
        assert "pseudo_precision" not in storage.latest()
        monitor(1, weak, weak, guidance([0.95, 0.95, 0.6]))
        # Two boxes pass 0.9; the first is right, the second has the wrong class.
        assert storage.latest()["pseudo_precision"][0] == pytest.approx(1 / 2)
        assert storage.latest()["pseudo_recall"][0] == pytest.approx(1 / 3)


def test_views_are_painted_side_by_side_in_their_period():
    painter = ViewPainter(period=2, image_format="BGR")
    views = [plain_view(1)]
    views[0]["image"].zero_()
    with EventStorage(0) as storage:
        painter(0, views, views, guidance([0.95, 0.7, 0.95]))
        assert not storage._vis_data
        painter(1, views, views, guidance([0.95, 0.7, 0.95]))
        ((name, image, _),) = storage._vis_data
    assert name == "pseudo_labels"
    assert image.shape[0] == 3 and image.shape[2] > 2 * 80
    # On black: green boxes teach both losses, gray ones (0.7 without jitter) nothing.
    red, green, blue = image.reshape(3, -1).int()
    assert ((green > 2 * red + 40) & (green > 2 * blue + 40)).any()
    assert ((red > 40) & (red == green) & (green == blue) & (red < 200)).any()
