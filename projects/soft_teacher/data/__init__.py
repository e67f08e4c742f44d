"""Data: sets, views, samplers and loaders. Importing it registers the built-in sets."""

from soft_teacher.data.datasets import (
    labeled_records,
    register_custom_datasets,
    resolve_dataset_names,
    unlabeled_ground_truth,
    unlabeled_records,
)
from soft_teacher.data.loaders import build_labeled_loader, build_unlabeled_loader
from soft_teacher.data.mapper import LabeledMapper, TwoViewMapper
from soft_teacher.data.samplers import SeededBatchSampler

__all__ = [
    "LabeledMapper",
    "SeededBatchSampler",
    "TwoViewMapper",
    "build_labeled_loader",
    "build_unlabeled_loader",
    "labeled_records",
    "register_custom_datasets",
    "resolve_dataset_names",
    "unlabeled_ground_truth",
    "unlabeled_records",
]
