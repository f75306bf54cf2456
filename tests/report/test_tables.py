"""Tables and lists of a report, also where settings are lost."""

import json

import numpy as np
import pytest
from etils import epath

from cfinet_jax.metrics.error_types import OUTCOMES
from cfinet_jax.report.tables import outcome_table, settings
from cfinet_jax.runtime.settings import write_settings
from tests import tiny


def test_outcomes_add_up():
    counts = np.arange(2 * len(OUTCOMES)).reshape(2, -1)
    head, _, total, *rows = outcome_table(counts, ["car", "a|b"]).splitlines()
    assert head.split(" | ")[1:4] == ["objects", "missed", "detections"]
    assert total == "| **all** | 26 | 19 | 72 | 7 | 9 | 11 | 13 | 15 | 17 |"
    assert rows[0] == "| car | 6 | 6 | 15 | 0 | 1 | 2 | 3 | 4 | 5 |" and rows[1].startswith("| a\\|b | 20 | 13 | 57 |")


def test_settings_show_where_the_evaluation_differs(tmp_path):
    config = tiny.tiny_config()
    write_settings(config, epath.Path(tmp_path), ["car"], [1])
    config.dataset.eval_split = "val"
    text = settings(epath.Path(tmp_path) / "settings.json", config)
    assert "- revision: " in text and "jax " in text and "1 x cpu" not in text and "8 x cpu" in text
    assert "\ntraining.images = 16\n" in text
    assert '\ndataset.eval_split = "test"    (this evaluation: "val")\n' in text
    assert text.count("(this evaluation") == 1


@pytest.mark.parametrize("content", [None, "", "[1]", "{}", '{"config": 3}', '{"config": {}, "machine": {}}'])
def test_lost_settings_are_reported(tmp_path, content):
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
