"""A workdir belongs to one training at a time, and a data set to one preparation."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.runtime.paths import in_bucket


class InUse(UserError):
    """Somebody else is at work in the workdir."""


@contextlib.contextmanager
def locked(workdir: epath.Path, work: str = "training", option: str = "--workdir") -> Iterator[None]:
    """Keep all other work of a kind out of a folder until this one ends, however it ends: the system lifts the lock.

    A store such as `gs://` has no locks.

    Raises:
      InUse: another process is at work there.
      UserError: the workdir cannot be written.
    """
    if in_bucket(workdir):
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / "lock").open("a")
    except OSError as error:
        raise UserError(f"{workdir} cannot be written ({error}): choose another {option}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = (workdir / "lock").read_text().strip()
            raise InUse(f"{workdir} is in use ({holder}): wait for that {work}, or choose another {option}.") from error
        except OSError as error:
            print(f"{workdir} cannot be locked ({error}): start no second {work} in it.", flush=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
