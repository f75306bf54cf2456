"""The record that every data set is prepared into, and checks of the folder it is read from.

A prepared folder may come from somebody else. Therefore it must not choose the Python classes that read it, and any
deviation from what `data/prepare.py` writes ends in a one-line error.
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf import json_format
from tensorflow_datasets.core import read_only_builder

from cfinet_jax.errors import UserError
from cfinet_jax.runtime import json_values
from cfinet_jax.runtime.files import length_and_time, read_text, reading

OBJECTS: dict[str, type] = {  # columns with one row per object, and their types
    "bbox": np.float32,  # x1 y1 x2 y2 in pixels; for an oriented box its upright hull
    "label": np.int64,  # -1: a region in which objects of every class are ignored
    "ignore": np.bool_,
    "iscrowd": np.bool_,
    "area": np.float32,
    "id": np.int64,  # id of the original annotation
}
COLUMNS: dict[str, dict[str, type]] = {  # by the kind of boxes of a data set
    "horizontal": OBJECTS,
    "oriented": OBJECTS
    | {
        "rbox": np.float32,  # cx cy w h angle, see `cfinet_jax/boxes/oriented.py`
        "poly": np.float32,  # x1 y1 .. x4 y4 in pixels: the corners as annotated; `rbox` is fitted to them
    },
}
FLOATS = {key for key, kind in COLUMNS["oriented"].items() if kind is np.float32}
NUMBERS = {"bbox": (4,), "rbox": (5,), "poly": (8,)}  # shape of a row that is not a single number
ANY = ""  # stands for every key of a JSON object
METADATA = {"classes": [str], "category_ids": [int], "boxes": str, "source": str, "annotations": str, "files": [str]}
METADATA |= {"state": list, "seal": int}
COUNTS = ("images", "images_kept", "annotations", "annotations_kept", "most_objects")
ACCOUNT = {ANY: dict.fromkeys(COUNTS, int) | {"largest_picture": [int], "ends": [str], "problems": {ANY: [str]}}}
DAMAGED = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError, json_format.ParseError)


def features(boxes: str) -> tfds.features.FeaturesDict:
    """Return the TFDS features of a record with `boxes` "horizontal" or "oriented"."""
    objects = COLUMNS[boxes].items()
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Tensor(shape=(), dtype=np.object_),  # encoded, as in its file; empty: read `path`
            "path": tfds.features.Text(),
            "image_id": np.int64,
            "file_name": tfds.features.Text(),
            "height": np.int32,
            "width": np.int32,
            # Columns: TFDS would write and read a `Sequence` of objects value by value.
            "objects": {
                key: tfds.features.Tensor(shape=(None, *NUMBERS.get(key, ())), dtype=dtype) for key, dtype in objects
            },
        }
    )


def columns(objects: Mapping[str, Any], boxes: str = "horizontal") -> dict[str, np.ndarray]:
    """Convert the objects of a record to arrays, of the right shape also where there is none."""
    described = COLUMNS[boxes].items()
    return {key: np.array(objects[key], dtype).reshape(-1, *NUMBERS.get(key, ())) for key, dtype in described}


def seal(metadata: Mapping[str, Any], accounts: Mapping[str, Any]) -> int:
    """Return a checksum of the description of a data set, stored in its metadata to find what was edited later."""
    described = {key: value for key, value in metadata.items() if key != "seal"}
    return zlib.crc32(json.dumps([described, accounts], sort_keys=True).encode())


class Reader(read_only_builder.ReadOnlyBuilder, skip_registration=True):  # pyright: ignore
    """Reader of a prepared folder that uses our features: TFDS would import the classes that its JSON files name."""

    def __init__(self, folder: epath.Path, boxes: str) -> None:
        self.boxes = boxes
        super().__init__(builder_dir=folder)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=features(self.boxes))


def open_folder(folder: epath.Path) -> tfds.core.DatasetBuilder:
    """Open a prepared folder once its description is as `data/prepare.py` writes it.

    Raises:
      UserError: it is not.
    """
    metadata = read_json(folder / "metadata.json", METADATA)
    account = folder / "account.json"
    accounts = read_json(account, ACCOUNT) if account.exists() else {}
    if "seal" in metadata and metadata["seal"] != seal(metadata, accounts):  # data prepared earlier have none
        raise damaged(folder / "metadata.json", "it or account.json was edited")
    boxes, classes, ids = (metadata.get(key) for key in ("boxes", "classes", "category_ids"))
    if not classes or not ids or not len(classes) == len(ids) == len(set(ids)) == len(set(classes)):
        raise damaged(folder / "metadata.json", "every class needs a name and an id that no other class has")
    if boxes not in (None, *COLUMNS):
        raise damaged(folder / "metadata.json", f"boxes are {boxes!r}")
    try:
        length_and_time(folder / "dataset_info.json")
        return Reader(folder, boxes or "horizontal")  # the scenes, and older data, do not record it
    except (OSError, *DAMAGED) as error:
        raise damaged(folder / "dataset_info.json", error) from error


def read_account(folder: epath.Path, split: str) -> dict[str, Any]:
    """Read the account of a split; it is empty for data sets that have none."""
    file = folder / "account.json"
    if not file.exists():
        return {}
    account = read_json(file, ACCOUNT).get(split)
    if account is None or not plausible(account):
        raise damaged(file, f"it does not describe '{split}'")
    return account


def plausible(account: dict[str, Any]) -> bool:
    """Whether the numbers of an account can be true together; older ones lack some."""
    sides, images = account.get("largest_picture", (1, 1)), account.get("images_kept", 1)
    kept = account.get("annotations_kept", 0)
    most = account.get("most_objects", kept)
    return len(sides) == 2 and min(sides) > 0 and images > 0 and images * most >= kept >= most >= 0


class Records(Sequence[dict[str, Any]]):
    """The records of a split; a damaged record or an unknown class raises `UserError`."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str) -> None:
        self.folder, self.split = epath.Path(builder.data_path), split
        self.classes = len(builder.info.metadata["classes"])
        try:
            for file in builder.info.splits[split].filepaths:
                with reading(epath.Path(file), f"delete {self.folder} and prepare it again") as path:
                    length_and_time(path)
            self.source = builder.as_data_source(split)
        except DAMAGED as error:
            raise damaged(self.folder / "dataset_info.json", error) from error
        if not len(self):
            raise damaged(self.folder / "dataset_info.json", f"'{split}' has no records")
        _ = self[0], self[len(self) - 1]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: Any) -> Any:
        try:
            record = self.source[position]
            objects = record["objects"]
            if any(value is None for value in (record | objects).values()) or len({*map(len, objects.values())}) > 1:
                raise ValueError("a value is missing")
            known = objects["label"].min(initial=0) >= -1 and objects["label"].max(initial=-1) < self.classes
            ordered = (objects["bbox"][:, :2] <= objects["bbox"][:, 2:]).all()
            if not (known and ordered and all(np.isfinite(objects[key]).all() for key in FLOATS & objects.keys())):
                raise ValueError("a box is no box, or its class is not in metadata.json")
            _ = record["path"].decode(), record["file_name"].decode()
            return record
        except DAMAGED as error:
            raise damaged(self.folder, f"record {position} of '{self.split}': {error}") from error

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))


def read_json(file: epath.Path, form: Any) -> Any:
    """Read a JSON file of a prepared folder, whose content must have a form (see `fits`)."""
    try:
        content = json_values.parse(read_text(file))
    except FileNotFoundError as error:
        raise damaged(file, "it is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(file, error) from error
    if not fits(content, form):
        raise damaged(file, "its values are of other types than preparation writes")
    return content


def fits(value: Any, form: Any) -> bool:
    """Whether a JSON value has a form: a type, a list of one form, or the forms of keys, which may be absent."""
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(each, form[0]) for each in value)
    if isinstance(form, dict):
        others = form.get(ANY, object)
        return isinstance(value, dict) and all(fits(each, form.get(key, others)) for key, each in value.items())
    return isinstance(value, form) and (form is object or not isinstance(value, bool))


def damaged(file: epath.Path, reason: object) -> UserError:
    """Return the error about a damaged file or folder of a prepared data set."""
    folder = file.parent if file.suffix == ".json" else file
    return UserError(f"{file} is damaged ({' '.join(str(reason).split())[:300]}): delete {folder} and prepare it again")
