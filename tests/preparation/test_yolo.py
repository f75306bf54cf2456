"""YOLO folders: every way of naming images and classes; broken entries are counted, named or refused."""

import os
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cfinet_jax.errors import UserError
from cfinet_jax.input.dataset import open_dataset
from cfinet_jax.input.pictures import ORIENTATION
from cfinet_jax.preparation import label_files, yolo
from cfinet_jax.preparation.journal import Journal
from cfinet_jax.preparation.yolo import label_file, read_yolo
from tests import prepared

HEIGHT, WIDTH = 40, 80
NAMES = "names: [plane, ship]\n"
SPLITS = "train: images/train\nval: images/val\n"


BOX = {"train/a": "0 0.5 0.5 0.1 0.1"}


def make(folder: Path, description: str = SPLITS + NAMES, labels: dict[str, str] = BOX) -> Path:
    """A folder with the pictures a.png and b.jpg to train on and c.png; labels by name."""
    for name in ("train/a.png", "train/b.jpg", "val/c.png"):
        (folder / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        prepared.draw(folder / "images" / name, (HEIGHT, WIDTH))
    for name, text in labels.items():
        (folder / "labels" / f"{name}.txt").write_text(text)
    (folder / "data.yaml").write_text(description)
    return folder


def read(folder: Path) -> dict:
    with Journal(epath.Path(folder) / "unfinished") as journal:
        return read_yolo(epath.Path(folder), journal)


def test_boxes_and_classes(tmp_path):
    labels = {"train/a": "1 0.5 0.5 0.25 0.5\n\n0 0.1 0.5 0.1 0.25\n", "train/b": ""}  # and no file for c
    splits = read(make(tmp_path, labels=labels))
    assert splits.keys() == {"train", "val"}
    assert splits["train"].categories == splits["val"].categories == {0: "plane", 1: "ship"}
    first, second = splits["train"].records
    assert (first["objects"]["label"], first["objects"]["id"]) == ([1, 0], [1, 2])
    np.testing.assert_allclose(first["objects"]["bbox"], [(30, 10, 50, 30), (4, 15, 12, 25)])
    assert [first["file_name"], second["file_name"]] == ["images/train/a.png", "images/train/b.jpg"]
    assert Path(first["path"]) == tmp_path / "images/train/a.png"
    assert second["objects"]["bbox"] == splits["val"].records[0]["objects"]["bbox"] == []
    account = splits["train"].account
    assert (account["images_kept"], account["annotations_kept"], account["problems"]) == (2, 2, {})
    assert (account["largest_picture"], account["most_objects"]) == ([HEIGHT, WIDTH], 2)


@pytest.mark.parametrize(
    "description",
    [
        SPLITS + "names:\n  0: plane\n  1: ship",
        "path: .\n" + SPLITS + NAMES,
        "path: images\ntrain: train\nval: val\n" + NAMES,
        "train: ../images/train\nval: ../images/val\n" + NAMES,  # as Roboflow writes
        "train: [images/train, images/train]\nval: [images/val]\n" + NAMES,
        "train: train.txt\nval: images/val\ntest:\nnc: 2\n" + NAMES,
        "train: ../images/train\nval: ../images/val\ntest: ../test/images\n" + NAMES,  # which need not be there
        SPLITS + "test: [images/test]\n" + NAMES,
        SPLITS + "test: {a: b}\n" + NAMES,
        SPLITS + "test: [[images/val], 3]\n" + NAMES,
        "path: own\n" + SPLITS + NAMES,  # as Ultralytics writes, beside whose other data sets the folder lies
        "path: /nowhere\n" + SPLITS + NAMES,
    ],
)
def test_images_and_classes_may_be_named_in_many_ways(tmp_path, description):
    (tmp_path / "train.txt").write_text("./images/train/a.png\nimages/train/b.jpg\n\n")
    splits = read(make(tmp_path, description, {"train/a": "1 0.5 0.5 0.25 0.5"}))
    assert {split: len(content.records) for split, content in splits.items()} == {"train": 2, "val": 1}
    assert splits["train"].categories == {0: "plane", 1: "ship"}
    assert splits["train"].account["annotations_kept"] == 1


def test_indices_may_have_gaps_and_names_stay_as_they_are_written(tmp_path):
    labels = {"train/a": "7 0.5 0.5 0.25 0.5\n0 0.5 0.5 0.25 0.5"}
    train = read(make(tmp_path, SPLITS + "names: {7: no, 0: 12}", labels))["train"]
    assert train.categories == {0: "12", 7: "no"} and train.records[0]["objects"]["label"] == [1, 0]


@pytest.mark.parametrize(
    ("polygon", "box"),
    [
        ("0 0.25 0.5 0.5 0.25 0.75 0.75", (20, 10, 60, 30)),
        ("0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75", (20, 10, 60, 30)),
        ("0 0.5 0.5 0.5 0.5", (20, 10, 60, 30)),
        ("0 0.25 0.5 0.5 0.125 0.75 1", (20, 5, 60, 40)),  # its x and y differ
    ],
)
def test_a_polygon_becomes_the_box_around_it(tmp_path, polygon, box):
    train = read(make(tmp_path, labels={"train/a": polygon}))["train"]
    np.testing.assert_allclose(train.records[0]["objects"]["bbox"], [box])


def test_shares_are_of_the_upright_picture(tmp_path):
    make(tmp_path, labels={"train/b": "0 0.5 0.5 1 0.5"})
    tags = Image.Exif()
    tags[ORIENTATION] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images/train/b.jpg", exif=tags)
    record = read(tmp_path)["train"].records[1]
    assert (record["height"], record["width"]) == (WIDTH, HEIGHT)
    np.testing.assert_allclose(record["objects"]["bbox"], [(0, 20, HEIGHT, 60)])


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("/d/images/a.jpg", "/d/labels/a.txt"),
        ("/images/d/images/train/a.b.png", "/images/d/labels/train/a.b.txt"),
        ("/d/pictures/a.jpg", "/d/pictures/a.txt"),
    ],
)
def test_the_last_folder_images_of_a_path_becomes_labels(image, labels):
    assert label_file(epath.Path(image)) == epath.Path(labels)


