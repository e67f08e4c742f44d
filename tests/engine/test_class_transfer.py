"""A detector of other classes as a start: shared ones are found as before, nothing is lost."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes
from torch import nn

import train_net
from cascades import CASCADE
from masks import MASK_HEAD
from rois import SIZE, features_of
from soft_teacher.engine import load_models
from soft_teacher.engine.class_transfer import (
    ALIASES,
    class_layers,
    match_classes,
    transfer_classes,
)
from soft_teacher.engine.ema import build_teacher
from tiny import random_boxes, tiny_config, tiny_model
from tiny_training import write_config

TOOL = Path(__file__).parents[2] / "tools/transfer_classes.py"
OLD = ["Tree", "Car", "Wild Bird", "Person"]
NEW = ["person", "dog", "bird", "Car", "cat"]
# New class -> old class, by hand.
SHARED = {0: 3, 2: 2, 3: 1}
CASES = {
    "plain": {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False},
    "agnostic": {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True},
    "agnostic_masks": {"MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True},
    "cascade": CASCADE,
    "htc": {
        **CASCADE,
        "MODEL.ROI_HEADS.NAME": "SoftTeacherHTCROIHeads",
        "MODEL.ROI_HTC.SEMANTIC_ON": True,
    },
}


def keys_of(names: list[str], case: str, **overrides) -> dict:
    return {
        **MASK_HEAD,
        **CASES[case],
        "MODEL.ROI_HEADS.NUM_CLASSES": len(names),
        **overrides,
    }


def build(names: list[str], case: str, seed: int, **overrides) -> nn.Module:
    """A detector all of whose weights are random."""
    model = tiny_model(seed, **keys_of(names, case, **overrides)).eval()
    # The semantic branch has so many layers that more would leave the background alone.
    std = 0.05 if case == "htc" else 0.2
    for parameter in model.roi_heads.parameters():
        nn.init.normal_(parameter, std=std)
    return model


def transfer(old: nn.Module, new: nn.Module, case: str, state=None, **overrides):
    return transfer_classes(
        old.state_dict() if state is None else state,
        new,
        tiny_config(**keys_of(NEW, case, **overrides)),
        match_classes(OLD, NEW),
        len(OLD),
    )


@torch.no_grad()
def outputs(model: nn.Module, boxes: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Logits, deltas by class, and mask logits of each stage for boxes in an image."""
    heads, features = model.roi_heads, features_of(model, 1)
    is_htc = isinstance(heads.mask_head, nn.ModuleList)
    if is_htc:
        heads._add_embedding(features)
    levels = [features[f] for f in heads.box_in_features]
    if isinstance(heads.box_predictor, nn.ModuleList):
        stages = zip(heads.box_head, heads.box_predictor, strict=True)
    else:
        stages = [(heads.box_head, heads.box_predictor)]
    pooled = heads.box_pooler(levels, [Boxes(boxes)])
    for_masks = heads.mask_pooler(levels, [Boxes(boxes)])
    found = []
    for stage, (head, predictor) in enumerate(stages):
        logits, deltas = predictor(head(pooled))
        masks = (
            heads._mask_logits(stage, for_masks) if is_htc else heads.mask_head.layers(for_masks)
        )
        found.append({"logits": logits, "deltas": deltas, "masks": masks})
    return found


@pytest.mark.parametrize("case", CASES)
def test_shared_classes_are_found_as_before(case):
    old, new = build(OLD, case, seed=1), build(NEW, case, seed=2)
    before = {k: x.clone() for k, x in new.state_dict().items()}
    found = transfer(old, new, case)
    assert found.fresh == []
    new.load_state_dict(found.state, strict=True)
    boxes = random_boxes(0, 6, SIZE)
    background = (len(NEW), len(OLD))
    for ours, theirs in zip(outputs(new, boxes), outputs(old, boxes), strict=True):
        for here, there in [*SHARED.items(), background]:
            torch.testing.assert_close(ours["logits"][:, here], theirs["logits"][:, there])
        for kind, width in (("deltas", 4), ("masks", 1)):
            x, y = ours[kind], theirs[kind]
            if x.shape[1] == width:
                torch.testing.assert_close(x, y)
                continue
            for here, there in SHARED.items():
                block = slice(here * width, (here + 1) * width)
                other = slice(there * width, (there + 1) * width)
                torch.testing.assert_close(x[:, block], y[:, other])
    # Other classes start as the new detector had them.
    for name in class_layers(tiny_config(**keys_of(NEW, case)), new):
        if name.endswith("cls_score"):
            for k in set(range(len(NEW))) - set(SHARED):
                assert torch.equal(found.state[f"{name}.weight"][k], before[f"{name}.weight"][k])


