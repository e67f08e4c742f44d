"""What a config says about Soft Teacher on a dense detector."""

import math
from dataclasses import dataclass, replace

from detectron2.config import CfgNode

from soft_teacher.modeling.background_weighting import CLS_NORMALIZERS
from soft_teacher.modeling.dense_spread import SpreadRules
from soft_teacher.modeling.fixed_labels import labels_are_fixed
from soft_teacher.modeling.guidance import PseudoLabelRules, check_choice

RELIABILITIES = ("teacher", "none")


@dataclass(frozen=True)
class DenseSettings:
    """The keys of SOFT_TEACHER that a dense detector obeys.

    Attributes:
        unsup_loss_weight: alpha of eq. 1.
        rules: which detections teach what; none teaches an RPN.
        spread_rules: which predictions tell the spread of a pseudo box.
        reliability: of negatives: "teacher" (1 minus its foreground probability) or "none".
        per_image: whether the weights of negatives have a mean of one in each image.
        fixed_labels: whether the views carry pseudo labels, which then are the guidance.
    """

    unsup_loss_weight: float
    rules: PseudoLabelRules
    spread_rules: SpreadRules
    reliability: str
    per_image: bool
    fixed_labels: bool

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "DenseSettings":
        """Read the settings.

        Raises:
            ValueError: a key has a value that is not among its choices, excludes another, or means
                nothing to a dense detector.
        """
        st = cfg.SOFT_TEACHER
        if st.BACKGROUND.RELIABILITY not in RELIABILITIES:
            raise ValueError(
                f"SOFT_TEACHER.BACKGROUND.RELIABILITY is {st.BACKGROUND.RELIABILITY!r}; one-stage "
                f"detectors know {' and '.join(map(repr, RELIABILITIES))}, set it to one of them."
            )
        check_choice(
            "SOFT_TEACHER.BACKGROUND.NORMALIZER", st.BACKGROUND.NORMALIZER, CLS_NORMALIZERS
        )
        if st.REGRESSION.NORMALIZER != "sampled":
            raise ValueError(
                f"SOFT_TEACHER.REGRESSION.NORMALIZER is {st.REGRESSION.NORMALIZER!r}, but "
                "one-stage detectors divide by a moving average of their positive anchors; leave "
                "it at 'sampled'."
            )
        return cls(
            unsup_loss_weight=st.UNSUP_LOSS_WEIGHT,
            rules=replace(PseudoLabelRules.from_config(cfg), rpn_score=math.inf),
            spread_rules=SpreadRules.from_config(cfg),
            reliability=st.BACKGROUND.RELIABILITY,
            per_image=st.BACKGROUND.NORMALIZER == "paper",
            fixed_labels=labels_are_fixed(cfg),
        )
