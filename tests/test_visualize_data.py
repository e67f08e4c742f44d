"""tools/visualize_data.py as a user runs it, on a few tiny images."""

import base64
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marked_images import SCENES, change_annotations, marked_config, write_marked_set

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def tool():
    path = Path(__file__).parents[1] / "tools/visualize_data.py"
    spec = importlib.util.spec_from_file_location("visualize_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "config.yaml"
    path.write_text(marked_config(tmp_path / "data").dump())
    return path


def run(tool, config_file, *arguments):
    tool.main(["--config-file", str(config_file), *map(str, arguments)])


def contents(folder):
    return {x.name: x.read_bytes() for x in sorted(folder.iterdir())}


def embedded(page):
    return re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page.read_text())


def test_a_folder_and_a_page_are_written_and_named(tool, config_file, tmp_path, capsys):
    output, page = tmp_path / "pictures", tmp_path / "deep/page.html"
    run(tool, config_file, "--output", output, "--html", page, "--num", 3)
    kinds = ("labeled", "unlabeled")
    assert [*contents(output)] == [f"{kind}_00{i}.jpg" for kind in kinds for i in (1, 2, 3)]
    printed = capsys.readouterr().out
    assert f"Pictures: 6 in {output}, labeled_001.jpg to unlabeled_003.jpg" in printed
    assert f"Page:     {page}" in printed
    # Labeled images come as one view, unlabeled ones as two.
    images = [base64.b64decode(x) for x in embedded(page)]
    assert len(images) == 3 * 1 + 3 * 2
    for i in (1, 2, 3):
        with Image.open(output / f"unlabeled_00{i}.jpg") as sheet:
            assert sheet.width > 560 + 8
    # Self-contained: whatever is loaded is in the page itself.
    sources = re.findall(r"(?:src|href)=\"([^\"]{0,20})", page.read_text())
    assert sources and all(x.startswith("data:") for x in sources)


