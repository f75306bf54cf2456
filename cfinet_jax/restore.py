"""Load a trained detector from the newest checkpoint of a workdir, or from a file of published weights."""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax import checkpoint, optimizer, pretrained, train_step
from cfinet_jax.config_checks import check_numbers
from cfinet_jax.errors import UserError
from cfinet_jax.input.sizes import OPEN, input_shape, preparation, with_sizes
from cfinet_jax.models.detector import Detector, build_detector
from cfinet_jax.ops import preprocess
from cfinet_jax.runtime import mesh
from cfinet_jax.runtime.paths import user_path
from cfinet_jax.runtime.settings import check_same_classes, flatten, has_learnt, recorded
from cfinet_jax.structures import Batch, Detections, Proposals
from cfinet_jax.train_step import TrainState

# Settings that may differ between training and inference.
FREE = re.compile(
    r"precision|frozen_stages|min_score|nms_overlap|max_detections|max_proposals|max_class_exemplars|\.test\.|\.train\."
)

Detect = Callable[[Any, Batch], tuple[Detections, Proposals]]


class Trained(NamedTuple):
    """A detector with its trained variables and the classes it knows."""

    detector: Detector
    variables: dict[str, Any]  # params and batch_stats
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]


def open_trained(workdir: epath.Path, config: ConfigDict | None = None) -> tuple[Trained, ConfigDict]:
    """Load the detector of a workdir; the data set is not needed.

    Args:
      workdir: folder of a run.
      config: None for the config of the run.

    Returns:
      The detector, and the config with the sizes of the run.

    Raises:
      UserError: there is no run in the workdir, or it cannot be used with this config.
    """
    facts = recorded(workdir)
    classes, category_ids = tuple(facts["classes"]), tuple(facts["category_ids"])
    used = recorded_config(facts) if config is None else with_sizes(config, **recorded_sizes(facts))
    check_numbers(used)
    seen, learnt = used.dataset.stored_size, recorded_sizes(facts)["stored_size"]
    if learnt is not None and any(side < before for side, before in zip(seen, learnt, strict=False)):
        raise UserError(f"dataset.stored_size is {seen}, but {workdir} was trained with {learnt}: give at least that.")
    detector = build_detector(used.detector, len(classes))
    variables = trained_variables(used, detector, classes, workdir)
    return Trained(detector, variables, classes, category_ids), used


def recorded_config(facts: dict[str, Any]) -> ConfigDict:
    """Return the config in the settings of a run."""
    return ConfigDict(with_tuples(facts["config"]))


