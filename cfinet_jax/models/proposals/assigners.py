"""Which anchors stand for which object: the rules of which a row of `detector.assigners` names one.

A rule gets the proposal network, the anchors of one image with their levels, its ground truth, network pixels per
stored pixel, and the constants of the row.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cfinet_jax.boxes.similarity import SIMILARITIES, Pairwise, in_pixels
from cfinet_jax.models.fpn import strides_of
from cfinet_jax.ops import centre_matching, matching, ranking
from cfinet_jax.ops.matching import Assignment
from cfinet_jax.structures import GroundTruth


def similarity_of(table: Mapping[str, Mapping[str, float]], name: str, scale: Array | float) -> Pairwise:
    """A row of the config's table `similarities`, whose constants are in stored pixels, for boxes of the network."""
    return partial(SIMILARITIES[name], **in_pixels(table[name], scale))


def match_anchors(network: Any, anchors: Array, truth: GroundTruth, similarity: Pairwise) -> Assignment:
    """Max-IoU assignment by the thresholds of `network`; `similarity` takes the place of the IoU."""
    return matching.match_max_iou(
        anchors,
        truth,
        positive=network.positive_overlap,
        negative=network.negative_overlap,
        min_positive=network.min_positive_overlap,
        ignore_overlap=network.ignore_overlap,
        similarity=similarity,
    )


def match_middles(
    network: Any, grids: tuple[Array, ...], truth: GroundTruth
) -> tuple[centre_matching.CentreMatch, Bool[Array, " anchors"]]:
    """Which anchors of one image, `grids` per level, lie in the middle of an object, and which a region silences.

    How much of an object its middle is, `network` says by `centre_ratio`, and by `ignore_ratio` what is around it.
    """
    match = centre_matching.match_centres(
        grids,
        truth,
        strides=strides_of(len(grids)),
        anchor_scale=network.anchor_scale,
        centre_ratio=network.centre_ratio,
        ignore_ratio=network.ignore_ratio,
    )
    return match, matching.inside_region(jnp.concatenate(grids), truth, network.ignore_overlap)


def by_threshold(
    network: Any, anchors: Array, levels: Array, truth: GroundTruth, scale: Array, *, similarity: str
) -> Assignment:
    """Max-IoU assignment with the network's thresholds, by any similarity."""
    return match_anchors(network, anchors, truth, similarity_of(network.similarities, similarity, scale))


def by_ranking(
    network: Any, anchors: Array, levels: Array, truth: GroundTruth, scale: Array, *, similarity: str, **constants: Any
) -> Assignment:
    """NWD's ranking-based assignment."""
    measure = similarity_of(network.similarities, similarity, scale)
    return ranking.match_ranking(anchors, truth, measure, ignore_overlap=network.ignore_overlap, **constants)


def by_receptive_field(
    network: Any,
    anchors: Array,
    levels: Array,
    truth: GroundTruth,
    scale: Array,
    *,
    similarity: str,
    receptive_fields: tuple[float, ...],
    effective: float,
    **constants: Any,
) -> Assignment:
    """RFLA; `receptive_fields` of P2, P3, ... are in network pixels, of which features see a share of `effective`."""
    return ranking.match_receptive_field(
        anchors,
        effective * jnp.asarray(receptive_fields, jnp.float32)[levels],
        truth,
        similarity_of(network.similarities, similarity, scale),
        ignore_overlap=network.ignore_overlap,
        **constants,
    )


RULES = {"threshold": by_threshold, "ranking": by_ranking, "receptive_field": by_receptive_field}


def assign(
    network: Any,
    anchors: Float[Array, "anchors 4"],
    levels: Int[Array, " anchors"],
    truth: GroundTruth,
    scale: Float[Array, ""],
) -> Assignment:
    """What the anchors of one image are to learn, by the row of `network.assigners` that `network.assigner` names."""
    constants = dict(network.assigners[network.assigner])
    return RULES[constants.pop("rule")](network, anchors, levels, truth, scale, **constants)
