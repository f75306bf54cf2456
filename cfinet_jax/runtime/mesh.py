"""The device mesh: one axis, `data`. Every device works on its own images; parameters and memory are everywhere."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
EVERYWHERE = PartitionSpec()
BY_IMAGE = PartitionSpec(AXIS)


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `devices`, all of them by default, of every process."""
    devices = jax.devices() if devices is None else devices
    # What a process loads lies together, in the order of the processes; `jax.make_mesh` would follow the wires instead.
    in_order = sorted(devices, key=lambda device: (device.process_index, device.id))
    # jax defaults to explicit axes, which refuse ordinary operations such as a cumulative sum over images.
    return Mesh(np.array(in_order), (AXIS,), axis_types=(AxisType.Auto,))


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
    """A tree of arrays, the same in every process, whole on every device."""
    sharding = NamedSharding(mesh, EVERYWHERE)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return x  # it is everywhere already
        # `device_put` would collect every process' copy of everything, to compare them.
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(place, tree)


def shapes(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """The shapes of a tree that is to lie on the devices as `spec` says: `EVERYWHERE` or `BY_IMAGE`."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def any_process(flag: bool, mesh: Mesh) -> bool | jax.Array:
    """Whether any process says so. With several, the answer is under way: read it a step later, to wait for nobody."""
    if jax.process_count() == 1:
        return flag
    return _any(mesh)(place_batch(np.full(len(mesh.local_devices), flag), mesh))


@functools.cache
def _any(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Whether any is true, known on every device."""
    return jax.jit(jnp.any, out_shardings=NamedSharding(mesh, EVERYWHERE))
