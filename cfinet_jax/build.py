"""Build what a config describes: data, detector, optimizer and initial state, on a mesh."""

import dataclasses

import jax
import optax
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax import optimizer, pretrained, train_step
from cfinet_jax.config_checks import check_batches, check_values
from cfinet_jax.errors import UserError
from cfinet_jax.input import dataset
from cfinet_jax.input.batches import views
from cfinet_jax.input.sizes import OPEN, input_shape, room_for, with_sizes
from cfinet_jax.models.detector import Detector, build_detector
from cfinet_jax.models.resnet import frozen_parts
from cfinet_jax.preparation.builders import ensure_prepared
from cfinet_jax.restore import load_published, recorded_sizes
from cfinet_jax.runtime import mesh
from cfinet_jax.runtime.settings import has_learnt, read_settings
from cfinet_jax.train_step import TrainState, with_average

FROZEN_AT_RANDOM = (
    "detector.backbone.frozen_stages would freeze random weights: name pretrained ones with "
    "--config.training.pretrained=FILE, or train all with --config.detector.backbone.frozen_stages=-1 "
    "--config.detector.backbone.last_norm_scale=0.3."
)


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run before its first step."""

    mesh: mesh.Mesh
    training: dataset.Prepared
    evaluation: dataset.Prepared
    detector: Detector
    optimizer: optax.GradientTransformation
    state: TrainState


def discover(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """Return the config with what it leaves to the data: sizes (see `discover_sizes`) and the range of grey values.

    Raises:
      UserError: a value is out of its range, or the data cannot be opened.
    """
    config = discover_sizes(config, workdir)
    if greys := dataset.grey_range(config.dataset):
        print(f"dataset.grey_range {greys}: these values become black and white in pictures of more than 8 bits.")
        config = with_sizes(config, grey_range=greys)
    return config


def discover_sizes(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """Return the config with the sizes that it leaves open: those of the run in the workdir, or what all data need.

    Raises:
      UserError: a value is out of its range, or the data cannot be opened.
    """
    if has_learnt(workdir) and (facts := read_settings(workdir)) is not None:
        config = with_sizes(config, **recorded_sizes(facts))
    check_values(config)
    ensure_prepared(config.dataset)
    settings = config.dataset
    if all(settings[key] is not None for key in OPEN):
        return config
    # From all splits, so that the size does not depend on `eval_split`.
    splits = dataset.open_splits(settings)
    height, width = (max(sides) for sides in zip(*(split.largest_picture for split in splits.values()), strict=True))
    most = max(split.most_objects for split in splits.values())
    if settings.window_overlap is not None:
        seen = (views(split, settings, name == settings.train_split) for name, split in splits.items())
        most = max(len(objects.labels) for of_split in seen for _, objects in of_split)
    sizes = room_for((height, width), most)
    print(", ".join(f"dataset.{key} {sizes[key]}" for key in OPEN if settings[key] is None) + ", from the data.")
    return with_sizes(config, **sizes)


def check_boxes(settings: ConfigDict, prepared: dataset.Prepared) -> None:
    """Raise `UserError` if a data set does not have the kind of boxes that the config (section `dataset`) is for."""
    if prepared.boxes != settings.boxes:
        raise UserError(
            f"dataset.boxes is {settings.boxes}, but {settings.name} has {prepared.boxes} boxes: choose another "
            f"data set (--config.dataset.name), or a config for {prepared.boxes} boxes."
        )


def create_run(config: ConfigDict) -> Run:
    """Open the data, build the detector and create a random state."""
    settings = config.dataset
    over = mesh.make_mesh()
    check_batches(config, over.size)
    splits = dataset.open_splits(settings, settings.train_split, settings.eval_split)
    training, evaluation = splits[settings.train_split], splits[settings.eval_split]
    check_boxes(settings, training)
    detector, sgd = build(config, len(training.classes))
    key = mesh.replicate(jax.random.key(config.seed), over)  # so that every device computes the state itself
    state = train_step.create_state(key, detector, sgd, input_shape(settings), settings.max_objects)
    return Run(over, training, evaluation, detector, sgd, mesh.replicate(state, over))


def build(config: ConfigDict, classes: int) -> tuple[Detector, optax.GradientTransformation]:
    """Return the detector and its optimizer, which does not update frozen parts."""
    frozen = tuple(f"backbone/{part}" for part in frozen_parts(config.detector.backbone.frozen_stages))
    sgd = optimizer.make_optimizer(config, frozen)
    return build_detector(config.detector, classes), sgd


def first_state(config: ConfigDict, run: Run) -> TrainState:
    """Return the initial state: random, except for the pretrained weights that the config names."""
    variables = run.state.variables
    loaded = pretrained.Loaded(variables, frozenset(pretrained.named(variables)), "")
    if config.training.pretrained:
        loaded = load_published(config, variables, run.training.classes)
    frozen = tuple(f"params/backbone/{part}" for part in frozen_parts(config.detector.backbone.frozen_stages))
    if any(name.startswith(frozen) for name in loaded.at_random):
        raise UserError(FROZEN_AT_RANDOM)
    state = dataclasses.replace(run.state, **loaded.variables)
    return mesh.replicate(with_average(state, config.training.average_decay is not None), run.mesh)


def check_start(config: ConfigDict) -> None:
    """Raise `UserError` if parts are frozen and no weights are named, as far as can be told without reading them."""
    if frozen_parts(config.detector.backbone.frozen_stages) and not config.training.pretrained:
        raise UserError(FROZEN_AT_RANDOM)
