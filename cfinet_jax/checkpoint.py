"""Checkpoints: the whole train state and the position in the data (the only module that knows orbax)."""

import contextlib
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from cfinet_jax.buckets import in_bucket
from cfinet_jax.errors import Unwritable, UserError
from cfinet_jax.train_state import TrainState

# Every device holds the whole state: one writes it. Otherwise each would write a slice of every array, small as it is.
ARRAYS = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False))
)


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
    """Saves the state of a step, and where in the data the run stands.

    Raises:
      Unwritable: the checkpoint before is still there.
    """
    step, last = int(state.step), checkpoints.latest_step()
    parts = ocp.args.Composite(state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(encode(data_state)))
    try:
        check_room(checkpoints.directory, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        with only_raised():
            checkpoints.save(step, args=parts)
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
        raise
    finally:
        logger.setLevel(level)
        sys.unraisablehook = hook


def restore(checkpoints: ocp.CheckpointManager, template: TrainState) -> tuple[TrainState, Any] | None:
    """The newest state, placed as `template` is, with its position in the data; None in a fresh workdir."""
    step = checkpoints.latest_step()
    if step is None:
        return None
    placed = ocp.checkpoint_utils.construct_restore_args(template)
    parts = ocp.args.Composite(state=ocp.args.PyTreeRestore(template, placed), data=ocp.args.JsonRestore())
    try:
        # First, because orbax finds another model out while it reads, and complains on stderr of what it left unread.
        saved, wanted = shapes(checkpoints.item_metadata(step).state.tree), shapes(template)
        for name in sorted(saved.keys() | wanted.keys()):
            if saved.get(name) != wanted.get(name):
                raise UserError(
                    f"The checkpoint in {checkpoints.directory} is of another model ({name} was {saved.get(name)}, "
                    f"is {wanted.get(name)}): choose another --workdir."
                )
        restored = checkpoints.restore(step, args=parts)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"Checkpoint {step} in {checkpoints.directory} is damaged ({first_line(error)}): delete "
            "it, to go on from the one before, or choose another --workdir."
        ) from error
    return restored.state, decode(restored.data)


def first_line(error: Exception) -> str:
    """Of what orbax says."""
    return str(error).strip().partition("\n")[0]


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def encode(data_state: Any) -> dict[str, str]:
    """A data position as JSON; grain gives bytes or plain values."""
    if isinstance(data_state, bytes):
        return {"bytes": data_state.decode()}
    return {"json": json.dumps(data_state)}


def decode(data_state: dict[str, str]) -> Any:
    """The inverse of `encode`."""
    return data_state["bytes"].encode() if "bytes" in data_state else json.loads(data_state["json"])
