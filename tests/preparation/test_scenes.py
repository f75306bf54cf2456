"""The generated scenes: reproducible, disjoint, small, and not to be solved without learning."""

import functools
import itertools

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cfinet_jax.preparation.scenes.render import ANY_CLASS, SIZE, Scene, render_scene
from cfinet_jax.preparation.scenes.templates import CLASSES
from cfinet_jax.preparation.scenes.textures import texture

SIGMAS = (2.5, 3.5, 5.0, 7.0)


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {split: [render_scene(split, index) for index in range(30)] for split in ("train", "val", "test")}


def objects(scene: Scene) -> np.ndarray:
    return scene.boxes[~scene.ignore]


def side(boxes: np.ndarray) -> np.ndarray:
    return np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of every box of a with every box of b."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=2)
    return common / (side(a)[:, None] ** 2 + side(b)[None] ** 2 - common)


def test_a_scene_follows_from_its_number():
    once, again = render_scene("val", 3), render_scene("val", 3)
    for first, second in zip(once, again, strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(once.image, render_scene("val", 4).image)


@pytest.mark.parametrize("name", ["scene_seed", "texture_seed", "template_seeds"])
def test_splits_share_no_seed(scenes, name):
    used = [set(np.hstack([getattr(scene, name) for scene in many]).astype(int)) for many in scenes.values()]
    for first, second in itertools.combinations(used, 2):
        assert first and second and not first & second


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_objects_are_small(scenes, split):
    sides = side(np.concatenate([objects(scene) for scene in scenes[split]]))
    assert 13.5 <= np.median(sides) <= 16
    assert np.mean((sides >= 7.5) & (sides <= 32)) > 0.95


def test_ground_truth_is_sound():
    many = [render_scene("train", index) for index in range(150)]
    for scene in many:
        assert scene.image.shape == (SIZE, SIZE, 3) and scene.image.dtype == np.uint8
        boxes = objects(scene)
        assert np.all(scene.boxes >= 0) and np.all(scene.boxes <= SIZE) and np.all(side(boxes) > 5)
        assert len(boxes) <= 14
        assert np.max(np.triu(overlaps(boxes, boxes), 1), initial=0) <= 0.2
        np.testing.assert_array_equal(scene.ignore, scene.labels == ANY_CLASS)
    assert 0.15 < np.mean([scene.ignore.any() for scene in many]) < 0.25
    assert 0.005 < np.mean([len(scene.boxes) == 0 for scene in many]) < 0.06
    shares = np.bincount(np.concatenate([s.labels[~s.ignore] for s in many]), minlength=len(CLASSES))
    assert shares.min() > 0.8 * shares.mean()


def test_boxes_hug_what_is_drawn():
    """Every side of a box touches pixels that differ from the scene's background texture."""
    for index in range(20):
        scene = render_scene("test", index)
        changed = np.abs(scene.image - texture(scene.texture_seed, SIZE)).max(axis=2) > 25
        for x1, y1, x2, y2 in objects(scene):
            outer = changed[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]
            for strip in (outer[:2], outer[-2:], outer[:, :2], outer[:, -2:]):
                assert strip.any()


def find_blobs(image: np.ndarray, threshold: float, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Difference of Gaussians over several scales: squares of side `spread * sigma` at its extrema, their strength."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    stack = np.abs([cv2.GaussianBlur(grey, (0, 0), s) - cv2.GaussianBlur(grey, (0, 0), 1.6 * s) for s in SIGMAS])
    peaks = np.max([cv2.dilate(level, np.ones((9, 9))) for level in stack], axis=0)
    scale, y, x = np.nonzero((stack == peaks) & (stack > threshold))
    half = spread * np.array(SIGMAS)[scale] / 2
    return np.stack([x - half, y - half, x + half, y + half], axis=1), stack[scale, y, x]


def find_components(image: np.ndarray, threshold: float, blur: float) -> tuple[np.ndarray, np.ndarray]:
    """Connected pixels whose colour is far from that of the surroundings; their boxes and mean distance."""
    image = cv2.GaussianBlur(image, (0, 0), blur) if blur else image
    distance = np.linalg.norm(image.astype(np.float32) - cv2.medianBlur(image, 61), axis=2)
    count, marks, stats, _ = cv2.connectedComponentsWithStats((distance > threshold).astype(np.uint8))
    keep = [i for i in range(1, count) if 20 <= stats[i, cv2.CC_STAT_AREA] <= 2000]
    x, y, w, h = stats[keep, :4].T
    strength = np.bincount(marks.ravel(), distance.ravel(), count) / stats[:, cv2.CC_STAT_AREA]
    return np.stack([x, y, x + w, y + h], axis=1).reshape(-1, 4).astype(float), strength[keep]


@pytest.mark.parametrize(("find", "settings"), [(find_blobs, (16, 3.5)), (find_components, (50, 0))])
def test_the_detectors_without_learning_find_plain_discs(find, settings):
    image = np.full((SIZE, SIZE, 3), 90, np.uint8)
    centres = np.array(list(itertools.product(range(40, SIZE - 30, 50), repeat=2)))
    radii = np.linspace(5, 11, len(centres)).round()
    for centre, radius in zip(centres.tolist(), radii, strict=True):
        cv2.circle(image, centre, int(radius), (200, 160, 220), -1)
    boxes = np.hstack([centres - radii[:, None], centres + radii[:, None] + 1])
    found = overlaps(boxes, find(image, *settings)[0]).max(axis=1) > 0.5
    assert found.mean() > 0.9


def describe(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Mean colour, aspect ratio and size of boxes."""
    inner = np.clip(boxes, 0, SIZE).astype(int)
    colours = [image[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)].mean(axis=(0, 1)) for x1, y1, x2, y2 in inner]
    extent = boxes[:, 2:] - boxes[:, :2]
    shape = np.log(np.stack([extent[:, 0] / extent[:, 1], extent[:, 0] * extent[:, 1]], axis=1))
    return np.concatenate([np.reshape(colours, (-1, 3)), shape], axis=1)


def average_precision(scenes: list[Scene], found: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    """COCO AP50 of (boxes, scores, labels) per scene."""
    truth = {"images": [{"id": i} for i in range(len(scenes))], "categories": [{"id": i} for i in range(len(CLASSES))]}
    truth["annotations"] = []
    for image, scene in enumerate(scenes):
        for (x1, y1, x2, y2), label in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True):
            for category in range(len(CLASSES)) if label == ANY_CLASS else [label]:
                truth["annotations"].append({
                    "id": len(truth["annotations"]) + 1, "image_id": image, "category_id": category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(label == ANY_CLASS),
                })  # fmt: skip
    results = [
        {"image_id": image, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(score)}
        for image, arrays in enumerate(found)
        for (x1, y1, x2, y2), score, label in zip(*arrays, strict=True)
    ]
    if not results:
        return 0.0
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    scorer = COCOeval(coco, coco.loadRes(results), "bbox")
    scorer.params.iouThrs = np.array([0.5])
    scorer.evaluate()
    scorer.accumulate()
    precision = scorer.eval["precision"][0, :, :, 0, -1]
    return float(precision[precision > -1].mean())


def test_the_scorer_knows_a_perfect_detector(scenes):
    perfect = [(objects(s), np.ones(len(objects(s))), s.labels[~s.ignore]) for s in scenes["val"]]
    assert average_precision(scenes["val"], perfect) == pytest.approx(1)


@pytest.mark.parametrize(
    ("find", "thresholds", "shapes"),
    [(find_blobs, (8, 16, 32), (3.5, 4.5, 5.5)), (find_components, (25, 35, 50, 80), (0.0, 1.0))],
)
def test_no_detector_without_learning_solves_it(scenes, find, thresholds, shapes):
    """Boxes by thresholds, classes by the nearest class mean, all tuned on training scenes: AP50 stays below 0.15."""
    train, test = scenes["train"], scenes["test"]
    known = np.concatenate([describe(s.image, objects(s)) for s in train])
    labels = np.concatenate([s.labels[~s.ignore] for s in train])
    means = np.stack([known[labels == label].mean(axis=0) for label in range(len(CLASSES))])
    rules = {"colour": slice(0, 3), "shape": slice(3, 5), "aspect": slice(3, 4), "all": slice(0, 5)}

    @functools.cache  # all rules look at the same boxes
    def candidates(image_id, threshold, shape):
        image = images[image_id]
        boxes, strength = find(image, threshold, shape)
        return boxes, strength, (describe(image, boxes)[:, None] - means) / known.std(axis=0)

    images = {id(scene): scene.image for scene in (*train, *test)}

    def detect(scene, threshold, shape, rule):
        boxes, strength, apart = candidates(id(scene), threshold, shape)
        apart = np.linalg.norm(apart[..., rules[rule]], axis=2)
        return boxes, strength * np.exp(-apart.min(axis=1)), apart.argmin(axis=1)

    choices = list(itertools.product(thresholds, shapes, rules))
    tuned = [average_precision(train[:20], [detect(s, *choice) for s in train[:20]]) for choice in choices]
    best = choices[int(np.argmax(tuned))]
    score = average_precision(test, [detect(s, *best) for s in test])
    print(f"{find.__name__}: AP50 {score:.3f} with {best} (training {max(tuned):.3f})")
    assert score < 0.15
