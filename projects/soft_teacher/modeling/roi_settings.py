"""What a config says about Soft Teacher on a RoI head."""

from dataclasses import dataclass

from detectron2.config import CfgNode

from soft_teacher.modeling.background_weighting import CLS_NORMALIZERS, REG_NORMALIZERS
from soft_teacher.modeling.guidance import check_choice
from soft_teacher.modeling.mask_losses import MaskRules
from soft_teacher.modeling.reliability import INDICATORS

JUDGES = ("stage", "ensemble")


@dataclass(frozen=True)
class ROISettings:
    """The keys of SOFT_TEACHER that a RoI head obeys.

    Attributes:
        reliability: of background RoIs: name of an indicator, or "none".
        cls_normalizer: of `soft_classification_loss`.
        reg_normalizer: of `box_regression_loss`.
        mask_rules: what the mask head learns, if there is one.
        judge: of a cascade, see SOFT_TEACHER.CASCADE.JUDGE.
    """

    reliability: str
    cls_normalizer: str
    reg_normalizer: str
    mask_rules: MaskRules
    judge: str

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "ROISettings":
        """Read the settings.

        Raises:
            ValueError: a key has a value that is not among its choices, or excludes another.
        """
        st = cfg.SOFT_TEACHER
        for key, value, choices in (
            ("BACKGROUND.RELIABILITY", st.BACKGROUND.RELIABILITY, (*INDICATORS, "none")),
            ("BACKGROUND.NORMALIZER", st.BACKGROUND.NORMALIZER, CLS_NORMALIZERS),
            ("REGRESSION.NORMALIZER", st.REGRESSION.NORMALIZER, REG_NORMALIZERS),
            ("CASCADE.JUDGE", st.CASCADE.JUDGE, JUDGES),
        ):
            check_choice(f"SOFT_TEACHER.{key}", value, choices)
        if cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE has no background probability, which weights "
                "the unlabeled background; set it to False."
            )
        return cls(
            reliability=st.BACKGROUND.RELIABILITY,
            cls_normalizer=st.BACKGROUND.NORMALIZER,
            reg_normalizer=st.REGRESSION.NORMALIZER,
            mask_rules=MaskRules.from_config(cfg),
            judge=st.CASCADE.JUDGE,
        )
