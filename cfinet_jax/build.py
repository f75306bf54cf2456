"""What a run starts from: data, detector, optimizer and state of a config, on a mesh."""

import dataclasses
from typing import Any

import jax
import optax
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax import optimizer, pretrained, train_step
from cfinet_jax.config_values import check_numbers
from cfinet_jax.errors import UserError
from cfinet_jax.input import dataset
from cfinet_jax.input.batches import views
from cfinet_jax.input.sizes import OPEN, input_shape, room_for, with_sizes
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.models.detector import ROI_HEADS, Detector, build_detector
from cfinet_jax.models.resnet import frozen_parts
from cfinet_jax.preparation.builders import ensure_prepared
from cfinet_jax.restore import load_published, recorded_sizes
from cfinet_jax.runtime import mesh
from cfinet_jax.runtime.settings import has_learnt, read_settings
from cfinet_jax.structures import BOX_NUMBERS
from cfinet_jax.train_step import TrainState

FROZEN_AT_RANDOM = (
    "detector.backbone.frozen_stages would freeze random weights: name published ones with "
    "--config.training.pretrained=FILE, or train all with --config.detector.backbone.frozen_stages=-1 "
    "--config.detector.backbone.last_norm_scale=0.3."
)


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run before its first step."""

    mesh: Any
    training: dataset.Prepared
    evaluation: dataset.Prepared
    detector: Detector
    optimizer: optax.GradientTransformation
    state: TrainState


def discover(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """Return the config with everything that the data decide: sizes as `discover_sizes`, and the grey range.

    Raises:
      UserError: a value is out of its range, or the data cannot be opened.
    """
    config = discover_sizes(config, workdir)
    if greys := dataset.grey_range(config.dataset):
        print(f"dataset.grey_range {greys}: these values become black and white in pictures of more than 8 bits.")
        config = with_sizes(config, grey_range=greys)
    return config


def discover_sizes(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """The config with sizes where it leaves them open: those of the run in the workdir, or room for all of the data.

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
    # All splits, so that another `eval_split` is seen at the same size.
    splits = dataset.open_splits(settings)
    height, width = (max(sides) for sides in zip(*(split.largest_picture for split in splits.values()), strict=True))
    most = max(split.most_objects for split in splits.values())
    if settings.window_overlap is not None:
        seen = (views(split, settings, name == settings.train_split) for name, split in splits.items())
        most = max(len(objects.labels) for of_split in seen for _, objects in of_split)
    sizes = room_for((height, width), most)
    print(", ".join(f"dataset.{key} {sizes[key]}" for key in OPEN if settings[key] is None) + " hold all of it.")
    return with_sizes(config, **sizes)


def create_run(config: ConfigDict) -> Run:
    """Opens the data, builds the detector and creates its state at random."""
    settings = config.dataset
    over = mesh.make_mesh()
    check_batches(config, over.size)
    splits = dataset.open_splits(settings, settings.train_split, settings.eval_split)
    training, evaluation = splits[settings.train_split], splits[settings.eval_split]
    check_boxes(settings, training)
    detector, sgd = build(config, len(training.classes))
    key = mesh.replicate(jax.random.key(config.seed), over)  # so that every device makes its own copy of the state
    state = train_step.create_state(key, detector, sgd, input_shape(settings), settings.max_objects)
    return Run(over, training, evaluation, detector, sgd, mesh.replicate(state, over))


def build(config: ConfigDict, classes: int) -> tuple[Detector, optax.GradientTransformation]:
    """The detector and its optimizer, which leaves frozen parts as they are."""
    frozen = tuple(f"backbone/{part}" for part in frozen_parts(config.detector.backbone.frozen_stages))
    sgd = optimizer.make_optimizer(config.optimizer, config.dataset.batch_size, frozen)
    return build_detector(config.detector, classes), sgd


def first_state(config: ConfigDict, run: Run) -> TrainState:
    """The state a fresh run starts from: random but for the published weights that the config names."""
    variables = {"params": run.state.params, "batch_stats": run.state.batch_stats}
    loaded = pretrained.Loaded(variables, frozenset(pretrained.named(variables)), "")
    if config.training.pretrained:
        loaded = load_published(config, variables, run.training.classes)
    frozen = tuple(f"params/backbone/{part}" for part in frozen_parts(config.detector.backbone.frozen_stages))
    if any(name.startswith(frozen) for name in loaded.at_random):
        raise UserError(FROZEN_AT_RANDOM)
    return mesh.replicate(dataclasses.replace(run.state, **loaded.variables), run.mesh)


def check_values(config: ConfigDict) -> None:
    """What would otherwise fail far from here, the protocol only after hours."""
    check_numbers(config)
    check_windows(config.dataset)
    fitting = sorted(name for name, protocol in PROTOCOLS.items() if protocol.boxes == config.dataset.boxes)
    if not fitting:
        raise UserError(f"dataset.boxes is {config.dataset.boxes!r}: choose horizontal or oriented.")
    if config.evaluation.protocol not in fitting:
        raise UserError(
            f"evaluation.protocol is {config.evaluation.protocol!r}: choose one of {', '.join(fitting)}, "
            f"which score {config.dataset.boxes} boxes."
        )
    check_head(config)


def check_start(config: ConfigDict) -> None:
    """There are weights for what is frozen, as far as can be told without reading them."""
    if frozen_parts(config.detector.backbone.frozen_stages) and not config.training.pretrained:
        raise UserError(FROZEN_AT_RANDOM)


def check_head(config: ConfigDict) -> None:
    """The RoI head finds boxes of the kind that the config is for."""
    boxes, head = config.dataset.boxes, config.detector.roi_head.name
    heads = [name for name, each in ROI_HEADS.items() if each.numbers == BOX_NUMBERS[boxes]]
    if head not in heads:
        raise UserError(
            f"detector.roi_head.name is {head!r} and dataset.boxes {boxes!r}: choose one of {', '.join(heads)}, or "
            "another configuration, such as configs/sodad.py for horizontal or configs/sodaa.py for oriented boxes."
        )


def check_boxes(settings: ConfigDict, prepared: dataset.Prepared) -> None:
    """The boxes of the data set are what the config takes them for."""
    if prepared.boxes != settings.boxes:
        raise UserError(
            f"dataset.boxes is {settings.boxes}, but those of {settings.name} are {prepared.boxes}: choose another "
            f"data set (--config.dataset.name), or a configuration for {prepared.boxes} boxes."
        )


def check_windows(settings: ConfigDict) -> None:
    """Windows can be laid over a picture."""
    overlap = settings.window_overlap
    if overlap is None:
        return
    if settings.stored_size is None:
        raise UserError(
            "dataset.window_overlap cuts pictures into windows of dataset.stored_size: give it, "
            '--config.dataset.stored_size="(640, 640)".'
        )
    input_shape(settings)  # it is a size
    if overlap >= min(settings.stored_size):
        raise UserError(
            f"dataset.window_overlap is {overlap}: make it less than dataset.stored_size, which is "
            f"{settings.stored_size}."
        )


def check_batches(config: ConfigDict, devices: int) -> None:
    """Every device needs as many images as every other, in every micro-batch."""
    parts = devices * config.training.micro_batches
    if config.dataset.batch_size % parts:
        raise UserError(
            f"dataset.batch_size is {config.dataset.batch_size}: make it a multiple of {parts} "
            f"({devices} devices x {config.training.micro_batches} micro-batches)."
        )
    if config.dataset.eval_batch_size % devices:
        raise UserError(
            f"dataset.eval_batch_size is {config.dataset.eval_batch_size}: make it a multiple of {devices}."
        )