LINES = [  # a line and what is said of it
    ("2 0.5 0.5 0.1 0.1", "annotation of an unknown category, skipped"),
    ("-1 0.5 0.5 0.1 0.1", "annotation of an unknown category, skipped"),
    ("0.5 0.5 0.5 0.1 0.1", "annotation of an unknown category, skipped"),
    ("ship 0.5 0.5 0.1 0.1", "annotation of an unknown category, skipped"),
    ("0 nan 0.5 0.1 0.1", "box is not four finite numbers, skipped"),
    ("0 0.5 inf 0.1 0.1", "box is not four finite numbers, skipped"),
    ("0 0.5 1e400 0.1 0.1", "box is not four finite numbers, skipped"),
    ("0 0.5 0.5 0.1", "box is not four finite numbers, skipped"),
    ("0 0.5 0.5 0.1 0.1 0.9", "box is not four finite numbers, skipped"),
    ("0 0.1 0.1 0.2 0.2 nan 0.3", "box is not four finite numbers, skipped"),
    ("0 0,5 0,5 0,1 0,1", "box is not four finite numbers, skipped"),
    ("0", "box is not four finite numbers, skipped"),
    ("0 0.5 0.5 0 0.1", "box without width or height, skipped"),
    ("0 0.5 0.5 -0.1 0.1", "box without width or height, skipped"),
    ("0 0.1 0.1 0.1 0.2 0.1 0.3", "box without width or height, skipped"),
    ("0 40 20 10 10", "box outside the image, skipped"),  # pixels
    ("0 0.99 0.5 0.1 0.1", "box partly outside the image, clipped"),
]


@pytest.mark.parametrize(("line", "problem"), LINES)
def test_broken_lines_are_counted_and_named(tmp_path, line, problem):
    train = read(make(tmp_path, labels={"train/a": f"0 0.5 0.5 0.1 0.1\n{line}\n"}))["train"]
    assert train.account["problems"] == {problem: ["line 2 of the labels of images/train/a.png"]}
    assert (train.account["annotations"], train.account["annotations_kept"]) == (2, 1 + ("clipped" in problem))


def test_broken_and_missing_images_are_named(tmp_path):
    make(tmp_path, "train: list.txt\nval: images/val\n" + NAMES, {"train/a": "0 0.5 0.5 0.1 0.1"})
    (tmp_path / "list.txt").write_text(f"images/train/a.png\nimages/train/b.jpg\nnone.png\n{'x' * 300}.png\n")
    (tmp_path / "images/train/b.jpg").write_bytes(b"")
    account = read(tmp_path)["train"].account
    assert (account["images"], account["images_kept"]) == (4, 1)
    problems = account["problems"]
    assert problems["image missing, skipped"] == ["none.png", f"{'x' * 300}.png"]
    assert problems["image broken or cut short, skipped"] == ["images/train/b.jpg"]


