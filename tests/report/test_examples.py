"""Choice and description of the best, the typical and the worst images."""

import numpy as np
import pytest
from etils import epath

from cfinet_jax.metrics.error_types import MISSED, OUTCOMES, count_outcomes
from cfinet_jax.report.examples import choose, describe, write_examples
from tests.report.split import NAMES, some_detections, some_split

BACKGROUND = OUTCOMES.index("background")


def images(*of_image: tuple[int, int, int]) -> np.ndarray:
    """Counts of images by true and background detections and missed objects."""
    counts = np.zeros((len(of_image), 1, len(OUTCOMES)), int)
    for row, (true, background, missed) in enumerate(of_image):
        counts[row, 0, [0, BACKGROUND, MISSED]] = true, background, missed
    return counts


def test_images_are_chosen_by_f1():
    counts = images((1, 0, 1), (0, 2, 2), (5, 0, 0), (0, 0, 0), (1, 0, 0), (0, 9, 2), (2, 0, 1), (1, 1, 2))
    assert choose(counts, 6) == {"best": [2, 4], "typical": [6, 0], "worst": [5, 1]}


@pytest.mark.parametrize("number", range(6))
def test_no_image_is_chosen_twice_or_without_f1(number):
    counts = images((1, 0, 1), (0, 0, 0), (5, 0, 0), (0, 2, 0))
    chosen = [position for positions in choose(counts, number).values() for position in positions]
    assert len(chosen) == len(set(chosen)) == min(number, 3) and 1 not in chosen


def test_few_images_are_enough():
    assert choose(images((0, 0, 0)), 9) == {"best": [], "typical": [], "worst": []}
    assert choose(images((1, 0, 0)), 9) == {"best": [0], "typical": [], "worst": []}


def test_outcomes_are_described_in_words():
    assert describe(images((3, 2, 1))[0]) == "F1 0.67, 3 of 4 objects found, mistakes: 2 background"
    assert describe(images((0, 0, 2))[0]) == "F1 0.00, 0 of 2 objects found, mistakes: none"


def test_pictures_replace_those_of_an_earlier_evaluation(tmp_path):
    folder, prepared = epath.Path(tmp_path) / "overlays", some_split()
    folder.mkdir()
    (folder / "best-1-before.png").write_text("")
    (folder / "notes.txt").write_text("")
    found = some_detections(prepared)
    counts = count_outcomes(prepared.coco, found, prepared.category_ids, 0.3)
    text = write_examples(folder, {"best": [0, 1], "worst": [2]}, counts, found, prepared, 0.3)
    drawn = {path.name for path in folder.iterdir()}
    assert drawn == {"best-1-1.png", "best-2-1.png", "worst-1-c__x__y_.png", "notes.txt"}
    assert all(f"(overlays/{name})" in text for name in drawn if name.endswith("png"))
    assert NAMES[0] in text and "### Best" in text and "### Worst" in text
    assert "20 of 21 objects found" in text and "0 of 20 objects found, mistakes: 1 background" in text
