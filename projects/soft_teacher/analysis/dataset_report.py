"""The report of tools/check_dataset.py: a page, the numbers behind it, and a few lines of text."""

from dataclasses import asdict
from typing import Any

from markupsafe import Markup

from soft_teacher.analysis import html_page as html
from soft_teacher.analysis.histograms import HistogramPicture, plot_histogram
from soft_teacher.data.dataset_check import CheckedData, CheckedSet
from soft_teacher.data.dataset_findings import LOOK, NOTE, STOPS, Finding
from soft_teacher.data.set_statistics import (
    LARGE_AREA,
    SMALL_AREA,
    ClassCount,
    ImageStatistics,
    ObjectStatistics,
)

# Okabe and Ito's palette.
_IMAGES, _SHORTER, _OBJECTS = "#0072b2", "#e69f00", "#009e73"
_WEIGHTS = {STOPS: "strong", LOOK: "medium", NOTE: ""}
# The page shows so many; report.json has them all.
_PLACES_SHOWN = 20
_LETTERS_SHOWN = 400
_CLASSES_SHOWN = 15


def build_report(data: CheckedData) -> str:
    """The report as an HTML document that needs no other file."""
    body = [html.paragraph(verdict(data), "lead"), _cards(data)]
    if data.together:
        body.append(html.section("All sets together", *map(_finding, _sorted(data.together))))
    body += [_set_section(checked) for checked in data.sets]
    return html.page("The data, looked over", body)


def build_json(data: CheckedData) -> dict[str, Any]:
    """All numbers, and the complete lists behind the findings."""
    return {
        "stops_training": data.stops_training,
        "together": [asdict(finding) for finding in data.together],
        "sets": [
            {
                "name": checked.name,
                "role": checked.role,
                "origin": checked.origin,
                "images": len(checked.records),
                "readable_images": checked.readable,
                "findings": [asdict(finding) for finding in checked.findings],
                "object_statistics": asdict(checked.objects) if checked.objects else None,
                "image_statistics": asdict(checked.images),
            }
            for checked in data.sets
        ],
    }


def summary(data: CheckedData) -> str:
    """What a terminal shows: the findings that matter, and places of those that stop training."""
    lines = []
    for title, findings in (
        *((_title(checked), checked.findings) for checked in data.sets),
        ("All sets together", data.together),
    ):
        shown = [x for x in _sorted(findings) if x.level != NOTE]
        if shown or title != "All sets together":
            lines.append(title)
        for finding in shown:
            lines.append(f"  {finding.count:>7,} {finding.kind}: {finding.level}")
            if finding.level == STOPS:
                lines += [f"          {_one_line(place)}" for place in finding.places[:3]]
    return "\n".join([*lines, verdict(data)])


def verdict(data: CheckedData) -> str:
    """One sentence on whether training would run through."""
    if data.stops_training:
        return "Training or its evaluation would stop with an error: mend what is marked so."
    return "Nothing here stops training."


def _title(checked: CheckedSet) -> str:
    text = f"{checked.name}, {checked.role}: {len(checked.records):,} images"
    if checked.objects is not None:
        text += f", {checked.objects.objects:,} objects of {len(checked.objects.classes)} classes"
    return text


def _cards(data: CheckedData) -> Markup:
    images = sum(len(checked.records) for checked in data.sets)
    unread = images - sum(checked.readable for checked in data.sets)
    findings = [*data.together, *(x for checked in data.sets for x in checked.findings)]
    stops = sum(finding.level == STOPS for finding in findings)
    look = sum(finding.level == LOOK for finding in findings)
    return html.group(
        "cards",
        [
            html.card("reasons to stop", f"{stops:,}", main=True),
            html.card("things to look at", f"{look:,}"),
            html.card("images decoded", f"{images - unread:,}"),
            html.card("missing or unreadable", f"{unread:,}"),
        ],
    )


