"""HTC's heads (Chen et al., CVPR 2019) of Detectron2's parts, computed as mmdetection does.

Shape shorthand: N images; R_i RoIs of image i, R of all; F foreground RoIs of all images; K classes
(class K is the background); C channels of feature maps; M x M cells of a mask.

Every stage has a box head and, with masks, a mask head. Without interleaving and mask information
flow this is mmdetection's Cascade R-CNN, or Cascade Mask R-CNN with its three mask heads. What
differs between mmdetection, Detectron2 and this is in docs/htc.md.
"""

from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import CascadeROIHeads, select_foreground_proposals
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from soft_teacher.modeling.guidance import check_choice
from soft_teacher.modeling.htc_mask_head import HTCMaskHead
from soft_teacher.modeling.htc_sampling import label_and_sample
from soft_teacher.modeling.score_average import SCORE_AVERAGES, average_scores
from soft_teacher.modeling.semantic_head import EMBEDDING, FusedPooler, FusedSemanticHead
from soft_teacher.modeling.semantic_labels import labels_of

_MASK_HEAD = "MaskRCNNConvUpsampleHead"


@dataclass(frozen=True)
class HTCRules:
    """How the stages hang together, see MODEL.ROI_HTC.

    Attributes:
        interleaved: masks learn from the boxes as their own stage refined them.
        mask_info_flow: mask heads after the first take in what those before them made.
        score_average: of `average_scores`.
        loss_weights: of each stage.
    """

    interleaved: bool
    mask_info_flow: bool
    score_average: str
    loss_weights: tuple[float, ...]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "HTCRules":
        """Read the rules from a config.

        Raises:
            ValueError: a key has a value without meaning, or asks for what HTC does not have.
        """
        htc, num_stages = cfg.MODEL.ROI_HTC, len(cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS)
        check_choice("MODEL.ROI_HTC.SCORE_AVERAGE", htc.SCORE_AVERAGE, SCORE_AVERAGES)
        weights = tuple(htc.STAGE_LOSS_WEIGHTS)
        if len(weights) != num_stages or min(weights) < 0:
            raise ValueError(
                f"MODEL.ROI_HTC.STAGE_LOSS_WEIGHTS is {weights}; give each of the {num_stages} "
                "stages in MODEL.ROI_BOX_CASCADE_HEAD.IOUS a weight of 0 or more."
            )
        if cfg.MODEL.MASK_ON and cfg.MODEL.ROI_MASK_HEAD.NAME != _MASK_HEAD:
            raise ValueError(
                f"MODEL.ROI_MASK_HEAD.NAME is {cfg.MODEL.ROI_MASK_HEAD.NAME}, but HTC's mask heads "
                f"are built like {_MASK_HEAD}; name that, or set MODEL.MASK_ON to False."
            )
        if cfg.MODEL.KEYPOINT_ON:
            raise ValueError("HTC has no keypoint head; set MODEL.KEYPOINT_ON to False.")
        return cls(htc.INTERLEAVED, htc.MASK_INFO_FLOW, htc.SCORE_AVERAGE, weights)


