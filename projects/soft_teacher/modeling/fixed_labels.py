"""Pseudo labels that were made beforehand, in the teacher's place: the multi-stage baselines.

The views carry them, as `pseudo_labels`; see `soft_teacher.data.PseudoLabeledMapper`.
"""

from typing import NoReturn

import torch
from detectron2.config import CfgNode

from soft_teacher.modeling.guidance import Guidance, PseudoLabelRules


def labels_are_fixed(cfg: CfgNode) -> bool:
    """Whether pseudo labels come from SOFT_TEACHER.PSEUDO_LABELS.FILES.

    Raises:
        ValueError: they do, and a key asks for masks or for the judgement of a teacher.
    """
    st = cfg.SOFT_TEACHER
    if not st.PSEUDO_LABELS.FILES:
        return False
    if cfg.MODEL.MASK_ON:
        raise ValueError(
            "MODEL.MASK_ON is True, but the files in SOFT_TEACHER.PSEUDO_LABELS.FILES hold boxes "
            "without masks: set MODEL.MASK_ON to False, or FILES to () to train with a teacher."
        )
    required = {
        "EMA.ENABLED": (st.EMA.ENABLED, False),
        "JITTER.ENABLED": (st.JITTER.ENABLED, False),
        "BACKGROUND.RELIABILITY": (st.BACKGROUND.RELIABILITY, "none"),
    }
    for key, (value, needed) in required.items():
        if value != needed:
            raise ValueError(
                f"SOFT_TEACHER.{key} is {value!r}, but with SOFT_TEACHER.PSEUDO_LABELS.FILES there "
                f"is no teacher: set it to {needed!r}, or FILES to () to train with a teacher."
            )
    return True


def fixed_guidance(views: list[dict], rules: PseudoLabelRules, device: torch.device) -> Guidance:
    """Guidance by the labels that views carry.

    Args:
        views: N views with `pseudo_labels`: `Instances` with `pred_boxes`, `pred_classes` and
            `scores`, in the view's frame.
        rules: which labels teach what.
        device: of the model that is to learn from them.
    """
    labels = [view["pseudo_labels"].to(device) for view in views]
    return Guidance(labels, [view["matrix"] for view in views], _judge, rules)


def _judge(*args) -> NoReturn:
    raise AssertionError("Nobody can judge boxes here; `labels_are_fixed` sees to it.")
