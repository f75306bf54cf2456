"""Checkpoints: the whole train state and the position in the data (the only module that knows orbax)."""

import contextlib
import glob
import json
import logging
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from cfinet_jax.errors import Unwritable, UserError
from cfinet_jax.runtime.paths import in_bucket
from cfinet_jax.train_step import TrainState

# Every device holds the whole state: one writes it. Otherwise each would write a slice of every array, small as it is.
ARRAYS = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False))
)

CHECKSUMS = "checksums.json"  # in the folder of a checkpoint
# Everything else that Orbax raises while it reads, a bare Exception among it, comes from damaged files.
NO_DAMAGE = (UserError, ImportError, MemoryError, jax.errors.JaxRuntimeError)


def check_workdir(workdir: epath.Path) -> None:
    """Refuse a workdir in which Orbax, which takes its own path for a pattern, could not read what it has written."""
    if not in_bucket(workdir) and glob.has_magic(str(workdir.resolve())):
        raise UserError(f"{workdir.resolve()} has one of [ * ? in it: choose another --workdir, without them.")


def open_checkpoints(workdir: epath.Path, keep: int = 2, create: bool = True) -> ocp.CheckpointManager:
    """The checkpoints of a run, newest `keep` of them, each complete or absent; `create` makes their folder."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=create,
        cleanup_tmp_directories=create,  # what a killed run left half-written; nobody but a training owns the folder
        enable_async_checkpointing=False,  # the next step takes over the very buffers that are being written
    )
    handlers = {"state": ocp.PyTreeCheckpointHandler(type_handler_registry=ARRAYS), "data": ocp.JsonCheckpointHandler()}
    folder = workdir if in_bucket(workdir) else workdir.resolve()  # orbax refuses relative paths
    return ocp.CheckpointManager(folder / "checkpoints", options=options, item_handlers=handlers)


def save(checkpoints: ocp.CheckpointManager, state: TrainState, data_state: Any) -> None:
    """Saves the state of a step, where in the data the run stands, and the checksums of both.

    Raises:
      Unwritable: the checkpoint before is still there.
    """
    step, encoded = int(state.step), encode(data_state)
    # Only a damaged checkpoint, which `restore` skipped, can be of this step or a later one.
    damaged = [each for each in checkpoints.all_steps() if each >= step]
    last = max((each for each in checkpoints.all_steps() if each < step), default=None)
    parts = ocp.args.Composite(state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(encoded))
    try:
        check_room(checkpoints.directory, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        with only_raised(), ThreadPoolExecutor(1) as thread:
            for each in damaged:
                checkpoints.delete(each)
            sums = thread.submit(checksums, state, encoded)  # while Orbax writes, since it takes 6 % of that time
            checkpoints.save(step, args=parts)
            if jax.process_index() == 0:
                (checkpoints.directory / str(step) / CHECKSUMS).write_text(json.dumps(sums.result()))
    except (OSError, ValueError) as error:
        before = "the start" if last is None else f"checkpoint {last}"
        raise Unwritable(
            f"Checkpoint {step} cannot be written to {checkpoints.directory} ({first_line(error)}): make room, or see "
            f"to its rights; then the same command goes on from {before}."
        ) from error


def check_room(folder: epath.Path, needed: int) -> None:
    """There is room for so many bytes, as far as anybody can tell: of a bucket nobody can.

    Raises:
      OSError: there is not.
    """
    if not in_bucket(folder) and (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(f"{free / 1e6:,.1f} MB are free, {needed / 1e6:,.1f} MB are needed")


@contextlib.contextmanager
def only_raised() -> Iterator[None]:
    """What goes wrong is raised; orbax would log it as well, and its threads print that nobody listens any more."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    try:
        yield
    except BaseException:
        # When its tasks are collected, Python tells what they raised too, and which never began.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        hook = partial(drop_late, hook)
        raise
    finally:
        logger.setLevel(level)
        sys.unraisablehook = hook


def drop_late(hook: Callable[[Any], None], unraisable: Any) -> None:
    """Drop the complaints of reads that end after the one that failed; pass everything else to `hook`."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        hook(unraisable)


def restore(checkpoints: ocp.CheckpointManager, template: TrainState) -> tuple[TrainState, Any] | None:
    """Restore the newest undamaged checkpoint: the state, placed as `template` is, and its position in the data.

    Returns None in a fresh workdir. Prints which checkpoints are damaged and were skipped.

    Raises:
      UserError: a checkpoint is of another model, or all of them are damaged.
    """
    damaged: list[str] = []
    for step in sorted(checkpoints.all_steps(), reverse=True):
        try:
            with only_raised():
                restored = read(checkpoints, step, template)
        except NO_DAMAGE:
            raise
        except Exception as error:
            damaged.append(f"Checkpoint {step} in {checkpoints.directory} is damaged ({first_line(error)})")
            continue
        if damaged:
            print(f"{'; '.join(damaged)}: using checkpoint {step} instead.", flush=True)
        return restored
    if damaged:
        raise UserError(f"{'; '.join(damaged)}, and there is no other: choose another --workdir.")
    return None


def read(checkpoints: ocp.CheckpointManager, step: int, template: TrainState) -> tuple[TrainState, Any]:
    """Read one checkpoint and compare its checksums, which those of earlier revisions lack."""
    # First, because orbax finds another model out while it reads, and complains on stderr of what it left unread.
    saved, wanted = (by_path(tree, np.shape) for tree in (checkpoints.item_metadata(step).state.tree, template))
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"The checkpoint in {checkpoints.directory} is of another model ({name} was {saved.get(name)}, "
                f"is {wanted.get(name)}): choose another --workdir."
            )
    placed = ocp.checkpoint_utils.construct_restore_args(template)
    parts = ocp.args.Composite(state=ocp.args.PyTreeRestore(template, placed), data=ocp.args.JsonRestore())
    restored = checkpoints.restore(step, args=parts)
    path = checkpoints.directory / str(step) / CHECKSUMS
    if path.exists():
        found, expected = checksums(restored.state, restored.data), json.loads(path.read_text())
        if found != expected:
            changed = next((name for name in found if found[name] != expected.get(name)), CHECKSUMS)
            raise ValueError(f"the checksum of {changed} differs")
    return restored.state, decode(restored.data)


def checksums(state: TrainState, encoded: dict[str, str]) -> dict[str, int]:
    """The CRC-32 of every array of a state by its path, and of the encoded position in the data."""
    content = by_path(state, lambda leaf: np.asarray(leaf).reshape(-1).view(np.uint8))
    content["data"] = np.frombuffer(json.dumps(encoded, sort_keys=True).encode(), np.uint8)
    return {name: zlib.crc32(each) for name, each in content.items()}


def first_line(error: Exception) -> str:
    """Of what orbax says."""
    return str(error).strip().partition("\n")[0]


def by_path(tree: Any, fact: Callable[[Any], Any]) -> dict[str, Any]:
    """A fact about every leaf by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): fact(leaf) for path, leaf in leaves}


def encode(data_state: Any) -> dict[str, str]:
    """A data position as JSON; grain gives bytes or plain values."""
    if isinstance(data_state, bytes):
        return {"bytes": data_state.decode()}
    return {"json": json.dumps(data_state)}


def decode(data_state: dict[str, str]) -> Any:
    """The inverse of `encode`."""
    return data_state["bytes"].encode() if "bytes" in data_state else json.loads(data_state["json"])
