"""The benchmark of the data part measures what it says, on sets of the make-up it says."""

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from soft_teacher import load_config
from soft_teacher.data import mapper
from soft_teacher.data.fast_transforms import FastResize
from soft_teacher.engine.benchmark import data_throughput, loader_footprint
from soft_teacher.engine.benchmark.simulated_coco import (
    LABELED,
    UNLABELED,
    Simulation,
    write_simulation,
)

pytest.importorskip("skimage")
pytest.importorskip("sklearn")

SMALL = Simulation(labeled=400, objects=2903, unlabeled=37, pool=7, seed=3)


def load_tool():
    path = Path(__file__).parents[1] / "tools" / "benchmark_data.py"
    spec = importlib.util.spec_from_file_location("benchmark_data_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return write_simulation(tmp_path_factory.mktemp("simulated"), SMALL)


@pytest.fixture(scope="module")
def content(simulated):
    return json.loads(simulated[LABELED].json_file.read_text())


def test_counts_are_exact_and_ids_are_unique(simulated, content):
    others = json.loads(simulated[UNLABELED].json_file.read_text())
    assert len(content["images"]) == SMALL.labeled
    assert len(content["annotations"]) == SMALL.objects
    assert len(others["images"]) == SMALL.unlabeled
    ids = [image["id"] for image in content["images"] + others["images"]]
    assert len(set(ids)) == SMALL.labeled + SMALL.unlabeled
    assert len({annotation["id"] for annotation in content["annotations"]}) == SMALL.objects


def test_unlabeled_images_come_without_categories_and_annotations(simulated):
    assert json.loads(simulated[UNLABELED].json_file.read_text()).keys() == {"info", "images"}


def test_category_ids_are_the_80_of_coco_with_gaps(content):
    ids = [category["id"] for category in content["categories"]]
    assert len(ids) == 80 and ids == sorted(ids) and (ids[0], ids[-1]) == (1, 90)
    assert not {12, 26, 29, 30, 45, 66, 68, 69, 71, 83} & set(ids)
    assert {annotation["category_id"] for annotation in content["annotations"]} <= set(ids)


def test_pycocotools_reads_the_file_and_its_masks(simulated):
    coco = COCO(str(simulated[LABELED].json_file))
    crowds = [x for x in coco.anns.values() if x["iscrowd"]]
    plain = [x for x in coco.anns.values() if not x["iscrowd"]]
    assert 0.003 < len(crowds) / SMALL.objects < 0.03
    for annotation in crowds + plain[:50]:
        image = coco.imgs[annotation["image_id"]]
        mask = coco.annToMask(annotation)
        assert mask.shape == (image["height"], image["width"]) and mask.any()
    polygon_box = mask_util.toBbox(coco.annToRLE(plain[0]))
    x, y, width, height = plain[0]["bbox"]
    assert (polygon_box[:2] >= [x - 1, y - 1]).all()
    assert (polygon_box[:2] + polygon_box[2:] <= [x + width + 1, y + height + 1]).all()


def test_polygons_have_the_number_of_vertices_of_cocos(content):
    objects = [x["segmentation"] for x in content["annotations"] if not x["iscrowd"]]
    vertices = [len(polygon) // 2 for polygons in objects for polygon in polygons]
    assert 25 < np.mean(vertices) < 30 and min(vertices) >= 3 and max(vertices) > 60
    assert 0.05 < np.mean([len(polygons) > 1 for polygons in objects]) < 0.15


def test_each_image_has_a_file_of_the_stated_size(simulated, content):
    for image in content["images"][:20]:
        with Image.open(simulated[LABELED].image_root / image["file_name"]) as file:
            assert file.format == "JPEG" and file.size == (image["width"], image["height"])
    files = {os.stat(path).st_ino for path in simulated[LABELED].image_root.iterdir()}
    assert len(files) == SMALL.pool


def test_the_same_seed_gives_the_same_set_and_another_seed_another(tmp_path, simulated):
    small = Simulation(labeled=9, objects=40, unlabeled=3, pool=2, seed=1)
    files = [
        write_simulation(tmp_path / name, simulation)[LABELED].json_file.read_text()
        for name, simulation in (
            ("first", small),
            ("same", small),
            ("other", Simulation(labeled=9, objects=40, unlabeled=3, pool=2, seed=2)),
        )
    ]
    assert files[0] == files[1] != files[2]


def test_a_set_that_is_there_is_kept_and_another_one_replaces_it(tmp_path):
    small = Simulation(labeled=3, objects=5, unlabeled=2, pool=1)
    file = write_simulation(tmp_path, small)[LABELED].json_file
    before = file.stat().st_mtime_ns
    write_simulation(tmp_path, small)
    assert file.stat().st_mtime_ns == before
    write_simulation(tmp_path, Simulation(labeled=4, objects=5, unlabeled=2, pool=1))
    assert len(json.loads(file.read_text())["images"]) == 4


def test_the_tool_measures_views_of_the_users_own_images(tmp_path):
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.jpg")
    file = tmp_path / "numbers" / "throughput.json"
    sizes = ["INPUT.MIN_SIZE_TRAIN", "(30, 90)"]
    arguments = ["throughput", "--images", str(tmp_path), "--rounds", "3", "--json", str(file)]
    load_tool().main([*arguments, *sizes])
    found = json.loads(file.read_text())
    assert found["images"] == 2 and len(found["seconds_per_pair"]) == 3
    assert found["ratio"]["median"] > 0
    parts = found["parts_seconds"]
    assert parts.keys() >= {"decode", "resize and flip", "erase", "to tensor", "other"}
    assert parts["total"] == pytest.approx(sum(s for name, s in parts.items() if name != "total"))


def test_the_floor_resizes_to_the_sizes_of_both_views(cfg_and_record, monkeypatch):
    cfg, record = cfg_and_record
    asked = []
    monkeypatch.setattr(
        data_throughput, "decode_and_resize", lambda file, sizes: asked.append((file, sizes))
    )
    views = []
    original = mapper.TwoViewMapper.__call__
    monkeypatch.setattr(
        data_throughput.TwoViewMapper,
        "__call__",
        lambda self, *args: views.append(original(self, *args)) or views[-1],
    )
    data_throughput.measure_throughput(cfg, [record], 2, seed=0)
    for (file, sizes), pair in zip(asked, views, strict=False):
        assert file == record["file_name"]
        assert sizes == [pair[name]["image"].shape[:0:-1] for name in ("weak", "strong")]
    assert len(asked) == 3


def test_measuring_leaves_functions_and_threads_as_they_were(cfg_and_record):
    cfg, record = cfg_and_record
    before = mapper.read_image, FastResize.apply_image, cv2.getNumThreads()
    data_throughput.measure_throughput(cfg, [record], 2, seed=0)
    assert (mapper.read_image, FastResize.apply_image, cv2.getNumThreads()) == before


@pytest.fixture
def cfg_and_record(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.jpg")
    cfg = load_config(str(load_tool().CONFIG), ["INPUT.MIN_SIZE_TRAIN", "(30, 90)"])
    return cfg, {"file_name": str(tmp_path / "image.jpg"), "image_id": 0}


@pytest.mark.slow
def test_the_tool_measures_both_loaders_in_a_process_of_their_own(tmp_path):
    file = tmp_path / "scale.json"
    numbers = "--labeled 12 --objects 60 --unlabeled 9 --workers 2 --batches 2 --repeats 1"
    folder = ["--folder", str(tmp_path / "set")]
    masks = ["MODEL.MASK_ON", "True"]
    load_tool().main(["scale", *folder, *numbers.split(), "--json", str(file), *masks])
    (run,) = json.loads(file.read_text())["runs"]
    assert run["processes"] >= 3
    assert 0 < run["import_seconds"] < run["startup_seconds"]
    assert 0 < run["main_pss_bytes"] < run["pss_bytes"]
    assert run["peak_rss_bytes"] > run["main_pss_bytes"]


def test_memory_of_a_process_and_its_children_is_found():
    own = os.getpid()
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            tree = loader_footprint.process_tree(own)
            assert tree[0] == own and child.pid in tree
        finally:
            child.kill()
    assert 0 < loader_footprint.proportional_memory(own) <= loader_footprint.peak_memory(own)


def test_a_measurement_that_fails_says_why(simulated, tmp_path):
    missing = tmp_path / "missing.yaml"
    with pytest.raises(RuntimeError, match=r"missing\.yaml"):
        loader_footprint.measure_footprint(missing, [], simulated, workers=0, batches=1)


@pytest.mark.parametrize(
    "arguments",
    ["throughput --rounds 1", "scale --folder x --workers 3", "scale --folder x --batches 0"],
)
def test_senseless_numbers_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        load_tool().parse_arguments(arguments.split())
    assert "must be" in capsys.readouterr().err
