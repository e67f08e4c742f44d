import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from small_coco import SIZES, coco_content
from soft_teacher.data import build_labeled_loader, build_unlabeled_loader, loaders
from soft_teacher.engine.loader_stream import LoaderStream


def views_of(sample):
    """Views of a sample from either loader."""
    return [sample] if "image" in sample else [sample["weak"], sample["strong"]]


def fingerprint(batch):
    """Everything that must be equal between two runs."""
    return [
        (view["file_name"], view["image"].numpy().tobytes(), view["matrix"].tobytes())
        for sample in batch
        for view in views_of(sample)
    ]


def fingerprints(loader, count):
    return [fingerprint(batch) for batch in islice(loader, count)]


def pretend_world(monkeypatch, world_size):
    """Let loaders believe in several ranks that read the same files; returns how to be one."""
    monkeypatch.setattr(loaders.comm, "get_world_size", lambda: world_size)
    monkeypatch.setattr(loaders, "check_same_on_all_ranks", lambda records, which: None)
    return lambda rank: monkeypatch.setattr(loaders.comm, "get_rank", lambda: rank)


BUILDERS = pytest.mark.parametrize("build", [build_labeled_loader, build_unlabeled_loader])


@BUILDERS
def test_no_worker_and_two_workers_give_the_same_pixels(cfg, build):
    alone = fingerprints(build(cfg), 6)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert fingerprints(build(cfg), 6) == alone


@BUILDERS
def test_starting_at_a_batch_continues_an_uninterrupted_run(cfg, build):
    assert fingerprints(build(cfg, start_batch=3), 4) == fingerprints(build(cfg), 7)[3:]


def test_batches_hold_the_exact_numbers_of_images(cfg):
    assert [len(batch) for batch in islice(build_labeled_loader(cfg), 5)] == [2] * 5
    assert [len(batch) for batch in islice(build_unlabeled_loader(cfg), 5)] == [3] * 5


def test_labeled_batches_have_instances_and_unlabeled_ones_have_no_annotation(cfg):
    assert all("instances" in sample for sample in next(iter(build_labeled_loader(cfg))))
    for sample in next(iter(build_unlabeled_loader(cfg))):
        assert sample.keys() == {"weak", "strong"}
        for view in views_of(sample):
            assert not view.keys() & {"annotations", "instances"}


@BUILDERS
def test_two_ranks_share_the_batch_and_together_see_every_image_once_a_pass(
    cfg, build, monkeypatch
):
    cfg.SOLVER.IMS_PER_BATCH = cfg.SOLVER.IMS_PER_BATCH_UNLABELED = 4
    become = pretend_world(monkeypatch, 2)
    ranks = []
    for rank in range(2):
        become(rank)
        ranks.append(list(islice(build(cfg), 4)))
    assert all(len(batch) == 2 for batches in ranks for batch in batches)
    files = [
        views_of(sample)[0]["file_name"]
        for step in zip(*ranks, strict=True)
        for batch in step
        for sample in batch
    ]
    assert len(set(files[:7])) == len(set(files[7:14])) == 7


@BUILDERS
def test_a_batch_that_cannot_be_shared_evenly_is_refused_by_key(cfg, build, monkeypatch):
    cfg.SOLVER.IMS_PER_BATCH = 5
    cfg.SOLVER.IMS_PER_BATCH_UNLABELED = 5
    pretend_world(monkeypatch, 2)
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH.* is 5"):
        build(cfg)


def test_a_batch_without_images_is_refused_by_key(cfg):
    cfg.SOLVER.IMS_PER_BATCH_UNLABELED = 0
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH_UNLABELED is 0"):
        build_unlabeled_loader(cfg)


