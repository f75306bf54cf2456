"""The detector: two stages and feature imitation, for training (`losses`) and for detection (`detect`)."""

import dataclasses
from collections.abc import Collection
from typing import Any, Literal, get_args, get_origin

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from cfinet_jax.boxes import kinds
from cfinet_jax.boxes.similarity import SIMILARITIES
from cfinet_jax.errors import UserError
from cfinet_jax.models.feature_imitation import FeatureImitation
from cfinet_jax.models.fpn import FPN
from cfinet_jax.models.proposals import PROPOSAL_NETWORKS, ROTATED_PROPOSAL_NETWORKS
from cfinet_jax.models.proposals.assigners import RULES
from cfinet_jax.models.resnet import ResNet
from cfinet_jax.models.roi_head import RoiHead
from cfinet_jax.models.rotated_roi_head import OrientedRoiHead, RotatedRoiHead
from cfinet_jax.ops import exemplar_memory
from cfinet_jax.ops.imitation import QUALITIES
from cfinet_jax.structures import Batch, Detections, ExemplarMemory, Exemplars, Priorities, Proposals, Term

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
TABLES = ("similarities", "assigners")  # of constants, from which a proposal network takes rows by name
ROI_HEADS = {"horizontal": RoiHead, "rotated": RotatedRoiHead, "oriented": OrientedRoiHead}
PARTS = {"backbone", "neck", "proposal_network", "roi_head", "imitation"}


class Detector(nn.Module):
    """Backbone, pyramid, proposal network, RoI head and, if objects are to imitate exemplars, that."""

    backbone: nn.Module
    neck: nn.Module
    proposal_network: nn.Module
    roi_head: RoiHead
    imitation: FeatureImitation | None
    precision: str

    def losses(
        self, batch: Batch, memory: ExemplarMemory | None, priorities: Priorities
    ) -> tuple[dict[str, Term], dict[str, Term], Exemplars | None]:
        """Losses and statistics as terms per image `[batch]`, and the exemplars each image offers."""
        batch = enclose(batch)  # upright boxes for all but what is learnt last
        pyramid = self.pyramid(batch.images)
        # Stage one: where might an object be?
        outputs = self.proposal_network(pyramid, batch.sizes)
        first = self.proposal_network.losses(outputs, batch, priorities)
        proposals = self.proposal_network.choose(outputs, batch.sizes, batch.scales, "train")
        # Stage two: what is it, and where exactly?
        samples = self.roi_head.sample(proposals, batch.ground_truth, priorities.rois)
        regions, compressed = self.regions(pyramid, samples.boxes)
        predictions = self.roi_head(regions)
        second = self.roi_head.losses(predictions, samples, batch)
        terms = [name_parts("proposals", first), name_parts("roi", second)]
        # Feature imitation: make hard objects look like good ones.
        exemplars = None
        if self.imitation is not None and compressed is not None and memory is not None:
            grades = self.imitation.grade(predictions, samples, batch, self.roi_head.stds)
            jittered = self.roi_head.pool(jax.lax.stop_gradient(pyramid), self.imitation.jittered_boxes(grades, batch))
            jittered = jittered.reshape(*grades.chosen.shape, self.imitation.jitters, *jittered.shape[2:])
            third = self.imitation.losses(compressed, jittered, grades, samples, batch.ground_truth, memory, priorities)
            terms.append(name_parts("imitation", third))
            exemplars = self.imitation.exemplars(regions, grades, batch.ground_truth)
        losses, statistics = ({k: v for part in parts for k, v in part.items()} for parts in zip(*terms, strict=True))
        return losses, statistics, exemplars

    def detect(self, batch: Batch) -> tuple[Detections, Proposals]:
        """What is found in every image, and the upright proposals it is found among, in network pixels."""
        pyramid = self.pyramid(batch.images)
        outputs = self.proposal_network(pyramid, batch.sizes)
        proposals = self.proposal_network.choose(outputs, batch.sizes, batch.scales, "test")
        regions, _ = self.regions(pyramid, proposals.boxes, detecting=True)
        found = self.roi_head.detect(self.roi_head(regions), proposals, batch.sizes)
        return found, dataclasses.replace(proposals, boxes=kinds.enclose(proposals.boxes))

    def pyramid(self, images: Array) -> tuple[Array, ...]:
        """The feature maps, in the precision of the network."""
        return self.neck(self.backbone(images.astype(PRECISIONS[self.precision])))

    def regions(self, pyramid: tuple[Array, ...], boxes: Array, detecting: bool = False) -> tuple[Array, Array | None]:
        """RoI features as the head sees them, and their compressed vectors where imitation wants them."""
        regions = self.roi_head.pool(pyramid, boxes)
        if self.imitation is None or (detecting and not self.imitation.reweight):
            return regions, None
        compressed = self.imitation.compress(regions)
        if self.imitation.reweight:
            regions = self.imitation.emphasise(regions, compressed)
        return regions, compressed

    def empty_memory(self) -> ExemplarMemory | None:
        """The memory of a run that has seen nothing; None without imitation."""
        if self.imitation is None:
            return None
        return exemplar_memory.empty_memory(
            self.roi_head.classes, self.imitation.slots, self.roi_head.pool_size, self.neck.channels
        )

    def draw_priorities(self, key: Array, index: Array, shape: tuple[int, int], max_objects: int) -> Priorities:
        """Random priorities for the images of a step, folded by their `index` in the global batch.

        `shape` is the network's input (height, width).
        """
        anchors = self.proposal_network.count_anchors(shape, self.neck.levels)
        regions = max_objects + self.proposal_network.proposals["max_proposals"]
        slots = candidates = 1
        if self.imitation is not None:
            slots = self.imitation.slots
            candidates = self.roi_head.samples + self.imitation.remembered_negatives(self.roi_head.classes)

        def of_image(index: Array) -> Priorities:
            keys = jax.random.split(jax.random.fold_in(key, index), 4)
            shapes = ((anchors,), (regions,), (max_objects, slots), (max_objects, candidates))
            return Priorities(*(jax.random.uniform(key, shape) for key, shape in zip(keys, shapes, strict=True)))

        return jax.vmap(of_image)(index)


