"""A prepared folder of somebody else runs no code, and damage ends in one line."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfinet_jax.errors import UserError
from cfinet_jax.input.dataset import Prepared, open_splits
from cfinet_jax.input.records import features, fits
from tests import prepared

FILES = ("dataset_info.json", "metadata.json", "account.json")
RECORDS = "mine-train.array_record-00000-of-00001"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A data set of 30 pictures in train and one in val, with the classes 3 and 7."""
    folder = tmp_path_factory.mktemp("own")
    for split, count in (("train", 30), ("val", 1)):
        names = [f"{split}{number}.png" for number in range(count)]
        for name in names:
            prepared.draw(folder / name, (20, 30))
        boxes = [{"image_id": n + 1, "category_id": 3 + 4 * (n % 2), "bbox": [2, 3, 9, 8]} for n in range(count)]
        categories = [{"id": 3, "name": "car"}, {"id": 7, "name": "bus"}]
        content = prepared.coco(dict.fromkeys(names, (20, 30)), boxes) | {"categories": categories}
        prepared.write(folder / f"{split}.json", content)
    assert prepared.call("coco", folder, "--name=mine", to=folder / "prepared")[0] == 0
    return folder / "prepared"


@pytest.fixture
def sealed(whole, tmp_path) -> Path:
    """A copy of the data set: the folder of its version."""
    shutil.copytree(whole, tmp_path / "prepared")
    return tmp_path / "prepared" / "mine" / "1.0.0"


@pytest.fixture
def copied(sealed) -> Path:
    """A copy without a seal, as earlier versions prepared it: every value is checked by itself."""
    path = sealed / "metadata.json"
    path.write_bytes(
        edited(lambda kept: {key: value for key, value in kept.items() if key != "seal"})(path.read_bytes())
    )
    return sealed


def open_all(version: Path) -> dict[str, Prepared]:
    return open_splits(prepared.settings("mine", version.parents[1]))


Change = Callable[[Any], Any]


def edited(change: Change) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(change(json.loads(content))).encode()


def info(content: Any, **changes: Any) -> Any:
    content["splits"][0].update(changes)
    return content


