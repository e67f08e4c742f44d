"""Tables of trainings by the real command: right, done once, resumed, and failures named."""

import ast
import csv
import json
import math
import os
import re
import shlex
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from soft_teacher import load_config
from soft_teacher.analysis.fractions import read_fractions
from soft_teacher.engine.suite_runner import job_environments, try_lock
from suite_bench import ROOT, load_run_suite, lr_row, make_bench, row
from tiny_training import NARROW, assert_same, checkpoint, write_config


@pytest.fixture(scope="module")
def module():
    return load_run_suite()


@pytest.fixture
def bench(tmp_path, module, monkeypatch):
    return make_bench(tmp_path, module, monkeypatch)


def test_the_table_holds_mean_and_deviation_of_every_row_beside_the_papers_number(bench):
    suite = bench.suite([lr_row("slow", 0.02), lr_row("fast", 0.03)])
    assert bench.run(suite, "--seeds", 0, 1, 3) == 0
    for name, lr in (("slow", 0.02), ("fast", 0.03)):
        aps = np.array([1000 * lr + seed**2 for seed in (0, 1, 3)])
        ours = bench.rows()[name]
        assert ours["student"]["AP"]["mean"] == pytest.approx(aps.mean())
        assert ours["student"]["AP"]["std"] == pytest.approx(aps.std(ddof=1))
        assert ours["teacher"]["AP"]["mean"] == pytest.approx(aps.mean() + 1)
        assert ours["paper"]["AP"]["mean"] == 30.0
        assert [x["student"]["AP"] for x in ours["runs"]] == pytest.approx(aps)
    folder = bench.folder / "out/suite"
    with (folder / "table.csv").open() as file:
        (line,) = [x for x in csv.DictReader(file) if (x["row"], x["model"]) == ("slow", "student")]
    assert float(line["std"]) == pytest.approx(np.std([20, 21, 29], ddof=1))
    assert (line["ddof"], line["n"], line["paper"]) == ("1", "3", "30.0")
    text = (folder / "table.md").read_text()
    assert "| slow | 3 of 3 | 23.3 ± 4.9 | 24.3 ± 4.9 | 30.0 |" in text
    assert "ddof = 1" in text
    assert (folder / "table.png").read_bytes().startswith(b"\x89PNG")


def test_a_suite_that_the_paper_has_not_cites_nothing(bench):
    rows = [lr_row("slow", 0.02) | {"paper": {}}, lr_row("fast", 0.03) | {"paper": {}}]
    assert bench.run(bench.suite(rows), "--seeds", 0) == 0
    text = (bench.folder / "out/suite/table.md").read_text()
    assert "| slow | 1 of 1 | 20.0 | 21.0 |\n" in text
    assert "AP, paper" not in text and "named paper" not in text
    assert bench.rows()["slow"]["paper"] == {}


def test_shares_of_labels_give_a_file_for_figure_1(bench):
    rows = [
        row("supervised, 5 %", labeled=5, config="supervised_{recipe}.yaml"),
        row("mine, 5 %", labeled=5),
        row("mine, 10 %", labeled=10, overrides={"SOLVER.BASE_LR": 0.03}),
        row("cited, 10 %", not_run="It is the paper's."),
    ]
    (bench.folder / "own.json").write_text("{}")
    names = ("own@5", "own@10", "rest@5", "rest@10", "own_val")
    keys = {
        "DATASETS.CUSTOM": [[x, str(bench.folder / "own.json"), ""] for x in names],
        "DATASETS.TRAIN": ("own@1",),
        "DATASETS.UNLABELED": ("rest@1",),
        "DATASETS.TEST": ("own_val",),
    }
    overrides = [str(x) for item in keys.items() for x in item]
    assert bench.run(bench.suite(rows), overrides=overrides) == 0
    found = read_fractions(bench.folder / "out/suite/fractions.csv")
    # Every training here has a teacher, whose AP is one more than the student's.
    five, ten = pytest.approx(np.mean([11, 20])), pytest.approx(np.mean([31, 40]))
    assert found.keys() == {"own_val"}
    means = {k: {p: x.mean for p, x in v.items()} for k, v in found["own_val"].items()}
    assert means == {"supervised": {5: five}, "mine": {5: five, 10: ten}}
    assert found["own_val"]["mine"][5].count == 2


