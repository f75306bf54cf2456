"""Boxes of either kind: the number of their columns says whether they are upright, 4, or oriented, 5."""

from types import ModuleType

from jaxtyping import Array, Float

from cfinet_jax.boxes import horizontal, oriented


def kind_of(boxes: Float[Array, "*n k"]) -> ModuleType:
    """The module of these boxes, `horizontal` or `oriented`."""
    return oriented if boxes.shape[-1] == 5 else horizontal


def enclose(boxes: Float[oriented.Array, "*n k"]) -> Float[oriented.Array, "*n 4"]:
    """The upright boxes around boxes of either kind, NumPy's or JAX's."""
    return oriented.enclose(boxes) if boxes.shape[-1] == 5 else boxes


def encode(
    regions: Float[Array, "*#n k"], boxes: Float[Array, "*#n j"], stds: tuple[float, ...]
) -> Float[Array, "*#n j"]:
    """Deltas / stds that lead from regions to boxes of the same kind, or from upright regions to oriented boxes."""
    if regions.shape[-1] < boxes.shape[-1]:
        return oriented.encode_horizontal(regions, boxes, stds)
    return kind_of(boxes).encode(regions, boxes, stds)


def decode(
    regions: Float[Array, "*#n k"], deltas: Float[Array, "*#n j"], stds: tuple[float, ...]
) -> Float[Array, "*#n j"]:
    """The boxes to which deltas lead from regions: the inverse of `encode`."""
    if regions.shape[-1] < deltas.shape[-1]:
        return oriented.decode_horizontal(regions, deltas, stds)
    return kind_of(deltas).decode(regions, deltas, stds)
