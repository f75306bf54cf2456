"""The device mesh: one axis, `data`. Every device works on its own images; parameters and memory are everywhere."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
EVERYWHERE = PartitionSpec()
BY_IMAGE = PartitionSpec(AXIS)


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `devices`, all of them by default, of every process."""
    devices = jax.devices() if devices is None else devices
    # jax defaults to explicit axes, which refuse ordinary operations such as a cumulative sum over images.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def parallel(
    function: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any, donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """`function` of one device's images, jitted over the mesh; it adds up what is shared by `jax.lax.psum`."""
    # Gradients are summed by hand, once, so the tracking of varying values, which would sum them itself, is off.
    mapped = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, donate_argnums=donate)


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """This process' part of a batch of NumPy arrays, spread over the mesh by image."""
    sharding = NamedSharding(mesh, BY_IMAGE)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A tree of arrays, whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, EVERYWHERE))


def shapes(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """The shapes of a tree that is to lie on the devices as `spec` says: `EVERYWHERE` or `BY_IMAGE`."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
