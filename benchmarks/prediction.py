"""Windows per second of prediction, decoding and writing included, compared with detection in as many windows alone.

    python -m benchmarks.prediction [--config=FILE[:VARIANT]] [--pictures=N] [--repeats=N] [--output=JSON]

The pictures are drawn, 4000 x 3000 pixels large; the detector's weights are random, so that every window is full of
detections to merge and to write. Both sides run the same program, which is compiled before.
"""

import contextlib
import json
import os
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from etils import epath

from benchmarks import common, drawn
from cfinet_jax import predict
from cfinet_jax.build import build
from cfinet_jax.input.sizes import input_shape, scales_of
from cfinet_jax.restore import Trained
from cfinet_jax.structures import without_truth
from cfinet_jax.train_step import create_state


def untrained(config: Any) -> predict.Model:
    """Return a detector with random weights, ready to predict."""
    detector, sgd = build(config, drawn.CLASSES)
    state = create_state(jax.random.key(0), detector, sgd, input_shape(config.dataset), config.dataset.max_objects)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    names = tuple(f"class {number}" for number in range(drawn.CLASSES))
    return predict.Model(Trained(detector, variables, names, tuple(range(drawn.CLASSES))), config)


def whole(model: predict.Model, images: Path, output: Path) -> None:
    """Run `--mode=predict` with a model that is open and compiled."""
    opened = mock.patch.object(predict, "open_trained", lambda *_: (model.trained, model.config))
    same = mock.patch.object(predict, "Model", lambda *_: model)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), opened, same:
        predict.predict(model.config, epath.Path(output), epath.Path(images), epath.Path(output))


def parser() -> ArgumentParser:
    """Return the parser of the command line."""
    result = common.parser("prediction", __doc__, repeats=3)
    result.add_argument("--config", default="configs/scenes.py", help="FILE or FILE:VARIANT")
    result.add_argument("--pictures", type=int, default=1, help="of 12 megapixels")
    return result


def main() -> None:
    """Draw, measure and report."""
    options = parser().parse_args()
    model = untrained(common.load_config(options.config))
    windows = options.pictures * len(model.windows_in((drawn.HEIGHT, drawn.WIDTH)))
    noise = np.random.default_rng(0).integers(0, 256, (model.batch_size, *model.window, 3), dtype=np.uint8)
    extents = np.tile(np.asarray(model.window, np.float32), (model.batch_size, 1))
    batch = jax.device_put(without_truth(noise, extents, scales_of(extents, model.config.dataset)))

    def bare() -> None:
        for _ in range(-(-windows // model.batch_size)):
            jax.block_until_ready(model.detect(model.trained.variables, batch))

    with tempfile.TemporaryDirectory() as name:
        drawn.soda_d(Path(name), options.pictures)
        sides = {"bare": bare, "predict": lambda: whole(model, Path(name, "Images"), Path(name, "found"))}
        seconds = common.medians(sides, options.repeats)
        found = len(json.loads(Path(name, "found", "detections.json").read_text()))
    row: common.Row = {
        "computation": f"{options.pictures} pictures, {windows} windows of {' x '.join(map(str, model.window))}",
        "detections": found,
        "windows/s predict": windows / seconds["predict"],
        "windows/s bare": windows / seconds["bare"],
        "speed, predict / bare": seconds["bare"] / seconds["predict"],
    }
    common.report([row], options.output)


if __name__ == "__main__":
    main()
