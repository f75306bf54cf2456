"""Study as data: rows that change a few settings of one experiment, with the scores that the paper gives for them."""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from cfinet_jax.errors import UserError
from cfinet_jax.named_configs import configs_folder
from cfinet_jax.runtime.paths import user_path
from cfinet_jax.runtime.settings import ADDED, flatten

STUDIES = "configs/ablations.py"  # has the studies that are named without a file

OF_NO_EFFECT = (  # settings that change nothing in what a run learns and scores
    "seed",
    "dataset.read_threads",
    "training.on_nonfinite",
    "training.log_every_images",
    "training.checkpoint_every_images",
    "training.keep_checkpoints",
    "evaluation.overlays",
    "evaluation.overlay_min_score",
    "prediction.overlap",
    "prediction.min_score",
)


class Row(NamedTuple):
    """Line of a table."""

    name: str
    changes: Mapping[str, Any]  # key of the configuration -> value
    published: Mapping[str, float] = {}  # the paper's scores in percent, by their names here


class Study(NamedTuple):
    """Table or figure: its rows are trained from the same seeds and compared with the first one."""

    title: str
    rows: tuple[Row, ...]
    note: str = ""
    measure: Literal["AP", "proposals/AR300", "anchors"] = "AP"  # anchors: nothing is trained
    quoted: tuple[Row, ...] = ()  # rows of the paper that are not built here
    published_on: str = "sodad"  # the data set whose test split the paper scored
    boxes: str | None = None  # the `dataset.boxes` that it needs; None: any

    def has_data_of_paper(self, settings: ConfigDict) -> bool:
        """Return whether this section `dataset` scores the split that the paper scored."""
        return (settings.name, settings.eval_split) == (self.published_on, "test")


def load_study(name: str, config: ConfigDict) -> Study:
    """Return the study NAME of `configs/ablations.py`, or FILE:NAME; its rows may depend on the experiment.

    Raises:
      UserError: if there is no such file or study, it needs other boxes, or its rows cannot be compared.
    """
    path, _, name = name.rpartition(":")
    path = user_path(path) if path else configs_folder() / "ablations.py"
    if not path.exists():
        raise UserError(f"--study names {path}, which does not exist: give FILE.py:NAME, or a name from {STUDIES}.")
    spec = importlib.util.spec_from_file_location("studies", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--study names {path}, which does not end in .py: give FILE.py:NAME.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        studies = module.get_studies(config)
    except Exception as error:  # of the user's own Python
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"get_studies(config) of {path} is missing or failed ({reason}): write one as in {STUDIES}."
        ) from error
    if name not in studies:
        raise UserError(f"--study: {path} has no study {name!r}: choose one of {', '.join(studies)}.")
    study = studies[name]
    if study.boxes not in (None, config.dataset.boxes):
        raise UserError(
            f"{name} needs {study.boxes} boxes: use an experiment with them, such as --config=configs/sodaa.py."
        )
    check_rows(study, name, config)
    return study


def check_rows(study: Study, name: str, config: ConfigDict) -> None:
    """Raise `UserError` if two rows have the same name or settings, or if one sets the seed or cannot be set."""
    names, experiments = set(), {}
    for row in study.rows:
        if row.name in names:
            raise UserError(f"{name} has two rows {row.name!r}: rename one of them.")
        names.add(row.name)
        if "seed" in row.changes:
            raise UserError(
                f"The row {row.name!r} of {name} sets seed: leave it out. All rows run from the same --seeds=NUMBER "
                "seeds, starting at --config.seed."
            )
        same = experiments.setdefault(digest(config_of(row, config)), row.name)
        if same != row.name and study.measure != "anchors":
            raise UserError(
                f"The rows {same!r} and {row.name!r} of {name} are the same experiment with this --config: use "
                "another one, or leave out a row."
            )


def config_of(row: Row, config: ConfigDict) -> ConfigDict:
    """Return the experiment with a row's changes. Raises `UserError` for a key or value that it cannot take."""
    changed = ConfigDict(config.copy_and_resolve_references()).lock()
    try:
        changed.update_from_flattened_dict(row.changes)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"The row {row.name!r} of the study cannot be set: {error.args[0]}") from error
    return changed


def digest(config: ConfigDict) -> str:
    """Return a name for an experiment, by the settings that have an effect, so that equal rows are trained once."""
    settings = {key: value for key, value in flatten(json.loads(config.to_json())).items() if key not in OF_NO_EFFECT}
    for key, off in ADDED.items():  # so that studies of earlier versions are found again
        if key in settings and settings[key] == off:
            del settings[key]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
