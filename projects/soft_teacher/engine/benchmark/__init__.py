"""How long a step of Soft Teacher takes, beside what stock Detectron2 takes for like work."""

from soft_teacher.engine.benchmark.comparison import Measurement, measure
from soft_teacher.engine.benchmark.synthetic import BatchShape

__all__ = ["BatchShape", "Measurement", "measure"]