def test_what_is_finished_is_not_done_again_and_a_changed_row_is(bench, capsys):
    rows = [lr_row("a", 0.02), lr_row("b", 0.03)]
    bench.run(bench.suite(rows))
    assert len(bench.calls()) == 4
    before = bench.rows()
    bench.run(bench.suite(rows))
    assert len(bench.calls()) == 4
    assert bench.rows() == before
    assert capsys.readouterr().out.count("Finished earlier") == 4
    bench.run(bench.suite([rows[0], lr_row("b", 0.04)]), "--rows", "b")
    assert [x[x.index("SOLVER.BASE_LR") + 1] for x in bench.calls()[4:]] == ["0.04"] * 2
    assert bench.rows()["a"] == before["a"]


def test_a_training_that_two_tables_have_is_done_once(bench):
    bench.run(bench.suite([lr_row("a", 0.02)], "first"))
    bench.run(bench.suite([lr_row("the same", 0.02), lr_row("other", 0.03)], "second"))
    assert len(bench.calls()) == 4
    assert bench.rows("second")["the same"]["runs"] == bench.rows("first")["a"]["runs"]


def test_a_training_that_fails_is_named_and_the_others_go_on(bench, capsys):
    rows = [lr_row("bad", 0.02, SOLVER__MOMENTUM=0.5), lr_row("good", 0.03)]
    suite = bench.suite([*rows, row("after bad", after="bad")])
    assert bench.run(suite, "--seeds", 3) == 1
    errors = capsys.readouterr().err
    assert re.search(r"Failed: bad, seed_3\nthe cause of it\n", errors)
    assert "Failed: after bad, seed_3\nIt starts from bad, seed_3, which failed." in errors
    assert [len(x["runs"]) for x in bench.rows().values()] == [0, 1, 0]
    assert "| bad | 0 of 1 | - | - | 30.0 |" in (bench.folder / "out/suite/table.md").read_text()
    (bench.folder / "mended").touch()
    num_calls = len(bench.calls())
    assert bench.run(suite, "--seeds", 3) == 0
    assert len(bench.calls()) == num_calls + 2


def send_when(path, number):
    """Signal this process as soon as a file is there."""

    def wait():
        end = time.monotonic() + 60
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_training_that_is_cut_off_saves_and_is_resumed(bench, jobs):
    suite = bench.suite([lr_row("slow", 0.02, SOLVER__MOMENTUM=0.25), lr_row("b", 0.03)])
    send_when(bench.folder / "waiting", signal.SIGTERM)
    assert bench.run(suite, "--seeds", 0, "--jobs", jobs) == 128 + signal.SIGTERM
    cut = [x for x in bench.calls() if "0.25" in x]
    assert len(cut) == 1
    assert bench.run(suite, "--seeds", 0, "--jobs", jobs) == 0
    assert ["--resume" in x for x in bench.calls() if "0.25" in x] == [False, True]
    assert all(len(x["runs"]) == 1 for x in bench.rows().values())


def test_a_row_starts_from_the_checkpoint_of_another_of_the_same_repetition(bench):
    suite = bench.suite([lr_row("a", 0.02), row("b", after="a")])
    assert bench.run(suite) == 0
    assert len(bench.calls()) == 4
    for seed in ("0", "3"):
        first, second = (x for x in bench.calls() if x[x.index("SEED") + 1] == seed)
        weights = second[second.index("MODEL.WEIGHTS") + 1]
        assert weights == f"{first[first.index('OUTPUT_DIR') + 1]}/model_final.pth"


