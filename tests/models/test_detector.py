"""The whole detector: its size, its losses in every corner case, and which loss teaches what."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.errors import UserError
from cfinet_jax.models.detector import build_detector
from cfinet_jax.models.proposals import PROPOSAL_NETWORKS
from cfinet_jax.models.resnet import frozen_parts
from cfinet_jax.train_step import empty_batch
from configs.sodad import RELEASED, VARIANTS, get_config
from tests import tiny

TERMS = {
    "coarse_to_fine": ["proposals/coarse_box", "proposals/objectness", "proposals/box", "roi/class", "roi/box"],
    "rpn": ["proposals/objectness", "proposals/box", "roi/class", "roi/box"],
    "cascade": ["proposals/coarse_box", "proposals/objectness", "proposals/box", "roi/class", "roi/box"],
    "guided_anchor": [
        "proposals/location", "proposals/shape", "proposals/objectness", "proposals/box", "roi/class", "roi/box",
    ],
}  # fmt: skip
TWO_STAGES = {
    "proposals/coarse_box": {"coarse_conv", "coarse_box"},
    "proposals/objectness": {"coarse_conv", "fine_conv", "fine_objectness"},
    "proposals/box": {"coarse_conv", "fine_conv", "fine_box"},
}
LEARNS = {  # which modules of a proposal network each of its losses teaches
    "coarse_to_fine": TWO_STAGES,
    "cascade": TWO_STAGES,
    "rpn": {"proposals/objectness": {"conv", "objectness"}, "proposals/box": {"conv", "box"}},
    "guided_anchor": {
        "proposals/location": {"conv", "location"},
        "proposals/shape": {"conv", "shape"},
        "proposals/objectness": {"conv", "adaption", "objectness"},
        "proposals/box": {"conv", "adaption", "box"},
    },
}
EVERYWHERE = {"proposals/objectness", "proposals/location", "roi/class"}  # losses that background has, too
DETECTORS = [variant for variant in VARIANTS if variant not in ("pod", "rpn_0.5")]  # those differ in numbers alone


@functools.cache
def built(variant: str):
    """A small detector, its parameters made large enough for everything to matter, and a full memory."""
    detector = build_detector(tiny.settings(variant), 9)

    def create(key):
        batch = empty_batch(1, tiny.SHAPE, tiny.OBJECTS)
        chances = detector.draw_priorities(key, batch.index, tiny.SHAPE, tiny.OBJECTS)
        return detector.init(key, batch, detector.empty_memory(), chances, method="losses")

    variables = jax.jit(create)(jax.random.key(0))
    memory = detector.empty_memory()
    return detector, variables, None if memory is None else tiny.full_memory(memory)


@functools.cache
def gradients_of(variant: str):
    """A jitted function: batch -> (gradient of every loss, losses, statistics, exemplars)."""
    detector, variables, memory = built(variant)
    names = [*TERMS[tiny.settings(variant).proposal_network.name]]
    names += [] if memory is None else ["imitation/contrast"]

    def forward(params, batch):
        chances = detector.draw_priorities(jax.random.key(1), batch.index, tiny.SHAPE, tiny.OBJECTS)
        state = variables | {"params": params}
        losses, statistics, exemplars = detector.apply(state, batch, memory, chances, method="losses")
        assert sorted(losses) == sorted(names)
        return jnp.stack([losses[name].total.sum() for name in names]), (losses, statistics, exemplars)

    @jax.jit
    def run(batch):
        gradients, auxiliary = jax.jacrev(forward, has_aux=True)(variables["params"], batch)
        return {name: jax.tree.map(lambda x, k=k: x[k], gradients) for k, name in enumerate(names)}, *auxiliary

    return run


def parts_that_learn(gradient) -> set[str]:
    """`neck/lateral2` and the like: parameters with a gradient, by part and module."""
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    moved = [path for path, leaf in leaves if (np.asarray(leaf) != 0).any()]
    return {"/".join(key.key for key in path[:2]) for path in moved}


# Size


def shapes_of(variant: str):
    detector = build_detector(get_config(variant).detector, 9)

    def create(key):
        batch = empty_batch(1, (64, 64), 4)
        chances = detector.draw_priorities(key, batch.index, (64, 64), 4)
        return detector.init(key, batch, detector.empty_memory(), chances, method="losses")

    return jax.eval_shape(create, jax.random.key(0))["params"]


def size(tree, *prefixes: str) -> int:
    """Parameters of the modules whose names start so."""
    return sum(x.size for name, of in tree.items() if name.startswith(prefixes) for x in jax.tree.leaves(of))


def test_parameters_of_every_module_of_the_paper():
    params = shapes_of("")
    network, imitation = params["proposal_network"], params["imitation"]
    assert size(params, "backbone") == 23_508_032
    assert size(params, "neck") == 3_344_384
    assert size(network, "coarse_") == 591_108
    assert size(network, "fine_") == 591_109
    assert size(params, "roi_head") == 13_942_830
    assert size(imitation, "compressions") == 1_771_008
    assert size(imitation, "encode") == 394_240
    assert size(imitation, "project") == 65_664
    assert size(params, "") == 44_208_375


def test_parameters_of_the_baseline():
    params = shapes_of("faster_rcnn")
    assert size(params["proposal_network"], "") == 590_080 + 3 * 257 + 12 * 257
    assert size(params, "") == 23_508_032 + 3_344_384 + 593_935 + 13_942_830


def test_parameters_of_the_other_proposal_networks():
    """A cascade has CRPN's, so its published weights have a place; guides take little beside the adaption."""
    names, sizes = (
        [of(shapes_of(variant)["proposal_network"]) for variant in ("", "cascade")]
        for of in (jax.tree.structure, lambda tree: size(tree, ""))
    )
    assert names[0] == names[1] and sizes == [591_108 + 591_109] * 2
    guided = shapes_of("guided_anchor")["proposal_network"]
    assert size(guided, "adaption") == 9 * 256 * 256 + 2 * 4 * 18
    assert size(guided, "location", "shape") == 257 + 2 * 257
    assert size(guided, "") == 590_080 + 589_968 + 3 * 257 + 257 + 4 * 257


