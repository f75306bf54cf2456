"""GA-RPN: its four losses and its network against plain loops, where it proposes, which gradients there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.models.proposals.guided_anchor_rpn import Outputs
from cfinet_jax.ops import losses
from cfinet_jax.structures import Priorities
from tests import plain, tiny

SIDES, STRIDES = ((16, 16), (8, 8), (4, 4), (2, 2), (1, 1)), (4, 8, 16, 32, 64)
CELLS = sum(rows * columns for rows, columns in SIDES)
NETWORK = tiny.network("guided_anchor")
SIZES, SCALES = jnp.full((2, 2), 64.0), jnp.ones(2)
apply = jax.jit(NETWORK.apply)
losses_of = jax.jit(lambda *a: NETWORK.apply({}, *a, method="losses"))


@pytest.fixture
def pyramid(rng):
    """Random features of two images of 64 x 64."""
    return tuple(jnp.asarray(rng.normal(size=(2, *side, 16)), jnp.float32) for side in SIDES)


@pytest.fixture
def variables(pyramid):
    """Parameters large enough for anchors to have shapes."""
    return jax.tree.map(lambda x: 4 * x, jax.jit(NETWORK.init)(jax.random.key(0), pyramid, SIZES))


@pytest.fixture
def outputs(rng, pyramid, variables) -> Outputs:
    """Guided anchors good enough to be positive, everything else random."""
    outputs = apply(variables, pyramid, SIZES)
    anchors = tuple(plain.some_boxes(rng, 2 * x.shape[1]).reshape(x.shape) + np.float32([0, 0, 1, 1])
                    for x in outputs.anchors)  # fmt: skip
    anchors[0][:, :60:10] = np.asarray(tiny.batch().ground_truth.boxes) + 0.5
    return jax.tree.map(jnp.asarray, outputs._replace(
        anchors=anchors,
        **{name: tuple(rng.normal(size=x.shape).astype(np.float32) for x in getattr(outputs, name))
           for name in ("locations", "shapes", "logits", "deltas")},
    ))  # fmt: skip


def priorities(numbers) -> Priorities:
    """Only those of the anchors are used here: first of the shapes, then of the guided anchors."""
    nothing = jnp.zeros((2, 1))
    return Priorities(jnp.asarray(numbers, jnp.float32), nothing, nothing[..., None], nothing[..., None])


def sample(overlaps: np.ndarray, chances: np.ndarray) -> tuple[list, list, np.ndarray]:
    """Positive and negative anchors drawn for the overlaps `[anchors, objects]`, and the object of each."""
    positive, matched, negative = overlaps.max(1) >= 0.7, overlaps.argmax(1), overlaps.max(1) < 0.3
    for index in range(overlaps.shape[1]):
        if overlaps[:, index].max() >= 0.3:
            best = np.abs(overlaps[:, index] - overlaps[:, index].max()) < 1e-7
            positive[best], matched[best] = True, index
    order = np.argsort(-chances)
    first = [k for k in order if positive[k]][:16]
    rest = [k for k in order if negative[k] and not positive[k]][: 32 - len(first)]
    assert first and rest
    return first, rest, matched


def shape_overlaps(squares: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """IoU of every object with the best of nine boxes in the place of each square."""
    best = np.zeros((len(squares), len(objects)), np.float32)
    for octave in (1, 2 ** (1 / 3), 2 ** (2 / 3)):
        for ratio in (0.5, 1, 2):
            half = (squares[:, 2:] - squares[:, :2]) / 2 * octave * np.float32([ratio**-0.5, ratio**0.5])
            centre = (squares[:, :2] + squares[:, 2:]) / 2
            best = np.maximum(best, plain.ious(np.concatenate([centre - half, centre + half], 1), objects))
    return best


# Losses


def test_the_location_loss_equals_the_loop(outputs):
    """Middles weigh one, cells apart from objects a tenth, those around middles and on the next levels nothing."""
    batch = tiny.batch()
    terms, _ = losses_of(outputs, batch, priorities(np.ones((2, 2 * CELLS))))
    logits = np.concatenate(outputs.locations, 1)
    for image in range(2):
        objects = np.asarray(batch.ground_truth.boxes[image])
        painted, nearby = plain.paint_middles(objects, SIDES, STRIDES, 2.0, 0.2, 0.5)
        expected, kinds = 0.0, set()
        for cell in range(CELLS):
            middle = painted[cell] > 0
            weight = 1 if middle else 0 if painted[cell] < 0 or nearby[cell] else 0.1
            right = 1 / (1 + np.exp(-logits[image, cell] if middle else logits[image, cell]))
            expected -= weight * (0.25 if middle else 0.75) * (1 - right) ** 2 * np.log(right)
            kinds.add(weight)
        assert kinds == {0, 0.1, 1}
        np.testing.assert_allclose(terms["location"].total[image], expected, rtol=1e-4)
        np.testing.assert_allclose(terms["location"].count[image], CELLS / 200, rtol=1e-6)


def test_the_shape_loss_equals_the_loop(rng, outputs):
    batch, chances = tiny.batch(), rng.random((2, 2 * CELLS)).astype(np.float32)
    terms, _ = losses_of(outputs, batch, priorities(chances))
    squares, shapes = np.concatenate(outputs.squares), np.concatenate(outputs.shapes, 1)
    for image in range(2):
        objects = np.asarray(batch.ground_truth.boxes[image])
        first, rest, matched = sample(shape_overlaps(squares, objects), chances[image, :CELLS])
        centre = (squares[first, :2] + squares[first, 2:]) / 2
        half = (squares[first, 2:] - squares[first, :2]) / 2 * np.exp(0.14 * shapes[image, first])
        boxes = np.concatenate([centre - half, centre + half], 1)
        expected = np.sum(losses.bounded_iou(jnp.asarray(boxes), jnp.asarray(objects[matched[first]]), 0.2))
        np.testing.assert_allclose(terms["shape"].total[image], expected, rtol=1e-4)
        assert terms["shape"].count[image] == len(first) + len(rest)


def test_the_losses_of_guided_anchors_equal_the_loop(rng, outputs):
    batch, chances = tiny.batch(), rng.random((2, 2 * CELLS)).astype(np.float32)
    terms, statistics = losses_of(outputs, batch, priorities(chances))
    anchors, logits, deltas = (np.concatenate(x, 1) for x in (outputs.anchors, outputs.logits, outputs.deltas))
    for image in range(2):
        objects = np.asarray(batch.ground_truth.boxes[image])
        first, rest, matched = sample(plain.ious(anchors[image], objects), chances[image, CELLS:])
        box = 0.0
        for k in first:
            (x1, y1, x2, y2), (a1, b1, a2, b2) = anchors[image, k], objects[matched[k]]
            target = np.array([
                (a1 + a2 - x1 - x2) / 2 / (x2 - x1) / 0.07, (b1 + b2 - y1 - y2) / 2 / (y2 - y1) / 0.07,
                np.log((a2 - a1) / (x2 - x1)) / 0.11, np.log((b2 - b1) / (y2 - y1)) / 0.11,
            ])  # fmt: skip
            distance = np.abs(deltas[image, k] - target)
            box += np.where(distance < 1, distance**2 / 2, distance - 0.5).sum()
        objectness = sum(np.log1p(np.exp(-logits[image, k])) for k in first)
        objectness += sum(np.log1p(np.exp(logits[image, k])) for k in rest)
        np.testing.assert_allclose(terms["box"].total[image], box, rtol=1e-3)
        np.testing.assert_allclose(terms["objectness"].total[image], objectness, rtol=1e-4)
        assert terms["box"].count[image] == terms["objectness"].count[image] == len(first) + len(rest)
        assert statistics["positive_anchors"].total[image] >= len(first)


def test_an_ignore_region_leaves_out_everything_in_it(outputs):
    batch = tiny.batch(5, regions=[[-100, -100, 200, 200]])
    terms, _ = losses_of(outputs, batch, priorities(np.ones((2, 2 * CELLS))))
    assert all(term.total.tolist() == [0, 0] for term in terms.values())


# Guidance


def test_branches_equal_the_loop(pyramid, variables):
    """Location and shape, the guided anchors, the adaption by groups with offsets, both heads; of the third level."""
    outputs = apply(variables, pyramid, SIZES)
    params = jax.tree.map(np.asarray, variables["params"])
    level, close = 2, {"rtol": 1e-3, "atol": 1e-4}

    def conv(x, name):
        return plain.convolve(x, params[name]["kernel"]) + params[name]["bias"]

    features = np.maximum(conv(np.asarray(pyramid[level]), "conv"), 0)
    shapes = conv(features, "shape")
    np.testing.assert_allclose(outputs.locations[level], conv(features, "location").reshape(2, -1), **close)
    np.testing.assert_allclose(outputs.shapes[level], shapes.reshape(2, -1, 2), **close)
    squares = np.asarray(outputs.squares[level])
    centre, half = (squares[:, :2] + squares[:, 2:]) / 2, 16 * np.exp(0.14 * shapes.reshape(2, -1, 2))
    guided = np.concatenate([centre - half, centre + half], -1)
    np.testing.assert_allclose(outputs.anchors[level], guided, rtol=1e-4, atol=1e-3)
    offsets = (shapes @ params["adaption"]["offset"]["kernel"][0, 0]).reshape(2, 4, 4, 4, 9, 2)
    assert np.abs(offsets).max() > 0.02
    adapted = np.zeros((2, 4, 4, 16))
    for image, row, column, group, tap in np.ndindex(2, 4, 4, 4, 9):
        y, x = offsets[image, row, column, group, tap] + (row + tap // 3 - 1, column + tap % 3 - 1)
        part = slice(4 * group, 4 * group + 4)
        read = plain.bilinear(features[image, ..., part], y, x)
        adapted[image, row, column] += read @ params["adaption"]["kernel"][tap // 3, tap % 3, part]
    adapted = np.maximum(adapted, 0)
    assert (adapted > 0).any()
    np.testing.assert_allclose(outputs.logits[level], conv(adapted, "objectness").reshape(2, -1), **close)
    np.testing.assert_allclose(outputs.deltas[level], conv(adapted, "box").reshape(2, -1, 4), **close)


def test_a_middle_has_the_prior_probability_before_anything_is_learnt(pyramid):
    quiet = tuple(0 * level for level in pyramid)
    outputs, _ = jax.jit(NETWORK.init_with_output)(jax.random.key(0), quiet, SIZES)
    np.testing.assert_allclose(jax.nn.sigmoid(jnp.concatenate(outputs.locations, 1)), 0.01, rtol=1e-5)
    assert NETWORK.count_anchors((64, 64), 5) == 2 * CELLS


def test_what_follows_the_shapes_does_not_teach_them(pyramid, variables):
    def total(params):
        outputs = NETWORK.apply({"params": params}, pyramid, SIZES)
        return sum(jnp.square(x).sum() for x in (*outputs.logits, *outputs.deltas, *outputs.anchors))

    gradient = jax.jit(jax.grad(total))(variables["params"])
    for name in ("shape", "location"):
        assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(gradient[name])), name
    for name in ("conv", "adaption", "objectness", "box"):
        assert all(np.isfinite(x).all() and (x != 0).any() for x in jax.tree.leaves(gradient[name])), name


# Proposals


def test_testing_proposes_only_where_a_middle_is_likely_and_training_everywhere(rng, outputs):
    likely = [rng.random(x.shape) < 0.1 for x in outputs.locations]
    outputs = outputs._replace(locations=tuple(jnp.where(x, -4.0, -5.0) for x in likely))  # .018 and .007
    choose = jax.jit(lambda o, phase: NETWORK.apply({}, o, SIZES, SCALES, phase, method="choose"), static_argnums=1)
    found, every = (jax.tree.map(np.asarray, choose(outputs, phase)) for phase in ("test", "train"))
    logits, likely = np.concatenate(outputs.logits, 1), np.concatenate(likely, 1)
    for image in range(2):
        scores = 1 / (1 + np.exp(-logits[image]))
        assert 0 < found.valid[image].sum() <= likely[image].sum() and every.valid[image].all()
        of_likely = np.isclose(found.scores[image, found.valid[image], None], scores[likely[image]], rtol=1e-5)
        assert of_likely.any(1).all()
    assert (found.boxes >= 0).all() and (found.boxes <= 64).all() and (np.diff(found.scores, axis=1) <= 0).all()


def test_without_a_likely_middle_there_are_no_proposals(outputs):
    outputs = outputs._replace(locations=tuple(jnp.full_like(x, -9.0) for x in outputs.locations))
    found = jax.jit(lambda o: NETWORK.apply({}, o, SIZES, SCALES, "test", method="choose"))(outputs)
    assert not found.valid.any() and (found.scores == 0).all() and np.isfinite(found.boxes).all()