def _set_section(checked: CheckedSet) -> Markup:
    blocks = [html.paragraph(checked.origin), *map(_finding, _sorted(checked.findings))]
    if not checked.findings:
        blocks.append(html.paragraph("Nothing to note."))
    if checked.objects is not None:
        blocks.append(_class_table(checked.objects))
    pictures = _image_pictures(checked.images) if checked.readable else []
    if checked.objects is not None and checked.objects.objects:
        pictures += _object_pictures(checked.objects)
    figures = [html.figure(plot_histogram(x), x.title, x.caption) for x in pictures]
    return html.section(_title(checked), *blocks, html.group("grid", figures))


def _finding(finding: Finding) -> Markup:
    title = Markup("<b>{}</b> {}{}").format(
        f"{finding.count:,}", finding.kind, html.tag(finding.level, _WEIGHTS[finding.level])
    )
    blocks = [html.paragraph(finding.advice)]
    if finding.places:
        lines = [_shortened(_one_line(x)) for x in finding.places[:_PLACES_SHOWN]]
        # Of problems of annotation files a few places are known, of all else all.
        hidden = finding.count - len(lines)
        if hidden > 0:
            lines = [*lines, f"... and {hidden:,} more"]
        blocks.append(html.code("\n".join(lines)))
    return html.folded(title, *blocks, opened=finding.level == STOPS)


def _class_table(objects: ObjectStatistics) -> Markup:
    rows = [_class_row(x) for x in sorted(objects.classes, key=lambda x: -x.objects)]
    header = ["class", "objects", "images", "small", "medium", "large"]
    if len(rows) > 1:
        total = [sum(getattr(x, n) for x in objects.classes) for n in ("small", "medium", "large")]
        rows.insert(0, ["all", f"{objects.objects:,}", "", *(f"{x:,}" for x in total)])
    table = html.table(header, rows, main_row=0 if len(rows) > 1 else None)
    note = html.paragraph(
        "Small, medium and large are COCO's, by the area of the box in the original image: below "
        "32 x 32 pixels, below 96 x 96, and above."
    )
    if len(rows) > _CLASSES_SHOWN:
        return html.join([note, html.folded(f"{len(objects.classes)} classes", table)])
    return html.join([note, table])


def _class_row(count: ClassCount) -> list[str]:
    numbers = (count.objects, count.images, count.small, count.medium, count.large)
    return [_one_line(count.name), *(f"{x:,}" for x in numbers)]


def _image_pictures(images: ImageStatistics) -> list[HistogramPicture]:
    return [
        HistogramPicture(
            "Image sizes",
            "as the images are read, turned upright.",
            "side, pixels",
            "images",
            (
                ("longer side", _IMAGES, images.longer_sides),
                ("shorter side", _SHORTER, images.shorter_sides),
            ),
        ),
        HistogramPicture(
            "Image shapes",
            "right of 1 are images wider than high.",
            "width / height",
            "images",
            (("images", _IMAGES, images.aspects),),
            logarithmic=True,
        ),
    ]


def _object_pictures(objects: ObjectStatistics) -> list[HistogramPicture]:
    return [
        HistogramPicture(
            "Objects per image",
            "crowds left out.",
            "objects",
            "images",
            (("images", _OBJECTS, objects.objects_per_image),),
        ),
        HistogramPicture(
            "Box sizes",
            "in the original image, before training resizes it.",
            "square root of the area, pixels",
            "objects",
            (("objects", _OBJECTS, objects.box_sides),),
            logarithmic=True,
            marks=((SMALL_AREA**0.5, "medium"), (LARGE_AREA**0.5, "large")),
        ),
        HistogramPicture(
            "Box shapes",
            "right of 1 are boxes wider than high. MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS are "
            "height / width.",
            "width / height",
            "objects",
            (("objects", _OBJECTS, objects.box_aspects),),
            logarithmic=True,
        ),
    ]


def _sorted(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda x: [*_WEIGHTS].index(x.level))


def _shortened(text: str) -> str:
    """A group of copies can be a long list."""
    return text if len(text) <= _LETTERS_SHOWN else f"{text[:_LETTERS_SHOWN]}..."


def _one_line(text: str) -> str:
    """Text whose control characters are written out, so that it stays in its line."""
    return "".join(x if x.isprintable() else repr(x)[1:-1] for x in text)
