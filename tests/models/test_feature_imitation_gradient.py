"""The gradient of imitation: against a loop in float64, and who gets one; what the log says about it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.ops import imitation as choices
from tests.imitation import CLASSES, IMAGES, REGIONS, SLOTS, everything, grade, imitation, parameters, scene

FEW = {"samples": 16, "min_predictions": 3, "quality_weights": (0.7, 0.3, 0.2)}
HELD = 3  # exemplars of every class in the memory
VARIANTS = {
    "paper": {},
    "released": {"contrast": "means", "negatives": "image"},
    "l2": {"contrast": "l2"},
    "known": {"min_exemplars": HELD},  # of all classes but the first, of which the memory forgets one
}


@functools.cache
def case(name: str):
    """Return a module, its parameters, and the arguments of `losses`."""
    rng = np.random.default_rng(0)
    module, params = imitation(**FEW | VARIANTS[name]), parameters(rng)
    predictions, samples, batch = scene(rng)
    remembered = module.remembered_negatives(CLASSES)
    compressed, jittered, memory, priorities = everything(rng, remembered)
    memory = dataclasses.replace(memory, size=memory.size.at[int(batch.ground_truth.labels[0, 3])].add(-1))
    grades = grade(module, predictions, samples, batch)
    grades = jax.tree.map(jnp.asarray, grades._replace(quality_class=np.tile([2, 2, 2, 1, 0, 0], (2, 1))))
    return module, params, (compressed, jittered, grades, samples, batch.ground_truth, memory, priorities)


def embed(params, z: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return what every layer gives, the unit vectors last."""
    layers = [z]
    for name in ("encode1", "encode2", "project"):
        z = layers[-1] @ params[name]["kernel"] + params[name]["bias"]
        layers.append(z if name == "project" else np.maximum(z, 0))
    return *layers, layers[-1] / np.linalg.norm(layers[-1], axis=-1, keepdims=True)


def back(params, layers: tuple[np.ndarray, ...], gradient: np.ndarray, kernels: dict[str, np.ndarray]) -> np.ndarray:
    """Return the gradient with respect to the input of `embed`, and add those of the kernels."""
    unit = layers[-1]
    gradient = gradient - (gradient * unit).sum(-1, keepdims=True) * unit
    gradient = gradient / np.linalg.norm(layers[-2], axis=-1, keepdims=True)
    for depth, name in ((2, "project"), (1, "encode2"), (0, "encode1")):
        kernels[name] = kernels.get(name, 0) + layers[depth].T @ gradient
        gradient = gradient @ params[name]["kernel"].T * (layers[depth] > 0 if depth else 1)
    return gradient


def loop(name: str):
    """Return the loss of the batch and its gradients in float64, object by object, from Eq. 5 and 6."""
    module, params, (compressed, jittered, grades, samples, truth, memory, priorities) = case(name)
    stored = [module.apply(params, x, method="compress") for x in (memory.features, jittered)]
    parts = [np.float64(x).reshape(-1, compressed.shape[-1]) for x in (compressed, *stored)]
    weights = jax.tree.map(np.float64, params["params"])
    layers = [embed(weights, part) for part in parts]
    table = np.concatenate([each[-1] for each in layers])
    first = np.cumsum([0, *map(len, parts)])  # of regions, slots and jittered boxes
    gradient, total, filled = np.zeros_like(table), 0.0, np.arange(SLOTS) < np.asarray(memory.size)[:, None]
    terms = []
    for image in range(IMAGES):
        one = jax.tree.map(lambda x, k=image: x[k], (truth, grades, samples, priorities))
        own = (np.asarray(one[1].chosen) == np.arange(6)[:, None]) & np.asarray(one[1].offered)
        contrast = choices.choose_contrast(
            one[0].labels, one[1].quality_class, jnp.asarray(own), one[2], jnp.asarray(filled),
            (one[3].positives, one[3].negatives), negatives=module.negatives, size=module.samples,
            positive_fractions=module.positive_fractions, jitters=module.jitters,
        )  # fmt: skip
        for index in range(5):  # the sixth was not sampled
            if memory.size[one[0].labels[index]] < module.min_exemplars:
                continue
            jitters = np.flatnonzero(contrast.jitters[index]) + jittered[0, :, :, 0, 0, 0].size * image + first[2]
            positives = [*(np.flatnonzero(contrast.exemplars[index]) + first[1]), *jitters]
            chosen = np.flatnonzero(contrast.negatives[index])
            negatives = [k + image * REGIONS if k < REGIONS else k - REGIONS + first[1] for k in chosen]
            terms.append((image, image * REGIONS + index, int(one[1].quality_class[index]), positives, negatives))
    divisor = sum(len(positives) for *_, positives, _ in terms)
    assert divisor > 20
    for _, anchor, quality, positives, negatives in terms:
        if not positives:
            continue
        share = 1 / divisor if module.contrast != "means" else 1 / len(positives) / 5 / IMAGES
        share *= module.weight * module.quality_weights[quality]
        others = np.array(positives + negatives)
        cosines = table[others] @ table[anchor]
        if module.contrast == "l2":
            total += share * (2 - 2 * cosines[: len(positives)]).sum()
            slope = np.where(np.arange(len(others)) < len(positives), -2 * share, 0)
        else:
            shares = np.exp(cosines / module.temperature)
            total -= share * np.log(shares / shares.sum())[: len(positives)].sum()
            slope = len(positives) * shares / shares.sum() - (np.arange(len(others)) < len(positives))
            slope *= share / module.temperature
        gradient[anchor] += slope @ table[others]
        np.add.at(gradient, others, slope[:, None] * table[anchor])
    kernels: dict[str, np.ndarray] = {}
    parts = zip(layers, np.split(gradient, first[1:-1]), strict=True)
    of_regions, *_ = [back(weights, *part, kernels) for part in parts]
    return total, of_regions.reshape(compressed.shape), kernels


