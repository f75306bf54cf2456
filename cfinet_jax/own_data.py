"""Data that the user has not prepared: `data/prepare.py` does it, in a process of its own, on first use."""

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.buckets import in_bucket, user_path
from cfinet_jax.errors import Interrupted, UserError
from cfinet_jax.outside import length_and_time

SCRIPT = epath.Path(__file__).parents[1] / "data" / "prepare.py"  # beside the package: it is not installed with it
# Data sets that the script knows by name.
PUBLISHED = ("sodad", "visdrone", "ai_tod", "ai_tod_v2", "tiny_person", "hit_uav", "sodaa", "dota")
LABELS = (".txt", ".json")  # endings of label files
UNNAMED = {"source": "something else", "annotations": "the files found by their names"}


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


def arguments(name: str) -> str:
    """Of `data/prepare.py`, for a data set that is not prepared."""
    if name == "scenes":
        return name
    return f"{name} --source=FOLDER" if name in PUBLISHED else f"own --name={name} --source=FOLDER"


def prepare(settings: ConfigDict) -> None:
    """Prepares the data set `settings.name` from the folder `settings.source`; what is said on the way is shown.

    Raises:
      UserError: there is no such script, or it refuses the data.
    """
    if not SCRIPT.exists():
        raise UserError(f"dataset.source needs {SCRIPT}: work in a checkout, or prepare the data set in one")
    kind = settings.name if settings.name in PUBLISHED else "own"
    command = [sys.executable, str(SCRIPT), kind, f"--source={settings.source}", f"--name={settings.name}"]
    command += [f"--data_dir={settings.data_dir}"]
    command += [f"--boxes={settings.boxes}"] if kind == "own" else []
    command += [f"--annotations={entry}" for entry in split_entries(settings.annotations)]
    print(f"Preparing {settings.source} in {settings.data_dir}, once.", flush=True)
    options = {"text": True, "errors": "replace", "start_new_session": True}  # so that Ctrl-C comes once
    with subprocess.Popen(command, stderr=subprocess.PIPE, **options) as child:
        try:
            errors = child.communicate()[1]
        except BaseException:  # this process is asked to end: so is the child, which is then waited for
            child.terminate()
            raise
    if child.returncode:
        *rest, line = errors.strip().splitlines() or [f"{SCRIPT} ended with status {child.returncode}"]
        sys.stderr.write("".join(f"{each}\n" for each in rest if child.returncode not in (2, 75)))
        raise (Interrupted if child.returncode == 75 else UserError)(line)


def split_entries(annotations: str | None) -> list[str]:
    """Split `SPLIT=JSON[,IMAGES] ...` into entries, whose paths may have spaces."""
    return [entry for entry in re.split(r"\s+(?=\w+=)", (annotations or "").strip()) if entry]


def state(files: Iterable[str]) -> list[int | str]:
    """Return number, newest modification time, bytes and a hash of files; a folder stands for the labels in it."""
    stats, digest = [], hashlib.sha256()
    for path in map(epath.Path, files):
        each = [file for file in sorted(path.iterdir()) if file.suffix in LABELS] if path.is_dir() else [path]
        for file in each:
            try:
                stats.append(length_and_time(file))
            except OSError:  # missing, or no file but a folder or a pipe
                continue
            named = f"{file.name}\n{hashlib.sha256(file.read_bytes()).hexdigest()}\n"
            digest.update(named.encode(errors="surrogateescape"))  # a name need not be UTF-8
    newest, length = max((time for _, time in stats), default=0), sum(length for length, _ in stats)
    return [len(stats), newest, length, digest.hexdigest()]


def unchanged(files: Iterable[str], before: list[int | str]) -> bool:
    """Whether files are as `state` found them; records of data prepared earlier lack the hash."""
    now = state(files)
    return now[3:] == before[3:] if before[3:] else now[:3] == before


def check_origin(metadata: Mapping[str, Any], settings: ConfigDict, folder: epath.Path) -> None:
    """What was prepared in `folder` comes from the source and the annotations that the settings name, as they are now.

    Settings without a source accept everything, and data that were prepared without a record of their files
    (`files`, `state`) count as unchanged.

    Raises:
      UserError: it does not.
    """
    if settings.source is None:
        return
    source = absolute(settings.source)
    wanted = {"source": str(source), "annotations": " ".join(split_entries(settings.annotations))}
    for key, value in wanted.items():
        before = metadata.get(key, "")
        if before != value:
            raise UserError(
                f"{folder} was prepared from {before or UNNAMED[key]}, not from {value or UNNAMED[key]}: "
                "delete this folder to prepare it again, or choose another --config.dataset.name"
            )
    if "files" in metadata and not unchanged(metadata["files"], metadata["state"]):
        raise UserError(
            f"{folder} was prepared from an earlier state of {source}: delete this folder to prepare it again"
        )
