"""Numbers that would fail later, or change results silently, are refused before anything is computed."""

import importlib

import pytest
from etils import epath

from cfinet_jax.build import discover_sizes
from cfinet_jax.config_checks import RANGES, SECTIONS, check_numbers, check_values
from cfinet_jax.errors import UserError
from cfinet_jax.input.sizes import with_sizes
from cfinet_jax.restore import open_trained
from cfinet_jax.runtime.settings import write_settings
from tests import tiny

NAN, INF = float("nan"), float("inf")
REFUSED = {
    ("dataset.mean", (1.0, 2.0)): "dataset.mean is (1.0, 2.0): give three numbers",
    ("dataset.mean", (1.0, NAN, 2.0)): "dataset.mean.1 is nan: make it finite",
    ("dataset.std", ("a", "b", "c")): "give three numbers",
    ("dataset.std", (0.0, 1.0, 1.0)): "dataset.std.0 is 0.0: make it more than 0",
    ("prediction.overlap", -1): "prediction.overlap is -1: make it at least 0",
    ("prediction.merge_overlap", -1.0): "prediction.merge_overlap is -1.0: make it a number from 0 to 1",
    ("prediction.merge_overlap", NAN): "prediction.merge_overlap is nan",
    ("prediction.min_score", 1.5): "from 0 to 1",
    ("dataset.eval_batch_size", 0): "dataset.eval_batch_size is 0: make it at least 1",
    ("dataset.eval_batch_size", -1): "make it at least 1",
    ("dataset.window_overlap", -3): "dataset.window_overlap is -3: make it at least 0",
    ("dataset.flip", NAN): "dataset.flip is nan",
    ("dataset.vertical_flip", 1.5): "dataset.vertical_flip is 1.5: make it a number from 0 to 1",
    ("dataset.quarter_turns", -0.1): "dataset.quarter_turns is -0.1: make it a number from 0 to 1",
    ("dataset.crop_at_object", 2.0): "dataset.crop_at_object is 2.0: make it a number from 0 to 1",
    ("dataset.colour_jitter", 1.1): "dataset.colour_jitter is 1.1: make it a number from 0 to 1",
    ("dataset.invert", -1.0): "dataset.invert is -1.0: make it a number from 0 to 1",
    ("dataset.scale_jitter", (0.0, 1.0)): "dataset.scale_jitter.0 is 0.0: make it more than 0",
    ("dataset.scale_jitter", 2.0): "dataset.scale_jitter is 2.0: make it a list",
    ("optimizer.learning_rate", NAN): "optimizer.learning_rate is nan: make it more than 0",
    ("optimizer.learning_rate", INF): "optimizer.learning_rate is inf",
    ("optimizer.momentum", -0.9): "optimizer.momentum is -0.9",
    ("optimizer.weight_decay", -1e-4): "optimizer.weight_decay is -0.0001: make it at least 0",
    ("optimizer.decay_images", (5, -5)): "optimizer.decay_images.1 is -5",
    ("optimizer.rate_multipliers.imitation/encode", NAN): "optimizer.rate_multipliers.imitation/encode is nan",
    ("detector.roi_head.samples", 0): "detector.roi_head.samples is 0: make it at least 1",
    ("detector.roi_head.class_weight", INF): "detector.roi_head.class_weight is inf",
    ("detector.roi_head.nms_overlap", NAN): "detector.roi_head.nms_overlap is nan",
    ("detector.roi_head.positive_fraction", 1.2): "from 0 to 1",
    ("detector.imitation.temperature", 0.0): "more than 0",
    ("detector.proposal_network.coarse_to_fine.proposals.test.candidates", 0): "at least 1",
    ("training.average_decay", 1.0): "training.average_decay is 1.0: make it at least 0 and less than 1",
    ("seed", -1): "seed is -1: make it at least 0",
    ("dataset.grey_range", ("a", "b")): "dataset.grey_range.0 is 'a': make it a number",
    ("dataset.eval_batch_size", "8"): "dataset.eval_batch_size is '8': make it a number",
    ("optimizer.decay_images", ("a",)): "optimizer.decay_images.0 is 'a': make it a number",
    ("detector.imitation.shifts", (0.3, None)): "detector.imitation.shifts.1 is None: make it a number",
    ("detector.imitation.rescales", (True,)): "detector.imitation.rescales.0 is True: make it a number",
    ("detector.imitation.quality_weights", (1.0,)): "give 3 numbers",
    ("detector.imitation.positive_fractions", ()): "give 2 numbers",
    ("detector.roi_head.stds", (1.5,)): "detector.roi_head.stds is (1.5,): give 4 numbers",
    ("detector.proposal_network.coarse_to_fine.fine_stds", (0.1,) * 5): "give 4 numbers",
    ("detector.proposal_network.guided_anchor.shape_stds", (1.5,)): "give 2 numbers",
    ("detector.proposal_network.coarse_to_fine.dilation", 0): "at least 1",
    ("detector.proposal_network.coarse_to_fine.anchors_per_positive", 0.0): "more than 0",
    # Values of another type than our configs have, as in a settings.json edited by hand.
    ("detector.roi_head.class_weight", "1"): "detector.roi_head.class_weight is '1': make it a number",
    ("detector.proposal_network.coarse_to_fine.anchor_scale", (2.0,)): "make it a number",
    ("detector.proposal_network.coarse_to_fine.dilation", 1.5): "make it a number without fraction",
    ("detector.roi_head.finest_scale", None): "detector.roi_head.finest_scale is None: make it a number",
    ("detector.imitation.reweight", "false"): "detector.imitation.reweight is 'false': make it True or False",
    ("evaluation.proposals", None): "evaluation.proposals is None: make it True or False",
    ("detector.precision", 16): "detector.precision is 16: make it a text",
    ("dataset.train_split", 3): "dataset.train_split is 3: make it a text",
    ("dataset.image_size", 64): "dataset.image_size is 64: make it a list",
    ("optimizer.decay_images", 5): "optimizer.decay_images is 5: make it a list",
    ("optimizer.rate_multipliers", (1, 2)): "optimizer.rate_multipliers is (1, 2): make it a section",
    ("detector.neck", 3): "detector.neck is 3: make it a section",
    ("optimizer", ()): "The config lacks optimizer",
    # Lists that are too short, and numbers that contradict others.
    ("detector.assigners.rfla.receptive_fields", (35.0,)): "receptive_fields is (35.0,): give at least 4 numbers",
    ("detector.assigners.rfla.most", (3, 1, 1)): "give 2 numbers",
    ("detector.assigners.rka.most", 0): "detector.assigners.rka.most is 0: make it at least 1",
    ("detector.proposal_network.rpn.aspect_ratios", ()): "give at least 1 numbers",
    ("detector.imitation.high_quality", 0.1): "low_quality is 0.25: make it at most detector.imitation.high_quality",
    ("detector.proposal_network.rpn.negative_overlap", 0.9): "make it at most detector.proposal_network.rpn.positive_",
    ("detector.imitation.groups", 3): "detector.imitation.groups is 3: make it a divisor of detector.imitation.encoder",
    ("detector.backbone.frozen_stages", 9): "detector.backbone.frozen_stages is 9: make it a number from -1 to 4",
    ("seed", 2**32): "less than 2^32",
}


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=str)
def test_no_mode_computes_with_a_number_out_of_range(key, value, tmp_path):
    config = tiny.tiny_config()
    write_settings(config, epath.Path(tmp_path), ["car"], [1])
    section, _, name = key.rpartition(".")
    *sections, name = [*section.split("."), name] if section else [name]
    changed = config
    for each in sections:
        changed = changed[each]
    with changed.unlocked(), changed.ignore_type():
        changed[name] = value
    for door in (lambda: discover_sizes(config, epath.Path(tmp_path)), lambda: open_trained(tmp_path, config)):
        with pytest.raises(UserError) as error:
            door()
        assert REFUSED[key, value] in str(error.value) and "\n" not in str(error.value)


