"""What was checked before a preparation broke off is not decoded again, unless it has changed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from etils import epath

from cfinet_jax.preparation import __main__ as prepare
from cfinet_jax.preparation.checked_pictures import image_problem
from cfinet_jax.preparation.journal import Journal

NAMES = [f"{number}.png" for number in range(5)]
BROKEN = NAMES[1]


@pytest.fixture
def source(tmp_path) -> Path:
    """Pictures, one of them no picture, that train.json and val.json name."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in NAMES:
        cv2.imwrite(str(folder / name), np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    (folder / BROKEN).write_text("no image")
    images = [{"id": number, "file_name": name, "height": 40, "width": 60} for number, name in enumerate(NAMES)]
    annotations = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9]}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "ship"}]}
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def arguments(source: Path) -> list[str]:
    return ["prepare.py", "coco", "--name=mine", f"--source={source}", f"--data_dir={source.parent / 'prepared'}"]


def journal(source: Path) -> Path:
    return source.parent / "prepared" / "mine.unfinished" / "checked.jsonl"


def prepare_counted(source: Path) -> tuple[int, int, dict[str, list[str]]]:
    """The status of preparing, how many pictures were decoded for it, and the problems in `train`."""
    with (
        mock.patch.object(sys, "argv", arguments(source)),
        mock.patch("cv2.imdecode", mock.Mock(wraps=cv2.imdecode)) as decoding,
    ):
        status = prepare.main()
    (account,) = source.parent.glob("prepared/mine/*/account.json")
    return status, decoding.call_count, json.loads(account.read_text())["train"]["problems"]


KILLED = """
import os, signal, sys
from unittest import mock
import cv2
from etils import epath

from cfinet_jax.preparation import __main__ as prepare
from cfinet_jax.preparation.checked_pictures import image_problem
from cfinet_jax.preparation.journal import Journal

decode, decoded = cv2.imdecode, []
def die_at_the_fourth(*arguments):
    if len(decoded) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    decoded.append(arguments)
    return decode(*arguments)
one_thread = mock.patch("cfinet_jax.preparation.checked_pictures.MOST_THREADS", 1)
with mock.patch("cv2.imdecode", die_at_the_fourth), one_thread:
    prepare.main()
"""


@pytest.fixture
def killed(source) -> Path:
    """The source of a preparation that was killed when three pictures were checked."""
    command = [sys.executable, "-c", KILLED, *arguments(source)[1:]]
    assert subprocess.run(command, cwd=Path(__file__).parents[2]).returncode == -signal.SIGKILL
    return source


def test_a_picture_is_decoded_once_for_all_splits(source):
    problems = {"image broken or cut short, skipped": [BROKEN]}
    assert prepare_counted(source) == (0, len(NAMES), problems)
    assert not journal(source).parent.exists()


def test_what_was_checked_before_a_kill_is_not_decoded_again(killed, capsys):
    assert prepare_counted(killed) == (0, 2, {"image broken or cut short, skipped": [BROKEN]})
    assert f"3 images were checked already, as {journal(killed)} says" in capsys.readouterr().out
    assert not journal(killed).parent.exists()


def test_what_has_changed_is_checked_again(killed):
    (killed / BROKEN).write_bytes((killed / NAMES[0]).read_bytes())  # of another length
    os.utime(killed / NAMES[2], (0, 0))
    assert prepare_counted(killed) == (0, 4, {})


def test_a_size_that_is_stated_anew_is_believed(killed):
    content = json.loads((killed / "train.json").read_text())
    content["images"][2]["height"] = 41
    (killed / "train.json").write_text(json.dumps(content))
    _, decoded, problems = prepare_counted(killed)
    assert decoded == 2 and problems["image of another size than stated, skipped"] == [NAMES[2]]


@pytest.mark.parametrize("length", [1, 20, -1])
def test_a_half_written_line_is_passed_over(killed, length):
    before, last = journal(killed).read_text().rsplit("\n", 1)
    journal(killed).write_text(f"{before}\n{last[:length]}")
    with (
        mock.patch("cfinet_jax.preparation.own_builder.check_same_categories", side_effect=KeyboardInterrupt),
        mock.patch.object(sys, "argv", arguments(killed)),
        pytest.raises(KeyboardInterrupt),  # when all is checked
    ):
        prepare.main()
    assert prepare_counted(killed)[:2] == (0, 0)


def test_a_journal_that_cannot_be_written_is_said_in_one_line(source, capsys):
    journal(source).mkdir(parents=True)
    with mock.patch.object(sys, "argv", arguments(source)):
        assert prepare.main() == 2
    error = capsys.readouterr().err
    assert error == f"{journal(source)} cannot be written (Is a directory): choose another --data_dir\n"


def test_a_known_picture_is_decoded_again_for_what_is_still_to_be_made_of_it(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 6, 3), np.uint8))
    record, made = {"path": str(tmp_path / "a.png"), "height": 4, "width": 6, "image_id": 1}, []

    def task(picture: np.ndarray) -> list[int]:
        made.append(picture.shape)
        return list(picture.shape)

    with Journal(epath.Path(tmp_path) / "unfinished") as journal:
        for given, count in ((None, 0), (task, 1), (task, 1), (None, 1)):
            assert image_problem(record, journal, given) is None and len(made) == count