def test_soft_teacher_starts_from_the_named_checkpoint_of_a_supervised_training(bench):
    rows = [row("supervised", config="supervised_{recipe}.yaml"), lr_row("soft", 0.02)]
    suite = bench.suite(rows)
    assert bench.run(suite, "--seeds", 0, "--start-from", "supervised_x.yaml") == 0
    supervised, soft = bench.calls()
    assert "MODEL.WEIGHTS" not in supervised
    folder = supervised[supervised.index("OUTPUT_DIR") + 1]
    assert soft[soft.index("MODEL.WEIGHTS") + 1] == f"{folder}/model_0000749.pth"


def test_a_locked_training_is_left_to_its_runner_until_the_lock_is_gone(bench, capsys):
    suite = bench.suite([lr_row("a", 0.02), lr_row("b", 0.03)])
    bench.run(suite, "--seeds", 0, "--dry-run")
    folder = re.search(r"# a, seed_0\n.*OUTPUT_DIR (\S+)", capsys.readouterr().out)[1]
    lock = try_lock(Path(f"{folder}.lock"))
    assert try_lock(Path(f"{folder}.lock")) is None
    seen = []

    def release():
        while not bench.calls():
            time.sleep(0.01)
        seen.extend(bench.calls())
        lock.close()

    threading.Thread(target=release, daemon=True).start()
    assert bench.run(suite, "--seeds", 0) == 0
    assert "Another runner is at it: a, seed_0" in capsys.readouterr().out
    assert ["0.03" in x for x in seen] == [True]
    assert len(bench.calls()) == 2


def test_every_listed_command_trains_its_own_part_of_the_table(bench, capsys):
    suite = bench.suite([lr_row("a", 0.02), lr_row("b", 0.03)])
    bench.run(suite, "--list-commands", "--seeds", 1, 2)
    commands = [shlex.split(x) for x in capsys.readouterr().out.splitlines()]
    assert len(commands) == 4
    for number, (_, script, *arguments) in enumerate(commands, start=1):
        assert Path(script).resolve() == ROOT / "tools/run_suite.py"
        assert bench.module.main(arguments) == 0
        assert len(bench.calls()) == number
    assert not (bench.folder / "out/suite").exists()
    assert bench.run(suite, "--report-only", "--seeds", 1, 2) == 0
    assert len(bench.calls()) == 4
    assert [len(x["runs"]) for x in bench.rows().values()] == [2, 2]
    arguments[arguments.index("--cell") + 1] = "gone-seed_0-12345678"
    assert bench.module.main(arguments) == 1
    assert "There is no training gone-seed_0-12345678" in capsys.readouterr().err


def test_the_fraction_of_the_gap_is_taken_in_each_repetition(bench):
    rows = [
        row("few", config="supervised_{recipe}.yaml"),
        row("all", config="supervised_{recipe}.yaml", overrides={"SOLVER.BASE_LR": 0.05}),
        lr_row("soft", 0.04),
    ]
    gap = {"few": "few", "all": "all"}
    assert bench.run(bench.suite(rows, gap_closed=gap), "--seeds", 0, 1, 2) == 0
    few = np.array([10.0, 11.0, 14.0])
    everything, soft = few + 40, few + 30
    fractions = bench.rows()["soft"]["gap_closed"]
    assert fractions["student"]["mean"] == pytest.approx(np.mean((soft - few) / (everything - few)))
    assert fractions["teacher"]["mean"] == pytest.approx(31 / 40)
    assert fractions["student"]["std"] == pytest.approx(0)
    assert "0.75 ± 0.00" in (bench.folder / "out/suite/table.md").read_text()


