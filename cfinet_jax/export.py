"""Hand a model on: inference as StableHLO, parameters as safetensors, and a card that says how to use them."""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import export as stablehlo
from ml_collections import ConfigDict

from cfinet_jax import pretrained
from cfinet_jax.input.pictures import check_range
from cfinet_jax.input.sizes import scales_of
from cfinet_jax.restore import Trained, detection, open_trained
from cfinet_jax.runtime.files import reading, replace_text, replacing
from cfinet_jax.runtime.markdown import escape
from cfinet_jax.structures import BOX_NUMBERS, without_truth

PLATFORMS = ("cpu", "cuda", "tpu")
DESCRIBED = {
    "horizontal": "x1 y1 x2 y2 in pixels of the picture",
    "oriented": "`cx cy w h angle` in pixels of the picture and radians, clockwise on the screen from x to w",
}
GREYS = """Of pictures with more than 8 bits a value, {:g} becomes 0 and {:g} becomes 255, linearly and cut beyond: the
  detector has learnt from pictures scaled so."""
EIGHT_BITS_ONLY = "The detector has learnt from pictures of 8 bits a value."
CARD = """# {name}

A detector of small objects, as cfinet_jax hands it on.

| file | what it holds |
|---|---|
| `detector.stablehlo` | inference for {platforms}: pictures in, detections out |
| `weights.safetensors` | {numbers:,} numbers, statistics of batch norm included: the first argument of the first file |

It runs without cfinet_jax, after `pip install "jax>={jax}" flatbuffers safetensors`; later versions of jax read it for
six months at least:

```python
from pathlib import Path

import numpy as np
import safetensors.numpy
from jax import export

detector = export.deserialize(bytearray(Path("detector.stablehlo").read_bytes()))
weights = safetensors.numpy.load_file("weights.safetensors")
images = np.zeros(({batch}, {height}, {width}, 3), np.uint8)  # R G B
sizes = np.full(({batch}, 2), ({height}, {width}), np.float32)  # height, width of each picture
found = detector.call(weights, images, sizes)
```

## Conventions

- A picture smaller than {height} x {width} lies at the upper left; repeat its last row and column to fill up. The model
  scales and normalises by itself.
- {greys}
- `found["boxes"]` [{batch}, n, {columns}] are {boxes}, float32; `found["scores"]` [{batch}, n],
  best first; `found["labels"]` [{batch}, n] count the classes below from 0; `found["valid"]` says which rows are real.
- Classes, in order, with their ids in the annotations: {classes}.

## Data and metrics

{origin}; measured on the split {eval_split} of {data}: {metrics}

## Licence

The code that made this is Apache-2.0. To the parameters the licences of the data they were learnt from and of the
weights they started from apply.

## Configuration

```json
{config}
```
"""


def export(config: ConfigDict, workdir: epath.Path) -> None:
    """Writes `export/` into the workdir: `detector.stablehlo`, `weights.safetensors` and the model card."""
    trained, config = open_trained(workdir, config)
    folder = workdir / "export"
    folder.mkdir(parents=True, exist_ok=True)  # fails before the work where the workdir is not writable
    weights = {name: np.asarray(leaf) for name, leaf in pretrained.named(trained.variables).items()}
    inputs = batch_shapes(config.dataset)
    print(f"Exporting for {', '.join(PLATFORMS)}: batches of {inputs[0].shape}.", flush=True)
    artefact = stablehlo.export(jax.jit(inference(trained, config.dataset)), platforms=PLATFORMS)(weights, *inputs)
    with replacing(folder / "detector.stablehlo") as partial:
        partial.write_bytes(artefact.serialize())
    pretrained.save(folder / "weights.safetensors", trained.variables, facts(config, trained))
    replace_text(folder / "README.md", card(config, trained, workdir))
    print(f"Written: {folder}")


def batch_shapes(settings: ConfigDict) -> tuple[Any, Any]:
    """Images and sizes of a batch, as the exported function takes them."""
    count = settings.eval_batch_size
    images = jax.ShapeDtypeStruct((count, *settings.stored_size, 3), jnp.uint8)
    return images, jax.ShapeDtypeStruct((count, 2), jnp.float32)


def inference(trained: Trained, settings: ConfigDict) -> Callable[..., dict[str, Any]]:
    """The function (weights by name, uint8 images, sizes) -> boxes, scores, labels, valid in pixels of the pictures."""
    detect = detection(trained.detector, settings)

    def infer(weights: dict[str, Any], images: Any, sizes: Any) -> dict[str, Any]:
        variables = jax.tree_util.tree_map_with_path(
            lambda path, _: weights[pretrained.path_name(path)], trained.variables
        )
        found, _ = detect(variables, without_truth(images, sizes, jnp.asarray(scales_of(sizes, settings))))
        return {"boxes": found.boxes, "scores": found.scores, "labels": found.labels, "valid": found.valid}

    return infer


def facts(config: ConfigDict, trained: Trained) -> dict[str, Any]:
    """What the weights say of themselves."""
    return {
        "stride_style": config.detector.backbone.stride_style,
        "classes": trained.classes,
        "category_ids": trained.category_ids,
        "mean": config.dataset.mean,
        "std": config.dataset.std,
        "config": config.to_json(),
    }


def card(config: ConfigDict, trained: Trained, workdir: epath.Path) -> str:
    """The model card."""
    height, width = config.dataset.stored_size
    origin = f"Trained on the data set {escape(config.dataset.name)} (split {escape(config.dataset.train_split)})"
    if not (workdir / "checkpoints").exists():
        origin = f"Not trained here but read from {escape(epath.Path(config.training.pretrained).name)}"
    path = workdir / "metrics.json"
    measured = ""
    if path.exists():
        with reading(path, "write it again with --mode=evaluate."):
            metrics = {key: value for key, value in json.loads(path.read_text()).items() if key.startswith("AP")}
            measured = ", ".join(f"{escape(key)} {value:.3f}" for key, value in metrics.items() if value is not None)
    return CARD.format(
        name=escape(f"{config.dataset.name}: {config.detector.proposal_network.name}"),
        platforms=", ".join(PLATFORMS),
        numbers=sum(leaf.size for leaf in jax.tree.leaves(trained.variables)),
        jax=jax.__version__,
        batch=config.dataset.eval_batch_size,
        columns=BOX_NUMBERS[config.dataset.boxes],
        boxes=DESCRIBED[config.dataset.boxes],
        height=height,
        width=width,
        greys=GREYS.format(*greys) if (greys := check_range(config.dataset.get("grey_range"))) else EIGHT_BITS_ONLY,
        classes=", ".join(
            f"{escape(name)} ({index})" for name, index in zip(trained.classes, trained.category_ids, strict=True)
        ),
        data=escape(config.dataset.name),
        origin=origin,
        eval_split=escape(config.dataset.eval_split),
        metrics=f"{measured}." if measured else "not yet (`--mode=evaluate` does it).",
        config=config.to_json(indent=1),
    )
