"""What of a checkpoint holds for a run that differs from the one that saved it, and what does not.

"State" is what `SoftTeacherTrainer.state_dict` returns; "fresh" the state of a new trainer.
"""

from soft_teacher.engine.run_description import NUM_PROCESSES, OF_OPTIMIZER

_OF_SAMPLING = {
    NUM_PROCESSES,
    "SOFT_TEACHER.ENABLED",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.IMS_PER_BATCH_UNLABELED",
    "SOLVER.ACCUMULATION_STEPS",
    "DATALOADER.ASPECT_RATIO_GROUPING",
    "DATASETS.TRAIN",
    "DATASETS.UNLABELED",
    "SEED",
}
_MEANINGLESS_AFTER = (
    ("seed of the data", ("data_seed",), {"SEED"}),
    ("position in the labeled images", ("_trainer", "labeled"), _OF_SAMPLING),
    ("position in the unlabeled images", ("_trainer", "unlabeled"), _OF_SAMPLING),
    ("gradient scaler", ("_trainer", "precision"), {"SOLVER.AMP.ENABLED"}),
    (
        "best metric of the teacher",
        ("hooks", "BestTeacherKeeper"),
        {"DATASETS.TEST", "SOFT_TEACHER.EMA.ENABLED"},
    ),
)


def key_differences(saved: dict, expected: dict, where: str) -> list[str]:
    """Keys that one of two nested dictionaries lacks, as "no a.b" and "an unknown a.c".

    What lies below an empty dictionary of `expected`, as the state of an optimizer that has not
    begun, is not known beforehand and left to its owner.
    """
    found = [f"no {where}.{key}" for key in expected if key not in saved]
    if expected:
        found += [f"an unknown {where}.{key}" for key in saved if key not in expected]
    for key, value in expected.items():
        if isinstance(value, dict) and isinstance(saved.get(key), dict):
            found += key_differences(saved[key], value, f"{where}.{key}")
    return found


def adapt_state(state: dict, fresh: dict, changed: set[str]) -> list[str]:
    """Make a saved state one that the new run can go on with, in place.

    Args:
        state: as it was saved.
        fresh: of the new run; the source of what starts afresh.
        changed: keys of `describe_run` that differ.

    Returns:
        What was done, for the log.

    Raises:
        ValueError: the optimizer's parameters are grouped in another way.
    """
    done = []
    for name, (*sections, key), settings in _MEANINGLESS_AFTER:
        if changed & settings:
            owner, source = state, fresh
            for section in sections:
                owner, source = owner.setdefault(section, {}), source[section]
            owner.pop(key, None)
            if key in source:
                owner[key] = source[key]
                done.append(f"the {name} starts afresh")
    if changed & set(OF_OPTIMIZER):
        _take_settings(state["_trainer"]["optimizer"], fresh["_trainer"]["optimizer"])
        state["hooks"]["LRScheduler"]["base_lrs"] = fresh["hooks"]["LRScheduler"]["base_lrs"]
        done.append("the optimizer takes its settings from the config")
    if NUM_PROCESSES in changed:
        done.append("random generators start afresh")
    return done


def _take_settings(optimizer: dict, fresh: dict) -> None:
    """Let each group of parameters have its new settings, at the same point of the schedule."""
    groups, new_groups = optimizer["param_groups"], fresh["param_groups"]
    if [x["params"] for x in groups] != [x["params"] for x in new_groups]:
        raise ValueError(
            "The optimizer groups parameters in another way than when the checkpoint was saved; "
            f"{', '.join(OF_OPTIMIZER)} can only be changed so that parameters with the same "
            "settings still have the same."
        )
    for group, new in zip(groups, new_groups, strict=True):
        multiplier = group["lr"] / group["initial_lr"] if group["initial_lr"] else 1.0
        group.update(new)
        group["lr"] = new["initial_lr"] * multiplier