def test_the_released_preset_changes_six_keys_and_only_those():
    def flat(tree, prefix=""):
        for key, value in tree.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]

    paper, released = (dict(flat(get_config(variant).to_dict())) for variant in ("", "released"))
    changed = {key for key in paper if paper[key] != released[key]}
    assert paper.keys() == released.keys()
    assert changed == set(RELEASED) == {
        "detector.proposal_network.coarse_to_fine.coarse_threshold",
        *(f"detector.imitation.{key}" for key in ("quality", "negatives", "quality_weights", "reweight", "contrast")),
    }  # fmt: skip


def test_an_unknown_key_fails():
    settings = tiny.settings()
    settings.roi_head.unlock()
    settings.roi_head.sampels = 3
    with pytest.raises(UserError, match="sampels"):
        build_detector(settings, 9)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "proposal_network.coarse_to_fine.assigner",
            "best",
            "assigner is 'best': choose one of dotd, max_iou, nwd",
        ),
        ("proposal_network.coarse_to_fine.box_loss", "l2", "box_loss is 'l2': choose one of l1, iou, nwd"),
        ("proposal_network.coarse_to_fine.proposals.nms_similarity", "giou", "nms_similarity is 'giou': choose one of"),
        ("proposal_network.coarse_to_fine.coarse_threshold", "own", "coarse_threshold is 'own': choose one of"),
        ("imitation.quality", "best", "detector.imitation.quality is 'best': choose one of paper, released"),
        ("precision", "half", "detector.precision is 'half': choose one of"),
        ("assigners.rka.rule", "rank", "detector.assigners.rka.rule is 'rank': choose one of threshold, ranking"),
        ("assigners.nwd.similarity", "giou", "detector.assigners.nwd.similarity is 'giou': choose one of dotd, iou"),
    ],
)
def test_unknown_choices_are_refused(path, value, message):
    settings = tiny.settings()
    settings.update_from_flattened_dict({path: value})
    with pytest.raises(UserError, match=message):
        build_detector(settings, 9)