@BUILDERS
@pytest.mark.parametrize("workers", [0, 1])
def test_loading_draws_nothing_from_the_global_generators(cfg, build, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    next(iter(build(cfg)))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_a_seed_changes_the_data_and_a_negative_one_is_drawn(cfg):
    first = fingerprints(build_unlabeled_loader(cfg), 2)
    cfg.SEED = 6
    assert fingerprints(build_unlabeled_loader(cfg), 2) != first
    cfg.SEED = -1
    drawn = [fingerprints(build_unlabeled_loader(cfg), 2) for _ in range(2)]
    assert drawn[0] != drawn[1]


def test_labeled_and_unlabeled_images_are_drawn_independently(cfg):
    cfg.SOLVER.IMS_PER_BATCH = cfg.SOLVER.IMS_PER_BATCH_UNLABELED = 7
    labeled, unlabeled = (
        [views_of(sample)[0]["file_name"] for batch in islice(build(cfg), 4) for sample in batch]
        for build in (build_labeled_loader, build_unlabeled_loader)
    )
    assert labeled != unlabeled


def test_grouping_puts_images_of_one_orientation_together(cfg):
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.SOLVER.IMS_PER_BATCH_UNLABELED = 2

    def mixed():
        batches = islice(build_unlabeled_loader(cfg), 70)
        kinds = [{s["weak"]["width"] >= s["weak"]["height"] for s in batch} for batch in batches]
        return sum(len(kind) == 2 for kind in kinds)

    grouped = mixed()
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    assert grouped < mixed() / 2


def test_an_unreadable_labeled_image_is_named_by_its_file_from_a_worker(cfg, coco):
    for path in (coco / "images").iterdir():
        path.write_bytes(b"broken")
    cfg.DATALOADER.NUM_WORKERS = 1
    with pytest.raises(OSError, match=r"Cannot read the image .*\.png"):
        next(iter(build_labeled_loader(cfg)))


@BUILDERS
def test_with_a_scale_per_step_all_ranks_resize_alike(cfg, build, monkeypatch):
    cfg.INPUT.AUG.SCALE_PER_STEP = True
    cfg.INPUT.MAX_SIZE_TRAIN = 1000
    cfg.SOLVER.IMS_PER_BATCH = cfg.SOLVER.IMS_PER_BATCH_UNLABELED = 4
    become = pretend_world(monkeypatch, 2)
    ranks = []
    for rank in range(2):
        become(rank)
        ranks.append(list(islice(build(cfg), 6)))
    sides = []
    for step in zip(*ranks, strict=True):
        views = [views_of(sample) for batch in step for sample in batch]
        for same_view in zip(*views, strict=True):
            (side,) = {min(view["image"].shape[1:]) for view in same_view}
            sides.append(side)
    assert len(set(sides)) > 3


@BUILDERS
@pytest.mark.parametrize("workers", [(0, 2), (2, 0), (3, 1)])
def test_a_restored_stream_goes_on_pixel_for_pixel_with_any_number_of_workers(cfg, build, workers):
    whole = fingerprints(build(cfg), 9)
    before, after = workers
    cfg.DATALOADER.NUM_WORKERS = before
    stream = LoaderStream(lambda start: build(cfg, start))
    assert fingerprints(stream, 4) == whole[:4]
    state = stream.state_dict()
    cfg.DATALOADER.NUM_WORKERS = after
    restored = LoaderStream(lambda start: build(cfg, start))
    restored.load_state_dict(state)
    assert fingerprints(restored, 5) == whole[4:]


@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_counts_are_exact_per_rank_and_in_all_for_any_world_and_set(
    cfg, coco, monkeypatch, world_size, size
):
    content = coco_content(SIZES[:size])
    (coco / "annotations.json").write_text(json.dumps(content))
    cfg.SOLVER.IMS_PER_BATCH = world_size
    cfg.SOLVER.IMS_PER_BATCH_UNLABELED = 2 * world_size
    become = pretend_world(monkeypatch, world_size)
    seen = {"labeled": [], "unlabeled": []}
    for rank in range(world_size):
        become(rank)
        for name, build, expected in (
            ("labeled", build_labeled_loader, 1),
            ("unlabeled", build_unlabeled_loader, 2),
        ):
            batches = list(islice(build(cfg), 3))
            assert [len(batch) for batch in batches] == [expected] * 3
            seen[name].append([views_of(x)[0]["file_name"] for batch in batches for x in batch])
    assert sum(map(len, seen["labeled"])) == 3 * world_size
    # Together the ranks went through the set evenly.
    for files in seen.values():
        counts = Counter(x for rank in files for x in rank)
        assert len(counts) == min(size, sum(map(len, files)))
        assert max(counts.values()) - min(counts.values()) <= 1