@pytest.mark.parametrize("name", VARIANTS)
def test_value_and_gradient_equal_the_loop_in_float64(name):
    """Regions get the gradient of objects and of negatives; exemplars and jittered boxes teach the embedding alone."""
    module, params, (compressed, *rest) = case(name)

    @jax.jit
    def run(params, compressed):
        def loss(params, compressed):
            terms, statistics = module.apply(params, compressed, *rest, method="losses")
            term = terms["contrast"]
            return term.total.sum() / term.count.sum(), statistics

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, compressed)

    (value, _), (of_params, of_regions) = run(params, compressed)
    expected, regions, kernels = loop(name)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(of_regions, regions, atol=1e-4 * np.abs(regions).max())
    assert np.abs(regions).max() > 0
    for part, kernel in kernels.items():
        ours = of_params["params"][part]["kernel"]
        np.testing.assert_allclose(ours, kernel, atol=1e-4 * np.abs(kernel).max(), err_msg=part)


@pytest.mark.parametrize("reaches", [True, False])
def test_imitation_teaches_the_features_only_if_it_may(reaches):
    _, params, (_, jittered, *_) = case("paper")
    module = imitation(features_gradient=reaches)

    @jax.jit
    def gradients(params, regions):
        loss = lambda params, x: module.apply(params, x, method="compress_learners").sum()  # noqa: E731
        return jax.grad(loss, (0, 1))(params, regions)

    of_params, of_regions = gradients(params, jittered[0, 0])
    assert (np.asarray(of_params["params"]["compressions_0"]["kernel"]) != 0).any()
    assert (np.asarray(of_regions) != 0).any() == reaches


def test_l2_has_no_push():
    """Its loss is how far positives are, whatever the negatives: 0 for an encoder that always says the same."""
    module, params, (compressed, *rest) = case("l2")
    apply = jax.jit(lambda params: module.apply(params, compressed, *rest, method="losses")[0]["contrast"])
    constant = jax.tree.map(jnp.zeros_like, params)
    constant["params"]["project"]["bias"] = jnp.ones_like(constant["params"]["project"]["bias"])
    np.testing.assert_allclose(apply(constant).total, np.zeros(IMAGES), atol=1e-5)
    assert (apply(params).total > 0.1).all()


def test_the_log_says_who_is_taught_and_how_far_positives_are_above_negatives():
    module, params, (compressed, jittered, grades, samples, truth, memory, priorities) = case("known")
    seen = module.apply(
        params, compressed, jittered, grades, samples, truth, memory, priorities, method="losses"
    )[1]  # fmt: skip
    labels = np.asarray(truth.labels)[:, :5]
    known = np.asarray(memory.size)[labels] >= HELD
    # Two are exemplars with jittered boxes and one is of low quality; a quarter of three samples is none.
    learns = known & np.isin(np.arange(5), [0, 1, 4])
    np.testing.assert_array_equal(seen["taught"].total, learns.sum(1))
    np.testing.assert_array_equal(seen["taught"].count, [5, 5])
    for name in ("positive_cosine", "negative_cosine"):
        mean = np.asarray(seen[name].total) / np.asarray(seen[name].count)
        assert (seen[name].count > 0).all() and (np.abs(mean) <= 1).all()
