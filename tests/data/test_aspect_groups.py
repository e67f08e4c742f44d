"""Images of like shape share batches."""

import itertools

import numpy as np
import pytest

from soft_teacher import load_config
from soft_teacher.data.aspect_groups import aspect_groups
from soft_teacher.data.loaders import batch_groups
from soft_teacher.engine.benchmark.padding import measure_padding
from soft_teacher.engine.run_description import describe_run
from tiny import tiny_config


def records_of(sizes: list[tuple[int, int]]) -> list[dict]:
    return [{"width": w, "height": h} for w, h in sizes]


def mixed_records(count: int) -> list[dict]:
    random = np.random.default_rng(5)
    sizes = [(640, 480), (640, 427), (480, 640), (427, 640), (640, 640), (640, 360)]
    return records_of([sizes[i] for i in random.integers(len(sizes), size=count)])


def test_two_groups_are_orientations():
    assert aspect_groups(records_of([(4, 3), (3, 4), (5, 5)]), 2) == [0, 1, 0]
    assert aspect_groups([{}, *records_of([(3, 4)])], 2) == [0, 1]


def test_more_groups_hold_neighbours_in_shape():
    records = mixed_records(600)
    groups = aspect_groups(records, 4)
    ranges: dict[int, list[float]] = {}
    for record, group in zip(records, groups, strict=True):
        ranges.setdefault(group, []).append(record["width"] / record["height"])
    assert len(ranges) == 4
    # Groups do not overlap, and none is much larger than the six shapes of 100 images make it.
    in_order = [ranges[g] for g in sorted(ranges)]
    assert all(max(a) < min(b) for a, b in itertools.pairwise(in_order))
    assert all(80 < len(x) < 260 for x in in_order)


def test_images_of_unknown_size_are_a_group_of_their_own():
    groups = aspect_groups([*mixed_records(50), {}, {"width": 0, "height": 0}], 4)
    assert groups[-2:] == [4, 4]
    assert 4 not in groups[:-2]
    assert aspect_groups([{}, {}], 4) == [0, 0]


def test_the_config_decides():
    records = mixed_records(40)
    cfg = tiny_config(DATALOADER__ASPECT_RATIO_GROUPS=3)
    assert batch_groups(cfg, records) == aspect_groups(records, 3)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    assert batch_groups(cfg, records) is None
    cfg.DATALOADER.ASPECT_RATIO_GROUPS = 1
    with pytest.raises(ValueError, match=r"DATALOADER\.ASPECT_RATIO_GROUPS is 1"):
        batch_groups(cfg, records)


def test_a_resumed_run_has_the_same_groups():
    def described(num_groups: int) -> object:
        cfg = tiny_config(DATALOADER__ASPECT_RATIO_GROUPS=num_groups)
        return describe_run(cfg, 1)["DATALOADER.ASPECT_RATIO_GROUPING"]

    assert described(2) is True
    assert described(3) != described(4)


def padding_config(**keys):
    keys = {"INPUT__MIN_SIZE_TRAIN": (64, 128), **keys}
    return tiny_config(**keys, INPUT__MAX_SIZE_TRAIN=1000, INPUT__MIN_SIZE_TRAIN_SAMPLING="choice")


def test_padding_is_what_is_not_image():
    # One image 128 x 64 and one upright: short sides of 64 or 128 keep the shape.
    cfg = padding_config(DATALOADER__ASPECT_RATIO_GROUPING=False, INPUT__MIN_SIZE_TRAIN=(64,))
    found = measure_padding(cfg, records_of([(128, 64), (64, 128)]), batch_size=2, num_batches=3)
    assert found == pytest.approx({"weak": 0.5, "strong": 0.5, "images": 0.5})
    # 64 x 65 pixels make 64 x 96 of them.
    found = measure_padding(cfg, records_of([(65, 64)]), batch_size=1, num_batches=3)
    assert found == pytest.approx({"weak": 65 / 96, "strong": 65 / 96, "images": 1.0})


def test_one_scale_a_step_and_groups_leave_less_padding():
    records = mixed_records(400)
    drawn = {
        name: measure_padding(padding_config(**keys), records, batch_size=4, num_batches=100)
        for name, keys in {
            "each": {},
            "step": {"INPUT__AUG__SCALE_PER_STEP": True},
            "groups": {"INPUT__AUG__SCALE_PER_STEP": True, "DATALOADER__ASPECT_RATIO_GROUPS": 6},
        }.items()
    }
    assert drawn["each"]["images"] < drawn["step"]["images"] < drawn["groups"]["images"]
    # Not 1: what is left over of the groups shares batches.
    assert drawn["groups"]["images"] > 0.95


def test_the_default_is_detectron2s_grouping():
    cfg = load_config("configs/coco/soft_teacher_R_50_FPN_10pct.yaml")
    assert (cfg.DATALOADER.ASPECT_RATIO_GROUPING, cfg.DATALOADER.ASPECT_RATIO_GROUPS) == (True, 2)