def test_without_folder_and_page_both_are_written_below_output(
    tool, config_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run(tool, config_file, "--num", 1)
    names = {x.name for x in (tmp_path / "output/visualize_data").iterdir()}
    assert names == {"labeled_001.jpg", "unlabeled_001.jpg", "index.html"}


def test_either_folder_or_page_can_be_had_alone(tool, config_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(tool, config_file, "--num", 1, "--html", "page.html")
    run(tool, config_file, "--num", 1, "--output", "pictures", "--set", "labeled")
    assert [*contents(tmp_path / "pictures")] == ["labeled_001.jpg"]
    assert len(embedded(tmp_path / "page.html")) == 3
    assert not (tmp_path / "output").exists()


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tool, config_file, tmp_path):
    for name, seed in {"a": 4, "b": 4, "c": 5}.items():
        run(
            tool, config_file, "--output", tmp_path / name, "--html", tmp_path / name / "x.html",
            "--seed", seed, "--num", 4,
        )  # fmt: skip
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys() and all(a[name] != c[name] for name in a)


def test_the_seed_of_the_config_counts_unless_another_is_given(tool, config_file, tmp_path):
    run(tool, config_file, "--num", 2, "--output", tmp_path / "given", "--seed", 3)
    run(tool, config_file, "--num", 2, "--output", tmp_path / "config")
    run(tool, config_file, "--num", 2, "--output", tmp_path / "key", "SEED", "9")
    assert contents(tmp_path / "given") == contents(tmp_path / "config")
    assert contents(tmp_path / "key") != contents(tmp_path / "config")
    run(tool, config_file, "--num", 2, "--output", tmp_path / "drawn", "SEED", "-1")
    run(tool, config_file, "--num", 2, "--output", tmp_path / "zero", "--seed", 0)
    assert contents(tmp_path / "drawn") == contents(tmp_path / "zero")


def test_names_of_files_and_classes_cannot_become_code(tool, config_file, tmp_path):
    # A slash cannot be in a file's name, so the folder's name has the first half.
    folder = tmp_path / "<script>alert(1)<"
    folder.mkdir()
    cfg = marked_config(folder)
    names = [f"<script>{i}.png" for i in range(len(SCENES))]
    cfg.DATASETS.CUSTOM = [write_marked_set(folder, name, names) for name in ("l", "u")]
    cfg.DATASETS.TRAIN = (cfg.DATASETS.CUSTOM[0][0],)
    cfg.DATASETS.UNLABELED = (cfg.DATASETS.CUSTOM[1][0],)

    def rename(content):
        for category in content["categories"]:
            category["name"] = EVIL + category["name"]

    for _, file, _ in cfg.DATASETS.CUSTOM:
        change_annotations(file, rename)
    config_file.write_text(cfg.dump())
    page = tmp_path / "page.html"
    run(tool, config_file, "--html", page, "--output", tmp_path / "pictures")
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;box" in text
    assert "&lt;script&gt;0.png" in text
    assert {x.parent for x in (tmp_path / "pictures").rglob("*")} == {tmp_path / "pictures"}


def test_a_supervised_training_sees_labeled_images_alone_unless_asked(tool, config_file, tmp_path):
    off = ("--num", 1, "SOFT_TEACHER.ENABLED", "False")
    run(tool, config_file, "--output", tmp_path / "default", *off)
    assert [*contents(tmp_path / "default")] == ["labeled_001.jpg"]
    run(tool, config_file, "--output", tmp_path / "asked", "--set", "unlabeled", *off)
    assert [*contents(tmp_path / "asked")] == ["unlabeled_001.jpg"]


def test_the_batch_is_that_of_training_in_one_process(tool, config_file, tmp_path):
    # With the orientations grouped, the order of images depends on the size of the batch.
    opts = ("SOLVER.REFERENCE_WORLD_SIZE", "2", "SOLVER.IMS_PER_BATCH", "8")
    opts = (*opts, "SOLVER.IMS_PER_BATCH_UNLABELED", "4")
    args = tool.parse_arguments(["--config-file", str(config_file), *opts])
    cfg = tool.read_config(args)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.IMS_PER_BATCH_UNLABELED) == (4, 2)
    assert cfg.DATALOADER.NUM_WORKERS == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num", "0"], "--num is 0; it must be at least 1"),
        (["--seed", "-1"], "--seed is -1; it must not be negative"),
        (["SOLVER.MAX_ITER"], "KEY VALUE pairs expected, not SOLVER.MAX_ITER"),
        (["--config-file", "missing.yaml"], "there is no file missing.yaml"),
    ],
)
def test_a_wrong_command_line_is_refused_with_its_reason(
    tool, config_file, arguments, message, capsys
):
    with pytest.raises(SystemExit):
        run(tool, config_file, *arguments)
    assert message in capsys.readouterr().err


def test_a_missing_set_is_named_by_its_key_and_nothing_is_written(tool, config_file, tmp_path):
    output = tmp_path / "pictures"
    for key in ("DATASETS.TRAIN", "DATASETS.UNLABELED"):
        with pytest.raises(ValueError, match=f"{key} is empty"):
            run(tool, config_file, "--output", output, key, "()")
    assert not output.exists()


def test_an_unreadable_unlabeled_image_leaves_the_folder_of_the_training_alone(
    tool, config_file, tmp_path, caplog
):
    (tmp_path / "data/unlabeled_1.png").write_bytes(b"no image")
    options = ("--set", "unlabeled", "--num", len(SCENES))
    run(tool, config_file, "--output", tmp_path / "a", *options, "OUTPUT_DIR", tmp_path / "run")
    assert "unlabeled_1.png" in caplog.text
    assert not (tmp_path / "run").exists()
    assert len([*(tmp_path / "a").glob("*.jpg")]) == len(SCENES)


def test_the_views_of_a_sheet_are_aligned(tool, config_file, tmp_path):
    run(tool, config_file, "--output", tmp_path, "--set", "unlabeled", "--num", 1)
    with Image.open(tmp_path / "unlabeled_001.jpg") as file:
        sheet = np.asarray(file.convert("L"))
    # Between the views and below them it is white, in all else the images' colors.
    white_columns = np.flatnonzero((sheet[:200] > 240).all(axis=0))
    assert len(white_columns) >= 6
    left, right = sheet[:, : white_columns[0]], sheet[:, white_columns[-1] + 1 :]
    ends = [np.flatnonzero((x < 200).mean(axis=1) > 0.9)[-1] for x in (left, right)]
    assert abs(ends[0] - ends[1]) <= 2
