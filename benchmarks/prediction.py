"""Windows per second of `--mode=predict`, decoding and writing included, beside the bare detection of the same windows.

    python -m benchmarks.prediction [--config=FILE[:VARIANT]] [--pictures=N] [--repeats=N] [--output=JSON]

Drawn pictures of 4000 x 3000 pixels; the detector's weights are random, so that every window is full of detections to
merge and to write. Both sides run the same compiled program, which is compiled before.
"""

import argparse
import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from etils import epath

from benchmarks import drawn, experiments, preparation, tables, timing
from cfinet_jax import predict
from cfinet_jax.build import build
from cfinet_jax.input.sizes import input_shape, scales_of
from cfinet_jax.restore import Trained
from cfinet_jax.structures import without_truth
from cfinet_jax.train_step import create_state


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.prediction", description=__doc__.partition("\n")[0])
    result.add_argument("--config", default="configs/scenes.py", help="the experiment: FILE or FILE:VARIANT")
    result.add_argument("--pictures", type=int, default=1, help="of 12 megapixels")
    result.add_argument("--repeats", type=int, default=3, help="timed runs of each side; the median counts")
    result.add_argument("--output", help="JSON file for the result")
    return result


def untrained(config: Any) -> predict.Model:
    """A detector with random weights, ready to predict."""
    detector, sgd = build(config, drawn.CLASSES)
    state = create_state(jax.random.key(0), detector, sgd, input_shape(config.dataset), config.dataset.max_objects)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    names = tuple(f"class {number}" for number in range(drawn.CLASSES))
    return predict.Model(Trained(detector, variables, names, tuple(range(drawn.CLASSES))), config)


def whole(model: predict.Model, images: Path, output: Path) -> None:
    """The mode, with a model that is open and compiled."""
    opened = mock.patch.object(predict, "open_trained", lambda *_: (model.trained, model.config))
    same = mock.patch.object(predict, "Model", lambda *_: model)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), opened, same:
        predict.predict(model.config, epath.Path(output), epath.Path(images), epath.Path(output))


def shipped(model: predict.Model, images: Path) -> tuple[int, list[Any]]:
    """How many windows there are, and all of them in batches on the device."""
    pictures = [(path, model.read(path)) for path in sorted(images.iterdir())]
    batches, count = [], 0
    for batch in model.batches(pictures, []):
        _, windows, sizes = zip(*batch, strict=True)
        count += len(windows)
        empty = model.batch_size - len(windows)
        pixels = np.pad(np.stack(windows), ((0, empty), (0, 0), (0, 0), (0, 0)))
        extents = np.pad(np.asarray(sizes, np.float32), ((0, empty), (0, 0)), constant_values=1)
        batches.append(jax.device_put(without_truth(pixels, extents, scales_of(extents, model.config.dataset))))
    return count, batches


def main() -> None:
    """Draws, measures and reports."""
    options = parser().parse_args()
    model = untrained(experiments.load(options.config))
    with tempfile.TemporaryDirectory() as name:
        images = Path(name, "Images")
        preparation.draw(Path(name), options.pictures)
        windows, batches = shipped(model, images)

        def bare() -> None:
            for batch in batches:
                jax.block_until_ready(model.detect(model.trained.variables, batch))

        sides = {"bare": bare, "predict": lambda: whole(model, images, Path(name, "found"))}
        seconds = timing.medians(sides, options.repeats)
        found = len(json.loads(Path(name, "found", "detections.json").read_text()))
    row = {
        "computation": f"{options.pictures} pictures, {windows} windows of {' x '.join(map(str, model.window))}",
        "detections": found,
        "windows/s predict": windows / seconds["predict"],
        "windows/s bare": windows / seconds["bare"],
        "speed, predict / bare": seconds["bare"] / seconds["predict"],
    }
    tables.report([row], options.output)


if __name__ == "__main__":
    main()
