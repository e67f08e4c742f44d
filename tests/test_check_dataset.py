"""tools/check_dataset.py as a user runs it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bad_images import photo, write_annotations, write_images
from marked_images import marked_config

TOOL = Path(__file__).parents[1] / "tools/check_dataset.py"


@pytest.fixture
def tool(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = importlib.util.spec_from_file_location("check_dataset", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "config.yaml"
    path.write_text(marked_config(tmp_path / "data").dump())
    return path


def run(tool, tmp_path, *arguments):
    """Exit status and the content of report.json."""
    output = tmp_path / "output"
    options = ["--output", str(output), "--workers", "1"]
    status = tool.main([*options, *map(str, arguments)])
    assert (output / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    return status, json.loads((output / "report.json").read_text())


def test_all_sets_of_a_config_are_checked_and_good_ones_pass(tool, config_file, tmp_path, capsys):
    status, content = run(tool, tmp_path, "--config-file", config_file)
    assert status == 0 and content["stops_training"] is False
    assert [(x["role"], x["images"]) for x in content["sets"]] == [("labeled", 4), ("unlabeled", 4)]
    printed = capsys.readouterr().out
    assert "Nothing here stops training." in printed
    assert f"Page:     {tmp_path / 'output/report.html'}" in printed


def test_the_status_is_1_when_something_stops_training(tool, config_file, tmp_path, capsys):
    (tmp_path / "data/labeled_2.png").write_bytes(b"")
    status, content = run(tool, tmp_path, "--config-file", config_file)
    assert status == 1 and content["stops_training"] is True
    assert "1 unreadable images: stops training" in capsys.readouterr().out


def test_an_unreadable_unlabeled_image_leaves_the_status_at_0(tool, config_file, tmp_path, capsys):
    (tmp_path / "data/unlabeled_2.png").write_bytes(b"")
    assert run(tool, tmp_path, "--config-file", config_file)[0] == 0
    assert "1 unreadable images: look at this" in capsys.readouterr().out


def test_keys_at_the_end_change_the_config(tool, config_file, tmp_path):
    arguments = ("--config-file", config_file, "SOFT_TEACHER.ENABLED", "False")
    _, content = run(tool, tmp_path, *arguments)
    assert [x["role"] for x in content["sets"]] == ["labeled"]


def test_an_annotated_set_is_checked_without_a_config(tool, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    write_images(tmp_path / "images")
    write_annotations(tmp_path / "a.json")
    arguments = ("--annotations", tmp_path / "a.json", "--images", tmp_path / "images")
    status, content = run(tool, tmp_path, *arguments)
    assert status == 1
    assert content["sets"][0]["role"] == "labeled"
    assert "2 boxes without area, left out: look at this" in capsys.readouterr().out


def test_images_are_checked_without_annotations(tool, tmp_path):
    (tmp_path / "images/deep").mkdir(parents=True)
    photo().save(tmp_path / "images/deep/a.png")
    (tmp_path / "images/b.jpg").write_bytes(b"")
    status, content = run(tool, tmp_path, "--images", tmp_path / "images")
    assert status == 0
    assert [(x["images"], x["readable_images"]) for x in content["sets"]] == [(2, 1)]
    # With no image left there is nothing to train on.
    (tmp_path / "images/deep/a.png").unlink()
    assert run(tool, tmp_path, "--images", f"{tmp_path}/images/*.jpg")[0] == 1


@pytest.mark.parametrize("text", ["{", '{"images": [], "annotations": [], "categories": []}', None])
def test_a_file_that_training_cannot_use_gives_a_report_and_status_1(tool, tmp_path, text):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    arguments = ("--annotations", tmp_path / "a.json", "--images", tmp_path)
    status, content = run(tool, tmp_path, *arguments)
    assert status == 1
    kinds = [x["kind"] for x in content["sets"][0]["findings"] + content["together"]]
    assert kinds.count("refused") == 1


def test_a_set_without_an_image_or_an_object_gives_status_1(tool, tmp_path):
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    arguments = ("--annotations", tmp_path / "a.json", "--images", tmp_path)
    assert run(tool, tmp_path, *arguments)[0] == 1
    photo().save(tmp_path / "a.png")
    content["images"] = [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}]
    (tmp_path / "a.json").write_text(json.dumps(content))
    status, content = run(tool, tmp_path, *arguments)
    assert status == 1 and "no object" in content["together"][0]["places"][0]
    assert run(tool, tmp_path, "--images", tmp_path / "nowhere")[0] == 1


def test_names_that_are_no_text_are_reported_too(tool, tmp_path, capsysbinary):
    folder = os.fsencode(tmp_path / "images")
    os.mkdir(folder)
    with open(os.path.join(folder, b"caf\xe9.jpg"), "wb") as file:
        file.write(b"no image")
    photo().save(tmp_path / "images/a.png")
    status, content = run(tool, tmp_path, "--images", tmp_path / "images")
    assert status == 0
    (finding,) = content["sets"][0]["findings"]
    assert os.fsencode(finding["places"][0]).find(b"caf\xe9.jpg") > 0


@pytest.mark.slow
def test_the_command_works_with_several_processes_and_leaves_none(tmp_path, config_file):
    (tmp_path / "data/labeled_2.png").write_bytes(b"")
    command = [sys.executable, TOOL, "--config-file", config_file, "--workers", "2"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    # What the workers print would come here too: waiting for its end is waiting for theirs.
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert "1 unreadable images: stops training" in done.stdout
    assert "(labeled): 100%" in done.stderr and "Traceback" not in done.stderr
    # Without --output the files go where the help says.
    names = {x.name for x in (tmp_path / "output/check_dataset").iterdir()}
    assert names == {"report.html", "report.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --config-file or --images"),
        (["--config-file", "a", "--images", "b"], "give either --config-file or --images"),
        (["--annotations", "a"], "give either --config-file or --images"),
        (["--config-file", "a", "--annotations", "b"], "--annotations goes with --images"),
        (["--config-file", "missing.yaml"], "there is no file missing.yaml"),
        (["--images", "a", "--workers", "0"], "--workers is 0; it must be at least 1"),
        (["--images", "a", "SEED", "1"], "SEED 1: config keys need --config-file"),
    ],
)
def test_a_wrong_command_line_is_refused_with_its_reason(tool, arguments, message, capsys):
    with pytest.raises(SystemExit) as refused:
        tool.main(arguments)
    assert refused.value.code == tool.FAILED
    assert message in capsys.readouterr().err
