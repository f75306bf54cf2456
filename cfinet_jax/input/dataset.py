"""Prepared TFDS directories: their splits, classes, pictures and ground truth."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.errors import UserError
from cfinet_jax.input.origin import check_origin
from cfinet_jax.input.pictures import Range, check_range, decode_image
from cfinet_jax.input.records import Records, damaged, open_folder, read_account
from cfinet_jax.runtime.files import read_bytes
from cfinet_jax.runtime.paths import matching, user_path

VERSION = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}")  # the name of a version's folder


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One split of a prepared data set."""

    source: Sequence[dict[str, Any]]  # records as in `cfinet_jax/input/records.py`
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]  # ids of the classes in the original annotations
    account: dict[str, Any]  # what preparation skipped or changed in this split
    boxes: str = "horizontal"  # or "oriented"
    grey_range: Range | None = None  # the values that become black and white in pictures of more than 8 bits

    def __len__(self) -> int:
        return len(self.source)

    @functools.cached_property
    def largest_picture(self) -> tuple[int, int]:
        """The largest height and the largest width, in pixels; every record is read where the account lacks them."""
        if "largest_picture" in self.account:
            return tuple(self.account["largest_picture"])
        sizes = [(int(record["height"]), int(record["width"])) for record in self.source]
        return max(height for height, _ in sizes), max(width for _, width in sizes)

    @functools.cached_property
    def most_objects(self) -> int:
        """The most objects and regions of a picture; every record is read where the account lacks them."""
        if "most_objects" in self.account:
            return self.account["most_objects"]
        return max(len(record["objects"]["label"]) for record in self.source)

    @functools.cached_property
    def coco(self) -> dict[str, list[dict[str, Any]]]:
        """The ground truth in COCO's format; every record is read for it, once."""
        return coco_ground_truth(self)


def open_dataset(settings: ConfigDict, split: str) -> Prepared:
    """Open a split of the data set `settings.name` under `settings.data_dir`.

    Raises:
      UserError: it is not prepared, lacks the split or a file of it, or was prepared from another source.
    """
    return open_splits(settings, split)[split]


def open_splits(settings: ConfigDict, *names: str) -> dict[str, Prepared]:
    """Open splits of a data set by name, or all of them if no name is given; see `open_dataset`."""
    builder = open_directory(settings)
    greys = grey_range(settings, builder)
    return {split: _open(builder, split, greys) for split in names or builder.info.splits}


def open_directory(settings: ConfigDict) -> tfds.core.DatasetBuilder:
    """Open the newest version of a prepared data set after checking its origin."""
    folder = prepared_folder(settings)
    if folder is None:
        raise UserError(
            f"data set '{settings.name}' is not prepared in {settings.data_dir}: name the folder of your data with "
            "--config.dataset.source=FOLDER, or run `python data/prepare.py` as data/README.md says"
        )
    builder = open_folder(folder)
    check_origin(builder.info.metadata, settings, folder)
    return builder


def grey_range(settings: ConfigDict, builder: tfds.core.DatasetBuilder | None = None) -> Range | None:
    """Return the values that become black and white: given in the settings, else found during preparation."""
    given = settings.get("grey_range")
    if given is None:  # opening the data set reads its annotation files again: callers pass it on
        given = (builder or open_directory(settings)).info.metadata.get("grey_range")
    return check_range(given)


def prepared_folder(settings: ConfigDict) -> epath.Path | None:
    """Return the folder of the newest version of a data set, or None."""
    folder = user_path(settings.data_dir) / settings.name
    if not folder.exists():  # listing a missing bucket is an error
        return None
    # Beside the versions there may be `incomplete.*` of killed preparations, or copies such as `1.0.0_old`.
    versions = [file.parent for file in matching(folder, "*/dataset_info.json") if VERSION.fullmatch(file.parent.name)]
    return max(versions, key=lambda version: tfds.core.Version(version.name), default=None)


def _open(builder: tfds.core.DatasetBuilder, split: str, greys: Range | None) -> Prepared:
    """Open one split of a prepared data set."""
    folder = epath.Path(builder.data_path)
    if split not in builder.info.splits:
        raise UserError(f"data set {folder} has no split '{split}': choose one of {', '.join(builder.info.splits)}")
    records, account = Records(builder, split), read_account(folder, split)
    if len(records) != account.get("images_kept", len(records)):
        raise damaged(folder / "account.json", f"'{split}' has {len(records)} records")
    ends = [records[place]["file_name"].decode() for place in (0, len(records) - 1)]
    if account.get("ends", ends) != ends:
        raise damaged(folder, f"the records of '{split}' are not those that account.json describes")
    return Prepared(
        source=records,
        classes=tuple(builder.info.metadata["classes"]),
        category_ids=tuple(builder.info.metadata["category_ids"]),
        account=account,
        boxes=builder.info.metadata.get("boxes", "horizontal"),  # the scenes, and older data, do not record it
        grey_range=greys,
    )


def picture(prepared: Prepared, position: int) -> tuple[np.ndarray, int, str]:
    """Return the picture of a record (uint8 R G B), its id and the name of its file."""
    record = prepared.source[position]
    return read_picture(record, prepared.grey_range), int(record["image_id"]), record["file_name"].decode()


def read_picture(record: dict[str, Any], grey_range: Range | None = None) -> np.ndarray:
    """Decode the picture of a record, uint8 [height, width, 3], from its bytes or from the file it names."""
    path = record["path"].decode()
    if path:
        try:
            picture = decode_image(read_bytes(epath.Path(path)), path, grey_range)
        except OSError as error:
            raise UserError(
                f"image {path} cannot be read ({error}): put it back or prepare the data set again"
            ) from error
    else:
        picture = decode_image(record["image"], record["file_name"].decode(), grey_range)
    height, width = picture.shape[:2]
    if (height, width) != (record["height"], record["width"]):
        raise UserError(
            f"image {path or record['file_name'].decode()} is {height} x {width} pixels, but was "
            f"{record['height']} x {record['width']} when prepared: prepare the data set again"
        )
    return picture


def coco_ground_truth(prepared: Prepared) -> dict[str, list[dict[str, Any]]]:
    """Convert a split to COCO's format with its original category ids; regions get a category "ignore".

    An oriented box is stored as `rbox` (cx cy w h angle) with the upright box that encloses it.
    """
    classes = dict(zip(prepared.category_ids, prepared.classes, strict=True))
    of_regions = max(classes, default=0) + 1
    images, annotations = [], []
    for position in range(len(prepared)):
        record = prepared.source[position]
        image_id, objects = int(record["image_id"]), record["objects"]
        size = {"height": int(record["height"]), "width": int(record["width"])}
        images.append({"id": image_id, "file_name": record["file_name"].decode(), **size})
        columns = (objects[key] for key in ("bbox", "label", "area", "iscrowd", "ignore"))
        for place, (box, label, area, iscrowd, ignore) in enumerate(zip(*columns, strict=True)):
            x1, y1, x2, y2 = box.tolist()
            oriented = {"rbox": objects["rbox"][place].tolist()} if prepared.boxes == "oriented" else {}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": of_regions if label < 0 else prepared.category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(area),
                    "iscrowd": int(iscrowd),
                    "ignore": int(ignore),
                    **oriented,
                }
            )
    categories = [{"id": category_id, "name": name} for category_id, name in (classes | {of_regions: "ignore"}).items()]
    return {"images": images, "annotations": annotations, "categories": categories}
