"""The grades of objects: quality and its classes, and who becomes an exemplar."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.models.feature_imitation import FeatureImitation
from cfinet_jax.models.roi_head import Predictions
from cfinet_jax.ops.exemplar_memory import empty_memory
from cfinet_jax.structures import QuantileMemory, RoiSamples, Term
from tests import plain, tiny
from tests.imitation import RELEASED, STDS, grade, imitation, scene


def golden_image(data: dict, case: str, most: int = 150):
    """Predictions, samples and a batch of one image of the reference."""
    positives, negatives = data[f"{case}_pos_inds"], data[f"{case}_neg_inds"]
    objects, count, regions = len(data[f"{case}_gt"]), len(positives), 256
    padding = regions - count - len(negatives)
    source = np.r_[positives, negatives, np.zeros(padding, int)]
    place = np.arange(regions)
    samples = RoiSamples(
        boxes=np.pad(data[f"{case}_sampled_boxes"], ((0, padding), (0, 0))),
        labels=np.r_[data[f"{case}_pos_gt_labels"], np.full(regions - count, 9)].astype(np.int32),
        matched=np.r_[data[f"{case}_pos_assigned_gt_inds"], np.zeros(regions - count)].astype(np.int32),
        overlaps=np.r_[data[f"{case}_pos_ious"], np.zeros(regions - count)].astype(np.float32),
        source=np.where(source < objects, source, source - objects + most).astype(np.int32),
        is_object=place < count,
        valid=place < regions - padding,
    )
    logits = np.pad(data[f"{case}_cls_logits"], ((0, padding), (0, 0)))
    truth = plain.ground_truth(data[f"{case}_gt"], data[f"{case}_gt_labels"], most)
    batch = dataclasses.replace(tiny.batch(images=1), ground_truth=jax.tree.map(lambda x: x[None], truth))
    predictions = Predictions(logits, np.zeros((regions, 9, 4), np.float32))
    return jax.tree.map(lambda x: jnp.asarray(x)[None], (predictions, samples)) + (batch,)


def test_grades_agree_with_the_reference(golden):
    data = golden("fi_quality")
    module = FeatureImitation(**RELEASED | {"max_exemplars": 16})
    memory = empty_memory(9, 1, 7, 1)
    grade = jax.jit(lambda *a: module.apply({}, *a, memory, STDS, method="grade"))
    assert data["params"].tolist() == pytest.approx(
        [module.min_score, module.high_quality, module.low_quality, module.min_predictions]
    )
    for number in range(int(data["n_cases"])):
        case = f"c{number:02d}"
        objects = len(data[f"{case}_gt"])
        grades = jax.tree.map(lambda x: np.asarray(x[0]), grade(*golden_image(data, case)))
        np.testing.assert_allclose(grades.quality[:objects], data[f"{case}_iq"], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(grades.quality_class[:objects], data[f"{case}_iq_signs"])
        np.testing.assert_array_equal(np.flatnonzero(grades.present), data[f"{case}_actual_gt_inds"])
        np.testing.assert_array_equal(grades.chosen[grades.offered], data[f"{case}_hq_gt_inds"])
        assert grades.surplus == 0


def test_the_best_objects_become_exemplars_in_index_order(rng):
    inputs = scene(rng, (0.9, 0.7, 0.8, 0.66, 0.3, 0.99))
    grades = grade(imitation(min_predictions=3), *inputs)
    np.testing.assert_allclose(grades.quality[0], [0.9, 0.7, 0.8, 0.66, 0, 0], rtol=1e-3)  # 0.3 is not its best class
    assert grades.quality_class[0].tolist() == [2, 2, 2, 2, 0, 0]
    assert grades.present[0].tolist() == [True] * 5 + [False]
    assert grades.slot[0, :5].tolist() == [0, 1, 2, 3, 4]
    assert grades.chosen[0].tolist() == [0, 2] and grades.offered[0].all()
    assert grades.surplus.tolist() == [2, 2]
    few = grade(imitation(min_predictions=4), *inputs)
    assert not few.offered.any() and few.surplus.tolist() == [0, 0]


def test_quality_of_the_paper_measures_the_predicted_box_of_the_right_class(rng):
    predictions, samples, batch = scene(rng)
    moved = np.zeros(predictions.deltas.shape, np.float32)
    moved[..., 0] = 3.0  # by 0.3 of the width, all classes but that of object 0
    label = int(batch.ground_truth.labels[0, 0])
    moved[0, :, label] = 0
    grades = grade(imitation(), predictions._replace(deltas=jnp.asarray(moved)), samples, batch)
    for index in range(3):
        same = int(batch.ground_truth.labels[0, index]) == label
        expected = (0.9, 0.8, 0.7)[index] * (1 if same else 0.7 / 1.3)
        np.testing.assert_allclose(grades.quality[0, index], expected, rtol=1e-3)


def test_quality_classes_begin_at_their_thresholds(rng):
    inputs = scene(rng, (0.9, 0.7, 0.5, 0.4, 0.3, 0.0))
    quality = grade(FeatureImitation(**RELEASED), *inputs).quality[0].tolist()
    at = FeatureImitation(**RELEASED | {"high_quality": quality[1], "low_quality": quality[3]})
    assert grade(at, *inputs).quality_class[0].tolist() == [2, 2, 1, 1, 0, 0]


def test_a_threshold_in_the_memory_takes_the_place_of_the_fixed_one(rng):
    inputs = scene(rng, (0.9, 0.7, 0.5, 0.4, 0.3, 0.0))
    module = FeatureImitation(**RELEASED)
    quality = grade(module, *inputs).quality[0].tolist()
    assert grade(module, *inputs, high_quality=quality[2]).quality_class[0].tolist() == [2, 2, 2, 1, 1, 0]
    assert grade(module, *inputs, high_quality=0.95).quality_class[0].tolist() == [1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("quantile", [0.5, 0.8])
def test_the_threshold_follows_the_quantile_of_the_qualities(rng, quantile):
    """The threshold falls for a young detector and rises for a good one, between low quality and 1."""
    module = imitation(high_quality_quantile=quantile)
    memory = QuantileMemory(jnp.zeros((1, 1, 1, 1, 1)), *jnp.zeros((2, 1), jnp.int32), jnp.float32(module.high_quality))
    follow = jax.jit(lambda memory, high: module.apply({}, memory, high, method="follow_quality"))
    assert follow(memory, Term(jnp.zeros(()), jnp.zeros(()))).high_quality == memory.high_quality  # no objects
    for low, best in ((0.3, 0.6), (0.5, 1.0)):
        for _ in range(600):
            high = (rng.uniform(low, best, 20) >= float(memory.high_quality)).sum()
            memory = follow(memory, Term(jnp.float32(high), jnp.float32(20)))
        assert memory.high_quality == pytest.approx(low + quantile * (best - low), abs=0.06)
    for _ in range(200):
        memory = follow(memory, Term(jnp.zeros(()), jnp.float32(20)))
    assert memory.high_quality == module.low_quality


def test_grades_have_no_gradient(rng):
    predictions, samples, batch = scene(rng)

    def quality(predictions):
        memory = empty_memory(9, 1, 7, 1)
        return imitation().apply({}, predictions, samples, batch, memory, STDS, method="grade").quality.sum()

    gradient = jax.jit(jax.grad(quality))(predictions)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(gradient))
