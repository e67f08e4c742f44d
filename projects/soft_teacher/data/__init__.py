"""Data: sets, views, samplers and loaders. Importing it registers the built-in sets."""

from soft_teacher.data.datasets import (
    labeled_records,
    unlabeled_ground_truth,
    unlabeled_records,
)
from soft_teacher.data.loaders import build_labeled_loader, build_unlabeled_loader
from soft_teacher.data.mapper import (
    ImageMapper,
    LabeledMapper,
    PseudoLabeledMapper,
    TwoViewMapper,
)
from soft_teacher.data.pseudo_label_files import pseudo_label_files
from soft_teacher.data.registry import register_custom_datasets, resolve_dataset_names
from soft_teacher.data.samplers import SeededBatchSampler
from soft_teacher.data.start_checks import check_test_sets, warn_of_shared_images

__all__ = [
    "ImageMapper",
    "LabeledMapper",
    "PseudoLabeledMapper",
    "SeededBatchSampler",
    "TwoViewMapper",
    "build_labeled_loader",
    "build_unlabeled_loader",
    "check_test_sets",
    "labeled_records",
    "pseudo_label_files",
    "register_custom_datasets",
    "resolve_dataset_names",
    "unlabeled_ground_truth",
    "unlabeled_records",
    "warn_of_shared_images",
]
