"""What tells a path in a store such as `gs://` from one on a disk, and what finds files in either."""

import glob
from collections.abc import Iterator

from etils import epath

from cfinet_jax.errors import UserError


def in_bucket(path: epath.PathLike) -> bool:
    """Whether a path is in a store: without locks, disk space and files to append to."""
    return "://" in str(path)


def user_path(path: epath.PathLike) -> epath.Path:
    """Return a path that the user has named, with `~` expanded; refuse addresses that are not `gs://`."""
    if in_bucket(path) and not str(path).startswith("gs://"):
        raise UserError(f"{path} is an address that cannot be opened: give a path on a disk, or gs://BUCKET/FOLDER.")
    return epath.Path(path).expanduser()


def matching(folder: epath.Path, pattern: str) -> Iterator[epath.Path]:
    """Find the paths in a folder that fit a pattern; `[`, `*` and `?` in the folder's own path mean themselves."""
    return epath.Path(glob.escape(str(folder))).glob(pattern)


def absolute(path: epath.PathLike) -> epath.Path:
    """A path that holds in every folder; one on `gs://` does already, and the package that reads it is there.

    Raises:
      UserError: it is not, or it is another address.
    """
    path = user_path(path)
    if not in_bucket(path):
        return path.resolve()
    try:
        path.exists()
    except ImportError as error:
        raise UserError(f"{path} cannot be read ({error}): for gs://, pip install gcsfs") from error
    return path
