"""Export a model: inference as StableHLO, parameters as safetensors, and a card that says how to use them."""

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
from cfinet_jax.detection import detection
from cfinet_jax.input.pictures import check_range
from cfinet_jax.input.sizes import scales_of
from cfinet_jax.restore import Trained, open_trained
from cfinet_jax.runtime.files import reading, replace_text, replacing
from cfinet_jax.runtime.markdown import escape
from cfinet_jax.structures import BOX_NUMBERS, without_truth

PLATFORMS = ("cpu", "cuda", "tpu")
DESCRIBED = {
    "horizontal": "x1 y1 x2 y2 in pixels of the picture",
    "oriented": "`cx cy w h angle` in pixels of the picture and radians, clockwise on the screen from x to w",
}
GREYS = """Scale pictures with more than 8 bits per value linearly, {:g} to 0 and {:g} to 255, and clip: the detector
  was trained on pictures scaled so."""
EIGHT_BITS_ONLY = "The detector was trained on pictures with 8 bits per value."
CARD = """# {name}

A detector of small objects, exported by cfinet_jax.

| file | content |
|---|---|
| `detector.stablehlo` | inference for {platforms}: pictures in, detections out |
| `weights.safetensors` | {numbers:,} numbers, including batch-norm statistics: the first argument of the first file |

It runs without cfinet_jax, after `pip install "jax>={jax}" flatbuffers safetensors`. Later versions of jax can read it
for at least six months:

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

- Put a picture smaller than {height} x {width} at the upper left, and fill the rest by repeating its last row and
  column. The model scales and normalises pictures itself.
- {greys}
- `found["boxes"]` [{batch}, n, {columns}] are {boxes}, float32; `found["scores"]` [{batch}, n],
  best first; `found["labels"]` [{batch}, n] are indices into the classes below, from 0; `found["valid"]` marks the rows
  that are detections, the others are padding.
- Classes, in order, with their ids in the annotations: {classes}.

## Data and metrics

{origin}; measured on the split {eval_split} of {data}: {metrics}

## Licence

The code that made this is under Apache-2.0. The parameters are subject to the licences of their training data and of
the weights that training started from.

## Configuration

```json
{config}
```
"""


def export(config: ConfigDict, workdir: epath.Path) -> None:
    """Write `detector.stablehlo`, `weights.safetensors` and the model card to `export/` in the workdir."""
    trained, config = open_trained(workdir, config)
    folder = workdir / "export"
    folder.mkdir(parents=True, exist_ok=True)  # fails before the work if the workdir is not writable
    weights = {name: np.asarray(leaf) for name, leaf in pretrained.named(trained.variables).items()}
    settings = config.dataset
    images = jax.ShapeDtypeStruct((settings.eval_batch_size, *settings.stored_size, 3), jnp.uint8)
    sizes = jax.ShapeDtypeStruct((settings.eval_batch_size, 2), jnp.float32)
    print(f"Exporting for {', '.join(PLATFORMS)}: batches of {images.shape}.", flush=True)
    artefact = stablehlo.export(jax.jit(inference(trained, config)), platforms=PLATFORMS)(weights, images, sizes)
    with replacing(folder / "detector.stablehlo") as partial:
        partial.write_bytes(artefact.serialize())
    facts = {
        "stride_style": config.detector.backbone.stride_style,
        "classes": trained.classes,
        "category_ids": trained.category_ids,
        "mean": settings.mean,
        "std": settings.std,
        "config": config.to_json(),
    }
    pretrained.save(folder / "weights.safetensors", trained.variables, facts)
    replace_text(folder / "README.md", card(config, trained, workdir))
    print(f"Written: {folder}")


def inference(trained: Trained, config: ConfigDict) -> Callable[..., dict[str, Any]]:
    """Return the function (weights by name, uint8 images, sizes) -> boxes in picture pixels, scores, labels, valid."""
    detect = detection(trained.detector, config)

    def infer(weights: dict[str, Any], images: Any, sizes: Any) -> dict[str, Any]:
        variables = pretrained.replaced(trained.variables, weights)
        found, _ = detect(variables, without_truth(images, sizes, jnp.asarray(scales_of(sizes, config.dataset))))
        return {"boxes": found.boxes, "scores": found.scores, "labels": found.labels, "valid": found.valid}

    return infer


def card(config: ConfigDict, trained: Trained, workdir: epath.Path) -> str:
    """Write the model card in Markdown."""
    height, width = config.dataset.stored_size
    origin = f"Trained on the data set {escape(config.dataset.name)} (split {escape(config.dataset.train_split)})"
    if not (workdir / "checkpoints").exists():
        origin = f"Not trained here, but loaded from {escape(epath.Path(config.training.pretrained).name)}"
    path = workdir / "metrics.json"
    measured = ""
    if path.exists():
        with reading(path, "run --mode=evaluate to write it again."):
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
        metrics=f"{measured}." if measured else "not measured yet (run `--mode=evaluate`).",
        config=config.to_json(indent=1),
    )
