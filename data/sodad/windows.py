"""The windows that are trained on, cut once, while the images are checked; the data set holds them.

Until it is whole they are files. Those of an image are written in order, and each gets its name when it is complete.
Cutting that was broken off, even killed, goes on with the images whose last window is missing.
"""

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import cv2
import numpy as np
from etils import epath
from jaxtyping import Float, Int

from cfinet_jax.errors import UserError
from cfinet_jax.slicing import CUT_OFF, boxes_in_window, cut_window, fill, training_windows
from data.coco.annotations import ANY_CLASS, Split, Task, record

WINDOW, OVERLAP = (800, 800), (150, 150)  # height, width in pixels
JPEG_QUALITY = 95


def cuts(annotations: epath.Path, folder: epath.Path, images: list[dict[str, Any]]) -> dict[int, Task]:
    """What cuts the windows of pictures with objects, by image id; of those that are not in `folder` yet.

    Raises:
      UserError: the folder holds windows of other annotations, or cannot be written.
    """
    check_state(annotations, folder)
    with_windows = [(image, origins) for image in images if len(origins := origins_in(image))]
    tasks: dict[int, Task] = {
        image["image_id"]: partial(cut, image=image, origins=origins, folder=folder)
        for image, origins in with_windows
        if not files_of(image, origins, folder)[-1].exists()
    }
    print(f"{len(with_windows) - len(tasks)} of {len(with_windows)} images are cut already, in {folder}")
    return tasks


def split_of_windows(train: Split, folder: epath.Path) -> Split:
    """The windows of a split's images in which there are objects, all of which are in `folder`."""
    records = [window for image in train.records for window in window_records(image, origins_in(image), folder)]
    for number, window in enumerate(records, start=1):
        window["image_id"] = number
    counts = [len(window["objects"]["id"]) for window in records]
    account = {
        "images": len(records),
        "images_kept": len(records),
        "annotations": sum(counts),
        "annotations_kept": sum(counts),
        "largest_picture": WINDOW,
        "most_objects": max(counts),
        "problems": {},
    }
    return Split(records, train.categories, account, train.files, held=True)


def check_state(annotations: epath.Path, folder: epath.Path) -> None:
    """Windows in the folder are those of these annotations, or there are none yet."""
    digest, file = hashlib.sha256(annotations.read_bytes()).hexdigest(), folder / "annotations.sha256"
    if file.exists() and file.read_text() != digest:
        raise UserError(
            f"{folder} holds windows of other annotations: delete it, or choose another --data_dir or --name"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(digest)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another --data_dir") from error


def boxes_of(image: dict[str, Any]) -> tuple[Float[np.ndarray, "objects 4"], Float[np.ndarray, "regions 4"]]:
    """The boxes of a record's objects and those of its regions."""
    boxes, labels = np.array(image["objects"]["bbox"], float).reshape(-1, 4), np.array(image["objects"]["label"], int)
    return boxes[labels != ANY_CLASS], boxes[labels == ANY_CLASS]


def origins_in(image: dict[str, Any]) -> Int[np.ndarray, "windows 2"]:
    """Where the windows of a record's image begin."""
    return training_windows((image["height"], image["width"]), *boxes_of(image), WINDOW, OVERLAP)


def files_of(image: dict[str, Any], origins: Int[np.ndarray, "windows 2"], folder: epath.Path) -> list[epath.Path]:
    """The files of an image's windows."""
    return [folder / f"{image['image_id']}_{number}.jpg" for number in range(len(origins))]


def cut(picture: np.ndarray, image: dict[str, Any], origins: Int[np.ndarray, "windows 2"], folder: epath.Path) -> None:
    """Blackens an image, whose picture is B G R, where it is to be ignored, and writes its windows.

    Raises:
      UserError: they cannot be written.
    """
    objects, regions = boxes_of(image)
    fill(picture, regions, objects)
    begun = folder / f"{image['image_id']}.begun"
    try:
        for origin, file in zip(origins, files_of(image, origins, folder), strict=True):
            begun.write_bytes(encode(cut_window(picture, origin, WINDOW, "constant")[0]))
            begun.replace(file)
    except OSError as error:
        raise UserError(
            f"{begun} cannot be written ({error.strerror}): make room and start again, what is cut stays"
        ) from error


def encode(picture: np.ndarray) -> bytes:
    """A picture, B G R, as JPEG."""
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def window_records(
    image: dict[str, Any], origins: Int[np.ndarray, "windows 2"], folder: epath.Path
) -> Iterator[dict[str, Any]]:
    """The windows of a record's image as records, without ids of their own."""
    kept = [index for index, label in enumerate(image["objects"]["label"]) if label != ANY_CLASS]
    objects = [{key: values[index] for key, values in image["objects"].items()} for index in kept]
    boxes, _ = boxes_of(image)
    stem = epath.Path(image["file_name"]).name.partition(".")[0]
    for number, (origin, file) in enumerate(zip(origins, files_of(image, origins, folder), strict=True)):
        columns = (column.tolist() for column in boxes_in_window(boxes, origin, WINDOW))
        inside = [
            entry | {"bbox": box, "area": entry["area"] * share, "ignore": entry["ignore"] or share <= CUT_OFF}
            for entry, box, share in zip(objects, *columns, strict=True)
            if share > 0
        ]
        named = {"id": 0, "file_name": f"{stem}_{number}.jpg"}  # as SODA's tool names them
        described = named | {"height": WINDOW[0], "width": WINDOW[1]}
        yield record(described, folder, inside) | {"path": str(file)}
