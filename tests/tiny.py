"""A detector small enough for tests, batches for it, and a whole experiment: `--config=tests/tiny.py`."""

import contextlib
import dataclasses
import functools
import io
import operator
import sys
import warnings
from collections.abc import Iterable
from typing import Any
from unittest import mock

import grain  # noqa: F401 - it defines flags, which `flagsaver` would forget were it first imported by a mode
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from absl import flags
from absl.testing import flagsaver
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax import main
from cfinet_jax.boxes import oriented
from cfinet_jax.models.detector import build_proposal_network
from cfinet_jax.models.proposals.base import ProposalNetwork
from cfinet_jax.preparation.scenes.scenes_builder import Builder
from cfinet_jax.structures import Batch, ExemplarMemory
from configs import scenes, sodad
from tests import plain

SHAPE, OBJECTS = (64, 64), 6
SCENES = {"train": 16, "val": 2, "test": 8}  # images of each split


def settings(variant: str = "", experiment: Any = sodad) -> Any:
    """Return the section `detector` of the paper's configuration, or of another one, with every width reduced."""
    detector = experiment.get_config(variant).detector
    shrink(detector)
    return detector


def network(name: str, variant: str = "", experiment: Any = sodad, **changed: Any) -> ProposalNetwork:
    """Return a proposal network of the tiny detector, with keys of its section changed."""
    detector = settings(variant, experiment)
    detector.proposal_network.name = name
    detector.proposal_network[name].update(changed)
    return build_proposal_network(detector.to_dict())


def shrink(detector: Any) -> None:
    """Reduce every width of a section `detector`."""
    detector.precision = "float32"
    detector.backbone.update(depth=18, width=8)
    detector.neck.channels = 16
    for name in set(detector.proposal_network) - {"name"}:
        network = detector.proposal_network[name]
        network.update(channels=16, samples=32)
        network.proposals.max_proposals = 40
        for phase in ("train", "test"):
            network.proposals[phase].candidates = 50
    detector.roi_head.update(hidden=32, samples=24, max_grid=2, max_detections=20)
    detector.imitation.update(groups=4, encoder=16, embedding=8, slots=4, max_exemplars=2, samples=16)


def tiny_config(variant: str = "") -> ConfigDict:
    """Return the experiment of `configs/scenes.py` on tiny scenes: two steps of eight images, then an evaluation."""
    config = scenes.get_config(variant)
    shrink(config.detector)
    config.dataset.update(image_size=SHAPE, max_objects=OBJECTS, batch_size=8, eval_batch_size=8, read_threads=1)
    config.training.update(images=16, log_every_images=8, checkpoint_every_images=8)
    config.evaluation.update(every_images=16, overlays=1)
    return config.lock()


AUGMENTED = {
    "dataset.vertical_flip": 0.5,
    "dataset.quarter_turns": 0.75,
    "dataset.train_size": SHAPE,
    "dataset.scale_jitter": (0.8, 1.5),
    "dataset.colour_jitter": 0.3,
    "dataset.invert": 0.5,
}


def augmented() -> ConfigDict:
    """Return the section `dataset` for pictures of `SHAPE` of which training sees views drawn in every way."""
    config = tiny_config()
    config.dataset.update(image_size=None, stored_size=SHAPE)
    config.update_from_flattened_dict(AUGMENTED)
    return config.dataset


get_config = tiny_config  # as `cfinet_jax.main` asks for it


def call_main(*arguments: str) -> tuple[int, str, str]:
    """Return status, output and errors of `cfinet_jax.main`, in this process: starting another takes 4 s."""
    command = ["main", *arguments]
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(flagsaver.flagsaver())  # forgets the flags that --config.key=value defines
        stack.enter_context(mock.patch.object(sys, "argv", command))  # where ml_collections looks for them
        stack.enter_context(contextlib.redirect_stdout(output))
        stack.enter_context(contextlib.redirect_stderr(errors))
        stack.enter_context(warnings.catch_warnings())
        # This process has used JAX already, and is of no cluster.
        alone = mock.patch.object(jax.distributed, "initialize", side_effect=ValueError("no cluster"))
        stack.enter_context(alone)
        warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)  # so ml_collections reads the file
        flags.FLAGS.unparse_flags()
        status = main.guarded(command)
    return status, output.getvalue(), errors.getvalue()


def arguments(data_dir: epath.PathLike, workdir: epath.PathLike) -> tuple[str, ...]:
    """Return the command line of a run of `tiny_config`."""
    return f"--config={__file__}", f"--config.dataset.data_dir={data_dir}", f"--workdir={workdir}"


def prepare_scenes(folder: epath.PathLike) -> epath.Path:
    """Prepare `SCENES` in a folder and return it, for `dataset.data_dir`."""
    Builder(counts=SCENES, data_dir=folder).download_and_prepare(file_format=tfds.core.FileFormat.ARRAY_RECORD)
    return epath.Path(folder)


def batch(objects: int = OBJECTS, regions: list | None = None, images: int = 2, seed: int = 0) -> Batch:
    """Return prepared random images, each with `objects` objects and these ignore `regions`."""
    rng = np.random.default_rng(seed)
    truths = []
    for _ in range(images):
        corner, size = rng.uniform(2, 40, (objects, 2)), rng.uniform(6, 20, (objects, 2))
        boxes = np.concatenate([corner, corner + size], 1)
        labels = rng.integers(0, 9, objects)
        truths.append(plain.ground_truth(boxes, labels, OBJECTS, [] if regions is None else regions))
    numbers = jnp.arange(images, dtype=jnp.int32)
    return Batch(
        images=jnp.asarray(rng.normal(size=(images, *SHAPE, 3)), jnp.float32),
        sizes=jnp.full((images, 2), 64.0),
        scales=jnp.ones(images),
        ground_truth=jax.tree.map(lambda *x: jnp.stack(x), *truths),
        image_ids=numbers,
        index=numbers,
        dropped=0 * numbers,
        valid=numbers >= 0,
    )


def turned(batch: Batch, seed: int = 0) -> Batch:
    """Return the batch with oriented boxes: its own, turned about their centres."""
    truth = batch.ground_truth
    angles = np.random.default_rng(seed).uniform(-1.5, 1.5, truth.labels.shape)
    boxes = oriented.from_horizontal(truth.boxes) + jnp.asarray(angles[..., None] * (0, 0, 0, 0, 1), jnp.float32)
    return with_oriented(batch, oriented.normalise(boxes))


def with_oriented(batch: Batch, boxes: jax.Array) -> Batch:
    """Return the batch with these oriented boxes and their upright hulls."""
    truth = dataclasses.replace(batch.ground_truth, boxes=oriented.enclose(boxes), oriented=boxes)
    return dataclasses.replace(batch, ground_truth=truth)


def full_memory(memory: ExemplarMemory, seed: int = 0) -> ExemplarMemory:
    """Return the memory with random exemplars in every slot."""
    features = jax.random.normal(jax.random.key(seed), memory.features.shape)
    return ExemplarMemory(features, memory.cursor, jnp.full_like(memory.size, memory.features.shape[1]))


def forget(settings: Any, keys: Iterable[str]) -> None:
    """Delete dotted keys from nested settings, in place."""
    for key in keys:
        *sections, name = key.split(".")
        del functools.reduce(operator.getitem, sections, settings)[name]