class HTCROIHeads(CascadeROIHeads):
    """Cascaded box and mask heads, perhaps with a semantic branch.

    The branch's embedding is computed once for each batch and joins its feature maps under the
    name `EMBEDDING`: box and mask features are pooled from it too.

    Attributes:
        semantic_head: None without the branch.
    """

    @configurable
    def __init__(self, *, htc_rules: HTCRules, semantic_head: FusedSemanticHead | None, **kwargs):
        if semantic_head is not None:
            for task in ("box", "mask"):
                if f"{task}_pooler" in kwargs:
                    kwargs[f"{task}_pooler"] = FusedPooler(kwargs[f"{task}_pooler"])
                    kwargs[f"{task}_in_features"] = [*kwargs[f"{task}_in_features"], EMBEDDING]
        super().__init__(**kwargs)
        self.semantic_head = semantic_head
        self.htc_rules = htc_rules
        self.score_average = htc_rules.score_average

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        rules = HTCRules.from_config(cfg)
        semantic = cfg.MODEL.ROI_HTC.SEMANTIC_ON
        return {
            **super().from_config(cfg, input_shape),
            "htc_rules": rules,
            "semantic_head": FusedSemanticHead(cfg, input_shape) if semantic else None,
        }

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        if not cfg.MODEL.MASK_ON:
            return {}
        names, head = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_MASK_HEAD
        side, channels = head.POOLER_RESOLUTION, input_shape[names[0]].channels
        scales = tuple(1.0 / input_shape[name].stride for name in names)
        shape, flow = ShapeSpec(channels, side, side), cfg.MODEL.ROI_HTC.MASK_INFO_FLOW
        stages = range(len(cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS))
        return {
            "mask_in_features": names,
            "mask_pooler": ROIPooler(side, scales, head.POOLER_SAMPLING_RATIO, head.POOLER_TYPE),
            "mask_head": nn.ModuleList(
                HTCMaskHead(cfg, shape, has_flow=flow and stage > 0) for stage in stages
            ),
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """See Detectron2's; `features` gets the embedding, and `images` have maps of labels.

        Raises:
            ValueError: the semantic branch is to learn, and the images have no maps.
        """
        if not self.training:
            self._add_embedding(features)
            return super().forward(images, features, proposals)
        losses = {}
        if self.semantic_head is not None:
            fused = self._add_embedding(features)
            losses["loss_semantic"] = self.semantic_head.loss(fused, labels_of(images))
        losses.update(self._labeled_losses(features, proposals, targets))
        return proposals, losses

    def forward_with_given_boxes(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> list[Instances]:
        self._add_embedding(features)
        return super().forward_with_given_boxes(features, instances)

    def _add_embedding(self, features: dict[str, Tensor]) -> Tensor | None:
        """Put the embedding among the feature maps, if there is a branch and it is not there yet.

        Returns:
            What embedding and logits are made of, if it was computed.
        """
        if self.semantic_head is None or EMBEDDING in features:
            return None
        fused = self.semantic_head(features)
        features[EMBEDDING] = self.semantic_head.embed(fused)
        return fused

    def _labeled_losses(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances]
    ) -> dict[str, Tensor]:
        """Losses of all stages on labeled images, weighted, by their names."""
        levels = [features[name] for name in self.box_in_features]
        boxes = [x.proposal_boxes for x in proposals]
        losses = {}
        for stage, weight in enumerate(self.htc_rules.loss_weights):
            rois = self._draw(stage, boxes, targets)
            self._log_samples(stage, rois)
            predictions = self._run_stage(levels, rois, stage)
            boxes = self._hand_on(stage, predictions, rois)
            if self.htc_rules.interleaved and self.mask_on:
                mask_rois = self._draw(stage, boxes, targets)
            else:
                mask_rois = rois
            with get_event_storage().name_scope(f"stage{stage}"):
                found = self.box_predictor[stage].losses(predictions, rois)
                found.update(self._mask_loss(stage, features, mask_rois))
            losses.update({f"{name}_stage{stage}": weight * x for name, x in found.items()})
        return losses

    def _draw(self, stage: int, boxes: list[Boxes], targets: list[Instances]) -> list[Instances]:
        """The RoIs of a stage from the boxes that enter it, see `label_and_sample`."""
        return [
            label_and_sample(
                x,
                target,
                self.proposal_matchers[stage],
                self._sample_proposals,
                self.proposal_append_gt,
            )
            for x, target in zip(boxes, targets, strict=True)
        ]

    def _log_samples(self, stage: int, rois: list[Instances]) -> None:
        """Log foreground and background RoIs an image, by the names of Detectron2's cascade."""
        classes, storage = torch.cat([x.gt_classes for x in rois]), get_event_storage()
        num_foreground = int((classes < self.num_classes).sum())
        prefix = "" if stage == 0 else f"stage{stage}/"
        for kind, num in (("fg", num_foreground), ("bg", len(classes) - num_foreground)):
            storage.put_scalar(f"{prefix}roi_head/num_{kind}_samples", num / len(rois))

    @torch.no_grad()
    def _hand_on(
        self, stage: int, predictions: tuple[Tensor, Tensor], rois: list[Instances]
    ) -> list[Boxes]:
        """RoIs as a stage refined them, without gradient, but for those of ground truth."""
        refined = self.box_predictor[stage].predict_boxes(predictions, rois)
        kept = [x[~roi.is_target] for x, roi in zip(refined, rois, strict=True)]
        sizes = [x.image_size for x in rois]
        return [x.proposal_boxes for x in self._create_proposals_from_boxes(kept, sizes)]

    def _run_stage(
        self, features: list[Tensor], proposals: list[Instances], stage: int
    ) -> tuple[Tensor, Tensor]:
        # Detectron2's scales the gradient into the features by 1/3; mmdetection weights the losses.
        pooled = self.box_pooler(features, [x.proposal_boxes for x in proposals])
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> list[Instances]:
        """Detections: boxes of the last stage, scores of all stages together."""
        assert not self.training
        levels = [features[name] for name in self.box_in_features]
        sizes, num_boxes = [x.image_size for x in proposals], [len(x) for x in proposals]
        logits, boxes = [], []
        for stage in range(self.num_cascade_stages):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(boxes, sizes)
            predictions = self._run_stage(levels, proposals, stage)
            logits.append(predictions[0].float())
            boxes = self.box_predictor[stage].predict_boxes(predictions, proposals)
        last = self.box_predictor[-1]
        scores = average_scores(logits, self.score_average).split(num_boxes)
        found, _ = fast_rcnn_inference(
            boxes,
            scores,
            sizes,
            last.test_score_thresh,
            last.test_nms_thresh,
            last.test_topk_per_image,
        )
        return found

    def _mask_loss(
        self, stage: int, features: dict[str, Tensor], rois: list[Instances]
    ) -> dict[str, Tensor]:
        if not self.mask_on:
            return {}
        rois, _ = select_foreground_proposals(rois, self.num_classes)
        pooled = self._pool_for_masks(features, [x.proposal_boxes for x in rois])
        head = self.mask_head[stage]
        loss = mask_rcnn_loss(self._mask_logits(stage, pooled), rois, head.vis_period)
        return {"loss_mask": loss * head.loss_weight}

    def _pool_for_masks(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        return self.mask_pooler([features[name] for name in self.mask_in_features], boxes)

    def _mask_logits(self, stage: int, pooled: Tensor) -> Tensor:
        """Logits (F, K, M, M) of one stage, to which those before it contribute, if there is flow.

        Args:
            stage: the stage.
            pooled: (F, C, M / 2, M / 2), RoI features.
        """
        return self.mask_head[stage].predict(self._trunks(stage, pooled)[-1])

    def _trunks(self, stage: int, pooled: Tensor) -> list[Tensor]:
        """Trunks of the heads that the one of a stage depends on, its own is the last one."""
        heads = list(self.mask_head)[: stage + 1]
        if not self.htc_rules.mask_info_flow:
            return [heads[-1].trunk(pooled, None)]
        trunks: list[Tensor] = []
        for head in heads:
            trunks.append(head.trunk(pooled, trunks[-1] if trunks else None))
        return trunks

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Draw masks in detected boxes: the mean of the probabilities of all stages."""
        assert not self.training
        if not self.mask_on:
            return instances
        pooled = self._pool_for_masks(features, [x.pred_boxes for x in instances])
        num_stages = len(self.mask_head)
        if self.htc_rules.mask_info_flow:
            trunks = self._trunks(num_stages - 1, pooled)
        else:
            trunks = [head.trunk(pooled, None) for head in self.mask_head]
        masks = []
        for head, trunk in zip(self.mask_head, trunks, strict=True):
            mask_rcnn_inference(head.predict(trunk), instances)
            masks.append([x.pred_masks for x in instances])
        for x, of_stages in zip(instances, zip(*masks, strict=True), strict=True):
            x.pred_masks = sum(of_stages) / num_stages
        return instances
