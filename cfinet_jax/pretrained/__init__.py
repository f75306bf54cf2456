"""Load published weights: a backbone to start training from, or a whole detector to continue with or detect with."""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath

from cfinet_jax.errors import UserError, without_password
from cfinet_jax.models.resnet import DEPTHS, BasicBlock, Bottleneck
from cfinet_jax.pretrained.names import MEAN, STD, Published, translate
from cfinet_jax.pretrained.weight_files import read
from cfinet_jax.runtime.files import replacing

LAST = {BasicBlock: "conv2", Bottleneck: "conv3"}  # last convolution of a block


def in_parts(parts: Collection[str]) -> re.Pattern:
    """Return the pattern of the names of these parts of a detector; without parts it matches every name."""
    return re.compile(rf"(params|batch_stats)/({'|'.join(parts)})/" if parts else "")


BACKBONE = in_parts(["backbone"])


class Loaded(NamedTuple):
    """Variables with published weights filled in."""

    variables: dict[str, Any]
    at_random: frozenset[str]  # names of the variables that were not filled
    account: str  # what was taken from the file, in lines to print


def load(source: str, variables: Mapping[str, Any], **choices: Any) -> Loaded:
    """Fill the variables of a detector with the weights of a file or URL; the choices are those of `fill`."""
    return fill(translate(read(source), source), source, variables, **choices)


def fill(
    published: Published,
    source: str,
    variables: Mapping[str, Any],
    *,
    stride_style: str,
    classes: Sequence[str],
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    parts: Collection[str] = (),
    partial: bool = False,
) -> Loaded:
    """Fill the variables of a detector with weights.

    Args:
      published: the weights. Those of only a backbone fill the backbone; any others must fill the whole model.
      source: path or URL that they are from, for messages.
      variables: params and batch_stats, arrays or shapes.
      stride_style: of the model's backbone, "pytorch" or "caffe".
      classes: names of the model's classes.
      mean: subtracted from the model's pictures, R G B.
      std: what they are divided by.
      parts: parts of the detector to fill, such as "backbone"; none: all.
      partial: whether to take the arrays that fit and leave the rest as it is.

    Raises:
      UserError: the weights have another stride style or normalisation, or do not fit.
    """
    check_conventions(published, source, stride_style, mean, std)
    chosen = in_parts(parts)
    published = published._replace(arrays={k: v for k, v in published.arrays.items() if chosen.match(k)})
    backbone_only = all(map(BACKBONE.match, published.arrays))
    every = named(variables)
    leaves = {k: leaf for k, leaf in every.items() if (BACKBONE if backbone_only else chosen).match(k)}
    fitting = {
        name: jnp.asarray(array, leaves[name].dtype)
        for name, array in published.arrays.items()
        if name in leaves and array.shape == leaves[name].shape
    }
    if not partial and (len(fitting) < len(leaves) or published.arrays.keys() - leaves.keys()):
        raise UserError(mismatch(published, {name: leaf.shape for name, leaf in leaves.items()}, source))
    if not fitting:
        raise UserError(f"{source} has no array that fits this model: choose another file.")
    if broken := [name for name, array in fitting.items() if not np.isfinite(np.asarray(array)).all()]:
        raise UserError(f"{source} holds NaN or infinity in {shorten(sorted(broken))}: choose another file.")
    at_random = frozenset(every.keys() - fitting)
    if not backbone_only:
        check_classes(published, source, classes)
    return Loaded(replaced(variables, fitting), at_random, describe(published, source, fitting, at_random))


def check_classes(published: Published, source: str, classes: Sequence[str]) -> None:
    """Refuse the same classes in another order; print where other classes differ, which may be intended."""
    theirs, ours = published.classes, tuple(classes)
    if theirs is None or theirs == ours:
        return
    at, (their, our) = next((k, pair) for k, pair in enumerate(zip_longest(theirs, ours)) if pair[0] != pair[1])
    difference = f"its class {at} is {their!r}, the data set's {our!r}"
    if set(theirs) == set(ours):
        raise UserError(f"{source} has the classes in another order ({difference}): prepare the data set in its order.")
    print(f"{source} was trained on other classes: {difference}.", flush=True)


