"""Two steps of training against the released code: losses, gradients, updates, regions and exemplars.

Every draw takes the first candidates in index order, as the golden files were made to. `trained_quality` holds bugs
that are mended here (docs/fidelity.md: jitter, and image 1 reading what image 0 has just stored); what they reach is
named where it is compared.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cfinet_jax import optimizer
from cfinet_jax.models.detector import PARTS, Detector, build_detector
from cfinet_jax.models.resnet import frozen_parts
from cfinet_jax.runtime import mesh
from cfinet_jax.structures import Batch, ExemplarMemory
from cfinet_jax.train_step import TrainState, empty_batch, train_step
from configs.sodad import get_config
from tests import official

OBJECTS, SHAPE, PROPOSALS, ANCHORS = 30, (256, 256), 300, 5440
RATE, DECAY = 0.001, 1e-4
CASES = ("random_config", "random_empty", "random_all", "random_quality", "trained_config", "trained_quality")
THRESHOLDS = {
    "random_quality": {"min_score": 0.01, "high_quality": 0.10, "low_quality": 0.05, "min_predictions": 2},
    "trained_quality": {"min_score": 0.05, "high_quality": 0.21, "low_quality": 0.08, "min_predictions": 2},
}
# Networks to compile; no region of `random_quality` reaches a threshold, neither its own nor one of `trained_quality`.
KINDS = dict(zip(CASES, ("config", "config", "all", "quality", "config", "quality"), strict=True))
LOSSES = {
    "proposals/coarse_box": "s0.loss_rpn_reg",
    "proposals/objectness": "s1.loss_rpn_cls",
    "proposals/box": "s1.loss_rpn_reg",
    "roi/class": "loss_cls",
    "roi/box": "loss_bbox",
    "imitation/contrast": "loss_con",
}


class FirstWin(Detector):
    """A detector whose every draw takes the first candidates in index order."""

    def draw_priorities(self, *arguments):
        priorities = super().draw_priorities(*arguments)
        return jax.tree.map(lambda x: jnp.broadcast_to(1 - jnp.arange(x.shape[-1]) / x.shape[-1], x.shape), priorities)


@functools.cache
def network(kind: str) -> FirstWin:
    """The reduced network with the settings `config`, `quality` or `all` of the golden files."""
    settings = official.reduced_settings()
    settings.roi_head.max_grid = 4  # no box takes more than 3 samples a bin
    settings.imitation.update(slots=8, max_exemplars=8)  # never full
    if kind == "quality":
        settings.imitation.update(THRESHOLDS["trained_quality"])
    if kind == "all":  # every candidate is drawn
        settings.proposal_network.coarse_to_fine.update(samples=ANCHORS, positive_fraction=1.0)
        settings.roi_head.update(samples=OBJECTS + PROPOSALS, positive_fraction=1.0)
    detector = build_detector(settings, official.CLASSES)
    return FirstWin(**{name: getattr(detector, name) for name in (*PARTS, "precision")})


@functools.cache
def variables(weights: str) -> dict:
    """The network before a case, `random` or `trained`."""
    return jax.device_get(official.official_variables(network("config"), official.arrays(f"model_{weights}_weights")))


@functools.cache
def layout() -> dict[str, np.ndarray]:
    return official.layout(network("config"), official.arrays("model_random_weights"))


def stored(case: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Arrays of a file by their official names, in our shapes."""
    return {name: case[prefix + name].ravel()[places] for name, places in layout().items() if prefix + name in case}


def by_official_name(params: dict) -> dict[str, np.ndarray]:
    return dict(zip(layout(), jax.tree.leaves(params), strict=True))


def batch_and_memory(case: dict[str, np.ndarray]) -> tuple[Batch, ExemplarMemory]:
    """The two pictures of a case and the memory before them."""
    counts = case["gt_count"]
    batch = jax.tree.map(np.array, empty_batch(2, SHAPE, OBJECTS))
    truth = batch.ground_truth
    for image, rows in enumerate(np.split(np.arange(counts.sum()), [counts[0]])):
        truth.boxes[image, : len(rows)], truth.labels[image, : len(rows)] = case["gt"][rows], case["gt_labels"][rows]
        truth.valid[image, : len(rows)] = True
    scales, index = np.full(2, 1.5, np.float32), np.arange(2, dtype=np.int32)
    batch = dataclasses.replace(batch, images=case["imgs_u8"], scales=scales, index=index)
    memory = jax.tree.map(np.array, network("config").empty_memory())
    for label, features in zip(case["queue_labels"], case["queue_feats"], strict=True):
        memory.features[label, memory.size[label]] = features.transpose(1, 2, 0)
        memory.size[label] += 1
    return batch, dataclasses.replace(memory, cursor=memory.size)


def prepare(batch: Batch, key) -> Batch:
    return dataclasses.replace(batch, images=official.normalise(batch.images))


