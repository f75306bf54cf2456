"""Annotation files may write numbers and flags as text or floats, and begin with a byte order mark."""

import codecs
import json

import pytest
from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.preparation.coco_files import load_coco, load_json
from cfinet_jax.preparation.dota import parse
from cfinet_jax.preparation.published import load_tiny_person
from cfinet_jax.preparation.sodaa import read_file

ENTRY = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}


def write(folder, image=(), entry=(), before: bytes = b"") -> epath.Path:
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 6} | dict(image)],
        "annotations": [ENTRY | dict(entry)],
        "categories": [{"id": 1, "name": "car"}],
    }
    (folder / "train.json").write_bytes(before + json.dumps(content).encode())
    return epath.Path(folder / "train.json")


READERS = {"coco": load_coco, "tiny_person": load_tiny_person, "soda_a": read_file}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("0", False), ("false", False), ("False", False), ("0.0", False), (0.0, False), (None, False), (False, False),
        ("1", True), ("true", True), (" TRUE ", True), (1.0, True), ("1.0", True), (True, True),
        ("no", None), ("", None), (2, None), ("2", None), ([0], None), ({}, None), (0.5, None), ("[" * 99_999, None),
    ],
)  # fmt: skip
def test_flags_may_be_text_or_numbers(tmp_path, read, key, text, flag):
    path = write(tmp_path, entry={key: text})
    if flag is None:
        with pytest.raises(UserError, match=f"'{key}' is .*, which must be 0 or 1$") as error:
            read(path)
        assert len(str(error.value)) < 300
    else:
        assert bool(read(path)["annotations"][0][key]) == flag


@pytest.mark.parametrize("mark", ["uncertain", "logo", "in_dense_image", "ignore"])
def test_the_marks_of_tiny_person_are_flags(tmp_path, mark):
    for text, flag in (("0", False), ("true", True)):
        assert load_tiny_person(write(tmp_path, entry={mark: text}))["annotations"][0]["ignore"] == flag


@pytest.mark.parametrize(
    ("image", "entry"),
    [
        ({"id": "1"}, {"image_id": "1"}),
        ({"id": 1.0}, {"image_id": "1.0", "id": 1.0}),
        ({"height": "4", "width": 6.0}, {}),
        ({"height": " 4.0", "width": "6"}, {"category_id": "1"}),
        ({}, {"category_id": 1.0, "id": "1"}),
        ({"id": "1e0"}, {}),
    ],
)
def test_whole_numbers_may_be_text_or_floats(tmp_path, image, entry):
    content = load_coco(write(tmp_path, image, entry))
    assert content["images"] == [{"id": 1, "file_name": "a.png", "height": 4, "width": 6}]
    assert content["annotations"] == [ENTRY]
    assert all(type(value) is int for value in (*content["images"][0].values(),) if not isinstance(value, str))


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("bbox", ["1", "1.5", 2, "2e0"], [1, 1.5, 2, 2]), ("bbox", "[1, 1, 2, 2]", [1, 1, 2, 2]),
        ("rbox", ["3", "3", "2", "2", "0.5"], [3, 3, 2, 2, 0.5]), ("poly", ["1"] * 8, [1] * 8),
        ("bbox", ["1", "x", 2, 2], [1, "x", 2, 2]), ("bbox", None, None), ("bbox", {"x": "1"}, {"x": "1"}),
    ],
)  # fmt: skip
def test_the_numbers_of_a_box_may_be_text(tmp_path, read, key, given, expected):
    assert read(write(tmp_path, entry={key: given}))["annotations"][0][key] == expected


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ({"id": "x1"}, "whole numbers"), ({"id": 1.5}, "whole numbers"), ({"id": "0x1"}, "whole numbers"),
        ({"height": "4px"}, "'height'.*'4px'"), ({"width": ""}, "'width'.*''"),
        ({"height": [[[[[[[[4]]]]]]]] * 10**4}, "'height'"),
    ],
)  # fmt: skip
def test_values_that_are_not_numbers_are_refused(tmp_path, image, said):
    with pytest.raises(UserError, match=said) as error:
        load_coco(write(tmp_path, image))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("before", [codecs.BOM_UTF8, b"\n ", b""])
def test_a_byte_order_mark_is_skipped(tmp_path, before):
    path = write(tmp_path, before=before)
    assert load_coco(path) and read_file(path)
    path.write_bytes(path.read_bytes().removeprefix(before).decode().encode("utf-16"))
    assert load_coco(path) and read_file(path)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "[" * 10**5 + "]" * 10**5, "1" * 10**5])
def test_json_that_nests_without_end_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(UserError, match=r"train.json is not JSON: [^\n]*$"):
        load_json(epath.Path(tmp_path / "train.json"))


def test_the_difficulty_of_dota_is_a_number():
    line = "1 1 9 1 9 9 1 9 small car"
    assert [parse(f"{line} {last}").difficult for last in ("0", "1", "0.0", "2")] == [False, True, False, True]
