"""Pictures that a training left in its TensorBoard files."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator


def read_logged_pictures(folder: Path, name: str, at_most: int) -> dict[int, bytes]:
    """Pictures of one name, spread evenly over the training with the last among them.

    Args:
        folder: OUTPUT_DIR of the training.
        name: as given to Detectron2's `EventStorage.put_image`.
        at_most: number of pictures, at least 1.

    Returns:
        iteration (from 0) -> PNG file; empty if the training left none.
    """
    events = EventAccumulator(str(folder), size_guidance={IMAGES: 0})
    events.Reload()
    if name not in events.Tags()[IMAGES]:
        return {}
    pictures = {x.step: x.encoded_image_string for x in events.Images(name)}
    steps = sorted(pictures)
    count = min(at_most, len(steps))
    chosen = {steps[(i + 1) * len(steps) // count - 1] for i in range(count)}
    return {step: pictures[step] for step in sorted(chosen)}