def test_a_similarity_that_has_no_function_is_refused():
    settings = tiny.settings()
    with settings.unlocked():
        settings.similarities.giou = {}
    with pytest.raises(UserError, match="similarities is 'giou': choose one of"):
        build_detector(settings, 9)


# Randomness


def test_priorities_depend_on_the_image_and_not_on_its_place():
    detector = build_detector(tiny.settings(), 9)
    draw = jax.jit(lambda index: detector.draw_priorities(jax.random.key(3), index, tiny.SHAPE, tiny.OBJECTS))
    here, there = draw(jnp.array([0, 5])), draw(jnp.array([5, 7]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[0]), here, there)
    assert all((np.asarray(x[0]) != np.asarray(x[1])).any() for x in jax.tree.leaves(here))
    assert here.anchors.shape == (2, 340) and here.rois.shape == (2, 46)
    assert here.positives.shape == (2, 6, 4) and here.negatives.shape == (2, 6, 24 + 9 * 4)


def test_every_proposal_network_is_in_the_configuration():
    assert {tiny.settings(variant).proposal_network.name for variant in VARIANTS} == set(PROPOSAL_NETWORKS)
    assert all(name in get_config().detector.proposal_network for name in PROPOSAL_NETWORKS)


def test_the_last_layers_start_near_zero():
    params = built("guided_anchor")[1]["params"]
    head, network = params["roi_head"], params["proposal_network"]
    starts = {0.01: [head["classify"], network["shape"], network["adaption"]], 0.001: [head["regress"]]}
    for spread, layers in (starts | {0.1: [network["adaption"]["offset"]]}).items():
        for layer in layers:
            assert float(layer["kernel"].std()) == pytest.approx(spread, rel=0.3)


# Losses


@pytest.mark.parametrize("variant", DETECTORS)
@pytest.mark.parametrize("objects", [0, 3, tiny.OBJECTS])
def test_losses_and_gradients_are_finite(variant, objects):
    gradients, losses, statistics, _ = gradients_of(variant)(tiny.batch(objects))
    for leaf in jax.tree.leaves((gradients, losses, statistics)):
        assert np.isfinite(leaf).all()
    without_object = {name for name, term in losses.items() if not np.asarray(term.total).any()}
    if objects == 0:
        assert without_object == set(losses) - EVERYWHERE
    else:
        assert not without_object


@pytest.mark.parametrize("variant", DETECTORS)
def test_inside_ignore_regions_nothing_is_learnt(variant):
    everywhere = [[-100.0, -100.0, 200.0, 200.0]]
    gradients, losses, _, exemplars = gradients_of(variant)(tiny.batch(0, regions=everywhere))
    assert all((np.asarray(term.total) == 0).all() for term in losses.values())
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradients))
    assert exemplars is None or not exemplars.valid.any()


