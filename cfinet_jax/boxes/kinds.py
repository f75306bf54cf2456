"""Functions of boxes of either kind, told apart by the number of columns: 4 upright, 5 oriented."""

from types import ModuleType

from jaxtyping import Array, Float

from cfinet_jax.boxes import horizontal, oriented


def kind_of(boxes: Float[Array, "*n k"]) -> ModuleType:
    """Return the module of functions for these boxes, `horizontal` or `oriented`."""
    return oriented if boxes.shape[-1] == 5 else horizontal


def enclose(boxes: Float[oriented.Array, "*n k"]) -> Float[oriented.Array, "*n 4"]:
    """Return the upright hulls of boxes, NumPy's or JAX's; upright boxes are returned as they are."""
    return oriented.enclose(boxes) if boxes.shape[-1] == 5 else boxes


def mirror(boxes: Float[Array, "*n k"], size: Float[Array, "2"], axis: int) -> Float[Array, "*n k"]:
    """Mirror boxes in a picture of `size` (height, width) along an axis: 0 top to bottom, 1 left to right."""
    kind = kind_of(boxes)
    return kind.flip(boxes, size[1]) if axis == 1 else kind.transpose(kind.flip(kind.transpose(boxes), size[0]))


def encode(
    regions: Float[Array, "*#n k"], boxes: Float[Array, "*#n j"], stds: tuple[float, ...]
) -> Float[Array, "*#n j"]:
    """Return the deltas / stds from regions to boxes of the same kind, or from upright regions to oriented boxes."""
    if regions.shape[-1] < boxes.shape[-1]:
        return oriented.encode_horizontal(regions, boxes, stds)
    return kind_of(boxes).encode(regions, boxes, stds)


def decode(
    regions: Float[Array, "*#n k"], deltas: Float[Array, "*#n j"], stds: tuple[float, ...]
) -> Float[Array, "*#n j"]:
    """Return the boxes to which deltas lead from regions: the inverse of `encode`."""
    if regions.shape[-1] < deltas.shape[-1]:
        return oriented.decode_horizontal(regions, deltas, stds)
    return kind_of(deltas).decode(regions, deltas, stds)
