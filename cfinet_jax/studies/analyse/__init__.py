"""`--mode=analyse`: the data as a config sees them, the memory that training needs, and advice on flags."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.build import build, check_boxes, discover
from cfinet_jax.errors import UserError
from cfinet_jax.input import dataset
from cfinet_jax.input.batches import views
from cfinet_jax.runtime import mesh
from cfinet_jax.runtime.files import replace_text
from cfinet_jax.runtime.markdown import escape
from cfinet_jax.studies.analyse import data_tables
from cfinet_jax.studies.analyse.advice import advise
from cfinet_jax.studies.analyse.contents import Contents, overlaps_with_anchors, read_contents, unmatched
from cfinet_jax.studies.compile import step_shapes
from cfinet_jax.training import compile_step, make_step

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # anchor scales to compare the config's with


def analyse(config: ConfigDict, workdir: epath.Path) -> None:
    """Describe the data and give advice; write both as `analysis.md` and `analysis.png` into the workdir."""
    config = discover(config, workdir)
    settings = config.dataset
    learnt = dataset.open_dataset(settings, settings.train_split)
    check_boxes(settings, learnt)
    splits, classes = dataset.open_splits(settings), learnt.classes
    seen = {name: views(split, settings, training=name == settings.train_split) for name, split in splits.items()}
    contents = {name: read_contents(each, settings) for name, each in seen.items()}
    training = contents[settings.train_split]
    if not len(training.boxes):
        raise UserError(f"The split '{settings.train_split}' of {settings.name} holds no objects: annotate some.")

    scale = config.detector.proposal_network[config.detector.proposal_network.name].anchor_scale
    overlaps = {each: overlaps_with_anchors(training, config, each) for each in sorted({*SCALES, scale})}
    without_anchor = unmatched(training, config, overlaps[scale])
    text = describe(config, contents, classes, overlaps, without_anchor)
    write(workdir, text)
    data_tables.draw(training, overlaps[scale], workdir / "analysis.png")
    print(text, flush=True)

    # Last, since it compiles the training step.
    needed, available = memory_needed(config, len(classes)), memory_available()
    means = {each: float(values.mean()) for each, values in overlaps.items()}
    lines = advise(config, training, contents.values(), classes, means, without_anchor, sum(needed.values()), available)
    rest = f"{data_tables.memory_table(needed, available)}\nAdvice:\n\n" + "".join(f"- {line}\n" for line in lines)
    write(workdir, f"{text}\n![anchors and sizes](analysis.png)\n\n{rest}")
    print(rest, flush=True)


def describe(
    config: ConfigDict,
    contents: Mapping[str, Contents],
    classes: Sequence[str],
    overlaps: Mapping[float, np.ndarray],
    without_anchor: Mapping[str, float],
) -> str:
    """Return the tables of the data, in Markdown."""
    settings, training = config.dataset, contents[config.dataset.train_split]
    return f"""# {escape(settings.name)}

{data_tables.split_table(contents, settings, config.prediction.overlap)}
Objects of `{settings.train_split}` by area in square pixels, as stored and in the network's input:

{data_tables.size_table(training)}
{data_tables.class_table(training, classes)}
IoU of objects with their best anchor, for anchors of this scale:

{data_tables.scale_table(overlaps)}
{data_tables.rule_table(without_anchor) if without_anchor else ""}"""


def write(workdir: epath.Path, text: str) -> None:
    """Write the analysis into the workdir."""
    workdir.mkdir(parents=True, exist_ok=True)
    replace_text(workdir / "analysis.md", text)


def memory_needed(config: ConfigDict, classes: int) -> dict[str, int]:
    """Return bytes on one device by part: the state of a run, and what the compiled training step needs besides."""
    over = mesh.make_mesh()
    detector, optimizer = build(config, classes)
    state, batch, key = step_shapes(config, detector, over)
    compiled = compile_step(make_step(config, detector, optimizer, over), state, batch, key)
    return {
        "parameters": size_in_bytes((state.variables, state.average)),
        "optimizer state": size_in_bytes(state.opt_state),
        "exemplar memory": size_in_bytes(state.memory),
        "images and boxes of a step": size_in_bytes(batch) // over.size,
        "temporaries of a step": compiled.memory_analysis().temp_size_in_bytes,
    }


def size_in_bytes(tree: Any) -> int:
    """Return the bytes of all arrays of a tree, given as arrays or as shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def memory_available() -> int:
    """Return the bytes of the first device, or of the machine where the device does not say."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
