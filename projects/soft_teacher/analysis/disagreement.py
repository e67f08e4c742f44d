"""Where two models disagree: by how well each one's detections of an image fit its objects."""

from collections.abc import Sequence

from soft_teacher.analysis.prediction_pictures import judge_predictions


def f1_score(predictions: list[dict], objects: list[dict], min_score: float) -> float:
    """Harmonic mean of precision and recall of one image's predictions, at an IoU of 0.5.

    Args:
        predictions: in COCO's format, with `bbox` (xywh), `category_id` and `score`.
        objects: true ones, with `bbox` and `category_id`.
        min_score: only predictions above it count.

    Returns:
        2 * right / (predictions + objects), 0 to 1; 1 where there is neither.
    """
    chosen = [x for x in predictions if x["score"] > min_score]
    if not chosen and not objects:
        return 1.0
    return 2 * sum(judge_predictions(chosen, objects)) / (len(chosen) + len(objects))


def most_different(pairs: Sequence[tuple[float, float]], count: int) -> list[int]:
    """Numbers of the images on which two scores differ most, the largest difference first.

    Args:
        pairs: two scores of each image.
        count: how many images at most; of equal differences the first images are taken.
    """
    order = sorted(range(len(pairs)), key=lambda i: -abs(pairs[i][0] - pairs[i][1]))
    return order[:count]
