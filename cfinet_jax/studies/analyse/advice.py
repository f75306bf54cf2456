"""Advice: flags that suit the data."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from cfinet_jax.input.sizes import room_for
from cfinet_jax.metrics.score_table import MIN_BOXES
from cfinet_jax.studies.analyse.contents import Contents

THIN, MANY = 2.0, 0.02  # advise if so large a share of the objects is thinner than so many network pixels
BETTER = 0.02  # least lead of another scale, in mean IoU, or of another rule, in the share of objects
EPOCHS, DECAYS = 12, (8, 11)  # the paper's schedule
WINDOW, SHARED = (800, 800), 150  # size and overlap of SODA-D's windows
LARGE = 2  # windows; pictures larger than that should be cut


def advise(
    config: ConfigDict,
    training: Contents,
    splits: Iterable[Contents],
    classes: Sequence[str],
    overlaps: Mapping[float, float],
    without_anchor: Mapping[str, float],
    needed: int,
    available: int,
) -> list[str]:
    """Return lines of advice.

    Args:
      config: the experiment.
      training: contents of the training split.
      splits: contents of all splits.
      classes: names of the classes.
      overlaps: mean IoU of the training objects with their best anchor, by anchor scale.
      without_anchor: share of the training objects that the coarse stage gives no anchor, by rule.
      needed: bytes of one device that training needs.
      available: bytes that one device has.
    """
    lines = [*sizes(config.dataset, splits), *anchors(config, overlaps, without_anchor)]
    lines += objects(config, training, classes)
    lines += [*schedule(config, len(training.pictures)), *memory(config, needed, available)]
    return lines or ["Nothing to change: train."]


def sizes(settings: ConfigDict, splits: Iterable[Contents]) -> Iterator[str]:
    """Advise on `dataset.max_objects` and `dataset.stored_size`."""
    counts = [(split.pictures, split.objects + split.regions) for split in splits]
    pictures, entries = (np.concatenate(each) for each in zip(*counts, strict=True))
    room = room_for(tuple(pictures.max(0).tolist()), int(entries.max()))
    full = int(np.sum(entries > settings.max_objects))
    if full:
        most = room["max_objects"]
        yield f"{full} images hold more objects than dataset.max_objects: --config.dataset.max_objects={most}"
    stored, wanted = np.array(settings.stored_size), np.array(room["stored_size"])
    if settings.window_overlap is None and np.prod(wanted) > LARGE * np.prod(WINDOW):
        yield (
            f"Images of up to {wanted[0]} x {wanted[1]} are large; cut into windows they need less memory, and objects "
            f"keep their size: {flag('stored_size', WINDOW)} --config.dataset.window_overlap={SHARED}"
        )
    median = np.median(pictures, axis=0)
    large = int(np.sum(np.any(pictures > stored, axis=1)))
    if large:
        yield f"{large} images are larger than dataset.stored_size: {flag('stored_size', wanted)}"
    elif np.any(stored > wanted):
        yield f"No image needs all of dataset.stored_size; a smaller one is faster: {flag('stored_size', wanted)}"
    elif settings.image_size is None and np.prod(stored) > 2 * np.prod(median):
        yield (
            "More than half of a batch is padding. Scaling to the median image is faster, but objects in large images "
            f"shrink: {flag('image_size', room_for(tuple(median.tolist()), 0)['stored_size'])}"
        )


def anchors(config: ConfigDict, overlaps: Mapping[float, float], without_anchor: Mapping[str, float]) -> Iterator[str]:
    """Advise on anchors that fit the objects badly, and on rules that leave objects without an anchor."""
    name = config.detector.proposal_network.name
    scale, best = config.detector.proposal_network[name].anchor_scale, max(overlaps, key=lambda each: overlaps[each])
    if overlaps[best] > overlaps[scale] + BETTER:
        key = f"detector.proposal_network.{name}.anchor_scale"
        yield (
            f"Anchors of scale {best:g} overlap the objects better than those of {scale:g} "
            f"(mean best IoU {overlaps[best]:.2f}, {overlaps[scale]:.2f}): --config.{key}={best}"
        )
    if without_anchor:
        rule = config.detector.proposal_network[name].coarse_threshold
        better = "released"  # the rule of the published code
        if without_anchor.get(better, 1.0) < without_anchor[rule] - BETTER:
            key = f"detector.proposal_network.{name}.coarse_threshold"
            yield (
                f"The coarse stage has no anchor for {without_anchor[rule]:.0%} of the objects under {rule!r}, "
                f"for {without_anchor[better]:.0%} under {better!r}: --config.{key}={better}"
            )


def objects(config: ConfigDict, training: Contents, classes: Sequence[str]) -> Iterator[str]:
    """Advise on rare classes and on objects too small to detect."""
    counts = np.bincount(training.labels, minlength=len(classes))
    rare = [f"{each} ({count})" for each, count in zip(classes, counts, strict=True) if count < MIN_BOXES]
    if rare:
        yield f"Classes with fewer than {MIN_BOXES} objects will hardly be learnt: annotate more of {', '.join(rare)}"
    boxes = training.network_boxes
    thin = np.mean(np.min(boxes[:, 2:] - boxes[:, :2], axis=1) < THIN)
    if thin > MANY:
        larger = 2 * np.array(config.dataset.image_size or config.dataset.stored_size)
        yield f"{thin:.0%} of the objects are thinner than {THIN:g} network pixels: {flag('image_size', larger)}"


def schedule(config: ConfigDict, pictures: int) -> Iterator[str]:
    """Advise on the length of training."""
    wanted = EPOCHS * pictures
    if config.training.images < wanted / 2:  # a small data set may well need more passes
        decays = tuple(epoch * pictures for epoch in DECAYS)
        yield (
            f"training.images is {config.training.images / pictures:.1f} passes over {pictures} images; the paper uses "
            f'{EPOCHS}: --config.training.images={wanted} --config.optimizer.decay_images="{decays}"'
        )


def memory(config: ConfigDict, needed: int, available: int) -> Iterator[str]:
    """Advise on the memory of a step."""
    if needed <= available:
        return
    size, devices = config.dataset.batch_size, jax.device_count()
    parts = [n for n in range(config.training.micro_batches + 1, size // devices + 1) if size % (n * devices) == 0]
    half = np.array(config.dataset.image_size or config.dataset.stored_size) // 2
    flags = f"--config.training.micro_batches={parts[0]}" if parts else flag("image_size", half)
    yield f"A step needs {needed / 2**30:.1f} GiB, and a device has {available / 2**30:.1f}: {flags}"


def flag(key: str, size: Iterable[float]) -> str:
    """Return the flag that sets a size of the section `dataset`."""
    height, width = (int(side) for side in size)
    return f'--config.dataset.{key}="({height}, {width})"'
