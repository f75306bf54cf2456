"""Published data sets, each in a tiny copy of its layout: boxes, labels, regions and broken entries."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.errors import UserError
from cfinet_jax.preparation import builders
from cfinet_jax.preparation.journal import Journal
from cfinet_jax.preparation.visdrone import FOLDERS
from tests import prepared
from tests.prepared import write

SIDE = 32
AI_TOD = ("airplane", "bridge", "storage-tank", "ship", "swimming-pool", "vehicle", "person", "wind-mill")
VISDRONE = ["pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor"]


def picture(path: Path) -> None:
    prepared.draw(path, (SIDE, SIDE), zlib.crc32(str(path).encode()))


def visdrone(folder: Path, text: str = "1,2,10,8,1,4,0,1\n") -> None:
    for name in FOLDERS.values():
        picture(folder / name / "images/0000001_02999_d_0000005.jpg")
        (folder / name / "annotations").mkdir()
        (folder / name / "annotations/0000001_02999_d_0000005.txt").write_text(text)


def ai_tod(folder: Path, annotations: str = "aitod_{split}.json", images: str = "images/{split}") -> None:
    for split in ("train", "val", "trainval", "test"):
        content = {
            "images": [{"id": 0, "file_name": f"{split}__1_0_0.png", "height": SIDE, "width": SIDE}],
            "annotations": [
                {"id": 0, "image_id": 0, "category_id": 6, "bbox": [1, 2, 10, 8], "area": 80.0, "iscrowd": 0}
            ],
            "categories": [{"id": n, "name": name, "supercategory": "none"} for n, name in enumerate(AI_TOD, 1)],
        }
        write(folder / "annotations" / annotations.format(split=split), content)
        picture(folder / images.format(split=split) / f"{split}__1_0_0.png")


TINY_PERSON_MARKS = ("", "ignore", "uncertain", "logo", "in_dense_image")


def tiny_person(folder: Path, names: tuple[str, ...] = ("sea_person", "earth_person"), task: str = "") -> None:
    marks = [{mark: mark == each for mark in TINY_PERSON_MARKS[1:]} for each in TINY_PERSON_MARKS]
    annotations = [{"category_id": 1 + number % len(names)} | mark for number, mark in enumerate(marks)]
    for split in ("train", "test"):
        content = {
            "type": "instance",
            "images": [{"id": 0, "file_name": "labeled_images/bb_V0032.jpg", "height": SIDE, "width": SIDE}],
            "annotations": [
                {"id": number, "image_id": 0, "iscrowd": 0, "area": 80.0, "bbox": [1.5, 2 + number, 10, 8]} | entry
                for number, entry in enumerate(annotations)
            ],
            "categories": [{"id": n, "name": name, "supercategory": "person"} for n, name in enumerate(names, 1)],
        }
        write(
            folder / "annotations" / (f"task/tiny_set_{split}_all.json" if task else f"tiny_set_{split}.json"), content
        )
        picture(folder / split / "labeled_images/bb_V0032.jpg")


def hit_uav(folder: Path) -> None:
    categories = ("Person", "Car", "Bicycle", "OtherVehicle", "DontCare")
    for split, name in {"train": "train", "val": "instances_val", "test": "test"}.items():
        content = {
            "info": {"year": "2020"},
            "images": [{"filename": "0_120_50_0_05408.jpg", "height": SIDE, "width": SIDE, "id": 2319}],
            "categories": [{"supercategory": each, "id": n, "name": each} for n, each in enumerate(categories)],
            "annotation": [
                {"id": 20088, "image_id": 2319, "category_id": 1, "bbox": [1, 2, 10, 8], "area": 80},
                {"id": 20089, "image_id": 2319, "category_id": 4, "bbox": [20, 20, 5, 5], "area": 25},
            ],
        }
        write(folder / f"annotations/{name}.json", content)
        picture(folder / split / "0_120_50_0_05408.jpg")


MAKERS: dict[str, Callable[[Path], None]] = {
    "visdrone": visdrone,
    "ai_tod": ai_tod,
    "ai_tod_v2": lambda folder: ai_tod(folder, "aitodv2_{split}.json"),
    "tiny_person": tiny_person,
    "hit_uav": hit_uav,
}


def read(name: str, folder: Path) -> dict:
    with Journal(epath.Path(folder) / "unfinished") as journal:
        return builders.PUBLISHED[name](epath.Path(folder), journal)


@pytest.mark.parametrize(
    ("name", "splits", "classes", "ids"),
    [
        ("visdrone", {"train", "val", "test"}, VISDRONE, list(range(1, 11))),
        ("ai_tod", {"train", "val", "trainval", "test"}, list(AI_TOD), list(range(1, 9))),
        ("ai_tod_v2", {"train", "val", "trainval", "test"}, list(AI_TOD), list(range(1, 9))),
        ("tiny_person", {"train", "test"}, ["person"], [1]),
        ("hit_uav", {"train", "val", "test"}, ["Person", "Car", "Bicycle", "OtherVehicle"], [0, 1, 2, 3]),
    ],
)
def test_every_set_is_prepared(tmp_path, name, splits, classes, ids):
    MAKERS[name](tmp_path)
    assert prepared.call(name, tmp_path, to=tmp_path / "prepared")[::2] == (0, "")
    for split in splits:
        opened = prepared.open_split(name, tmp_path / "prepared", split)
        assert (len(opened), list(opened.classes), list(opened.category_ids)) == (1, classes, ids)
    accounts = prepared.accounts(tmp_path / "prepared")
    assert accounts.keys() == splits and all(account["problems"] == {} for account in accounts.values())


@pytest.mark.parametrize("name", MAKERS)
def test_a_box_is_where_it_was_drawn(tmp_path, name):
    MAKERS[name](tmp_path)
    for content in read(name, tmp_path).values():
        x1, y1, x2, y2 = content.records[0]["objects"]["bbox"][0]
        assert (x1 - (x1 % 1), y1, x2 - x1, y2 - y1) == (1, 2, 10, 8)
        assert Path(content.records[0]["path"]).is_file()


def test_visdrone_has_regions_and_objects_that_do_not_count(tmp_path):
    lines = ["1,2,10,8,1,4,0,1", "0,0,5,5,0,0,0,0", "3,3,4,4,0,1,0,0", "5,5,4,4,1,11,0,0", "20,20,6,6,1,10,0,2,"]
    visdrone(tmp_path, "\r\n".join(lines))
    train = read("visdrone", tmp_path)["train"]
    objects = train.records[0]["objects"]
    assert objects["bbox"] == [(1, 2, 11, 10), (0, 0, 5, 5), (3, 3, 7, 7), (20, 20, 26, 26)]
    assert objects["label"] == [3, -1, 0, 9]
    assert objects["ignore"] == [False, True, True, False]
    assert objects["iscrowd"] == [False, True, False, False]
    image = "VisDrone2019-DET-train/images/0000001_02999_d_0000005.jpg"
    assert train.account["problems"] == {
        "annotation of an unknown category, skipped": [f"line 4 of the labels of {image}"]  # others
    }
    assert train.files[0] == epath.Path(tmp_path / "VisDrone2019-DET-train/annotations")


@pytest.mark.parametrize("categories", [(4, 11), (5, 9, 11, 0), (11, 10), (2, 10, 11)])
def test_visdrone_need_not_have_its_first_class(tmp_path, categories):
    lines = [f"1,{4 * k},10,8,1,{category},0,1" for k, category in enumerate(categories)]
    visdrone(tmp_path, "\n".join(lines))
    assert read("visdrone", tmp_path)["train"].account["annotations_kept"] == len(categories) - 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("1,2,10,8,1,4,0", "box is not four finite numbers, skipped"),
        ("1,2,10,8,1,4,0,0,0", "box is not four finite numbers, skipped"),
        ("1,2,10", "annotation of an unknown category, skipped"),
        ("1 2 10 8 1 4 0 0", "annotation of an unknown category, skipped"),
        ("1,2,10,8,1,12,0,0", "annotation of an unknown category, skipped"),
        ("1,2,10,8,1,-1,0,0", "annotation of an unknown category, skipped"),
        ("1,2,10,8,1,car,0,0", "annotation of an unknown category, skipped"),
        ("1,,10,8,1,4,0,0", "box is not four finite numbers, skipped"),
        ("1,nan,10,8,1,4,0,0", "box is not four finite numbers, skipped"),
        ("1,2,0,8,1,4,0,0", "box without width or height, skipped"),
        ("40,2,10,8,1,4,0,0", "box outside the image, skipped"),
        ("30,2,10,8,1,4,0,0", "box partly outside the image, clipped"),
    ],
)
def test_broken_lines_of_visdrone_are_counted_and_named(tmp_path, line, problem):
    visdrone(tmp_path, f"1,2,10,8,1,4,0,1\n{line}\n")
    image = "VisDrone2019-DET-val/images/0000001_02999_d_0000005.jpg"
    account = read("visdrone", tmp_path)["val"].account
    assert account["problems"] == {problem: [f"line 2 of the labels of {image}"]}
    assert (account["annotations"], account["annotations_kept"]) == (2, 1 + ("clipped" in problem))


@pytest.fixture(scope="module")
def drones(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("visdrone")
    visdrone(folder)
    return folder


words = st.one_of(st.floats().map(str), st.integers(-2, 40).map(str), st.text(max_size=5))
lines = st.lists(st.lists(words, max_size=10).map(",".join), max_size=5).map("\n".join)


@given(content=st.one_of(st.binary(max_size=200), lines.map(lambda text: text.encode(errors="surrogatepass"))))
def test_any_content_of_a_visdrone_file_is_counted(drones, content):
    (drones / "VisDrone2019-DET-val/annotations/0000001_02999_d_0000005.txt").write_bytes(content)
    val = read("visdrone", drones)["val"]
    clipped = len(val.account["problems"].get("box partly outside the image, clipped", ()))
    named = sum(map(len, val.account["problems"].values())) - clipped
    assert val.account["annotations"] - named == val.account["annotations_kept"]
    boxes = np.array(val.records[0]["objects"]["bbox"]).reshape(-1, 4)
    assert np.all(boxes >= 0) and np.all(boxes <= SIDE) and np.all(boxes[:, 2:] > boxes[:, :2])


@pytest.mark.parametrize("annotations", ["aitod_{split}.json", "aitod_{split}_v1.json", "aitod_{split}_v1_1.0.json"])
@pytest.mark.parametrize("images", ["images/{split}", "{split}/images", "{split}"])
def test_ai_tod_is_found_in_every_layout(tmp_path, annotations, images):
    ai_tod(tmp_path, annotations, images)
    write(tmp_path / "annotations/aitod_wo_xview_train.json", {})  # which lies beside what is made of it
    splits = read("ai_tod", tmp_path)
    assert splits.keys() == {"train", "val", "trainval", "test"}
    for split, content in splits.items():
        assert content.records[0]["path"] == str(tmp_path / images.format(split=split) / f"{split}__1_0_0.png")
        assert content.records[0]["objects"]["label"] == [5]


@pytest.mark.parametrize(("names", "task"), [(("sea_person", "earth_person"), ""), (("person",), "all")])
def test_marked_persons_are_ignored(tmp_path, names, task):
    tiny_person(tmp_path, names, task)
    for content in read("tiny_person", tmp_path).values():
        objects = content.records[0]["objects"]
        assert objects["label"] == [0] * 5 and not any(objects["iscrowd"])
        assert objects["ignore"] == [False, True, True, True, True]


def test_unknown_categories_of_tiny_person_are_skipped(tmp_path):
    tiny_person(tmp_path)
    path = tmp_path / "annotations/tiny_set_test.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"], content["annotations"][2]["category_id"] = 9, [1]
    content["categories"].pop(0)  # those in the sea
    write(path, content)
    problems = read("tiny_person", tmp_path)["test"].account["problems"]
    assert problems == {
        "annotation of an unknown category, skipped": [
            f"annotation {n} of labeled_images/bb_V0032.jpg" for n in (0, 2, 4)
        ]
    }


def test_the_category_dontcare_of_hit_uav_becomes_regions(tmp_path):
    hit_uav(tmp_path)
    for content in read("hit_uav", tmp_path).values():
        objects = content.records[0]["objects"]
        assert objects["label"] == [1, -1] and objects["ignore"] == objects["iscrowd"] == [False, True]


def remove(folder: Path, pattern: str) -> None:
    paths = list(folder.glob(pattern))
    assert paths
    for path in paths:
        path.unlink()


REFUSED = {  # a set, what happens to its folder, and a part of the line
    "visdrone elsewhere": ("visdrone", hit_uav, "holds none of VisDrone2019-DET-train, VisDrone2019-DET-val"),
    "visdrone without labels": (
        "visdrone",
        lambda folder: (visdrone(folder), remove(folder, "VisDrone2019-DET-val/annotations/*")),
        "TMP/VisDrone2019-DET-val/annotations holds no label file (.txt): unpack the whole archive",
    ),
    "visdrone without images": (
        "visdrone",
        lambda folder: (visdrone(folder), remove(folder, "*/images/*")),
        "no image of TMP/VisDrone2019-DET-train/annotations can be used (1 x image missing, skipped",
    ),
    "visdrone with lines of YOLO": (
        "visdrone",
        lambda folder: visdrone(folder, "0 0.5 0.5 0.1 0.1"),
        "has no object to learn from (1 annotations; 1 x annotation of an unknown category",
    ),
    "ai_tod without xView": (
        "ai_tod",
        lambda folder: ai_tod(folder, "aitod_wo_xview_{split}.json"),
        "TMP holds no annotations (annotations/aitod_SPLIT.json, ",
    ),
    "tiny_person as a JSON of another": (
        "tiny_person",
        lambda folder: (tiny_person(folder), write(folder / "annotations/tiny_set_train.json", {"images": []})),
        "TMP/annotations/tiny_set_train.json is not COCO: it has no list 'annotations'",
    ),
    "hit_uav, one folder too high": ("hit_uav", lambda folder: hit_uav(folder / "normal_json"), "holds no annotations"),
    "hit_uav without images": (
        "hit_uav",
        lambda folder: (hit_uav(folder), remove(folder, "*/*.jpg")),
        "no image of TMP/annotations/train.json can be used",
    ),
}


@pytest.mark.parametrize("row", REFUSED)
def test_unusable_folders_are_refused_in_one_line(tmp_path, row):
    name, change, fragment = REFUSED[row]
    change(tmp_path)
    status, _, errors = prepared.call(name, tmp_path, to=tmp_path / "prepared")
    assert status == 2 and len(errors.splitlines()) == 1 and fragment.replace("TMP", str(tmp_path)) in errors
    assert not list(tmp_path.glob(f"prepared/{name}/*"))


simple = st.one_of(st.none(), st.booleans(), st.integers(-1, 5), st.floats(), st.text(max_size=3), st.just("DontCare"))
keys = st.sampled_from(["id", "image_id", "category_id", "bbox", "name", "filename", "file_name", "ignore", "height"])
entries = st.dictionaries(keys, st.one_of(simple, st.lists(simple, max_size=4), st.dictionaries(keys, simple)))
IMAGE = {"id": 1, "filename": "a.png", "file_name": "a.png", "height": SIDE, "width": SIDE}
contents = st.fixed_dictionaries(
    {
        "images": st.one_of(st.just([IMAGE]), st.lists(entries, max_size=2), simple),
        "categories": st.one_of(st.just([{"id": 1, "name": "person"}]), st.lists(entries, max_size=2), simple),
    },
    optional={
        key: st.one_of(st.lists(entries.map(lambda entry: {"image_id": 1} | entry), max_size=3), simple)
        for key in ("annotation", "annotations")
    },
)


@pytest.mark.parametrize(
    ("name", "file"), [("hit_uav", "annotations/train.json"), ("tiny_person", "annotations/tiny_set_train.json")]
)
@given(content=st.one_of(contents, entries, simple))
def test_any_json_file_is_read_or_refused_in_one_line(tmp_path_factory, name, file, content):
    folder = tmp_path_factory.mktemp(name)
    write(folder / file, content)
    picture(folder / "train/a.png")
    try:
        read(name, folder)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
