"""Windows of oriented data: SODA-A's rules, compared with a plain loop over polygons."""

import itertools
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from cfinet_jax.boxes import kinds, oriented
from cfinet_jax.build import check_boxes, check_values
from cfinet_jax.errors import UserError
from cfinet_jax.evaluate import detect_split, score_split, write_results
from cfinet_jax.input.annotations import Objects, fill_a_pixel, nothing, objects_in_window, objects_of
from cfinet_jax.input.batches import train_batches, views, windows_of
from cfinet_jax.input.dataset import Prepared, open_dataset
from cfinet_jax.input.windows import fill_polygons, share_in_window, windows_with_objects
from cfinet_jax.preparation.own_builder import Builder
from cfinet_jax.preparation.sodaa import read_sodaa
from cfinet_jax.runtime import mesh
from cfinet_jax.structures import WHOLE
from cfinet_jax.studies.analyse.contents import read_contents
from configs import sodaa as sodaa_config
from configs import sodad
from tests import plain, sodaa
from tests.soda import draw

WINDOW, OVERLAP = (800, 800), (150, 150)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> ConfigDict:
    """The section `dataset` of an experiment on the tiny SODA-A."""
    folder = epath.Path(tmp_path_factory.mktemp("sodaa"))
    source = sodaa.make(folder / "SODA-A")
    builder = Builder(
        read=lambda journal: read_sodaa(epath.Path(source), journal),
        origin={},
        name="sodaa",
        boxes="oriented",
        data_dir=str(folder / "prepared"),
    )
    builder.download_and_prepare(file_format="array_record")
    settings = sodad.get_config().dataset
    settings.update(name="sodaa", boxes="oriented", data_dir=str(folder / "prepared"), max_objects=8, read_threads=1)
    return settings


@pytest.fixture(scope="module")
def prepared(settings) -> Prepared:
    return open_dataset(settings, "train")


# --- one polygon in one window ---------------------------------------------------------------------------------------

PLACES = st.floats(-40, 160, width=32)


@given(st.lists(PLACES, min_size=8, max_size=8), st.booleans())
def test_shares_are_those_of_a_plain_clip(places, reverse):
    corners = np.reshape(places, (4, 2))[:: -1 if reverse else 1]
    middle = corners.mean(axis=0)
    corners = corners[np.argsort(np.arctan2(*(corners - middle).T))]  # star-shaped, so that it does not cross itself
    area = plain.polygon_area(corners)
    if area < 1:
        return
    origin, window = np.array([10, 30]), (70, 60)
    frame = np.array([[30, 10], [90, 10], [90, 80], [30, 80]], float)
    expected = plain.shared_area(corners, frame) / area
    np.testing.assert_allclose(share_in_window(corners[None], origin, window), [expected], atol=1e-6)


def test_a_polygon_without_area_has_a_share_of_zero():
    lines = np.array([[[5.0, 5.0]] * 4, [[0, 0], [9, 9], [5, 5], [3, 3]]])
    np.testing.assert_array_equal(share_in_window(lines, np.zeros(2, int), (20, 20)), [0, 0])


def test_windows_with_enough_of_an_object_are_trained_on():
    polygons = np.array([sodaa.turned(660, 400, 60, 20, 0)]).reshape(-1, 4, 2)  # 630-690, the second column from 650
    assert windows_with_objects((900, 1600), polygons, WINDOW, OVERLAP).tolist() == [[0, 0], [100, 0]]
    polygons = polygons + [9, 0]  # three quarters of it in the second column
    origins = windows_with_objects((900, 1600), polygons, WINDOW, OVERLAP)
    assert origins.tolist() == [[0, 0], [0, 650], [100, 0], [100, 650]]
    assert not len(windows_with_objects((900, 1600), polygons[:0], WINDOW, OVERLAP))


