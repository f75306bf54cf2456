"""The detector: two stages and feature imitation, for training (`losses`) and for detection (`detect`)."""

import dataclasses
from collections.abc import Collection
from typing import Any, Literal, TypeVar, get_args, get_origin

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from cfinet_jax.boxes import kinds
from cfinet_jax.boxes.similarity import SIMILARITIES
from cfinet_jax.errors import UserError
from cfinet_jax.models.feature_imitation import FeatureImitation
from cfinet_jax.models.fpn import FPN
from cfinet_jax.models.proposals import PROPOSAL_NETWORKS, ROTATED_PROPOSAL_NETWORKS
from cfinet_jax.models.proposals.assigners import RULES, Assigner
from cfinet_jax.models.proposals.base import ProposalNetwork
from cfinet_jax.models.resnet import ResNet
from cfinet_jax.models.roi_head import RoiHead
from cfinet_jax.models.rotated_roi_head import OrientedRoiHead, RotatedRoiHead
from cfinet_jax.ops import exemplar_memory, gradient_probe
from cfinet_jax.ops.imitation import QUALITIES
from cfinet_jax.structures import Batch, Detections, ExemplarMemory, Exemplars, Priorities, Proposals, Term

T = TypeVar("T")

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
ROI_HEADS = {"horizontal": RoiHead, "rotated": RotatedRoiHead, "oriented": OrientedRoiHead}
PARTS = {"backbone", "neck", "proposal_network", "roi_head", "imitation"}
KEYS = {"precision", "ignore_overlap", "similarities", "assigners"} | PARTS


class Detector(nn.Module):
    """Backbone, feature pyramid, proposal network, RoI head and, unless it is switched off, feature imitation."""

    backbone: ResNet
    neck: FPN
    proposal_network: ProposalNetwork
    roi_head: RoiHead
    imitation: FeatureImitation | None
    precision: str

    def losses(
        self, batch: Batch, memory: ExemplarMemory | None, priorities: Priorities
    ) -> tuple[dict[str, Term], dict[str, Term], Exemplars | None]:
        """Return losses and statistics as terms per image `[batch]`, and the exemplars that each image offers.

        Args:
          batch: Prepared images with their ground truth.
          memory: Exemplars of earlier steps; None without imitation.
          priorities: Random numbers of `draw_priorities`.
        """
        pyramid = self.pyramid(batch.images)
        # Stage one: where might an object be?
        outputs = self.proposal_network(pyramid, batch.sizes)
        first = self.proposal_network.losses(outputs, batch, priorities)
        proposals = self.proposal_network.choose(outputs, batch.sizes, batch.scales, "train")
        # Stage two: what is it, and where exactly?
        samples = self.roi_head.sample(proposals, batch.ground_truth, priorities.rois)
        pooled, regions = self.regions(pyramid, samples.boxes)
        predictions = self.roi_head(self.probed("roi_head", regions))
        second = self.roi_head.losses(predictions, samples, batch)
        terms = [name_parts("proposals", first), name_parts("roi", second)]
        # Feature imitation: make hard objects look like good ones.
        exemplars = None
        if self.imitation is not None and memory is not None:
            compressed = self.imitation.compress_learners(self.probed("imitation", pooled))
            grades = self.imitation.grade(predictions, samples, batch, memory, self.roi_head.stds)
            jittered = self.roi_head.pool(jax.lax.stop_gradient(pyramid), self.imitation.jittered_boxes(grades, batch))
            jittered = jittered.reshape(*grades.chosen.shape, self.imitation.jitters, *jittered.shape[2:])
            third = self.imitation.losses(compressed, jittered, grades, samples, batch.ground_truth, memory, priorities)
            terms.append(name_parts("imitation", third))
            exemplars = self.imitation.exemplars(regions, grades, batch.ground_truth)
        losses, statistics = ({k: v for part in parts for k, v in part.items()} for parts in zip(*terms, strict=True))
        return losses, statistics, exemplars

    def detect(self, batch: Batch) -> tuple[Detections, Proposals]:
        """Return the detections of every image and the upright hulls of its proposals, in network pixels."""
        pyramid = self.pyramid(batch.images)
        outputs = self.proposal_network(pyramid, batch.sizes)
        proposals = self.proposal_network.choose(outputs, batch.sizes, batch.scales, "test")
        _, regions = self.regions(pyramid, proposals.boxes)
        found = self.roi_head.detect(self.roi_head(regions), proposals, batch.sizes)
        return found, dataclasses.replace(proposals, boxes=kinds.enclose(proposals.boxes))

    def pyramid(self, images: Float[Array, "batch height width 3"]) -> tuple[Array, ...]:
        """Return the feature maps, fine to coarse, in the precision of the network."""
        return self.neck(self.backbone(images.astype(PRECISIONS[self.precision])))

    def regions(self, pyramid: tuple[Array, ...], boxes: Array) -> tuple[Array, Array]:
        """Return the RoI features as they are pooled, and as the head sees them."""
        pooled = self.roi_head.pool(pyramid, boxes)
        if self.imitation is None or not self.imitation.reweight:
            return pooled, pooled
        return pooled, self.imitation.emphasise(pooled, self.imitation.compress(pooled))

    def probed(self, part: str, features: Array) -> Array:
        """Measure the gradient that a part sends into its input, if the collection `probes` has one for it."""
        probe = self.get_variable("probes", part)
        return features if probe is None else gradient_probe.measure(features, probe)

    def empty_memory(self) -> ExemplarMemory | None:
        """Return a memory without exemplars; None without imitation."""
        if self.imitation is None:
            return None
        memory = exemplar_memory.empty_memory(
            self.roi_head.classes, self.imitation.slots, self.roi_head.pool_size, self.neck.channels
        )
        if self.imitation.high_quality_quantile is None:
            return memory
        return dataclasses.replace(memory, high_quality=jnp.float32(self.imitation.high_quality))

    def draw_priorities(
        self, key: Array, index: Int[Array, " batch"], shape: tuple[int, int], max_objects: int
    ) -> Priorities:
        """Draw the random priorities of the images of a step.

        Args:
          key: The key of the step.
          index: Position of each image in the global batch; it is folded into the key.
          shape: Height and width of the network's input.
          max_objects: Entries of an image's ground truth.
        """
        anchors = self.proposal_network.count_anchors(shape, self.neck.levels)
        regions = max_objects + self.proposal_network.proposals.max_proposals
        slots = candidates = 1
        if self.imitation is not None:
            slots = self.imitation.slots
            candidates = self.roi_head.samples + self.imitation.remembered_negatives(self.roi_head.classes)

        def of_image(index: Array) -> Priorities:
            keys = jax.random.split(jax.random.fold_in(key, index), 4)
            shapes = ((anchors,), (regions,), (max_objects, slots), (max_objects, candidates))
            return Priorities(*(jax.random.uniform(key, shape) for key, shape in zip(keys, shapes, strict=True)))

        return jax.vmap(of_image)(index)


