"""Observers of the training step: what a person wants to see of the pseudo labels.

An observer is called with (iteration, weak views, strong views, guidance) after each
semi-supervised forward, see `train_step.Observer`.
"""

import torch
from detectron2.structures import Boxes, BoxMode
from detectron2.utils.events import get_event_storage
from torch import Tensor

from soft_teacher.analysis.drawing import draw_views
from soft_teacher.analysis.pseudo_label_quality import match_counts
from soft_teacher.modeling.guidance import Guidance
from soft_teacher.modeling.pseudo_labels import above_score
from soft_teacher.modeling.view_geometry import project_boxes


class QualityMonitor:
    """Logs precision and recall of the pseudo boxes where the unlabeled set has ground truth.

    The ground truth is read from the data set by this monitor alone; batches do not carry it.
    """

    def __init__(self, ground_truth: dict[str, list[dict]], period: int):
        """
        Args:
            ground_truth: file name -> annotations in Detectron2's format, original frame.
            period: iterations between two entries in the log; each sums up all in between.
        """
        self._ground_truth = ground_truth
        self._period = period
        self._counts = torch.zeros(3)

    def __call__(
        self, iteration: int, weak: list[dict], strong: list[dict], guidance: Guidance
    ) -> None:
        for view, labels in zip(weak, guidance.labels, strict=True):
            # Of several unlabeled sets some may have no ground truth.
            if view["file_name"] not in self._ground_truth:
                continue
            boxes, classes = boxes_and_classes(self._ground_truth[view["file_name"]])
            chosen = labels[above_score(labels, guidance.rules.cls_score)].to("cpu")
            to_view = torch.from_numpy(view["matrix"]).float()
            boxes = project_boxes(boxes, to_view, labels.image_size)
            self._counts += torch.tensor(
                match_counts(chosen.pred_boxes, chosen.pred_classes, Boxes(boxes), classes)
            )
        if (iteration + 1) % self._period == 0:
            correct, num_pseudo, num_truth = self._counts.tolist()
            storage = get_event_storage()
            if num_pseudo > 0:
                storage.put_scalar("pseudo_precision", correct / num_pseudo, smoothing_hint=False)
            if num_truth > 0:
                storage.put_scalar("pseudo_recall", correct / num_truth, smoothing_hint=False)
            self._counts.zero_()


def boxes_and_classes(annotations: list[dict]) -> tuple[Tensor, Tensor]:
    """Boxes (G, 4) xyxy and classes (G,) of Detectron2 annotations, crowds left out."""
    objects = [x for x in annotations if not x.get("iscrowd", 0)]
    boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in objects]
    classes = torch.tensor([x["category_id"] for x in objects], dtype=torch.int64)
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), classes


class ViewPainter:
    """Puts weak and strong view side by side into the log, with what each loss learned from.

    The colors are those of `analysis.drawing.LEGEND`.
    """

    def __init__(self, period: int, image_format: str):
        self._period = period
        self._image_format = image_format

    def __call__(
        self, iteration: int, weak: list[dict], strong: list[dict], guidance: Guidance
    ) -> None:
        if (iteration + 1) % self._period == 0:
            picture = draw_views(weak, strong, guidance, 0, self._image_format)
            get_event_storage().put_image(
                "pseudo_labels", torch.from_numpy(picture.transpose(2, 0, 1).copy())
            )
