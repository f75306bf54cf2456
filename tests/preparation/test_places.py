"""Pictures are found by their names where these are unique, below the folder of the data set, and nowhere else."""

import os
from pathlib import Path
from unittest import mock

import pytest
from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.preparation.coco_annotations import Split
from cfinet_jax.preparation.coco_layout import read_found, read_named
from cfinet_jax.preparation.journal import Journal
from cfinet_jax.preparation.places import FOUND, MISSING, OUTSIDE, SEVERAL
from cfinet_jax.preparation.yolo import read_yolo
from tests import prepared


def draw(*paths: Path) -> None:
    for path in paths:
        prepared.draw(path, (4, 6))


def coco(folder: Path, *names: str, size: tuple[int, int] = (4, 6)) -> Split:
    """Read images with these names, the last with a stated size, after `sound.png` in the folder itself."""
    draw(folder / "sound.png")
    content = prepared.coco(dict.fromkeys(("sound.png", *names), (4, 6)), [{"bbox": [1, 1, 2, 2]}])
    content["images"][-1].update(height=size[0], width=size[1])
    prepared.write(folder / "train.json", content)
    with Journal(epath.Path(folder / "unfinished")) as journal:
        return read_found(epath.Path(folder), journal)["train"]


NAMES = {  # files that are there, the name that is stated, and the file that it means or what is said
    "backslashes": (["images/a.png"], "images\\a.png", "images/a.png"),
    "a drive": (["images/a.png"], "C:\\data\\a.png", "images/a.png"),
    "prefix that is not there": (["images/a.png"], "/data/upload/3/a.png", "images/a.png"),
    "elsewhere": (["deep/er/a.png"], "a.png", "deep/er/a.png"),
    "case of the ending": (["images/a.PNG"], "images/a.png", "images/a.PNG"),
    "case of a folder": (["Images/a.png"], "images/a.png", "Images/a.png"),
    "URL-encoded": (["images/a b.png"], "images/a%20b.png", "images/a b.png"),
    "URL-encoded file": (["images/a%20b.png"], "images/a b.png", "images/a%20b.png"),
    "decomposed": (["images/u\u0308.png"], "images/\u00fc.png", "images/u\u0308.png"),
    "composed": (["images/\u00fc.png"], "images/u\u0308.png", "images/\u00fc.png"),
    "a URL": (["images/a.png"], "https://host/bucket/a.png", "images/a.png"),
    "all at once": (["images/\u00fc b.PNG"], "D:\\IMAGES\\u\u0308%20b.png", "images/\u00fc b.PNG"),
    "its folder decides": (["x/train/a.png", "x/val/a.png"], "/data/train/a.png", "x/train/a.png"),
    "twice elsewhere": (["x/a.png", "y/a.png"], "/data/a.png", SEVERAL),
    "two cases": (["x/a.png", "x/A.png"], "/data/a.PNG", SEVERAL),
    "nowhere": (["images/b.png"], "images/a.png", MISSING),
    "its folder is there": (["train/a.png", "val/b.png"], "val/a.png", MISSING),
    "outside": ([], "../other/a.png", OUTSIDE),
    "outside, absolute": ([], "SOURCE/../other/a.png", OUTSIDE),
    "outside, but in there too": (["images/a.png"], "../other/a.png", "images/a.png"),
    "beside a folder of like name": ([], "SOURCE2/a.png", OUTSIDE),
    "absolute": (["images/a.png"], "SOURCE/images/a.png", None),
    "there and back": (["images/a.png"], "../source/images/a.png", None),
    "below a link": (["images/a.png"], "LINK/images/a.png", None),
    "nonsense": ([], "a\0b", MISSING),
    "nonsense outside": ([], "/x/a\0b", OUTSIDE),
}


@pytest.mark.parametrize("row", NAMES)
def test_a_picture_is_found_where_its_name_is_unique(tmp_path, row):
    files, name, expected = NAMES[row]
    source = tmp_path / "source"
    draw(*(source / file for file in files), tmp_path / "other/a.png", tmp_path / "source2/a.png")
    (tmp_path / "link").symlink_to(source)
    name = name.replace("SOURCE", str(source)).replace("LINK", f"{tmp_path}/link")
    split = coco(source, name)
    found = expected if expected in (SEVERAL, MISSING, OUTSIDE) else FOUND if expected else None
    assert split.account["problems"] == ({found: [name]} if found else {})
    paths = [record["path"] for record in split.records[1:]]
    if found == FOUND:
        assert paths == [str(source / expected)]
    else:
        assert len(paths) == (found is None) and all(Path(path).exists() for path in paths)


