"""Which drawn predictions are called right, against COCO's own matching."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from soft_teacher.analysis.prediction_pictures import draw_comparisons, judge_predictions

CATEGORIES = [{"id": 1, "name": "one"}, {"id": 4, "name": "four"}]


def scene(seed, image_id=1):
    """True objects of one image, close together, and noisy predictions of them."""
    random = np.random.default_rng(seed)
    objects, predictions = [], []
    for number in range(5):
        box = [*random.uniform(0, 30, 2), *random.uniform(15, 30, 2)]
        category = int(random.choice([1, 4]))
        objects.append(
            {
                "id": 10 * image_id + number,
                "image_id": image_id,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
        )
        for _ in range(2):
            predictions.append(
                {
                    "image_id": image_id,
                    "category_id": category if random.random() < 0.8 else 5 - category,
                    "bbox": (np.array(box) + random.normal(0, 3, 4)).tolist(),
                    "score": float(random.uniform(0.1, 1)),
                }
            )
    return objects, predictions


def right_by_coco(objects, predictions):
    """Scores of the detections that COCOeval matches at an overlap of 0.5."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": 1, "width": 80, "height": 80}],
            "categories": CATEGORIES,
            "annotations": objects,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(x) for x in predictions]), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
    return sorted(
        score
        for result in evaluation.evalImgs
        if result is not None
        for score, match in zip(result["dtScores"], result["dtMatches"][0], strict=True)
        if match > 0
    )


@pytest.mark.parametrize("seed", range(20))
def test_right_predictions_are_those_that_coco_matches(seed):
    objects, predictions = scene(seed)
    right = judge_predictions(predictions, objects)
    scores = sorted(x["score"] for x, is_right in zip(predictions, right, strict=True) if is_right)
    assert scores == pytest.approx(right_by_coco(objects, predictions))
    assert 0 < len(scores) < len(predictions)


def test_without_objects_or_predictions_nothing_is_right():
    objects, predictions = scene(0)
    assert judge_predictions([], objects) == []
    assert judge_predictions(predictions, []) == [False] * len(predictions)


def test_the_first_images_are_drawn_with_counts_of_the_confident_predictions(tmp_path):
    truth = {"images": [], "annotations": [], "categories": CATEGORIES}
    predictions = []
    for image_id in (1, 2, 3):
        Image.new("RGB", (60 + image_id, 50), "gray").save(tmp_path / f"{image_id}.png")
        size = {"width": 60 + image_id, "height": 50}
        truth["images"].append({"id": image_id, "file_name": f"{image_id}.png", **size})
        objects, _ = scene(image_id, image_id)
        truth["annotations"] += objects
        for i, x in enumerate(objects):
            found = {k: x[k] for k in ("image_id", "category_id", "bbox")}
            predictions.append({**found, "score": 0.9 if i < 3 else 0.5})
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "model.json").write_text(json.dumps(predictions))
    (tmp_path / "blind.json").write_text("[]")
    models = {"model": tmp_path / "model.json", "blind": tmp_path / "blind.json"}
    comparisons = draw_comparisons(tmp_path / "truth.json", tmp_path, models, num_images=2)
    assert [x.file_name for x in comparisons] == ["1.png", "2.png"]
    for comparison in comparisons:
        assert [x.title for x in comparison.pictures] == ["Ground truth", "model", "blind"]
        assert [x.caption for x in comparison.pictures] == [
            "5 objects",
            "3 of 5 found, 0 wrong",
            "0 of 5 found, 0 wrong",
        ]
        sizes = {Image.open(io.BytesIO(x.jpeg)).size for x in comparison.pictures}
        assert len(sizes) == 1, "enlarged alike, whatever is drawn"
