"""torchvision's Faster R-CNN R-50-FPN in its fastest form, doing the work of ours (`configs/sodad.py:faster_rcnn`).

`benchmarks/step.py` compares with it. Anchors, proposals, samples, levels and trainable layers are those of our
configuration. It runs channels last; on CUDA with TF32 or, for bfloat16, automatic mixed precision; with fused SGD.
Pictures come as large as the network sees them, as uint8 on the device. Where the two differ, torchvision's has less to
do: its batch norm learns nothing, and its ground truth is not padded.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import common, drawn
from configs import sodad

LAST_NORM_SCALE = 0.3  # with random weights, larger scales would make the maps overflow
RATE = 1e-6  # so small that the weights hardly move: every step has the same work


class Peer(NamedTuple):
    """A step, which returns when it is done, and the form in which it runs."""

    run: Callable[[], None]
    form: str


def device() -> str:
    """Return where torch computes: the first CUDA device, if there is one, with its fastest float32."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return "cuda"


def synchronise() -> None:
    """Wait for CUDA to finish, if there is a device."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Normalise:
    """Replacement for torchvision's transform, which would also resize."""

    def __init__(self, settings: Any, device: str) -> None:
        import torch

        self.mean, self.std = (torch.tensor(x, device=device).reshape(3, 1, 1) for x in (settings.mean, settings.std))

    def __call__(self, images: Any, targets: Any) -> tuple[Any, Any]:
        from torchvision.models.detection.image_list import ImageList

        return ImageList((images - self.mean) / self.std, [tuple(images.shape[-2:])] * len(images)), targets

    def postprocess(self, detections: Any, *sizes: Any) -> Any:
        return detections


def model(device: str) -> Any:
    """Build the network with the numbers of our configuration and random weights."""
    import torch
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

    config = sodad.get_config("faster_rcnn")
    rpn, roi, backbone = config.detector.proposal_network.rpn, config.detector.roi_head, config.detector.backbone
    trainable = 4 - backbone.frozen_stages
    torch.manual_seed(0)
    body = resnet_fpn_backbone(
        backbone_name=f"resnet{backbone.depth}",
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        trainable_layers=trainable,
    )
    sizes = [(int(4 * 2**level * rpn.anchor_scale),) for level in range(config.detector.neck.levels)]
    result = FasterRCNN(
        body,
        num_classes=drawn.CLASSES + 1,
        rpn_anchor_generator=AnchorGenerator(tuple(sizes), (rpn.aspect_ratios,) * len(sizes)),
        rpn_pre_nms_top_n_train=rpn.proposals.train.candidates,
        rpn_pre_nms_top_n_test=rpn.proposals.test.candidates,
        rpn_post_nms_top_n_train=rpn.proposals.max_proposals,
        rpn_post_nms_top_n_test=rpn.proposals.max_proposals,
        rpn_nms_thresh=rpn.proposals.train.nms_overlap,
        rpn_fg_iou_thresh=rpn.positive_overlap,
        rpn_bg_iou_thresh=rpn.negative_overlap,
        rpn_batch_size_per_image=rpn.samples,
        rpn_positive_fraction=rpn.positive_fraction,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], roi.pool_size, sampling_ratio=0),
        box_fg_iou_thresh=roi.positive_overlap,
        box_bg_iou_thresh=roi.positive_overlap,
        box_batch_size_per_image=roi.samples,
        box_positive_fraction=roi.positive_fraction,
        box_score_thresh=roi.min_score,
        box_nms_thresh=roi.nms_overlap,
        box_detections_per_img=roi.max_detections,
    )
    with torch.no_grad():
        for name, constant in result.named_buffers():
            if name.endswith("bn3.weight"):
                constant.fill_(LAST_NORM_SCALE)
        # Make nearly everything background, as a trained head does: a random one would send all classes into NMS.
        result.roi_heads.box_predictor.cls_score.bias[0] = 10
    del result.transform
    result.transform = Normalise(config.dataset, device)
    return result.to(device, memory_format=torch.channels_last)


def compile_parts(model: Any) -> None:
    """Compile the parts whose shapes are fixed."""
    for part in (model.backbone, model.rpn.head, model.roi_heads.box_head, model.roi_heads.box_predictor):
        part.compile()


FORMS: dict[str, Callable[[Any], None]] = {
    "eager": lambda model: None,
    "torch.compile of the parts": compile_parts,
    "torch.compile of the whole": lambda model: model.compile(),
}


def pictures(size: int, batch: int, device: str) -> Any:
    """Draw noise."""
    import torch

    noise = np.random.default_rng(0).integers(0, 256, (batch, 3, size, size), dtype=np.uint8)
    return torch.from_numpy(noise).to(device, memory_format=torch.channels_last)


def training(form: Callable[[Any], None], size: int, batch: int, precision: str) -> Callable[[], None]:
    """Make a train step in one of the forms."""
    import torch

    where, rng, sgd = device(), np.random.default_rng(0), sodad.get_config().optimizer
    network, images = model(where).train(), pictures(size, batch, where)
    form(network)
    shape = (batch, drawn.OBJECTS)
    boxes, labels = drawn.boxes(rng, shape, size), rng.integers(1, drawn.CLASSES + 1, shape)
    targets = [
        {"boxes": torch.tensor(b, device=where), "labels": torch.tensor(c, device=where)}
        for b, c in zip(boxes, labels, strict=True)
    ]
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learnt, RATE, momentum=sgd.momentum, weight_decay=sgd.weight_decay, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(where, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = sum(network(images, targets).values())
        loss.backward()
        optimizer.step()
        synchronise()

    return step


def detection(form: Callable[[Any], None], size: int, batch: int, precision: str) -> Callable[[], None]:
    """Make inference in one of the forms."""
    import torch

    where = device()
    network, images = model(where).eval(), pictures(size, batch, where)
    form(network)

    def detect() -> None:
        with torch.inference_mode(), torch.autocast(where, torch.bfloat16, enabled=precision == "bfloat16"):
            network(images)
        synchronise()

    return detect


def fastest(make: Callable[[Callable[[Any], None]], Callable[[], None]]) -> Peer | None:
    """Return the program in the form that takes least time; None without torch and torchvision."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "torchvision")):
        return None
    import torch

    programs = {}
    for name, form in FORMS.items():
        try:
            program = make(form)
            program()
            program()  # twice, since torch compiles again once it knows which sizes vary
            programs[name] = program
        except Exception as error:  # torch.compile fails in many ways
            if name == "eager":
                raise
            print(f"{name} does not work: {str(error).partition(chr(10))[0]}", flush=True)
    seconds = common.medians(programs, 3)
    form = min(seconds, key=lambda name: seconds[name])
    return Peer(programs[form], f"torch {torch.__version__}, channels last, {form}")