def test_a_list_may_stay_empty_where_nothing_is_needed():
    config = tiny.tiny_config()
    config.optimizer.decay_images = ()
    check_numbers(config)


def test_a_part_that_no_detector_has_is_refused():
    config = tiny.tiny_config()
    config.training.pretrained_parts = ("backbone", "head")
    with pytest.raises(UserError, match="training.pretrained_parts has 'head': choose from backbone, imitation, neck"):
        check_values(config)


@pytest.mark.parametrize("section", sorted(SECTIONS))
def test_a_missing_section_is_named(section):
    config = tiny.tiny_config()
    with config.unlocked():
        del config[section]
    with pytest.raises(UserError, match=f"The config lacks {section}: set them"):
        check_numbers(config)


@pytest.mark.parametrize("name", ["coco", "oriented", "scenes", "sodaa", "sodad"])
def test_every_config_passes(name):
    module = importlib.import_module(f"configs.{name}")
    for variant in module.VARIANTS:
        check_numbers(with_sizes(module.get_config(variant), stored_size=(512, 640), max_objects=64))
    assert list(RANGES)[-1] == ""  # so that there is one for every key


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scale_jitter", (2.0, 0.5), "dataset.scale_jitter is (2.0, 0.5): give the lower factor first"),
        ("train_size", (320,), 'dataset.train_size is (320,): give height and width, --config.dataset.train_size="('),
        ("train_size", (320, 0), "dataset.train_size is (320, 0)"),
    ],
)
def test_a_crop_or_a_range_of_scales_that_is_none_is_refused(key, value, message, tmp_path):
    config = tiny.tiny_config()
    config.dataset[key] = value
    with pytest.raises(UserError) as error:
        discover_sizes(config, epath.Path(tmp_path))
    assert message in str(error.value)


def test_smaller_windows_than_in_training_are_refused(tmp_path):
    workdir, config = epath.Path(tmp_path), tiny.tiny_config()
    write_settings(config, workdir, ["car"], [1])
    height, width = config.dataset.stored_size
    for smaller in ((height - 1, width), (height, 32)):
        config.dataset.stored_size = smaller
        with pytest.raises(UserError, match="dataset.stored_size is .*was trained with"):
            open_trained(workdir, config)
    config.dataset.stored_size = (height, 2 * width)
    with pytest.raises(UserError, match="No checkpoint in"):
        open_trained(workdir, config)
