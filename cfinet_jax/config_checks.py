"""Checks of a config before anything is computed from it, so that a mistake is one line now, not a failure later."""

import functools
import math
import re
import sys
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from cfinet_jax.detection import view_of
from cfinet_jax.errors import UserError
from cfinet_jax.input.sizes import check_size, input_shape
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.models.detector import PARTS, ROI_HEADS
from cfinet_jax.named_configs import get_config
from cfinet_jax.optimizer import RULES, SCHEDULES
from cfinet_jax.runtime.settings import flatten
from cfinet_jax.structures import BOX_NUMBERS

SMALLEST, LARGEST = sys.float_info.min, sys.float_info.max  # so that infinity and NaN are outside every range
ANY = -LARGEST, LARGEST, "finite"
NOT_NEGATIVE = 0, LARGEST, "at least 0"
POSITIVE = SMALLEST, LARGEST, "more than 0"
COUNT = 1, LARGEST, "at least 1"
SHARE = 0, 1, "a number from 0 to 1"
BELOW_ONE = 0, math.nextafter(1, 0), "at least 0 and less than 1"
RANGES = {  # by pattern of the key; the first that matches applies
    r"assigners\..*most": COUNT,
    r"frozen_stages": (-1, 4, "a number from -1 to 4"),
    r"^seed": (0, 2**32 - 1, "at least 0 and less than 2^32"),
    r"coarse_thresholds|dataset\.mean": ANY,
    r"batch_size|micro_batches|(training\.|every_)images|keep_checkpoints|mixed_pictures|max_|read_threads": COUNT,
    r"(channels|samples|candidates|width|hidden|groups|slots|encoder|embedding|pool_size|dilation)": COUNT,
    r"prediction\.overlap|window_overlap": NOT_NEGATIVE,
    r"average_decay|second_momentum": BELOW_ONE,
    r"quantile|overlap|min_score|min_location|fraction|flip|momentum|decay_factor|final_factor|effective|quarter_turns|"
    r"crop_at_object|colour_jitter|invert": SHARE,
    r"std|learning_rate|reference_batch|clip_norm|temperature|anchor_scale|aspect_ratios|_beta|unit|constant|mean_side|"
    r"base_size|finest_scale|rescales|anchors_per_positive|scale_jitter": POSITIVE,
    "": NOT_NEGATIVE,
}
NAMES = "training.pretrained_parts", "prediction.views"  # keys of lists of names, not of numbers
SECTIONS = frozenset({"dataset", "detector", "optimizer", "training", "evaluation", "prediction"})
LENGTHS = {  # of lists that have one, by pattern of the key; the first that matches applies
    r"shape_stds|positive_fractions|scale_jitter": 2,
    r"quality_weights": 3,
    r"assigners\.rfla\.most": 2,
    r"oriented_rpn\.stds": 6,
    r"proposal_network\..*stds": 4,
}

KINDS = {bool: "True or False", int: "a number without fraction", float: "a number", str: "a text", tuple: "a list"}
OPEN = r"dataset\.(stored_size|max_objects|image_size|window_overlap)|min_positive_overlap"  # may be None in any config
ORDERED = {"negative_overlap": "positive_overlap", "low_quality": "high_quality", "low": "cap"}  # must not exceed
DIVISORS = {"groups": "encoder", "offset_groups": "channels"}  # of another key of the section
ON_NONFINITE = ("stop", "skip")


