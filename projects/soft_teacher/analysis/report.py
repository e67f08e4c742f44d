"""A report on Soft Teacher against its supervised baseline, as one HTML file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from soft_teacher.analysis import html_page as html
from soft_teacher.analysis.comparison_page import comparison_row
from soft_teacher.analysis.curves import plot_chart
from soft_teacher.analysis.drawing import LEGEND
from soft_teacher.analysis.logged_pictures import read_logged_pictures
from soft_teacher.analysis.metrics_log import AP_NAMES, Metrics, read_metrics
from soft_teacher.analysis.prediction_pictures import COLOR_MEANINGS, draw_comparisons
from soft_teacher.analysis.quality_files import read_quality
from soft_teacher.analysis.quality_page import claim, main_rows, quality_blocks
from soft_teacher.analysis.results import (
    EQUAL_TIME,
    TITLES,
    ap_by_model,
    ap_rows,
    format_ap,
    format_seconds,
)
from soft_teacher.analysis.training_charts import training_charts

NUM_SCENES = 6
NUM_LOGGED_PICTURES = 6
MIN_SCORE = 0.5
# Where tools/analyze_pseudo_labels.py leaves its results, in the folder of the training.
QUALITY_FOLDER = "pseudo_labels"
STEPS = {
    "install": "Installing",
    "data": "Making the data",
    "supervised": "Training supervised",
    "soft_teacher": "Training Soft Teacher",
    "evaluation": "Evaluating, during and after both trainings",
}
TRAININGS = {
    "supervised": "Supervised",
    EQUAL_TIME: "Supervised, equal time",
    "soft_teacher": "Soft Teacher",
}


@dataclass(frozen=True)
class ReportedRun:
    """One training that the report is about.

    Attributes:
        output_dir: its OUTPUT_DIR.
        config_file: its config.
    """

    output_dir: Path
    config_file: Path

    @property
    def metrics(self) -> Metrics:
        return read_metrics(self.output_dir / "metrics.json")

    def predictions(self, model: str, dataset: str) -> Path:
        """The last predictions of "student" or "teacher", in COCO's format."""
        folder = self.output_dir / "inference" / model / dataset
        return folder / "coco_instances_results.json"


@dataclass(frozen=True)
class ReportedData:
    """The data behind the report.

    Attributes:
        name: of the validation set, in DATASETS.TEST.
        annotations: its COCO file.
        image_root: folder of its images.
        counts: number of "labeled", "unlabeled" and "val" images.
    """

    name: str
    annotations: Path
    image_root: Path
    counts: dict[str, int]


def build_report(
    title: str,
    results: dict[str, Any],
    supervised: ReportedRun,
    soft_teacher: ReportedRun,
    data: ReportedData,
    commands: list[str],
    seeds: dict[str, Any] | None = None,
) -> str:
    """The report as an HTML document that needs no other file.

    Args:
        title: heading of the page.
        results: of one seed, see tools/demo.py.
        supervised, soft_teacher: the trainings with that seed.
        data: what they were trained and evaluated on.
        commands: what a person types to get the same.
        seeds: what `results.summarize_seeds` returns, if there is more to show than `results`.
    """
    body = [html.paragraph(summarize(results, data.counts), "lead"), _cards(results)]
    body.append(_ap_section(results, supervised.metrics))
    if seeds is not None:
        body.append(_seeds_section(seeds))
    body.append(_curves_section(supervised.metrics, soft_teacher.metrics))
    body.append(_predictions_section(supervised, soft_teacher, data))
    quality = read_quality(soft_teacher.output_dir / QUALITY_FOLDER)
    if quality is not None:
        body.append(_quality_section(*quality))
    logged = read_logged_pictures(
        soft_teacher.output_dir, "pseudo_labels", at_most=NUM_LOGGED_PICTURES
    )
    if logged:
        body.append(_views_section(logged))
    body.append(_making_section(results, commands, [supervised, soft_teacher]))
    return html.page(title, body)


def summarize(results: dict[str, Any], counts: dict[str, int]) -> str:
    """One sentence with what was trained on what, and the gain."""
    table = ap_by_model(results)
    gain = table["gain"]["AP"]
    if gain is None:
        return "One of the models detected nothing at all, so there is no gain to report."
    teacher, baseline = format_ap(table["teacher"]["AP"]), format_ap(table["supervised"]["AP"])
    return (
        f"With {counts['labeled']} labeled and {counts['unlabeled']} unlabeled images, Soft "
        f"Teacher reaches {teacher} AP; supervised training on the same labeled images reaches "
        f"{baseline}: a {'gain' if gain >= 0 else 'loss'} of {abs(gain):.1f} AP on "
        f"{counts['val']} validation images."
    )


def _cards(results: dict[str, Any]) -> Markup:
    table = ap_by_model(results)
    return html.group(
        "cards",
        [
            html.card("AP, supervised", format_ap(table["supervised"]["AP"])),
            html.card("AP, Soft Teacher's student", format_ap(table["student"]["AP"])),
            html.card("AP, Soft Teacher's teacher", format_ap(table["teacher"]["AP"])),
            html.card("gain in AP", format_ap(table["gain"]["AP"], signed=True), main=True),
        ],
    )


