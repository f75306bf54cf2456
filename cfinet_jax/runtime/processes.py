"""Multi-process runs (one process per TPU host, say): start-up, gathering, and work done by process 0 only."""

import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from cfinet_jax.errors import UserError
from cfinet_jax.runtime import mesh

SHUTDOWN_TIMEOUT = 30  # seconds that a process waits at its end for the others, which may have failed
MESSAGE_BYTES = 4096


def start(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Join the other processes of a run; on a TPU pod, under Slurm and Open MPI this needs no arguments.

    From then on only process 0 writes to stdout. Call it before anything else uses JAX.

    Raises:
      UserError: only some of the arguments are given, or the other processes cannot be reached.
    """
    given = (coordinator, count, index)
    if None in given and given != (None, None, None):
        raise UserError("Give all of --coordinator=HOST:PORT, --processes and --process, or none of them.")
    jax.config.update("jax_enable_preemption_service", False)  # `interruption.py` takes SIGTERM
    try:
        jax.distributed.initialize(coordinator, count, index, shutdown_timeout_seconds=SHUTDOWN_TIMEOUT)
    except (ValueError, RuntimeError) as error:
        if coordinator is not None:
            reason = str(error).partition("\n")[0]
            raise UserError(f"No connection to --coordinator={coordinator} ({reason}): check these flags.") from error
        if not isinstance(error, ValueError):
            raise
        return  # no cluster: a single process
    # Gloo, which connects CPUs, fails if a process is more than 30 s late at the first operation of a group of devices:
    # do one now, while all processes are at the same place.
    multihost_utils.sync_global_devices("start")
    bool(mesh.any_process(False, mesh.make_mesh()))
    if jax.process_index() > 0:
        sys.stdout = epath.Path(os.devnull).open("w")


def gather(tree: Any) -> Any:
    """Return a tree of arrays that are sharded over all processes as whole NumPy arrays, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def by_the_first(work: Callable[[], Any]) -> None:
    """Do the work in process 0 while the others wait; a `UserError` in it is raised in all of them."""
    message = ""
    if jax.process_index() == 0:
        try:
            work()
        except UserError as error:
            if jax.process_count() == 1:
                raise
            message = str(error)
    if jax.process_count() > 1:
        encoded = np.frombuffer(message.encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES, b"\0"), np.uint8)
        message = multihost_utils.broadcast_one_to_all(encoded).tobytes().rstrip(b"\0").decode(errors="replace")
    if message:
        raise UserError(message)