def name_parts(part: str, terms: tuple[dict, dict]) -> tuple[dict, dict]:
    """Put the name of the part before every key of both dictionaries."""
    return tuple({f"{part}/{name}": term for name, term in of.items()} for of in terms)  # type: ignore[return-value]


def build_detector(settings: ConfigDict, classes: int) -> Detector:
    """Build the detector of the config section `detector` for so many classes.

    Raises:
      UserError: A key is unknown or missing, a choice does not exist, or parts do not fit together.
    """
    sections = settings.to_dict()
    check_keys("detector", sections, KEYS)
    check_choice("detector.precision", sections["precision"], PRECISIONS)
    head, enabled = sections["roi_head"].get("name"), sections["imitation"].get("enabled")
    check_choice("detector.roi_head.name", head, ROI_HEADS)
    network = build_proposal_network(sections)
    check_oriented(sections["proposal_network"]["name"], head, enabled)
    roi_head, imitation = without("name", sections["roi_head"]), without("enabled", sections["imitation"])
    if enabled:
        check_choice("detector.imitation.quality", imitation.get("quality"), QUALITIES)
    return Detector(
        backbone=build(ResNet, "detector.backbone", sections["backbone"]),
        neck=build(FPN, "detector.neck", sections["neck"]),
        proposal_network=network,
        roi_head=build(
            ROI_HEADS[head], "detector.roi_head", roi_head, classes=classes, ignore_overlap=sections["ignore_overlap"]
        ),
        imitation=build(FeatureImitation, "detector.imitation", imitation) if enabled else None,
        precision=sections["precision"],
    )