@pytest.mark.parametrize("case", ["cascade", "htc"])
def test_detections_of_shared_classes_alone_are_the_same(case):
    """With the same classes in another order, a detector finds the same by other numbers."""
    order, all_scores = [2, 0, 3, 1], {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}
    old = build(OLD, case, seed=1, **all_scores)
    names = [OLD[i] for i in order]
    new = build(names, case, seed=2, **all_scores)
    cfg = tiny_config(**keys_of(names, case))
    found = transfer_classes(old.state_dict(), new, cfg, match_classes(OLD, names), len(OLD))
    new.load_state_dict(found.state)
    view = {"image": torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)}
    with torch.no_grad():
        a, b = (x([view])[0]["instances"] for x in (old, new))
    assert len(a) > 5
    torch.testing.assert_close(a.scores, b.scores)
    torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor)
    assert a.pred_classes.tolist() == [order[k] for k in b.pred_classes.tolist()]
    assert torch.equal(a.pred_masks, b.pred_masks)


@pytest.mark.parametrize("case", ["plain", "htc"])
def test_masks_and_the_semantic_branch_start_afresh_if_the_old_detector_has_none(case):
    without = {"MODEL.MASK_ON": False, "MODEL.ROI_HTC.SEMANTIC_ON": False}
    old, new = build(OLD, case, seed=1, **without), build(NEW, case, seed=2)
    found = transfer(old, new, case)
    parts = ["roi_heads.mask_head."] + (["roi_heads.semantic_head."] if case == "htc" else [])
    fresh = [k for k in new.state_dict() if k.startswith(tuple(parts))]
    assert sorted(found.fresh) == sorted(fresh) and len(fresh) > len(parts)
    assert all(torch.equal(found.state[k], new.state_dict()[k]) for k in fresh)
    assert all(torch.equal(found.state[k], x) for k, x in old.state_dict().items() if "fpn" in k)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("backbone.fpn_output2.weight"), r"backbone\.fpn_output2\.weight is not"),
        (lambda s: s.pop("roi_heads.mask_head.predictor.bias"), r"predictor\.bias is not in it"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra is in it alone"),
        (
            lambda s: s.update({"backbone.fpn_output2.norm.bias": torch.zeros(7)}),
            r"fpn_output2\.norm\.bias is \(7,\), not \(32,\)",
        ),
        (
            lambda s: s.update(
                {k: x[:-1] for k, x in s.items() if k == "roi_heads.box_predictor.cls_score.bias"}
            ),
            r"cls_score\.bias is \(4,\) and not that of 4 classes, \(5,\)",
        ),
    ],
    ids=["missing", "half_a_part", "unknown", "shape", "number_of_classes"],
)
def test_whatever_else_differs_is_an_error(change, says):
    old, new = build(OLD, "plain", seed=1), build(NEW, "plain", seed=2)
    state = dict(old.state_dict())
    change(state)
    with pytest.raises(ValueError, match=says):
        transfer(old, new, "plain", state)


def test_names_match_whatever_their_case_and_aliases_only_without_a_match():
    matches = match_classes(["Wild Bird", " TV ", "Bird", "Moniter/TV"], ["bird", "tv", "orange"])
    assert [(x.old, x.by_alias) for x in matches] == [(2, False), (1, False), (None, False)]
    matches = match_classes(["Moniter/TV", "Orange/Tangerine"], ["orange", "tv"])
    assert [(x.old, x.by_alias) for x in matches] == [(1, True), (0, True)]
    for names in (["car", "Car"], ["bus"]), (["bus"], ["car", "CAR "]):
        with pytest.raises(ValueError, match=r"(old|new) classes are called '(Car|CAR )'"):
            match_classes(*names)


def test_aliases_are_of_classes_that_coco_has():
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    assert set(ALIASES) <= {x["name"] for x in COCO_CATEGORIES if x["isthing"]}
    assert len(set(ALIASES.values())) == len(ALIASES)


