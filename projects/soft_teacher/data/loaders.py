"""Data loaders of labeled images and of pairs of views of unlabeled images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.data.build import trivial_batch_collator
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from soft_teacher.data.agreement import check_same_on_all_ranks
from soft_teacher.data.aspect_groups import aspect_groups
from soft_teacher.data.datasets import labeled_records, unlabeled_records
from soft_teacher.data.mapper import LabeledMapper, PseudoLabeledMapper, TwoViewMapper
from soft_teacher.data.memory import keep_freed_memory
from soft_teacher.data.pseudo_label_files import pseudo_labeled_records
from soft_teacher.data.samplers import SeededBatchSampler
from soft_teacher.data.set_aside import ReplacingDataset, SetAsideRecorder
from soft_teacher.data.worker_signals import let_workers_outlive_stop_signals

_LABELED_STREAM = 0
_UNLABELED_STREAM = 1


class SeededMapDataset(Dataset):
    """Items of a list, mapped; an item is asked for by (index, sample seed).

    Args:
        records: dicts in Detectron2's dataset format, kept serialized so that worker processes
            share their memory.
        mapper: function of a record and a sample seed alone.
    """

    def __init__(
        self, records: list[dict[str, Any]], mapper: Callable[[dict[str, Any], int], dict[str, Any]]
    ) -> None:
        self._records = DatasetFromList(records)
        self._mapper = mapper

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, request: tuple[int, int]) -> dict[str, Any]:
        index, sample_seed = request
        return self._mapper(self._records[index], sample_seed)


class SetLoader(DataLoader):
    """DataLoader that knows which set it loads.

    Attributes:
        digest: checksum of the set, see `records_digest`.
    """

    digest: str


def build_labeled_loader(cfg: CfgNode, start_batch: int = 0) -> SetLoader:
    """Endless loader of this rank's share of `SOLVER.IMS_PER_BATCH` labeled images.

    With `SOLVER.ACCUMULATION_STEPS` = k, a share is k batches.

    This is a collective call: all ranks compare what they have read, and agree on a random seed if
    SEED is negative.

    Args:
        cfg: the config.
        start_batch: batches that this rank has consumed before, in a run that is resumed.

    Returns:
        Loader of lists of views with `instances`, see `LabeledMapper`.
    """
    batch_size = _images_per_batch(cfg, "IMS_PER_BATCH")
    records = labeled_records(cfg)
    return _build_loader(
        cfg,
        check_same_on_all_ranks(records, "labeled sets"),
        SeededMapDataset(records, LabeledMapper(cfg)),
        batch_groups(cfg, records),
        batch_size=batch_size,
        stream=_LABELED_STREAM,
        start_batch=start_batch,
    )


def build_unlabeled_loader(cfg: CfgNode, start_batch: int = 0) -> SetAsideRecorder:
    """Endless loader of this rank's share of `SOLVER.IMS_PER_BATCH_UNLABELED` unlabeled images.

    Unreadable images are replaced, and listed in OUTPUT_DIR, see `set_aside`. This is a collective
    call, see `build_labeled_loader`.

    Args:
        cfg: the config.
        start_batch: batches that this rank has consumed before, in a run that is resumed.

    Returns:
        Loader of lists of `{"weak": view, "strong": view}`, see `TwoViewMapper`, or, with
        SOFT_TEACHER.PSEUDO_LABELS.FILES, `PseudoLabeledMapper`.
    """
    batch_size = _images_per_batch(cfg, "IMS_PER_BATCH_UNLABELED")
    if cfg.SOFT_TEACHER.PSEUDO_LABELS.FILES:
        records, mapper = pseudo_labeled_records(cfg), PseudoLabeledMapper(cfg)
    else:
        records, mapper = unlabeled_records(cfg), TwoViewMapper(cfg)
    loader = _build_loader(
        cfg,
        check_same_on_all_ranks(records, "unlabeled sets"),
        ReplacingDataset(SeededMapDataset(records, mapper)),
        batch_groups(cfg, records),
        batch_size=batch_size,
        stream=_UNLABELED_STREAM,
        start_batch=start_batch,
    )
    list_file = Path(cfg.OUTPUT_DIR) / f"unreadable_images_rank{comm.get_rank()}.txt"
    return SetAsideRecorder(loader, list_file, loader.digest)


def _build_loader(
    cfg: CfgNode,
    digest: str,
    dataset: Dataset,
    groups: list[int] | None,
    *,
    batch_size: int,
    stream: int,
    start_batch: int,
) -> SetLoader:
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    sampler = SeededBatchSampler(
        len(dataset),
        batch_size,
        seed=seed,
        stream=stream,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        groups=groups,
        start_batch=start_batch,
        batches_per_step=cfg.SOLVER.ACCUMULATION_STEPS,
    )
    num_workers = cfg.DATALOADER.NUM_WORKERS
    loader = SetLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator,
        worker_init_fn=_use_one_thread,
        # Without its own generator every iterator would draw from torch's global one, and the
        # weights drawn after it would depend on the number of loaders.
        generator=torch.Generator().manual_seed(seed),
        persistent_workers=num_workers > 0,
    )
    let_workers_outlive_stop_signals(loader)
    loader.digest = digest
    return loader


def _images_per_batch(cfg: CfgNode, key: str) -> int:
    """This rank's images of one forward pass: its share of a step, by its accumulation steps."""
    total, world_size = cfg.SOLVER[key], comm.get_world_size()
    num_batches = world_size * cfg.SOLVER.ACCUMULATION_STEPS
    if total < 1 or total % num_batches:
        raise ValueError(
            f"SOLVER.{key} is {total}, the images of one step over all GPUs; it must be a positive "
            f"multiple of the number of GPUs ({world_size}) times SOLVER.ACCUMULATION_STEPS "
            f"({cfg.SOLVER.ACCUMULATION_STEPS}), {num_batches}. Change one of them."
        )
    return total // num_batches


def batch_groups(cfg: CfgNode, records: list[dict[str, Any]]) -> list[int] | None:
    """Which images may share a batch, see `SeededBatchSampler`.

    Raises:
        ValueError: DATALOADER.ASPECT_RATIO_GROUPS is no number of groups.
    """
    num_groups = cfg.DATALOADER.ASPECT_RATIO_GROUPS
    if not 2 <= num_groups <= 100:
        raise ValueError(
            f"DATALOADER.ASPECT_RATIO_GROUPS is {num_groups}; give a number from 2 to 100, or set "
            "DATALOADER.ASPECT_RATIO_GROUPING to False for none."
        )
    return aspect_groups(records, num_groups) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None


def _use_one_thread(worker_id: int) -> None:
    # Workers are the parallelism. Torch limits itself in workers, OpenCV does not.
    cv2.setNumThreads(0)
    keep_freed_memory()
