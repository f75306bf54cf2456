"""Collectives of compiled programs, on eight devices."""

import jax
import jax.numpy as jnp

from cfinet_jax.runtime import mesh
from cfinet_jax.studies.collectives import Collective, collectives


def test_sums_inside_and_outside_of_loops_are_distinguished():
    def function(x, weight):
        def twice(_, x):
            inner = jax.lax.fori_loop(
                0, x.shape[0] + jnp.int32(x[0, 0]), lambda _, x: x + jax.lax.psum(x, mesh.AXIS), x
            )
            return jnp.sin(inner)

        x = jax.lax.fori_loop(0, 3, twice, x)
        x = jax.lax.fori_loop(0, 3, lambda _, x: jax.lax.cond(x[0, 0] > 0, permute, jnp.sin, x), x)
        gathered = jax.lax.all_gather(x.astype(jnp.bfloat16), mesh.AXIS)
        return jax.lax.psum(x @ weight, mesh.AXIS), gathered

    def permute(x):
        return jax.lax.ppermute(x, mesh.AXIS, [(0, 1), (1, 0)])

    specs = (mesh.BY_IMAGE, mesh.EVERYWHERE)
    jitted = mesh.parallel(function, mesh.make_mesh(), specs, mesh.EVERYWHERE)
    text = jitted.lower(jnp.zeros((16, 5)), jnp.zeros((5, 7))).compile().as_text()
    found = collectives(text)
    (gather,) = (each for each in found if each.kind == "all-gather")
    assert not gather.in_loop and gather.size in (8 * 2 * 5 * 2, 8 * 2 * 5 * 4)  # CPUs have no bfloat16
    assert sorted(each for each in found if each != gather) == [
        Collective("all-reduce", 2 * 5 * 4, True),
        Collective("all-reduce", 2 * 7 * 4, False),
        Collective("collective-permute", 2 * 5 * 4, True),
    ]
    assert collectives(jax.jit(jnp.sin).lower(1.0).compile().as_text()) == []


def test_asynchronous_collectives_count_once_and_tuples_as_a_whole():
    text = """
  %start = (f32[2]{0}, f32[4]{0}) all-gather-start(%p), dimensions={0}
  %done = f32[4]{0:T(128)} all-gather-done(%start)
  %reduced = (bf16[9,16]{1,0:T(8,128)(2,1)}, /*index=1*/pred[3]{0}, s32[]) all-reduce(%q, %r, %s), to_apply=%add
"""
    assert collectives(text) == [
        Collective("all-gather", 16, False),
        Collective("all-reduce", 9 * 16 * 2 + 3 + 4, False),
    ]