GENERAL: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "a list": lambda content: b"[]",
    "a number": lambda content: b"3",
    "nothing": lambda content: b"null",
    "not text": lambda content: b"\xff\xfe\x00",
    "levels": lambda content: b"[" * 100_000,
    "an empty object": lambda content: b"{}",
}
ONE_FILE: list[tuple[str, str, Callable[[bytes], bytes]]] = [
    ("metadata.json", "a class more", edited(lambda kept: kept | {"classes": [*kept["classes"], "van"]})),
    ("metadata.json", "a class fewer", edited(lambda kept: kept | {"classes": kept["classes"][:1]})),
    (
        "metadata.json",
        "a class and its id fewer",
        edited(lambda kept: kept | {"classes": ["a"], "category_ids": [3]}),
    ),
    ("metadata.json", "two classes of one id", edited(lambda kept: kept | {"category_ids": [3, 3]})),
    ("metadata.json", "two classes of one name", edited(lambda kept: kept | {"classes": ["car", "car"]})),
    ("metadata.json", "classes as text", edited(lambda kept: kept | {"classes": "ab"})),
    ("metadata.json", "ids as text", edited(lambda kept: kept | {"category_ids": ["3", "7"]})),
    ("metadata.json", "ids as truth", edited(lambda kept: kept | {"category_ids": [True, False]})),
    ("metadata.json", "other boxes", edited(lambda kept: kept | {"boxes": "round"})),
    ("metadata.json", "oriented boxes", edited(lambda kept: kept | {"boxes": "oriented"})),
    ("metadata.json", "source as a number", edited(lambda kept: kept | {"source": 3})),
    ("metadata.json", "files as text", edited(lambda kept: kept | {"files": "abc"})),
    ("account.json", "no objects", edited(lambda kept: kept | {"train": kept["train"] | {"most_objects": 0}})),
    ("account.json", "fewer than none", edited(lambda kept: kept | {"train": kept["train"] | {"most_objects": -3}})),
    ("account.json", "too many", edited(lambda kept: kept | {"train": kept["train"] | {"most_objects": 10**9}})),
    ("account.json", "no pixel", edited(lambda kept: kept | {"train": kept["train"] | {"largest_picture": [0, 30]}})),
    ("account.json", "more images", edited(lambda kept: kept | {"train": kept["train"] | {"images_kept": 99}})),
    ("account.json", "without train", edited(lambda kept: {"val": kept["val"]})),
    ("account.json", "train as a list", edited(lambda kept: kept | {"train": []})),
    ("account.json", "size as text", edited(lambda kept: kept | {"train": {"largest_picture": ["20", "30"]}})),
    ("account.json", "size of three", edited(lambda kept: kept | {"train": {"largest_picture": [20, 30, 3]}})),
    ("account.json", "objects as a list", edited(lambda kept: kept | {"train": {"most_objects": [1]}})),
    ("account.json", "problems as text", edited(lambda kept: kept | {"train": {"problems": {"broken": "all"}}})),
    ("dataset_info.json", "another version", edited(lambda kept: kept | {"version": "x"})),
    ("dataset_info.json", "another format", edited(lambda kept: kept | {"fileFormat": "parquet"})),
    ("dataset_info.json", "unknown key", edited(lambda kept: kept | {"colour": "red"})),
    ("dataset_info.json", "splits as text", edited(lambda kept: kept | {"splits": "train"})),
    ("dataset_info.json", "more records than there are", edited(partial(info, shardLengths=["31"]))),
    ("dataset_info.json", "half of the records", edited(partial(info, shardLengths=["15"]))),
    ("dataset_info.json", "a record fewer", edited(partial(info, shardLengths=["29"]))),
    ("dataset_info.json", "no record", edited(partial(info, shardLengths=["0"]))),
    ("dataset_info.json", "no shard", edited(partial(info, shardLengths=[]))),
    ("dataset_info.json", "another template", edited(partial(info, filepathTemplate="{NOTHING}"))),
    (RECORDS, "empty", lambda content: b""),
    (RECORDS, "half", lambda content: content[: len(content) // 2]),
    (RECORDS, "zeros", lambda content: bytes(len(content))),
    (RECORDS, "the end cut", lambda content: content[:-100]),
    (RECORDS, "text", lambda content: b"no records" * 10_000),
]
DAMAGE = [(file, name, change) for file in FILES for name, change in GENERAL.items()] + ONE_FILE


@pytest.mark.parametrize(("file", "name", "change"), DAMAGE, ids=[f"{file}, {name}" for file, name, _ in DAMAGE])
def test_damage_is_reported_in_one_line(copied, file, name, change):
    (copied / file).write_bytes(change((copied / file).read_bytes()))
    with pytest.raises(UserError, match=r"delete .* and prepare it again|is missing: delete") as error:
        open_all(copied)
    assert "\n" not in str(error.value) and str(copied) in str(error.value)


EDITED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {  # every value is possible, but not the one prepared
    "a class and its id more": (
        "metadata.json",
        edited(lambda kept: kept | {"classes": [*kept["classes"], "van"], "category_ids": [*kept["category_ids"], 9]}),
    ),
    "classes exchanged": ("metadata.json", edited(lambda kept: kept | {"classes": kept["classes"][::-1]})),
    "ids exchanged": ("metadata.json", edited(lambda kept: kept | {"category_ids": kept["category_ids"][::-1]})),
    "a class renamed": ("metadata.json", edited(lambda kept: kept | {"classes": ["car", "van"]})),
    "a range of grey values": ("metadata.json", edited(lambda kept: kept | {"grey_range": [0, 9]})),
    "the source without its state": ("metadata.json", edited(lambda kept: kept | {"files": [], "state": []})),
    "a state of another type": ("metadata.json", edited(lambda kept: kept | {"state": "x"})),
    "a key twice": ("metadata.json", lambda content: content.rstrip()[:-1] + b', "classes": ["a", "b"]}'),
    "larger pictures": (
        "account.json",
        edited(lambda kept: kept | {"train": kept["train"] | {"largest_picture": [999, 999]}}),
    ),
    "accounts exchanged": ("account.json", edited(lambda kept: {"train": kept["val"], "val": kept["train"]})),
}


@pytest.mark.parametrize("row", EDITED)
def test_an_edited_description_is_refused(sealed, row):
    open_all(sealed)
    file, change = EDITED[row]
    (sealed / file).write_bytes(change((sealed / file).read_bytes()))
    with pytest.raises(UserError, match=r"metadata.json is damaged .*: delete .* and prepare it again"):
        open_all(sealed)


def test_an_account_that_is_missing_is_refused(sealed):
    (sealed / "account.json").unlink()
    with pytest.raises(UserError, match="it or account.json was edited"):
        open_all(sealed)


def test_files_of_records_that_were_exchanged_are_refused(tmp_path):
    folder, files = tmp_path / "own", []
    for split in ("train", "val"):
        prepared.draw(folder / f"{split}.png", (20, 30))
        prepared.write(folder / f"{split}.json", prepared.coco({f"{split}.png": (20, 30)}, [{"bbox": [2, 3, 9, 8]}]))
        files.append(tmp_path / "prepared" / "mine" / "1.0.0" / RECORDS.replace("train", split))
    assert prepared.call("coco", folder, "--name=mine")[0] == 0
    open_all(files[0].parent)
    first, second = (file.read_bytes() for file in files)
    files[0].write_bytes(second)
    files[1].write_bytes(first)
    with pytest.raises(UserError, match="the records of 'train' are not those that account.json describes"):
        open_all(files[0].parent)


@pytest.mark.parametrize("file", [*FILES, RECORDS])
def test_a_pipe_is_no_file(copied, file):
    (copied / file).unlink()
    os.mkfifo(copied / file)
    with pytest.raises(UserError, match=f"{file}.* is .*damaged .*delete .* and prepare it again"):
        open_all(copied)


@pytest.mark.parametrize("given", [["0", "4095"], 7, {"low": 0}, [[0, 1], 2], "09", [5, 5]])
def test_a_range_of_something_else_is_refused(copied, given):
    metadata = json.loads((copied / "metadata.json").read_text())
    (copied / "metadata.json").write_text(json.dumps(metadata | {"grey_range": given}))
    with pytest.raises(UserError, match="dataset.grey_range is .*: give the values"):
        open_all(copied)


WRONG: dict[str, dict[str, Any]] = {  # what a record of one object may not hold
    "NaN": {"bbox": [[np.nan, 3, 9, 8]]},
    "infinite": {"bbox": [[2, 3, np.inf, 8]]},
    "reversed": {"bbox": [[9, 3, 2, 8]]},
    "an area of NaN": {"area": [np.nan]},
    "a class below all": {"label": [-2]},
    "a class beyond all": {"label": [2]},
    "a column more": {"label": [0, 1]},
    "a column fewer": {"ignore": []},
    "a path of other bytes": {"path": b"caf\xe9.png"},
    "a name of other bytes": {"file_name": b"\xff"},
}


@pytest.mark.parametrize("row", WRONG)
def test_a_record_that_cannot_be_is_said_in_one_line(whole, row):
    records = open_all(whole / "mine" / "1.0.0")["train"].source
    record = records[1]
    for key, value in WRONG[row].items():
        if isinstance(value, bytes):
            record = record | {key: value}
        else:
            column = np.array(value, records[1]["objects"][key].dtype).reshape(
                -1, *records[1]["objects"][key].shape[1:]
            )
            record = record | {"objects": record["objects"] | {key: column}}
    records.source = [record]
    with pytest.raises(UserError, match=r"record 0 of 'train': .*: delete .* and prepare it again"):
        records[0]


def test_missing_metadata_are_reported_in_one_line(copied):
    (copied / "metadata.json").unlink()
    with pytest.raises(UserError, match=r"metadata.json is damaged .it is missing.: delete .* and prepare it again"):
        open_all(copied)


@pytest.mark.parametrize("place", ["features.json", "dataset_info.json", "legacy", "features.json gone", "moduleName"])
def test_a_folder_does_not_choose_the_classes_that_read_it(copied, place, monkeypatch):
    (copied.parent / "evil_module.py").write_text("raise SystemExit('code of the folder ran')")
    monkeypatch.syspath_prepend(str(copied.parent))
    named = json.loads((copied / "features.json").read_text()) | {"pythonClassName": "evil_module.Feature"}
    described = json.loads((copied / "dataset_info.json").read_text())
    match place:
        case "features.json":
            (copied / "features.json").write_text(json.dumps(named))
        case "legacy":
            (copied / "features.json").write_text(json.dumps({"type": "evil_module.Feature", "content": {}}))
        case "features.json gone":
            (copied / "features.json").unlink()
        case "dataset_info.json":
            (copied / "dataset_info.json").write_text(json.dumps(described | {"features": named}))
        case "moduleName":
            (copied / "dataset_info.json").write_text(json.dumps(described | {"moduleName": "evil_module"}))
    train = open_all(copied)["train"]
    assert [record["file_name"].decode() for record in train.source][-1] == "train29.png"
    assert "evil_module" not in sys.modules


def test_records_are_read_as_written(whole):
    train = open_all(whole / "mine" / "1.0.0")["train"]
    assert len(train) == len(list(train.source)) == 30
    assert train.source[1]["objects"]["bbox"].tolist() == [[2, 3, 11, 11]]
    assert train.source[1].keys() == features("horizontal").keys()


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        ([1, 2], [int], True), ([1, "2"], [int], False), (True, int, False), ({"a": 1}, {"b": str}, True),
        ({"a": 1}, {"a": str}, False), ({"x": {"y": [1]}}, {"": {"": [int]}}, True), (None, {"a": int}, False),
    ],
)  # fmt: skip
def test_values_fit_their_form(value, form, expected):
    assert fits(value, form) == expected
