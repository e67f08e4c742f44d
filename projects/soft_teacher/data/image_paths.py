"""Paths of the images that an annotation file names: below the image root, and nowhere else."""

import os


def image_path(image_root: str, file_name: str, json_file: str) -> str:
    """Join the folder of the images and what an annotation file calls one of them.

    The check is by the name alone. A link below the image root may lead anywhere: whoever can put
    it there can read what it leads to.

    Args:
        image_root: folder that the names start from; "" is the working directory.
        file_name: from the file; absolute names must start with `image_root`.
        json_file: the file, for the message.

    Raises:
        ValueError: the name leads out of `image_root`, or no file can have it.
    """
    if not _stays_below(image_root, file_name):
        raise ValueError(
            f"{json_file}: the file_name {file_name!r} is no path below the image root "
            f"{image_root!r}, so it is not read. Correct the name: it starts from the image root, "
            "without '..'. If the names are absolute and you trust the file, set the image root "
            "to a folder that holds all of them, such as '/'."
        )
    return os.path.join(image_root, file_name)


def _stays_below(image_root: str, file_name: str) -> bool:
    # Without a root, a name with "://" would be an address that is downloaded from.
    if "\0" in file_name or "://" in file_name or ".." in file_name.split("/"):
        return False
    try:
        os.fsencode(file_name)
    except UnicodeEncodeError:
        return False
    if not os.path.isabs(file_name):
        return True
    root = os.path.abspath(image_root)
    return os.path.commonpath([root, os.path.normpath(file_name)]) == root
