"""tools/rehearse.py: every config is built and adds up, real steps are taken, wrongs are named."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from soft_teacher import load_config
from soft_teacher.engine.rehearsal import tables
from soft_teacher.engine.rehearsal.building import find_recipes
from soft_teacher.engine.rehearsal.real_steps import StepsTaken
from tiny import tiny_config
from tiny_training import NARROW

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
FLAGSHIP = CONFIGS / "coco/soft_teacher_R_50_FPN_10pct.yaml"


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rehearse", ROOT / "tools/rehearse.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


tool = load_tool()


def rehearse(folder: Path, *arguments) -> tuple[int, dict[str, list[str]], str]:
    """Exit status, cells of each line of a table by its config, and the whole text."""
    output = folder / "rehearsal.md"
    options = ["--output", output, "--console-dir", folder / "console"]
    status = tool.main([str(x) for x in (*options, *arguments)])
    text = output.read_text()
    rows = {}
    for line in text.splitlines():
        if line.startswith("| "):
            name, *cells = (x.strip() for x in line.strip("|").split("|"))
            rows.setdefault(name, []).extend(cells)
    return status, rows, text


def write(folder: Path, name: str, **keys) -> Path:
    """A config of a tiny model; keys with "__" for "."."""
    path = folder / f"{name}.yaml"
    small = {"INPUT__MIN_SIZE_TRAIN": (64, 96), "SOLVER__STEPS": ()}
    path.write_text(tiny_config(**{**NARROW, **small, **keys}).dump())
    return path


def test_every_recipe_below_configs_is_built_and_does_not_contradict_itself(tmp_path):
    pytest.importorskip("timm")
    status, rows, text = rehearse(tmp_path)
    assert status == 0, text
    names = {str(x.relative_to(CONFIGS).with_suffix("")) for x in find_recipes(CONFIGS)}
    assert names < rows.keys()
    assert "-" not in {rows[name][-1] for name in names}
    # From the paper's numbers: 180,000 steps of 8 + 32, on 11,828 labeled images of 118,287.
    cells = rows["coco/soft_teacher_R_50_FPN_10pct"]
    assert cells[:6] == ["8", "8 + 32", "180,000", "500", "120,000, 160,000", "122"]
    assert cells[6:10] == ["54", "0.01", "0.00025", "1,000"]


def test_what_is_a_recipe_is_found_out_from_the_file():
    recipes = {str(x.relative_to(CONFIGS)) for x in find_recipes(CONFIGS)}
    assert {"coco/soft_teacher_R_50_FPN_10pct.yaml", "suites/digits/stac_lite0_FPN.yaml"} <= recipes
    others = {str(x.relative_to(CONFIGS)) for x in CONFIGS.rglob("*.yaml")} - recipes
    for name in others:
        content = yaml.safe_load((CONFIGS / name).read_text())
        assert Path(name).name.startswith("Base-") or "rows" in content


def test_numbers_for_another_number_of_gpus_are_scaled(tmp_path):
    status, rows, _ = rehearse(tmp_path, "--num-gpus", 1, FLAGSHIP)
    assert status == 0
    cells = rows["coco/soft_teacher_R_50_FPN_10pct"]
    assert cells[:3] == ["1", "1 + 4", "1,440,000"]
    assert cells[7:9] == ["0.00125", "0.00025"]


def test_a_number_of_gpus_that_cannot_be_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        rehearse(tmp_path, "--num-gpus", 0, FLAGSHIP)
    assert "--num-gpus is 0; it must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["soft_teacher", "supervised", "multi_stage"])
def test_two_steps_are_taken_in_a_process_of_their_own(kind, tmp_path):
    keys = {
        "soft_teacher": {},
        "supervised": {"SOFT_TEACHER__ENABLED": False, "SOFT_TEACHER__EMA__ENABLED": False},
        "multi_stage": {
            "DATASETS__TRAIN": ("digits_labeled",),
            "DATASETS__UNLABELED": ("digits_unlabeled",),
            "SOFT_TEACHER__PSEUDO_LABELS__FILES": ("not there.json",),
            "SOFT_TEACHER__EMA__ENABLED": False,
            "SOFT_TEACHER__JITTER__ENABLED": False,
            "SOFT_TEACHER__BACKGROUND__RELIABILITY": "none",
        },
    }[kind]
    path = write(tmp_path, kind, **keys)
    args = tool.make_parser().parse_args(["--console-dir", str(tmp_path), "--steps", str(path)])
    found = tool.rehearse(path, args, tool.tqdm(disable=True))
    assert found.problems == []
    taken = found.steps
    # 480 x 640 with its short side at 96, the largest scale.
    assert taken.size == (96, 128)
    assert len(taken.seconds) == 2
    assert taken.peak_memory > 2**26
    assert taken.losses["loss_cls"] > 0
    unlabeled = {"loss_cls_unsup", "loss_box_reg_unsup", "loss_rpn_cls_unsup"}
    assert (unlabeled <= taken.losses.keys()) == (kind != "supervised")
    if kind == "soft_teacher":
        # Pseudo boxes teach, and regression among them.
        assert taken.losses["loss_box_reg_unsup"] > 0


def test_what_is_wrong_is_named_and_the_others_go_on(tmp_path, capsys):
    broken = tmp_path / "broken.yaml"
    broken.write_text("VERSION: 2\nMODEL: {META_ARCHITECTURE: Unheard}\n")
    misspelled = tmp_path / "misspelled.yaml"
    misspelled.write_text("VERSION: 2\nSOLVER: {MAX_ITERS: 1}\n")
    failing = write(tmp_path, "failing", SOFT_TEACHER__UNSUP_LOSS_WEIGHT=float("inf"))
    good = write(tmp_path, "good")
    status, rows, text = rehearse(tmp_path, "--steps", broken, misspelled, failing, good)
    assert status == 1
    assert "Unheard" in text and "MAX_ITERS" in text
    assert "A step was skipped for a value that is not finite" in text
    assert len(rows[str(good.with_suffix(""))]) > len(rows[str(failing.with_suffix(""))])


def test_steps_that_need_too_much_memory_are_a_problem():
    found = tables.Rehearsed("large", steps=StepsTaken((800, 1333), (1.0, 1.0), 21 * 2**30, {}))
    found.note_memory()
    assert found.problems == ["Its steps needed 21.0 GiB, more than 20."]
    found = tables.Rehearsed("small", steps=StepsTaken((800, 1333), (1.0, 1.0), 19 * 2**30, {}))
    found.note_memory()
    assert found.problems == []


def test_only_faster_rcnns_take_steps_unless_they_are_named():
    assert tool.is_faster_rcnn(load_config(str(FLAGSHIP)))
    assert not tool.is_faster_rcnn(load_config(str(FLAGSHIP), ["MODEL.MASK_ON", "True"]))
    other = ["MODEL.META_ARCHITECTURE", "RetinaNet"]
    assert not tool.is_faster_rcnn(load_config(str(FLAGSHIP), other))


@pytest.mark.slow
def test_the_main_recipe_takes_two_steps_at_true_scale_within_20_gib(tmp_path):
    status, rows, text = rehearse(tmp_path, "--steps", FLAGSHIP)
    assert status == 0, text
    assert rows["coco/soft_teacher_R_50_FPN_10pct"][11] == "1000 x 1333"