FOLDERS = {  # data.yaml, or None, and a part of the refusal
    "missing": (None, "cannot be read"),
    "not YAML": ("a: [", "is not YAML"),
    "not text": (b"\x89PNG\x00\x01", "is not YAML"),
    "nested without end": ("[" * 5000, "is not YAML"),
    "not a dictionary": ("- train\n- val", "needs the keys"),
    "empty": ("", "needs the keys"),
    "without names": (SPLITS, "names no classes"),
    "a number of names": (SPLITS + "names: 2", "names no classes"),
    "empty names": (SPLITS + "names: []", "names no classes"),
    "names by text": (SPLITS + "names: {a: plane}", "names the class 'a': 'plane'"),
    "names of names": (SPLITS + "names: [[plane]]", "must be an index and a name"),
    "all to ignore": (SPLITS + "names: [ignore]", "names no class"),
    "without images": (NAMES, "names no images"),
    "folder missing": ("train: images/trian\n" + NAMES, "is no folder and no .txt"),
    "test alone missing": ("test: test\n" + NAMES, "is no folder and no .txt"),
    "path missing": ("path: /nowhere\ntrain: no\n" + NAMES, "is no folder and no .txt"),
    "nothing to learn": ("train: images/val\n" + NAMES, "looked for in TMP/labels/val/c.txt and so on"),
    "path of another type": ("path: [a]\n" + SPLITS + NAMES, "'path' must be text"),
    "images of another type": ("train: [{a: b}]\n" + NAMES, "must be a folder, a list of folders or a .txt"),
    "a picture as list": ("train: images/train/a.png\n" + NAMES, "is no folder and no .txt"),
    "folder without pictures": ("train: labels\n" + NAMES, "No pictures at"),
    "list of nothing": ("train: list.txt\n" + NAMES, "no image of"),
    "list of what is missing": ("train: lost.txt\n" + NAMES, "1 x image missing, skipped: none.png"),
    "impossible name": ('train: "a\\0b"\n' + NAMES, "is no folder and no .txt"),
    "an index twice": (SPLITS + "names: {0: plane, 1: ship, 1: truck}", "the key 1 is given twice"),
    "an index twice, line by line": (SPLITS + "names:\n  0: plane\n  0: ship\n", "the key 0 is given twice"),
    "a split twice": (SPLITS + NAMES + "train: images/val\n", "the key train is given twice"),
    "a class more than named": (SPLITS + NAMES + "nc: 5", "but 'nc' is '5': correct one of them"),
    "a class fewer than named": (SPLITS + "names: [a, b]\nnc: 1", "names 2 classes, but 'nc' is '1'"),
    "a count of another type": (SPLITS + NAMES + "nc: [1]", "but 'nc' is"),
    "key points": (SPLITS + NAMES + "kpt_shape: [17, 3]", "only boxes and polygons"),
}


def prepare_yolo(folder: Path) -> tuple[int, str]:
    """Prepare a YOLO folder; return status and errors."""
    return prepared.call("yolo", folder, "--name=own", to=folder / "prepared")[::2]


@pytest.mark.parametrize("row", FOLDERS)
def test_unusable_folders_are_refused_in_one_line(tmp_path, row):
    description, fragment = FOLDERS[row]
    make(tmp_path)
    (tmp_path / "list.txt").write_text("\n")
    (tmp_path / "lost.txt").write_text("none.png\n")
    (tmp_path / "data.yaml").unlink()
    if description is not None:
        (tmp_path / "data.yaml").write_bytes(description if isinstance(description, bytes) else description.encode())
    status, errors = prepare_yolo(tmp_path)
    fragment = fragment.replace("TMP", str(tmp_path))
    assert status == 2 and len(errors.splitlines()) == 1 and fragment in errors
    assert not list(tmp_path.glob("prepared/own/*"))


def test_missing_folders_of_data_yaml_are_reported(tmp_path, capsys):
    read(make(tmp_path, "path: own\n" + SPLITS + "test: test/images\n" + NAMES))
    output = capsys.readouterr().out
    assert f"'path' of data.yaml, own, is not a folder in {tmp_path}: using {tmp_path}" in output
    assert re.search(f"'test' cannot be used .*{tmp_path}/test/images is no folder and no .txt", output)


