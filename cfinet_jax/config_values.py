"""Ranges of the numbers in a config, checked before anything is computed from them."""

import re
import sys

import jax
from ml_collections import ConfigDict

from cfinet_jax.errors import UserError

SMALLEST, LARGEST = sys.float_info.min, sys.float_info.max  # so that infinity and NaN are in no range
ANY = -LARGEST, LARGEST, "finite"
NOT_NEGATIVE = 0, LARGEST, "at least 0"
POSITIVE = SMALLEST, LARGEST, "more than 0"
COUNT = 1, LARGEST, "at least 1"
SHARE = 0, 1, "a number from 0 to 1"
RANGES = {  # pattern of keys: the first that fits decides
    r"frozen_stages|coarse_thresholds|dataset\.mean": ANY,
    r"batch_size|micro_batches|(training\.|every_)images|keep_checkpoints|mixed_pictures|max_|read_threads": COUNT,
    r"(channels|samples|candidates|width|hidden|groups|slots|encoder|embedding|pool_size)": COUNT,
    r"prediction\.overlap|window_overlap": NOT_NEGATIVE,
    r"overlap|min_score|min_location|fraction|flip|momentum|decay_factor|effective": SHARE,
    r"std|learning_rate|reference_batch|clip_norm|temperature|anchor_scale|aspect_ratios|_beta|unit|constant|mean_side|"
    r"base_size|finest_scale|rescales": POSITIVE,
    "": NOT_NEGATIVE,
}


def check_numbers(config: ConfigDict) -> None:
    """Raise `UserError` for the first number of a config that is out of its range, NaN or infinite."""
    for key in ("mean", "std"):
        value = config.dataset[key]
        if len(value) != 3 or not all(isinstance(each, int | float) for each in value):
            raise UserError(f"dataset.{key} is {value}: give three numbers, for red, green and blue.")
    for path, value in jax.tree_util.tree_leaves_with_path(config.to_dict()):
        key = jax.tree_util.keystr(path, simple=True, separator=".")
        least, most, wanted = next(limits for pattern, limits in RANGES.items() if re.search(pattern, key))
        if isinstance(value, int | float) and not least <= value <= most:
            raise UserError(f"{key} is {value}: make it {wanted}.")