def test_regions_are_black_but_for_objects():
    picture = np.full((60, 80, 3), 9, np.uint8)
    region = np.reshape(sodaa.turned(40, 30, 40, 20, 30), (1, 4, 2))
    kept = np.reshape(sodaa.turned(40, 30, 10, 6, -20), (1, 4, 2))
    fill_polygons(picture, region, kept)
    y, x = np.mgrid[:60, :80]

    def depth(polygon: np.ndarray) -> np.ndarray:
        """How far inside a polygon every pixel lies, negative outside."""
        sides = np.roll(polygon, -1, axis=0) - polygon
        turns = [(dx * (y - py) - dy * (x - px)) / math.hypot(dx, dy) for (px, py), (dx, dy) in zip(polygon, sides,
                 strict=True)]  # fmt: skip
        return np.min(turns, axis=0)

    inside, restored = depth(region[0]), depth(kept[0])
    black = picture[..., 0] == 0
    assert black[(inside > 1.5) & (restored < -1.5)].all() and not black[(inside < -1.5) | (restored > 1.5)].any()


def test_an_object_cut_off_is_dropped_and_an_ignored_one_stays():
    polygons = np.array([sodaa.turned(x, 50, 40, 10, 0) for x in (0, 9, 0)], np.float32).reshape(-1, 4, 2)
    boxes = oriented.from_polygon(polygons.reshape(-1, 8))
    objects = Objects(boxes, np.array([1, 2, 3]), np.array([False, False, True]), polygons)
    seen = objects_in_window(objects, np.array([20, 0]), (100, 100))
    assert seen.labels.tolist() == [2, 3] and WHOLE == 0.7
    np.testing.assert_allclose(seen.boxes[0], [9, 30, 40, 10, 0], atol=1e-5)  # whole, though it sticks out
    np.testing.assert_array_equal(seen.polygons, polygons[1:] - [0, 20])


