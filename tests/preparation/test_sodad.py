"""SODA-D: a tiny copy is prepared by the rules of its tool; preparation survives a kill and reports what it read."""

import errno
import itertools
import json
import os
import re
import shutil
import sys
from pathlib import Path
from unittest import mock

import cv2
import jax
import numpy as np
import pytest

from cfinet_jax.errors import UserError
from cfinet_jax.input import dataset
from cfinet_jax.input.batches import train_batches, windows_of
from cfinet_jax.preparation import sodad_windows
from configs import sodad
from tests import prepared
from tests.soda import IGNORE, IMAGES, draw, make, make_cut

TWICE = "image given twice, kept"  # those of one size are drawn alike


@pytest.fixture
def raw(tmp_path) -> Path:
    return make(tmp_path / "SODA-D")


def call(source: Path, *arguments: str) -> int:
    """Prepare the source beside it, showing what is said; return the status."""
    status, output, errors = prepared.call("sodad", source, *arguments)
    print(output, end="")
    print(errors, end="", file=sys.stderr)
    return status


def open_split(source: Path, split: str) -> dataset.Prepared:
    return prepared.open_split("sodad", source.parent / "prepared", split)


def cut(source: Path) -> list[bytes]:
    """The windows that an unfinished preparation has cut."""
    folder = source.parent / "prepared" / "sodad.unfinished"
    pile = (folder / "windows").read_bytes()
    places = [place for *_, place in map(json.loads, (folder / "checked.jsonl").read_text().splitlines()[1:]) if place]
    return [pile[start:end] for place in places for start, end in itertools.pairwise(place)]


def held(source: Path) -> dict[str, bytes]:
    """Return the windows of a prepared data set by their file names."""
    return {record["file_name"].decode(): record["image"] for record in open_split(source, "train_windows").source}


def plain_windows(name: str) -> list[tuple[tuple[int, int], list[tuple]]]:
    """The windows of an image of `train` by SODA's rules, box by box: corner (left, top) and what is in it."""
    (height, width), entries = IMAGES["train"][name]
    right, bottom = (max(int(entry[1 + k]) + int(entry[3 + k]) for entry in entries) + 5 for k in (0, 1))

    def starts(extent: int) -> list[int]:
        found, start = [], 0
        while start + 800 < extent:
            found.append(start)
            start += 650
        return [*found, max(extent - 800, 0)]

    result = []
    for left in starts(min(width, right)):
        for top in starts(min(height, bottom)):
            inside = []
            for category, x, y, w, h in entries:
                x1, y1, x2, y2 = max(x, left), max(y, top), min(x + w, left + 800), min(y + h, top + 800)
                if category != IGNORE and x1 < x2 and y1 < y2:
                    share = (x2 - x1) * (y2 - y1) / (w * h)
                    inside.append((category - 1, share <= 0.4, x1 - left, y1 - top, x2 - left, y2 - top))
            if inside:
                result.append(((left, top), inside))
    return result


@pytest.mark.parametrize("images", ["Images", "Images/{split}", "Images/Images"])
def test_images_are_referred_to_with_their_boxes(tmp_path, images):
    source = make(tmp_path / "SODA-D", images)
    assert call(source) == 0
    for split, expected in IMAGES.items():
        opened = open_split(source, split)
        records = {record["file_name"].decode(): record for record in opened.source}
        assert records.keys() == expected.keys()
        assert opened.account["problems"].keys() <= {"image that is also in 'train', kept", TWICE}  # drawn alike
        for name, (size, entries) in expected.items():
            record = records[name]
            assert record["path"].decode() == str(source / images.format(split=split) / name) and not record["image"]
            assert (record["height"], record["width"]) == size
            labels = [-1 if entry[0] == IGNORE else entry[0] - 1 for entry in entries]
            assert list(record["objects"]["label"]) == labels
            assert list(record["objects"]["ignore"]) == [label < 0 for label in labels]
            boxes = [(x, y, x + w, y + h) for _, x, y, w, h in entries]
            np.testing.assert_array_equal(np.reshape(record["objects"]["bbox"], (-1, 4)), np.reshape(boxes, (-1, 4)))
    assert open_split(source, "train").category_ids == tuple(range(1, 10))
    assert not list(tmp_path.rglob("windows"))


