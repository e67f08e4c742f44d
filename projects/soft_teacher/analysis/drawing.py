"""Pictures of images with boxes, in RGB."""

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.utils.visualizer import Visualizer
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from soft_teacher.modeling.guidance import Guidance
from soft_teacher.modeling.pseudo_labels import has_area

# What a pseudo box teaches, by color (RGB in 0-1).
TEACHES_BOTH = (0.2, 0.9, 0.2)
TEACHES_CLASS = (1.0, 0.8, 0.1)
TEACHES_BOX = (0.2, 0.6, 1.0)
TEACHES_NOTHING = (0.6, 0.6, 0.6)
LEGEND = "green: class and box; yellow: class only; blue: box only; gray: neither"

CAPTION_SIZE = 13


def draw_boxes(
    image: np.ndarray,
    boxes: Tensor,
    labels: list[str] | None = None,
    colors: list[tuple[float, float, float]] | None = None,
    masks: Sequence | None = None,
    bold: bool = False,
) -> np.ndarray:
    """Draw boxes on an RGB image.

    Args:
        image: uint8 (H, W, 3), RGB.
        boxes: (R, 4), xyxy in pixels of the image.
        labels: R captions, shown as they are.
        colors: R colors, RGB in 0-1.
        masks: R masks in the image's frame, as Detectron2's `Visualizer` takes them.
        bold: whether the boxes are to stand out on photographs.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    if bold:
        # Detectron2's boxes are half transparent: two layers are less so.
        image = draw_boxes(image, boxes, None, colors)
    if labels is not None:
        # Between dollars, matplotlib would read a formula.
        labels = [label.replace("$", r"\$") for label in labels]
    canvas = Visualizer(image, None)
    canvas.overlay_instances(
        boxes=boxes.numpy(), labels=labels, masks=masks, assigned_colors=colors, alpha=0.35
    )
    return canvas.output.get_image()


def enlarge(image: np.ndarray, boxes: Tensor, side: int = 480) -> tuple[np.ndarray, Tensor]:
    """Enlarge a small picture by a whole factor, or captions would hide it.

    Args:
        image: uint8 (H, W, 3).
        boxes: (R, 4), xyxy in pixels of the image.
        side: about how long the longer side should be.

    Returns:
        The image and the boxes in it; as they were if the image is large enough.
    """
    factor = max(1, round(side / max(image.shape[:2])))
    size = (factor * image.shape[1], factor * image.shape[0])
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(picture), factor * boxes


def view_to_rgb(view: dict, image_format: str) -> np.ndarray:
    """The image of a view as uint8 (H, W, 3), RGB."""
    return convert_image_to_rgb(view["image"].permute(1, 2, 0), image_format)


def draw_views(
    weak: list[dict], strong: list[dict], guidance: Guidance, index: int, image_format: str
) -> np.ndarray:
    """Weak and strong view of an image side by side, with its pseudo boxes.

    The color of a box tells what it teaches the RoI head, see `LEGEND`. Its caption on the weak
    view is class, score and box regression variance; "rpn" on the strong view marks those that
    teach the RPN. Boxes that left the strong view are not drawn there.

    Args:
        weak, strong: the views of a batch.
        guidance: of that batch.
        index: the image's place in the batch.
        image_format: INPUT.FORMAT.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    labels = guidance.labels[index].to("cpu")
    in_view = guidance.seen_from(strong)
    colors = [
        _color(bool(c), bool(r))
        for c, r in zip(in_view.teaches_cls[index], in_view.teaches_reg[index], strict=True)
    ]
    captions = [
        f"{int(c)} {float(s):.2f}" for c, s in zip(labels.pred_classes, labels.scores, strict=True)
    ]
    if guidance.variance is not None:
        variances = guidance.variance[index].tolist()
        captions = [f"{c} {v:.3f}" for c, v in zip(captions, variances, strict=True)]
    weak_image = view_to_rgb(weak[index], image_format)
    left = draw_boxes(*enlarge(weak_image, labels.pred_boxes.tensor), captions, colors)
    targets = in_view.targets[index].to("cpu")
    visible = has_area(targets).nonzero().squeeze(1).tolist()
    strong_image = view_to_rgb(strong[index], image_format)
    right = draw_boxes(
        *enlarge(strong_image, targets.gt_boxes.tensor[visible]),
        ["rpn" if in_view.teaches_rpn[index][i] else "" for i in visible],
        [colors[i] for i in visible],
    )
    return side_by_side([left, right])


def _color(teaches_class: bool, teaches_box: bool) -> tuple[float, float, float]:
    if teaches_class:
        return TEACHES_BOTH if teaches_box else TEACHES_CLASS
    return TEACHES_BOX if teaches_box else TEACHES_NOTHING


def side_by_side(images: list[np.ndarray], gap: int = 8) -> np.ndarray:
    """Join RGB images of any sizes in a row, on white."""
    height = max(x.shape[0] for x in images)
    columns = []
    for image in images:
        column = np.full((height, image.shape[1] + gap, 3), 255, dtype=np.uint8)
        column[: image.shape[0], : image.shape[1]] = image
        columns.append(column)
    return np.concatenate(columns, axis=1)[:, :-gap]


def with_caption(image: np.ndarray, text: str) -> np.ndarray:
    """Add text below an RGB image, on white, in as many lines as it needs."""
    # Matplotlib's own font: it is there wherever Detectron2 draws. All its letters are as wide.
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans Mono"), CAPTION_SIZE)
    letters_per_line = max(1, int(image.shape[1] / font.getlength("e")))
    lines = "\n".join(textwrap.wrap(text, letters_per_line))
    line_height = round(1.5 * CAPTION_SIZE)
    height = line_height * (lines.count("\n") + 1) + 4
    strip = Image.new("RGB", (image.shape[1], height), "white")
    ImageDraw.Draw(strip).text((0, 4), lines, "black", font, spacing=line_height - CAPTION_SIZE)
    return np.concatenate([image, np.asarray(strip)])


def as_jpeg(image: np.ndarray) -> bytes:
    """An RGB image, uint8 (H, W, 3), as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=88)
    return file.getvalue()
