"""What is worth seeing of a training with Soft Teacher beside its supervised baseline."""

from soft_teacher.analysis.curves import Chart, Curve
from soft_teacher.analysis.metrics_log import Metrics, sum_of_losses

# From a palette (Okabe and Ito) that color-blind people can tell apart.
SUPERVISED, SUPERVISED_AVERAGED = "#d55e00", "#e69f00"
STUDENT, TEACHER = "#56b4e9", "#0072b2"
RPN, CLASSIFICATION, REGRESSION = "#009e73", "#e69f00", "#0072b2"


def training_charts(supervised: Metrics, soft_teacher: Metrics) -> list[Chart]:
    """All charts; those without any number are empty."""
    return [
        _ap(supervised, soft_teacher),
        _losses(supervised, soft_teacher),
        _pseudo_boxes(soft_teacher),
        _quality(soft_teacher),
        _variance(soft_teacher),
        _background_weight(soft_teacher),
    ]


def _ap(supervised: Metrics, soft_teacher: Metrics) -> Chart:
    return Chart(
        "AP",
        "on the validation images as training goes on.",
        "AP, %",
        tuple(
            Curve(label, metrics.get(f"{model}/bbox/AP", {}), color, marked=True)
            for label, metrics, model, color in (
                ("Soft Teacher, teacher", soft_teacher, "teacher", TEACHER),
                ("Soft Teacher, student", soft_teacher, "student", STUDENT),
                ("supervised", supervised, "student", SUPERVISED),
                ("supervised, weights averaged", supervised, "teacher", SUPERVISED_AVERAGED),
            )
        ),
    )


def _losses(supervised: Metrics, soft_teacher: Metrics) -> Chart:
    return Chart(
        "Losses",
        "added up and weighted as trained, those on unlabeled images by alpha.",
        "loss",
        (
            Curve("Soft Teacher, unlabeled images", sum_of_losses(soft_teacher, True), TEACHER),
            Curve("Soft Teacher, labeled images", sum_of_losses(soft_teacher, False), STUDENT),
            Curve("supervised", sum_of_losses(supervised, False), SUPERVISED),
        ),
    )


def _pseudo_boxes(metrics: Metrics) -> Chart:
    return Chart(
        "Pseudo boxes per image",
        "that teach each of the losses.",
        "boxes per image",
        (
            Curve("RPN", metrics.get("pseudo_boxes_rpn", {}), RPN),
            Curve(
                "classification", metrics.get("pseudo_boxes_cls", {}), CLASSIFICATION, dashed=True
            ),
            Curve("box regression", metrics.get("pseudo_boxes_reg", {}), REGRESSION),
        ),
    )


def _quality(metrics: Metrics) -> Chart:
    return Chart(
        "Quality of the pseudo boxes for classification",
        "at an overlap of 0.5. The truth of the unlabeled images serves this chart alone.",
        "share",
        (
            Curve("precision: of the boxes, right", metrics.get("pseudo_precision", {}), TEACHER),
            Curve("recall: of the objects, found", metrics.get("pseudo_recall", {}), SUPERVISED),
        ),
        y_max=1.0,
    )


def _variance(metrics: Metrics) -> Chart:
    return Chart(
        "Box regression variance",
        "of the pseudo boxes, mean (eq. 8 and 9).",
        "variance",
        (Curve("mean variance", metrics.get("pseudo_variance", {}), TEACHER),),
    )


def _background_weight(metrics: Metrics) -> Chart:
    return Chart(
        "Background weight",
        "that the teacher gives to the sampled background boxes, mean (eq. 5).",
        "weight",
        (Curve("mean weight", metrics.get("background_weight", {}), TEACHER),),
        y_max=1.0,
    )
