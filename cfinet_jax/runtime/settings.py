"""`settings.json` of a workdir: the config, classes and versions of its run, compared before it is used again."""

import functools
import importlib.metadata
import json
import platform
import subprocess
import zlib
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.errors import UserError
from cfinet_jax.runtime.files import DAMAGED, read_text, replace_text, writing
from cfinet_jax.runtime.json_values import parse
from cfinet_jax.runtime.paths import in_bucket, matching
from cfinet_jax.runtime.progress import print_once

PACKAGES = ("cfinet-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")
# Keys that runs of earlier versions did not record, with the values that say what they did.
ADDED = {
    "dataset.vertical_flip": 0.0,
    "dataset.quarter_turns": 0.0,
    "dataset.train_size": None,
    "dataset.scale_jitter": [1.0, 1.0],
    "dataset.crop_at_object": 0.5,
    "dataset.colour_jitter": 0.0,
    "dataset.invert": 0.0,
    "detector.imitation.features_gradient": True,
    "detector.imitation.high_quality_quantile": None,
    "detector.imitation.min_exemplars": 0,
    "optimizer.name": "sgd",
    "optimizer.second_momentum": 0.999,
    "optimizer.schedule": "steps",
    "optimizer.final_factor": 0.01,
    "training.average_decay": None,
    "training.pretrained_parts": [],
    "prediction.views": ["plain"],
}


def write_settings(
    config: ConfigDict, workdir: epath.Path, classes: Sequence[str], category_ids: Sequence[int]
) -> None:
    """Write the resolved config, classes, package versions, machine and git revision as `settings.json`.

    Raises:
      UserError: the workdir holds a checkpoint of another run.
      Unwritable: it cannot be written.
    """
    settings = json.loads(config.to_json())
    facts = {"config": settings, "classes": list(classes), "category_ids": list(category_ids)}
    facts |= {"seal": seal(facts), "versions": versions(), "machine": machine(), "revision": git_revision()}
    with writing(workdir, "--workdir"):
        if has_learnt(workdir):
            check_same_run(workdir, settings)
            check_same_classes(workdir, classes)
        workdir.mkdir(parents=True, exist_ok=True)
        replace_text(workdir / "settings.json", json.dumps(facts, indent=1, sort_keys=True))


def has_learnt(workdir: epath.Path) -> bool:
    """Return whether the workdir holds a complete checkpoint."""
    folder = workdir / "checkpoints"
    if not folder.exists():  # searching a bucket that does not exist is an error
        return False
    # Orbax gives an incomplete checkpoint a longer name, or in a bucket, which cannot rename, no marker file.
    if in_bucket(workdir):
        return any(matching(folder, "[0-9]*/commit_success.txt"))
    return any(path.name.isdigit() for path in matching(folder, "[0-9]*"))


def read_settings(workdir: epath.Path) -> dict[str, Any] | None:
    """Return the content of `settings.json`, or None if it is missing or damaged."""
    try:
        facts = parse(read_text(workdir / "settings.json"))
        if facts.get("seal", seal(facts)) != seal(facts):  # runs of earlier versions have none
            print_once(f"{workdir / 'settings.json'} was edited after the run wrote it: using it as it is now.")
        update_keys(facts["config"])
        classes, numbers = facts["classes"], facts["category_ids"]
        named = isinstance(classes, list) and {type(name) for name in classes} == {str}
        numbered = [type(number) for number in numbers] == [int] * len(classes)
        once = len(set(classes)) == len(classes) == len(set(numbers))
        return facts if identity(facts["config"]) and named and numbered and once else None
    except DAMAGED:
        return None


def seal(facts: dict[str, Any]) -> int:
    """Return a checksum of config and classes, written with them to tell later if they were edited."""
    content = [facts["config"], facts["classes"], facts["category_ids"]]
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def update_keys(settings: dict[str, Any]) -> None:
    """Rename, in place, the keys that earlier versions recorded under other names, and add those that they lack."""
    section = settings["detector"]["proposal_network"].get("coarse_to_fine", {})
    for old, new in (("assign", "coarse_threshold"), ("assign_modes", "coarse_thresholds")):
        if old in section:
            section[new] = section.pop(old)
    for key, value in ADDED.items():
        *sections, name = key.split(".")
        section = functools.reduce(dict.__getitem__, sections, settings)
        section.setdefault(name, value)


def recorded(workdir: epath.Path) -> dict[str, Any]:
    """Return the content of `settings.json`. Raises `UserError` if it is missing or damaged."""
    facts = read_settings(workdir)
    if facts is None:
        raise UserError(
            f"No run in {workdir} (settings.json is missing or damaged): choose another --workdir, or train first "
            "(--mode=train)."
        )
    return facts


def check_same_run(workdir: epath.Path, settings: dict) -> None:
    """Raise `UserError` unless the run in the workdir has the same model, data, batch size and seed."""
    before, now = identity(recorded(workdir)["config"]), identity(settings)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{workdir} belongs to another run ({key} was {before.get(key)!r}, is {now.get(key)!r}): "
                "choose another --workdir."
            )


def check_same_classes(workdir: epath.Path, classes: Sequence[str]) -> None:
    """Raise `UserError` if the names or the order of classes differ from those that the run in the workdir learnt.

    A detector knows classes by position, so with other ones its detections would silently get wrong names.
    """
    facts = read_settings(workdir)
    learnt = facts["classes"] if facts else list(classes)
    if learnt == list(classes):
        return
    pairs = enumerate(zip(learnt, classes, strict=False), start=1)
    changed = (f"class {number} was {old!r}, is {new!r}" for number, (old, new) in pairs if old != new)
    differs = next(changed, f"{len(learnt)} classes before, {len(classes)} now")
    raise UserError(
        f"{workdir} was trained with other classes than the data have ({differs}): use data with the same classes in "
        "the same order, or choose another --workdir."
    )


def identity(settings: dict) -> dict[str, Any]:
    """Return the settings that have to stay the same when a run resumes, by their dotted keys."""
    section = settings["dataset"]
    data = {key: section[key] for key in ("name", "train_split", "batch_size", "image_size", "mean", "std")}
    if section.get("window_overlap") is not None:
        data |= {key: section[key] for key in ("window_overlap", "paint_regions", "stored_size")}
    data["grey_range"] = section.get("grey_range")  # missing in settings of older runs
    rule = {"name": settings["optimizer"]["name"]}  # each keeps something else in the state
    return flatten({"seed": settings["seed"], "dataset": data, "detector": settings["detector"], "optimizer": rule})


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Turn `{"a": {"b": 1}}` into `{"a.b": 1}`."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that results depend on."""

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def machine() -> dict[str, Any]:
    """Return the operating system and the devices of this process."""
    return {"platform": platform.platform(), "devices": [device.device_kind for device in jax.devices()]}


def git_revision() -> str:
    """Return the git commit of this package, with `-dirty` if files were changed, or "unknown" outside a checkout."""
    command = ["git", "-C", str(epath.Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
