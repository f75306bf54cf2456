"""SODA-A and other oriented data: polygons are read, put in order or skipped; unusable files are refused."""

import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfinet_jax.boxes import oriented
from cfinet_jax.input import dataset
from cfinet_jax.preparation.coco_boxes import read_oriented
from cfinet_jax.preparation.dota import parse
from tests import prepared
from tests.soda import draw
from tests.sodaa import IGNORE, IMAGES, NAMES, make, turned


@pytest.fixture
def raw(tmp_path) -> Path:
    return make(tmp_path / "SODA-A")


def call(source: Path, *arguments: str, name: str = "sodaa") -> int:
    """Prepare the source beside it, showing what is said; return the status."""
    status, output, errors = prepared.call(name, source, *arguments)
    print(output, end="")
    print(errors, end="", file=sys.stderr)
    return status


def open_split(source: Path, split: str, name: str = "sodaa") -> dataset.Prepared:
    return prepared.open_split(name, source.parent / "prepared", split)


@pytest.mark.parametrize("images", ["Images", "Images/{split}"])
def test_images_are_referred_to_with_their_boxes(tmp_path, images):
    source = make(tmp_path / "SODA-A", images)
    assert call(source) == 0
    for split, expected in IMAGES.items():
        opened = open_split(source, split)
        assert opened.boxes == "oriented" and opened.classes == tuple(NAMES[:-1])
        assert opened.category_ids == tuple(range(9))
        records = {Path(record["file_name"].decode()).stem: record for record in opened.source}
        assert records.keys() == expected.keys()
        for name, (size, entries) in expected.items():
            objects, (height, width) = records[name]["objects"], size
            kept = [(category, poly) for category, poly in entries if category != 8]  # 1.5 pixels high
            assert (records[name]["height"], records[name]["width"]) == (height, width)
            assert list(objects["label"]) == [-1 if category == IGNORE else category for category, _ in kept]
            assert list(objects["ignore"]) == [category == IGNORE for category, _ in kept]
            np.testing.assert_allclose(objects["poly"], np.reshape([poly for _, poly in kept], (-1, 8)), rtol=1e-6)
            for rbox, box, area, (_, poly) in zip(objects["rbox"], objects["bbox"], objects["area"], kept, strict=True):
                corners = np.reshape(poly, (4, 2))
                assert rbox[2] >= rbox[3] >= 2 and -math.pi / 2 <= rbox[4] < math.pi / 2
                found = oriented.to_polygon(rbox).reshape(4, 2)
                assert np.abs(found[:, None] - corners).max(-1).min(1).max() < 1e-2
                np.testing.assert_allclose(box, [*corners.min(0), *corners.max(0)], atol=1e-2)
                assert area == pytest.approx(rbox[2] * rbox[3], rel=1e-5)
    problems = open_split(source, "train").account["problems"]
    assert problems == {
        "oriented box with a side of less than 2 pixels, skipped": ["annotation 6 of the labels of 00001.jpg"],
        "image given twice, kept": ["00003.jpg"],
    }
    truth = open_split(source, "train").coco["annotations"][0]
    np.testing.assert_allclose(truth["rbox"], [100, 120, 30, 12, math.radians(30)], rtol=1e-5)
    assert truth["area"] == pytest.approx(360, rel=1e-5) and len(truth["bbox"]) == 4


def test_the_report(raw, capsys):
    (raw / "Images" / "stray.jpg").write_bytes(b"")
    assert call(raw) == 0
    said = capsys.readouterr().out
    for line in (
        "train: 3 images, 5 objects, 2 regions",
        "images: 5, where the whole of SODA-A has 2,513",
        "1 x image in no annotation file, skipped: stray.jpg",
    ):
        assert line in said, line


BOWTIE = [10, 10, 30, 30, 30, 10, 10, 30]
BAD = {  # polygon, what is said, the sides of what is kept
    "seven numbers": ([1.0] * 7, "polygon is not eight finite numbers, skipped", None),
    "ten numbers": ([float(k) for k in range(10)], "polygon is not eight finite numbers, skipped", None),
    "not finite": ([math.nan, 1, 2, 3, 4, 5, 6, 7], "polygon is not eight finite numbers, skipped", None),
    "no list": ("poly", "polygon is not eight finite numbers, skipped", None),
    "a point": ([5.0, 5.0] * 4, "oriented box with a side of less than 2 pixels, skipped", None),
    "a line": ([0, 0, 10, 10, 20, 20, 30, 30], "oriented box with a side of less than 2 pixels, skipped", None),
    "outside": ([200, 200, 220, 200, 220, 220, 200, 220], "box outside the image, skipped", None),
    "crossing itself": (BOWTIE, "polygon crosses itself, corners put in order", (20, 20)),
    "clockwise": ([10, 10, 30, 10, 30, 20, 10, 20], None, (20, 10)),
    "the other way": ([10, 20, 30, 20, 30, 10, 10, 10], None, (20, 10)),
    "a triangle": ([10, 10, 30, 10, 30, 10, 10, 30], None, (800**0.5, 200**0.5)),
    "partly outside": (turned(0, 50, 20, 10, 0), None, (20, 10)),
}


