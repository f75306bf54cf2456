"""Counting an image twice gives the AP of a data set that has it twice."""

import numpy as np
import pytest

from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.metrics.resampling import average_precision, gather
from cfinet_jax.metrics.results import Columns
from cfinet_jax.metrics.score import score

IMAGES = 12


def made(rng) -> tuple[dict, Columns]:
    """Draw objects of two classes, some of them ignored, and right and wrong detections."""
    truth, found = [], []
    for image in range(IMAGES):
        for _ in range(rng.integers(0, 6)):
            box = [*rng.uniform(0, 200, 2), *rng.uniform(4, 40, 2)]
            label = int(rng.integers(1, 3))
            truth.append({"image_id": image, "category_id": label, "bbox": box, "ignore": int(rng.random() < 0.1)})
            if rng.random() < 0.7:
                found.append((image, label, np.add(box, rng.normal(0, 2, 4)).clip(1), rng.random()))
            if rng.random() < 0.5:
                found.append((image, label, [*rng.uniform(0, 200, 2), 9.0, 9.0], rng.random()))
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    columns = Columns(*(np.array(column) for column in zip(*found, strict=True)))
    return {
        "images": [{"id": image} for image in range(IMAGES)],
        "annotations": truth,
        "categories": categories,
    }, columns


def repeated(truth: dict, found: Columns, times: np.ndarray) -> tuple[dict, Columns]:
    """Repeat every image `times` times, each copy with its own id."""
    images, annotations, parts = [], [], []
    for image, count in enumerate(times.tolist()):
        for copy in range(count):
            new = image + IMAGES * copy
            images.append({"id": new})
            own = [each | {"image_id": new} for each in truth["annotations"] if each["image_id"] == image]
            annotations += own
            chosen = found.image_ids == image
            parts.append(found._replace(image_ids=np.where(chosen, new, found.image_ids)))
            parts[-1] = Columns(*(column[chosen] for column in parts[-1]))
    joined = Columns(*map(np.concatenate, zip(*parts, strict=True)))
    return truth | {"images": images, "annotations": annotations}, joined


@pytest.mark.parametrize("protocol", ["coco", "soda_d", "visdrone"])
@pytest.mark.parametrize("seed", range(3))
def test_ap_is_that_of_the_images_repeated(protocol, seed):
    rng = np.random.default_rng(seed)
    rules = PROTOCOLS[protocol]
    truth, found = made(rng)
    evidence = gather(truth, found, rules, (rules.headline, *rules.sizes))
    for times in (np.ones(IMAGES, int), rng.multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES))):
        expected = score(*repeated(truth, found, times), rules)
        wanted = [expected["AP"], *(expected[f"AP_{size}"] for size in rules.sizes)]
        wanted = [np.nan if value is None else value for value in wanted]
        np.testing.assert_allclose(average_precision(evidence, times), wanted, atol=1e-9)


def test_nothing_to_find_has_no_ap_and_nothing_found_has_zero():
    rules = PROTOCOLS["coco"]
    truth, found = made(np.random.default_rng(0))
    assert np.isnan(average_precision(gather(truth, found, rules, ("all",)), np.zeros(IMAGES, int))).all()
    nothing = Columns(*(column[:0] for column in found))
    assert average_precision(gather(truth, nothing, rules, ("all",)), np.ones(IMAGES, int)) == [0.0]