def test_windows_follow_the_rules(raw):
    assert call(raw, "--windows") == 0
    opened = open_split(raw, "train_windows")
    records = {record["file_name"].decode(): record for record in opened.source}
    assert sorted(record["image_id"] for record in records.values()) == list(range(1, len(records) + 1))
    expected = {
        f"{name.partition('.')[0]}_{number}.jpg": window
        for name in ("a.jpg", "small.front.jpg")
        for number, window in enumerate(plain_windows(name))
    }
    assert records.keys() == expected.keys() and len(records) == 7
    assert opened.largest_picture == (800, 800) and opened.most_objects == 4
    for name, ((left, top), inside) in expected.items():
        objects = records[name]["objects"]
        rows = zip(objects["label"], objects["ignore"], *np.transpose(objects["bbox"]), strict=True)
        np.testing.assert_allclose([[*row] for row in rows], inside, atol=1e-4)
        np.testing.assert_allclose(objects["area"], [(x2 - x1) * (y2 - y1) for *_, x1, y1, x2, y2 in inside], rtol=1e-5)
        position = [record["file_name"].decode() for record in opened.source].index(name)
        picture, *_ = dataset.picture(opened, position)
        assert picture.shape == (800, 800, 3)
        size, entries = IMAGES["train"]["small.front.jpg" if "small" in name else "a.jpg"]
        whole = np.zeros((2000, 2500, 3))  # black beyond the border
        whole[: size[0], : size[1]] = draw(*size)
        clean = whole.copy()
        for category in (True, False):
            for x, y, w, h in (entry[1:] for entry in entries if (entry[0] == IGNORE) is category):
                part = np.s_[int(y) : int(y + h), int(x) : int(x + w)]
                whole[part] = 0 if category else clean[part]
        error = np.abs(picture - whole[top : top + 800, left : left + 800])
        assert np.mean(error) < 1 and np.mean(error > 20) < 0.01


def test_windows_cut_while_reading_are_those_cut_beforehand(raw):
    """Pixels apart from JPEG, and the order of windows."""
    assert call(raw, "--windows") == 0
    settings = sodad.get_config().dataset
    settings.update(data_dir=str(raw.parent / "prepared"), max_objects=8, read_threads=1)
    read = []
    for split in ("train", "train_windows"):
        opened = dataset.open_dataset(settings, split)
        windows = windows_of(opened, settings, training=True)
        epoch = itertools.islice(train_batches(opened, windows, settings, 0, 1), len(windows.owners))
        rows = [jax.tree.map(lambda leaf: leaf[0], batch) for batch in epoch]
        read.append(sorted(rows, key=lambda row: row.ground_truth.boxes.tolist()))
    assert len(read[0]) == len(read[1]) > 3
    for now, before in zip(*read, strict=True):
        jax.tree.map(np.testing.assert_array_equal, now.ground_truth, before.ground_truth)
        height, width = now.sizes.astype(int)  # what of a window is picture; cut beforehand it is black beyond
        difference = np.abs(now.images[:height, :width].astype(int) - before.images[:height, :width])
        assert np.percentile(difference, 99) < 20 and difference.mean() < 2


def test_the_report(raw, capsys):
    (raw / "Images" / "stray.jpg").write_bytes(b"")
    assert call(raw, "--windows") == 0
    said = capsys.readouterr().out
    for line in (
        "train: 4 images, 6 objects, 3 regions, 7 windows of 800 x 800",
        "val: 2 images, 1 objects, 0 regions, 6 windows of 800 x 800",
        "traffic-sign           0         0         0         0         1         1",  # of test
        "gS       50% #########################",
        "images: 7, where the whole of SODA-D has 24,828",
        "windows of test: 1, where the whole of SODA-D has 161,579",
        "1 x image in no annotation file, skipped: stray.jpg",
        "train_windows: 7 of 7 images and",
    ):
        assert line in said, line


def test_a_killed_preparation_resumes(raw, tmp_path, capsys):
    whole = make(tmp_path / "whole" / "SODA-D")
    assert call(whole, "--windows") == 0
    data = [f"--source={raw}", f"--data_dir={tmp_path / 'prepared'}"]
    prepared.kill("cv2.imencode", 6, "sodad", *data, "--windows")
    assert len(cut(raw)) == 6  # of the first picture, and none of the second
    assert call(raw, "--windows") == 0
    assert "1 of 2 images are cut already" in capsys.readouterr().out
    assert held(raw) == held(whole) and len(held(raw)) == 7
    assert not [*tmp_path.rglob("*.unfinished"), *tmp_path.rglob("incomplete.*")]


def test_a_picture_is_decoded_once_to_check_and_cut_it(raw, monkeypatch):
    decoding = mock.Mock(wraps=cv2.imdecode)
    monkeypatch.setattr(cv2, "imdecode", decoding)
    encode, encoded = sodad_windows.encode, []

    def stop_at_the_last(window: np.ndarray) -> bytes:
        if len(encoded) == 6:
            raise RuntimeError
        encoded.append(window)
        return encode(window)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr("cfinet_jax.preparation.checked_pictures.MOST_THREADS", 1)
        patched.setattr(sodad_windows, "encode", stop_at_the_last)
        call(raw, "--windows")
    assert decoding.call_count == 4  # all of train, whose last picture has the last window
    assert call(raw, "--windows") == 0
    assert decoding.call_count == 4 + 1 + 2 + 1  # of train that picture alone, val, test
    assert len(open_split(raw, "train_windows")) == 7