@pytest.mark.parametrize("row", BAD)
def test_polygons_are_mended_or_named(row):
    polygon, problem, sides = BAD[row]
    noted = []
    found = read_oriented({"poly": polygon}, {"height": 100, "width": 150}, noted.append)
    assert noted == ([problem] if problem else [])
    assert (found is None) == (sides is None)
    if found:
        np.testing.assert_allclose(found["rbox"][2:4], sides, atol=1e-6)
        assert found["area"] == pytest.approx(np.prod(sides))


REFUSED = {  # content of a file of train, and what is said
    "not JSON": ("{", "00001.json is not JSON"),
    "no annotations": ('{"categories": []}', "00001.json is not SODA-A's: it has no list 'annotations'"),
    "a list": ("[]", "00001.json is not SODA-A's: it has no list 'annotations'"),
    "a class without a name": ('{"annotations": [], "categories": [{"id": 3}]}', "every one of 'categories' needs"),
    "a class of another name": (
        '{"annotations": [], "categories": [{"id": 3, "name": "boat"}]}',
        "give the category 3 different names",
    ),
}


@pytest.mark.parametrize("row", REFUSED)
def test_files_of_another_format_are_refused_in_one_line(raw, row, capsys):
    content, said = REFUSED[row]
    (raw / "Annotations" / "train" / "00001.json").write_text(content)
    assert call(raw) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert not list(raw.parent.glob("prepared/sodaa/1*"))


def test_a_folder_without_annotations_is_refused(tmp_path, capsys):
    assert call(tmp_path) == 2
    assert "holds no Annotations/SPLIT/NAME.json" in capsys.readouterr().err


