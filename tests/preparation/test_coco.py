"""COCO files: sound entries are kept, broken ones are named, unusable files are refused."""

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import shapely
from etils import epath

from cfinet_jax.boxes import oriented
from cfinet_jax.errors import UserError
from cfinet_jax.input.dataset import coco_ground_truth
from cfinet_jax.preparation.coco_annotations import ANY_CLASS
from cfinet_jax.preparation.coco_boxes import corners_of, crosses_itself, read_oriented
from cfinet_jax.preparation.coco_files import check_ids
from cfinet_jax.preparation.coco_layout import read_named
from cfinet_jax.preparation.journal import Journal
from tests import prepared

CATEGORIES = [{"id": 7, "name": "ship"}, {"id": 3, "name": "plane"}, {"id": 5, "name": "Ignore"}]
REGIONS = [{"id": 6, "name": "ignored regions"}, {"id": 8, "name": "Ignored Regions"}]


def image(number: int, name: str, height: int = 40, width: int = 60) -> dict:
    return {"id": number, "file_name": name, "height": height, "width": width}


def annotation(number: int, image_id: int, bbox: list, category_id: int = 3, **extra) -> dict:
    return {"id": number, "image_id": image_id, "bbox": bbox, "category_id": category_id, **extra}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the sound images a.png and b.jpg, of 40 x 60 pixels."""
    for name in ("a.png", "b.jpg"):
        prepared.draw(tmp_path / name, (40, 60))
    return tmp_path


def read(folder: Path, images: list, annotations: list, categories: list = CATEGORIES, split: str = "train"):
    path = epath.Path(folder) / f"{split}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return read_journaled(split, path)


def read_journaled(split: str, path: epath.Path):
    with Journal(path.parent / "unfinished") as journal:
        return read_named({split: (path, path.parent)}, journal)[split]


def test_categories_become_labels_in_the_order_of_their_ids(folder):
    split = read(folder, [image(1, "a.png")], [annotation(1, 1, [1, 2, 3, 4], 7), annotation(2, 1, [1, 2, 3, 4], 3)])
    assert split.categories == {3: "plane", 7: "ship"}
    assert split.records[0]["objects"]["label"] == [1, 0]
    assert split.records[0]["objects"]["bbox"][0] == (1, 2, 4, 6)
    assert split.account["problems"] == {}


@pytest.mark.parametrize(
    ("entry", "label", "ignore", "iscrowd"),
    [
        (annotation(1, 1, [1, 2, 3, 4]), 0, False, False),
        (annotation(1, 1, [1, 2, 3, 4], ignore=1), 0, True, False),
        (annotation(1, 1, [1, 2, 3, 4], iscrowd=1), 0, True, True),
        (annotation(1, 1, [1, 2, 3, 4], 5), ANY_CLASS, True, True),
        (annotation(1, 1, [1, 2, 3, 4], 6), ANY_CLASS, True, True),
        (annotation(1, 1, [1, 2, 3, 4], 8), ANY_CLASS, True, True),
    ],
)
def test_ignore_and_crowd(folder, entry, label, ignore, iscrowd):
    split = read(folder, [image(1, "a.png")], [entry], CATEGORIES + REGIONS, "val")
    objects = split.records[0]["objects"]
    assert split.categories == {3: "plane", 7: "ship"}
    assert (objects["label"], objects["ignore"], objects["iscrowd"]) == ([label], [ignore], [iscrowd])


@pytest.mark.parametrize(
    ("bbox", "problem", "kept"),
    [
        ([60, 5, 4, 4], "box outside the image, skipped", None),
        ([-9, -9, 9, 9], "box outside the image, skipped", None),
        ([5, 5, 0, 4], "box without width or height, skipped", None),
        ([5, 5, 4, -1], "box without width or height, skipped", None),
        ([math.nan, 5, 4, 4], "box is not four finite numbers, skipped", None),
        ([5, 5, math.inf, 4], "box is not four finite numbers, skipped", None),
        ([5, 5, 4], "box is not four finite numbers, skipped", None),
        (["5 px", 5, 4, 4], "box is not four finite numbers, skipped", None),
        ([-2, 30, 10, 20], "box partly outside the image, clipped", (0, 30, 8, 40)),
        ([5, 5, 0.5, 0.25], None, (5, 5, 5.5, 5.25)),
    ],
)
def test_bad_boxes_are_named(folder, bbox, problem, kept):
    split = read(folder, [image(1, "a.png")], [annotation(4, 1, bbox), annotation(5, 1, [1, 1, 2, 2])])
    assert split.account["problems"] == ({problem: ["annotation 4 of a.png"]} if problem else {})
    assert split.records[0]["objects"]["bbox"] == ([kept] if kept else []) + [(1, 1, 3, 3)]
    assert split.account["annotations"] == 2 and split.account["annotations_kept"] == 1 + bool(kept)


def test_strange_annotations_are_named(folder):
    entries = [
        annotation(1, 1, [1, 1, 2, 2], 99),
        annotation(2, 55, [1, 1, 2, 2]),
        annotation(3, 1, [1, 1, 2, 2]),
        annotation(3, 1, [2, 2, 2, 2]),
    ]
    split = read(folder, [image(1, "a.png")], entries)
    assert split.account["problems"] == {
        "annotation of an unknown category, skipped": ["annotation 1 of a.png"],
        "annotation of an unknown image, skipped": ["annotation 2"],
        "annotation id repeated, kept": ["annotation 3 of a.png"],
    }
    assert list(split.records[0]["objects"]["id"]) == [3, 3]


@pytest.mark.parametrize("scale", [0.05, 1.0, 37.7])
def test_self_crossing_polygons_are_recognised(rng, scale):
    polygons = rng.random((200, 4, 2)) * scale
    crossed = [crosses_itself(corners) for corners in polygons]
    assert crossed == (~shapely.is_valid(shapely.polygons(polygons))).tolist() and 20 < sum(crossed) < 180


@pytest.mark.parametrize(
    ("rbox", "said"),
    [
        ([30.5, 20, 10, 4, 0.3], None), ([30.5, 20, 10, 4, -6.2], None),
        ([30.5, 20, 10, 4], "five"), ([30.5, 20, 10, 4, 0.3, 1], "five"), ([30.5, 20, 10, math.nan, 0.3], "five"),
        ("30 20 10 4 0", "five"), ([30.5, 20, 10, 4, True], "five"), ([30.5, 20, 10, 4, 45], "radians"),
    ],
)  # fmt: skip
def test_an_oriented_box_is_five_numbers_with_an_angle_in_radians(rbox, said):
    notes = []
    corners = corners_of({"rbox": rbox}, notes.append)
    if said is None:
        np.testing.assert_allclose(corners.reshape(8), oriented.to_polygon(np.array(rbox, float)))
        assert not notes
    else:
        assert corners is None and len(notes) == 1 and said in notes[0]


def test_bad_images_are_skipped_with_their_boxes(folder):
    for name in ("a.png", "b.jpg"):
        whole = (folder / name).read_bytes()
        (folder / f"cut_{name}").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    images = [
        image(1, "a.png"),
        image(2, "cut_a.png"),
        image(3, "cut_b.jpg"),
        image(4, "empty.jpg"),
        image(5, "text.jpg"),
        image(6, "nowhere.jpg"),
        image(7, "b.jpg", height=60, width=40),
    ]
    split = read(folder, images, [annotation(n, n, [1, 1, 9, 9]) for n in range(1, 8)])
    assert [record["file_name"] for record in split.records] == ["a.png"]
    assert split.account["problems"] == {
        "image broken or cut short, skipped": ["cut_a.png", "cut_b.jpg", "empty.jpg", "text.jpg"],
        "image missing, skipped": ["nowhere.jpg"],
        "image with height and width swapped (turned by its EXIF orientation?), skipped": ["b.jpg"],
    }
    assert (split.account["images"], split.account["images_kept"], split.account["annotations_kept"]) == (7, 1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "no list 'images'"),
        ('{"images": []}', "no list 'annotations'"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "every one of 'images' needs"),
        ('{"images": [], "annotations": [], "categories": []}', "names no class"),
        (json.dumps({"images": [image(1, "a"), image(1, "b")], "annotations": [], "categories": CATEGORIES}), "id 1"),
        (json.dumps({"images": [image("x", "a")], "annotations": [], "categories": CATEGORIES}), "whole numbers"),
        (json.dumps({"images": [], "annotations": [], "categories": CATEGORIES * 2}), "several of 'categories'"),
        (json.dumps({"images": [image(1, "?")], "annotations": [], "categories": CATEGORIES}), "1 x image missing"),
    ],
)
def test_unusable_files_are_refused_in_one_line(tmp_path, text, message):
    path = epath.Path(tmp_path) / "train.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_journaled("train", path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "0 annotations; no problem found"),
        ([annotation(1, 1, [99, 2, 3, 4])], "1 annotations; 1 x box outside the image, skipped: annotation 1 of a.png"),
        ([annotation(1, 1, [1, 2, 3, 4], 5)], "1 annotations; no problem found"),  # a region
    ],
)
def test_nothing_to_learn_from_is_refused(folder, entries, said):
    with pytest.raises(UserError, match=f"'train' of .*train.json has no object to learn from .{said}.: annotate some"):
        read(folder, [image(1, "a.png")], entries)
    assert read(folder, [image(1, "a.png")], entries, split="val").account["images_kept"] == 1  # scored as n/a


def test_prepared_data_keep_paths_ids_and_the_account(folder):
    entries = [
        annotation(1, 1, [1, 2, 3.5, 4], 7, area=11),
        annotation(2, 1, [99, 2, 3, 4]),
        annotation(9, 2, [0, 0, 9, 9], 5),
        annotation(10, 2, [1, 1, 2, 3], 3, area=0),  # not the area of this box
    ]
    content = {"images": [image(1, "a.png"), image(2, "b.jpg")], "annotations": entries, "categories": CATEGORIES}
    prepared.write(folder / "train.json", content)
    assert prepared.call("coco", folder, to=folder / "prepared")[::2] == (0, "")
    train = prepared.open_split("coco", folder / "prepared", "train")
    assert len(train) == 2 and train.classes == ("plane", "ship") and train.category_ids == (3, 7)
    assert train.account["problems"] == {"box outside the image, skipped": ["annotation 2 of a.png"]}
    assert {record["path"].decode() for record in train.source} == {str(folder / "a.png"), str(folder / "b.jpg")}
    truth = coco_ground_truth(train)
    regions = {"id": 8, "name": "ignore"}  # of every class
    assert truth["categories"] == [{"id": 3, "name": "plane"}, {"id": 7, "name": "ship"}, regions]
    entries = {(a["image_id"], a["category_id"]): a for a in truth["annotations"]}
    assert entries.keys() == {(1, 7), (2, 8), (2, 3)} and entries[2, 3]["area"] == 6
    assert entries[1, 7]["bbox"] == [1, 2, 3.5, 4] and entries[1, 7]["area"] == 11 and not entries[1, 7]["ignore"]
    assert entries[2, 8]["iscrowd"] == entries[2, 8]["ignore"] == 1


@pytest.mark.parametrize(
    ("rbox", "said"),
    [
        ([30, 20, 10, 1.9, 0.3], "less than 2 pixels"), ([30, 20, 1.0, 8, 0], "less than 2 pixels"),
        ([30, 20, 10, 2.1, 0.3], None), ([30, 20, 2.1, 30, -1], None),
        ([-5, 20, 10, 6, 0], "outside"), ([65, 20, 10, 6, 0], "outside"), ([30, -3, 10, 6, 0], "outside"),
        ([30, 43, 10, 6, 0], "outside"), ([-4, 20, 10, 6, 0], None), ([30, 42.5, 10, 6, 0], None),
    ],
)  # fmt: skip
def test_oriented_boxes_too_thin_or_outside_are_named(rbox, said):
    notes = []
    found = read_oriented({"rbox": rbox}, image(1, "a.png"), notes.append)
    assert (found is None) == (said is not None) and len(notes) == (said is not None)
    if said is None:
        assert found["area"] == pytest.approx(rbox[2] * rbox[3], rel=1e-4)
        np.testing.assert_allclose(found["rbox"][:2], rbox[:2], atol=1e-4)
    else:
        assert said in notes[0]


def test_a_repeated_id_is_found_at_once(tmp_path):
    started = time.perf_counter()
    with pytest.raises(UserError, match="gives the id 119999 to several of 'images'"):
        check_ids(epath.Path(tmp_path), "images", [*range(120_000), 119_999])
    assert time.perf_counter() - started < 5
