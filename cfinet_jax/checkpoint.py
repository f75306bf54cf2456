"""Checkpoints of the train state and the position in the data. The only module that knows Orbax."""

import contextlib
import dataclasses
import gc
import glob
import json
import logging
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from cfinet_jax.errors import Unwritable, UserError
from cfinet_jax.runtime.paths import in_bucket
from cfinet_jax.train_step import TrainState

# Every device holds the whole state, and one writes it; by default each would write a slice of every array.
ARRAYS = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False))
)

CHECKSUMS = "checksums.json"  # in the folder of a checkpoint
# Orbax raises all kinds of errors, even a bare Exception, for damaged files; these alone mean something else.
NO_DAMAGE = (UserError, ImportError, MemoryError, jax.errors.JaxRuntimeError)


def check_workdir(workdir: epath.Path) -> None:
    r"""Raise `UserError` for a path with `[`, `*`, `?` or `\`: Orbax would look for its checkpoints elsewhere."""
    if not in_bucket(workdir) and (glob.has_magic(path := str(workdir.resolve())) or "\\" in path):
        raise UserError(f"{path} contains one of [ * ? \\: choose another --workdir, without them.")
    resolved(workdir)


def resolved(workdir: epath.Path) -> epath.Path:
    """Return the absolute path, as Orbax needs it. Raises `UserError` for a path that Orbax cannot encode."""
    path = workdir if in_bucket(workdir) else workdir.resolve()
    if str(path).encode(errors="ignore").decode() != str(path):
        raise UserError(f"{path} is not valid in UTF-8, or in this locale (LANG): choose another --workdir.")
    return path


def open_checkpoints(workdir: epath.Path, keep: int = 2, create: bool = True) -> ocp.CheckpointManager:
    """Open the checkpoints of a run, of which the newest `keep` are kept; `create` makes their folder."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=create,
        cleanup_tmp_directories=create,  # incomplete ones of a killed run; only a training may
        enable_async_checkpointing=False,  # the next step donates the buffers being written
    )
    handlers = {"state": ocp.PyTreeCheckpointHandler(type_handler_registry=ARRAYS), "data": ocp.JsonCheckpointHandler()}
    checkpoints = ocp.CheckpointManager(resolved(workdir) / "checkpoints", options=options, item_handlers=handlers)
    checkpoints._maybe_await_cleanup_tmp_directory()  # its thread would fail, with a traceback, while Python exits
    return checkpoints


def save(checkpoints: ocp.CheckpointManager, state: TrainState, data_state: Any) -> None:
    """Save the state of a step, the position in the data (plain values), and the checksums of both.

    Raises:
      Unwritable: it cannot be saved; the previous checkpoint is kept.
    """
    step, problem = int(state.step), None
    position = {"json": json.dumps(data_state)}
    # A checkpoint of this step or a later one is a damaged one that `restore` has skipped.
    damaged = [each for each in checkpoints.all_steps() if each >= step]
    last = max((each for each in checkpoints.all_steps() if each < step), default=None)
    content = by_field(state)
    parts = ocp.args.Composite(state=ocp.args.PyTreeSave(content), data=ocp.args.JsonSave(position))
    with silence():
        try:
            check_room(checkpoints.directory, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
            with ThreadPoolExecutor(1) as thread:
                for each in damaged:
                    checkpoints.delete(each)
                sums = thread.submit(checksums, content, position)  # while Orbax writes
                checkpoints.save(step, args=parts)
                if jax.process_index() == 0:
                    (checkpoints.directory / str(step) / CHECKSUMS).write_text(json.dumps(sums.result()))
        except (OSError, ValueError) as error:
            problem = first_line(error)
        if problem is not None:
            gc.collect()
    if problem is not None:
        before = "the start" if last is None else f"checkpoint {last}"
        raise Unwritable(
            f"Checkpoint {step} cannot be written to {checkpoints.directory} ({problem}): make room or fix its "
            f"permissions, then rerun the same command to resume from {before}."
        )


def check_room(folder: epath.Path, needed: int) -> None:
    """Raise `OSError` unless the disk of `folder` has `needed` bytes free; a bucket cannot be asked."""
    if not in_bucket(folder) and (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(f"{free / 1e6:,.1f} MB are free, {needed / 1e6:,.1f} MB are needed")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Silence Orbax, so that a failure surfaces once, as the exception.

    Besides raising, Orbax logs a failure, and its unfinished tasks complain when they end or are garbage-collected: do
    that inside the block, once the exception, which holds them, is gone.
    """
    levels = {name: logging.getLogger(name).level for name in ("absl", "asyncio")}
    hook = sys.unraisablehook
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        sys.unraisablehook = lambda _: None
        try:
            yield
        finally:
            sys.unraisablehook = hook
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def restore(
    checkpoints: ocp.CheckpointManager, template: TrainState, seek: Callable[[Any], None] = lambda _: None
) -> tuple[TrainState, Any] | None:
    """Restore the newest undamaged checkpoint: the state, placed as `template` is, and its position in the data.

    Returns None in a fresh workdir. Prints which checkpoints are damaged and were skipped. `seek` is called with the
    position; a checkpoint whose position it fails for is damaged.

    Raises:
      UserError: a checkpoint is of another model, or all of them are damaged.
    """
    damaged: list[str] = []
    restored = None
    with silence():
        for step in sorted(checkpoints.all_steps(), reverse=True):
            try:
                state, position = read(checkpoints, step, template)
                seek(position)
                restored = step, state, position
                break
            except NO_DAMAGE:
                raise
            except Exception as error:
                damaged.append(f"Checkpoint {step} in {checkpoints.directory} is damaged ({first_line(error)})")
        if damaged:
            gc.collect()
    if restored is None:
        if damaged:
            raise UserError(f"{'; '.join(damaged)}, and there is no other: choose another --workdir.")
        return None
    step, state, position = restored
    if damaged:
        print(f"{'; '.join(damaged)}: using checkpoint {step} instead.", flush=True)
    return state, position


