"""The device mesh with one axis, `data`: images are sharded over it, parameters and memory replicated."""

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
    """Return a mesh over `devices`, by default all devices of all processes."""
    devices = jax.devices() if devices is None else devices
    # The devices of a process are neighbours, in the order of processes, so that each loads a contiguous part of the
    # batch; `jax.make_mesh` would order them by their physical connections.
    in_order = sorted(devices, key=lambda device: (device.process_index, device.id))
    # jax defaults to explicit axes, which refuse ordinary operations such as a cumulative sum over images.
    return Mesh(np.array(in_order), (AXIS,), axis_types=(AxisType.Auto,))


def parallel(
    function: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any, donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """Jit `function`, which sees one device's images and sums over devices with `jax.lax.psum`, over the mesh."""
    # `check_vma` would make JAX sum gradients itself; the step sums them explicitly, once.
    mapped = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, donate_argnums=donate)


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Shard this process's part of a batch of NumPy arrays over the mesh by image."""
    sharding = NamedSharding(mesh, BY_IMAGE)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copy a tree of arrays, equal in every process, to every device."""
    sharding = NamedSharding(mesh, EVERYWHERE)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return x  # is replicated already
        # `device_put` would gather the copies of all processes to compare them.
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(place, tree)


def shapes(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Return the shapes of a tree, with the sharding of `spec`: `EVERYWHERE` or `BY_IMAGE`."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def any_process(flag: bool, mesh: Mesh) -> bool | jax.Array:
    """Return whether `flag` is set in any process.

    With several processes this is an array that is still being computed: read it a step later to avoid waiting.
    """
    if jax.process_count() == 1:
        return flag
    return _any(mesh)(place_batch(np.full(len(mesh.local_devices), flag), mesh))


@functools.cache
def _any(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Return the jitted function that tells every device whether any flag is true."""
    return jax.jit(jnp.any, out_shardings=NamedSharding(mesh, EVERYWHERE))
