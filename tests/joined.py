"""Run as one of two processes of a run: `python -m tests.joined ADDRESS INDEX DATA_DIR FOLDER`."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cfinet_jax.errors import exit_status
from cfinet_jax.evaluate import detect_split
from cfinet_jax.input.dataset import open_dataset
from cfinet_jax.metrics.results import Columns
from cfinet_jax.runtime import mesh, processes
from cfinet_jax.structures import Batch, Detections, Proposals
from cfinet_jax.training import train
from tests import tiny

PROCESSES = 2


def experiment(data_dir: Any, images: int) -> ConfigDict:
    """Return the tiny config for a number of images, without checkpoints and evaluations before the end."""
    config = tiny.tiny_config()
    config.dataset.data_dir = str(data_dir)
    config.training.update(images=images, checkpoint_every_images=10**6)
    config.evaluation.every_images = 10**6
    return config


def detect_truth(_: Any, batch: Batch) -> tuple[Detections, Proposals]:
    """Stand in for a detector: return the ground truth."""
    truth = batch.ground_truth
    scores = jnp.prod(truth.boxes[..., 2:] - truth.boxes[..., :2], axis=-1) / 1e6
    return (
        Detections(truth.boxes, scores, truth.labels, truth.is_object),
        Proposals(truth.boxes, scores, truth.is_object),
    )


def evaluate_windows(data_dir: Any) -> Columns:
    """Detect in a split cut into windows whose number is not a multiple of the batch."""
    config = experiment(data_dir, 0)
    config.dataset.update(stored_size=(200, 200), window_overlap=40, max_objects=100)
    config.evaluation.proposals = False
    over = mesh.make_mesh()
    detect = mesh.parallel(detect_truth, over, (mesh.EVERYWHERE, mesh.BY_IMAGE), mesh.BY_IMAGE)
    return detect_split(detect, jnp.zeros(0), open_dataset(config.dataset, "test"), config, over)[0]


def main() -> None:
    """Detect, write the detections, then train until stopped."""
    address, index, data_dir, folder = sys.argv[1:]
    processes.start(address, PROCESSES, int(index))
    assert (jax.process_count(), len(jax.local_devices()), len(jax.devices())) == (PROCESSES, 4, 8)
    np.savez(Path(folder, f"{index}.npz"), **evaluate_windows(data_dir)._asdict())
    train(experiment(data_dir, 10**6), Path(folder, "run"))


if __name__ == "__main__":
    sys.exit(exit_status(main))