def build_proposal_network(sections: dict[str, Any]) -> ProposalNetwork:
    """Build the proposal network that the section `detector` names; oriented experiments have some of their own."""
    is_oriented = sections["roi_head"]["name"] != "horizontal"
    networks = PROPOSAL_NETWORKS | (ROTATED_PROPOSAL_NETWORKS if is_oriented else {})
    name = sections["proposal_network"].get("name")
    check_choice("detector.proposal_network.name", name, networks)
    section, settings = f"detector.proposal_network.{name}", sections["proposal_network"][name]
    assigners = build_assigners(sections)
    check_choice(f"{section}.assigner", settings.get("assigner"), assigners)
    network = build(
        networks[name],
        section,
        without("assigner", settings),
        assigner=assigners[settings["assigner"]],
        ignore_overlap=sections["ignore_overlap"],
        similarities=sections["similarities"],
    )
    check_choice(f"{section}.proposals.nms_similarity", network.proposals.nms_similarity, sections["similarities"])
    if "coarse_threshold" in settings:
        check_choice(f"{section}.coarse_threshold", settings["coarse_threshold"], settings["coarse_thresholds"])
    return network


def build_assigners(sections: dict[str, Any]) -> dict[str, Assigner]:
    """Build every row of the table `assigners` of the section `detector` for the proposal network that it names."""
    for row in sections["similarities"]:
        check_choice("A row of detector.similarities", row, SIMILARITIES)
    network = sections["proposal_network"]
    assigners = {}
    for row, constants in sections["assigners"].items():
        section = f"detector.assigners.{row}"
        check_choice(f"{section}.rule", constants.get("rule"), RULES)
        check_choice(f"{section}.similarity", constants.get("similarity"), sections["similarities"])
        rule = RULES[constants["rule"]]
        fields = {field.name for field in dataclasses.fields(rule)}
        shared = {key: value for key, value in network[network["name"]].items() if key in fields}
        assigners[row] = build(rule, section, without("rule", constants), **shared)
    return assigners


def check_oriented(network: str, head: str, imitates: bool) -> None:
    """Refuse oriented regions that no network proposes, and their imitation, since exemplars are upright."""
    if (network == "oriented_rpn") != (head == "oriented"):
        raise UserError(
            f"detector.roi_head.name is {head!r} and detector.proposal_network.name {network!r}: 'oriented' and "
            "'oriented_rpn' go together, as in configs/sodaa.py:oriented_rcnn."
        )
    if head == "oriented" and imitates:
        raise UserError(
            "detector.imitation compares upright regions: set detector.imitation.enabled=False for the head 'oriented'."
        )


def build(part: type[T], section: str, settings: dict[str, Any], **others: Any) -> T:
    """Build a dataclass or module from the section of the config whose keys are its fields.

    Args:
      part: The class; a field that is itself a dataclass is built from the section of its name.
      section: Where the settings stand in the config, for messages.
      settings: The keys and values.
      **others: Fields that stand elsewhere in the config.

    Raises:
      UserError: A key is unknown or missing, or its value is none of the field's choices.
    """
    fields: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(part)}  # type: ignore[arg-type]
    check_keys(section, settings, fields.keys() - {"parent", "name", *others})
    values = dict(settings)
    for key, value in settings.items():
        if get_origin(fields[key]) is Literal:
            check_choice(f"{section}.{key}", value, get_args(fields[key]))
        if dataclasses.is_dataclass(fields[key]):
            values[key] = build(fields[key], f"{section}.{key}", value)  # type: ignore[arg-type]
    return part(**values, **others)


def without(key: str, section: dict[str, Any]) -> dict[str, Any]:
    """Return a section but for one key."""
    return {name: value for name, value in section.items() if name != key}


def check_keys(section: str, settings: Collection[str], known: Collection[str]) -> None:
    """Raise `UserError` unless a section has exactly the known keys."""
    for key in settings:
        if key not in known:
            raise UserError(f"{section} has no key {key!r}: choose from {', '.join(sorted(known))}.")
    for key in known:
        if key not in settings:
            raise UserError(f"{section} lacks the key {key!r}: set it, as configs/sodad.py or configs/sodaa.py does.")


def check_choice(key: str, value: Any, choices: Collection[Any]) -> None:
    """Raise `UserError` unless a value is one of the choices."""
    if value not in choices:
        raise UserError(f"{key} is {value!r}: choose one of {', '.join(map(str, choices))}.")
