"""`--mode=analyse`: its numbers against plain loops, its advice on settings that call for it."""

import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from cfinet_jax.boxes.anchors import anchor_grid
from cfinet_jax.input.batches import Objects, views
from cfinet_jax.input.dataset import open_dataset
from cfinet_jax.metrics.protocols import SIZES, sizes_of
from cfinet_jax.models.detector import build_detector
from cfinet_jax.restore import state_shapes
from cfinet_jax.runtime import mesh
from cfinet_jax.studies import analyse
from cfinet_jax.studies.analyse import advice, data_tables
from cfinet_jax.studies.analyse.contents import Contents, overlaps_with_anchors, read_contents, unmatched
from configs import coco
from tests import plain, tiny


def view(size: tuple[int, int], boxes: list, labels: list, ignore: list) -> tuple[tuple[int, int], Objects]:
    """An image as `batches.views` yields it."""
    return size, Objects(np.array(boxes, float).reshape(-1, 4), np.array(labels, int), np.array(ignore, bool))


VIEWS = [
    view((40, 60), [[0, 0, 10, 10], [0, 0, 30, 0.5], [5, 5, 25, 9]], [1, 0, 0], [False, False, True]),
    view((100, 50), [], [], []),
    view((40, 60), [[1, 2, 3, 4], [0, 0, 40, 40]], [0, 2], [False, False]),
]


def sizes(image_size: tuple[int, int] | None) -> ConfigDict:
    return ConfigDict({"image_size": image_size, "window_overlap": None})


def test_contents_are_the_objects_to_learn():
    contents = read_contents(VIEWS, sizes((80, 100)))
    assert contents.pictures.tolist() == [[40, 60], [100, 50], [40, 60]]
    np.testing.assert_allclose(contents.scales, [100 / 60, 0.8, 100 / 60])
    assert contents.boxes.tolist() == [[0, 0, 10, 10], [1, 2, 3, 4], [0, 0, 40, 40]]
    assert (contents.labels.tolist(), contents.owners.tolist()) == ([1, 0, 2], [0, 2, 2])
    assert (contents.objects.tolist(), contents.regions.tolist()) == ([1, 0, 2], [1, 0, 0])
    assert contents.areas.tolist() == [100, 4, 1600]
    np.testing.assert_allclose(contents.network_boxes[0], [0, 0, 100 / 6, 100 / 6])
    assert read_contents(VIEWS, sizes(None)).scales.tolist() == [1, 1, 1]


def test_sizes_are_those_of_soda():
    areas = np.array([1, 144, 144.1, 400, 1024, 1025, 2000, 2001, 1e6])
    assert [SIZES[size] for size in sizes_of(areas)] == [
        "eS", "eS", "rS", "rS", "gS", "N", "N", "larger", "larger",
    ]  # fmt: skip