def check_values(config: ConfigDict) -> None:
    """Raise `UserError` for values that are out of range or contradict each other."""
    check_sections(config)
    if config.training.on_nonfinite not in ON_NONFINITE:
        raise UserError(f"training.on_nonfinite is {config.training.on_nonfinite!r}: choose one of {ON_NONFINITE}.")
    boxes, protocol, head = config.dataset.boxes, config.evaluation.protocol, config.detector.roi_head.name
    if boxes not in BOX_NUMBERS:
        raise UserError(f"dataset.boxes is {boxes!r}: choose horizontal or oriented.")
    protocols = sorted(name for name, each in PROTOCOLS.items() if each.boxes == boxes)
    if protocol not in protocols:
        raise UserError(
            f"evaluation.protocol is {protocol!r}: choose one of {', '.join(protocols)}, which score {boxes} boxes."
        )
    heads = [name for name, each in ROI_HEADS.items() if each.numbers == BOX_NUMBERS[boxes]]
    if head not in heads:
        raise UserError(
            f"detector.roi_head.name is {head!r} and dataset.boxes {boxes!r}: choose one of {', '.join(heads)}, or "
            "another config, such as configs/sodad.py for horizontal or configs/sodaa.py for oriented boxes."
        )
    check_numbers(config)
    check_windows(config.dataset)
    check_augmentation(config.dataset)
    check_optimizer(config)


def check_sections(config: ConfigDict) -> None:
    """Raise `UserError` for a config that lacks a section."""
    if missing := [name for name in SECTIONS if not isinstance(config.get(name), ConfigDict)]:
        raise UserError(f"The config lacks {', '.join(sorted(missing))}: set them, as configs/sodad.py does.")


def check_types(config: ConfigDict) -> None:
    """Raise `UserError` for the first value of another type than the key has in our configs.

    ml_collections checks them where a config is changed, but not where one is read from `settings.json`.
    """
    declared = declared_types()
    for key, value in flatten(config.to_dict()).items():
        if key not in declared:
            if any(other.startswith(f"{key}.") for other in declared):
                raise UserError(f"{key} is {value!r}: make it a section, as in configs/sodad.py.")
            continue
        kind, optional = declared[key]
        wanted = {float: (int, float), tuple: (tuple, list)}.get(kind, kind)
        fits = isinstance(value, wanted) and (kind is bool or not isinstance(value, bool))
        if not fits and not (value is None and (optional or re.search(OPEN, key))):
            raise UserError(f"{key} is {value!r}: make it {KINDS[kind]}.")


def check_relations(config: ConfigDict) -> None:
    """Raise `UserError` for lists that are too short, and for numbers that contradict others of their section."""
    values: dict[str, Any] = flatten(config.to_dict())
    # A missing receptive field would silently be that of another level; no neck has more than 5 levels.
    levels = min(config.detector.neck.levels, 5)
    shortest = {"receptive_fields": levels, "aspect_ratios": 1, "shifts": 1, "rescales": 1}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        if isinstance(value, tuple | list) and len(value) < shortest.get(name, 0):
            raise UserError(f"{key} is {value!r}: give at least {shortest[name]} numbers.")
        if not isinstance(value, int | float):
            continue
        larger, multiple = (values.get(f"{section}.{pairs.get(name)}") for pairs in (ORDERED, DIVISORS))
        if larger is not None and value > larger:
            raise UserError(f"{key} is {value}: make it at most {section}.{ORDERED[name]}, which is {larger}.")
        if multiple is not None and value > 0 and multiple % value:
            raise UserError(f"{key} is {value}: make it a divisor of {section}.{DIVISORS[name]}, which is {multiple}.")


