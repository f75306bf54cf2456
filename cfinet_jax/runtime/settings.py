"""What a run writes beside its checkpoints: settings, versions, a line per event, TensorBoard, progress."""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.errors import Unwritable, UserError
from cfinet_jax.runtime.files import DAMAGED, replace_text
from cfinet_jax.runtime.paths import in_bucket, matching

BUCKET_PAUSE = 60  # seconds; a bucket takes one version of a file in a second, and all of it each time
PACKAGES = ("cfinet-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def write_settings(
    config: ConfigDict, workdir: epath.Path, classes: Sequence[str], category_ids: Sequence[int]
) -> None:
    """Writes the resolved config, classes, package versions, machine and git revision as `settings.json`.

    Raises `UserError` where another model has learnt in the workdir, `Unwritable` where it cannot be written.
    """
    path = workdir / "settings.json"
    settings = json.loads(config.to_json())
    facts = {"config": settings, "classes": list(classes), "category_ids": list(category_ids)}
    facts |= {"versions": versions(), "machine": machine(), "revision": git_revision()}
    try:
        if has_learnt(workdir):
            check_same_run(path, settings)
            check_same_classes(workdir, classes)
        workdir.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(facts, indent=1, sort_keys=True))
    except OSError as error:
        raise Unwritable(f"{workdir} cannot be written ({error}): choose another --workdir.") from error


def has_learnt(workdir: epath.Path) -> bool:
    """Whether there is a checkpoint in the workdir; one that is half-written has a longer name, in a bucket no mark."""
    folder = workdir / "checkpoints"
    if not folder.exists():  # to look into a bucket that is not there is an error
        return False
    if in_bucket(workdir):
        return any(matching(folder, "[0-9]*/commit_success.txt"))
    return any(path.name.isdigit() for path in matching(folder, "[0-9]*"))


def read_settings(workdir: epath.Path) -> dict[str, Any] | None:
    """What `write_settings` wrote; None where there is nothing, or not all of it."""
    try:
        facts = json.loads((workdir / "settings.json").read_text())
        rename_keys(facts["config"])
        named = isinstance(facts["classes"], list) and {type(name) for name in facts["classes"]} == {str}
        numbered = [type(number) for number in facts["category_ids"]] == [int] * len(facts["classes"])
        return facts if identity(facts["config"]) and named and numbered else None
    except DAMAGED:
        return None


def rename_keys(settings: dict[str, Any]) -> None:
    """Rename, in place, the keys that runs of earlier versions recorded under other names."""
    section = settings["detector"]["proposal_network"].get("coarse_to_fine", {})
    for old, new in (("assign", "coarse_threshold"), ("assign_modes", "coarse_thresholds")):
        if old in section:
            section[new] = section.pop(old)


def check_same_run(path: epath.Path, settings: dict) -> None:
    """The run that left `settings.json` had the same model, data, batch size and seed."""
    facts = read_settings(path.parent)
    if facts is None:
        raise UserError(f"{path} is missing or damaged, so the model is unknown: choose another --workdir.")
    before, now = identity(facts["config"]), identity(settings)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        key = changed[0]
        raise UserError(
            f"{path.parent} belongs to another run ({key} was {before.get(key)!r}, is {now.get(key)!r}): "
            "choose another --workdir."
        )


def check_same_classes(workdir: epath.Path, classes: Sequence[str]) -> None:
    """Refuse data whose class names, or their order, differ from those that the run in the workdir has learnt.

    A detector knows its classes by their places: with others its detections would silently get wrong names.
    """
    facts = read_settings(workdir)
    learnt = facts["classes"] if facts else list(classes)
    if learnt == list(classes):
        return
    pairs = enumerate(zip(learnt, classes, strict=False), start=1)
    changed = (f"class {number} was {old!r}, is {new!r}" for number, (old, new) in pairs if old != new)
    differs = next(changed, f"{len(learnt)} classes then, {len(classes)} now")
    raise UserError(
        f"{workdir} has learnt other classes than the data have ({differs}): use data with the same classes in the "
        "same order, or choose another --workdir."
    )


def identity(settings: dict) -> dict[str, Any]:
    """What may not change between the parts of one run: a checkpoint counts its steps in batches of its data."""
    section = settings["dataset"]
    data = {key: section[key] for key in ("name", "train_split", "batch_size", "image_size", "mean", "std")}
    if section.get("window_overlap") is not None:
        data |= {key: section[key] for key in ("window_overlap", "paint_regions", "stored_size")}
    data["grey_range"] = section.get("grey_range")  # older runs do not say it
    return flatten({"seed": settings["seed"], "dataset": data, "detector": settings["detector"]})


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def machine() -> dict[str, Any]:
    """The devices this process computes on."""
    return {"platform": platform.platform(), "devices": [device.device_kind for device in jax.devices()]}


def git_revision() -> str:
    """The commit this package was run from, marked if files were changed; "unknown" outside a checkout."""
    command = ["git", "-C", str(epath.Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
