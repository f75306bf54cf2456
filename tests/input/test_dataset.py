"""Opening prepared data, sizes left open, grey ranges and errors."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax import restore
from cfinet_jax.build import discover, discover_sizes
from cfinet_jax.errors import UserError
from cfinet_jax.input import dataset, origin
from cfinet_jax.input.dataset import Prepared, coco_ground_truth, open_dataset, open_splits, prepared_folder
from cfinet_jax.input.dataset import picture as dataset_picture
from cfinet_jax.input.sizes import room_for, with_sizes
from cfinet_jax.preparation.builders import ensure_prepared
from cfinet_jax.preparation.scenes.render import render_scene
from cfinet_jax.preparation.scenes.scenes_builder import Builder
from cfinet_jax.preparation.scenes.templates import CLASSES
from cfinet_jax.runtime.paths import absolute
from cfinet_jax.runtime.settings import write_settings
from configs import coco
from tests import prepared as prepared_data

IMAGES = 11


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> ConfigDict:
    folder = tmp_path_factory.mktemp("prepared")
    Builder(counts={"train": IMAGES, "val": 3}, data_dir=folder).download_and_prepare(
        file_format=tfds.core.FileFormat.ARRAY_RECORD
    )
    return prepared_data.settings("scenes", folder)


@pytest.fixture(scope="module")
def prepared(settings) -> Prepared:
    return open_dataset(settings, "train")


def test_ground_truth_in_coco_format(prepared):
    truth = coco_ground_truth(prepared)
    assert [category["name"] for category in truth["categories"]] == [*CLASSES, "ignore"]
    assert [entry["id"] for entry in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    scene = render_scene("train", 0)
    boxes = [entry["bbox"] for entry in truth["annotations"] if entry["image_id"] == 1 and not entry["ignore"]]
    low, extent = np.split(np.array(boxes), 2, axis=1)
    np.testing.assert_allclose(np.hstack([low, low + extent]), scene.boxes[~scene.ignore])
    regions = sum(int(render_scene("train", index).ignore.sum()) for index in range(IMAGES))
    assert regions > 0
    assert sum(entry["category_id"] == len(CLASSES) + 1 for entry in truth["annotations"]) == regions


@pytest.mark.parametrize(
    "leftover", ["incomplete.AB12_1.0.0", "1.0.0_old", "1.0", "copy of 1.0.0", "v1.0.0", "01.0.0", "1.00.0", "1.0.00"]
)
def test_leftovers_beside_a_version_are_skipped(tmp_path, leftover):
    settings = prepared_data.settings("mine", tmp_path)
    for version in ("1.0.0", leftover):
        (tmp_path / "mine" / version).mkdir(parents=True)
        (tmp_path / "mine" / version / "dataset_info.json").write_text("{}")
    assert prepared_folder(settings) == tmp_path / "mine" / "1.0.0"


def test_data_that_are_not_prepared_are_refused_with_the_commands_that_help(settings, tmp_path):
    empty = prepared_data.settings("scenes", tmp_path)
    with pytest.raises(UserError, match="name the folder.*--config.dataset.source=FOLDER.*python data/prepare.py"):
        open_dataset(empty, "train")
    with pytest.raises(UserError, match="no split 'test': choose one of train, val"):
        open_dataset(settings, "test")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two COCO files with a picture each, of 40 x 60 and of 33 x 90 pixels; the first has two boxes."""
    for split, size, boxes in (("train", (40, 60), 2), ("val", (33, 90), 0)):
        prepared_data.draw(tmp_path / f"{split}.png", size)
        entries = [{"bbox": [3 + n, 4, 5, 6]} for n in range(boxes)]
        prepared_data.write(tmp_path / f"{split}.json", prepared_data.coco({f"{split}.png": size}, entries))
    return tmp_path


def opened(settings: ConfigDict, split: str) -> dataset.Prepared:
    """Prepare the data if need be, and open a split."""
    ensure_prepared(settings)
    return open_dataset(settings, split)


def own(folder: Path, **changes) -> ConfigDict:
    """The section `dataset` of a config that names the folder as source."""
    config = coco.get_config()
    config.dataset.update(name="mine", data_dir=str(folder / "prepared"), source=str(folder), **changes)
    return config


