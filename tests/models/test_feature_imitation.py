"""Feature imitation: Algorithm 1 against a plain loop, the reference's numbers, and who learns from what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.models.feature_imitation import Compress, FeatureImitation, Grades
from cfinet_jax.ops import losses
from cfinet_jax.ops.exemplar_memory import empty_memory, push
from tests import plain
from tests.imitation import (
    CHANNELS,
    CLASSES,
    IMAGES,
    REGIONS,
    RELEASED,
    SETTINGS,
    SIZE,
    SLOTS,
    everything,
    grade,
    imitation,
    parameters,
    scene,
)


@pytest.fixture
def variables(rng):
    return parameters(rng)


# Modules


def test_compression_equals_the_loop(rng, variables):
    regions = rng.normal(size=(2, 3, SIZE, SIZE, CHANNELS)).astype(np.float32)
    x = regions.reshape(6, SIZE, SIZE, CHANNELS)
    for k in range(3):
        params = jax.tree.map(np.asarray, variables["params"][f"compressions_{k}"])
        x = plain.convolve(x, params["kernel"], padding=0)
        grouped = x.reshape(*x.shape[:3], 4, 4)
        mean, variance = grouped.mean((1, 2, 4), keepdims=True), grouped.var((1, 2, 4), keepdims=True)
        x = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
        x = x * params["norm"]["scale"] + params["norm"]["bias"]
    assert x.shape == (6, 1, 1, CHANNELS)
    ours = jax.jit(lambda r: imitation().apply(variables, r, method="compress"))(regions)
    np.testing.assert_allclose(ours, x.reshape(2, 3, CHANNELS), rtol=1e-3, atol=1e-3)


def test_one_compression_is_a_convolution_without_padding_or_bias():
    params = Compress(4).init(jax.random.key(0), jnp.zeros((1, 5, 5, 8)))["params"]
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes == {"kernel": (3, 3, 8, 8), "norm": {"scale": (8,), "bias": (8,)}}


def test_emphasis_multiplies_channels_by_one_plus_softmax(rng):
    regions = rng.normal(size=(2, 3, 3, 4)).astype(np.float32)
    vectors = rng.normal(size=(2, 4)).astype(np.float32)
    share = np.exp(vectors) / np.exp(vectors).sum(1, keepdims=True)
    ours = imitation().apply({}, jnp.asarray(regions), jnp.asarray(vectors), method="emphasise")
    np.testing.assert_allclose(ours, regions * (1 + share[:, None, None]), rtol=1e-4)


def test_embeddings_are_unit_vectors_and_finite_for_zero(variables):
    embed = jax.jit(lambda x: imitation().apply(variables, x, method="embed"))
    vectors = jax.random.normal(jax.random.key(0), (5, CHANNELS))
    np.testing.assert_allclose(jnp.linalg.norm(embed(vectors), axis=1), np.ones(5), rtol=1e-4)
    zero = jax.tree.map(jnp.zeros_like, variables)
    gradient = jax.jit(jax.grad(lambda p: imitation().apply(p, vectors, method="embed").sum()))(zero)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def mlp_of(data: dict, prefix: str = "") -> dict:
    """The reference's parameters (or their gradients) as ours."""
    names = {"encode1": "fc_enc.0", "encode2": "fc_enc.1", "project": "fc_proj"}
    return {
        ours: {
            "kernel": jnp.asarray(data[f"{prefix}{theirs}.weight"].T),
            "bias": jnp.asarray(data[f"{prefix}{theirs}.bias"]),
        }
        for ours, theirs in names.items()
    }


def test_contrastive_loss_and_its_gradients_agree_with_the_reference(golden):
    data = golden("fi_contrast")
    module = FeatureImitation(**RELEASED | {"encoder": 32, "embedding": 16, "weight": 1.0})
    assert module.contrast == "means" and module.quality_weights == (0.5, 0.1, 0.05)
    for case in range(int(data["n_cases"])):
        objects = len(data[f"c{case}_anchor"])
        weights = data[f"c{case}_loss_weights"]
        quality_class = np.abs(weights[:, None] - np.float32(module.quality_weights)).argmin(1)
        np.testing.assert_allclose(np.float32(module.quality_weights)[quality_class], weights, rtol=1e-5)
        positive = jnp.asarray(data[f"c{case}_pos_signs"] > 0)
        of_objects = jnp.zeros(objects, jnp.int32)
        grades = Grades(
            slot=of_objects, present=of_objects == 0, quality=jnp.zeros(objects),
            quality_class=jnp.asarray(quality_class, jnp.int32), chosen=of_objects, offered=of_objects == 0,
            surplus=jnp.int32(0),
        )  # fmt: skip

        def loss(params, anchor, contrast, positive=positive, grades=grades):
            embed = lambda x: module.apply({"params": params}, x, method="embed")  # noqa: E731
            similarities = jnp.einsum("oe,ose->os", embed(anchor), embed(contrast)) / float(data["temperature"])
            term = module.apply({}, *losses.contrastive(similarities, positive, ~positive), grades, method="normalise")
            return term.total / term.count

        inputs = (mlp_of(data), jnp.asarray(data[f"c{case}_anchor"]), jnp.asarray(data[f"c{case}_contrast"]))
        value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*inputs)
        expected = mlp_of(data, f"c{case}_g_"), data[f"c{case}_ganchor"], data[f"c{case}_gcontrast"]
        np.testing.assert_allclose(value, data[f"c{case}_loss"], rtol=1e-4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradients, expected)