@functools.cache
def declared_types() -> dict[str, tuple[type, bool]]:
    """Return the type of every key that our configs have, and whether it may be None."""

    def of(section: ConfigDict, prefix: str) -> Iterator[tuple[str, tuple[type, bool]]]:
        for key, value in section.items():
            if isinstance(value, ConfigDict):
                yield from of(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", (section.get_type(key), value is None)

    return dict(of(get_config("sodaa"), "")) | dict(of(get_config("sodad"), ""))


def check_numbers(config: ConfigDict) -> None:
    """Raise `UserError` for the first number of a config that is out of its range, NaN, infinite or of another type.

    Lists hold only numbers, and as many as are used; so does every key that `RANGES` names.
    """
    check_sections(config)
    check_types(config)
    check_names(config)
    for key in ("mean", "std"):
        value = config.dataset[key]
        if len(value) != 3 or not all(isinstance(each, int | float) for each in value):
            raise UserError(f"dataset.{key} is {value}: give three numbers, for red, green and blue.")
    head = ROI_HEADS.get(config.detector.get("roi_head", {}).get("name"))
    lengths = LENGTHS | {r"roi_head\.stds": head and head.numbers}
    for key, value in flatten(config.to_dict()).items():
        if key in NAMES:
            continue
        listed = isinstance(value, tuple | list)
        length = next((length for pattern, length in lengths.items() if re.search(pattern, key)), None)
        if length and not (listed and len(value) == length):
            raise UserError(f"{key} is {value!r}: give {length} numbers.")
        found = ((re.search(pattern, key), limits) for pattern, limits in RANGES.items())
        match, (least, most, wanted) = next((match, limits) for match, limits in found if match)
        numeric = match.end() > max(key.rfind("."), 0)  # the key itself is named, not its section
        for place, each in enumerate(value) if listed else [("", value)]:
            name = f"{key}.{place}".rstrip(".")
            number = isinstance(each, int | float) and not isinstance(each, bool)
            if number and not least <= each <= most:
                raise UserError(f"{name} is {each}: make it {wanted}.")
            if not number and (listed or (numeric and each is not None)):
                raise UserError(f"{name} is {each!r}: make it a number.")
    check_relations(config)


def check_names(config: ConfigDict) -> None:
    """Raise `UserError` for a list with a name that is none of those to choose from."""
    if unknown := [each for each in config.training.pretrained_parts if each not in PARTS]:
        raise UserError(f"training.pretrained_parts has {unknown[0]!r}: choose from {', '.join(sorted(PARTS))}.")
    if not config.prediction.views:
        raise UserError("prediction.views is empty: name one view at least, such as plain.")
    for name in config.prediction.views:
        view_of(name)


def check_optimizer(config: ConfigDict) -> None:
    """Raise `UserError` for an unknown optimizer or schedule of the rate, or one that a training has no room for."""
    settings, images = config.optimizer, config.training.images
    for key, choices in (("name", RULES), ("schedule", SCHEDULES)):
        if settings[key] not in choices:
            raise UserError(f"optimizer.{key} is {settings[key]!r}: choose {' or '.join(choices)}.")
    if settings.schedule == "cosine" and settings.warmup_images >= images:
        raise UserError(
            f"The warm-up ({settings.warmup_images} images) leaves nothing of training.images, {images}, to the "
            "cosine: lower optimizer.warmup_images."
        )


def check_windows(settings: ConfigDict) -> None:
    """Raise `UserError` if windows are asked for (section `dataset`) that cannot be laid over a picture."""
    overlap = settings.window_overlap
    if overlap is None:
        return
    if settings.stored_size is None:
        raise UserError(
            "dataset.window_overlap cuts pictures into windows of dataset.stored_size: give it, as in "
            '--config.dataset.stored_size="(640, 640)".'
        )
    input_shape(settings)  # checks that stored_size is a size
    if overlap >= min(settings.stored_size):
        raise UserError(
            f"dataset.window_overlap is {overlap}: make it less than dataset.stored_size, which is "
            f"{settings.stored_size}."
        )


def check_augmentation(settings: ConfigDict) -> None:
    """Raise `UserError` if the crop or the range of scales in which training sees pictures is not one."""
    check_size(settings, "train_size")
    low, high = settings.scale_jitter
    if low > high:
        raise UserError(f"dataset.scale_jitter is {settings.scale_jitter}: give the lower factor first.")


def check_batches(config: ConfigDict, devices: int) -> None:
    """Raise `UserError` unless every micro-batch has the same number of images for every device."""
    parts = devices * config.training.micro_batches
    if config.dataset.batch_size % parts:
        raise UserError(
            f"dataset.batch_size is {config.dataset.batch_size}: make it a multiple of {parts} "
            f"({devices} devices x {config.training.micro_batches} micro-batches)."
        )
    if config.dataset.eval_batch_size % devices:
        raise UserError(
            f"dataset.eval_batch_size is {config.dataset.eval_batch_size}: make it a multiple of {devices}."
        )