def test_two_names_do_not_mean_one_picture(tmp_path):
    draw(tmp_path / "images/a.png", tmp_path / "images/b.png")
    split = coco(tmp_path, "x/a.png", "y/a.png", "images/b.png", "z/b.png")
    assert split.account["problems"] == {SEVERAL: ["x/a.png", "y/a.png", "z/b.png"]}
    assert [record["file_name"] for record in split.records] == ["sound.png", "images/b.png"]


def test_the_folder_is_looked_through_once_and_only_where_a_name_is_missing(tmp_path):
    draw(*(tmp_path / f"images/{number}.png" for number in range(9)))
    with mock.patch("os.walk", wraps=os.walk) as walk:
        coco(tmp_path, *(f"images/{number}.png" for number in range(9)))
        assert walk.call_count == 0
        coco(tmp_path, *(f"/lost/{number}.png" for number in range(9)))
        assert walk.call_count == 1


def test_links_that_lead_back_or_to_themselves_end(tmp_path):
    draw(tmp_path / "images/a.png", tmp_path / "more/c.png")
    for name, target in (("back", tmp_path), ("again", tmp_path / "images"), ("self", tmp_path / "self")):
        (tmp_path / "images" / name).symlink_to(target)
        (tmp_path / "more" / name).symlink_to(target)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    split = coco(tmp_path, "/lost/a.png", "/lost/c.png", "images/self/b.png", "self", "images/self")
    assert split.account["problems"] == {
        FOUND: ["/lost/a.png", "/lost/c.png"],
        MISSING: ["images/self/b.png", "self", "images/self"],
    }


@pytest.mark.parametrize("size", [(6, 4), (5, 6), (4, 6)])
def test_swapped_sides_are_named_with_their_likely_cause(tmp_path, size):
    draw(tmp_path / "a.png")
    problems = {
        (6, 4): {"image with height and width swapped (turned by its EXIF orientation?), skipped": ["a.png"]},
        (5, 6): {"image of another size than stated, skipped": ["a.png"]},
        (4, 6): {},
    }
    assert coco(tmp_path, "a.png", size=size).account["problems"] == problems[size]


STRANGE = {  # what takes the place of a picture, and what is said
    "pipe": (os.mkfifo, "image broken or cut short, skipped"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "image broken or cut short, skipped"),
    "folder": (os.mkdir, "image broken or cut short, skipped"),
    "link to a pipe": (lambda path: (os.mkfifo(f"{path}.p"), path.symlink_to(f"{path}.p")), "image broken or cut"),
    "link into nothing": (lambda path: path.symlink_to("/nowhere"), MISSING),
}


@pytest.mark.parametrize("row", STRANGE)
def test_only_regular_files_are_pictures(tmp_path, row):
    make, said = STRANGE[row]
    make(tmp_path / "a.png")
    ((problem, names),) = coco(tmp_path, "a.png").account["problems"].items()
    assert names == ["a.png"] and problem.startswith(said)


def test_a_closed_picture_is_named(tmp_path):
    draw(tmp_path / "a.png")
    closed = PermissionError(13, "Permission denied")
    with (
        mock.patch("cfinet_jax.preparation.checked_pictures.state_of", side_effect=closed),
        pytest.raises(UserError, match="2 x image cl"),
    ):
        coco(tmp_path, "a.png")


def test_a_name_that_is_not_utf_8_is_named(tmp_path):
    strange = os.fsdecode(b"caf\xe9.png")
    draw(tmp_path / strange)
    assert coco(tmp_path, strange).account["problems"] == {"image whose name is not UTF-8, skipped": [strange]}


def test_images_of_a_named_folder_may_also_lie_in_the_source(tmp_path):
    draw(tmp_path / "images/a.png", tmp_path / "more/b.png", tmp_path.parent / f"{tmp_path.name}_c.png")
    names = ["a.png", "../more/b.png", f"../../{tmp_path.name}_c.png"]
    coco(tmp_path, *names)
    annotations = {"val": (epath.Path(tmp_path / "train.json"), epath.Path(tmp_path / "images"))}
    with Journal(epath.Path(tmp_path / "unfinished")) as journal:
        split = read_named(annotations, journal, source=epath.Path(tmp_path))["val"]
    assert [record["file_name"] for record in split.records] == names[:2]
    assert split.account["problems"] == {MISSING: ["sound.png"], OUTSIDE: names[2:]}