# Losses, as Algorithm 1 states them


def best(chances: np.ndarray, candidates: list[int], quota: int) -> list[int]:
    return sorted(candidates, key=lambda k: -chances[k])[: max(quota, 0)]


@pytest.mark.parametrize("negatives", ["paper", "image"])
def test_losses_equal_algorithm_1(rng, variables, negatives):
    module = imitation(
        negatives=negatives, samples=16, min_predictions=3, quality_weights=(0.7, 0.3, 0.2), contrast="eq6"
    )
    predictions, samples, batch = scene(rng)
    compressed, jittered, memory, priorities = everything(rng, CLASSES * SLOTS if negatives == "paper" else 0)
    grades = grade(module, predictions, samples, batch)
    assert grades.quality_class[0].tolist() == [2, 2, 2, 0, 0, 0]
    grades = jax.tree.map(jnp.asarray, grades._replace(quality_class=np.tile([2, 2, 2, 1, 0, 0], (2, 1))))

    def terms_of(module):
        apply = jax.jit(lambda *a: module.apply(variables, *a, method="losses"))
        return apply(compressed, jittered, grades, samples, batch.ground_truth, memory, priorities)

    terms, _ = terms_of(module)
    unit = jax.jit(lambda x: module.apply(variables, x, method="embed"))
    vector = jax.jit(lambda x: module.apply(variables, x, method=lambda m, y: m.embed(m.compress(y))))
    regions, own, stored = (np.asarray(x) for x in (unit(compressed), vector(jittered), vector(memory.features)))
    means = terms_of(imitation(
        negatives=negatives, samples=16, min_predictions=3, quality_weights=(0.7, 0.3, 0.2), contrast="means"
    ))[0]["contrast"]  # fmt: skip
    for image in range(IMAGES):
        total, divisor, mean = 0.0, 0, 0.0
        background = [k for k in range(23) if not samples.is_object[image, k]]
        chosen = grades.chosen[image].tolist()
        for index in range(5):  # the sixth was not sampled
            label, quality = int(batch.ground_truth.labels[image, index]), int(grades.quality_class[image, index])
            if quality < 2:
                quota = int(len(background) * (0.5, 0.25)[quality])
                drawn = best(np.asarray(priorities.positives[image, index]), [0, 1, 2], quota)
                positives = [stored[label, slot] for slot in drawn]
            else:
                positives = list(own[image, chosen.index(index)]) if index in chosen else []
            if negatives == "paper":
                others = [c * SLOTS + s for c in range(CLASSES) for s in range(3) if c != label]
                candidates = background + [REGIONS + slot for slot in others]
            else:
                candidates = [k for k in range(23) if int(samples.labels[image, k]) != label]
            rest = best(np.asarray(priorities.negatives[image, index]), candidates, len(background) - len(positives))
            table = np.concatenate([regions[image], stored.reshape(-1, stored.shape[-1])])
            anchor = regions[image, index]
            similar = [anchor @ v / 0.6 for v in [*positives, *(table[k] for k in rest)]]
            loss = sum(np.log(np.exp(similar).sum()) - value for value in similar[: len(positives)])
            total += (0.7, 0.3, 0.2)[quality] * loss
            divisor += len(positives)
            mean += (0.7, 0.3, 0.2)[quality] * loss / max(len(positives), 1) / 5
        assert divisor > 20 and total > 0
        np.testing.assert_allclose(terms["contrast"].total[image], 0.5 * total, rtol=1e-3)
        assert terms["contrast"].count[image] == divisor
        np.testing.assert_allclose(means.total[image], 0.5 * mean, rtol=1e-3)
        assert means.count[image] == 1


