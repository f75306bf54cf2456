"""Oddities of a data set as a whole are reported, or refused where nothing can be learnt from it."""

import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from PIL import Image

from cfinet_jax.preparation.coco_annotations import Split
from cfinet_jax.preparation.oddities import TURNED, compare_splits
from tests import prepared

HEIGHT, WIDTH = 40, 60
Content = dict[str, dict]


def picture(path: Path, seed: int = 0, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def coco(folder: Path) -> Content:
    """Files of two splits, with 20 boxes each on four pictures, before they are written."""
    contents = {}
    for first, split in enumerate(("train", "val")):
        images, annotations = [], []
        for n in range(4):
            picture(folder / f"{split}{n}.jpg", 10 * first + n)
            images.append({"id": n, "file_name": f"{split}{n}.jpg", "height": HEIGHT, "width": WIDTH})
            for k in range(5):
                box = [3 + 5 * k, 4 + 3 * n, 6, 5 + k]
                annotations.append({"id": 5 * n + k, "image_id": n, "category_id": 1 + k % 3, "bbox": box})
        categories = [{"id": n, "name": name} for n, name in enumerate(("car", "bus", "van"), 1)]
        contents[split] = {"images": images, "annotations": annotations, "categories": categories}
    return contents


def write(folder: Path, contents: Content) -> None:
    for split, content in contents.items():
        prepared.write(folder / f"{split}.json", content)


def run(folder: Path) -> tuple[int, str, Content]:
    """Prepare a folder; return status, errors and accounts."""
    status, _, errors = prepared.call("own", folder, "--name=mine", to=folder / "prepared")
    return status, errors, prepared.accounts(folder / "prepared")


def boxes_as(convert: Callable) -> Callable[[Content], None]:
    def change(contents: Content) -> None:
        for entry in contents["train"]["annotations"]:
            entry["bbox"] = [float(value) for value in convert(*entry["bbox"])]

    return change


def one_image_each(contents: Content) -> None:
    train = contents["train"]
    train["images"] = [
        train["images"][entry["image_id"]] | {"id": place} for place, entry in enumerate(train["annotations"])
    ]
    for place, entry in enumerate(train["annotations"]):
        entry["image_id"] = place


def listed_again(name: str) -> Callable[[Content], None]:
    def change(contents: Content) -> None:
        images = contents["val"]["images"]
        images.append(images[1] | {"id": 9, "file_name": name})

    return change


def categories(*entries: tuple[int, str]) -> Callable[[Content], None]:
    def change(contents: Content) -> None:
        for content in contents.values():
            content["categories"] = [{"id": key, "name": name} for key, name in entries]

    return change


def class_as_list(contents: Content) -> None:
    contents["train"]["annotations"][0]["category_id"] = [1]
    listed_again("val1.jpg")(contents)


REFUSED = {
    "a class as a list": (class_as_list, "lists 1 of 4 images several times"),
    "corners": (boxes_as(lambda x, y, w, h: (x + 25, y + 15, x + 25 + w, y + 15 + h)), "look like corners"),
    "centres": (boxes_as(lambda x, y, w, h: (WIDTH - w / 2, y, w, h)), "look like centres"),
    "shares": (boxes_as(lambda x, y, w, h: (x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT)), "look like shares"),
    "sides as shares": (boxes_as(lambda x, y, w, h: (x, y, w / WIDTH, h / HEIGHT)), "look like sides below a pixel"),
    "widths as shares": (boxes_as(lambda x, y, w, h: (x, y, w / WIDTH, h)), "look like sides below a pixel"),
    "of larger images": (boxes_as(lambda x, y, w, h: (4 * x, 4 * y, 4 * w, 4 * h)), "look like those of other images"),
    "below zero": (boxes_as(lambda x, y, w, h: (x, y, -w, h)), "those of other images .20 of 20, for example ann"),
    "one image for every annotation": (one_image_each, "lists 4 of 4 images several times .train0.jpg 5 times"),
    "an image twice": (listed_again("val1.jpg"), "lists 1 of 4 images several times .val1.jpg 2 times"),
    "an image twice in other words": (listed_again("./val1.jpg"), "lists 1 of 4 images several times .val1.jpg 2"),
    "classes of one name": (categories((1, "car"), (2, "bus"), (3, "car")), "'car' to the classes 1 and 3: rename"),
    "three of one name": (categories((1, "a"), (2, "a"), (3, "a")), "'a' to the classes 1 and 2 and 3"),
    "names with spaces": (categories((1, "car"), (2, "bus "), (3, "bus")), "'bus' to the classes 2 and 3"),
    "names in two forms of Unicode": (
        categories((1, "caf\u00e9"), (2, "cafe\u0301"), (3, "x")),
        "to the classes 1 and 2",
    ),
    "a name of a space": (categories((1, "car"), (2, " "), (3, "van")), "has a class without a name: name it"),
    "annotations from 1": (categories((0, "a"), (1, "b"), (2, "c")), "classes 0 to 2, but the annotations use 1 to 3"),
    "annotations from before": (categories((2, "a"), (3, "b"), (4, "c")), "2 to 4, but the annotations use 1 to 3"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_data_that_nothing_can_be_learnt_from_are_refused(tmp_path, row):
    contents = coco(tmp_path)
    change, message = REFUSED[row]
    change(contents)
    write(tmp_path, contents)
    status, errors, _ = run(tmp_path)
    assert status == 2 and errors.count("\n") == 1
    assert re.search(message, errors), errors


def twice(contents: Content) -> None:
    entries = contents["train"]["annotations"]
    contents["train"]["annotations"] = entries + [entry | {"id": 100 + entry["id"]} for entry in entries]


def annotated(**changes) -> Callable[[Path, Content], None]:
    """An annotation more, as the first but for some of its values."""

    def change(folder: Path, contents: Content) -> None:
        entries = contents["train"]["annotations"]
        entries.append(entries[0] | {"id": 99} | changes)

    return change


def without_objects(folder: Path, contents: Content) -> None:
    contents["val"]["annotations"] = []


def regions_only(folder: Path, contents: Content) -> None:
    for entry in contents["val"]["annotations"]:
        entry["iscrowd"] = 1


def shared(folder: Path, contents: Content) -> None:
    contents["val"]["images"][0]["file_name"] = "train2.jpg"


def copied(folder: Path, contents: Content) -> None:
    (folder / "val1.jpg").write_bytes((folder / "train3.jpg").read_bytes())


def turned(name: str, orientation: int) -> Callable[[Path, Content], None]:
    def change(folder: Path, contents: Content) -> None:
        picture(folder / name, 99, orientation)

    return change


def beyond(convert: Callable) -> Callable[[Path, Content], None]:
    return lambda _, contents: boxes_as(convert)(contents)


def copied_within(*names: str) -> Callable[[Path, Content], None]:
    def change(folder: Path, contents: Content) -> None:
        for name in names:
            (folder / name).write_bytes((folder / "train0.jpg").read_bytes())

    return change


def named_otherwise(folder: Path, contents: Content) -> None:
    (folder / "x").mkdir()
    images = contents["train"]["images"]
    images.append(images[1] | {"id": 9, "file_name": "x/../train1.jpg"})


SAME = "annotation given twice, one kept"
CLIPPED, TWICE = "box partly outside the image, clipped", "image given twice, kept"
ALSO = "image that is also in 'train', kept"
TOLD = {
    "all annotations twice": (lambda _, contents: twice(contents), "train", SAME, 20, "annotation 100 of train0.jpg"),
    "one annotation twice": (annotated(), "train", SAME, 1, "annotation 99 of train0.jpg"),
    "the same in other numbers": (annotated(bbox=[3.0, 4.0, 6.0, 5.0]), "train", SAME, 1, "annotation 99 of"),
    "another class": (annotated(category_id=2), "train", SAME, 0, ""),
    "another box": (annotated(bbox=[3, 4, 6, 5.5]), "train", SAME, 0, ""),
    "one to ignore": (annotated(ignore=1), "train", SAME, 0, ""),
    "an image in two splits": (shared, "val", ALSO, 1, "train2.jpg"),
    "a copy in two splits": (copied, "val", ALSO, 1, "val1.jpg"),
    "no image in two splits": (lambda *_: None, "val", ALSO, 0, ""),
    "a copy in its own split": (copied_within("train2.jpg"), "train", TWICE, 1, "train2.jpg"),
    "two copies in one split": (copied_within("train1.jpg", "train3.jpg"), "train", TWICE, 2, "train1.jpg"),
    "an image by another path": (named_otherwise, "train", TWICE, 1, "x/../train1.jpg"),
    "cut on three sides": (
        beyond(lambda x, y, w, h: (-x, -y, WIDTH + 2 * x, y + h + x / 9)),
        "train",
        CLIPPED,
        20,
        "annotation 0",
    ),
    "mostly cut off at the right": (
        beyond(lambda x, y, w, h: (WIDTH - 2, y, 4 * w, h)),
        "train",
        CLIPPED,
        20,
        "annotation 0",
    ),
    "cut at the top": (beyond(lambda x, y, w, h: (x, -h / 2, w, h)), "train", CLIPPED, 20, "annotation 0"),
    "a split without annotations": (without_objects, "val", "split without an object to score", 1, "val"),
    "a split of regions": (regions_only, "val", "split without an object to score", 1, "val"),
    "upside down": (turned("train1.jpg", 3), "train", TURNED, 1, "train1.jpg"),
    "mirrored": (turned("val2.jpg", 2), "val", TURNED, 1, "val2.jpg"),
    "upright": (turned("val2.jpg", 1), "val", TURNED, 0, ""),
}


@pytest.mark.parametrize("row", TOLD)
def test_oddities_are_counted_and_named(tmp_path, row):
    contents = coco(tmp_path)
    change, split, problem, count, example = TOLD[row]
    change(tmp_path, contents)
    write(tmp_path, contents)
    status, errors, accounts = run(tmp_path)
    names = accounts[split]["problems"].get(problem, [])
    assert (status, errors, len(names)) == (0, "", count) and "".join(names[:1]).startswith(example)
    assert sum(len(account["problems"]) for account in accounts.values()) == (count > 0)  # and nothing else
    if problem == SAME:
        assert accounts[split]["annotations_kept"] == len(contents[split]["annotations"]) - count


def test_pictures_that_were_not_read_are_told_apart_by_their_paths():
    splits = {}
    for split, path in (("train", "a"), ("val", "b"), ("test", "a")):
        entry = {"path": path, "file_name": path, "objects": {"id": [1], "ignore": [False]}}
        splits[split] = Split([entry], {}, {"problems": {}}, ())
    compare_splits(splits, {})
    problems = {split: content.account["problems"] for split, content in splits.items()}
    assert problems == {"train": {}, "val": {}, "test": {ALSO: ["a"]}}


def test_areas_of_another_scale_are_looked_for(tmp_path):
    contents = coco(tmp_path)
    for entry in contents["train"]["annotations"]:
        entry["area"] = "900"
    write(tmp_path, contents)
    with mock.patch("cfinet_jax.preparation.oddities.tell_areas") as tell:
        assert run(tmp_path)[0] == 0
    assert [len(call.args[1]) for call in tell.call_args_list] == [20, 0]


STRAYS = {  # label files beside those of the pictures, and which of them are told
    "encoded": (["labels/train/a%20b.txt"], ["a%20b.txt"]),
    "another case": (["labels/train/A.txt"], ["A.txt"]),
    "a picture that is gone": (["labels/train/a.txt", "labels/train/gone.txt"], ["gone.txt"]),
    "another format": (["labels/train/c.json"], ["c.json"]),
    "names of the classes": (["labels/train/classes.txt"], []),
    "an ending in capitals": (["labels/train/a.TXT"], ["a.TXT"]),
    "another program's format": (["labels/train/b.xml"], ["b.xml"]),
    "another format beside ours": (["labels/train/a.txt", "labels/train/a.xml"], []),
    "a picture that is gone, in capitals": (["labels/train/gone.TXT"], ["gone.TXT"]),
    "of the pictures": (["labels/train/a.txt", "labels/train/b.txt"], []),
}


@pytest.mark.parametrize("row", STRAYS)
def test_label_files_without_an_image_are_named(tmp_path, row):
    files, expected = STRAYS[row]
    for seed, name in enumerate(("train/a.jpg", "train/b.jpg", "train/c d.jpg", "val/e.jpg")):
        picture(tmp_path / "images" / name, seed)
    for file in ("labels/train/c d.txt", "labels/val/e.txt", *files):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [car]\n")
    status, errors, accounts = run(tmp_path)
    assert (status, errors) == (0, "")
    strays = {"label file that belongs to no image, skipped": expected} if expected else {}
    assert accounts["train"]["problems"] == strays and accounts["val"]["problems"] == {}


def test_label_files_of_another_split_in_one_folder_are_no_strays(tmp_path):
    for seed, name in enumerate("ab"):
        picture(tmp_path / f"{name}.jpg", seed)
        (tmp_path / f"{name}.txt").write_text("0 .5 .5 .2 .2\n")
    for split, name in (("train", "a"), ("val", "b")):
        (tmp_path / f"{split}.txt").write_text(f"{name}.jpg\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [car]\n")
    status, _, accounts = run(tmp_path)
    assert status == 0 and all(account["problems"] == {} for account in accounts.values())


def test_labels_numbered_from_1_are_refused(tmp_path):
    for seed, split in enumerate(("train", "val")):
        picture(tmp_path / "images" / split / "a.jpg", seed)
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / "a.txt").write_text("1 .5 .5 .2 .2\n2 .3 .3 .2 .2\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [car, bus]\n")
    status, errors, _ = run(tmp_path)
    assert status == 2 and "classes 0 to 1, but the annotations use 1 to 2" in errors


@pytest.mark.parametrize("link", ["images/train/back", "images/train/deep/er/back", "images/train/self", "two"])
def test_links_to_a_parent_folder_are_skipped(tmp_path, link):
    for seed, name in enumerate(("train/a.jpg", "train/deep/er/b.jpg", "val/c.jpg")):
        picture(tmp_path / "images" / name, seed)
        label = (tmp_path / "labels" / name).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 .5 .5 .2 .2\n")
    if link == "two":  # each leads to the folder of the other
        (tmp_path / "away").mkdir()
        (tmp_path / "away" / "back").symlink_to(tmp_path / "images" / "train", target_is_directory=True)
        link = "images/train/away"
    place = tmp_path / link
    targets = {"images/train/self": place, "images/train/away": tmp_path / "away"}
    place.symlink_to(targets.get(link, tmp_path / "images"), target_is_directory=True)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [car]\n")
    status, errors, accounts = run(tmp_path)
    assert (status, errors) == (0, "") and accounts["train"]["images"] == 2
    assert all(account["problems"] == {} for account in accounts.values())


def test_a_resumed_preparation_compares_splits_without_decoding_again(tmp_path):
    """The journal keeps contents and orientations of the pictures."""
    contents = coco(tmp_path)
    shared(tmp_path, contents)
    turned("train1.jpg", 3)(tmp_path, contents)
    write(tmp_path, contents)
    with (
        mock.patch("cfinet_jax.preparation.own_builder.check_same_categories", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        run(tmp_path)
    with mock.patch("cv2.imdecode", mock.Mock(wraps=cv2.imdecode)) as decoding:
        _, _, accounts = run(tmp_path)
    assert decoding.call_count == 0
    assert accounts["train"]["problems"] == {TURNED: ["train1.jpg"]}
    assert accounts["val"]["problems"] == {ALSO: ["train2.jpg"]}
