"""The pictures of `data_pictures` as files, and as one web page."""

from pathlib import Path

from detectron2.config import CfgNode
from markupsafe import Markup

from soft_teacher.analysis import html_page as html
from soft_teacher.analysis.data_pictures import SamplePicture
from soft_teacher.analysis.drawing import as_jpeg

LABELED_TEXT = (
    "As the student sees them: resized, flipped and recolored as the config says, with the boxes "
    "that it learns from."
)
UNLABELED_TEXT = (
    "The weak view is the teacher's, the strong one the student's. A box has the same number and "
    "color in both: it is carried from one to the other by the matrices that the views come with, "
    "so it must frame the same thing. A turned box grows to the upright one around it. Numbered "
    "boxes with a class are objects that training does not know of; a grid of numbers alone "
    "stands in where the set has no annotations."
)


def write_pictures(samples: dict[str, list[SamplePicture]], folder: Path) -> list[Path]:
    """Write each image to a JPEG file of its own, all its views in it.

    Args:
        samples: "labeled" and "unlabeled" images, or either.
        folder: made if missing. Files are named by kind and number; those of an earlier call are
            replaced.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for kind, pictures in samples.items():
        for number, picture in enumerate(pictures, 1):
            files.append(folder / f"{kind}_{number:03d}.jpg")
            files[-1].write_bytes(as_jpeg(picture.sheet()))
    return files


def build_page(samples: dict[str, list[SamplePicture]], cfg: CfgNode) -> str:
    """A web page that needs no other file.

    Args:
        samples: "labeled" and "unlabeled" images, or either.
        cfg: what they were made with.
    """
    counts = " and ".join(f"{len(x)} {kind}" for kind, x in samples.items())
    body = [
        html.paragraph(
            f"The first {counts} images of a training in one process with SEED {cfg.SEED}.", "lead"
        )
    ]
    if "labeled" in samples:
        body.append(_labeled_section(samples["labeled"]))
    if "unlabeled" in samples:
        body.append(_unlabeled_section(samples["unlabeled"]))
    body.append(html.section("Config", html.folded("INPUT", html.code(cfg.INPUT.dump()))))
    return html.page("What training sees", body)


def _labeled_section(samples: list[SamplePicture]) -> Markup:
    figures = [
        html.figure(as_jpeg(view.image), sample.file_name, view.caption, view.title)
        for sample in samples
        for view in sample.views
    ]
    return html.section(
        "Labeled images", html.paragraph(LABELED_TEXT), html.group("pictures", figures)
    )


def _unlabeled_section(samples: list[SamplePicture]) -> Markup:
    blocks = []
    for sample in samples:
        figures = [
            html.figure(
                as_jpeg(view.image), view.title, view.caption, f"{view.title}: {sample.file_name}"
            )
            for view in sample.views
        ]
        blocks += [html.heading(sample.file_name), html.group("pair", figures)]
    return html.section("Unlabeled images", html.paragraph(UNLABELED_TEXT), *blocks)
