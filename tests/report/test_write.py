"""The whole report, and reports that lack a part."""

import json
import re

import numpy as np
import pytest
from etils import epath

from cfinet_jax.metrics.error_types import OUTCOMES, TRUE
from cfinet_jax.metrics.proposal_scores import endings
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.metrics.results import columns
from cfinet_jax.metrics.score import score
from cfinet_jax.report.plots import MOST_CLASSES
from cfinet_jax.report.write import errors, imitation, precision, write_report
from tests import html_page, tiny
from tests.report.split import CLASSES, some_detections, some_split

ENDINGS = endings(PROTOCOLS["coco"]).values()
TRAINED = {"kind": "train", "step": 1, "images": 8, "loss": 1.0, "loss/roi/box": 0.5}
IMITATED = {"imitation/quality": 0.5, "imitation/high_quality": 0.1, "imitation/low_quality": 0.4, "memory/fill": 0.1}


def report(folder, log: str | None = None, overlays: int = 3, **others) -> tuple[str, html_page.Reader]:
    """Markdown and page of a report on `tests.report.split`."""
    if log is not None:
        (folder / "metrics.jsonl").write_text(log)
    prepared, config = some_split(), tiny.tiny_config()
    results = some_detections(prepared)
    config.evaluation.overlays = overlays
    metrics = score(prepared.coco, results, PROTOCOLS["coco"]) | others
    write_report(epath.Path(folder), metrics, columns(results), prepared, config, epath.Path(folder))
    return (folder / "report.md").read_text(), html_page.parse((folder / "report.html").read_text())


def test_a_report_has_all_sections_and_pictures(tmp_path):
    text, page = report(tmp_path, json.dumps(TRAINED | IMITATED))
    assert page.texts["h1"] == ["scenes, split test"] == page.texts["title"]
    assert page.texts["h2"] == ["Scores", "Precision and recall", "Training", "Errors", "Pictures", "Settings"]
    named = re.findall(r"!\[.*\]\((.+)\)", text)
    assert named[:4] == ["precision_recall.png", "learning_curve.png", "imitation.png", "errors.png"]
    assert len(named) == 7 and all((tmp_path / name).stat().st_size > 1000 for name in named)
    pictures = [attributes["src"] for tag, attributes in page.attributes if tag == "img"]
    assert len(pictures) == 7 and all(source.startswith("data:image/") for source in pictures)
    shown = "\n".join(page.texts["p"])
    assert "on 4 images with 61 objects" in shown
    assert f"fewer than 50 boxes): {CLASSES[7]}." in shown
    assert "IoU of at least 0.5 with an object of another class" in page.texts["ol"][0]
    assert "training.images = 16" in page.texts["code"][-1]


def test_names_from_the_data_are_only_text(tmp_path):
    _, page = report(tmp_path)
    cells, paragraphs = page.texts["td"], "\n".join(page.texts["p"])
    assert all(cells.count(name) == 2 for name in CLASSES.values())
    assert "best 1, a/1.png: F1" in paragraphs and "worst 1, c [x](y).png: F1" in paragraphs
    allowed = "html head meta title style body h1 h2 h3 p strong table thead tbody tr th td img ol ul li pre code"
    assert set(page.texts) <= set(allowed.split())


@pytest.mark.parametrize(
    ("log", "message"),
    [(None, "Not trained in this folder"), ("", "No learning curve"), ('{"kind": "tr', "line 1 is not a JSON record")],
)
def test_without_a_log_only_the_curves_are_missing(tmp_path, log, message):
    _, page = report(tmp_path, log)
    assert message in "\n".join(page.texts["p"]) and not (tmp_path / "learning_curve.png").exists()
    assert "settings.json is missing or damaged" in "\n".join(page.texts["p"])
    assert page.texts["h2"][-1] == "Settings" and len(page.texts["img"]) == 5


def test_the_text_on_imitation_says_how_far_it_reaches():
    def record(step: int, **values: float) -> dict:
        return {"images": 8 * step, "imitation/taught": 0.0} | values

    of = {"features_gradient/roi_head": 0.4, "features_gradient/imitation": 0.1, "memory/turnover": 0.05}
    train = [record(1, **of), record(2, **of), record(3, **of | {"imitation/taught": 0.5}), record(4, **of)]
    text = imitation(train)
    assert "25 % had an object with positives, the first after 24 images" in text
    assert (
        "25 % of the head's in the median step, and 25 % at most; all exemplars have been renewed every 20 steps."
        in text
    )
    assert "positives" not in imitation(train[:2])


def test_without_imitation_its_curve_is_missing(tmp_path):
    text, _ = report(tmp_path, json.dumps(TRAINED))
    assert "learning_curve.png" in text and "imitation" not in text.partition("## Settings")[0]
    assert not (tmp_path / "imitation.png").exists()


def test_proposals_have_a_table_and_a_curve(tmp_path):
    scores = {f"{name}{ending}": 0.25 for name in ("AR100", "AR300", "AR1000", "per_object") for ending in ENDINGS}
    log = json.dumps({"kind": "eval", "step": 1, "images": 8} | {f"proposals/{key}": 0.25 for key in scores})
    text, page = report(tmp_path, f"{json.dumps(TRAINED)}\n{log}", proposals=scores)
    assert page.texts["h2"][2] == "Proposals" and "](proposals.png)" in text
    assert "| **all** | 25.0 | 25.0 | 25.0 | 0.25 | 61 |" in text
    assert "at most 40 proposals per image." in "\n".join(page.texts["p"])


def test_of_many_classes_all_are_listed_but_not_drawn(tmp_path):
    names = [f"class {k}" for k in range(MOST_CLASSES + 2)]
    counts = np.zeros((1, len(names), len(OUTCOMES)), int)
    counts[:, :, TRUE] = np.arange(len(names))
    text = errors(epath.Path(tmp_path), counts, tuple(names), 0.3)
    assert f"{MOST_CLASSES} classes with the most objects" in text and all(f"| {name} |" in text for name in names)
    per_class = {name: {"boxes": 50 + k, "precision50": [0.5] * 101} for k, name in enumerate(names)}
    text = precision(epath.Path(tmp_path), {"per_class": per_class})
    assert text.endswith(f"not among the {MOST_CLASSES} classes with the most boxes): class 1, class 0.\n")


def test_pictures_can_be_left_out(tmp_path):
    text, page = report(tmp_path, overlays=0)
    assert "(overlays/" not in text and len(page.texts["img"]) == 2