def test_one_stage_detectors_are_refused():
    with pytest.raises(ValueError, match=r"MODEL\.META_ARCHITECTURE is"):
        class_layers(tiny_config(), nn.Linear(1, 1))


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("transfer_classes", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A config of classes r, g and b, and a checkpoint of a detector of b, x, r and y."""
    folder = tmp_path_factory.mktemp("transfer")
    config = write_config(folder, SOLVER__MAX_ITER=1, TEST__EVAL_PERIOD=0, DATASETS__TEST=())
    old = tiny_model(5, **{"MODEL.ROI_HEADS.NUM_CLASSES": 4})
    teacher = build_teacher(old)
    nn.init.normal_(teacher.roi_heads.box_predictor.cls_score.weight)
    torch.save({"model": old.state_dict(), "teacher": teacher.state_dict()}, folder / "old.pth")
    names = [{"id": i, "name": name} for i, name in zip((7, 2, 9, 4), "rbyx", strict=True)]
    (folder / "old.json").write_text(
        json.dumps({"images": [], "annotations": [], "categories": names})
    )
    return folder, config, teacher


def run(tool, place, output: Path, *options) -> dict:
    folder, config, _ = place
    arguments = ["--weights", folder / "old.pth", "--config-file", config, "--output", output]
    if "--from-classes" not in options:
        arguments += ["--from-classes", folder / "old.json"]
    tool.main([str(x) for x in (*arguments, *options)])
    return torch.load(output, weights_only=True)


def test_the_tool_writes_a_start_for_training_and_says_what_matched(tool, place, tmp_path, capsys):
    _, config, teacher = place
    content = run(tool, place, tmp_path / "new.pth")
    # By id the old classes are b (2), x (4), r (7) and y (9).
    old, new = (
        x["roi_heads.box_predictor.cls_score.weight"]
        for x in (teacher.state_dict(), content["model"])
    )
    assert torch.equal(new[[0, 2, 3]], old[[2, 0, 4]])
    assert [x["name"] for x in content["categories"]] == ["r", "g", "b"]
    printed = capsys.readouterr().out
    assert "2 of 3 classes have the rows of the same name: r, b" in printed
    assert "1 start afresh: g" in printed
    keys = ["MODEL.WEIGHTS", str(tmp_path / "new.pth"), "OUTPUT_DIR", str(tmp_path / "out")]
    cfg = train_net.load_config(str(config), keys)
    state = load_models(cfg)["model"].state_dict()
    assert all(torch.equal(state[k], x) for k, x in content["model"].items())
    args = train_net.default_argument_parser().parse_args(["--config-file", str(config), *keys])
    train_net.main(args)
    assert (tmp_path / "out/model_final.pth").is_file()


def test_the_same_seed_gives_the_same_start_and_the_student_can_be_taken(tool, place, tmp_path):
    first, second, student = (
        run(tool, place, tmp_path / f"{name}.pth", *options)["model"]
        for name, options in {"a": (), "b": (), "c": ("--model", "student")}.items()
    )
    assert all(torch.equal(x, second[k]) for k, x in first.items())
    key = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(student[key][1], first[key][1])
    assert not torch.equal(student[key][0], first[key][0])


def test_names_can_be_a_list_in_the_detectors_order(tool, place, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps(["b", "x", "r", "y"]))
    names = ["--from-classes", tmp_path / "names.json"]
    a, b = (
        run(tool, place, tmp_path / f"{i}.pth", *options)["model"]
        for i, options in enumerate(([], names))
    )
    assert all(torch.equal(x, b[k]) for k, x in a.items())


def test_mistakes_are_named(tool, place, tmp_path, capsys):
    (tmp_path / "names.json").write_text(json.dumps(["b", "x"]))
    with pytest.raises(SystemExit, match="not that of 2 classes"):
        run(tool, place, tmp_path / "a.pth", "--from-classes", tmp_path / "names.json")
    (tmp_path / "names.json").write_text("[1]")
    with pytest.raises(SystemExit, match="but not one of names"):
        run(tool, place, tmp_path / "a.pth", "--from-classes", tmp_path / "names.json")
    torch.save({"model": {"x": torch.zeros(1)}, "code": print}, tmp_path / "unsafe.pth")
    with pytest.raises(SystemExit, match="could run code"):
        run(tool, place, tmp_path / "a.pth", "--weights", tmp_path / "unsafe.pth")
    torch.save({"x": "no tensor"}, tmp_path / "other.pth")
    with pytest.raises(SystemExit, match="holds no model"):
        run(tool, place, tmp_path / "a.pth", "--weights", tmp_path / "other.pth")
    (tmp_path / "a.pth").touch()
    with pytest.raises(SystemExit):
        run(tool, place, tmp_path / "a.pth")
    assert "name a new file" in capsys.readouterr().err