@pytest.mark.parametrize("boxes", ["horizontal", "oriented"])
def test_a_picture_without_annotations_has_arrays_of_the_same_shapes(boxes):
    columns = ("bbox", "label", "ignore") + ("rbox", "poly") * (boxes == "oriented")
    empty, read = nothing(boxes), objects_of({"objects": {column: [] for column in columns}})
    for ours, theirs in zip(empty, read, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert empty.boxes.shape == (0, 4 + (boxes == "oriented"))


def test_boxes_of_both_kinds():
    upright, turned = np.array([[0, 0, 10, 0.5], [0, 0, 3, 4]]), np.array([[5, 5, 10, 0.5, 1], [5, 5, 4, 2, 0]])
    assert fill_a_pixel(upright).tolist() == fill_a_pixel(turned).tolist() == [False, True]
    np.testing.assert_array_equal(kinds.enclose(upright), upright)
    np.testing.assert_allclose(kinds.enclose(turned)[1], [3, 4, 7, 6])


# --- a split ---------------------------------------------------------------------------------------------------------


def plain_windows(name: str) -> list[tuple[tuple[int, int], list[tuple[int, np.ndarray]]]]:
    """The windows of an image of `train` by SODA-A's rules: corner (left, top), and the classes and corners in it."""
    (height, width), entries = sodaa.IMAGES["train"][name]

    def starts(extent: int) -> list[int]:
        count = 1 if extent <= 800 else math.ceil((extent - 800) / 650 + 1)
        return [min(650 * k, max(extent - 800, 0)) for k in range(count)]

    result = []
    for left, top in itertools.product(starts(width), starts(height)):
        frame = np.array([[left, top], [left + 800, top], [left + 800, top + 800], [left, top + 800]], float)
        inside = []
        for category, poly in entries:
            corners = np.reshape(poly, (4, 2))
            thin = category == 8
            if category != sodaa.IGNORE and not thin:
                share = plain.shared_area(corners, frame) / plain.polygon_area(corners)
                if share >= 0.7:
                    inside.append((category, corners - [left, top]))
        if inside:
            result.append(((left, top), inside))
    return result


def test_training_windows_follow_the_rules(settings, prepared):
    windows = windows_of(prepared, settings, training=True)
    epoch = itertools.islice(train_batches(prepared, windows, settings, 0, 1), len(windows.owners))
    rows = [jax.tree.map(lambda leaf: leaf[0], batch) for batch in epoch]
    names = {int(record["image_id"]): record["file_name"].decode()[:5] for record in prepared.source}
    expected = [(name, *window) for name in names.values() for window in plain_windows(name)]
    assert len(rows) == len(expected) > 3
    for name, (left, top), inside in expected:
        wanted = np.array([corners for _, corners in inside])
        (row,) = [
            row
            for row in rows
            if names[int(row.image_ids)] == name
            and row.ground_truth.valid.sum() == len(inside)
            and np.abs(row.ground_truth.oriented[: len(inside), :2] - wanted.mean(1)).max() < 1e-2
        ]
        truth = row.ground_truth
        assert truth.oriented.shape == (8, 5) and not truth.ignore.any()
        assert truth.labels[truth.valid].tolist() == [category for category, _ in inside]
        found = oriented.to_polygon(truth.oriented[truth.valid]).reshape(-1, 4, 2)
        assert np.abs(found[:, :, None] - wanted[:, None]).max(-1).min(2).max() < 1e-2
        size, entries = sodaa.IMAGES["train"][name]
        np.testing.assert_array_equal(row.sizes, np.minimum(size, 800))
        whole = draw(*size)
        polygons = {
            kind: np.array([poly for category, poly in entries if (category == sodaa.IGNORE) is kind])
            for kind in (True, False)
        }
        fill_polygons(whole, *(polygons[kind].reshape(-1, 4, 2) for kind in (True, False)))
        shown = whole[top : top + 800, left : left + 800]
        height, width = shown.shape[:2]
        difference = np.abs(row.images[:height, :width].astype(int) - shown)
        assert difference.mean() < 1 and np.mean(difference > 20) < 0.002  # JPEG


def test_contents_are_upright(settings, prepared):
    contents = read_contents(views(prepared, settings, training=True), settings)
    assert contents.boxes.shape[1] == 4 and len(contents.boxes) > 3 and not contents.regions.any()


def test_a_split_is_detected_scored_and_written(settings, tmp_path):
    """By a detector that knows; its proposals enclose what it finds."""
    config = sodad.get_config()
    config.dataset.update(dict(settings.items()))
    config.evaluation.update(protocol="soda_a", overlays=1)
    config.dataset.eval_batch_size = 8
    prepared = open_dataset(config.dataset, "train")

    def detect(_, batch):
        truth = jax.tree.map(np.asarray, batch.ground_truth)
        scores, valid = truth.oriented[..., 2] / 1e3, truth.is_object
        found = SimpleNamespace(boxes=truth.oriented, scores=scores, labels=truth.labels, valid=valid)
        return found, SimpleNamespace(boxes=truth.boxes, scores=scores, valid=valid)

    results, proposals = detect_split(detect, None, prepared, config, mesh.make_mesh())
    scored = score_split(results, proposals, prepared, "soda_a")
    metrics = scored.metrics
    assert len(results.scores) == metrics["boxes"]["Small"] + 1 == 5  # one is larger than 1024 square pixels
    assert metrics["AP"] == pytest.approx(1) and metrics["proposals"]["AR100"] == pytest.approx(1)
    (tmp_path / "run").mkdir()
    write_results(epath.Path(tmp_path / "run"), scored, prepared, config)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"metrics.json", "detections.json", "report.html", "dota"} <= left
    (line,) = (tmp_path / "run" / "dota" / "Task1_container.txt").read_text().splitlines()
    assert line.startswith("00003 ") and len(line.split()) == 10
    assert "oriented boxes" in (tmp_path / "run" / "report.md").read_text()


# --- what does not fit together --------------------------------------------------------------------------------------


def test_boxes_and_data_fit_together(settings, prepared):
    check_boxes(settings, prepared)
    with pytest.raises(UserError, match="dataset.boxes is horizontal, but sodaa has oriented boxes: choose another"):
        check_boxes(ConfigDict({**settings, "boxes": "horizontal"}), prepared)


@pytest.mark.parametrize(
    ("boxes", "protocol", "said"),
    [
        ("oriented", "soda_d", "'soda_d': choose one of oriented, soda_a, soda_a_2025, which score oriented boxes"),
        ("horizontal", "soda_a", "soda_d, tiny_person, visdrone, visdrone_toolkit, which score horizontal boxes"),
        ("square", "soda_d", "dataset.boxes is 'square': choose horizontal or oriented"),
    ],
)
def test_boxes_and_protocol_fit_together(boxes, protocol, said):
    config = (sodaa_config if boxes == "oriented" else sodad).get_config()
    config.dataset.boxes, config.evaluation.protocol = boxes, protocol
    with pytest.raises(UserError, match=said):
        check_values(config)
