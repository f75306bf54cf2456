"""VisDrone's own rules, compared with cases computed by hand and with a plain loop written after the toolkit."""

import numpy as np
import pytest

from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.metrics.score import score
from cfinet_jax.metrics.visdrone_toolkit import mostly_inside

TOOLKIT, COCO_LIKE = PROTOCOLS["visdrone_toolkit"], PROTOCOLS["visdrone"]
CAR, BUS, REGION = 4, 9, 11
CATEGORIES = [{"id": REGION, "name": "ignored regions"}, {"id": CAR, "name": "car"}, {"id": BUS, "name": "bus"}]


def entry(image: int, category: int, x: float, y: float, w: float = 10, h: float = 10, **more) -> dict:
    return {"image_id": image, "category_id": category, "bbox": [x, y, w, h], **more}


def truth(*annotations: dict, images: int = 2) -> dict:
    described = [{"id": number, "width": 200, "height": 200} for number in range(1, images + 1)]
    return {"images": described, "categories": CATEGORIES, "annotations": list(annotations)}


def row(score: float, image: int, category: int, x: float, y: float, w: float = 10, h: float = 10) -> dict:
    return entry(image, category, x, y, w, h, score=score)


APART = [20 * place for place in range(5)]
ROWS_OF_BUSES = [row(0.9 - place / 1000, 1, BUS, 100, 100) for place in range(500)]
CASES = {  # ground truth, detections in the order of the file, and the expected numbers
    "classes are averaged once for every picture that has them": (
        truth(entry(1, CAR, 0, 0), entry(2, CAR, 0, 0), entry(2, BUS, 50, 50)),
        [row(0.9, 1, CAR, 0, 0), row(0.8, 2, CAR, 0, 0)],
        {"AP": 2 / 3, "AP50": 2 / 3, "AR500": 2 / 3},  # (1 + 1 + 0) / 3; by COCO 1 / 2
    ),
    "a class of one picture counts once, however many objects": (
        truth(entry(1, CAR, 0, 0), entry(1, CAR, 50, 0), entry(1, BUS, 50, 50)),
        [row(0.9, 1, CAR, 0, 0), row(0.8, 1, CAR, 50, 0)],
        {"AP": 1 / 2},
    ),
    "ignored objects stay in the denominator of recall": (
        truth(entry(1, CAR, 0, 0), entry(1, CAR, 50, 50, ignore=1)),
        [row(0.9, 1, CAR, 0, 0), row(0.8, 1, CAR, 50, 50)],
        {"AP": 1 / 2, "AR500": 1 / 2, "boxes": {"all": 2}},  # by COCO 1
    ),
    "an ignored object absorbs by the share inside it, any number": (
        truth(entry(1, CAR, 0, 0), entry(1, CAR, 50, 50, 40, 40, ignore=1)),
        [row(0.9, 1, CAR, 55, 55), row(0.8, 1, CAR, 60, 60), row(0.7, 1, CAR, 0, 0)],
        {"AP50": 1 / 2},
    ),
    "the first rows of the file count, not the best": (
        truth(entry(1, CAR, 0, 0), entry(1, CAR, 50, 50)),
        [row(0.1, 1, CAR, 0, 0), row(0.9, 1, CAR, 50, 50)],
        {"AR1": 1 / 2, "AR10": 1, "AP": 1},
    ),
    "rows of all classes fill the file": (
        truth(entry(1, CAR, 0, 0), images=1),
        [*ROWS_OF_BUSES, row(0.99, 1, CAR, 0, 0)],
        {"AP": 0, "AR500": 0},  # by COCO 1
    ),
    "every picture has its own rows": (
        truth(entry(1, CAR, 0, 0), entry(2, CAR, 0, 0)),
        [row(0.5, 2, CAR, 0, 0), *ROWS_OF_BUSES[:9], row(0.4, 1, CAR, 0, 0)],
        {"AR1": 1 / 2, "AR10": 1},
    ),
    "the area under precision over recall": (
        truth(*(entry(1, CAR, x, 0) for x in APART)),
        [row(0.9, 1, CAR, 0, 0), row(0.8, 1, CAR, 150, 150), row(0.7, 1, CAR, 20, 0)],
        {"AP": (1 + 2 / 3) / 5, "AP50": (1 + 2 / 3) / 5},
    ),
    "boxes with half of their area in regions are dropped, objects too": (
        truth(entry(1, CAR, 0, 0), entry(1, CAR, 105, 100), entry(1, REGION, 100, 90, 50, 50)),
        [row(0.9, 1, CAR, 105, 100), row(0.8, 1, CAR, 97, 100), row(0.7, 1, CAR, 0, 0)],
        {"AP": 1, "boxes": {"all": 1}},
    ),
    "boxes with less of it are kept": (
        truth(entry(1, CAR, 0, 0), entry(1, REGION, 100, 90, 50, 50)),
        [row(0.9, 1, CAR, 93, 100), row(0.7, 1, CAR, 0, 0)],
        {"AP": 1 / 2},
    ),
    "regions drop rows before these are counted": (
        truth(entry(1, CAR, 0, 0), entry(1, REGION, 90, 90, 50, 50)),
        [*ROWS_OF_BUSES, row(0.1, 1, CAR, 0, 0)],
        {"AP": 1, "AR1": 1},
    ),
    "a region of another picture": (
        truth(entry(1, CAR, 20, 20), entry(2, REGION, 0, 0, 90, 90)),
        [row(0.9, 1, CAR, 20, 20)],
        {"AP": 1},
    ),
    "only an ignored object": (truth(entry(1, BUS, 0, 0, ignore=1)), [row(0.9, 1, BUS, 0, 0)], {"AP": 0}),
    "nothing to find": (truth(entry(1, REGION, 0, 0, 50, 50)), [row(0.9, 1, BUS, 0, 0)], {"AP": None, "AR500": None}),
    "no detection": (truth(entry(1, CAR, 0, 0)), [], {"AP": 0, "AR1": 0}),
}


