"""What is known of the objects in unlabeled images cannot reach the weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.engine import default_argument_parser

import train_net
from tiny_training import NARROW, assert_same, checkpoint, write_config


def train(place: Path, change_set=None, role: str = "unlabeled") -> dict:
    """Weights of student and teacher after four iterations on a set that was tampered with."""
    # The sets are named after their folder, and no two of one process may share a name.
    folder = place / f"leak_{place.name}"
    folder.mkdir()
    config = write_config(folder, **NARROW, TEST__EVAL_PERIOD=0)
    content = yaml.safe_load(config.read_text())
    for entry in content["DATASETS"]["CUSTOM"]:
        if change_set is not None and entry[0].endswith(f"_{role}"):
            change_set(entry)
    content["DATASETS"]["TEST"] = []
    content["SOLVER"]["MAX_ITER"] = 4
    config.write_text(yaml.safe_dump(content))
    output = folder / "output"
    torch.manual_seed(0)
    arguments = ["--config-file", str(config), "OUTPUT_DIR", str(output)]
    train_net.main(default_argument_parser().parse_args(arguments))
    logged = [json.loads(x) for x in (output / "metrics.json").read_text().splitlines()]
    # The unlabeled images do take part.
    logged = [x for x in logged if "loss_cls_unsup" in x]
    assert logged and all(x["loss_cls_unsup"] > 0 for x in logged)
    assert sum(x["pseudo_boxes_cls"] for x in logged) > 0
    found = checkpoint(output)
    return {key: found[key] for key in ("model", "teacher")}


def edited(change):
    def change_set(entry):
        path = Path(entry[1])
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return change_set


def shuffle(content):
    random = np.random.default_rng(0)
    for annotation in content["annotations"]:
        annotation["bbox"] = [
            *random.integers(0, 30, 2).tolist(),
            *random.integers(5, 30, 2).tolist(),
        ]
        annotation["category_id"] = int(random.integers(1, 4))
        annotation["image_id"] = int(random.integers(0, 6))


def delete(content):
    del content["annotations"], content["categories"]


def rename(content):
    # Names that the labeled set does not have, so that nothing can be compared.
    for category in content["categories"]:
        category["name"] += " of another kind"


def take_the_folder(entry):
    """The images alone, named by their folder."""
    folder = Path(entry[2]) / "bare"
    folder.mkdir()
    for path in Path(entry[2]).glob("unlabeled_*.png"):
        shutil.copy(path, folder / path.name)
    entry[1:] = ["", str(folder)]


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    return train(tmp_path_factory.mktemp("honest"))


@pytest.mark.parametrize(
    "change", [edited(shuffle), edited(delete), edited(rename), take_the_folder]
)
def test_annotations_of_unlabeled_images_change_nothing_in_the_weights(honest, tmp_path, change):
    assert_same(train(tmp_path, change), honest)


def test_annotations_of_labeled_images_do(honest, tmp_path):
    def shift(content):
        for annotation in content["annotations"]:
            annotation["bbox"][0] += 2

    other = train(tmp_path, edited(shift), role="labeled")
    with pytest.raises(AssertionError):
        assert_same(other, honest)
