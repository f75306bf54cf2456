"""Losses per sample against plain loops, the paper's Eq. 6 and the reference's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.ops import losses
from tests import plain

contrastive = jax.jit(losses.contrastive)


def test_binary_cross_entropy_equals_the_formula(rng):
    logits, targets = rng.normal(0, 3, 50).astype(np.float32), rng.random(50) < 0.5
    probability = 1 / (1 + np.exp(-logits))
    expected = -np.where(targets, np.log(probability), np.log(1 - probability))
    ours = losses.binary_cross_entropy(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_binary_cross_entropy_is_finite_for_certain_logits():
    ours = losses.binary_cross_entropy(jnp.array([1e4, -1e4]), jnp.array([False, True]))
    np.testing.assert_allclose(ours, [1e4, 1e4])


def test_cross_entropy_equals_the_formula(rng):
    logits, labels = rng.normal(0, 2, (20, 5)).astype(np.float32), rng.integers(0, 5, 20)
    expected = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels, strict=True)]
    ours = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


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
