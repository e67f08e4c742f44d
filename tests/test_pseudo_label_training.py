"""Training on a file of pseudo labels, the second stage of multi-stage training."""

import json

import numpy as np
import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.utils.events import EventStorage

import train_net
from pseudo_label_place import label_place
from soft_teacher import load_config
from soft_teacher.data import build_unlabeled_loader
from soft_teacher.data.pseudo_label_files import pseudo_labeled_records
from soft_teacher.modeling import SoftTeacherRCNN
from soft_teacher.modeling.fixed_labels import fixed_guidance
from soft_teacher.modeling.guidance import PseudoLabelRules
from tiny import labeled_view, tiny_config, tiny_model
from tiny_training import NARROW, NUM_UNLABELED

FIXED = {
    "SOFT_TEACHER.EMA.ENABLED": False,
    "SOFT_TEACHER.JITTER.ENABLED": False,
    "SOFT_TEACHER.BACKGROUND.RELIABILITY": "none",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return label_place(tmp_path_factory.mktemp("pseudo"))


# (image, category id, box xywh, score): what the training below learns from.
BOXES = [
    (0, 10, [5, 6, 30, 20], 0.95),
    (0, 20, [20, 30, 25, 30], 0.90),
    (1, 30, [1, 1, 20, 50], 0.91),
    (1, 10, [30, 8, 30, 30], 0.99),
    (2, 20, [8, 8, 40, 40], 0.3),
    (3, 20, [8, 8, 40, 40], 0.6),
    (4, 30, [0, 0, 64, 64], 0.93),
]


def write_labels(folder, boxes=BOXES, images=range(NUM_UNLABELED), **changes):
    annotations = [
        {"id": k, "image_id": i, "category_id": c, "bbox": b, "score": s, "iscrowd": 0}
        for k, (i, c, b, s) in enumerate(boxes, 1)
    ]
    content = {
        "images": [
            {"id": i, "file_name": f"unlabeled_{i}.png", "width": 64, "height": 64} for i in images
        ],
        "annotations": annotations,
        "categories": [{"id": 10 * k + 10, "name": "rgb"[k]} for k in range(3)],
        **changes,
    }
    path = folder / "pseudo.json"
    path.write_text(json.dumps(content))
    return path


def stage_2(place, file, **overrides):
    """The config of training on pseudo labels, with the usual thresholds."""
    keys = {
        **FIXED,
        "SOFT_TEACHER.PSEUDO_LABELS.FILES": (str(file),),
        "SOFT_TEACHER.PSEUDO_LABELS.MIN_SCORE": 0.5,
        "SOFT_TEACHER.PSEUDO_LABELS.CLS_SCORE": 0.9,
        "SOFT_TEACHER.PSEUDO_LABELS.RPN_SCORE": 0.9,
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }
    return load_config(str(place[1]), [x for pair in keys.items() for x in pair])


def carried(boxes, matrix, size):
    """Corners mapped by a matrix, enclosed and clipped, (R, 4)."""
    found = []
    for x, y, w, h in boxes:
        corners = np.array([[x, y, 1], [x + w, y, 1], [x, y + h, 1], [x + w, y + h, 1]])
        points = (corners @ matrix.T)[:, :2].clip(0, [size[1], size[0]])
        found.append([*points.min(0), *points.max(0)])
    return np.array(found).reshape(-1, 4)


def test_stage_2_learns_from_exactly_the_boxes_above_the_threshold(place, tmp_path, monkeypatch):
    cfg = stage_2(place, write_labels(tmp_path), SOLVER__MAX_ITER=3, TEST__EVAL_PERIOD=0)
    cfg.DATASETS.TEST, cfg.SOLVER.IMS_PER_BATCH_UNLABELED = (), 3
    cfg.INPUT.AUG.BOX_GEOMETRY = True
    (tmp_path / "config.yaml").write_text(cfg.dump())
    seen, losses_of = [], SoftTeacherRCNN._unlabeled_losses

    def note(self, strong, in_view):
        seen.append((strong, in_view))
        return losses_of(self, strong, in_view)

    monkeypatch.setattr(SoftTeacherRCNN, "_unlabeled_losses", note)
    options = ["--config-file", str(tmp_path / "config.yaml")]
    arguments = [*options, "OUTPUT_DIR", str(tmp_path / "output")]
    train_net.main(default_argument_parser().parse_args(arguments))
    assert len(seen) == 3
    images = []
    for strong, in_view in seen:
        masks = (in_view.teaches_rpn, in_view.teaches_cls, in_view.teaches_reg)
        for i, view in enumerate(strong):
            images.append(view["image_id"])
            own = [x for x in BOXES if x[0] == view["image_id"] and x[3] > 0.9]
            size = tuple(view["image"].shape[1:])
            expected = carried([x[2] for x in own], np.asarray(view["matrix"]), size)
            visible = (expected[:, 2:] > expected[:, :2]).all(1)
            for mask in masks:
                found = in_view.targets[i][mask[i]]
                np.testing.assert_allclose(
                    found.gt_boxes.tensor, expected[visible], rtol=1e-4, atol=1e-3
                )
                classes = np.array([x[1] // 10 - 1 for x in own])[visible]
                assert found.gt_classes.tolist() == classes.tolist()
    # Nothing is above the threshold in the others.
    assert set(images) == {0, 1, 4}
    logged = [json.loads(x) for x in (tmp_path / "output/metrics.json").read_text().splitlines()]
    assert max(x.get("loss_cls_unsup", 0) for x in logged) > 0
    found = torch.load(tmp_path / "output/model_final.pth", weights_only=True)
    assert all(torch.equal(v, found["teacher"][k]) for k, v in found["model"].items())


def test_images_without_a_box_are_kept_on_request(place, tmp_path):
    file = write_labels(tmp_path, images=range(5))
    records = pseudo_labeled_records(
        stage_2(place, file, DATALOADER__FILTER_EMPTY_ANNOTATIONS=False)
    )
    # The sixth image of the set is not in the file: nobody knows what it shows.
    assert [x["image_id"] for x in records] == [0, 1, 2, 3, 4]
    assert [len(x["annotations"]) for x in records] == [2, 2, 0, 1, 1]


def test_the_loss_weight_scales_the_losses_on_pseudo_labels(place, tmp_path):
    cfg = stage_2(place, write_labels(tmp_path))
    batch = next(iter(build_unlabeled_loader(cfg)))
    weak, strong = [x["weak"] for x in batch], [x["strong"] for x in batch]
    losses = {}
    for weight in (1.0, 2.0):
        model = tiny_model(**NARROW, **FIXED, SOFT_TEACHER__UNSUP_LOSS_WEIGHT=weight)
        guidance = fixed_guidance(weak, PseudoLabelRules.from_config(cfg), model.device)
        torch.manual_seed(0)
        with torch.no_grad(), EventStorage():
            losses[weight] = model([labeled_view(0)], strong, guidance)
    assert sum(float(v) for k, v in losses[1.0].items() if k.endswith("_unsup")) > 0
    for name, value in losses[1.0].items():
        factor = 2 if name.endswith("_unsup") else 1
        assert float(losses[2.0][name]) == pytest.approx(factor * float(value))


def test_ground_truth_is_no_pseudo_label(place, tmp_path):
    cfg = stage_2(place, place[0] / "unlabeled.json")
    with pytest.raises(ValueError, match="has the score None, so this is no file of pseudo labels"):
        pseudo_labeled_records(cfg)


def test_annotations_of_the_unlabeled_set_do_not_count(place, tmp_path):
    cfg = stage_2(place, write_labels(tmp_path))
    honest = pseudo_labeled_records(cfg)
    path = place[0] / "unlabeled.json"
    before = path.read_text()
    path.write_text(json.dumps({"images": json.loads(before)["images"]}))
    bare = pseudo_labeled_records(cfg)
    path.write_text(before)
    assert bare == honest and len(bare) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [{"id": 0, "file_name": "a.png", "width": 4, "height": 4}]}, "lists none of"),
        ({"categories": [{"id": 1, "name": "r"}]}, "other categories than the labeled set"),
        ({"annotations": []}, "no box with a score above"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(place, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        pseudo_labeled_records(stage_2(place, write_labels(tmp_path, **change)))


def test_a_missing_file_and_a_wrong_number_of_files_are_refused(place, tmp_path):
    with pytest.raises(ValueError, match="write it with tools"):
        pseudo_labeled_records(stage_2(place, tmp_path / "nowhere.json"))
    cfg = stage_2(place, write_labels(tmp_path))
    cfg.SOFT_TEACHER.PSEUDO_LABELS.FILES = cfg.SOFT_TEACHER.PSEUDO_LABELS.FILES * 2
    with pytest.raises(ValueError, match="names 2 files for the 1 sets"):
        pseudo_labeled_records(cfg)


@pytest.mark.parametrize("key", FIXED)
def test_what_needs_a_teacher_is_refused_beside_files(place, tmp_path, key):
    cfg = stage_2(place, "some.json")
    default = tiny_config()
    section, name = key.removeprefix("SOFT_TEACHER.").split(".")
    cfg.SOFT_TEACHER[section][name] = default.SOFT_TEACHER[section][name]
    with pytest.raises(ValueError, match=f"{key} is .* there is no teacher"):
        SoftTeacherRCNN.from_config(cfg)