def _ap_section(results: dict[str, Any], supervised: Metrics) -> Markup:
    table = ap_by_model(results)
    rows = ap_rows(table)
    blocks = [
        html.table(["", *AP_NAMES], rows, main_row=[*table].index("teacher")),
        html.paragraph(
            "AP is COCO's, in percent: the mean over classes and over overlaps of 0.50 to 0.95 "
            "(AP50 and AP75: at that overlap alone), of detections scored above 0.05. All are of "
            "the last checkpoint, not of the best one."
        ),
    ]
    averaged = supervised.get("teacher/bbox/AP")
    if averaged:
        blocks.append(
            html.paragraph(
                "The moving average of the weights alone, without unlabeled images, brings the "
                f"supervised model to {format_ap([*averaged.values()][-1])} AP."
            )
        )
    return html.section("Average precision", *blocks)


def _seeds_section(seeds: dict[str, Any]) -> Markup:
    runs = seeds["runs"]
    models = [*seeds["mean"]]
    tables = [ap_by_model(run) for run in runs]
    columns = ["", *(f"Seed {run['seed']}" for run in runs)]
    by_seed = [
        [TITLES[model], *(format_ap(x[model]["AP"], signed="gain" in model) for x in tables)]
        for model in models
    ]
    times = [
        [title, *(format_seconds(run["seconds"][name]) for run in runs)]
        for name, title in TRAININGS.items()
        if name in runs[0]["seconds"]
    ]
    teacher = models.index("teacher")
    blocks = [
        html.heading("AP of each seed"),
        html.table(columns, by_seed, main_row=teacher),
        html.heading("Training time of each seed, evaluations apart, h:mm:ss"),
        html.table(columns, times),
    ]
    if len(runs) > 1:
        blocks = [
            html.paragraph(
                f"Mean over {len(runs)} seeds of the trainings and the standard deviation of the "
                f"sample (divided by n - {seeds['ddof']}), on the same data; gains are paired by "
                "seed."
            ),
            html.table(["", *AP_NAMES], ap_rows(seeds["mean"], seeds["std"]), main_row=teacher),
            *blocks,
        ]
    return html.section("Over several seeds" if len(runs) > 1 else "At equal time", *blocks)


def _curves_section(supervised: Metrics, soft_teacher: Metrics) -> Markup:
    charts = [chart for chart in training_charts(supervised, soft_teacher) if not chart.empty]
    return html.section(
        "Over the training",
        html.group("grid", [html.figure(plot_chart(x), x.title, x.caption) for x in charts]),
    )


def _predictions_section(
    supervised: ReportedRun, soft_teacher: ReportedRun, data: ReportedData
) -> Markup:
    comparisons = draw_comparisons(
        data.annotations,
        data.image_root,
        {
            "Supervised": supervised.predictions("student", data.name),
            "Soft Teacher": soft_teacher.predictions("teacher", data.name),
        },
        NUM_SCENES,
        MIN_SCORE,
    )
    rows = [comparison_row(x) for x in comparisons]
    return html.section(
        "Predictions",
        html.paragraph(
            f"The first {len(rows)} validation images, not picked by hand, with all predictions "
            f"scored above {MIN_SCORE}; Soft Teacher's are its teacher's."
        ),
        html.color_key(COLOR_MEANINGS),
        *rows,
    )


def _quality_section(summary: dict[str, Any], figures: list[bytes]) -> Markup:
    claims = [html.paragraph(claim(x)) for x in main_rows(summary)]
    origin = html.paragraph(f"The {summary['model']} of {summary['weights']} labeled these images.")
    return html.section(
        "Quality of the pseudo labels", *claims, *quality_blocks(summary, figures), origin
    )


def _views_section(pictures: dict[int, bytes]) -> Markup:
    figures = [
        html.figure(picture, f"Iteration {step + 1}", alt=f"views at iteration {step + 1}")
        for step, picture in pictures.items()
    ]
    return html.section(
        "What the student was taught",
        html.paragraph(
            "The weak view of an unlabeled image with the teacher's pseudo boxes (class, score, "
            "variance), and the strong view that the student saw, with the boxes carried over. "
            f"{LEGEND[0].upper()}{LEGEND[1:]}."
        ),
        html.group("grid", figures),
    )


def _making_section(
    results: dict[str, Any], commands: list[str], runs: list[ReportedRun]
) -> Markup:
    times = [
        [title, "-" if seconds is None else format_seconds(seconds)]
        for key, title in STEPS.items()
        for seconds in [results["seconds"][key]]
    ]
    configs = [
        html.folded(str(path), html.code(path.read_text()))
        for path in dict.fromkeys(path for run in runs for path in config_chain(run.config_file))
    ]
    return html.section(
        "How it was made",
        html.heading("Time"),
        html.table(["Step", "h:mm:ss"], times),
        html.heading("Commands"),
        html.code("\n".join(commands)),
        html.heading("Configs"),
        *configs,
        html.heading("Versions and seed"),
        html.table(
            ["Package", "Version"],
            [*map(list, results["versions"].items()), ["Seed of the trainings", results["seed"]]],
        ),
    )


def config_chain(path: Path) -> list[Path]:
    """A config file and the files that it is based on."""
    bases = yaml.safe_load(path.read_text()).get("_BASE_", [])
    chain = [path]
    for base in [bases] if isinstance(bases, str) else bases:
        chain.extend(config_chain(path.parent / base))
    return chain
