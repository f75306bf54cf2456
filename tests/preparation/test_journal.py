"""Pictures that were checked before a preparation broke off are not decoded again, unless they have changed."""

import json
import os
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from etils import epath

from cfinet_jax.preparation.checked_pictures import image_problem
from cfinet_jax.preparation.journal import Journal
from tests import prepared

NAMES = [f"{number}.png" for number in range(5)]
BROKEN = NAMES[1]


@pytest.fixture
def source(tmp_path) -> Path:
    """Pictures, one of them broken, that train.json and val.json both name."""
    for seed, name in enumerate(NAMES):
        prepared.draw(tmp_path / "source" / name, (40, 60), seed)
    (tmp_path / "source" / BROKEN).write_text("no image")
    for split in ("train", "val"):
        content = prepared.coco(dict.fromkeys(NAMES, (40, 60)), [{"bbox": [1, 1, 9, 9]}])
        prepared.write(tmp_path / "source" / f"{split}.json", content)
    return tmp_path / "source"


def journal(source: Path) -> Path:
    return source.parent / "prepared" / "mine.unfinished" / "checked.jsonl"


def prepare_counted(source: Path) -> tuple[int, str, dict[str, list[str]]]:
    """Prepare; return how many pictures were decoded, the output, and the problems in `train`."""
    with mock.patch("cv2.imdecode", mock.Mock(wraps=cv2.imdecode)) as decoding:
        status, output, _ = prepared.call("coco", source, "--name=mine")
    assert status == 0 and not journal(source).parent.exists()
    return decoding.call_count, output, prepared.accounts(source.parent / "prepared")["train"]["problems"]


@pytest.fixture
def killed(source) -> Path:
    """The source of a preparation that was killed after three pictures."""
    data = [f"--source={source}", f"--data_dir={source.parent / 'prepared'}"]
    prepared.kill("cv2.imdecode", 3, "coco", "--name=mine", *data)
    return source


def test_a_picture_is_decoded_once_for_all_splits(source):
    decoded, _, problems = prepare_counted(source)
    assert decoded == len(NAMES) and problems == {"image broken or cut short, skipped": [BROKEN]}


def test_pictures_checked_before_a_kill_are_not_decoded_again(killed):
    decoded, output, problems = prepare_counted(killed)
    assert decoded == 2 and problems == {"image broken or cut short, skipped": [BROKEN]}
    assert f"3 images were checked already, as {journal(killed)} says" in output


def test_changed_pictures_are_checked_again(killed):
    (killed / BROKEN).write_bytes((killed / NAMES[0]).read_bytes())  # of another length
    os.utime(killed / NAMES[2], (0, 0))
    assert prepare_counted(killed)[::2] == (4, {"image given twice, kept": [BROKEN]})


def test_a_size_that_the_file_states_now_is_compared_with_the_known_picture(killed):
    content = json.loads((killed / "train.json").read_text())
    content["images"][2]["height"] = 41
    prepared.write(killed / "train.json", content)
    decoded, _, problems = prepare_counted(killed)
    assert decoded == 2 and problems["image of another size than stated, skipped"] == [NAMES[2]]


@pytest.mark.parametrize("length", [1, 20, -1])
def test_a_half_written_line_is_skipped(killed, length):
    before, last = journal(killed).read_text().rsplit("\n", 1)
    journal(killed).write_text(f"{before}\n{last[:length]}")
    broken_off = mock.patch("cfinet_jax.preparation.own_builder.check_same_categories", side_effect=KeyboardInterrupt)
    with broken_off, pytest.raises(KeyboardInterrupt):  # when all pictures are checked
        prepared.call("coco", killed, "--name=mine")
    assert prepare_counted(killed)[0] == 0


STATE, TRAIT = ["a.png", 9, 9], ["hash", 1]
LINES = {  # of a journal, and whether they are known
    "sound": ([STATE, [40, 60], TRAIT, None], True),
    "broken picture": ([STATE, None, TRAIT, None], True),
    "grey values": ([STATE, [40, 60], TRAIT, {"greys": [0.0, 9.0]}], True),
    "windows": ([STATE, [40, 60], TRAIT, [0, 7, 9]], True),
    "nothing": (None, False),
    "a number": (5, False),
    "a state that cannot be a key": ([[[], {}, 3], [40, 60], TRAIT, None], False),
    "a size of text": ([STATE, ["40", "60"], TRAIT, None], False),
    "three grey values": ([STATE, [40, 60], TRAIT, {"greys": [0.0, 1.0, 2.0]}], False),
    "no trait": ([STATE, [40, 60], None, None], False),
    "as before there were traits": ([STATE, [40, 60], None], False),
}


@pytest.mark.parametrize("row", LINES)
def test_lines_of_another_form_are_passed_over(tmp_path, row):
    line, known = LINES[row]
    (tmp_path / "checked.jsonl").write_text(json.dumps(line))
    with Journal(epath.Path(tmp_path)) as journal:
        assert len(journal.sizes) == known


STALE = {  # what happens to a picture of bright values before the preparation resumes
    "replaced": lambda source: cv2.imwrite(str(source / NAMES[2]), np.full((40, 60), 90, np.uint16)),
    "removed": lambda source: (source / NAMES[2]).unlink(),
    "of 8 bits": lambda source: cv2.imwrite(str(source / NAMES[2]), np.full((40, 60), 90, np.uint8)),
    "of another size": lambda source: cv2.imwrite(str(source / NAMES[2]), np.full((41, 60), 60_000, np.uint16)),
}


@pytest.mark.parametrize("row", STALE)
def test_grey_values_are_those_of_pictures_that_are_kept(source, row):
    for name, value in zip(NAMES, (100, 100, 60_000, 100, 100), strict=True):
        cv2.imwrite(str(source / name), np.full((40, 60), value, np.uint16) + np.arange(60, dtype=np.uint16))
    broken_off = mock.patch("cfinet_jax.preparation.own_builder.check_same_categories", side_effect=KeyboardInterrupt)
    with broken_off, pytest.raises(KeyboardInterrupt):
        prepared.call("coco", source, "--name=mine")
    STALE[row](source)
    prepare_counted(source)
    (metadata,) = source.parent.glob("prepared/mine/*/metadata.json")
    assert max(json.loads(metadata.read_text())["grey_range"]) < 200


def test_an_unwritable_journal_is_reported_in_one_line(source):
    journal(source).mkdir(parents=True)
    status, _, errors = prepared.call("coco", source, "--name=mine")
    assert (
        status == 2 and errors == f"{journal(source)} cannot be written (Is a directory): choose another --data_dir\n"
    )


def test_a_known_picture_is_decoded_again_only_for_a_task_that_is_not_done(tmp_path):
    prepared.draw(tmp_path / "a.png", (4, 6))
    record, made = {"path": str(tmp_path / "a.png"), "height": 4, "width": 6, "image_id": 1}, []

    def task(picture: np.ndarray) -> list[int]:
        made.append(picture.shape)
        return list(picture.shape)

    with Journal(epath.Path(tmp_path) / "unfinished") as journal:
        for given, count in ((None, 0), (task, 1), (task, 1), (None, 1)):
            assert image_problem(record, journal, given) is None and len(made) == count
