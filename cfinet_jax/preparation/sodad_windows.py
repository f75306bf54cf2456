"""Cut the windows of SODA-D that are trained on, once, while the images are checked; the data set then holds them.

Until it is whole they lie end to end in one file, and the journal knows where the windows of each image are. If cutting
is interrupted, even killed, it resumes with the first image that the journal does not know.
"""

import hashlib
import itertools
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from etils import epath
from jaxtyping import Float, Int

from cfinet_jax.errors import UserError
from cfinet_jax.input.windows import boxes_in_window, cut_window, fill, training_windows
from cfinet_jax.preparation.checked_pictures import Task
from cfinet_jax.preparation.coco_annotations import ANY_CLASS, Split, account_of, record
from cfinet_jax.preparation.journal import Journal, state_of
from cfinet_jax.runtime.files import writing
from cfinet_jax.structures import CUT_OFF

WINDOW, OVERLAP = (800, 800), (150, 150)  # height, width in pixels
JPEG_QUALITY = 95


class Pile:
    """Encoded pictures, end to end in an append-only file."""

    def __init__(self, file: epath.Path) -> None:
        self.file, self.lock = Path(file), threading.Lock()

    def add(self, pictures: Iterable[bytes]) -> list[int]:
        """Append pictures; return where each of them begins, followed by where the last one ends.

        Raises:
          UserError: they cannot be written.
        """
        ends = itertools.accumulate(map(len, pictures := list(pictures)), initial=0)
        try:
            # Unbuffered: a picture is in the file before the journal says so. Such a write may take only a part.
            with self.lock, self.file.open("ab", buffering=0) as file:
                start, rest = file.tell(), memoryview(b"".join(pictures))
                while rest:
                    rest = rest[file.write(rest) :]
        except OSError as error:
            raise UserError(
                f"{self.file} cannot be written ({error.strerror}): free some space, then rerun the command to resume"
            ) from error
        return [start + end for end in ends]

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes between two places."""
        with self.file.open("rb") as file:
            file.seek(start)
            return file.read(end - start)


def cuts(annotations: epath.Path, pile: Pile, journal: Journal, images: list[dict[str, Any]]) -> dict[int, Task]:
    """Return the tasks that cut the windows of decoded pictures onto the pile, by image id.

    Raises:
      UserError: the pile belongs to other annotations or cannot be written, or two images share a file.
    """
    check_state(annotations, pile)
    with_windows = [(image, origins) for image in images if len(origins := origins_in(image))]
    for path, count in Counter(image["path"] for image, _ in with_windows).items():
        if count > 1:  # the journal stores one result per file
            raise UserError(f"{annotations} names {path} for {count} images: make them one entry")
    made = sum(places is not None for places in journal.made.values())
    print(f"{made} of {len(with_windows)} images are cut already, in {pile.file}")
    return {image["image_id"]: partial(cut, image=image, origins=origins, pile=pile) for image, origins in with_windows}


def split_of_windows(train: Split, pile: Pile, journal: Journal) -> Split:
    """Return the split of the windows with objects, all of which are on the pile."""
    records, places = [], []
    for image in train.records:
        if len(origins := origins_in(image)):
            records += window_records(image, origins)
            places += itertools.pairwise(journal.made[state_of(epath.Path(image["path"]))])
    for number, window in enumerate(records, start=1):
        window["image_id"] = number
    account = account_of(records, len(records), sum(len(window["objects"]["id"]) for window in records), {})
    return Split(records, train.categories, account, train.files, pictures=lambda index: pile.read(*places[index]))


def check_state(annotations: epath.Path, pile: Pile) -> None:
    """Refuse a pile of windows that were cut by other annotations.

    Raises:
      UserError: it is one, or it cannot be marked as one of these annotations.
    """
    digest, file = hashlib.sha256(annotations.read_bytes()).hexdigest(), pile.file.with_suffix(".sha256")
    if file.exists() and file.read_text() != digest:
        raise UserError(
            f"{pile.file} holds windows of other annotations: delete {pile.file.parent}, or choose another --data_dir "
            "or --name"
        )
    with writing(file, "--data_dir"):
        file.write_text(digest)


def boxes_of(image: dict[str, Any]) -> tuple[Float[np.ndarray, "objects 4"], Float[np.ndarray, "regions 4"]]:
    """Return the boxes of a record's objects, and of its regions to ignore."""
    boxes, labels = np.array(image["objects"]["bbox"], float).reshape(-1, 4), np.array(image["objects"]["label"], int)
    return boxes[labels != ANY_CLASS], boxes[labels == ANY_CLASS]


def origins_in(image: dict[str, Any]) -> Int[np.ndarray, "windows 2"]:
    """Return the origins (row, column) of the windows of a record's image."""
    return training_windows((image["height"], image["width"]), *boxes_of(image), WINDOW, OVERLAP)


def cut(picture: np.ndarray, image: dict[str, Any], origins: Int[np.ndarray, "windows 2"], pile: Pile) -> list[int]:
    """Black out the regions to ignore in a picture (B G R), add its windows to the pile and return their places."""
    objects, regions = boxes_of(image)
    fill(picture, regions, objects)
    return pile.add(encode(cut_window(picture, origin, WINDOW, "constant")[0]) for origin in origins)


def encode(picture: np.ndarray) -> bytes:
    """Encode a picture (B G R) as JPEG."""
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def window_records(image: dict[str, Any], origins: Int[np.ndarray, "windows 2"]) -> Iterator[dict[str, Any]]:
    """Yield a record for each window of a record's image, still without id and picture."""
    kept = [index for index, label in enumerate(image["objects"]["label"]) if label != ANY_CLASS]
    objects = [{key: values[index] for key, values in image["objects"].items()} for index in kept]
    boxes, _ = boxes_of(image)
    path = epath.Path(image["path"])
    stem = path.name.partition(".")[0]
    for number, origin in enumerate(origins):
        columns = (column.tolist() for column in boxes_in_window(boxes, origin, WINDOW))
        inside = [
            entry | {"bbox": box, "area": entry["area"] * share, "ignore": entry["ignore"] or share <= CUT_OFF}
            for entry, box, share in zip(objects, *columns, strict=True)
            if share > 0
        ]
        named = {"id": 0, "file_name": f"{stem}_{number}.jpg"}  # the name that SODA's tool gives
        described = named | {"height": WINDOW[0], "width": WINDOW[1]}
        yield record(described, path.parent, inside)