@pytest.mark.parametrize("case", CASES)
def test_by_hand(case):
    ground_truth, detections, expected = CASES[case]
    result = score(ground_truth, detections, TOOLKIT)
    for name, value in expected.items():
        assert result[name] == (value if value is None or isinstance(value, dict) else pytest.approx(value)), name


def test_the_cases_differ_from_those_of_cocos_procedure():
    differ = {
        name for name, (*case, _) in CASES.items() if score(*case, COCO_LIKE)["AP"] != score(*case, TOOLKIT)["AP"]
    }
    assert {name for name in CASES if name.startswith(("classes", "ignored", "rows", "the area", "only"))} <= differ


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([105, 100, 10, 10], True),
        ([96, 100, 10, 10], True),  # columns 97 to 106, of which 100 to 106 are painted
        ([94, 100, 10, 10], True),  # 5 of 10, since a region begins with its first pixel
        ([93, 100, 10, 10], False),
        ([146, 100, 10, 10], False),  # columns 147 to 156, painted up to 150
        ([145, 100, 10, 10], True),
        ([-20, -20, 10, 10], False),
        ([300, 300, 10, 10], False),
        ([120, 100.4, 0.2, 0.2], True),  # sides are one pixel at least
    ],
)
def test_boxes_with_half_of_their_area_in_regions(box, expected):
    region = np.array([[100.0, 90, 50, 50]])
    assert mostly_inside(np.array([box], float), region).tolist() == [expected]
    assert mostly_inside(np.array([box] * 2, float), np.vstack([region, region])).tolist() == [expected] * 2


