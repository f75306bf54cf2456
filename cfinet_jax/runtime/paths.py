"""Paths on disks and in buckets (`gs://`): expand those that users give, and find files."""

import glob
from collections.abc import Iterator

from etils import epath

from cfinet_jax.errors import UserError


def in_bucket(path: epath.PathLike) -> bool:
    """Return whether a path is in a bucket, which has no locks, no disk space and no appending to files."""
    return "://" in str(path)


def user_path(path: epath.PathLike) -> epath.Path:
    """Return a path that a user gave, with `~` expanded. Raises `UserError` for addresses other than `gs://`."""
    if in_bucket(path) and not str(path).startswith("gs://"):
        raise UserError(f"{path} is an address that cannot be opened: give a path on a disk, or gs://BUCKET/FOLDER.")
    return epath.Path(path).expanduser()


def check_output(output: epath.Path, *inputs: epath.PathLike) -> None:
    """Raise `UserError` if the file to write, given with --output, is a folder or one of the inputs."""
    if output.is_dir():
        raise UserError(f"--output={output} is a folder: name a file")
    if any(not in_bucket(path) and output.resolve() == user_path(path).resolve() for path in inputs):
        raise UserError(f"--output={output} is also read, and would be lost: name another file")


def matching(folder: epath.Path, pattern: str) -> Iterator[epath.Path]:
    """Yield the paths in a folder that match a pattern; `[`, `*` and `?` in the folder's own path are literal."""
    return epath.Path(glob.escape(str(folder))).glob(pattern)


def absolute(path: epath.PathLike) -> epath.Path:
    """Return a path that a user gave as an absolute one.

    Raises:
      UserError: it is an address other than `gs://`, or the package that reads `gs://` is missing.
    """
    path = user_path(path)
    if not in_bucket(path):
        return path.resolve()
    try:
        path.exists()
    except ImportError as error:
        raise UserError(f"{path} cannot be read ({error}): for gs://, pip install gcsfs") from error
    return path
