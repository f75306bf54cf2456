"""COCO files and their images are found in the usual places; ambiguous folders are refused."""

import json
from pathlib import Path

import pytest
from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.preparation.coco_annotations import Split
from cfinet_jax.preparation.coco_layout import read_found
from cfinet_jax.preparation.journal import Journal
from tests import prepared


def make(folder: Path, annotations: str, images: str, name: str) -> None:
    """A COCO file at a place, and the picture it names, in a folder."""
    prepared.write(folder / annotations, prepared.coco({name: (4, 6)}, [{"bbox": [1, 1, 2, 2]}]))
    prepared.draw(folder / images / name, (4, 6))


def find(folder: Path) -> dict[str, Split]:
    with Journal(epath.Path(folder.parent) / f"{folder.name}.jsonl") as journal:
        return read_found(epath.Path(folder), journal)


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("{split}.json", "."),
        ("{split}.json", "images"),
        ("annotations/{split}.json", "images/{split}"),
        ("annotations/{split}.json", "{split}"),
        ("annotations/{split}.json", "{split}/images"),
        ("annotations/instances_{split}2017.json", "{split}2017"),
        ("mine_{split}.json", "images"),
        ("annotations/mine_{split}.json", "images"),
        ("{split}/_annotations.coco.json", "{split}"),
    ],
)
def test_splits_are_found(tmp_path, annotations, images):
    for split in ("train", "val"):
        make(tmp_path, annotations.format(split=split), images.format(split=split), f"{split}.png")
    splits = find(tmp_path)
    assert splits.keys() == {"train", "val"}
    for split, content in splits.items():
        assert content.records[0]["path"] == str(tmp_path / images.format(split=split) / f"{split}.png")
        assert content.account["problems"] == {}


def test_the_folder_valid_is_the_split_val(tmp_path):
    make(tmp_path, "valid/_annotations.coco.json", "valid", "a.png")
    assert find(tmp_path).keys() == {"val"}


def test_other_annotations_of_coco_do_not_matter(tmp_path):
    make(tmp_path, "annotations/instances_train2017.json", "train2017", "a.png")
    (tmp_path / "annotations" / "captions_train2017.json").write_text("[]")
    assert find(tmp_path).keys() == {"train"}


def test_a_few_images_may_be_missing(tmp_path):
    make(tmp_path, "train.json", "images", "a.png")
    content = json.loads((tmp_path / "train.json").read_text())
    content["images"].insert(0, {"id": 2, "file_name": "x" * 300, "height": 4, "width": 6})
    (tmp_path / "train.json").write_text(json.dumps(content))
    account = find(tmp_path)["train"].account
    assert (account["images"], account["images_kept"]) == (2, 1)


def test_ambiguous_folders_are_refused_with_the_option_that_helps(tmp_path):
    with pytest.raises(UserError, match="holds neither data.yaml .YOLO. nor COCO files .SPLIT.json, .*--annotations"):
        find(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        find(tmp_path / "absent")
    for name in ("a_train.json", "b_train.json"):
        make(tmp_path, name, ".", "a.png")
    with pytest.raises(UserError, match="several files for the split 'train' .a_train.json, b_train.json.: name one"):
        find(tmp_path)
    make(tmp_path, "train.json", "elsewhere", "b.png")
    (tmp_path / "elsewhere/b.png").unlink()
    with pytest.raises(UserError, match="no image of .* can be used .1 x image missing, skipped: b.png.: check"):
        find(tmp_path)
