"""The analysis of pseudo labels as blocks of a web page."""

from typing import Any

from markupsafe import Markup

from soft_teacher.analysis import html_page as html
from soft_teacher.analysis.localization_quality import ANY_CLASS, KINDS, ON_OBJECT, OWN_CLASS

DEFINITIONS = (
    "A box is right if it gets an object: the boxes of an image choose in the order of their "
    "scores, each takes the free object of its class that it overlaps most, if by at least half. "
    "Crowds are no objects. All thresholds are strict."
)
CORRELATIONS = (
    "Spearman's rank correlation: 1 where the higher value always has the larger IoU, -1 where it "
    "always has the smaller one. The advantage of the variance is minus its correlation, less that "
    "of the score: above 0, the variance says more. In brackets the middle 95 % of a bootstrap "
    "over images. The paper does not say whose IoU is meant, so there are three kinds."
)
KIND_TEXTS = {
    OWN_CLASS: "IoU with objects of the box's class",
    ANY_CLASS: "IoU with objects of any class",
    ON_OBJECT: "the same of boxes on an object",
}
KIND_MEANINGS = (
    "By the largest IoU with an object of the box's class, 0 if there is none, a box of the wrong "
    "class counts as misplaced. By that with any object, only boxes in the wrong place do. Boxes "
    "on an object, those with an IoU of at least 0.5 with one of their class, differ in the place "
    "alone."
)
CAPTIONS = (
    ("Precision and recall", "against the score threshold (figure 3a)."),
    ("IoU and foreground score", "of each pseudo box (figure 3b)."),
    ("IoU and box regression variance", "of each pseudo box, logarithmic (figure 3c)."),
)


def build_quality_page(summary: dict[str, Any], figures: list[bytes], command: str) -> str:
    """A web page that needs no other file.

    Args:
        summary, figures: of `quality_files.read_quality`.
        command: what was typed.
    """
    made = html.section("How it was made", html.code(command), html.table(*_settings(summary)))
    claims = [html.paragraph(claim(x), "lead") for x in main_rows(summary)]
    body = [*claims, *quality_blocks(summary, figures), made]
    return html.page("Quality of pseudo labels", body)


def quality_blocks(summary: dict[str, Any], figures: list[bytes]) -> list[Markup]:
    """Numbers, tables and figures."""
    main = main_rows(summary)[0]
    rates = [
        [
            f"{x['threshold']:g}",
            str(x["boxes"]),
            *("-" if x[k] is None else f"{x[k]:.1%}" for k in ("precision", "recall")),
        ]
        for x in summary["thresholds"]
    ]
    pictures = [html.figure(x, *text) for x, text in zip(figures, CAPTIONS, strict=True)]
    return [
        html.group(
            "cards",
            [
                html.card("correlation of IoU and score", number(main["score"]["value"])),
                html.card("correlation of IoU and variance", number(main["variance"]["value"])),
                html.card("advantage of the variance", number(main["advantage"]["value"]), True),
            ],
        ),
        html.paragraph(
            f"The cards are of the {main['boxes']} pseudo boxes scored above {main['above']:g}, in "
            f"{summary['images']} images with {summary['objects']} objects, and their IoU with "
            "objects of their class."
        ),
        html.group("grid", pictures),
        html.heading("Rank correlations with the IoU"),
        html.table(*correlation_table(summary)),
        html.paragraph(CORRELATIONS),
        html.paragraph(KIND_MEANINGS),
        html.heading("Precision and recall"),
        html.table(["Score above", "Boxes", "Precision", "Recall"], rates),
        html.paragraph(DEFINITIONS),
    ]


def main_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each kind the correlations of the boxes whose variance the paper's training estimates.

    They are those above 0.5, or all if the lowest score was higher.
    """
    by_kind = {kind: [] for kind in KINDS}
    for row in summary["correlations"]:
        by_kind[row["kind"]].append(row)
    return [next((x for x in rows if x["above"] >= 0.5), rows[0]) for rows in by_kind.values()]


def claim(row: dict[str, Any]) -> str:
    """What one row says of the paper's claim that the variance tells the place better."""
    advantage = row["advantage"]
    which = f"{KIND_TEXTS[row['kind']]}, {row['boxes']} boxes scored above {row['above']:g}"
    which = f"{which[0].upper()}{which[1:]}"
    if advantage["value"] is None or advantage["interval"] is None:
        return f"{which}: they differ too little to compare score and variance."
    low, high = advantage["interval"]
    if low > 0 or high < 0:
        verdict = f"the {'variance' if low > 0 else 'score'} says more"
    else:
        verdict = "neither is shown to say more"
    return (
        f"{which}: {verdict}. Rank correlations are {number(row['score']['value'])} with the score "
        f"and {number(row['variance']['value'])} with the variance, whose advantage is "
        f"{number(advantage['value'])} ({_interval(advantage)})."
    )


def correlation_table(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of text."""
    header = ["Boxes", "Number", "Score", "Variance", "Advantage of the variance"]
    rows = []
    for x in summary["correlations"]:
        cells = [f"{number(x[k]['value'])} ({_interval(x[k])})" for k in _MEASURES]
        rows.append([f"{KIND_TEXTS[x['kind']]}, score > {x['above']:g}", str(x["boxes"]), *cells])
    return header, rows


_MEASURES = ("score", "variance", "advantage")


def number(value: float | None) -> str:
    """A correlation with its sign, "-" for None."""
    return "-" if value is None else f"{value:+.3f}"


def _interval(measure: dict[str, Any]) -> str:
    if measure["interval"] is None:
        return "-"
    low, high = measure["interval"]
    return f"{number(low)} to {number(high)}"


def _settings(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    names = {
        "weights": "Weights",
        "model": "Model",
        "sets": "Sets",
        "images": "Images",
        "images_in_sets": "Images in the sets",
        "unreadable_images": "Images that could not be read",
        "seed": "Seed",
        "resamples": "Resamples of the bootstrap",
        "num_jitter": "Jittered copies",
        "jitter_scale": "Scale of the jitter",
        "variance_definition": "Definition of the variance",
    }
    return ["Setting", "Value"], [[title, str(summary[key])] for key, title in names.items()]
