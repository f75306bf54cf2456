"""What the data look like to a config and what training on them takes; leaves advice, each with the flag to give."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.build import check_boxes, create_run, discover
from cfinet_jax.errors import UserError
from cfinet_jax.input import dataset
from cfinet_jax.input.batches import views
from cfinet_jax.runtime import mesh
from cfinet_jax.runtime.files import replace_text
from cfinet_jax.runtime.markdown import escape
from cfinet_jax.studies.analyse import data_tables
from cfinet_jax.studies.analyse.advice import advise
from cfinet_jax.studies.analyse.contents import Contents, overlaps_with_anchors, read_contents, unmatched
from cfinet_jax.train_step import empty_batch
from cfinet_jax.training import compile_step, make_step

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # of anchors, to compare the config's with


def analyse(config: ConfigDict, workdir: epath.Path) -> None:
    """Prints what it finds and leaves it as `analysis.md` and `analysis.png` in the workdir."""
    config = discover(config, workdir)
    settings = config.dataset
    learnt = dataset.open_dataset(settings, settings.train_split)
    check_boxes(settings, learnt)
    splits, classes = dataset.open_splits(settings), learnt.classes
    seen = {name: views(split, settings, training=name == settings.train_split) for name, split in splits.items()}
    contents = {name: read_contents(each, settings) for name, each in seen.items()}
    training = contents[settings.train_split]
    if not len(training.boxes):
        raise UserError(f"The split '{settings.train_split}' of {settings.name} holds no object: annotate some.")

    scale = config.detector.proposal_network[config.detector.proposal_network.name].anchor_scale
    overlaps = {each: overlaps_with_anchors(training, config, each) for each in sorted({*SCALES, scale})}
    without_anchor = unmatched(training, config, overlaps[scale])
    text = describe(config, contents, classes, overlaps, without_anchor)
    write(workdir, text)
    data_tables.draw(training, overlaps[scale], workdir / "analysis.png")
    print(text, flush=True)

    needed, available = memory_needed(config), memory_available()  # after what may be had without compiling
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
    """The tables of the data, in Markdown."""
    settings, training = config.dataset, contents[config.dataset.train_split]
    return f"""# {escape(settings.name)}

{data_tables.split_table(contents, settings, config.prediction.overlap)}
Objects of `{settings.train_split}` by area in square pixels, as stored and as the network sees them:

{data_tables.size_table(training)}
{data_tables.class_table(training, classes)}
Best IoU of an object with an anchor, in network pixels, were their scale this one:

{data_tables.scale_table(overlaps)}
{data_tables.rule_table(without_anchor) if without_anchor else ""}"""


def write(workdir: epath.Path, text: str) -> None:
    """Leaves the analysis in the workdir."""
    workdir.mkdir(parents=True, exist_ok=True)
    replace_text(workdir / "analysis.md", text)


def memory_needed(config: ConfigDict) -> dict[str, int]:
    """Bytes on one device: the state of a run and what one compiled training step needs besides."""
    run = create_run(config)
    settings = config.dataset
    is_oriented = settings.boxes == "oriented"
    batch = empty_batch(settings.batch_size, settings.stored_size, settings.max_objects, is_oriented)
    batch = dataclasses.replace(batch, images=batch.images.astype(np.uint8))
    placed = mesh.place_batch(jax.tree.map(np.asarray, batch), run.mesh)
    key = mesh.replicate(jax.random.key(0), run.mesh)
    step = make_step(config, run.detector, run.optimizer, run.mesh)
    compiled = compile_step(step, run.state, placed, key)
    return {
        "parameters": size_in_bytes((run.state.params, run.state.batch_stats)),
        "optimizer state": size_in_bytes(run.state.opt_state),
        "exemplar memory": size_in_bytes(run.state.memory),
        "pictures and boxes of a step": size_in_bytes(batch) // run.mesh.size,
        "temporaries of a step": compiled.memory_analysis().temp_size_in_bytes,
    }


def size_in_bytes(tree: Any) -> int:
    """What the arrays of a tree take."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def memory_available() -> int:
    """Bytes of the first device, or of the machine where the device does not tell."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
