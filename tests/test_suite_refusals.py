"""Suites and command lines that make no table are refused with the reason and a remedy."""

import re

import pytest

from suite_bench import load_run_suite, make_bench, row


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return make_bench(tmp_path, load_run_suite(), monkeypatch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [row("a", override={})]}, r"row 1: unknown key override; known are after"),
        ({"rows": [row("a", overrides={"SOLVER.LR": 1})]}, r"no config key SOLVER\.LR;"),
        ({"rows": [row("a", overrides={"SOLVER": 1})]}, "SOLVER is a group of config keys"),
        ({"rows": [row("a"), row("a")]}, "another row has this name"),
        ({"rows": [row("a", after="b")]}, "starts from 'b'"),
        ({"rows": [row("a", labeled="few")]}, "labeled is 'few'"),
        ({"rows": [row("a", stretch="long")]}, "stretch is 'long'"),
        ({"rows": [row("a", config=3)]}, "config is 3"),
        ({"rows": {}}, "rows must be a list"),
        ({"rows": [{"name": "a", "paper": {"mAP": 1.0}}]}, "unknown key mAP"),
        ({"rows": [{"name": "a"}]}, "the key paper is missing"),
        ({"repetitions": {"seed": [1]}}, "repetitions: unknown key seed"),
        ({"repetitions": {"seeds": [0.5]}}, "whole numbers"),
        ({"gap_closed": {"few": "a", "all": "b"}}, "all is 'b'"),
        ({"rows": [row("a", overrides={"SOLVER.MAX_ITER": "many"})]}, "SOLVER.MAX_ITER"),
        ({"rows": [row("a", config="{recipe}.yaml")]}, "there is no .*x.yaml"),
        ({"rows": [row("a", labeled=5)]}, "where no number follows an @"),
        ({"rows": [row("a", labeled="all")]}, "--all-sets"),
        ({"repetitions": {"folds": [1, 2]}}, "several folds"),
        ({"repetitions": {"seeds": [1, 1]}}, "each number once"),
        ({"rows": [row("a"), row("b", pseudo_labels={"from": "a", "score": 1.5})]}, "score is 1.5"),
        ({"rows": [row("a", overrides={"DATASETS.TEST": "()"})]}, "DATASETS.TEST names 0 sets"),
        ({"rows": [row("a", overrides={"SEED": 7})]}, "SEED cannot be set .* give --seeds"),
        ({"rows": [row("a", overrides={"OUTPUT_DIR": "x"})]}, "OUTPUT_DIR cannot be set"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_file_and_key(bench, capsys, change, message):
    keys = {"rows": [row("a")], **change}
    assert bench.run(bench.suite(**keys)) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "suite.yaml" in error
    assert not bench.calls()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", 0], "--jobs is 0; it must be at least 1"),
        (["--processes", 0], "--processes is 0; it must be at least 1"),
        (["--seeds", 2, 2], "--seeds names a number twice"),
    ],
)
def test_numbers_that_make_no_table_are_refused(bench, capsys, options, message):
    with pytest.raises(SystemExit):
        bench.run(bench.suite([row("a")]), *options)
    assert message in capsys.readouterr().err


def test_a_seed_of_the_command_line_is_not_overruled_silently(bench, capsys):
    assert bench.run(bench.suite([row("a")]), overrides=["SEED", 7]) == 1
    assert "SEED cannot be set by KEY VALUE pairs" in capsys.readouterr().err


def test_a_suite_that_would_run_python_is_refused(bench, capsys):
    path = bench.folder / "suite.yaml"
    path.write_text("title: !!python/object/apply:os.getpid []\nrows: []\n")
    assert bench.run(path) == 1
    assert "suite.yaml is no plain YAML" in capsys.readouterr().err