@pytest.mark.parametrize("key", ["valid: images/val", "validation: [images/val]", "<<: {val: images/val}", "dev: x"])
def test_keys_that_are_no_splits_are_told(tmp_path, capsys, key):
    assert read(make(tmp_path, f"train: images/train\n{key}\n{NAMES}")).keys() == {"train"}
    assert re.search(f"skipped .*{key.split(':')[0]}.*, since the only splits are train, val", capsys.readouterr().out)


SHARED = {  # a picture beside images/train/a.png, and what stands in the label file of both
    "a mask": ("a.jpg", "0 0.5 0.5 0.1 0.1", True),
    "another case": ("a.PNG", "0 0.5 0.5 0.1 0.1", True),
    "without objects": ("a.tif", "", True),
    "no label file": ("b.png", None, False),
    "another name": ("a_mask.png", None, False),
}


@pytest.mark.parametrize("row", SHARED)
def test_pictures_that_share_a_label_file_are_refused(tmp_path, row):
    name, labels, refused = SHARED[row]
    make(tmp_path, labels=BOX if labels is None else {"train/a": labels, "train/b": "0 0.5 0.5 0.1 0.1"})
    if labels is None:
        (tmp_path / "labels/train/b.txt").unlink(missing_ok=True)
    (tmp_path / "images/train" / name).write_bytes((tmp_path / "images/train/b.jpg").read_bytes())
    if refused:
        with pytest.raises(UserError, match=f"a.png and .*{name}|{name} and .*a.png") as error:
            read(tmp_path)
        assert "share the label file" in str(error.value) and "\n" not in str(error.value)
    else:
        assert read(tmp_path)["train"].account["images"] == 3


TAILS = {  # what follows `class cx cy w h` in lines, and whether it can be no corner
    "zeros": (["0 0"] * 12, True),
    "truncated and occluded": (["0 1", "1 0", "0 0", "0 2"] * 3, True),
    "ones as floats": (["1.0 1.0"] * 10, True),
    "triangles": ([f"0.{70 + n} 0.{90 - n}" for n in range(12)], False),
    "one triangle": (["0 0"] * 11 + ["0.6 0.9"], False),
    "one box": (["0 0"] * 11 + [""], False),
    "few": (["0 0"] * 9, False),
}


@pytest.mark.parametrize("row", TAILS)
def test_boxes_with_two_more_numbers_are_no_triangles(tmp_path, row):
    tails, refused = TAILS[row]
    lines = "\n".join(f"0 {0.3 + n / 50} 0.4 0.2 0.3 {tail}" for n, tail in enumerate(tails))
    make(tmp_path, labels={"train/a": lines, "train/b": ""})
    if refused:
        with pytest.raises(UserError, match=r"labels/train/a.txt and so on is a box and two more numbers"):
            read(tmp_path)
    else:
        assert read(tmp_path)["train"].account["annotations_kept"] == len(tails)


def test_a_test_split_without_pictures_is_left_out(tmp_path, capsys):
    (tmp_path / "images/test").mkdir(parents=True)
    splits = read(make(tmp_path, SPLITS + "test: images/test\n" + NAMES))
    assert splits.keys() == {"train", "val"}
    assert "The split 'test' cannot be used and is left out: No pictures at" in capsys.readouterr().out


def test_every_split_is_found_before_a_picture_is_read(tmp_path):
    make(tmp_path, "train: images/train\nval: images/none\n" + NAMES)
    with (
        mock.patch.object(label_files, "upright_size") as read_size,
        pytest.raises(UserError, match="'val' of .* is no"),
    ):
        read(tmp_path)
    read_size.assert_not_called()


@pytest.mark.parametrize(("module", "name"), [(yolo, "find_pictures"), (label_files, "upright_size")])
def test_unreadable_folders_are_named(tmp_path, module, name):
    make(tmp_path)
    with mock.patch.object(module, name, side_effect=PermissionError(13, "Permission denied", f"{tmp_path}/images")):
        status, errors = prepare_yolo(tmp_path)
    assert status == 2 and errors == f"{tmp_path}/images cannot be read (Permission denied): make it readable\n"


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_an_unreadable_label_file_is_refused_and_not_taken_as_missing(error):
    with (
        mock.patch("cfinet_jax.runtime.files.read_bytes", side_effect=error),
        pytest.raises(UserError, match=f"label file a.txt cannot be read .{error.strerror}.: make it readable"),
    ):
        label_files.read_lines(epath.Path("a.txt"))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