def test_folds_share_the_training_on_all_labels(bench):
    names = ("own_1@5", "own_2@5", "own_all")
    custom = [[x, str(bench.folder / "own.json"), ""] for x in names]
    (bench.folder / "own.json").write_text("{}")
    lr = {"SOLVER.BASE_LR": 0.05}
    rows = [
        row("few", config="supervised_{recipe}.yaml"),
        row("all", config="supervised_{recipe}.yaml", labeled="all", overrides=lr),
        lr_row("soft", 0.04),
        # Its unlabeled images are those that the fold leaves.
        row("soft, all", labeled="all"),
    ]
    suite = bench.suite(rows, gap_closed={"few": "few", "all": "all"})
    arguments = [suite, "--base", bench.base, "--output", bench.folder / "out"]
    arguments += ["--seeds", 1, 2, "--folds", 1, 2, "--all-sets", "own_all", "--"]
    arguments += ["DATASETS.CUSTOM", custom, "DATASETS.TRAIN", ("own_{fold}@5",)]
    arguments += ["DATASETS.UNLABELED", ("own_{fold}@5",)]
    assert bench.module.main([str(x) for x in arguments]) == 0
    common = [x for x in bench.calls() if "DATASETS.FOLD" not in x]
    assert len(bench.calls()) == 14 and len(common) == 2
    assert all("('own_all',)" in x and "0.05" in x for x in common)
    assert [len(x["runs"]) for x in bench.rows().values()] == [4, 2, 4, 4]
    table = bench.rows()
    assert table["soft"]["gap_closed"]["teacher"]["mean"] == pytest.approx(31 / 40)


def test_unlabeled_images_are_labeled_by_the_named_row_before_training(bench):
    rows = [
        row("teacher", config="supervised_{recipe}.yaml"),
        row("student", pseudo_labels={"from": "teacher", "score": 0.8}),
    ]
    (bench.folder / "photos").mkdir()
    (bench.folder / "photos/1.png").touch()
    name = f"photos_{bench.folder.name}"
    custom = [[name, "", str(bench.folder / "photos")]]
    arguments = [bench.suite(rows), "--base", bench.base, "--output", bench.folder / "out"]
    arguments += ["--seeds", 0, "--start-from", "supervised_x.yaml"]
    arguments += ["--", "DATASETS.CUSTOM", custom, "DATASETS.UNLABELED", (name,)]
    assert bench.module.main([str(x) for x in arguments]) == 0
    teacher, student = bench.calls()
    assert "MODEL.WEIGHTS" not in student
    (file,) = ast.literal_eval(student[student.index("SOFT_TEACHER.PSEUDO_LABELS.FILES") + 1])
    command = Path(file).read_text()
    weights = teacher[teacher.index("OUTPUT_DIR") + 1] + "/model_final.pth"
    assert f"--weights {weights} --images {name}" in command
    assert "--score-threshold 0.8" in command
    # The boxes that are written are those that teach.
    for key in ("MIN_SCORE", "CLS_SCORE", "RPN_SCORE"):
        assert student[student.index(f"SOFT_TEACHER.PSEUDO_LABELS.{key}") + 1] == "0.8"


def test_a_value_of_two_lines_is_listed_in_one(bench, capsys):
    sets = f"[['mine', '', '{bench.folder}'],\n ['other', '', '{bench.folder}']]"
    suite = bench.suite([row("a")])
    bench.run(suite, "--list-commands", "--seeds", 1, overrides=["DATASETS.CUSTOM", sets])
    (line,) = capsys.readouterr().out.splitlines()
    arguments = shlex.split(line)[2:]
    assert yaml.safe_load(arguments[arguments.index("DATASETS.CUSTOM") + 1]) == yaml.safe_load(sets)
    assert bench.module.main(arguments) == 0 and len(bench.calls()) == 1


def test_what_was_trained_elsewhere_is_reported_without_its_data(bench, capsys):
    bench.base = write_config(bench.folder).rename(bench.folder / "soft_teacher_data.yaml")
    suite = bench.suite([lr_row("a", 0.02)])
    arguments = [suite, "--base", bench.base, "--output", bench.folder / "out", "--seeds", 0]
    assert bench.module.main([str(x) for x in arguments]) == 0
    before = bench.rows()["a"]
    (bench.folder / "labeled.json").unlink()
    assert bench.module.main([str(x) for x in [*arguments, "--report-only"]]) == 0
    after = bench.rows()["a"]
    assert after["runs"] == before["runs"] and len(bench.calls()) == 1
    assert before["remark"] == "" and "Its data are not here" in after["remark"]
    text = (bench.folder / "out/suite/table.md").read_text()
    assert "- a: Its data are not here" in text and "not trained" not in text