def test_broken_images_are_named(raw):
    whole = (raw / "Images" / "00001.jpg").read_bytes()
    (raw / "Images" / "00001.jpg").write_bytes(whole[: len(whole) // 2])
    (raw / "Images" / "00002.jpg").unlink()
    assert call(raw) == 0
    assert open_split(raw, "train").account["problems"] == {
        "image broken or cut short, skipped": ["00001.jpg"],
        "image missing, skipped": ["00002.jpg"],
    }


# --- folders of DOTA -------------------------------------------------------------------------------------------------

HEADER = "imagesource:GoogleEarth\ngsd:0.146\n"


@pytest.fixture
def dota(tmp_path) -> Path:
    """A split with two objects, one of them difficult, and lines that cannot be read."""
    lines = {
        "train": [
            "10 10 40 10 40 20 10 20 ship 0",
            "50 50 80 50 80 70 50 70 large vehicle 1",
            "1 2 3 ship 0",
            "nonsense",
        ],
        "val": ["10 10 40 10 40 20 10 20 ship 0"],
    }
    folder = tmp_path / "DOTA"
    for split, each in lines.items():
        (folder / split / "images").mkdir(parents=True)
        (folder / split / "labelTxt").mkdir()
        cv2.imwrite(str(folder / split / "images" / "P1.png"), draw(100, 120))
        (folder / split / "labelTxt" / "P1.txt").write_text(HEADER + "\n".join(each))
    return folder


def test_label_files_of_dota(dota, capsys):
    for name in ("P3", "P2"):
        cv2.imwrite(str(dota / "train" / "images" / f"{name}.png"), draw(100, 120))
    assert call(dota, name="dota") == 0
    assert "train: 2 pictures without a label file are left out, such as P2" in capsys.readouterr().out
    opened = open_split(dota, "train", "dota")
    assert (opened.boxes, opened.classes, opened.category_ids) == (
        "oriented",
        ("large vehicle", "ship"),
        (1, 2),
    )
    objects = opened.source[0]["objects"]
    assert list(objects["label"]) == [1, 0] and list(objects["ignore"]) == [False, True]
    np.testing.assert_allclose(objects["rbox"][:, :4], [[25, 15, 30, 10], [65, 60, 30, 20]], rtol=1e-6)
    assert opened.account["annotations"] == 4 and opened.account["problems"] == {
        "polygon is not eight finite numbers, skipped": ["line 5 of the labels of P1.png"],
        "annotation of an unknown category, skipped": ["line 6 of the labels of P1.png"],
    }
    assert open_split(dota, "val", "dota").classes == opened.classes


@pytest.mark.parametrize(
    ("rest", "name", "difficult"),
    [("ship", "ship", False), ("small car 1", "small car", True), ("747 0.0", "747", False), ("747", "747", False)],
)
def test_a_line_of_dota(rest, name, difficult):
    assert parse(f"1 2 3 4 5 6 7 8 {rest}") == ([1, 2, 3, 4, 5, 6, 7, 8], name, difficult)


@pytest.mark.parametrize("name", ["P1.bmp", "P1.PNG", "P1.tiff"])
def test_two_pictures_of_one_label_file_are_refused(raw, dota, name, capsys):
    for source, folder, kind in ((dota, dota / "val" / "images", "dota"), (raw, raw / "Images", "sodaa")):
        name = name.replace("P1", "00001") if kind == "sodaa" else name
        cv2.imwrite(str(folder / name.lower()), draw(100, 120))
        (folder / name.lower()).rename(folder / name)
        assert call(source, name=kind) == 2
        error = capsys.readouterr().err
        assert name in error and "share the label file" in error and error.count("\n") == 1


CORNERS_OF = [
    f"{10 + n} {10 + n / 2} {40 + n} {10 + n / 2} {40 + n} {20 + n / 3:.1f} {10 + n} {20 + n / 3:.1f}"
    for n in range(24)
]
ORDERS = {  # lines, and whether the class stands before the corners
    "a class": ([f"0 {corners}" for corners in CORNERS_OF], True),
    "classes and difficulties": ([f"{n % 3} {corners} {n % 2}" for n, corners in enumerate(CORNERS_OF)], True),
    "some in the right order": (
        [f"1 {each}" for each in CORNERS_OF[:18]] + [f"{each} 1" for each in CORNERS_OF[18:]],
        True,
    ),
    "classes of numbers": ([f"{corners} {n % 15} 0" for n, corners in enumerate(CORNERS_OF)], False),
    "classes of names": ([f"{corners} ship 0" for corners in CORNERS_OF], False),
    "few lines": ([f"0 {corners}" for corners in CORNERS_OF[:9]], False),
}


@pytest.mark.parametrize("row", ORDERS)
def test_classes_before_the_corners_are_refused(dota, row, capsys):
    lines, refused = ORDERS[row]
    (dota / "train" / "labelTxt" / "P1.txt").write_text("\n".join(lines))
    assert call(dota, name="dota") == (2 if refused else 0)
    assert ("give the class after the corners" in capsys.readouterr().err) == refused


def test_a_folder_of_another_layout_is_refused(tmp_path, capsys):
    assert call(tmp_path, name="dota") == 2
    assert "holds no SPLIT/labelTxt/NAME.txt" in capsys.readouterr().err


# --- COCO files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boxes", ["horizontal", "oriented"])
def test_coco_files_are_read_as_asked(tmp_path, boxes):
    folder = tmp_path / "own"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), draw(100, 120))
    entry = {"poly": turned(50, 50, 40, 10, 45), "bbox": [32, 32, 36, 36]}
    prepared.write(folder / "train.json", prepared.coco({"a.png": (100, 120)}, [entry]))
    assert call(folder, f"--boxes={boxes}", "--name=mine", name="coco") == 0
    opened = open_split(folder, "train", "mine")
    objects = opened.source[0]["objects"]
    assert opened.boxes == boxes and ("rbox" in objects) == (boxes == "oriented")
    if boxes == "oriented":
        np.testing.assert_allclose(objects["rbox"], [[50, 50, 40, 10, math.pi / 4]], rtol=1e-5)
    else:
        np.testing.assert_allclose(objects["bbox"], [[32, 32, 68, 68]])


def test_own_data_may_be_in_dotas_layout(dota, capsys):
    assert call(dota, "--name=mine", "--boxes=oriented", name="own") == 0
    assert open_split(dota, "train", "mine").boxes == "oriented"
    assert call(dota, "--name=other", name="own") == 2
    assert "has oriented boxes, as DOTA: add --boxes=oriented" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sodad", "yolo", "visdrone"])
def test_other_layouts_have_no_oriented_boxes(tmp_path, name, capsys):
    assert call(tmp_path, "--boxes=oriented", name=name) == 2
    assert "--boxes=oriented applies to COCO files only" in capsys.readouterr().err
