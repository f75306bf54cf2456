"""torchvision's Faster R-CNN R-50-FPN at its best, doing the work of ours (`configs/sodad.py:faster_rcnn`).

    python -m benchmarks.peer [--size=512] [--batch=1] [--precision=float32] [--repeats=N] [--output=JSON]

On its own it says in which form the peer is fastest here; `benchmarks/step.py` compares with that one. Anchors,
proposals, samples, levels and trainable layers are those of our configuration. Channels last; on CUDA, TF32 or, for
bfloat16, automatic mixed precision; fused SGD. Pictures come as large as the network sees them, uint8 on the device.
Where the two differ, the peer has less to do: its batch norm learns nothing, and its ground truth is not padded.
"""

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks import drawn, tables, timing
from configs import sodad

PRECISIONS = ("float32", "bfloat16")
LAST_NORM_SCALE = 0.3  # or the maps of random weights grow beyond all measure
RATE = 1e-6  # the weights hardly move: every step has the same work


class Peer(NamedTuple):
    """One step, which returns when it is done, and how it is run."""

    run: Callable[[], None]
    form: str


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.peer", description=__doc__.partition("\n")[0])
    result.add_argument("--size", type=int, default=512, help="pixels of a side of the network's input")
    result.add_argument("--batch", type=int, default=1, help="images")
    result.add_argument("--precision", choices=PRECISIONS, default="float32")
    result.add_argument("--repeats", type=int, default=5, help="timed rounds; the median counts")
    result.add_argument("--output", help="JSON file for the result")
    return result


def installed() -> bool:
    """Whether torch and torchvision are."""
    return all(importlib.util.find_spec(name) for name in ("torch", "torchvision"))


def device() -> str:
    """Where torch computes: on the first CUDA device, if there is one, with its fastest float32."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return "cuda"


def synchronise() -> None:
    """Waits for what CUDA has been told to do, if anything."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Normalise:
    """In the place of torchvision's transform, which would also resize."""

    def __init__(self, settings: Any, device: str) -> None:
        import torch

        self.mean, self.std = (torch.tensor(x, device=device).reshape(3, 1, 1) for x in (settings.mean, settings.std))

    def __call__(self, images: Any, targets: Any) -> tuple[Any, Any]:
        from torchvision.models.detection.image_list import ImageList

        return ImageList((images - self.mean) / self.std, [tuple(images.shape[-2:])] * len(images)), targets

    def postprocess(self, detections: Any, *sizes: Any) -> Any:
        return detections


def model(device: str) -> Any:
    """The network in the numbers of our configuration, at random."""
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
        # Nearly all is background, as for a trained head: at random, all proposals of all classes would go into NMS.
        result.roi_heads.box_predictor.cls_score.bias[0] = 10
    del result.transform
    result.transform = Normalise(config.dataset, device)
    return result.to(device, memory_format=torch.channels_last)


def compile_parts(model: Any) -> None:
    """What has fixed shapes."""
    for part in (model.backbone, model.rpn.head, model.roi_heads.box_head, model.roi_heads.box_predictor):
        part.compile()


FORMS: dict[str, Callable[[Any], None]] = {
    "eager": lambda model: None,
    "torch.compile of the parts": compile_parts,
    "torch.compile of the whole": lambda model: model.compile(),
}


def pictures(size: int, batch: int, device: str) -> Any:
    """Noise."""
    import torch

    noise = np.random.default_rng(0).integers(0, 256, (batch, 3, size, size), dtype=np.uint8)
    return torch.from_numpy(noise).to(device, memory_format=torch.channels_last)


def training(form: Callable[[Any], None], size: int, batch: int, objects: int, precision: str) -> Callable[[], None]:
    """A train step in a form."""
    import torch

    where, rng, sgd = device(), np.random.default_rng(0), sodad.get_config().optimizer
    network, images = model(where).train(), pictures(size, batch, where)
    form(network)
    boxes, labels = drawn.boxes(rng, (batch, objects), size), rng.integers(1, drawn.CLASSES + 1, (batch, objects))
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
    """Inference in a form."""
    import torch

    where = device()
    network, images = model(where).eval(), pictures(size, batch, where)
    form(network)

    def detect() -> None:
        with torch.inference_mode(), torch.autocast(where, torch.bfloat16, enabled=precision == "bfloat16"):
            network(images)
        synchronise()

    return detect


def working(make: Callable[[Callable[[Any], None]], Callable[[], None]]) -> dict[str, Callable[[], None]]:
    """The program in every form in which it runs; it has run twice, and is compiled."""
    found = {}
    for name, form in FORMS.items():
        try:
            program = make(form)
            program()
            program()
            found[name] = program
        except Exception as error:  # torch.compile fails in many ways
            if name == "eager":
                raise
            print(f"{name} does not work: {str(error).partition(chr(10))[0]}", flush=True)
    return found


def fastest(make: Callable[[Callable[[Any], None]], Callable[[], None]]) -> Peer | None:
    """The program in the form that takes least time; None without torch and torchvision."""
    if not installed():
        return None
    import torch

    programs = working(make)
    seconds = timing.medians(programs, 3)
    form = min(seconds, key=lambda name: seconds[name])
    return Peer(programs[form], f"torch {torch.__version__}, channels last, {form}")


def train_step(size: int, batch: int, objects: int, precision: str) -> Peer | None:
    """A step of SGD on pictures of `size` x `size` pixels with so many objects each; None without torchvision."""
    return fastest(partial(training, size=size, batch=batch, objects=objects, precision=precision))


def inference(size: int, batch: int, precision: str) -> Peer | None:
    """Detection in pictures of `size` x `size` pixels; None without torch and torchvision."""
    return fastest(partial(detection, size=size, batch=batch, precision=precision))


def main() -> None:
    """Measures every form and reports."""
    options = parser().parse_args()
    if not installed():
        raise SystemExit("torch and torchvision are not installed: pip install torch torchvision")
    common = {"size": options.size, "batch": options.batch, "precision": options.precision}
    trains = timing.medians(working(partial(training, objects=drawn.OBJECTS, **common)), options.repeats)
    detects = timing.medians(working(partial(detection, **common)), options.repeats)
    rows = []
    for form in FORMS:
        row: dict[str, Any] = {"form": form}
        for what, seconds in {"train step": trains, "inference": detects}.items():
            row[f"s {what}"] = seconds.get(form, "n/a")
            row[f"{what}, / eager"] = seconds[form] / seconds["eager"] if form in seconds else "n/a"
        rows.append(row)
    tables.report(rows, options.output)


if __name__ == "__main__":
    main()
