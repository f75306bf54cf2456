"""What tells a path in a store such as `gs://` from one on a disk, and what finds files in either."""

import glob
from collections.abc import Iterator

from etils import epath


def in_bucket(path: epath.PathLike) -> bool:
    """Whether a path is in a store: without locks, disk space and files to append to."""
    return "://" in str(path)


def matching(folder: epath.Path, pattern: str) -> Iterator[epath.Path]:
    """Find the paths in a folder that fit a pattern; `[`, `*` and `?` in the folder's own path mean themselves."""
    return epath.Path(glob.escape(str(folder))).glob(pattern)
