"""Looking all sets of a training over: what they hold, and what would stop it."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from soft_teacher.data.dataset_findings import (
    LABELED,
    STOPS,
    TEST,
    UNLABELED,
    Finding,
    copy_findings,
    empty_findings,
    image_findings,
    object_findings,
    problem_findings,
    refusal,
    shared_findings,
    unmeasured_finding,
    unreadable_findings,
    unreadable_run_findings,
)
from soft_teacher.data.dataset_scan import ScannedImage, scan_images
from soft_teacher.data.datasets import labeled_records, unlabeled_records
from soft_teacher.data.duplicates import find_shared_images
from soft_teacher.data.image_files import MAX_PIXELS
from soft_teacher.data.registry import register_custom_datasets, resolve_dataset_names
from soft_teacher.data.set_loading import LoadedSet, load_files, load_named_set
from soft_teacher.data.set_statistics import (
    ImageStatistics,
    ObjectStatistics,
    image_statistics,
    object_statistics,
)
from soft_teacher.data.start_checks import check_test_sets


@dataclass(frozen=True)
class CheckedSet:
    """What was found out about a set.

    Attributes:
        name, role, origin: see `LoadedSet`.
        records: of its images, without annotations.
        scans: of its images, in the same order.
        findings: on the set.
        objects: numbers of its annotations, if it has any.
        images: numbers of its readable images.
    """

    name: str
    role: str
    origin: str
    records: list[dict[str, Any]]
    scans: list[ScannedImage]
    findings: list[Finding]
    objects: ObjectStatistics | None
    images: ImageStatistics

    @property
    def readable(self) -> int:
        """Number of images that can be read."""
        return sum(not scan.error for scan in self.scans)


@dataclass(frozen=True)
class CheckedData:
    """What was found out about all sets.

    Attributes:
        sets: one by one.
        together: findings that are not on one set alone.
    """

    sets: list[CheckedSet]
    together: list[Finding]

    @property
    def stops_training(self) -> bool:
        """Whether training, or an evaluation during it, would end with an error."""
        findings = [*self.together, *(x for checked in self.sets for x in checked.findings)]
        return any(finding.level == STOPS for finding in findings)


def check_config(cfg: CfgNode, pool: ProcessPoolExecutor | None) -> CheckedData:
    """Look over every set that a config names.

    Args:
        cfg: the config.
        pool: of `dataset_scan.scan_pool`.
    """
    try:
        register_custom_datasets(cfg)
    except ValueError as error:
        return CheckedData([], [refusal(str(error))])
    errors = _start_errors(cfg)
    checked = [
        _check(load_named_set(cfg, name, role), pool, cfg.INPUT.MAX_PIXELS)
        for name, role in _names(cfg)
    ]
    reported = {place for x in checked for finding in x.findings for place in finding.places}
    refusals = [refusal(error) for error in errors if error not in reported]
    return CheckedData(checked, [*refusals, *_unreadable_runs(checked), *_shared(checked)])


def check_files(
    json_file: str | None, images: str, pool: ProcessPoolExecutor | None
) -> CheckedData:
    """Look over one set that no config names.

    Args:
        json_file: COCO file of a labeled or test set; None for a set of images.
        images: folder of the images; without a COCO file also a glob pattern or a text list.
        pool: of `dataset_scan.scan_pool`.
    """
    checked = _check(load_files(json_file, images), pool, MAX_PIXELS)
    together = _unreadable_runs([checked])
    refused = any(finding.level == STOPS for finding in checked.findings)
    if not checked.records and not refused:
        together.append(refusal(f"{checked.name} holds no image."))
    elif checked.objects is not None and not checked.objects.objects:
        together.append(refusal(f"{checked.name} holds no object; there is nothing to learn from."))
    return CheckedData([checked], together)


def _names(cfg: CfgNode) -> list[tuple[str, str]]:
    labeled, unlabeled = resolve_dataset_names(cfg)
    used = [(LABELED, labeled), (UNLABELED, unlabeled), (TEST, cfg.DATASETS.TEST)]
    if not cfg.SOFT_TEACHER.ENABLED:
        del used[1]
    return [(name, role) for role, names in used for name in names]


def _start_errors(cfg: CfgNode) -> list[str]:
    """Messages of what training refuses when it starts, from its own functions."""
    if any(name not in DatasetCatalog for name, _ in _names(cfg)):
        return []
    steps = [labeled_records, check_test_sets]
    if cfg.SOFT_TEACHER.ENABLED:
        steps += [unlabeled_records]
    errors = []
    for step in steps:
        try:
            step(cfg)
        except (ValueError, OSError) as error:
            errors.append(str(error))
    return [*dict.fromkeys(errors)]


def _check(loaded: LoadedSet, pool: ProcessPoolExecutor | None, max_pixels: int) -> CheckedSet:
    with_object = {r["file_name"] for r in loaded.annotated if _has_object(r)}
    empty = [r["file_name"] for r in loaded.annotated if not _has_object(r)]
    objects = object_statistics(loaded.annotated, loaded.classes) if loaded.annotated else None
    for record in loaded.annotated:
        # They are counted, and take more memory than all the rest.
        del record["annotations"]
    records, role = loaded.records, loaded.role
    title = f"{loaded.name} ({role})"
    scans = scan_images(records, pool, title, role != UNLABELED, max_pixels)
    read = [
        loaded.reads_empty or not loaded.annotated or record["file_name"] in with_object
        for record in records
    ]
    findings = [refusal(loaded.error)] if loaded.error else []
    findings += [unmeasured_finding(loaded.unmeasured)] if loaded.unmeasured else []
    findings += problem_findings(loaded.problems)
    findings += unreadable_findings(records, scans, read, role)
    findings += image_findings(records, scans, read, role)
    findings += copy_findings([record["file_name"] for record in records], scans)
    if objects is not None:
        findings += empty_findings(empty, role, loaded.filtered)
        findings += object_findings(objects, role)
    sizes = image_statistics(scan.size for scan in scans if scan.size is not None)
    return CheckedSet(loaded.name, role, loaded.origin, records, scans, findings, objects, sizes)


def _has_object(record: dict[str, Any]) -> bool:
    return any(not annotation.get("iscrowd", 0) for annotation in record["annotations"])


def _unreadable_runs(checked: list[CheckedSet]) -> list[Finding]:
    scans = [scan for x in checked if x.role == UNLABELED for scan in x.scans]
    return unreadable_run_findings([bool(scan.error) for scan in scans])


def _shared(checked: list[CheckedSet]) -> list[Finding]:
    findings = []
    for first, second in combinations((LABELED, UNLABELED, TEST), 2):
        lists = []
        for role in (first, second):
            sets = [x for x in checked if x.role == role]
            lists.append([record for x in sets for record in x.records])
            lists.append([scan.digest for x in sets for scan in x.scans])
        findings += shared_findings(first, second, find_shared_images(*lists))
    return findings