@pytest.mark.parametrize("annotations", [None, "train=train.json val=val.json"])
def test_data_are_prepared_on_first_use(folder, annotations, capfd):
    config = own(folder, annotations=annotations)
    prepared = opened(config.dataset, "train")
    assert (len(prepared), prepared.classes) == (1, ("car",))
    assert "train: 1 of 1 images and 2 of 2 annotations kept" in capfd.readouterr().out
    opened(config.dataset, "val")
    assert capfd.readouterr().out == ""  # nothing is prepared again
    with pytest.raises(UserError, match="no split 'test': choose one of train, val"):
        opened(config.dataset, "test")

    config.dataset.source = None  # as before it was known
    assert len(opened(config.dataset, "train")) == 1
    config.dataset.source = str(folder / "prepared")
    with pytest.raises(UserError, match=f"was prepared from {folder}, not from {folder}/prepared: delete"):
        opened(config.dataset, "train")
    config.dataset.update(source=str(folder), annotations="train=val.json val=val.json")
    with pytest.raises(UserError, match="was prepared from .*, not from train=val.json val=val.json: delete"):
        opened(config.dataset, "train")
    config.dataset.annotations = None if annotations else "train=train.json val=val.json"
    with pytest.raises(UserError, match="from the files found by their names.*: delete"):
        opened(config.dataset, "train")

    config.dataset.annotations = annotations and annotations.replace(" ", "  ")
    (folder / "val.json").write_text((folder / "val.json").read_text() + "\n")
    with pytest.raises(UserError, match=f"was prepared from an earlier state of {folder}: delete this folder to"):
        opened(config.dataset, "train")
    metadata = next((folder / "prepared").glob("mine/*/metadata.json"))
    kept = json.loads(metadata.read_text())
    metadata.write_text(
        json.dumps({key: value for key, value in kept.items() if key not in ("files", "state", "seal")})
    )
    assert len(opened(config.dataset, "train")) == 1  # prepared before the state was kept


CHANGES = {  # of label files, by name: their contents afterwards
    "a digit of a box": ({"a.txt": "0 .5 .5 .2 .3", "b.txt": "1 .1 .1 .1 .1"}, False),
    "contents swapped": ({"a.txt": "1 .1 .1 .1 .1", "b.txt": "0 .5 .5 .2 .2"}, False),
    "renamed": ({"a.txt": "0 .5 .5 .2 .2", "c.txt": "1 .1 .1 .1 .1"}, False),
    "another class": ({"a.txt": "1 .5 .5 .2 .2", "b.txt": "1 .1 .1 .1 .1"}, False),
    "a line moved to the next file": ({"a.txt": "0 .5 .5 .2 .", "b.txt": "21 .1 .1 .1 .1"}, False),
    "written again": ({"a.txt": "0 .5 .5 .2 .2", "b.txt": "1 .1 .1 .1 .1"}, True),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("times", ["kept", "new"])
def test_labels_are_compared_by_their_content(tmp_path, change, times):
    for name, text in {"a.txt": "0 .5 .5 .2 .2", "b.txt": "1 .1 .1 .1 .1"}.items():
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (10**9, 10**9))
    before = origin.state([str(tmp_path)])
    contents, same = CHANGES[change]
    for file in tmp_path.iterdir():
        file.unlink()
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (10**9, 10**9 + (times == "new")))
    assert origin.unchanged([str(tmp_path)], before) == same
    assert origin.unchanged([str(tmp_path)], before[:3]) == (times == "kept")  # a record without the hash


def test_a_path_in_a_bucket_stays_as_it_is(monkeypatch):
    path = epath.Path("gs://bucket/data")
    monkeypatch.setattr(type(path), "exists", lambda _: True)
    assert str(absolute("gs://bucket/data")) == str(path) == "gs://bucket/data"
    assert absolute("data") == epath.Path(Path.cwd() / "data")


def test_sizes_left_open_are_those_of_the_data(folder):
    config = own(folder)
    found = discover_sizes(config, folder).dataset
    assert (found.stored_size, found.max_objects) == ((64, 96), 32)
    assert (config.dataset.stored_size, config.dataset.max_objects) == (None, None)  # a copy was filled
    config.dataset.max_objects = 7
    found = discover_sizes(config, folder)
    assert (found.dataset.stored_size, found.dataset.max_objects) == ((64, 96), 7) and found.is_locked
    config.dataset.stored_size = (128, 128)
    assert discover_sizes(config, folder) is config


def test_windows_need_a_size(folder):
    config = own(folder, window_overlap=16)
    with pytest.raises(UserError, match="windows of dataset.stored_size: give it"):
        discover_sizes(config, folder)
    config.dataset.stored_size = (32, 32)
    assert discover_sizes(config, folder).dataset.max_objects == 32


def test_a_resumed_run_keeps_its_sizes(folder):
    """Even if more and larger pictures have been added since."""
    run = folder / "run"
    write_settings(with_sizes(own(folder), stored_size=(128, 160), max_objects=48), run, ["car"], [1])
    assert discover_sizes(own(folder), run).dataset.stored_size == (64, 96)  # nothing has been learnt in it
    (run / "checkpoints" / "7").mkdir(parents=True)
    found = discover_sizes(own(folder), run).dataset
    assert (found.stored_size, found.max_objects) == ((128, 160), 48)


