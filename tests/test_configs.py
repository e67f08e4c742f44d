"""The recipes in configs/ are complete and hold the numbers that they are named after."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from soft_teacher import add_soft_teacher_config
from soft_teacher.config import head_section, load_config, num_classes
from soft_teacher.data.registry import resolve_dataset_names
from soft_teacher.engine.schedule import scale_to_world_size

CONFIGS = Path(__file__).parents[1] / "configs"
# What lies in suites/ itself are lists of experiments.
FILES = [path for path in CONFIGS.rglob("*.yaml") if path.parent != CONFIGS / "suites"]
ALL = sorted(str(path.relative_to(CONFIGS)) for path in FILES)
RECIPES = [name for name in ALL if not Path(name).name.startswith("Base-")]
COCO = [name for name in RECIPES if name.startswith("coco/")]

# Labeled and unlabeled images a step, learning rate, iterations, the first decay, alpha.
PARTIAL = (8, 32, 0.01, 180_000, (120_000, 160_000), 4.0)
PARTIAL_SUPERVISED = (8, None, 0.01, 180_000, (120_000, 160_000), None)
FULL_SUPERVISED = (16, None, 0.02, 720_000, (480_000, 640_000), None)
STAC = (8, 8, 0.01, 180_000, (120_000, 160_000), 2.0)
OFFICIAL = {
    **{
        f"{system}_R_50_FPN_{percent}pct": STAC if system == "stac" else PARTIAL
        for system in ("e2e", "e2e_ema", "soft", "multi_stage", "stac")
        for percent in (1, 5, 10)
    },
    "stac_R_50_FPN_full_720k": (32, 32, 0.01, 720_000, (480_000, 640_000), 2.0),
    "soft_teacher_R_50_FPN_1pct": PARTIAL,
    "soft_teacher_R_50_FPN_5pct": PARTIAL,
    "soft_teacher_R_50_FPN_10pct": PARTIAL,
    "soft_teacher_R_50_FPN_full_720k": (32, 32, 0.01, 720_000, (480_000, 640_000), 2.0),
    "soft_teacher_R_50_FPN_full_1440k": (32, 32, 0.01, 1_440_000, (960_000, 1_280_000), 2.0),
    "soft_teacher_R_101_FPN_full_1080k": (32, 32, 0.01, 1_080_000, (720_000, 960_000), 2.0),
    "supervised_R_50_FPN_1pct": PARTIAL_SUPERVISED,
    "supervised_R_50_FPN_5pct": PARTIAL_SUPERVISED,
    "supervised_R_50_FPN_10pct": PARTIAL_SUPERVISED,
    "supervised_R_50_FPN_full_720k": FULL_SUPERVISED,
    "supervised_R_101_FPN_full_720k": FULL_SUPERVISED,
    # The paper and the official code have no cascade: the numbers are those of Faster R-CNN.
    "soft_teacher_cascade_R_50_FPN_10pct": PARTIAL,
    "soft_teacher_cascade_R_50_FPN_full_720k": (32, 32, 0.01, 720_000, (480_000, 640_000), 2.0),
    "supervised_cascade_R_50_FPN_10pct": PARTIAL_SUPERVISED,
    "supervised_cascade_R_50_FPN_full_720k": FULL_SUPERVISED,
    "soft_teacher_cascade_mask_R_50_FPN_10pct": PARTIAL,
    "supervised_cascade_mask_R_50_FPN_10pct": PARTIAL_SUPERVISED,
}
# The paper and the official code have no Mask R-CNN: the numbers are those of Faster R-CNN.
OFFICIAL |= {
    name.replace("_R_50_", "_mask_R_50_"): numbers
    for name, numbers in OFFICIAL.items()
    if re.fullmatch("(supervised|soft_teacher)_R_50_FPN_(.*pct|full_720k)", name)
}
# Those of R_50 but for the backbone and its optimizer.
SWIN = ["supervised_swin_T_FPN_10pct", "soft_teacher_swin_T_FPN_10pct"]
# Those of R_50 but for the heads.
HTC = ["supervised_htc_R_50_FPN_10pct", "soft_teacher_htc_R_50_FPN_10pct"]
# A schedule of its own: the paper states none.
HTC_PLUS_PLUS = [
    f"{system}_htc_plus_plus_swin_L{start}_FPN_full_270k{test}"
    for system in ("supervised", "soft_teacher")
    for start in ("", "_objects365")
    for test in ("", "_multi_scale")
]
# Those of R_50 but for the detector, its thresholds and its learning rate.
ONE_STAGE = [
    f"{system}_{detector}_R_50_FPN_10pct"
    for system in ("supervised", "soft_teacher")
    for detector in ("retinanet", "fcos")
]


def load(name: str) -> CfgNode:
    cfg = get_cfg()
    add_soft_teacher_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name), allow_unsafe=False)
    return cfg


# That a model is built from every recipe is tested in test_rehearsal.py.
@pytest.mark.parametrize("detector", ["R_50", "retinanet_R_50", "fcos_R_50"])
def test_a_model_has_the_classes_that_its_config_names(detector):
    cfg = load(f"coco/soft_teacher_{detector}_FPN_10pct.yaml")
    cfg.MODEL.WEIGHTS = ""
    # Shapes without values: drawing random weights is what would take the time.
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    # One-stage detectors are their own heads.
    assert getattr(model, "roi_heads", model).num_classes == num_classes(cfg)


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        ("SOLVER: {MAX_ITR: 5}", [], r"x\.yaml, or a _BASE_ of it: .* SOLVER\.MAX_ITR"),
        ("", ["SOLVER.MAX_ITR", "5"], r"KEY VALUE pairs: .*SOLVER\.MAX_ITR"),
        ("", ["SOLVER.MAX_ITER"], "KEY VALUE pairs: .*list of pairs"),
    ],
)
def test_a_key_that_is_not_there_is_refused_by_name_and_place(
    tmp_path, content, overrides, message
):
    (tmp_path / "x.yaml").write_text(f"VERSION: 2\n{content}\n")
    with pytest.raises(ValueError, match=message):
        load_config(str(tmp_path / "x.yaml"), overrides)


@pytest.mark.parametrize("name", RECIPES)
def test_the_learning_rate_decays_within_training(name):
    solver = load(name).SOLVER
    milestones = [solver.WARMUP_ITERS, *solver.STEPS, solver.MAX_ITER]
    assert milestones == sorted(set(milestones))


def test_every_recipe_writes_to_its_own_folder():
    folders = [load(name).OUTPUT_DIR for name in RECIPES]
    assert len(set(folders)) == len(folders)


def test_every_coco_recipe_is_compared_with_the_official_numbers():
    assert sorted([*OFFICIAL, *SWIN, *HTC, *HTC_PLUS_PLUS, *ONE_STAGE]) == sorted(
        Path(name).stem for name in COCO
    )


@pytest.mark.parametrize("name", OFFICIAL)
def test_coco_recipes_hold_the_official_numbers(name):
    cfg = load(f"coco/{name}.yaml")
    solver, st = cfg.SOLVER, cfg.SOFT_TEACHER
    labeled, unlabeled, lr, iterations, steps, alpha = OFFICIAL[name]
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (labeled, lr)
    assert (solver.MAX_ITER, solver.STEPS) == (iterations, steps)
    assert st.ENABLED == (unlabeled is not None)
    if unlabeled is not None:
        assert solver.IMS_PER_BATCH_UNLABELED == unlabeled
        assert (st.UNSUP_LOSS_WEIGHT, st.EMA.MOMENTUM) == (alpha, 0.999)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.WARMUP_METHOD) == (
        500,
        0.001,
        "linear",
    )
    assert (solver.MOMENTUM, solver.WEIGHT_DECAY, solver.AMP.ENABLED) == (0.9, 1e-4, True)
    assert (cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING) == ("BGR", "range")
    scales = (500, 800) if name.startswith("stac") else (400, 1200)
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN) == (scales, 1333)
    assert cfg.TEST.EVAL_PERIOD == solver.CHECKPOINT_PERIOD == 4000
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.05
    depth = cfg.MODEL.RESNETS.DEPTH
    assert f"R_{depth}_" in name
    assert cfg.MODEL.WEIGHTS == f"detectron2://ImageNetPretrained/MSRA/R-{depth}.pkl"


@pytest.mark.parametrize("name", COCO)
def test_coco_recipes_say_what_is_published_of_them(name):
    (comment,) = re.findall(r"\A((?:# .*\n)*)", (CONFIGS / name).read_text())
    assert re.search(r"\bAP \d|\b[Pp]aper\b", comment)


# EMA, reliability of the background, box jittering, labels from a file: tables 2, 5 and 6.
SYSTEMS = {
    "supervised": (False, "teacher", True, False),
    "multi_stage": (False, "none", False, True),
    "stac": (False, "none", False, True),
    "e2e": (False, "none", False, False),
    "e2e_ema": (True, "none", False, False),
    "soft": (True, "teacher", False, False),
    "soft_teacher": (True, "teacher", True, False),
}


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("custom/")])
def test_recipes_have_the_switches_of_the_system_that_they_are_named_after(name):
    st = load(name).SOFT_TEACHER
    switches = (st.EMA.ENABLED, st.BACKGROUND.RELIABILITY, st.JITTER.ENABLED)
    system = re.split(
        "_swin|_htc|_mask|_cascade|_retinanet|_fcos|_R_50|_R_101|_lite0", Path(name).stem
    )[0]
    assert (*switches, bool(st.PSEUDO_LABELS.FILES)) == SYSTEMS[system]
    if not is_one_stage(name):
        assert (st.PSEUDO_LABELS.RPN_SCORE, st.PSEUDO_LABELS.CLS_SCORE) == (0.9, 0.9)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith(("coco/", "demo/"))])
def test_stage_2_begins_anew_with_labels_from_the_end_of_stage_1(name):
    cfg = load(name)
    for file in cfg.SOFT_TEACHER.PSEUDO_LABELS.FILES:
        start = "supervised_" + re.split("stage_|stac_", name, maxsplit=1)[1]
        stage_1 = load(str(Path(name).with_name(start)))
        folder = stage_1.OUTPUT_DIR.replace("output/demo/", "output/demo/seed_0/")
        assert file == f"{folder}/pseudo_labels.json"
        assert cfg.MODEL.WEIGHTS == stage_1.MODEL.WEIGHTS
        assert cfg.DATASETS.TRAIN == stage_1.DATASETS.TRAIN


@pytest.mark.parametrize(
    "name", [name for name in RECIPES if name.startswith("demo/") and load(name).MODEL.WEIGHTS]
)
def test_what_the_demos_recipes_start_from_is_saved_by_the_supervised_one_of_the_detector(name):
    weights = Path(load(name).MODEL.WEIGHTS)
    detector = next((x for x in ("_retinanet", "_fcos") if x in name), "")
    supervised = load(f"demo/supervised{detector}_lite0_FPN.yaml")
    # tools/demo.py has a folder for each seed.
    folder = str(weights.parent) if detector else str(weights.parent).replace("seed_0/", "")
    assert folder == supervised.OUTPUT_DIR
    saved = int(weights.stem.removeprefix("model_")) + 1
    assert saved % supervised.SOLVER.CHECKPOINT_PERIOD == 0 and saved < supervised.SOLVER.MAX_ITER


@pytest.mark.parametrize("name", [name for name in RECIPES if "_mask_" in name])
def test_recipes_with_masks_are_those_without_but_for_the_mask_head(name):
    cfg, other = load(name), load(name.replace("_mask_", "_"))
    assert cfg.MODEL.MASK_ON and cfg.MODEL.ROI_MASK_HEAD.NUM_CONV == 4
    other.MODEL.MASK_ON = True
    other.MODEL.ROI_MASK_HEAD = cfg.MODEL.ROI_MASK_HEAD
    other.INPUT.MASK_FORMAT = cfg.INPUT.MASK_FORMAT
    assert other.OUTPUT_DIR != cfg.OUTPUT_DIR
    other.OUTPUT_DIR = cfg.OUTPUT_DIR
    assert other == cfg


@pytest.mark.parametrize("name", SWIN)
def test_swin_recipes_are_those_of_r50_with_the_rules_of_swins_authors(name):
    cfg, other = load(f"coco/{name}.yaml"), load(f"coco/{name.replace('swin_T', 'R_50')}.yaml")
    solver, model = cfg.SOLVER, cfg.MODEL
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY) == ("ADAMW", 1e-4, 0.05)
    assert (solver.WEIGHT_DECAY_NORM, model.SWIN.DROP_PATH_RATE) == (0.0, 0.2)
    assert (model.WEIGHTS, cfg.INPUT.FORMAT) == ("", "RGB")
    for key in ("OPTIMIZER", "BASE_LR", "WEIGHT_DECAY"):
        other.SOLVER[key] = solver[key]
    for key in ("WEIGHTS", "SWIN", "PIXEL_MEAN", "PIXEL_STD", "BACKBONE"):
        other.MODEL[key] = model[key]
    other.INPUT.FORMAT = cfg.INPUT.FORMAT
    assert other.OUTPUT_DIR != cfg.OUTPUT_DIR
    other.OUTPUT_DIR = cfg.OUTPUT_DIR
    assert other == cfg


@pytest.mark.parametrize("name", HTC)
def test_htc_recipes_are_those_of_faster_r_cnn_with_the_heads_of_mmdetections_htc(name):
    cfg, other = load(f"coco/{name}.yaml"), load(f"coco/{name.replace('htc_', '')}.yaml")
    model = cfg.MODEL
    assert model.ROI_HEADS.NAME == "SoftTeacherHTCROIHeads" and model.MASK_ON
    assert (model.ROI_HEADS.SCORE_THRESH_TEST, model.ROI_BOX_HEAD.SMOOTH_L1_BETA) == (0.001, 1.0)
    assert (model.RPN.PRE_NMS_TOPK_TRAIN, model.RPN.POST_NMS_TOPK_TRAIN) == (2000, 2000)
    assert pytest.approx(1 / 9, abs=1e-7) == model.RPN.SMOOTH_L1_BETA
    assert model.ROI_BOX_CASCADE_HEAD.IOUS == (0.5, 0.6, 0.7)
    for stds, weights in zip(
        [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)],
        model.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS,
        strict=True,
    ):
        assert weights == pytest.approx([1 / x for x in stds])
    htc = model.ROI_HTC
    assert (htc.INTERLEAVED, htc.MASK_INFO_FLOW, htc.SCORE_AVERAGE) == (True, True, "logits")
    assert htc.STAGE_LOSS_WEIGHTS == (1.0, 0.5, 0.25) and not htc.SEMANTIC_ON
    for key in ("ROI_HEADS", "ROI_BOX_HEAD", "ROI_BOX_CASCADE_HEAD", "ROI_MASK_HEAD", "RPN"):
        other.MODEL[key] = model[key]
    other.MODEL.MASK_ON, other.OUTPUT_DIR = True, cfg.OUTPUT_DIR
    other.SOFT_TEACHER.PSEUDO_LABELS.REG_VARIANCE = 0.003 if "soft" in name else 0.02
    assert other == cfg


# From table 1: box and mask AP by training and test.
PUBLISHED = {
    ("supervised", "", ""): (57.1, 49.6),
    ("supervised", "", "_multi_scale"): (58.2, 50.5),
    ("soft_teacher", "", ""): (59.1, 51.0),
    ("soft_teacher", "", "_multi_scale"): (59.9, 51.9),
    ("soft_teacher", "_objects365", ""): (60.1, 51.9),
    ("soft_teacher", "_objects365", "_multi_scale"): (60.7, 52.5),
}


@pytest.mark.parametrize("name", HTC_PLUS_PLUS)
def test_htc_plus_plus_recipes_hold_what_is_published_of_it(name):
    cfg = load(f"coco/{name}.yaml")
    model, solver, swin = cfg.MODEL, cfg.SOLVER, cfg.MODEL.SWIN
    assert (swin.EMBED_DIM, swin.DEPTHS, swin.NUM_HEADS) == (192, (2, 2, 18, 2), (6, 12, 24, 48))
    assert swin.GLOBAL_ATTENTION.ENABLED and model.ROI_HEADS.SOFT_NMS.ENABLED and model.MASK_ON
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN) == ((400, 1400), 1600)
    assert (cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING, cfg.INPUT.FORMAT) == ("range", "RGB")
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY) == ("ADAMW", 1e-4, 0.05)
    assert (solver.IMS_PER_BATCH, solver.WEIGHT_DECAY_NORM) == (16, 0.0)
    assert cfg.DATASETS.TRAIN == ("coco_2017_train",)
    htc = load("coco/soft_teacher_htc_R_50_FPN_10pct.yaml").MODEL
    assert (model.ROI_BOX_HEAD.SMOOTH_L1_BETA, model.RPN.SMOOTH_L1_BETA) == (1.0, 0.1111111)
    for section in ("RPN", "ROI_BOX_CASCADE_HEAD", "ROI_MASK_HEAD"):
        assert model[section] == htc[section]
    assert (model.ROI_HEADS.NAME, model.ROI_HEADS.SCORE_THRESH_TEST) == (
        htc.ROI_HEADS.NAME,
        htc.ROI_HEADS.SCORE_THRESH_TEST,
    )
    system, start, test = re.fullmatch(
        "(.*)_htc_plus_plus_swin_L(_objects365)?_FPN_full_270k(_multi_scale)?", name
    ).groups(default="")
    assert cfg.TEST.AUG.ENABLED == (test != "")
    # Either the whole detector or its backbone has weights of its own.
    assert bool(model.WEIGHTS) == (start != "") == (not swin.WEIGHTS)
    first_line = (CONFIGS / f"coco/{name}.yaml").read_text().splitlines()[0]
    box, mask = PUBLISHED.get((system, start, test), (None, None))
    says = f"AP {box}, mask AP {mask} (paper)." if box else "The paper has no supervised number"
    assert says in first_line


def is_one_stage(name: str) -> bool:
    return "_retinanet_" in name or "_fcos_" in name


@pytest.mark.parametrize("name", ONE_STAGE)
def test_one_stage_recipes_are_those_of_faster_r_cnn_but_for_detector_and_thresholds(name):
    cfg = load(f"coco/{name}.yaml")
    other = load(f"coco/{name.replace('_retinanet', '').replace('_fcos', '')}.yaml")
    model, st = cfg.MODEL, cfg.SOFT_TEACHER
    fcos = "fcos" in name
    assert model.META_ARCHITECTURE == ("SoftTeacherFCOS" if fcos else "SoftTeacherRetinaNet")
    assert cfg.SOLVER.BASE_LR == 0.005
    assert model[head_section(cfg)].SCORE_THRESH_TEST == other.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    assert st.PSEUDO_LABELS.MIN_SCORE < st.PSEUDO_LABELS.CLS_SCORE == 0.5
    assert not st.ENABLED or st.PSEUDO_LABELS.REG_VARIANCE == 0.05
    other.MODEL, other.SOLVER.BASE_LR, other.OUTPUT_DIR = model, 0.005, cfg.OUTPUT_DIR
    for key in ("PSEUDO_LABELS", "UNSUP_LOSS_WEIGHT", "BURN_IN_ITERS"):
        other.SOFT_TEACHER[key] = st[key]
    assert other == cfg


@pytest.mark.parametrize("name", COCO)
def test_coco_recipes_name_sets_that_are_registered_for_every_fold(name):
    cfg = load(name)
    for fold in (1, 2, 3, 4, 5):
        cfg.DATASETS.FOLD = fold
        labeled, unlabeled = resolve_dataset_names(cfg)
        assert set(labeled + unlabeled + cfg.DATASETS.TEST) <= set(DatasetCatalog)
        assert bool(unlabeled) == cfg.SOFT_TEACHER.ENABLED
        if "pct" in name:
            percent = Path(name).stem.rsplit("_", 1)[1].removesuffix("pct")
            assert labeled == (f"coco_semi_{fold}@{percent}",)
            assert unlabeled in ((), (f"coco_semi_{fold}@{percent}_unlabeled",))


@pytest.mark.parametrize("name", COCO)
def test_each_gpu_holds_whole_images_whatever_the_number_of_gpus(name):
    cfg = load(name)
    for world_size in (1, 2, 4, 8, 16):
        solver = scale_to_world_size(cfg, world_size).SOLVER
        assert solver.IMS_PER_BATCH == cfg.SOLVER.IMS_PER_BATCH // 8 * world_size
        assert (
            solver.IMS_PER_BATCH_UNLABELED == cfg.SOLVER.IMS_PER_BATCH_UNLABELED // 8 * world_size
        )


def test_one_gpu_runs_one_labeled_and_four_unlabeled_images_for_as_many_epochs():
    cfg = scale_to_world_size(load("coco/soft_teacher_R_50_FPN_10pct.yaml"), 1)
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.IMS_PER_BATCH_UNLABELED) == (1, 4)
    assert solver.BASE_LR == pytest.approx(0.00125)
    assert (solver.MAX_ITER, solver.STEPS) == (1_440_000, (960_000, 1_280_000))
    assert (solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD) == (4000, 32_000)
    assert cfg.TEST.EVAL_PERIOD == 32_000
    assert cfg.SOFT_TEACHER.EMA.MOMENTUM == pytest.approx(0.999875, abs=1e-6)
