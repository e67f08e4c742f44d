"""The suites in configs/suites hold the paper's tables, and the documented commands can be run."""

import re
import shlex

import pytest

from soft_teacher import load_config
from soft_teacher.engine.suite import read_suite
from suite_bench import ROOT, load_run_suite

SUITES = sorted((ROOT / "configs/suites").glob("*.yaml"))
PARTIAL = ROOT / "configs/coco/soft_teacher_R_50_FPN_10pct.yaml"
FULL = ROOT / "configs/coco/soft_teacher_R_50_FPN_full_720k.yaml"
ONE_REPETITION = ["--seeds", "0", "--folds", "1"]
HTC_PLUS_PLUS = FULL.with_name("soft_teacher_htc_plus_plus_swin_L_FPN_full_270k.yaml")
BASES = {"table_1": HTC_PLUS_PLUS, "table_3": FULL, "table_4": FULL}


@pytest.fixture(scope="module")
def module():
    return load_run_suite()


def test_there_is_a_suite_for_every_table():
    tables = [read_suite(path).table for path in SUITES]
    assert sorted(x for x in tables if x is not None) == list(range(1, 11))


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_row_of_a_suite_goes_with_its_base_and_those_of_tables_cite_the_paper(
    module, path, capsys
):
    suite = read_suite(path)
    if suite.table is not None:
        assert all("AP" in x.paper for x in suite.rows)
    base = BASES.get(path.stem, PARTIAL)
    options = [*ONE_REPETITION, "--dry-run", "--all-sets", "coco_2017_train"]
    assert module.main([str(path), "--base", str(base), *options]) == 0
    titles = re.findall(r"^# (.*), (?:seed|fold)_", capsys.readouterr().out, re.MULTILINE)
    assert list(dict.fromkeys(titles)) == [x.name for x in suite.rows if x.not_run is None]


def test_tables_seven_and_eight_are_without_jitter_nine_and_ten_with():
    best = {}
    for path in SUITES:
        suite = read_suite(path)
        if suite.table in (7, 8, 9, 10):
            jitter = {x.overrides["SOFT_TEACHER.JITTER.ENABLED"] for x in suite.rows}
            best[suite.table] = (max(x.paper["AP"].mean for x in suite.rows), jitter)
    assert best == {7: (33.6, {False}), 8: (33.6, {False}), 9: (34.2, {True}), 10: (34.2, {True})}


def test_shares_and_folds_are_those_of_the_row(module, capsys):
    path = ROOT / "configs/suites/table_2.yaml"
    rows = ["--rows", "Soft Teacher, 5 %", "--folds", "4"]
    assert module.main([str(path), "--base", str(PARTIAL), "--dry-run", *rows]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[1])
    overrides = command[command.index("--config-file") + 2 :]
    cfg = load_config(str(PARTIAL), overrides)
    assert cfg.DATASETS.TRAIN == ("coco_semi_{fold}@5",)
    assert cfg.DATASETS.UNLABELED == ("coco_semi_{fold}@5_unlabeled",)
    assert cfg.DATASETS.FOLD == 4


def documented_commands():
    text = (ROOT / "docs/experiments.md").read_text().replace("\\\n", " ")
    return re.findall(r"^    python tools/run_suite\.py (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("command", documented_commands())
def test_the_documented_commands_can_be_planned(module, command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    own, dashes, overrides = command.partition(" -- ")
    own = re.sub(r" *>.*| *#.*", "", own)
    arguments = [*shlex.split(own), *shlex.split(dashes + overrides)]
    position = arguments.index("--") if "--" in arguments else len(arguments)
    options = [*ONE_REPETITION, *([] if "--list-commands" in own else ["--dry-run"])]
    arguments[position:position] = options
    arguments = [x for x in arguments if x != "--report-only"]
    assert module.main(arguments) == 0, capsys.readouterr().err
    assert "--config-file" in capsys.readouterr().out or "--list-commands" in own