def read(checkpoints: ocp.CheckpointManager, step: int, template: TrainState) -> tuple[TrainState, Any]:
    """Read one checkpoint and compare its checksums, if it has any: older versions wrote none.

    The state has an average if the checkpoint holds one, whether or not `template` has.

    Raises:
      UserError: it is of another model.
      Exception: it is damaged.
    """
    # Before reading, since Orbax would notice another model only halfway and leave unfinished reads.
    content = checkpoints.item_metadata(step).state.tree
    template = dataclasses.replace(template, average=template.params if "average" in content else None)
    saved, wanted = (by_path(tree, np.shape) for tree in (content, by_field(template)))
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"The checkpoint in {checkpoints.directory} is of another model ({name} has the shape "
                f"{saved.get(name)}, in this config {wanted.get(name)}): choose another --workdir."
            )
    placed = ocp.checkpoint_utils.construct_restore_args(by_field(template))
    parts = ocp.args.Composite(state=ocp.args.PyTreeRestore(by_field(template), placed), data=ocp.args.JsonRestore())
    restored = checkpoints.restore(step, args=parts)
    path = checkpoints.directory / str(step) / CHECKSUMS
    if path.exists():
        found, expected = checksums(restored.state, restored.data), json.loads(path.read_text())
        if found != expected:
            changed = next((name for name in found if found[name] != expected.get(name)), CHECKSUMS)
            raise ValueError(f"the checksum of {changed} differs")
    return TrainState(**restored.state), json.loads(restored.data["json"])


def by_field(state: TrainState) -> dict[str, Any]:
    """Return a state as it is stored, field by field; without an average it has no such entry."""
    content = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: part for name, part in content.items() if name != "average" or part is not None}


def checksums(content: dict[str, Any], position: dict[str, str]) -> dict[str, int]:
    """Return the CRC-32 of every array of a state by field, by path, and of the position in the data."""
    parts = by_path(content, lambda leaf: np.asarray(leaf).reshape(-1).view(np.uint8))
    parts["data"] = np.frombuffer(json.dumps(position, sort_keys=True).encode(), np.uint8)
    return {name: zlib.crc32(each) for name, each in parts.items()}


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; Orbax's have many."""
    return str(error).strip().partition("\n")[0]


def by_path(tree: Any, fact: Callable[[Any], Any]) -> dict[str, Any]:
    """Apply a function to every leaf of a tree; return the results by path, such as `params/backbone/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): fact(leaf) for path, leaf in leaves}