@pytest.mark.parametrize("variant", DETECTORS)
def test_padding_objects_do_not_matter(variant):
    batch = tiny.batch(2)
    truth = batch.ground_truth
    padding = ~truth.valid
    other = dataclasses.replace(
        truth,
        boxes=jnp.where(padding[..., None], jnp.array([0.0, 0.0, 9.0, 9.0]), truth.boxes),
        labels=jnp.where(padding, 5, truth.labels),
    )
    run = gradients_of(variant)
    losses, others = run(batch)[1], run(dataclasses.replace(batch, ground_truth=other))[1]
    for name in losses:
        np.testing.assert_allclose(losses[name].total, others[name].total, rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(losses[name].count, others[name].count, err_msg=name)


@pytest.mark.parametrize("variant", DETECTORS)
def test_every_loss_teaches_its_own_part(variant):
    gradients = gradients_of(variant)(tiny.batch())[0]
    learns = {name: parts_that_learn(gradient) for name, gradient in gradients.items()}
    every = set.union(*learns.values())
    network = {part for part in every if part.startswith("proposal_network/")}
    compress = {f"imitation/compressions_{k}" for k in range(3)}
    for name, parts in learns.items():
        assert "backbone/layer4_1" in parts or name == "proposals/coarse_box", name
        assert not any(part[9:].startswith(frozen.rstrip("/")) for part in parts for frozen in frozen_parts(1)), name
        if not name.startswith("proposals/"):  # proposals are where to look, not what to learn
            assert not parts & network, name
    for name, parts in LEARNS[tiny.settings(variant).proposal_network.name].items():
        assert learns[name] & network == {f"proposal_network/{part}" for part in parts}, name
    if "imitation/contrast" in learns:
        assert compress <= learns["imitation/contrast"]
        assert not any(part.startswith("roi_head") for part in learns["imitation/contrast"])
    for name in ("roi/class", "roi/box"):  # the detector itself depends on the vectors only when they reweight
        assert {part for part in learns[name] if part.startswith("imitation")} == (
            compress if variant == "released" else set()
        )


def test_without_a_memory_nothing_is_imitated():
    detector, variables, _ = built("")
    batch = tiny.batch()
    chances = detector.draw_priorities(jax.random.key(1), batch.index, tiny.SHAPE, tiny.OBJECTS)
    forward = functools.partial(detector.apply, method="losses")
    losses, _, exemplars = jax.eval_shape(forward, variables, batch, None, chances)
    assert sorted(losses) == sorted(TERMS["coarse_to_fine"]) and exemplars is None


def test_exemplars_carry_their_labels_and_no_gradient():
    detector, variables, memory = built("released")
    batch = tiny.batch()
    exemplars = gradients_of("released")(batch)[3]
    assert exemplars.features.shape == (2, 2, 7, 7, 16) and exemplars.labels.shape == (2, 2)
    pushed = detector.empty_memory()
    assert jax.tree.map(jnp.shape, pushed) == jax.tree.map(jnp.shape, memory)
    assert (pushed.size == 0).all()


# Detection


@pytest.mark.parametrize("variant", DETECTORS)
def test_detections_lie_in_the_picture_best_first(variant):
    detector, variables, _ = built(variant)
    heated = jax.tree.map(lambda x: x, variables)
    heated["params"]["roi_head"]["classify"]["kernel"] *= 200  # or no class would reach the lowest score
    batch = dataclasses.replace(tiny.batch(), sizes=jnp.array([[64.0, 64.0], [40.0, 52.0]]))
    found, proposals = jax.jit(lambda v, b: detector.apply(v, b, method="detect"))(heated, batch)
    assert (found.scores[found.valid] > 0.05).all()
    limit = np.asarray(batch.sizes)[:, None, ::-1]
    for some in (found, proposals):
        assert some.valid.any() and (some.scores[~some.valid] == 0).all()
        assert (np.diff(some.scores, axis=1) <= 0).all()
        assert (some.boxes >= 0).all() and (some.boxes[..., 2:] <= limit).all()


@pytest.mark.parametrize("name", PROPOSAL_NETWORKS)
def test_every_network_returns_upright_proposals(name):
    settings = tiny.settings()
    settings.proposal_network.name = name
    detector = build_detector(settings, 9)
    (_, proposals), _ = jax.eval_shape(
        lambda key: detector.init_with_output(key, tiny.batch(), method="detect"), jax.random.key(0)
    )
    assert proposals.boxes.shape == (2, 40, 4) and proposals.scores.shape == proposals.valid.shape == (2, 40)


def test_detecting_uses_the_compressed_vectors_only_to_reweight():
    for variant, depends in (("", False), ("released", True)):
        detector, variables, _ = built(variant)

        def scores(params, detector=detector, variables=variables):
            pyramid = detector.apply(variables | {"params": params}, tiny.batch().images, method="pyramid")
            boxes = tiny.batch().ground_truth.boxes
            _, regions = detector.apply(variables | {"params": params}, pyramid, boxes, method="regions")
            return regions.sum()

        gradient = jax.jit(jax.grad(scores))(variables["params"])
        learns = any(part.startswith("imitation") for part in parts_that_learn(gradient))
        assert learns == depends