def test_sizes_of_data_prepared_before_they_were_kept(folder):
    config = own(folder)
    opened(config.dataset, "train")
    account = next((folder / "prepared").glob("mine/*/account.json"))
    kept = json.loads(account.read_text())
    account.write_text(json.dumps({split: {"problems": {}} for split in kept}))
    metadata = account.parent / "metadata.json"
    metadata.write_text(
        json.dumps({key: each for key, each in json.loads(metadata.read_text()).items() if key != "seal"})
    )
    assert discover_sizes(config, folder).dataset.stored_size == (64, 96)
    account.unlink()
    train, val = open_splits(config.dataset).values()
    assert (train.largest_picture, train.most_objects) == ((40, 60), 2)
    assert (val.largest_picture, val.most_objects) == ((33, 90), 0)


@pytest.mark.parametrize(
    ("picture", "objects", "sizes"),
    [((1, 1), 0, ((32, 32), 32)), ((32, 33), 32, ((32, 64), 32)), ((512, 640), 33, ((512, 640), 48))],
)
def test_sizes_are_rounded_up_in_steps(picture, objects, sizes):
    assert tuple(room_for(picture, objects).values()) == sizes


def test_a_run_is_opened_with_its_own_sizes(tmp_path, monkeypatch):
    config = coco.get_config()
    run = with_sizes(config, stored_size=(64, 96), max_objects=32)
    write_settings(run, epath.Path(tmp_path), ["car"], [1])
    monkeypatch.setattr(restore, "trained_variables", lambda used, *_: used.dataset.stored_size)
    assert restore.open_trained(epath.Path(tmp_path), config)[0].variables == (64, 96)
    explicit = with_sizes(config, stored_size=(128, 128), max_objects=8)
    assert restore.open_trained(epath.Path(tmp_path), explicit)[0].variables == (128, 128)
    assert restore.open_trained(epath.Path(tmp_path))[1].dataset.max_objects == 32


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> Path:
    """Own data of 16 bits, of which 12 are used, and a picture of 8 bits; prepared."""
    folder = tmp_path_factory.mktemp("deep")
    pixels = np.random.default_rng(0).integers(0, 1500, (40, 60)).astype(np.uint16) + 7000
    for number, values in enumerate([pixels, pixels + 40, (pixels >> 8).astype(np.uint8)], start=1):
        cv2.imwrite(str(folder / f"{number}.png"), values)
    content = prepared_data.coco(dict.fromkeys(("1.png", "2.png", "3.png"), (40, 60)), [{"bbox": [3, 4, 10, 12]}])
    for split in ("train", "val"):
        prepared_data.write(folder / f"{split}.json", content)
    return folder


def test_grey_values_are_scaled_by_the_range_of_the_data_set(deep, capsys, tmp_path):
    config = own(deep)
    found = opened(config.dataset, "train").grey_range
    assert found is not None and abs(found[0] - 7000) < 5 and abs(found[1] - 8540) < 5
    pixels = cv2.imread(str(deep / "2.png"), cv2.IMREAD_UNCHANGED)
    of_val = opened(config.dataset, "val")
    expected = np.interp(pixels, found, (0, 255))
    assert np.abs(dataset_picture(of_val, 1)[0][..., 0] - expected).max() <= 0.51  # alike in every split
    eight = cv2.imread(str(deep / "3.png"), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(dataset_picture(of_val, 2)[0], eight)
    settled = discover(config, tmp_path)
    assert settled.dataset.grey_range == found and "dataset.grey_range" in capsys.readouterr().out

    config.dataset.grey_range = (0, 65535)  # the user's own goes before
    given = opened(config.dataset, "train")
    assert given.grey_range == (0, 65535) and dataset_picture(given, 0)[0].max() <= 34
    config.dataset.grey_range = (9, 9)
    with pytest.raises(UserError, match=r"dataset.grey_range is \(9, 9\): give"):
        opened(config.dataset, "train")


def test_a_run_keeps_its_range_and_data_without_one_are_read_as_before(deep, tmp_path):
    settled = discover(own(deep), tmp_path)
    write_settings(settled, tmp_path, ["car"], [1])
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    facts = restore.recorded(tmp_path)
    assert restore.recorded_sizes(facts)["grey_range"] == settled.dataset.grey_range
    other = own(deep)
    other.dataset.grey_range = (0, 9000)
    with pytest.raises(UserError, match="dataset.grey_range was"):
        write_settings(discover(other, tmp_path), tmp_path, ["car"], [1])
    metadata = prepared_folder(own(deep).dataset) / "metadata.json"
    text = metadata.read_text()
    metadata.write_text(
        json.dumps({key: value for key, value in json.loads(text).items() if key not in ("grey_range", "seal")})
    )
    assert opened(own(deep).dataset, "train").grey_range is None  # prepared before there were ranges
    assert discover(own(deep), tmp_path / "new").dataset.grey_range is None
    metadata.write_text(text)
    del facts["config"]["dataset"]["grey_range"]  # a run from before
    assert restore.recorded_sizes(facts)["grey_range"] is None
    assert restore.recorded_config(facts).dataset.get("grey_range") is None
