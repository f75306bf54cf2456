"""What torch and torchvision have for the operations that `benchmarks/ops.py` measures.

Every function takes what ours takes and lays it out as torch wants it, before anything is timed. RoIAlign and the
deformable convolution read float32, as under automatic mixed precision.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
import torchvision
from jaxtyping import Array

from benchmarks import peer
from cfinet_jax.ops.deformable import TAPS
from cfinet_jax.structures import GroundTruth

Layout = Callable[[np.ndarray], np.ndarray]


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


def as_it_is(x: np.ndarray) -> np.ndarray:
    return x


class Program(NamedTuple):
    """A computation, the tensors that get a gradient in the order of our leaves, and how to bring all into our form."""

    function: Callable[[], Any]
    layout: Layout
    learnt: tuple[tuple[torch.Tensor, Layout], ...] = ()

    def forward(self) -> Any:
        """The result alone."""
        with torch.inference_mode():
            result = self.function()
        peer.synchronise()
        return result

    def with_gradients(self) -> tuple[Any, Any]:
        """The result and the gradients, if that to the result is its sine."""
        result = self.function()
        gradients = torch.autograd.grad(result, [tensor for tensor, _ in self.learnt], result.detach().sin())
        peer.synchronise()
        return result, gradients

    def in_our_form(self, result: Any, gradients: Sequence[torch.Tensor] = ()) -> list[np.ndarray]:
        """Both as leaves of ours."""
        layouts = [layout for _, layout in self.learnt]
        changed = [layout(array(x)) for layout, x in zip(layouts, gradients, strict=False)]
        results = result if isinstance(result, tuple) else (result,)
        return [*(self.layout(array(x)) for x in results), *changed]


def tensor(x: Any) -> torch.Tensor:
    """Of a JAX or NumPy array, in the same precision, on the device."""
    half = x.dtype == jnp.bfloat16
    copied = torch.tensor(np.asarray(x, np.float32 if half else None), device=peer.device())
    return copied.bfloat16() if half else copied


def array(x: torch.Tensor) -> np.ndarray:
    x = x.detach().cpu()
    return (x.float() if x.is_floating_point() else x).numpy()


def of_map(x: Array) -> torch.Tensor:
    """A map `[rows, columns, channels]` as one image `[1, channels, rows, columns]`."""
    return tensor(x).permute(2, 0, 1)[None].contiguous().requires_grad_()


def of_kernel(x: Array) -> tuple[torch.Tensor, Layout]:
    """A kernel HWIO as OIHW, and the way back."""
    kernel = tensor(x).permute(3, 2, 0, 1).contiguous().requires_grad_()
    return kernel, lambda x: x.transpose(2, 3, 1, 0)


def roi_align(
    pyramid: Sequence[Array], boxes: Array, levels: Array, strides: Sequence[int], size: int, max_grid: int
) -> Program:
    """torchvision's, aligned and with the adaptive number of samples, level by level."""
    maps, of_box = [of_map(x) for x in pyramid], tensor(levels)
    members = [torch.nonzero(of_box == level)[:, 0] for level in range(len(maps))]
    regions = [tensor(boxes)[member] for member in members]

    def function() -> torch.Tensor:
        result = torch.zeros((len(of_box), maps[0].shape[1], size, size), dtype=maps[0].dtype, device=of_box.device)
        for features, member, region, stride in zip(maps, members, regions, strides, strict=True):
            pooled = torchvision.ops.roi_align(features.float(), [region], size, 1 / stride, 0, aligned=True)
            result[member] = pooled.to(result.dtype)
        return result

    return Program(function, channels_last, tuple((x, lambda x: channels_last(x)[0]) for x in maps))


def nms(boxes: Array, scores: Array, max_overlap: float) -> Program:
    """torchvision's: the indices of what is kept, here as a mask."""
    there, ranks = tensor(boxes), tensor(scores)
    return Program(lambda: torchvision.ops.nms(there, ranks, max_overlap), mask_of(scores.shape))


def class_wise(boxes: Array, scores: Array, max_overlap: float) -> Program:
    """torchvision's `batched_nms` of boxes `[n, classes, 4]`."""
    there, ranks = tensor(boxes).reshape(-1, 4), tensor(scores).reshape(-1)
    classes = torch.arange(scores.shape[1], device=ranks.device).repeat(scores.shape[0])
    return Program(
        lambda: torchvision.ops.batched_nms(there, ranks, classes, max_overlap),
        mask_of(scores.shape),
    )


def mask_of(shape: tuple[int, ...]) -> Layout:
    """Indices into a flattened array as a mask of it."""

    def layout(indices: np.ndarray) -> np.ndarray:
        mask = np.zeros(np.prod(shape), bool)
        mask[indices] = True
        return mask.reshape(shape)

    return layout


def best_match(boxes: Array, truth: GroundTruth, min_forced: float) -> Program:
    """The same maxima of torchvision's `box_iou`, whose matrix is whole."""
    anchors, objects = tensor(boxes), tensor(truth.boxes)

    def function() -> tuple[torch.Tensor, ...]:
        overlaps = torchvision.ops.box_iou(objects, anchors)
        best, index = overlaps.max(0)
        of_object = overlaps.max(1, keepdim=True).values
        is_best = (overlaps == of_object) & (of_object >= min_forced)
        last = len(objects) - 1 - is_best.flip(0).int().argmax(0)
        return best, index, torch.where(is_best.any(0), last, -1)

    return Program(function, as_it_is)


def deformable_conv(features: Array, kernel: Array, points: Array) -> Program:
    """torchvision's `deform_conv2d`, whose offsets are those from the cells of an ordinary convolution."""
    rows, columns, _ = features.shape
    cells = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    offsets = np.asarray(points) - cells - np.array(TAPS)[:, None]  # [9, cells, (y, x)]
    shifts = tensor(offsets.transpose(0, 2, 1).reshape(1, 18, rows, columns).astype(np.float32))
    image, (weight, layout) = of_map(features), of_kernel(kernel)

    def function() -> torch.Tensor:
        result = torchvision.ops.deform_conv2d(image.float(), shifts, weight.float(), padding=1)
        return result.to(image.dtype)

    def of_image(x: np.ndarray) -> np.ndarray:
        return channels_last(x)[0]

    return Program(function, of_image, ((image, of_image), (weight, layout)))


def compress(parameters: Mapping[str, Any], regions: Array, groups: int) -> Program:
    """torch's convolutions and group norms, channels last in memory."""
    parts = []
    for _, part in sorted(parameters.items()):
        norm = [(tensor(part["norm"][name]).requires_grad_(), as_it_is) for name in ("bias", "scale")]
        parts.append([of_kernel(part["kernel"]), *norm])
    images = tensor(regions).flatten(0, -4).permute(0, 3, 1, 2).requires_grad_()  # a view: channels are last in memory

    def function() -> torch.Tensor:
        x = images
        for (kernel, _), (bias, _), (scale, _) in parts:
            x = torch.nn.functional.conv2d(x, kernel.to(x.dtype))
            x = torch.nn.functional.group_norm(x, groups, scale.to(x.dtype), bias.to(x.dtype))
        return x[:, :, 0, 0]

    return Program(function, as_it_is, (*(each for part in parts for each in part), (images, channels_last)))
