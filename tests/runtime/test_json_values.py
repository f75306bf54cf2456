"""Values from JSON keep their meaning, whatever type they have."""

import pytest

from cfinet_jax.runtime import json_values


@pytest.mark.parametrize(
    ("value", "number", "flag"),
    [
        ("0", 0, True), ("1", 1, True), ("false", False, True), ("True", True, True), ("1.0", 1, True),
        (" 1 ", 1, True), (0, 0, True), (True, True, True), (None, None, True), (1.0, 1, True), (0.0, 0, True),
        ("null", None, True), ("640", 640, False), (640.0, 640, False), (2, 2, False), ("-1", -1, False),
        (0.5, 0.5, False), ("yes", "yes", False), ("", "", False), ("0x1", "0x1", False), ([1], [1], False),
        ("[" * 10**5, "[" * 10**5, False), ("001", "001", False), ("nan", "nan", False),
        (["1", " 2.5", 3.0], [1, 2.5, 3.0], False), ("[1, 2]", [1, 2], False), ([["1"], "x"], [["1"], "x"], False),
    ],
)  # fmt: skip
def test_numbers_and_flags_are_read_from_text(value, number, flag):
    found = json_values.number(value)
    assert found == number and type(found) is type(number)
    assert json_values.is_flag(found) == flag


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "a": 3}}]'])
def test_a_key_twice_is_refused(text):
    with pytest.raises(ValueError, match="the key 'a' is given twice"):
        json_values.parse(text)


def test_objects_are_translated_from_the_inside():
    assert json_values.parse(b'{"a": {"b": 1}, "c": []}', lambda entry: [*entry.items()]) == [
        ("a", [("b", 1)]),
        ("c", []),
    ]
