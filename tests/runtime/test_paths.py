"""Paths from users: patterns, home folders, buckets, and addresses that cannot be opened."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from etils import epath

from cfinet_jax import training
from cfinet_jax.checkpoint import check_workdir
from cfinet_jax.errors import UserError
from cfinet_jax.input.dataset import open_splits, prepared_folder
from cfinet_jax.metrics.dota_files import write_task1
from cfinet_jax.metrics.results import columns_of_image, joined
from cfinet_jax.predict import load
from cfinet_jax.preparation.builders import ensure_prepared
from cfinet_jax.runtime.paths import absolute, in_bucket, matching, user_path
from cfinet_jax.runtime.settings import has_learnt
from configs import coco
from tests import tiny

ADDRESSES = ["s3://bucket/run", "http://host/run", "https://host/run", "foo://a/b", "file:///tmp/run", "://x", "GS://b"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_that_cannot_be_opened_are_one_line(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny.tiny_config()
    config.dataset.data_dir = address
    named = "--config.dataset.name=mine"
    for fail in (
        lambda: user_path(address),
        lambda: absolute(address),
        lambda: prepared_folder(config.dataset),
        lambda: load(address),
        lambda: training.train(config, address),
    ):
        with pytest.raises(UserError, match="address that cannot be opened.*gs://"):
            fail()
    for more in (
        [f"--workdir={address}"],
        [f"--config.dataset.data_dir={address}"],
        [f"--config.dataset.source={address}", named],
        ["--mode=predict", f"--images={address}", "--output=found"],
        ["--mode=predict", "--images=pictures", f"--output={address}"],
    ):
        status, _, errors = tiny.call_main(*tiny.arguments(tmp_path, tmp_path / "run"), *more)
        assert status == 2 and errors.startswith(f"cfinet_jax: {address} is an address") and errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    home = epath.Path(tmp_path)
    assert user_path("~") == home and user_path("~/runs/a") == home / "runs" / "a"
    assert user_path("a~b/~") == epath.Path("a~b/~") and user_path("/x/~/y") == epath.Path("/x/~/y")
    assert str(user_path("gs://bucket/~x")) == "gs://bucket/~x"
    assert absolute("~/data") == home / "data"
    (home / "prepared" / "scenes" / "1.0.0").mkdir(parents=True)
    (home / "prepared" / "scenes" / "1.0.0" / "dataset_info.json").write_text("{}")
    config = tiny.tiny_config()
    config.dataset.data_dir = "~/prepared"
    assert prepared_folder(config.dataset) == home / "prepared" / "scenes" / "1.0.0"
    for fail in (lambda: load("~/absent"), lambda: load(epath.Path("~/absent"))):
        with pytest.raises(UserError, match=f"No run in {home}/absent"):
            fail()
    status, _, errors = tiny.call_main("--mode=export", "--workdir=~/absent")
    assert status == 2 and f"No run in {home}/absent" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


NAMES = ["[2026] lab", "a*b?", "x[!a]", "[[]", "**", "what?", "[a-z]"]
ROOT = Path(__file__).parents[2]


def test_buckets_are_told_from_disks():
    assert in_bucket("gs://bucket/run") and not in_bucket(epath.Path("/runs/gs"))


@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_in_the_name_of_a_folder_is_literal(name, tmp_path):
    folder, decoy = epath.Path(tmp_path, name, "run"), epath.Path(tmp_path, "a", "run")
    for each, file in ((folder, "1.txt"), (decoy, "2.txt")):
        (each / "checkpoints" / "7").mkdir(parents=True)
        (each / file).touch()
    assert list(matching(folder, "*.txt")) == [folder / "1.txt"]
    assert has_learnt(folder)
    (folder / "dota").mkdir()
    (folder / "dota" / "Task1_old.txt").touch()
    nothing = joined([columns_of_image(np.zeros((0, 5)), np.zeros(0), np.zeros(0, int), 1)])
    write_task1(nothing, {}, {1: "car"}, folder / "dota")
    assert [path.name for path in (folder / "dota").iterdir()] == ["Task1_car.txt"]


def test_data_in_a_folder_with_a_pattern_in_its_name_are_prepared_and_opened(tmp_path):
    folder = tmp_path / "[2026] lab *"
    (folder / "annotations").mkdir(parents=True)
    cv2.imwrite(str(folder / "1.png"), np.zeros((40, 60, 3), np.uint8))
    image = {"id": 1, "file_name": "1.png", "height": 40, "width": 60}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 4, 5, 6]}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "car"}]}
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    settings = coco.get_config().dataset
    settings.update(name="mine", data_dir=str(folder / "prepared"), source=str(folder))
    ensure_prepared(settings)
    splits = open_splits(settings)
    assert {name: len(split) for name, split in splits.items()} == {"train": 1, "val": 1}
    assert splits["train"].source[0]["height"] == 40


@pytest.mark.parametrize("name", [*NAMES, "a\\b"])
def test_a_workdir_that_orbax_could_not_read_again_is_refused(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    for workdir in (epath.Path(tmp_path, name, "run"), epath.Path("run")):  # the second is in the first
        with pytest.raises(UserError, match=r"one of \[ \* \? \\: choose another --workdir"):
            check_workdir(workdir)
    assert not list((tmp_path / name).iterdir())


def test_nothing_else_searches_by_pattern():
    files = [path for path in (ROOT / "cfinet_jax").rglob("*.py")]
    found = {path.name for path in files if ".glob(" in path.read_text()}
    assert found == {"paths.py"}