@pytest.mark.parametrize(("network", "levels"), [("coarse_to_fine", 4), ("rpn", 5)])
def test_overlaps_are_with_the_best_anchor_of_all_levels(rng, network, levels):
    config = coco.get_config()
    config.dataset.update(stored_size=(96, 64), image_size=(160, 96))
    config.detector.neck.levels, config.detector.proposal_network.name = levels, network
    low, extent = rng.uniform(0, 60, (20, 2)), rng.uniform(1, 40, (20, 2))
    boxes = np.concatenate([low, low + extent], axis=1)
    scales = np.array([0.7, 1.5])
    contents = Contents(
        np.zeros((2, 2)), scales, boxes, np.zeros(20), np.zeros(20, int), np.arange(20) % 2, np.zeros(2)
    )
    ratios = (1.0,) if network == "coarse_to_fine" else (0.5, 1.0, 2.0)
    grids = [
        anchor_grid((-(-160 // stride), -(-96 // stride)), stride, 3.0, ratios)
        for stride in (4, 8, 16, 32, 64)[:levels]
    ]
    expected = [
        max(plain.iou(box * scales[index % 2], anchor) for grid in grids for anchor in grid)
        for index, box in enumerate(boxes)
    ]
    np.testing.assert_allclose(overlaps_with_anchors(contents, config, 3.0), expected, atol=1e-5)


def test_objects_without_an_anchor():
    """For sides of 12 and 48, Eq. 1 requires 0.25 and 0.5, the released code 0.25 and 0.55, and so on."""
    config = coco.get_config()
    boxes = np.array([[0.0, 0, 12, 12], [0, 0, 48, 48], [0, 0, 48, 48], [0, 0, 48, 48]])
    rest = np.zeros(4), np.zeros(4, int), np.zeros(4, int), np.zeros(1)
    contents = Contents(np.zeros((1, 2)), np.full(1, 7.0), boxes, *rest)
    shares = unmatched(contents, config, np.array([0.24, 0.51, 0.49, 0.1]))
    assert shares == {"paper": 0.75, "released": 0.5, "literal": 1.0, "fixed": 0.25}
    config.detector.proposal_network.name = "rpn"
    assert unmatched(contents, config, np.ones(4)) == {}


def test_oriented_objects_are_counted_by_their_own_size():
    """An object of 30 x 10 pixels at 45 degrees needs an upright box of 28 x 28."""
    box = np.array([[50, 50, 30, 10, np.pi / 4]])
    objects = Objects(box, np.zeros(1, int), np.zeros(1, bool), np.zeros((1, 4, 2)))
    contents = read_contents([((100, 100), objects)], sizes((100, 100)))
    assert contents.areas.tolist() == [300] and np.ptp(contents.boxes[0, ::2]) == pytest.approx(40 / np.sqrt(2))


def rows(markdown: str) -> list[list[str]]:
    """The cells of a table without its head."""
    return [line.strip("| ").split(" | ") for line in markdown.splitlines()[2:]]


def test_tables_of_counts():
    contents = read_contents(VIEWS, sizes((80, 120)))  # the first and last picture are doubled
    assert rows(data_tables.size_table(contents)) == [
        ["eS (0-144)", "2 (67%)", "1 (33%)"],
        ["rS (144-400)", "0 (0%)", "1 (33%)"],
        ["gS (400-1024)", "0 (0%)", "0 (0%)"],
        ["N (1024-2000)", "1 (33%)", "0 (0%)"],
        ["larger (> 2000)", "0 (0%)", "1 (33%)"],
    ]
    assert rows(data_tables.class_table(contents, ["a", "b", "c"])) == [
        ["a", "1", "0", "0", "0", "0", "1"],
        ["b", "1", "0", "0", "0", "0", "1"],
        ["c", "0", "0", "0", "1", "0", "1"],
    ]
    settings = ConfigDict({"stored_size": (40, 60), "window_overlap": None})
    assert rows(data_tables.split_table({"train": contents}, settings, 10)) == [
        ["train", "3", "3", "1", "1", "2", "40 x 60", "100 x 60", "3"]  # rows from 0, 30 and 60 of the second
    ]
    assert rows(data_tables.scale_table({2.0: np.array([0.25, 0.5, 0.75])})) == [["2", "0.500", "67%"]]
    assert rows(data_tables.rule_table({"paper": 0.125})) == [["paper", "12.5%"]]
    assert rows(data_tables.memory_table({"a": 2**20, "b": 2**21}, 2**30)) == [
        ["a", "1.00"], ["b", "2.00"], ["**together**", "3.00"], ["available", "1,024.00"],
    ]  # fmt: skip


def sound(changes: dict) -> tuple[ConfigDict, Contents]:
    """A config, with changes, and contents that without these call for no advice."""
    config = coco.get_config()
    settings = {"dataset.stored_size": (64, 96), "dataset.max_objects": 64, "training.images": 1200}
    config.update_from_flattened_dict(settings | changes)
    boxes = np.tile([5.0, 5.0, 25.0, 30.0], (6000, 1))
    boxes[:10, 2] = 6  # a few thin ones
    areas, labels, owners = np.full(6000, 500.0), np.arange(6000) % 2, np.arange(6000) % 100
    return config, Contents(np.tile((60, 90), (100, 1)), np.ones(100), boxes, areas, labels, owners, np.zeros(100, int))


OVERLAPS, RULES, GIB = {2.0: 0.6, 4.0: 0.61}, {"paper": 0.05, "released": 0.04}, 2**30
ADVICE = [  # changed settings, other facts, and the one line of advice
    ({}, {}, "Nothing to change"),
    ({"dataset.max_objects": 59}, {}, "100 images .* --config.dataset.max_objects=64"),
    ({"dataset.stored_size": (64, 64)}, {}, r'100 images are larger .*stored_size="\(64, 96\)"'),
    ({"dataset.stored_size": (96, 96)}, {}, r'No image needs all .*stored_size="\(64, 96\)"'),
    ({"training.images": 500}, {}, r'5.0 passes .*training.images=1200 .*decay_images="\(800, 1100\)"'),
    ({}, {"classes": "abc"}, r"fewer than 50 objects .* c \(0\)"),
    ({}, {"overlaps": {2.0: 0.5, 3.0: 0.6}}, "Anchors of scale 3 .*coarse_to_fine.anchor_scale=3.0"),
    (
        {},
        {"without_anchor": {"paper": 0.2, "released": 0.04}},
        "for 20% .*, for 4% .*coarse_to_fine.coarse_threshold=released",
    ),
    ({"dataset.batch_size": 32}, {"needed": 99 * GIB}, "needs 99.0 GiB, .* 8.0: --config.training.micro_batches=2"),
    ({"dataset.batch_size": 8}, {"needed": 99 * GIB}, r'needs 99.0 GiB, .*image_size="\(32, 48\)"'),
]


@pytest.mark.parametrize(("changes", "facts", "expected"), ADVICE)
def test_advice(changes, facts, expected):
    config, contents = sound(changes)
    facts = {
        "classes": "ab",
        "overlaps": OVERLAPS,
        "without_anchor": RULES,
        "needed": GIB,
        "available": 8 * GIB,
    } | facts
    (line,) = advice.advise(config, contents, [contents], **facts)
    assert re.search(expected, line), line


def test_advice_on_thin_objects_padding_and_large_images():
    config, contents = sound({})
    boxes = contents.boxes.copy()
    boxes[:200, 2] = 6
    (line,) = advice.objects(config, contents._replace(boxes=boxes), "ab")
    assert "3% of the objects are thinner" in line and '--config.dataset.image_size="(128, 192)"' in line
    pictures = contents.pictures.copy()
    pictures[:60] = 30, 40
    (line,) = advice.sizes(config.dataset, [contents._replace(pictures=pictures)])
    assert "half of a batch is padding" in line and '--config.dataset.image_size="(32, 64)"' in line
    config.dataset.stored_size = (3008, 4000)
    large = contents._replace(pictures=np.tile((3000, 4000), (100, 1)))
    (line,) = advice.sizes(config.dataset, [large])
    assert '--config.dataset.stored_size="(800, 800)" --config.dataset.window_overlap=150' in line
    config.dataset.update(stored_size=(800, 800), window_overlap=150)
    windows = contents._replace(pictures=np.tile((800, 800), (100, 1)))
    assert not list(advice.sizes(config.dataset, [windows]))


def test_cut_images_are_analysed_window_by_window(tiny_scenes):
    """Objects keep their size, and objects in the overlap appear more than once."""
    settings = tiny.tiny_config().dataset
    settings.update(data_dir=str(tiny_scenes), image_size=None)
    split = open_dataset(settings, "train")
    whole = read_contents(views(split, settings, training=True), settings)
    settings.update(stored_size=(160, 160), window_overlap=40)
    cut = read_contents(views(split, settings, training=True), settings)
    assert len(cut.pictures) > len(whole.pictures) and cut.pictures.tolist() == [[160, 160]] * len(cut.pictures)
    assert len(cut.boxes) > len(whole.boxes) and cut.boxes.max() <= 160
    assert np.isclose(whole.areas[:, None], cut.areas, rtol=1e-4).any(axis=1).all()


def test_the_analysis_of_a_config(tiny_scenes, tmp_path, monkeypatch):
    """Everything except compiling."""
    monkeypatch.setattr(analyse, "memory_needed", lambda *_: {"parameters": 2**20})
    status, output, errors = tiny.call_main(*tiny.arguments(tiny_scenes, tmp_path / "run"), "--mode=analyse")
    assert (status, errors) == (0, "")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"analysis.md", "analysis.png"}
    text = (tmp_path / "run" / "analysis.md").read_text()
    settings = tiny.tiny_config().dataset
    settings.data_dir = str(tiny_scenes)
    contents = read_contents(views(open_dataset(settings, "train"), settings, training=True), settings)
    assert data_tables.size_table(contents) in text and data_tables.size_table(contents) in output
    assert f"| train | 16 | {len(contents.boxes)} |" in text and "| test | 8 |" in text
    assert "fewer than 50 objects" in text and "traffic-light" in text


def test_the_memory_of_a_step():
    """The step is the one that training compiles, so that the cache has it."""
    config = tiny.tiny_config()
    needed = analyse.memory_needed(config, 6)
    state = state_shapes(config, build_detector(config.detector, 6), mesh.make_mesh())
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert needed["parameters"] > 4 * numbers and needed["optimizer state"] >= 4 * numbers
    assert needed["images and boxes of a step"] > np.prod(config.dataset.stored_size) * 3
    assert needed["temporaries of a step"] > 0