def recorded_sizes(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes, windows and grey range in the settings of a run, which another config may leave open."""
    return {key: with_tuples(facts["config"]["dataset"].get(key)) for key in (*OPEN, "window_overlap", "grey_range")}


def with_tuples(tree: Any) -> Any:
    """Turn the lists in a tree read from JSON back into the tuples that they were."""
    if isinstance(tree, dict):
        return {key: with_tuples(value) for key, value in tree.items()}
    return tuple(map(with_tuples, tree)) if isinstance(tree, list) else tree


def trained_variables(
    config: ConfigDict, detector: Detector, classes: Sequence[str], workdir: epath.Path
) -> dict[str, Any]:
    """Load the variables of the newest checkpoint of a workdir, or else of the published detector in the config."""
    template = state_shapes(config, detector, mesh.make_mesh())
    with checkpoint.open_checkpoints(workdir, create=False) as checkpoints:
        restored = checkpoint.restore(checkpoints, template)
    if restored is not None:
        check_same_model(workdir, config)
        check_same_classes(workdir, classes)
        averaged = "" if restored[0].average is None else ", the average of its parameters"
        print(f"Checkpoint {int(restored[0].step):,} of {workdir}{averaged}.", flush=True)
        return restored[0].evaluated
    if config.training.pretrained:
        loaded = load_published(config, template.variables, classes)
        if not loaded.at_random:
            return loaded.variables
    raise UserError(
        f"No checkpoint in {workdir}: train first (--mode=train), choose another --workdir, or name a whole detector "
        "with --config.training.pretrained=FILE."
    )


def check_same_model(workdir: epath.Path, config: ConfigDict) -> None:
    """Raise `UserError` unless the checkpoint in a workdir was trained as the model of this config; see `FREE`."""
    trained, settings = recorded(workdir)["config"], json.loads(config.to_json())
    before, now = of_model(trained), of_model(settings)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not FREE.search(key):
            raise UserError(
                f"{workdir} was trained with {key} = {before.get(key)!r}, but this config has {now.get(key)!r}: use "
                "the config that it was trained with."
            )
    scale, used = trained["dataset"]["image_size"], settings["dataset"]["image_size"]
    if scale != used:
        print(f"Trained with dataset.image_size = {scale}; using {used} now.", flush=True)


def of_model(settings: dict) -> dict[str, Any]:
    """Return the settings that define a model, by their dotted keys."""
    pictures = {key: settings["dataset"][key] for key in ("mean", "std")}
    return flatten({"dataset": pictures, "detector": settings["detector"]})


def state_shapes(config: ConfigDict, detector: Detector, over: mesh.Mesh) -> TrainState:
    """Return the shapes of a run's state, replicated on every device."""
    sgd = optimizer.make_optimizer(config, ())
    shape, most = input_shape(config.dataset), config.dataset.max_objects

    def create(key: jax.Array) -> TrainState:
        state = train_step.create_state(key, detector, sgd, shape, most)
        return train_step.with_average(state, config.training.average_decay is not None)

    return mesh.shapes(jax.eval_shape(create, jax.random.key(0)), over, mesh.EVERYWHERE)


def load_published(config: ConfigDict, variables: dict[str, Any], classes: Sequence[str]) -> pretrained.Loaded:
    """Put the weights that the config names into the variables, and print which were used.

    They are those of a file or of a run, of which everything is taken that fits.
    """
    source, settings = config.training.pretrained, config.training
    choices = {
        "stride_style": config.detector.backbone.stride_style,
        "classes": classes,
        "mean": config.dataset.mean,
        "std": config.dataset.std,
        "parts": settings.pretrained_parts,
    }
    if "://" not in source.removeprefix("gs://") and (folder := user_path(source)).is_dir():
        loaded = pretrained.fill(weights_of_run(folder, classes), source, variables, partial=True, **choices)
    else:
        loaded = pretrained.load(source, variables, partial=settings.pretrained_partial, **choices)
    print(loaded.account, flush=True)
    return loaded


def weights_of_run(workdir: epath.Path, classes: Sequence[str]) -> pretrained.Published:
    """Return the weights of a trained run, without what only its classes fit if `classes` are others.

    Raises:
      UserError: there is no checkpoint in the workdir, or it cannot be restored.
    """
    if not has_learnt(workdir):  # looked for before it is opened, since it may be the folder of this very run
        raise UserError(
            f"{workdir} is a folder without a checkpoint: give the workdir of a trained run, or a file of weights."
        )
    trained, config = open_trained(workdir)
    arrays = {name: np.asarray(leaf) for name, leaf in pretrained.named(trained.variables).items()}
    of_classes = {"classify"} | ({"regress"} if trained.detector.roi_head.shapes > 1 else set())
    left_out = (
        {}
        if trained.classes == tuple(classes)
        else {name: "rows of other classes" for name in arrays if of_classes & set(name.split("/"))}
    )
    return pretrained.Published(
        {name: array for name, array in arrays.items() if name not in left_out},
        left_out,
        "cfinet_jax",
        config.detector.backbone.stride_style,
        None,
        config.dataset.mean,
        config.dataset.std,
    )


def detection(detector: Detector, settings: ConfigDict) -> Detect:
    """Return the function (variables, batch of the host) -> detections and proposals in stored pixels.

    `settings` is the section `dataset` of the config.
    """
    prepare = preparation(settings)

    def detect(variables: Any, batch: Batch) -> tuple[Detections, Proposals]:
        batch = prepare(batch, jnp.zeros(batch.index.shape, bool))
        outputs: Any = detector.apply(variables, batch, method="detect")
        restore = jax.vmap(preprocess.restore_boxes)
        found, proposals = (dataclasses.replace(each, boxes=restore(each.boxes, batch.scales)) for each in outputs)
        return found, proposals

    return detect
