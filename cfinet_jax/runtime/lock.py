"""Locks on folders: one training at a time in a workdir, one preparation at a time of a data set."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.runtime.files import writing
from cfinet_jax.runtime.paths import in_bucket


class InUse(UserError):
    """The folder is locked by another process."""


@contextlib.contextmanager
def locked(workdir: epath.Path, work: str = "training", option: str = "--workdir") -> Iterator[None]:
    """Lock a folder for the block. The system lifts the lock when the process ends, however it ends.

    Buckets (`gs://`) have no locks, so nothing is locked there. `work` and `option` are used in messages.

    Raises:
      InUse: another process has locked the folder.
      Unwritable: the folder cannot be written.
    """
    if in_bucket(workdir):
        yield
        return
    with writing(workdir, option):
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / "lock").open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = (workdir / "lock").read_text().strip()
            raise InUse(f"{workdir} is in use ({holder}): wait for that {work}, or choose another {option}.") from error
        except OSError as error:
            print(f"{workdir} cannot be locked ({error}): do not start a second {work} in it.", flush=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
