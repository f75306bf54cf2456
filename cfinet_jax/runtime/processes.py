"""Several processes that are one run, such as one on each host of a TPU pod: how they meet, and what only one does."""

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

LEAVING = 30  # seconds that a process waits at its end for one that may have failed
LONGEST = 4096  # bytes of a message


def start(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the other processes; those of a TPU pod, of Slurm and of Open MPI find each other without arguments.

    Only the first one writes to stdout from here on. JAX must not have been used before.

    Raises:
      UserError: there are arguments, but not all, or the others cannot be reached.
    """
    given = (coordinator, count, index)
    if None in given and given != (None, None, None):
        raise UserError("Give --coordinator=HOST:PORT, --processes and --process, all three of them, or none.")
    jax.config.update("jax_enable_preemption_service", False)  # `interruption.py` takes SIGTERM
    try:
        jax.distributed.initialize(coordinator, count, index, shutdown_timeout_seconds=LEAVING)
    except (ValueError, RuntimeError) as error:
        if coordinator is not None:
            reason = str(error).partition("\n")[0]
            raise UserError(f"The processes do not meet at {coordinator} ({reason}): see to these flags.") from error
        if not isinstance(error, ValueError):
            raise
        return  # no cluster: this process is alone
    # Gloo, which connects CPUs, lets nobody be 30 s late when a group of devices first meets: now all are on time.
    multihost_utils.sync_global_devices("start")
    bool(mesh.any_process(False, mesh.make_mesh()))
    if jax.process_index() > 0:
        sys.stdout = epath.Path(os.devnull).open("w")


def gather(tree: Any) -> Any:
    """Arrays spread over the devices of all processes, whole, in NumPy, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def by_the_first(work: Callable[[], Any]) -> None:
    """The first process does the work and the others wait for it; a mistake of the user's is said by all of them."""
    message = ""
    if jax.process_index() == 0:
        try:
            work()
        except UserError as error:
            if jax.process_count() == 1:
                raise
            message = str(error)
    if jax.process_count() > 1:
        encoded = np.frombuffer(message.encode()[:LONGEST].ljust(LONGEST, b"\0"), np.uint8)
        message = multihost_utils.broadcast_one_to_all(encoded).tobytes().rstrip(b"\0").decode(errors="replace")
    if message:
        raise UserError(message)