def make_sgd() -> optax.GradientTransformation:
    config = get_config("released")
    config.dataset.batch_size = 2
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, DECAY)
    config.optimizer.update(learning_rate=RATE, reference_batch=2, warmup_images=0, decay_images=())
    return optimizer.make_optimizer(config, tuple(f"backbone/{part}" for part in frozen_parts(1)))


@functools.cache
def start(name: str) -> tuple:
    """State, batch and key with which a case begins."""
    batch, memory = batch_and_memory(official.arrays(f"train_{name}"))
    before = variables(name.split("_")[0])
    moments = make_sgd().init(before["params"])
    return TrainState(np.int32(0), before["params"], before["batch_stats"], moments, memory), batch, jax.random.key(0)


def compile_step(function):
    """A function of state, batch and key, compiled for one device without the slow passes of the compiler."""
    one = mesh.make_mesh(jax.devices()[:1])

    def place(state, batch, key):
        return mesh.replicate(state, one), mesh.place_batch(batch, one), mesh.replicate(key, one)

    jitted = mesh.parallel(function, one, (mesh.EVERYWHERE, mesh.BY_IMAGE, mesh.EVERYWHERE), mesh.EVERYWHERE)
    lowered = jitted.lower(*place(*start("random_config")))
    compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
    return lambda *arguments: jax.device_get(compiled(*place(*arguments)))


@functools.cache
def step_of(kind: str):
    """`train_step` of a network."""
    fixed = {"detector": network(kind), "optimizer": make_sgd(), "prepare": prepare, "micro_batches": 1}
    return compile_step(functools.partial(train_step, **fixed))


@functools.cache
def two_steps(name: str) -> list[tuple[TrainState, dict]]:
    """State and metrics after each of two steps on the same batch."""
    state, batch, key = start(name)
    first = step_of(KINDS[name])(state, batch, key)
    return [first, step_of(KINDS[name])(first[0], batch, key)]


@functools.cache
def observer_of(kind: str):
    """Return what the parts of a network return inside `losses`: proposals, samples and predictions."""
    detector = network(kind)
    observed = {("proposal_network", "choose"), ("roi_head", "sample"), ("roi_head", "__call__")}

    def observe(state, batch, key):
        _, seen = detector.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            prepare(batch, None),
            state.memory,
            detector.draw_priorities(key, batch.index, SHAPE, OBJECTS),
            method="losses",
            mutable=["intermediates"],
            capture_intermediates=lambda module, method: (module.name, method) in observed,
        )
        seen = seen["intermediates"]
        return seen["proposal_network"]["choose"][0], seen["roi_head"]["sample"][0], seen["roi_head"]["__call__"][0]

    return compile_step(observe)


@pytest.mark.parametrize("name", CASES)
def test_losses(name):
    case = official.arrays(f"train_{name}")
    for step, ((_, metrics), tolerance) in enumerate(zip(two_steps(name), (1e-5, 1e-4), strict=True)):
        for ours, theirs in LOSSES.items():
            # Jitter and the order of the queue reach the contrast of `trained_quality`: by 0.5 %.
            loose = 2e-2 if (name, ours) == ("trained_quality", "imitation/contrast") else tolerance
            expected = case[f"step{step}.{theirs}"].sum()
            assert metrics[f"loss/{ours}"] == pytest.approx(expected, rel=loose, abs=1e-7), (step, ours)
        assert metrics["loss"] == pytest.approx(case[f"step{step}.total"], rel=1e-4), step
        anchors = case["s0_num_total_pos_neg"][0] - (case["gt_count"] == 0).sum()  # there an empty image counts as one
        assert metrics["proposals/positive_anchors"] * 2 == anchors, step
        assert metrics["roi/accuracy"] * 100 == pytest.approx(case[f"step{step}.acc"], rel=1e-6), step


def tolerance_of(case: str, parameter: str) -> float | None:
    """The largest relative difference (L2) of a gradient; None where a mended bug is what differs.

    Twenty times the worst rounding of the released code. A ReLU of the backbone whose input is within rounding of
    zero may fall on the other side, which moves gradients before it by up to 1 % (layer2.0 of `trained_quality`).
    The mended bugs reach the contrast, so the layers of imitation, and through the regions, hardly, what is below.
    """
    if case == "trained_quality" and parameter.startswith(("roi_head.fc_", "roi_head.comp_convs")):
        return None
    if parameter.startswith("backbone."):
        return 5e-2
    return 1e-3 if (case, parameter.split(".")[0]) == ("trained_quality", "neck") else 1e-4


