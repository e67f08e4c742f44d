"""What tests of RoI heads start from."""

import pytest
import torch
from detectron2.modeling import build_model

from rois import EXHAUSTIVE, SIZE, guidance_for, proposals_near
from tiny import random_boxes, tiny_config


@pytest.fixture
def setting():
    """Two images; boxes that teach both losses, one of them, or none."""
    cfg = tiny_config(**EXHAUSTIVE)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    boxes = [random_boxes(10, 4, SIZE), random_boxes(11, 3, SIZE)]
    scores = [[0.95, 0.95, 0.7, 0.6], [0.99, 0.6, 0.6]]
    variances = [[0.01, 0.5, 0.01, 0.01], [0.5, 0.01, 0.5]]
    guidance = guidance_for(boxes, scores, variances, cfg)
    proposals = [proposals_near(b, i) for i, b in enumerate(boxes)]
    return cfg, model, boxes, guidance, proposals