@pytest.mark.parametrize(
    ("boxes", "regions", "expected"),
    [
        ([[0, 0, 3e5, 3e5]], [[0, 0, 3e5, 2e5]], [True]),
        ([[1e6, 1e6, 10, 10], [5, 5, 10, 10]], [[0, 0, 30, 30], [1e6, 1e6, 4, 1e5]], [False, True]),
        ([[0, 0, 4e5, 10]], [[0, 0, 1e5, 1e6], [5e4, 0, 1e5, 20], [0, 8, 3e5, 1]], [False]),
    ],
)
def test_boxes_of_any_size_take_the_same_memory(boxes, regions, expected):
    assert mostly_inside(np.array(boxes, float), np.array(regions, float)).tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_what_is_inside_regions_is_counted_by_painting_them(seed):
    rng = np.random.default_rng(seed)
    boxes, regions = (np.hstack([rng.uniform(-5, 60, (n, 2)), rng.uniform(0, 30, (n, 2))]) for n in (40, 6))
    painted = np.zeros((200, 200), bool)
    for left, top, width, height in np.maximum(np.floor(regions + 0.5), 1).astype(int):
        painted[top : top + height + 1, left : left + width + 1] = True
    rounded = np.maximum(np.floor(boxes + 0.5), 1).astype(int)
    shares = [painted[y + 1 : y + h + 1, x + 1 : x + w + 1].mean() for x, y, w, h in rounded]
    assert mostly_inside(boxes, regions).tolist() == [share >= 0.5 for share in shares]


def plain_score(ground_truth: dict, detections: list[dict], limit: int) -> tuple[float, float]:
    """Compute AP and AR of pictures without regions, step by step."""
    precisions, recalls = [], []
    for category in (CAR, BUS):
        own = [e for e in ground_truth["annotations"] if e["category_id"] == category]
        pictures = {e["image_id"] for e in own}
        for threshold in TOOLKIT.overlaps:
            ranked = []
            for image in (each["id"] for each in ground_truth["images"]):
                rows = [d for d in detections if d["image_id"] == image][:limit]
                rows = sorted((d for d in rows if d["category_id"] == category), key=lambda d: -d["score"])
                boxes = sorted((e for e in own if e["image_id"] == image), key=lambda e: e["ignore"])
                taken = set()
                for each in rows:
                    best, reached = None, threshold
                    for place, box in enumerate(boxes):
                        if place in taken or (best is not None and not boxes[best]["ignore"] and box["ignore"]):
                            continue
                        value = overlap(each["bbox"], box["bbox"], box["ignore"])
                        if value >= reached:
                            best, reached = place, value
                    if best is None or not boxes[best]["ignore"]:
                        ranked.append((each["score"], best is not None))
                        taken |= {best} - {None}
            hits, area, points = 0, 0.0, []
            for number, (_, hit) in enumerate(sorted(ranked, key=lambda pair: -pair[0]), start=1):
                hits += hit
                points.append((hits, hits / number))
            for wanted in range(1, hits + 1):
                area += max(precision for count, precision in points if count >= wanted) / len(own)
            precisions += [area] * len(pictures)
            recalls += [hits / len(own) if own else 0] * len(pictures)
    return float(np.mean(precisions)), float(np.mean(recalls))


def overlap(a: list[float], b: list[float], share: bool) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + (0 if share else b[2] * b[3] - shared))


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for image in (1, 2, 3):
        for _ in range(8):
            box, category = [*rng.uniform(0, 60, 2), *rng.uniform(8, 25, 2)], int(rng.choice([CAR, CAR, BUS]))
            annotations.append(entry(image, category, *box, ignore=int(rng.random() < 0.2)))
            for _ in range(int(rng.integers(0, 4))):
                near = np.array(box) + rng.normal(0, 2, 4)
                detections.append(row(float(rng.random()), image, category, *near.tolist()))
    detections = [detections[place] for place in rng.permutation(len(detections))]
    ground_truth = truth(*annotations, images=3)
    result = score(ground_truth, detections, TOOLKIT)
    for limit in TOOLKIT.limits:
        ap, ar = plain_score(ground_truth, detections, limit)
        assert result[f"AR{limit}"] == pytest.approx(ar, abs=1e-9)
    assert result["AP"] == pytest.approx(ap, abs=1e-9)
    assert np.mean(result["per_class"]["car"]["precision50"]) == pytest.approx(
        result["per_class"]["car"]["AP50"], abs=1e-4
    )