def test_a_full_disk_keeps_what_is_cut(raw, tmp_path, monkeypatch, capsys):
    """It is full in the middle of a window of the second picture."""
    opened = sodad_windows.Path.open

    def full(path, mode, **options):
        file = opened(path, mode, **options)
        if mode == "ab" and path.exists() and path.stat().st_size:
            file.write(b"the first bytes")
            file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return file

    monkeypatch.setattr("cfinet_jax.preparation.checked_pictures.MOST_THREADS", 1)
    with monkeypatch.context() as patched:
        patched.setattr(sodad_windows.Path, "open", full)
        assert call(raw, "--windows") == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "sodad.unfinished/windows cannot be written (No space left on device): free some space, then rerun" in error
    kept = cut(raw)
    assert len(kept) == 6 and not list(tmp_path.glob("prepared/sodad/1*"))
    assert call(raw, "--windows") == 0
    assert "1 of 2 images are cut already" in capsys.readouterr().out
    assert set(kept) <= set(held(raw).values()) and len(held(raw)) == 7
    assert all(cv2.imdecode(np.frombuffer(image, np.uint8), 1) is not None for image in held(raw).values())


def test_a_file_of_two_images_is_refused(raw, capsys):
    content = json.loads((raw / "Annotations" / "train.json").read_text())
    first, second = (next(image for image in content["images"] if image["id"] == number) for number in (11, 14))
    second.update(file_name=first["file_name"], height=first["height"], width=first["width"])
    (raw / "Annotations" / "train.json").write_text(json.dumps(content))
    assert call(raw, "--windows") == 2
    assert "Images/a.jpg for 2 images: make them one" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [np.uint16, np.float32, np.float64])
def test_windows_of_more_than_8_bits_are_refused(raw, kind, capsys):
    path = raw / "Images" / "a.jpg"
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(kind)
    path.write_bytes(cv2.imencode(".tiff", picture)[1].tobytes())
    assert call(raw, "--windows") == 2
    assert re.search("pictures of more than 8 bits .*: leave out --windows\n$", capsys.readouterr().err)
    assert call(raw) == 0


def test_windows_of_other_annotations_are_not_mixed(raw, monkeypatch, capsys):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(
            "cfinet_jax.preparation.own_builder.check_same_categories", mock.Mock(side_effect=KeyboardInterrupt)
        )
        call(raw, "--windows")
    content = json.loads((raw / "Annotations" / "train.json").read_text())
    content["annotations"].pop()
    (raw / "Annotations" / "train.json").write_text(json.dumps(content))
    assert call(raw, "--windows") == 2
    assert "prepared/sodad.unfinished/windows holds windows of other annotations: delete " in capsys.readouterr().err


@pytest.mark.parametrize("images", [True, False])
def test_windows_cut_by_the_authors_tool_are_used_as_they_are(tmp_path, images, capsys):
    source = tmp_path / "SODA-D"
    cut = make_cut(source / "divData") if images else make_cut(source)
    if images:
        make(source / "rawData")
    assert call(source) == 0
    said = capsys.readouterr().out
    assert f"Skipped {cut}/Annotations/val.json: it describes windows" in said
    (record,) = open_split(source, "train_windows").source
    assert record["path"].decode() == str(cut / "Images" / "train" / "a_0.jpg")
    assert list(record["objects"]["ignore"]) == [False, True]
    assert not list(tmp_path.rglob("windows"))
    if images:
        assert len(open_split(source, "val")) == 2
    else:
        with pytest.raises(UserError, match="no split 'val': choose one of train_windows"):
            open_split(source, "val")


def test_broken_images_and_missing_files_are_named_and_skipped(raw, capsys):
    for name in ("a.jpg", "b.jpg"):
        whole = (raw / "Images" / name).read_bytes()
        (raw / "Images" / name).write_bytes(whole[: len(whole) // 2])
    (raw / "Images" / "region.jpg").unlink()
    (raw / "Annotations" / "test.json").unlink()
    assert call(raw, "--windows") == 0
    assert open_split(raw, "train").account["problems"] == {
        "image broken or cut short, skipped": ["a.jpg"],
        "image missing, skipped": ["region.jpg"],
        TWICE: ["small.front.jpg"],
    }
    assert [record["file_name"] for record in open_split(raw, "train_windows").source] == [b"small_0.jpg"]
    assert "1 x image in no annotation file, skipped: c.jpg" in capsys.readouterr().out


def broken(raw: Path, change: str) -> Path:
    match change:
        case "no train":
            (raw / "Annotations" / "train.json").unlink()
        case "no annotations":
            shutil.rmtree(raw / "Annotations")
        case "windows to score":
            shutil.rmtree(raw)
            make_cut(raw, ("val", "test"))
        case "twice":
            make(raw / "rawData")
        case "in a file":
            (raw.parent / "prepared").write_text("precious")
    return raw


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("no train", "--windows cuts the images of Annotations/train.json, which "),
        ("no annotations", "holds no Annotations/SPLIT.json of whole images (SPLIT is train, val, test)"),
        ("windows to score", "holds no Annotations/SPLIT.json of whole images"),
        ("twice", "rawData/Annotations/train.json describe 'train': move one of them elsewhere"),
        ("in a file", "cannot be written"),
    ],
)
def test_unusable_folders_are_refused_in_one_line(raw, change, said, capsys):
    arguments = [] if change == "windows to score" else ["--windows"]
    assert call(broken(raw, change), *arguments) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and said in error
    assert not list(raw.parent.glob("prepared/sodad/1*"))
