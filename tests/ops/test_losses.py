"""Losses per sample against plain loops, the paper's Eq. 6 and the reference's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.ops import losses
from tests import plain

contrastive = jax.jit(losses.contrastive)


def test_distances_of_deltas_equal_the_formula(rng):
    a, b = rng.normal(size=(20, 4)).astype(np.float32), rng.normal(size=(20, 4)).astype(np.float32)
    distance = np.abs(a - b)
    np.testing.assert_allclose(losses.l1(jnp.asarray(a), jnp.asarray(b)), distance.sum(1), rtol=1e-5)
    for beta in (0.2, 1.0):
        expected = np.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta).sum(1)
        np.testing.assert_allclose(losses.smooth_l1(jnp.asarray(a), jnp.asarray(b), beta), expected, rtol=1e-4)


def bounded_iou_loop(box, target, beta):
    """Centre and side along x, then along y."""
    total = 0.0
    for low, high in ((0, 2), (1, 3)):
        size, extent = box[high] - box[low], target[high] - target[low]
        away = abs(box[low] + box[high] - target[low] - target[high]) / 2
        of_centre = 1 - max((extent - 2 * away) / (extent + 2 * away + 1e-3), 0)
        of_size = 1 - min(extent / (size + 1e-3), size / (extent + 1e-3))
        for loss in (of_centre, of_size):
            total += 0.5 * loss**2 / beta if loss < beta else loss - 0.5 * beta
    return total


def test_bounded_iou_loss_equals_the_loop(rng):
    boxes, targets = plain.some_boxes(rng, 40, 32.0), plain.some_boxes(rng, 40, 32.0)
    boxes[:10] = targets[:10] + rng.normal(0, 0.3, (10, 4))
    expected = [bounded_iou_loop(*pair, 0.2) for pair in zip(boxes, targets, strict=True)]
    ours = losses.bounded_iou(jnp.asarray(boxes), jnp.asarray(targets), 0.2)
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)


def test_bounded_iou_loss_of_one_error_by_hand():
    """A box of the right size a quarter of it off along x, and one of the right centre, twice as wide."""
    target = jnp.array([[0.0, 0.0, 20.0, 20.0]])
    for box, expected in (([5.0, 0.0, 25.0, 20.0], 2 / 3 - 0.1), ([-10.0, 0.0, 30.0, 20.0], 1 / 2 - 0.1)):
        np.testing.assert_allclose(losses.bounded_iou(jnp.array([box]), target, 0.2), [expected], atol=1e-3)


def test_bounded_iou_loss_of_empty_boxes_is_finite():
    empty, box = jnp.full((1, 4), 3.0), jnp.array([[0.0, 0.0, 5.0, 5.0]])
    for pair in ((empty, box), (box, empty), (empty, empty), (box, box)):
        value, gradient = jax.value_and_grad(lambda a, b: losses.bounded_iou(a, b, 0.2).sum())(*pair)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_iou_loss_is_one_minus_iou(rng):
    a, b = plain.some_boxes(rng, 30, 32.0), plain.some_boxes(rng, 30, 32.0)
    expected = [1 - max(plain.iou(x, y), 1e-6) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(losses.iou_loss(jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-4)


def test_iou_loss_agrees_with_the_reference(golden):
    data = golden("iou_loss")
    weight = float(data["loss_weight"])
    for case in range(int(data["n_cases"])):
        prediction, target, weights, average = (
            data[f"c{case}_{name}"] for name in ("pred", "target", "weight", "avg_factor")
        )
        divisor = len(prediction) if average < 0 else float(average)

        def loss(boxes, target=target, weights=weights, divisor=divisor):
            return weight * (weights * losses.iou_loss(boxes, jnp.asarray(target))).sum() / divisor

        of_each = losses.iou_loss(jnp.asarray(prediction), jnp.asarray(target))
        value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(prediction))
        np.testing.assert_allclose(of_each, data[f"c{case}_loss_none"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(value, data[f"c{case}_loss"], rtol=1e-4)
        np.testing.assert_allclose(gradient, data[f"c{case}_gpred"], rtol=1e-4, atol=1e-6)


def test_iou_loss_of_empty_and_distant_boxes_has_no_gradient():
    boxes = jnp.array([[3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 5.0, 5.0]])
    targets = jnp.array([[3.0, 3.0, 3.0, 3.0], [50.0, 50.0, 60.0, 60.0]])
    value, gradient = jax.value_and_grad(lambda boxes: losses.iou_loss(boxes, targets).sum())(boxes)
    np.testing.assert_allclose(value, 2.0, rtol=1e-5)
    np.testing.assert_allclose(gradient, np.zeros((2, 4)))


@given(st.integers(0, 2**32 - 1))
def test_contrastive_equals_equation_6(seed):
    rng = np.random.default_rng(seed)
    similarities = rng.normal(0, 2, (6, 9)).astype(np.float32)
    positive = rng.random((6, 9)) < 0.3
    negative = (rng.random((6, 9)) < 0.4) & ~positive
    positive[0] = negative[0] = False
    negative[1], positive[2] = False, False
    totals, counts = contrastive(similarities, positive, negative)
    for row in range(6):
        chosen = [similarities[row, k] for k in range(9) if positive[row, k] or negative[row, k]]
        expected = sum(
            -np.log(np.exp(similarities[row, k]) / np.sum(np.exp(chosen))) for k in range(9) if positive[row, k]
        )
        np.testing.assert_allclose(totals[row], expected, rtol=1e-4, atol=1e-5)
        assert counts[row] == positive[row].sum()


def test_contrastive_without_samples_is_zero_with_a_zero_gradient():
    nothing = jnp.zeros((3, 4), bool)
    total, gradient = jax.value_and_grad(lambda x: losses.contrastive(x, nothing, nothing)[0].sum())(jnp.ones((3, 4)))
    np.testing.assert_allclose(total, 0.0)
    np.testing.assert_allclose(gradient, np.zeros((3, 4)))