@pytest.mark.parametrize("settings", [SETTINGS, RELEASED], ids=["paper", "released"])
def test_positives_teach_the_mlp_only(rng, variables, settings):
    module = FeatureImitation(**settings | {"min_predictions": 3})
    predictions, samples, batch = scene(rng)
    remembered = module.remembered_negatives(CLASSES)
    compressed, jittered, memory, priorities = everything(rng, remembered)
    grades = jax.tree.map(jnp.asarray, grade(module, predictions, samples, batch))
    assert grades.offered.any() and (grades.quality_class == 0).any()

    @jax.jit
    def gradients(variables, compressed, jittered, features):
        def loss(variables, compressed, jittered, features):
            held = dataclasses.replace(memory, features=features)
            terms, _ = module.apply(
                variables, compressed, jittered, grades, samples, batch.ground_truth, held, priorities, method="losses"
            )
            return terms["contrast"].total.sum()

        return jax.grad(loss, (0, 1, 2, 3))(variables, compressed, jittered, features)

    of_params, of_regions, of_jitters, of_memory = gradients(variables, compressed, jittered, memory.features)
    for name, gradient in of_params["params"].items():
        learns = any((np.asarray(x) != 0).any() for x in jax.tree.leaves(gradient))
        assert learns == (not name.startswith("compressions")), name
    assert (np.asarray(of_regions) != 0).any()
    np.testing.assert_array_equal(of_jitters, np.zeros(jittered.shape))
    np.testing.assert_array_equal(of_memory, np.zeros(memory.features.shape))


def test_without_anything_the_loss_is_zero_with_a_finite_gradient(rng, variables):
    predictions, samples, batch = scene(rng)
    compressed, jittered, memory, priorities = everything(rng, CLASSES * SLOTS)
    nothing = jnp.zeros((IMAGES, REGIONS), bool)
    samples = dataclasses.replace(samples, is_object=nothing, valid=nothing)
    grades = jax.tree.map(jnp.asarray, grade(imitation(), predictions, samples, batch))
    assert not grades.present.any()

    @jax.jit
    def gradient(variables, compressed):
        def loss(variables, compressed):
            terms, _ = imitation().apply(
                variables, compressed, jittered, grades, samples, batch.ground_truth, memory, priorities,
                method="losses",
            )  # fmt: skip
            return terms["contrast"].total.sum(), terms

        return jax.grad(loss, (0, 1), has_aux=True)(variables, compressed)

    gradients, terms = gradient(variables, compressed)
    assert terms["contrast"].total.tolist() == terms["contrast"].count.tolist() == [0, 0]
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(gradients))


# Jitter and memory


def test_jittered_boxes_belong_to_the_chosen_objects_of_their_image(rng):
    predictions, samples, batch = scene(rng)
    grades = jax.tree.map(jnp.asarray, grade(imitation(min_predictions=3), predictions, samples, batch))
    boxes = imitation().apply({}, grades, batch, method="jittered_boxes").reshape(IMAGES, 2, 10, 4)
    for image in range(IMAGES):
        for place, index in enumerate(grades.chosen[image].tolist()):
            x1, y1, x2, y2 = np.asarray(batch.ground_truth.boxes[image, index])
            shifted = np.clip([x1 + 0.3 * (x2 - x1), y1, x2 + 0.3 * (x2 - x1), y2], 0, 64)
            np.testing.assert_allclose(boxes[image, place, 0], shifted, rtol=1e-4)


def test_exemplars_are_the_regions_of_the_objects_themselves(rng):
    predictions, samples, batch = scene(rng)
    grades = jax.tree.map(jnp.asarray, grade(imitation(min_predictions=3), predictions, samples, batch))
    grades = grades._replace(slot=grades.slot[:, ::-1])  # the objects sit elsewhere among the regions
    regions = jnp.asarray(rng.normal(size=(IMAGES, REGIONS, SIZE, SIZE, CHANNELS)), jnp.float32)
    offered = imitation().apply({}, regions, grades, batch.ground_truth, method="exemplars")
    memory = empty_memory(CLASSES, SLOTS, SIZE, CHANNELS)
    for image in range(IMAGES):
        assert grades.chosen[image].tolist() == [0, 1]
        for place, index in enumerate(grades.chosen[image].tolist()):
            np.testing.assert_array_equal(offered.features[image, place], regions[image, grades.slot[image, index]])
            assert offered.labels[image, place] == batch.ground_truth.labels[image, index]
        memory = push(memory, jax.tree.map(lambda x, k=image: x[k], offered))
    counts = np.bincount(np.asarray(offered.labels).ravel(), minlength=CLASSES)
    np.testing.assert_array_equal(memory.size, counts)


def test_statistics_count_objects_by_quality(rng, variables):
    predictions, samples, batch = scene(rng)
    compressed, jittered, memory, priorities = everything(rng, CLASSES * SLOTS)
    grades = jax.tree.map(jnp.asarray, grade(imitation(min_predictions=3), predictions, samples, batch))
    apply = jax.jit(lambda *a: imitation().apply(variables, *a, method="losses"))
    statistics = apply(compressed, jittered, grades, samples, batch.ground_truth, memory, priorities)[1]
    shares = {name: (float(term.total[0]), float(term.count[0])) for name, term in statistics.items()}
    assert shares["high_quality"] == (3, 6) and shares["low_quality"] == (3, 6)
    assert shares["exemplars_offered"] == (2, 1) and shares["exemplars_left_out"] == (1, 1)
    np.testing.assert_allclose(shares["quality"], (0.9 + 0.8 + 0.7, 6), rtol=1e-3)
