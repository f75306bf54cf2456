"""What is read from compiled programs, on eight devices."""

import jax
import jax.numpy as jnp

from cfinet_jax.runtime import mesh
from cfinet_jax.studies.collectives import Collective, collectives


def test_sums_inside_and_outside_of_loops_are_told_apart():
    def function(x, weight):
        def twice(_, x):
            inner = jax.lax.fori_loop(
                0, x.shape[0] + jnp.int32(x[0, 0]), lambda _, x: x + jax.lax.psum(x, mesh.AXIS), x
            )
            return jnp.sin(inner)

        x = jax.lax.fori_loop(0, 3, twice, x)
        gathered = jax.lax.all_gather(x.astype(jnp.bfloat16), mesh.AXIS)
        return jax.lax.psum(x @ weight, mesh.AXIS), gathered

    specs = (mesh.BY_IMAGE, mesh.EVERYWHERE)
    jitted = mesh.parallel(function, mesh.make_mesh(), specs, mesh.EVERYWHERE)
    text = jitted.lower(jnp.zeros((16, 5)), jnp.zeros((5, 7))).compile().as_text()
    found = collectives(text)
    (gather,) = (each for each in found if each.kind == "all-gather")
    assert not gather.in_loop and gather.size in (8 * 2 * 5 * 2, 8 * 2 * 5 * 4)  # processors have no bfloat16
    assert sorted(each for each in found if each != gather) == [
        Collective("all-reduce", 2 * 5 * 4, True),
        Collective("all-reduce", 2 * 7 * 4, False),
    ]


def test_branches_fusions_and_asynchronous_operations_are_followed():
    text = """HloModule step, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: f32[4]) -> f32[4] {
  ROOT %permuted = f32[4]{0:T(128)} collective-permute(%p), source_target_pairs={{0,1},{1,0}}
}

%yes (p: f32[4]) -> f32[4] {
  ROOT %f = f32[4]{0} fusion(%p), kind=kLoop, calls=%fused
}

%no (p: f32[4]) -> f32[4] {
  ROOT %started = f32[4]{0} copy(%p)
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %c = f32[4]{0} conditional(%which, %x, %x), branch_computations={%no, %yes}
}

%until (p: (s32[], f32[4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]{0}) while(%t), condition=%until, body=%body
  %start = (f32[2]{0}, f32[4]{0}) all-gather-start(%p), dimensions={0}
  %done = f32[4]{0} all-gather-done(%start)
  %reduced = (bf16[9,16]{1,0:T(8,128)(2,1)}, /*index=1*/pred[3]{0}, s32[]) all-reduce(%q, %r, %s), to_apply=%add
}
"""
    assert collectives(text) == [
        Collective("collective-permute", 16, True),
        Collective("all-gather", 16, False),
        Collective("all-reduce", 9 * 16 * 2 + 3 + 4, False),
    ]


def test_a_program_of_one_device_has_none():
    assert collectives(jax.jit(jnp.sin).lower(1.0).compile().as_text()) == []
