"""Published backbone weights as the start of training."""

import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cfinet_jax.errors import UserError


def load_backbone(source: str, variables: Mapping[str, Any], stride_style: str, std: tuple[float, ...]) -> Any:
    """The variables of a detector with the backbone of an `.npz` of Keras' ResNet in their place.

    The file holds `layer1.0/conv1/kernel` (HWIO) and `layer1.0/bn1/{scale,bias,mean,var}`, caffe style, for BGR
    input of unit scale; the first kernel is turned to RGB input divided by `std`. Raises `UserError` for a model
    of the other stride style and for anything missing, left over or of another shape.
    """
    if stride_style != "caffe":
        raise UserError(
            f"{source} holds caffe-style weights (stride in the first 1x1 convolution) and the model is "
            f"{stride_style}-style: set --config.detector.backbone.stride_style=caffe."
        )
    path = epath.Path(source)
    if not path.exists():
        raise UserError(f"No pretrained weights at {source}: set training.pretrained to an existing file or to None.")
    try:
        with path.open("rb") as file:
            published = {name: np.asarray(array, np.float32) for name, array in np.load(file).items()}
    except (ValueError, AttributeError, EOFError, zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{source} is not an .npz of arrays: set training.pretrained to another file.") from error

    backbone = {kind: variables[kind]["backbone"] for kind in ("params", "batch_stats")}
    expected = {
        published_name(path): leaf.shape
        for tree in backbone.values()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    shapes = {name: array.shape for name, array in published.items()}
    problems = [f"missing {name}" for name in sorted(expected.keys() - shapes.keys())]
    problems += [f"unexpected {name}" for name in sorted(shapes.keys() - expected.keys())]
    common = sorted(expected.keys() & shapes.keys())
    problems += [f"{name} is {shapes[name]}, not {expected[name]}" for name in common if shapes[name] != expected[name]]
    if problems:
        shown = "; ".join(problems[:5]) + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise UserError(f"{source} does not fit the backbone: {shown}.")

    published["conv1/kernel"] = published["conv1/kernel"][:, :, ::-1] * np.asarray(std, np.float32)[:, None]

    def load(path: tuple[Any, ...], leaf: Any) -> Any:
        return jnp.asarray(published[published_name(path)])

    loaded = {kind: jax.tree_util.tree_map_with_path(load, tree) for kind, tree in backbone.items()}
    return {kind: {**variables[kind], "backbone": tree} for kind, tree in loaded.items()}


def published_name(path: tuple[Any, ...]) -> str:
    """`layer1_0/conv1/kernel` as the file calls it: `layer1.0/conv1/kernel`."""
    block, *rest = (entry.key for entry in path)
    return "/".join([block.replace("_", ".") if block.startswith("layer") else block, *rest])
