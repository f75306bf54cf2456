"""One data set is prepared by one process, with the splits that can be used."""

import json
import re
import sys
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from etils import epath

from cfinet_jax.preparation import __main__ as prepare
from cfinet_jax.runtime.lock import locked

CAR, BUS = {"id": 1, "name": "car"}, {"id": 2, "name": "bus"}


def content(name: str, *categories: dict) -> dict:
    image = {"id": 1, "file_name": f"{name}.png", "height": 20, "width": 30}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 8]}
    return {"images": [image], "annotations": [box], "categories": list(categories)}


@pytest.fixture
def folder(tmp_path) -> Path:
    """COCO files of three splits of a picture each."""
    for seed, split in enumerate(("train", "val", "test")):
        picture = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{split}.png"), picture)
        (tmp_path / f"{split}.json").write_text(json.dumps(content(split, CAR, BUS)))
    return tmp_path


def run(source: Path, *arguments: str) -> int:
    arguments = arguments or ("own", f"--source={source}", "--name=mine")
    with mock.patch.object(sys, "argv", ["prepare.py", *arguments, f"--data_dir={source}/prepared"]):
        return prepare.main()


UNUSABLE = {  # what stands in the file of a split, and what is said of it
    "half": (json.dumps(content("test", CAR, BUS))[:50], "is not JSON"),
    "empty": ("", "is not JSON"),
    "no COCO": ("[]", "no list 'images'"),
    "image missing": (json.dumps(content("none", CAR, BUS)), "no image of .* can be used"),
    "no class": (json.dumps(content("test")), "names no class"),
    "a class fewer": (json.dumps(content("test", CAR)), "only in 'train': 2: 'bus'.: make them agree"),
    "a class more": (json.dumps(content("test", CAR, BUS, {"id": 7, "name": "van"})), "only in 'test': 7: 'van'"),
    "another name": (json.dumps(content("test", CAR, {"id": 2, "name": "Bus"})), "2: 'bus'; only in 'test': 2: 'Bus'"),
    "images twice": (json.dumps(content("test", CAR, BUS) | {"images": content("test")["images"] * 2}), "to several"),
}


@pytest.mark.parametrize("row", UNUSABLE)
def test_a_test_split_that_cannot_be_used_is_left_out(folder, capsys, row):
    text, message = UNUSABLE[row]
    (folder / "test.json").write_text(text)
    assert run(folder) == 0
    assert re.search(f"The split 'test' cannot be used and is left out: .*{message}", capsys.readouterr().out)
    (account,) = folder.glob("prepared/mine/*/account.json")
    assert json.loads(account.read_text()).keys() == {"train", "val"}


@pytest.mark.parametrize("row", UNUSABLE)
def test_others_are_needed(folder, capsys, row):
    text, message = UNUSABLE[row]
    (folder / "val.json").write_text(text.replace("test.png", "val.png"))
    assert run(folder) == 2
    assert re.search(message.replace("'test'", "'val'"), capsys.readouterr().err)
    assert not list(folder.glob("prepared/mine/*"))


def test_a_test_split_alone_is_needed(folder, capsys):
    for split in ("train", "val"):
        (folder / f"{split}.json").unlink()
    assert run(folder) == 0
    (folder / "test.json").write_text("{")
    assert run(folder, "own", f"--source={folder}", "--name=again") == 2 and "is not JSON" in capsys.readouterr().err


def test_pictures_of_a_yolo_test_split_may_be_absent(folder, capsys):
    for split in ("train", "val", "test"):
        (folder / f"{split}.json").unlink()
        (folder / "images" / split).mkdir(parents=True)
        (folder / f"{split}.png").rename(folder / "images" / split / "a.png")
    (folder / "images/test/a.png").unlink()
    (folder / "labels/train").mkdir(parents=True)
    (folder / "labels/train/a.txt").write_text("0 .5 .5 .2 .2\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\ntest: images/test\nnames: [car]\n")
    assert run(folder) == 0
    assert "The split 'test' cannot be used and is left out: No pictures at" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["own", "scenes"])
def test_a_second_preparation_at_once_is_refused(folder, capsys, kind):
    arguments = ("own", f"--source={folder}", "--name=scenes") if kind == "own" else ("scenes",)
    unfinished = epath.Path(folder) / "prepared" / "scenes.unfinished"
    with locked(unfinished):
        assert run(folder, *arguments) == 2
        error = capsys.readouterr().err
        assert re.search(f"{unfinished} is in use .process .*wait for that preparation, or choose another --d", error)
        assert not list(folder.glob("prepared/scenes/*"))
    if kind == "own":
        assert run(folder, *arguments) == 0 and not unfinished.exists()


def test_a_refused_preparation_leaves_no_lock(folder):
    (folder / "train.json").write_text("{")
    assert run(folder) == 2 and not list(folder.glob("prepared/*.unfinished"))
