"""Comparisons of models, picture by picture, as rows of a web page."""

from markupsafe import Markup

from soft_teacher.analysis import html_page as html
from soft_teacher.analysis.prediction_pictures import COLOR_MEANINGS, Comparison


def comparison_row(comparison: Comparison) -> Markup:
    """The pictures of one image side by side."""
    return html.group(
        "row",
        [
            html.figure(x.jpeg, x.title, x.caption, f"{x.title}: {comparison.file_name}")
            for x in comparison.pictures
        ],
    )


def build_comparison_page(
    comparisons: list[Comparison], headings: list[str], lead: str, command: str
) -> str:
    """A web page that needs no other file.

    Args:
        comparisons: of the images.
        headings: of each image.
        lead: what is compared on which images.
        command: what was typed.
    """
    blocks = [
        x
        for heading, comparison in zip(headings, comparisons, strict=True)
        for x in (html.heading(heading), comparison_row(comparison))
    ]
    return html.page(
        "Models compared",
        [
            html.paragraph(lead, "lead"),
            html.color_key(COLOR_MEANINGS),
            *blocks,
            html.section("How it was made", html.code(command)),
        ],
    )
