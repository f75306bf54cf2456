"""Upright boxes against plain loops, the reference's numbers, and what must hold for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.boxes import horizontal
from tests import plain

STDS = (0.1, 0.2, 0.5, 0.4)
seeds = st.integers(0, 2**32 - 1)

iou, paired_iou = jax.jit(horizontal.iou), jax.jit(horizontal.paired_iou)
encode = jax.jit(lambda anchors, boxes: horizontal.encode(anchors, boxes, STDS))
decode = jax.jit(lambda anchors, deltas: horizontal.decode(anchors, deltas, STDS))
flip = jax.jit(horizontal.flip)


def test_area_centre_and_size_of_one_box():
    box = jnp.array([[2.0, 10.0, 5.0, 30.0]])
    centre, size = horizontal.centre_size(box)
    np.testing.assert_allclose(horizontal.area(box), [60.0])
    np.testing.assert_allclose(centre, [[3.5, 20.0]])
    np.testing.assert_allclose(size, [[3.0, 20.0]])
    np.testing.assert_allclose(horizontal.stretch(box, (2.0, 0.5)), [[0.5, 15, 6.5, 25]])


def test_leading_axes_are_kept(rng):
    boxes, others = (jnp.asarray(plain.some_boxes(rng, 12) + np.float32([0, 0, 2, 2])) for _ in range(2))
    for function in (horizontal.area, lambda x: flip(x, 9.0), lambda x: horizontal.stretch(x, (2.0, 3.0))):
        plain.assert_leading_axes_are_kept(function, boxes)
    for function in (encode, decode, horizontal.paired_iou):
        plain.assert_leading_axes_are_kept(function, boxes, others)


def test_clip_knows_height_from_width():
    boxes = jnp.array([[-5.0, -6.0, 400.0, 400.0], [150.0, 90.0, 250.0, 130.0], [210.0, 120.0, 220.0, 130.0]])
    clipped = horizontal.clip(boxes, jnp.array([100.0, 200.0]))  # height, width
    np.testing.assert_allclose(clipped, [[0, 0, 200, 100], [150, 90, 200, 100], [200, 100, 200, 100]])


@given(seeds)
def test_flip_mirrors_left_and_right_and_is_its_own_inverse(seed):
    np.testing.assert_allclose(flip(jnp.array([[10.0, 1.0, 30.0, 2.0]]), jnp.array(100.0)), [[70, 1, 90, 2]])
    boxes = jnp.asarray(plain.some_boxes(np.random.default_rng(seed), 12))
    width = jnp.array(77.0)
    np.testing.assert_allclose(flip(flip(boxes, width), width), boxes, atol=1e-4)


@given(seeds)
def test_iou_equals_the_loop_is_symmetric_and_bounded(seed):
    rng = np.random.default_rng(seed)
    a, b = plain.some_boxes(rng, 12), plain.some_boxes(rng, 9)
    overlaps = np.asarray(iou(a, b))
    np.testing.assert_allclose(overlaps, plain.ious(a, b), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(overlaps.T, iou(b, a), rtol=1e-6)
    assert (overlaps >= 0).all() and (overlaps <= 1 + 1e-6).all()
    itself = np.diag(np.asarray(iou(a, a)))
    np.testing.assert_allclose(itself, np.prod(a[:, 2:] - a[:, :2], 1) > 1e-4, atol=1e-3)
    np.testing.assert_allclose(paired_iou(a[:9], b), np.diag(overlaps), rtol=1e-6)


def test_overlap_of_first_is_the_share_inside(rng):
    a, b = plain.some_boxes(rng, 10, largest=8.0), plain.some_boxes(rng, 7, largest=50.0)
    expected = np.zeros((10, 7))
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            width, height = (max(min(x[k + 2], y[k + 2]) - max(x[k], y[k]), 0) for k in (0, 1))
            expected[i, j] = width * height / max((x[2] - x[0]) * (x[3] - x[1]), 1e-6)
    assert (expected > 0.5).any()
    np.testing.assert_allclose(jax.jit(horizontal.overlap_of_first)(a, b), expected, rtol=1e-4, atol=1e-6)


@given(seeds)
def test_encode_equals_the_loop_and_decode_inverts_it(seed):
    rng = np.random.default_rng(seed)
    anchors, boxes = plain.some_boxes(rng, 12), plain.some_boxes(rng, 12)
    anchors[:, 2:] += 2
    boxes[:, 2:] += 3
    deltas = np.asarray(encode(anchors, boxes))
    for anchor, box, delta in zip(anchors, boxes, deltas, strict=True):
        width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
        expected = [
            (box[0] + box[2] - anchor[0] - anchor[2]) / 2 / width / STDS[0],
            (box[1] + box[3] - anchor[1] - anchor[3]) / 2 / height / STDS[1],
            np.log((box[2] - box[0]) / width) / STDS[2],
            np.log((box[3] - box[1]) / height) / STDS[3],
        ]
        np.testing.assert_allclose(delta, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(decode(anchors, deltas), boxes, rtol=1e-4, atol=1e-3)


def test_decode_limits_the_growth_of_a_side():
    anchors = np.float32([[0, 0, 2, 4], [0, 0, 2, 4]])
    sides = np.asarray(decode(anchors, np.float32([[0, 0, 100, 0], [0, 0, 0, -100]])))
    np.testing.assert_allclose(sides[0, 2] - sides[0, 0], 2 * 62.5, rtol=1e-4)
    np.testing.assert_allclose(sides[1, 3] - sides[1, 1], 4 / 62.5, rtol=1e-4)


def test_empty_boxes_have_finite_values_and_gradients():
    boxes = jnp.array([[3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 5.0], [1.0, 1.0, 4.0, 4.0]])

    def everything(a, b):
        deltas = horizontal.encode(a, b, STDS)
        decoded = horizontal.decode(a, deltas, STDS)
        pairs = horizontal.iou(a, b).sum() + horizontal.overlap_of_first(a, b).sum()
        return decoded.sum() + deltas.sum() + pairs + horizontal.paired_iou(a, b).sum()

    differentiate = jax.jit(jax.value_and_grad(everything, (0, 1)))
    for a, b in ((boxes, boxes), (boxes, boxes[::-1])):
        value, gradients = differentiate(a, b)
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in gradients)


def test_coder_agrees_with_the_reference(golden):
    data = golden("bbox_coder")
    for case in range(int(data["n_cases"])):
        stds = tuple(float(x) for x in data[f"c{case}_stds"])
        source, target, deltas, many = (
            jnp.asarray(data[f"c{case}_{name}"]) for name in ("src", "dst", "deltas", "deltas9")
        )
        size = jnp.asarray(data[f"c{case}_max_shape_hw"], jnp.float32)
        decoded = horizontal.decode(source, deltas, stds)
        of_classes = horizontal.decode(source[:, None], many.reshape(-1, 9, 4), stds)
        pairs = {
            "enc": horizontal.encode(source, target, stds),
            "dec": decoded,
            "dec_clip": horizontal.clip(decoded, size),
            "dec9_clip": horizontal.clip(of_classes, size).reshape(-1, 36),
        }
        for name, ours in pairs.items():
            np.testing.assert_allclose(ours, data[f"c{case}_{name}"], rtol=1e-4, atol=1e-3, err_msg=f"{case} {name}")
