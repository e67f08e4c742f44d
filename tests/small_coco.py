"""The content of a small annotation file, for tests of the data code."""

# (width, height) of each image; orientations are mixed on purpose.
SIZES = [(64, 48), (40, 60), (50, 50), (72, 40), (44, 66), (60, 45), (48, 64)]


def coco_content(sizes=SIZES):
    """A COCO file of one object an image, of two classes whose ids have a gap."""
    return {
        "info": {"description": "test"},
        "categories": [{"id": 3, "name": "box"}, {"id": 7, "name": "ball"}],
        "images": [
            {"id": 10 + i, "file_name": f"{i}.png", "width": w, "height": h}
            for i, (w, h) in enumerate(sizes)
        ],
        "annotations": [
            {
                "id": 1 + i,
                "image_id": 10 + i,
                "category_id": (3, 7)[i % 2],
                "bbox": [5, 7, 21, 15],
                "area": 315,
                "iscrowd": 0,
            }
            for i in range(len(sizes))
        ],
    }
