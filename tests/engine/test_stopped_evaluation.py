"""A stop signal that comes inside an evaluation is obeyed there, by all processes together."""

import os
import signal
from pathlib import Path

import pytest
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from torch.utils.data import DataLoader

from ddp_worker import launch_two
from resumed_trainings import WHOLE, train
from soft_teacher.engine import evaluation
from soft_teacher.engine.evaluation import EvaluationStoppedError, StoppableLoader
from tiny_training import NARROW, assert_same, checkpoint, write_config


@pytest.mark.parametrize("start", [0, 3])
def test_an_evaluation_is_cut_off_and_done_again_when_training_goes_on(
    tmp_path, monkeypatch, start
):
    """In training, or where a resumed one catches up on an evaluation; the first is at 3."""
    config = write_config(tmp_path, **NARROW)
    whole, output = tmp_path / "whole", tmp_path / "out"
    train(config, whole, *WHOLE)
    if start:
        train(config, output, *WHOLE, "SOLVER.MAX_ITER", start, "TEST.EVAL_PERIOD", 0)
    monkeypatch.setattr(evaluation, "ASK_PERIOD", 1)
    process, images = COCOEvaluator.process, []

    def process_and_stop(self, inputs, outputs):
        process(self, inputs, outputs)
        images.extend(x["file_name"] for x in inputs)
        os.kill(os.getpid(), signal.SIGUSR2)

    with monkeypatch.context() as patch:
        patch.setattr(COCOEvaluator, "process", process_and_stop)
        with pytest.raises(SystemExit) as end:
            train(config, output, "--resume", *WHOLE)
    assert end.value.code == 128 + signal.SIGUSR2
    # Of three images and two models.
    assert len(images) == 1
    assert checkpoint(output, (output / "last_checkpoint").read_text())["iteration"] == 2
    train(config, output, "--resume", *WHOLE)
    assert_same(checkpoint(output), checkpoint(whole))
    best = "model_best_teacher.pth"
    assert_same(checkpoint(output, best), checkpoint(whole, best))


def stop_one_of_two(config: str, output: str) -> None:
    """What each of two processes runs: the second one is told to stop in its evaluation."""
    evaluation.ASK_PERIOD = 1
    process = COCOEvaluator.process

    def process_and_stop(self, inputs, outputs):
        process(self, inputs, outputs)
        if comm.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR2)

    COCOEvaluator.process = process_and_stop
    try:
        train(config, output, "--resume", *WHOLE)
    except SystemExit as end:
        Path(output, f"status{comm.get_rank()}").write_text(str(end.code))
    COCOEvaluator.process = process
    comm.synchronize()
    train(config, output, "--resume", *WHOLE)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_cuts_off_the_evaluation_of_both(tmp_path):
    config = write_config(tmp_path, **NARROW)
    launch_two(train, config, tmp_path / "whole", *WHOLE)
    launch_two(stop_one_of_two, config, tmp_path / "out")
    for rank in range(2):
        assert (tmp_path / f"out/status{rank}").read_text() == str(128 + signal.SIGUSR2)
    log = (tmp_path / "out/log.txt").read_text()
    assert log.count("The evaluation is cut off") == 1
    for name in ("model_final.pth", "model_best_teacher.pth"):
        assert_same(checkpoint(tmp_path / "out", name), checkpoint(tmp_path / "whole", name))


@pytest.mark.parametrize(("num_images", "share"), [(41, 21), (41, 20), (40, 20), (1, 0)])
def test_processes_ask_equally_often_whatever_their_shares(monkeypatch, num_images, share):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    loader = DataLoader(range(num_images), batch_size=None, sampler=range(share))
    asked = []
    assert list(StoppableLoader(loader, lambda: asked.append(0))) == list(range(share))
    assert len(asked) == min(num_images // 2, 1)


def test_all_images_are_given_until_the_answer_is_yes():
    answers, found = iter([False, True]), []
    loader = StoppableLoader(DataLoader(range(50), batch_size=None), lambda: next(answers))
    assert len(loader) == 50
    with pytest.raises(EvaluationStoppedError):
        for image in loader:
            found.append(image)
    assert found == list(range(evaluation.ASK_PERIOD))
