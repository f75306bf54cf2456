"""A study as data: rows that change a few settings of one experiment, and what the paper says of them."""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from cfinet_jax.errors import UserError
from cfinet_jax.named_configs import configs_folder
from cfinet_jax.runtime.paths import user_path
from cfinet_jax.runtime.settings import flatten

STUDIES = "configs/ablations.py"  # where a study is looked for unless a file is named

OF_NO_EFFECT = (  # on what a run of some seed learns and scores: they make no other experiment
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
    """A line of a table."""

    name: str
    changes: Mapping[str, Any]  # key of the configuration -> value
    published: Mapping[str, float] = {}  # score -> percent in the paper, by the name of the score here


class Study(NamedTuple):
    """A table or a figure: its rows are trained alike, from the same seeds, and compared with the first one."""

    title: str
    rows: tuple[Row, ...]
    note: str = ""
    measure: Literal["AP", "proposals/AR300", "anchors"] = "AP"  # anchors: nothing is trained, the data are looked at
    quoted: tuple[Row, ...] = ()  # of the paper, not built here
    published_on: str = "sodad"  # the data set on whose test split the paper's numbers are
    boxes: str | None = None  # what `dataset.boxes` of the experiment has to be; None: anything

    def stands_beside(self, settings: ConfigDict) -> bool:
        """Whether scores with this section `dataset` are of what the paper's are of; elsewhere they are context."""
        return (settings.name, settings.eval_split) == (self.published_on, "test")


def load_study(name: str, config: ConfigDict) -> Study:
    """The study NAME of `configs/ablations.py`, or FILE:NAME; its rows may depend on the experiment.

    Raises:
      UserError: there is no such file or study, it is for other boxes, or its rows are no runs of their own.
    """
    path, _, name = name.rpartition(":")
    path = user_path(path) if path else configs_folder() / "ablations.py"
    if not path.exists():
        raise UserError(f"--study: there is no file {path}: give FILE.py:NAME, or one of {STUDIES} by its name.")
    spec = importlib.util.spec_from_file_location("studies", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--study: {path} does not end in .py: give FILE.py:NAME.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        studies = module.get_studies(config)
    except Exception as error:  # of the user's own Python
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"--study: {path} has no function get_studies(config) that works ({reason}): write one as in {STUDIES}."
        ) from error
    if name not in studies:
        raise UserError(f"--study: {path} has no study {name!r}: choose one of {', '.join(studies)}.")
    study = studies[name]
    if study.boxes not in (None, config.dataset.boxes):
        raise UserError(
            f"{name} wants {study.boxes} boxes: give an experiment with them, as --config=configs/sodaa.py."
        )
    check_rows(study, name, config)
    return study


def check_rows(study: Study, name: str, config: ConfigDict) -> None:
    """Rows are told apart by their names and by what they change, and leave the seed alone.

    Raises `UserError` for the first one that does not, or that cannot be set.
    """
    names, experiments = set(), {}
    for row in study.rows:
        if row.name in names:
            raise UserError(f"{name} has two rows {row.name!r}: rename one of them.")
        names.add(row.name)
        if "seed" in row.changes:
            raise UserError(
                f"The row {row.name!r} of {name} sets seed: leave it out, for all rows are run from the same seeds, "
                "--seeds=NUMBER of them from --config.seed on."
            )
        same = experiments.setdefault(digest(config_of(row, config)), row.name)
        if same != row.name and study.measure != "anchors":
            raise UserError(
                f"The rows {same!r} and {row.name!r} of {name} are the same experiment with this --config: give "
                "another one, or leave out a row."
            )


def config_of(row: Row, config: ConfigDict) -> ConfigDict:
    """The experiment with a row's changes. Raises `UserError` for a key that it does not have."""
    changed = ConfigDict(config.copy_and_resolve_references()).lock()
    try:
        changed.update_from_flattened_dict(row.changes)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"The row {row.name!r} of the study cannot be set: {error.args[0]}") from error
    return changed


def digest(config: ConfigDict) -> str:
    """A name for an experiment by what has an effect: rows of several studies that are equal are trained once."""
    settings = {key: value for key, value in flatten(json.loads(config.to_json())).items() if key not in OF_NO_EFFECT}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
