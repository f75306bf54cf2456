"""Tables say what they know, curves show the log, overlays show every kind of box."""

import json

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from cfinet_jax.errors import UserError
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.metrics.score import score
from cfinet_jax.report import CURVE_POINTS, PALETTE, draw_overlay, learning_curve, table, write_overlays

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


def write_log(path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_learning_curve_shows_the_log(tmp_path, monkeypatch):
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (drawn.append(self), save(self, *args, **kw)))
    train = [{"kind": "train", "step": s, "images": 4 * s, "loss": 9.0 / s, "loss/box": 2.0 / s} for s in range(1, 6)]
    stale = {"kind": "train", "step": 5, "images": 20, "loss": 777.0, "loss/box": 777.0}
    evals = [{"kind": "eval", "step": s, "images": 4 * s, "AP": 0.1 * s, "AP50": 0.2 * s} for s in (2, 4)]
    evals.append({"kind": "eval", "step": 5, "images": 20, "AP": None, "AP50": None})
    log = write_log(tmp_path / "metrics.jsonl", [stale, *train, *evals])
    learning_curve(log, str(tmp_path / "curve.png"))
    picture = cv2.imread(str(tmp_path / "curve.png"))
    assert picture is not None and picture.std() > 10
    losses, scores = ({line.get_label(): line.get_xydata() for line in axes.lines} for axes in drawn[0].axes)
    assert set(losses) == {"loss", "box"} and set(scores) == {"AP", "AP50"}
    np.testing.assert_allclose(losses["box"], [(4 * s, 2.0 / s) for s in range(1, 6)])
    np.testing.assert_allclose(scores["AP50"], [(8, 40), (16, 80)])


def test_long_logs_are_averaged(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: drawn.append(self))
    train = [{"kind": "train", "step": s, "images": s, "loss": 1.0 + s % 2} for s in range(2 * CURVE_POINTS)]
    learning_curve(write_log(tmp_path / "log", train), str(tmp_path / "curve.png"))
    (line,) = drawn[0].axes[0].lines
    assert len(line.get_ydata()) == CURVE_POINTS and set(line.get_ydata()) == {1.5}


@pytest.mark.parametrize(("text", "message"), [("", "no training record"), ('{"kind": "tr', "line 1 is not a JSON")])
def test_unreadable_logs_say_what_to_do(tmp_path, text, message):
    (tmp_path / "log").write_text(text)
    with pytest.raises(UserError, match=message):
        learning_curve(str(tmp_path / "log"), str(tmp_path / "curve.png"))


def scene(height: int = 100, width: int = 150) -> np.ndarray:
    return np.random.default_rng(0).integers(90, 110, (height, width, 3), dtype=np.uint8)


def box(category_id: int, x: float, y: float, side: float, **extra) -> dict:
    return {"category_id": category_id, "bbox": [x, y, side, side], **extra}


def overlay(detections=(), ground_truth=(), min_score=0.3) -> np.ndarray:
    return draw_overlay(scene(), list(detections), list(ground_truth), CLASSES, min_score)


def test_small_pictures_are_enlarged_and_get_a_legend():
    picture = overlay()
    assert picture.shape[1] == 450 and picture.shape[0] > 300 and picture.dtype == np.uint8
    assert draw_overlay(scene(40, 2500), [], [], CLASSES, 0.3).shape[1] == 2500


def test_detections_have_the_colour_of_their_class():
    picture = overlay([box(3, 20, 40, 8, score=0.9), box(7, 60, 40, 8, score=0.8)])
    assert tuple(picture[3 * 48 + 1, 3 * 24]) == PALETTE[0] and tuple(picture[3 * 48 + 1, 3 * 64]) == PALETTE[1]


def test_weak_detections_are_left_out():
    weak = box(3, 20, 40, 8, score=0.29)
    np.testing.assert_array_equal(overlay([weak]), overlay())
    assert (overlay([weak], min_score=0.2)[:300] != overlay()[:300]).any()


def test_ground_truth_is_dashed_over_its_detection():
    edge = overlay([box(3, 20, 40, 8, score=0.9)], [box(3, 20, 40, 8)])[3 * 48, 3 * 20 : 3 * 28 + 1]
    assert {tuple(pixel) for pixel in edge.tolist()} == {(255, 255, 255), (0, 0, 0)}


@pytest.mark.parametrize("region", [box(3, 50, 30, 30, ignore=1), box(3, 50, 30, 30, iscrowd=1), box(99, 50, 30, 30)])
def test_regions_are_hatched(region):
    changed = (overlay([], [region])[:300] != overlay()[:300]).any(axis=-1)
    assert changed[95:175, 155:235].mean() > 0.9 and not changed[:, :149].any()
    stripes = (overlay([], [region])[95:175, 155:235] == 210).all(axis=-1).mean()
    assert 0.1 < stripes < 0.2


def test_boxes_at_and_beyond_the_border_are_drawn():
    picture = overlay([box(3, -5, -5, 20, score=0.9)], [box(7, 140, 90, 30), box(99, 145, -10, 20)])
    assert picture.shape == overlay([box(3, 5, 5, 20, score=0.9)], [box(7, 40, 9, 30)]).shape


def test_overlays_are_written_and_inputs_kept(tmp_path):
    image, detections, ground_truth = scene(), [box(3, 20, 40, 8, score=0.9)], [box(7, 60, 60, 8)]
    write_overlays(str(tmp_path / "overlays"), [("first", image, detections, ground_truth)], CLASSES, 0.3)
    written = cv2.imread(str(tmp_path / "overlays" / "first.png"))
    np.testing.assert_array_equal(written[..., ::-1], draw_overlay(scene(), detections, ground_truth, CLASSES, 0.3))
    np.testing.assert_array_equal(image, scene())
