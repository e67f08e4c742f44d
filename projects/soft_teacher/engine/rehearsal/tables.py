"""What a rehearsal found, as Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from soft_teacher.engine.rehearsal.arithmetic import Recipe
from soft_teacher.engine.rehearsal.real_steps import StepsTaken

MEMORY_LIMIT = 20 * 2**30
"""Bytes that the steps may need."""
NOTHING = "-"

ARITHMETIC_HEADER = (
    *("config", "GPUs", "images a step, labeled + unlabeled", "iterations", "warmup", "drops at"),
    *("passes, labeled", "passes, unlabeled", "learning rate", "per image", "EMA, steps"),
    "parameters",
)
STEPS_HEADER = ("config", "views", "seconds, first step", "second step", "peak memory, GiB")
NOTES = """\
Learning rate per image: the highest rate divided by all images that the student sees in a step.
EMA, steps: 1 / (1 - momentum), over which the teacher averages. Passes count all images of a set;
labeled images without an object, 1 % of train2017, are left out in training.
"""


@dataclass
class Rehearsed:
    """What is known of one config.

    Attributes:
        name: of its file, from the folder of configs, without ".yaml".
        recipe: None if the file cannot be read.
        parameters: None if the model cannot be built.
        steps: None if none were taken.
        problems: what is wrong, one text each.
    """

    name: str
    recipe: Recipe | None = None
    parameters: int | None = None
    steps: StepsTaken | None = None
    problems: list[str] = field(default_factory=list)

    def note_memory(self) -> None:
        """Add a problem if the steps needed too much."""
        if self.steps is not None and self.steps.peak_memory > MEMORY_LIMIT:
            self.problems.append(
                f"Its steps needed {self.steps.peak_memory / 2**30:.1f} GiB, more than "
                f"{MEMORY_LIMIT // 2**30}."
            )


def report(rehearsed: Sequence[Rehearsed]) -> str:
    """The tables and the list of problems."""
    parts = [_table(ARITHMETIC_HEADER, map(_arithmetic_row, rehearsed)), NOTES]
    taken = [x for x in rehearsed if x.steps is not None]
    if taken:
        parts.append(_table(STEPS_HEADER, map(_steps_row, taken)))
    problems = [f"- {x.name}: {problem}" for x in rehearsed for problem in x.problems]
    parts.append("\n".join(problems) if problems else "Nothing contradicts itself.")
    return "\n\n".join(x.rstrip() for x in parts) + "\n"


def _arithmetic_row(found: Rehearsed) -> list[str]:
    recipe = found.recipe
    if recipe is None:
        return [found.name, *[NOTHING] * (len(ARITHMETIC_HEADER) - 1)]
    burn_in = f" ({recipe.burn_in:,} of them supervised)" if recipe.burn_in else ""
    return [
        found.name,
        "any" if recipe.gpus is None else str(recipe.gpus),
        f"{recipe.labeled} + {recipe.unlabeled}",
        f"{recipe.iterations:,}{burn_in}",
        f"{recipe.warmup:,}",
        ", ".join(f"{x:,}" for x in recipe.drops) or NOTHING,
        _number(recipe.labeled_passes),
        _number(recipe.unlabeled_passes),
        f"{recipe.learning_rate:g}",
        f"{recipe.learning_rate_per_image:.2g}",
        _number(recipe.ema_horizon),
        NOTHING if found.parameters is None else f"{found.parameters / 1e6:.1f} M",
    ]


def _steps_row(found: Rehearsed) -> list[str]:
    height, width = found.steps.size
    return [
        found.name,
        f"{height} x {width}",
        *(f"{x:.0f}" for x in found.steps.seconds),
        f"{found.steps.peak_memory / 2**30:.2f}",
    ]


def _number(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