def enclose(batch: Batch) -> Batch:
    """A batch whose objects have upright boxes: those around oriented ones, which then stand beside them."""
    truth = batch.ground_truth
    if truth.boxes.shape[-1] == 4:
        return batch
    truth = dataclasses.replace(truth, boxes=kinds.enclose(truth.boxes), oriented=truth.boxes)
    return dataclasses.replace(batch, ground_truth=truth)


def name_parts(part: str, terms: tuple[dict, dict]) -> tuple[dict, dict]:
    """Both dictionaries with the name of the part before every key."""
    return tuple({f"{part}/{name}": term for name, term in of.items()} for of in terms)  # type: ignore[return-value]


def build_detector(settings: Any, classes: int) -> Detector:
    """The detector of the config section `detector` (a ConfigDict).

    Raises `UserError` for a key that no part knows, one that is missing, and a choice that does not exist.
    """
    settings = settings.to_dict()
    check_keys("detector", settings, {"precision", "ignore_overlap", *TABLES} | PARTS)
    network, roi_head, imitation = settings["proposal_network"], settings["roi_head"], settings["imitation"]
    name, head, enabled = network["name"], roi_head.pop("name", None), imitation.pop("enabled")
    check_choice("detector.precision", settings["precision"], PRECISIONS)
    check_choice("detector.roi_head.name", head, ROI_HEADS)
    networks = PROPOSAL_NETWORKS | (ROTATED_PROPOSAL_NETWORKS if head != "horizontal" else {})
    check_choice("detector.proposal_network.name", name, networks)
    check_oriented(name, head, enabled)
    if "assign" in network[name]:
        check_choice(f"detector.proposal_network.{name}.assign", network[name]["assign"], network[name]["assign_modes"])
    check_rows(name, network[name], settings)
    if enabled:
        check_choice("detector.imitation.quality", imitation.get("quality"), QUALITIES)
    common = {"ignore_overlap": settings["ignore_overlap"]}
    tables = {table: settings[table] for table in TABLES}
    return Detector(
        backbone=build(ResNet, "backbone", settings["backbone"]),
        neck=build(FPN, "neck", settings["neck"]),
        proposal_network=build(networks[name], f"proposal_network.{name}", network[name], **common, **tables),
        roi_head=build(ROI_HEADS[head], "roi_head", roi_head, classes=classes, **common),
        imitation=build(FeatureImitation, "imitation", imitation) if enabled else None,
        precision=settings["precision"],
    )


def check_oriented(network: str, head: str, imitates: bool) -> None:
    """Oriented regions have a network that proposes them, and no exemplars, which are upright."""
    if (network == "oriented_rpn") != (head == "oriented"):
        raise UserError(
            f"detector.roi_head.name is {head!r} and detector.proposal_network.name {network!r}: 'oriented' and "
            "'oriented_rpn' go together, as in configs/sodaa.py:oriented_rcnn."
        )
    if head == "oriented" and imitates:
        raise UserError(
            "detector.imitation compares upright regions: set detector.imitation.enabled=False for the head 'oriented'."
        )


def check_rows(name: str, network: dict[str, Any], settings: dict[str, Any]) -> None:
    """The tables have the rows that the network `name` takes, and their rules and similarities exist."""
    similarities, assigners = (settings[table] for table in TABLES)
    for row in similarities:
        check_choice("A row of detector.similarities", row, SIMILARITIES)
    for row, constants in assigners.items():
        check_choice(f"detector.assigners.{row}.rule", constants.get("rule"), RULES)
        check_choice(f"detector.assigners.{row}.similarity", constants.get("similarity"), similarities)
    section = f"detector.proposal_network.{name}"
    if "assigner" in network:
        check_choice(f"{section}.assigner", network["assigner"], assigners)
    if "proposals" in network:
        check_choice(f"{section}.proposals.nms_similarity", network["proposals"].get("nms_similarity"), similarities)


def build(part: type[nn.Module], section: str, settings: dict[str, Any], **others: Any) -> Any:
    """A part from its section of the config; `others` are fields that stand elsewhere."""
    fields = {field.name: field.type for field in dataclasses.fields(part)}
    check_keys(f"detector.{section}", settings, fields.keys() - {"parent", "name", *others})
    for key, kind in fields.items():
        if get_origin(kind) is Literal:
            check_choice(f"detector.{section}.{key}", settings[key], get_args(kind))
    return part(**settings, **others)


def check_keys(section: str, settings: Collection[str], known: Collection[str]) -> None:
    """A section has exactly the keys that are known."""
    for key in settings:
        if key not in known:
            raise UserError(f"{section} has no key {key!r}: choose from {', '.join(sorted(known))}.")
    for key in known:
        if key not in settings:
            raise UserError(f"{section} lacks the key {key!r}: set it, as configs/sodad.py or configs/sodaa.py does.")


def check_choice(key: str, value: Any, choices: Collection[Any]) -> None:
    """A value is one of those there are."""
    if value not in choices:
        raise UserError(f"{key} is {value!r}: choose one of {', '.join(map(str, choices))}.")
