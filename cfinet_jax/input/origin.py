"""Origin of a prepared data set: its folder and annotation files are recorded, and compared when it is opened."""

import contextlib
import functools
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.errors import UserError
from cfinet_jax.input.pictures import identity
from cfinet_jax.runtime.files import length_and_time, write_times
from cfinet_jax.runtime.paths import absolute

LABELS = (".txt", ".json")  # endings of label files
UNNAMED = {"source": "something else", "annotations": "the files found by their names"}


def split_entries(annotations: str | None) -> list[str]:
    """Split `SPLIT=JSON[,IMAGES] ...` into entries, whose paths may have spaces."""
    return [entry for entry in re.split(r"\s+(?=\w+=)", (annotations or "").strip()) if entry]


@functools.cache
def content_hash(file: epath.Path, *_: int) -> str:
    """Return the SHA-256 of a file. A start opens its data set several times, but reads an unchanged file once."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def state(files: Iterable[str]) -> list[int | str]:
    """Return count, newest modification time, total bytes and a hash of files; a folder stands for its label files."""
    stats, digest = [], hashlib.sha256()
    for path in map(epath.Path, files):
        each = [file for file in sorted(path.iterdir()) if file.suffix in LABELS] if path.is_dir() else [path]
        for file in each:
            try:
                stats.append(length_and_time(file))
            except OSError:  # missing, or a folder or a pipe
                continue
            named = f"{file.name}\n{content_hash(file, *write_times(file))}\n"
            digest.update(named.encode(errors="surrogateescape"))  # a name need not be UTF-8
    newest, length = max((time for _, time in stats), default=0), sum(length for length, _ in stats)
    return [len(stats), newest, length, digest.hexdigest()]


def unchanged(files: Iterable[str], before: list[int | str]) -> bool:
    """Whether files are as `state` found them; data prepared by earlier versions lack the hash."""
    now = state(files)
    return now[3:] == before[3:] if before[3:] else now[:3] == before


def same_folder(first: str, second: str) -> bool:
    """Whether two paths lead to one folder, perhaps through links."""
    with contextlib.suppress(OSError, ValueError):  # there is none, or no file can have this name
        return identity(epath.Path(first)) == identity(epath.Path(second))
    return False


def check_origin(metadata: Mapping[str, Any], settings: ConfigDict, folder: epath.Path) -> None:
    """Check that the data in `folder` were prepared from the source and annotations in the settings, as they are now.

    Settings without a source accept everything. Data prepared without a record of their files (`files`, `state`) count
    as unchanged.

    Raises:
      UserError: the source or the annotations differ or have changed.
    """
    if settings.source is None:
        return
    source = absolute(settings.source)
    wanted = {"source": str(source), "annotations": " ".join(split_entries(settings.annotations))}
    for key, value in wanted.items():
        before = metadata.get(key, "")
        if before != value and not (key == "source" and before and same_folder(before, value)):
            raise UserError(
                f"{folder} was prepared from {before or UNNAMED[key]}, not from {value or UNNAMED[key]}: "
                "delete this folder to prepare it again, or choose another --config.dataset.name"
            )
    if "files" in metadata and not unchanged(metadata["files"], metadata.get("state", [])):
        raise UserError(
            f"{folder} was prepared from an earlier state of {source}: delete this folder to prepare it again"
        )
