"""How many images the sets hold that the configs name; no file is read."""

import re

TRAIN2017, UNLABELED2017, VAL2017 = 118_287, 123_403, 5_000
# What the demo makes unless it is told otherwise.
DIGITS_LABELED, DIGITS_UNLABELED = 40, 1_160
# As configs/suites/pennfudan has it: 120 photographs to train on, 50 to evaluate on.
PENNFUDAN_TRAIN = 120

_WHOLE_SETS = {
    "coco_2017_train": TRAIN2017,
    "coco_2017_unlabeled": UNLABELED2017,
    "coco_2017_val": VAL2017,
    "digits_labeled": DIGITS_LABELED,
    "digits_unlabeled": DIGITS_UNLABELED,
    "digits_all": DIGITS_LABELED + DIGITS_UNLABELED,
    "pennfudan_all": PENNFUDAN_TRAIN,
}
_SPLIT_SETS = {
    "coco_semi": TRAIN2017,
    "digits": DIGITS_LABELED + DIGITS_UNLABELED,
    "pennfudan": PENNFUDAN_TRAIN,
}
_SPLIT = re.compile(rf"({'|'.join(_SPLIT_SETS)})_(?:\d+|{{fold}})@([\d.]+)(_unlabeled)?")


def set_size(name: str) -> int | None:
    """Images of a set, those without an object included; None if it is not known.

    Args:
        name: as in DATASETS.TRAIN, "{fold}" replaced or not: all folds are of one size.
    """
    split = _SPLIT.fullmatch(name)
    if split is None:
        return _WHOLE_SETS.get(name)
    whole = _SPLIT_SETS[split[1]]
    labeled = int(float(split[2]) * whole / 100)
    return whole - labeled if split[3] else labeled


def total_size(names: tuple[str, ...]) -> int | None:
    """Images of several sets together; None if there is none, or one is not known."""
    sizes = [set_size(name) for name in names]
    return None if not sizes or None in sizes else sum(sizes)