def save(path: epath.Path, variables: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write variables as safetensors under our names; `facts` (JSON values) become the file's metadata."""
    arrays = {name: np.asarray(leaf) for name, leaf in named(variables).items()}
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    with replacing(path) as partial:
        partial.write_bytes(safetensors.numpy.save(arrays, metadata))


def name_of(path: tuple[Any, ...]) -> str:
    """Return the name of a leaf, such as `params/backbone/conv1/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of a tree by name."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables))}


def replaced(variables: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree with the leaves that `arrays` has by name replaced."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: arrays.get(name_of(path), leaf), dict(variables))


def check_conventions(
    published: Published, source: str, stride_style: str, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Refuse a file trained with another stride style, or on pictures normalised in another way."""
    places = {"caffe": "the first 1x1 convolution", "pytorch": "the 3x3 convolution"}
    if published.stride_style not in (None, *places):
        raise UserError(f"{source} has an unknown stride_style, {published.stride_style!r}: export it again.")
    if published.stride_style not in (None, stride_style):
        raise UserError(
            f"{source} holds {published.stride_style}-style weights (stride in {places[published.stride_style]}) and "
            f"the model is {stride_style}-style: set --config.detector.backbone.stride_style={published.stride_style}."
        )
    for key, values, expected in (("mean", mean, published.mean), ("std", std, published.std)):
        if tuple(values) != expected:
            raise UserError(
                f"{source} needs dataset.{key} = {expected}, but it is {tuple(values)}: "
                f'set --config.dataset.{key}="{expected}".'
            )


def mismatch(published: Published, shapes: dict[str, tuple[int, ...]], source: str) -> str:
    """Say in one line why a file does not fit, with the first names of every kind of difference."""
    arrays = published.arrays
    common = sorted(arrays.keys() & shapes.keys())
    differences = {
        "missing": sorted(shapes.keys() - arrays.keys()),
        "unexpected": sorted(arrays.keys() - shapes.keys()),
        "of another shape": [
            f"{name} {arrays[name].shape} for {shapes[name]}" for name in common if arrays[name].shape != shapes[name]
        ],
    }
    listed = "; ".join(f"{len(names)} {what}: {shorten(names)}" for what, names in differences.items() if names)
    reasons = []
    if (theirs := depth_of(arrays)) != (ours := depth_of(shapes)) and theirs is not None:
        reasons.append(f"it holds a ResNet-{theirs} and detector.backbone.depth is {ours}")
    head = "params/roi_head/classify/bias"
    if head in common and arrays[head].shape != shapes[head]:
        reasons.append(f"it knows {arrays[head].shape[0] - 1} classes and the data set has {shapes[head][0] - 1}")
    why = f" ({', '.join(reasons)})" if reasons else ""
    return (
        f"{source} does not fit the model{why}. {listed}. Correct the config, or take what fits with "
        "--config.training.pretrained_partial=True."
    )


def depth_of(names: Iterable[str]) -> int | None:
    """Return the depth of the ResNet that has these parameters, None if there is no such ResNet."""
    last = {match[1]: match[2] for name in sorted(names) if (match := re.search(r"(layer\d_\d+)/(conv\d)/", name))}
    known = {(sum(counts), LAST[block]): depth for depth, (block, counts) in DEPTHS.items()}
    return known.get((len(last), max(last.values(), default="")))


def shorten(names: Sequence[str], most: int = 3) -> str:
    """List the first few names, and say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def describe(published: Published, source: str, taken: Collection[str], at_random: Collection[str]) -> str:
    """Describe in lines what each part of the model took, what stayed as initialised, and what was not used."""
    lines = [f"Weights of {without_password(source)} ({published.kind} names):"]
    parts = by_part(taken)
    for part, names in parts.items():
        numbers = sum(published.arrays[name].size for name in names)
        lines.append(f"  {part}: {len(names):,} arrays, {numbers:,} numbers")
    for part, names in by_part(at_random).items():
        which = f" ({', '.join(names)})" if part in parts else ""
        lines.append(f"  {part}: {len(names):,} arrays as initialised{which}")
    if published.stride_style is None:
        lines.append("  The file does not say its stride style; the model's is assumed.")
    unused = sorted(published.arrays.keys() - set(taken))
    if unused:
        lines.append(f"  not used: {', '.join(unused)}")
    if published.left_out:
        reasons = sorted(set(published.left_out.values()))
        lines.append(f"  left out: {len(published.left_out):,} arrays ({', '.join(reasons)})")
    return "\n".join(lines)


def by_part(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names by the part of the detector that they belong to, everything in alphabetical order."""
    parts: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: name.split("/")[1:]):
        parts.setdefault(name.split("/")[1], []).append(name)
    return parts