def test_values_that_a_later_version_may_know_are_no_error(bench):
    rows = [row("a", overrides={"SOFT_TEACHER.BACKGROUND.RELIABILITY": "not yet known"})]
    assert bench.run(bench.suite(rows), "--seeds", 0) == 0
    (call,) = bench.calls()
    assert call[call.index("SOFT_TEACHER.BACKGROUND.RELIABILITY") + 1] == "not yet known"


def test_other_data_is_another_training(bench):
    config = write_config(bench.folder)
    bench.base = config.rename(bench.folder / "soft_teacher_data.yaml")
    suite = bench.suite([lr_row("a", 0.02)])
    arguments = [suite, "--base", bench.base, "--output", bench.folder / "out", "--seeds", 0]
    for num_calls in (1, 1):
        assert bench.module.main([str(x) for x in arguments]) == 0
        assert len(bench.calls()) == num_calls
    labels = bench.folder / "labeled.json"
    labels.write_text(labels.read_text().replace('"category_id": 1', '"category_id": 2'))
    assert bench.module.main([str(x) for x in arguments]) == 0
    assert len(bench.calls()) == 2


def test_jobs_share_the_cores_or_the_gpus_of_a_machine():
    cpu = job_environments(2, 1, 0, 8, {"HOME": "here"})
    assert cpu == [{"HOME": "here", "OMP_NUM_THREADS": "4"}] * 2
    assert job_environments(2, 1, 0, 8, {"OMP_NUM_THREADS": "1"}) == [{"OMP_NUM_THREADS": "1"}] * 2
    assert job_environments(1, 1, 0, 8, {}) == [{}]
    gpus = job_environments(2, 2, 4, 8, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"})
    assert [x["CUDA_VISIBLE_DEVICES"] for x in gpus] == ["4,5", "6,7"]
    with pytest.raises(ValueError, match=r"needs 4 GPUs, but there are 2"):
        job_environments(2, 2, 2, 8, {})


@pytest.mark.slow
def test_real_trainings_fill_a_table_and_one_that_is_cut_off_ends_with_the_same_weights(
    module, tmp_path, capsys
):
    base = write_config(tmp_path, **NARROW, VIS_PERIOD=0, SOLVER__MAX_ITER=4)
    base = base.rename(tmp_path / "soft_teacher_tiny.yaml")
    suite = tmp_path / "tiny.yaml"
    none = {"SOFT_TEACHER.BACKGROUND.RELIABILITY": "none"}
    content = {"title": "Tiny", "rows": [row("a"), row("b", overrides=none)]}
    suite.write_text(yaml.safe_dump(content))
    options = ["--base", base, "--output", tmp_path / "out", "--seeds", 1, 2]
    arguments = [str(x) for x in (suite, *options)]
    assert module.main(arguments) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "out/tiny/table.json").read_text())["rows"]
    for ours in rows:
        for model in ("student", "teacher"):
            logged = [last_logged(Path(x["folder"]), f"{model}/bbox/AP") for x in ours["runs"]]
            known = [x for x in logged if not math.isnan(x)]
            assert [x[model]["AP"] for x in ours["runs"] if model in x] == known
            if len(known) == 2:
                assert ours[model]["AP"]["std"] == pytest.approx(np.std(known, ddof=1))
    cell = Path(rows[1]["runs"][0]["folder"])
    final = checkpoint(cell)
    assert load_config(str(cell / "config.yaml")).SEED == 1
    # As after a kill between the second iteration and the last.
    (cell / "model_final.pth").unlink()
    (cell / "last_checkpoint").write_text("model_0000001.pth")
    state = json.loads((cell / "run.json").read_text())
    (cell / "run.json").write_text(json.dumps({**state, "finished": False}))
    capsys.readouterr()
    assert module.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("Finished earlier") == 3
    assert printed.count("--resume") == 1
    assert_same(checkpoint(cell), final)


def last_logged(folder, name):
    entries = [json.loads(x) for x in (folder / "metrics.json").read_text().splitlines()]
    return [x[name] for x in entries if name in x][-1]