@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    """The momentum after one step is the gradient and the decay; of every parameter norm and sum are known."""
    case, known = official.arrays(f"train_{name}"), official.numbers(f"train_{name}")
    before, momentum = start(name)[0].params, optax.tree.get(two_steps(name)[0][0].opt_state, "trace")
    gradients = by_official_name(jax.tree.map(lambda x, y: x.astype(np.float64) - DECAY * y, momentum, before))
    expected, norms = stored(case, "grad/"), known["grad_l2_sum_rel_rounding_error"]
    assert len(expected) == sum(key.startswith("grad/") for key in case) >= 27
    assert gradients.keys() == norms.keys() | set(known["no_grad"])
    for parameter, gradient in gradients.items():
        norm, total, _ = norms.get(parameter, (0.0, 0.0, 0.0))
        tolerance = tolerance_of(name, parameter)
        if tolerance is None:
            continue
        allowed = tolerance * norm + 1e-9
        assert np.linalg.norm(gradient) == pytest.approx(norm, rel=0, abs=allowed), parameter
        assert gradient.sum() == pytest.approx(total, rel=0, abs=allowed * gradient.size**0.5), parameter
        if parameter in expected:
            assert np.linalg.norm(gradient - expected[parameter]) <= allowed, parameter


@pytest.mark.parametrize("name", CASES)
def test_parameters_after_two_steps(name):
    before, after = (by_official_name(state.params) for state in (start(name)[0], two_steps(name)[1][0]))
    expected = stored(official.arrays(f"train_{name}"), "after/")
    assert len(expected) == 6
    for parameter, theirs in expected.items():
        tolerance = tolerance_of(name, parameter)
        if tolerance is not None:
            moved = np.abs(theirs - before[parameter]).max()
            np.testing.assert_allclose(
                after[parameter], theirs, rtol=0, atol=tolerance * moved + 2e-7, err_msg=parameter
            )
    for parameter in official.numbers(f"train_{name}")["no_grad"]:
        np.testing.assert_array_equal(after[parameter], before[parameter])


@pytest.mark.parametrize("name", CASES)
def test_exemplars_enter_the_memory(name):
    case, (state, _) = official.arrays(f"train_{name}"), two_steps(name)[0]
    size = state.memory.size
    np.testing.assert_array_equal(np.repeat(np.arange(official.CLASSES), size), case["queue_labels_after"])
    stored = np.concatenate([of_class[:count] for of_class, count in zip(state.memory.features, size, strict=True)])
    np.testing.assert_allclose(stored.transpose(0, 3, 1, 2), case["queue_feats_after"], rtol=0, atol=1e-4)


def align(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The order in which our boxes are theirs: equal but for neighbours whose scores differ by rounding."""
    order = np.abs(ours[:, None, :4] - theirs[None, :, :4]).max(-1).argmin(0)
    assert sorted(order) == list(range(len(theirs))) and np.abs(order - np.arange(len(theirs))).max() <= 1
    assert (order != np.arange(len(theirs))).sum() <= 4
    np.testing.assert_allclose(ours[order], theirs, rtol=0, atol=4e-4)
    return order


@pytest.mark.parametrize("name", CASES)
def test_regions_and_qualities(name):
    """Proposals, which regions are drawn, what the head makes of them, and the grades of the objects."""
    case, (state, batch, key) = official.arrays(f"train_{name}"), start(name)
    kind = "all" if KINDS[name] == "all" else "config"  # thresholds of quality come later
    proposals, samples, predictions = observer_of(kind)(state, batch, key)
    imitation = network(kind).imitation.clone(**THRESHOLDS.get(name, {}))
    grade = jax.jit(lambda *a: imitation.apply({}, *a, network(kind).roi_head.stds, method="grade"))
    grades = jax.device_get(grade(predictions, samples, batch, state.memory))
    of_head = np.split(case["cls_score"], [-len(case["b1_rois"])]), np.split(case["bbox_pred"], [-len(case["b1_rois"])])
    for image, objects in enumerate(case["gt_count"]):
        theirs = {key.removeprefix(f"b{image}_"): value for key, value in case.items()}
        found, ours, (logits, deltas) = jax.tree.map(lambda x, k=image: x[k], (proposals, samples, predictions))
        align(np.c_[found.boxes, found.scores][found.valid], theirs["proposals"])
        source = np.where(ours.source < OBJECTS, ours.source, ours.source - OBJECTS + objects)
        np.testing.assert_array_equal(source[ours.is_object], theirs["pos_inds"])
        np.testing.assert_array_equal(source[ours.valid & ~ours.is_object], theirs["neg_inds"])
        np.testing.assert_array_equal(ours.matched[ours.is_object], theirs["pos_assigned_gt_inds"])
        np.testing.assert_array_equal(ours.source[ours.is_object] < OBJECTS, theirs["pos_is_gt"])
        order = np.flatnonzero(ours.valid)[align(ours.boxes[ours.valid], theirs["rois"])]
        np.testing.assert_allclose(logits[order], of_head[0][image], rtol=0, atol=2e-4)
        np.testing.assert_allclose(deltas[order].reshape(len(order), -1), of_head[1][image], rtol=0, atol=2e-4)
        if objects:
            np.testing.assert_allclose(grades.quality[image, :objects], theirs["iq"], rtol=0, atol=1e-5)
            weights = np.float32(imitation.quality_weights)[grades.quality_class[image, :objects]]
            np.testing.assert_array_equal(weights, theirs["con_gt_weights"])
