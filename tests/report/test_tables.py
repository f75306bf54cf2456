"""Tables say what they know, and what others wrote has no effect on them."""

import json

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.metrics.errors import OUTCOMES
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.metrics.score import score
from cfinet_jax.report.tables import escape, outcome_table, settings, table
from cfinet_jax.run_log import write_settings
from tests import html_page, tiny

CLASSES = {3: "car", 7: "person"}


def scored(protocol: str) -> dict:
    """60 found cars of 8 x 8 pixels and 2 missed persons of 20 x 20."""
    places = [(3, [12 * i, 0, 8, 8]) for i in range(60)] + [(7, [30 * i, 50, 20, 20]) for i in range(2)]
    annotations = [{"id": i, "image_id": 1, "category_id": c, "bbox": box} for i, (c, box) in enumerate(places)]
    categories = [{"id": key, "name": name} for key, name in CLASSES.items()]
    ground_truth = {"images": [{"id": 1}], "annotations": annotations, "categories": categories}
    detections = [{"image_id": 1, "category_id": 3, "bbox": box, "score": 0.5} for c, box in places if c == 3]
    return score(ground_truth, detections, PROTOCOLS[protocol])


def test_table_of_soda():
    rows = table(scored("soda_d")).splitlines()
    assert rows[0].startswith("soda_d: AP at IoU")
    assert "| **Small (0-1024)** | 50.0 | 50.0 | 50.0 | 50.0 | 62 |" in rows
    assert "| eS (0-144) | 100.0 | 100.0 |  | 100.0 | 60 |" in rows
    assert "| rS (144-400) | n/a | n/a |  | n/a | 2 |" in rows  # too few
    assert "| N (1024-2000) | n/a | n/a |  | n/a | 0 |" in rows  # none
    assert "| car | 100.0 | 100.0 | 60 |" in rows and "| person | n/a | n/a | 2 |" in rows


def test_table_of_coco_and_its_threshold():
    rows = table(scored("coco"), min_boxes=1).splitlines()
    assert [row.split("|")[1].strip() for row in rows if row.startswith("| **")] == ["**all**"]
    assert "| L (> 9216) | n/a | n/a |  | n/a | 0 |" in rows
    assert "| person | 0.0 | 0.0 | 2 |" in rows


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1))
def test_escaped_text_is_shown_as_it_is(text):
    shown = " ".join(text.split())
    assert html_page.read(f"| head |\n| --- |\n| {escape(text)} |")["td"] == [shown]
    assert html_page.read(f"Said: {escape(text)}.")["p"] == [f"Said: {shown}."]


def test_words_with_underscores_stay_readable():
    assert escape("traffic_light") == "traffic_light" and escape("_a_ b") == "\\_a\\_ b"


def test_outcomes_add_up():
    counts = np.arange(2 * len(OUTCOMES)).reshape(2, -1)
    head, _, total, *rows = outcome_table(counts, ["car", "a|b"]).splitlines()
    assert head.split(" | ")[1:4] == ["objects", "missed", "detections"]
    assert total == "| **all** | 26 | 19 | 72 | 7 | 9 | 11 | 13 | 15 | 17 |"
    assert rows[0] == "| car | 6 | 6 | 15 | 0 | 1 | 2 | 3 | 4 | 5 |" and rows[1].startswith("| a\\|b | 20 | 13 | 57 |")


def test_settings_say_where_the_evaluation_differs(tmp_path):
    config = tiny.tiny_config()
    write_settings(config, epath.Path(tmp_path), ["car"], [1])
    config.dataset.eval_split = "val"
    text = settings(epath.Path(tmp_path) / "settings.json", config)
    assert "- revision: " in text and "jax " in text and "1 x cpu" not in text and "8 x cpu" in text
    assert "\ntraining.images = 16\n" in text
    assert '\ndataset.eval_split = "test"    (this evaluation: "val")\n' in text
    assert text.count("(this evaluation") == 1


@pytest.mark.parametrize("content", [None, "", "[1]", "{}", '{"config": 3}', '{"config": {}, "machine": {}}'])
def test_lost_settings_are_admitted(tmp_path, content):
    path = epath.Path(tmp_path) / "settings.json"
    if content is not None:
        path.write_text(content)
    text = settings(path, tiny.tiny_config())
    assert text.startswith("settings.json is missing or damaged") and "\ntraining.images = 16\n" in text


def test_settings_of_an_older_version_are_shown(tmp_path):
    path = epath.Path(tmp_path) / "settings.json"
    facts = {"config": {"gone": {"key": "<i>"}}, "machine": {"platform": "p", "devices": ["d"]}}
    path.write_text(json.dumps(facts | {"revision": "r", "versions": {"jax": "1"}}))
    assert 'gone.key = "<i>"\n' in settings(path, tiny.tiny_config())
