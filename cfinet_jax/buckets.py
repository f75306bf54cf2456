"""What tells a path in a store such as `gs://` from one on a disk."""

from etils import epath


def in_bucket(path: epath.PathLike) -> bool:
    """Whether a path is in a store: without locks, disk space and files to append to."""
    return "://" in str(path)