CHANGES = {  # of a prepared folder: whether it matters
    "label changed": (lambda folder: write(folder / "labels/train/a.txt", "1 0.5 0.5 0.1 0.25"), True),
    "label touched": (lambda folder: os.utime(folder / "labels/train/a.txt", (2e9, 2e9)), False),
    "label added": (lambda folder: write(folder / "labels/train/b.txt", ""), True),
    "first label of a split": (lambda folder: write(folder / "labels/val/c.txt", "0 0.5 0.5 0.1 0.1"), True),
    "label removed": (lambda folder: (folder / "labels/train/a.txt").unlink(), True),
    "classes renamed": (lambda folder: write(folder / "data.yaml", "train: list.txt\nnames: [a, b]"), True),
    "list changed": (lambda folder: write(folder / "list.txt", "images/train/a.png"), True),
    "another file": (lambda folder: write(folder / "labels/train.cache", "x"), False),
}


@pytest.mark.parametrize("row", CHANGES)
def test_data_prepared_from_an_earlier_state_are_refused(tmp_path, row):
    change, matters = CHANGES[row]
    make(tmp_path, "train: list.txt\nval: images/val\n" + NAMES)
    write(tmp_path / "list.txt", "images/train/a.png\nimages/train/b.jpg\n")
    assert prepare_yolo(tmp_path)[0] == 0
    settings = prepared.settings("own", tmp_path / "prepared", tmp_path)
    open_dataset(settings, "train")
    change(tmp_path)
    if matters:
        with pytest.raises(UserError, match=f"was prepared from an earlier state of {tmp_path}: delete this folder to"):
            open_dataset(settings, "train")
        settings = prepared.settings("own", tmp_path / "prepared")
    assert len(open_dataset(settings, "train")) == 2


def test_strange_files_among_the_labels_do_not_matter(tmp_path):
    make(tmp_path)
    os.mkfifo(tmp_path / "labels/train/pipe.txt")
    (tmp_path / "labels/train/folder.txt").mkdir()
    (tmp_path / "labels/train/link.txt").symlink_to("link.txt")
    write(tmp_path / "labels/train" / os.fsdecode(b"caf\xe9.txt"), "0 0.5 0.5 0.1 0.1")
    assert prepare_yolo(tmp_path) == (0, "")
    assert len(open_dataset(prepared.settings("own", tmp_path / "prepared", tmp_path), "train")) == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("yolo"), labels={"train/b": "0 0.5 0.5 0.1 0.1"})


words = st.one_of(st.floats().map(str), st.integers().map(str), st.text(max_size=8))
lines = st.lists(st.lists(words, max_size=9).map(" ".join), max_size=5).map("\n".join)


@given(content=st.one_of(st.binary(max_size=200), lines.map(lambda text: text.encode(errors="surrogatepass"))))
def test_any_content_of_a_label_file_is_counted(folder, content):
    (folder / "data.yaml").write_text(SPLITS + NAMES)
    (folder / "labels/train/a.txt").write_bytes(content)
    train = read(folder)["train"]
    clipped = len(train.account["problems"].get("box partly outside the image, clipped", ()))
    named = sum(map(len, train.account["problems"].values())) - clipped
    assert train.account["annotations"] - named == train.account["annotations_kept"]
    boxes = np.array([box for record in train.records for box in record["objects"]["bbox"]]).reshape(-1, 4)
    assert np.all(boxes >= 0) and np.all(boxes[:, 2:] <= (WIDTH, HEIGHT)) and np.all(boxes[:, 2:] > boxes[:, :2])


characters = st.characters(exclude_characters="/.")  # no folder outside is to be searched
values = st.one_of(
    st.text(characters, max_size=20), st.sampled_from(["images/train", "../images/val", ".", "list.txt"])
)
entries = st.one_of(values, st.lists(values, max_size=3), st.dictionaries(values, values, max_size=2))
descriptions = st.dictionaries(st.sampled_from(["path", "train", "val", "test", "names", "nc"]), entries)


@given(
    content=st.one_of(st.binary(max_size=200), st.text().map(str.encode), descriptions.map(lambda x: repr(x).encode()))
)
def test_any_data_yaml_is_read_or_refused_in_one_line(folder, content):
    (folder / "data.yaml").write_bytes(content)
    (folder / "list.txt").write_text("images/train/a.png")
    try:
        read(folder)
    except UserError as error:
        assert len(str(error).splitlines()) == 1


@given(content=st.one_of(st.binary(max_size=200), st.text().map(str.encode)))
def test_any_list_is_read_or_refused_in_one_line(folder, content):
    (folder / "data.yaml").write_text("train: list.txt\n" + NAMES)
    (folder / "list.txt").write_bytes(content)
    try:
        read(folder)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