LISTS = {  # a line of a list of pictures, and the picture that is meant
    "spaces": "images/my train/a b.png",
    "byte order mark": "\ufeffimages/my train/a b.png",
    "home": "~/source/images/my train/a b.png",
    "absolute": "SOURCE/images/my train/a b.png",
    "backslashes": ".\\images\\my train\\a b.png",
    "of another machine": "/content/datasets/images/my train/a b.png",
    "URL-encoded": "./images/my%20train/a%20b.png",
    "there and back": "../source/images/my train/a b.png",
}


@pytest.mark.parametrize("row", LISTS)
def test_lines_of_a_list(tmp_path, monkeypatch, row):
    monkeypatch.setenv("HOME", str(tmp_path))
    split = yolo(tmp_path / "source", "train: list.txt", LISTS[row])
    (record,) = split.records
    assert os.path.normpath(record["path"]) == str(tmp_path / "source/images/my train/a b.png")
    assert split.account["annotations_kept"] == 1
    assert split.account["problems"].keys() == (
        {FOUND} if row in ("backslashes", "of another machine", "URL-encoded") else set()
    )


def yolo(source: Path, entry: str, line: str = "") -> Split:
    """The split train of a YOLO folder with one picture."""
    draw(source / "images/my train/a b.png")
    (source / "labels/my train").mkdir(parents=True, exist_ok=True)
    (source / "labels/my train/a b.txt").write_text("\ufeff0 0.5 0.5 0.5 0.5\n")
    (source / "list.txt").write_text(line.replace("SOURCE", str(source)))
    (source / "data.yaml").write_text(f"\ufeff{entry.replace('SOURCE', str(source))}\nnames: [car]\n")
    with Journal(epath.Path(source / "unfinished")) as journal:
        return read_yolo(epath.Path(source), journal)["train"]


@pytest.mark.parametrize(
    "entry",
    [
        "train: images/my train",
        "path: ~/source\ntrain: images",
        "train: ~/source/images",
        "path: SOURCE/images\ntrain: my train",
        "train: images\\my train",
        "train: ..\\images\\my train",
        "path: ../..\ntrain: images",  # which is not followed
        "path: ../other\ntrain: images",
        "a: &a [images]\ntrain: *a",
    ],
)
def test_places_in_data_yaml(tmp_path, monkeypatch, entry):
    monkeypatch.setenv("HOME", str(tmp_path))
    draw(tmp_path / "other/images/b.png")
    split = yolo(tmp_path / "source", entry)
    assert [Path(record["path"]).name for record in split.records] == ["a b.png"]
    assert split.account["annotations_kept"] == 1 and split.account["problems"] == {}


@pytest.mark.parametrize(
    "entry", ["train: ../other", "train: OTHER", "train: [images, ../../../other]", "train: ../lists/a.txt"]
)
def test_data_yaml_does_not_lead_out_of_its_folder(tmp_path, entry):
    draw(tmp_path / "other/b.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/a.txt").write_text(f"{tmp_path}/other/b.png")
    with pytest.raises(UserError, match="is no folder and no .txt in .*/source; correct it, or 'path' before it"):
        yolo(tmp_path / "source", entry.replace("OTHER", f"{tmp_path}/other"))


@pytest.mark.parametrize("line", ["../other/b.png", "OTHER/b.png", "/etc/passwd", "/dev/zero", "../../etc/hostname"])
def test_a_list_does_not_lead_out_of_its_folder(tmp_path, capsys, line):
    draw(tmp_path / "other/b.png")
    lines = f"images/my train/a b.png\n{line.replace('OTHER', f'{tmp_path}/other')}"
    assert len(yolo(tmp_path / "source", "train: list.txt", lines).records) == 1
    assert f"list.txt: skipped 1 lines that lead out of {tmp_path}/source, such as " in capsys.readouterr().out


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    "entry",
    [
        f"{LAUGHS}train: *a29", f"{LAUGHS}names: *a29", f"{LAUGHS}path: *a29", f"{LAUGHS}test: *a29\ntrain: *a29",
        "train: &a [*a]", "names: &a {0: *a}", "train: " + "[" * 10**5, "train: " + "{a: " * 10**5,
        "train: " + "- " * 10**5, "names: {0: " + "[" * 90 + "]" * 90 + "}",
    ],
)  # fmt: skip
def test_a_data_yaml_that_grows_without_end_is_refused_in_one_line(tmp_path, entry):
    draw(tmp_path / "a.png")
    (tmp_path / "data.yaml").write_text(entry if "names" in entry else f"names: [car]\n{entry}")
    with Journal(epath.Path(tmp_path / "unfinished")) as journal, pytest.raises(UserError) as error:
        read_yolo(epath.Path(tmp_path), journal)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)
