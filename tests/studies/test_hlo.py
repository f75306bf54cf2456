"""Programs in XLA's text form."""

from cfinet_jax.studies.profile.hlo import instructions_of, shape_of, size_in_bytes

LINES = """\
  %p.1 = f32[4,8]{1,0:T(8,128)} parameter(0), metadata={op_name="state.params['backbone']"}
  %w = (s32[], f32[2]{0:T(128)(2,1)}, /*index=2*/pred[3]{0}) while(%tuple.5), condition=%until, body=%body
  %constant.3 = f32[] constant(0)
  ROOT %dot-b_c = bf16[4,2]{1,0} dot(%p.1, %q), lhs_contracting_dims={1}, metadata={op_name="jit(f)/jvp(a)/dot" x=1}
"""


def test_an_instruction_is_taken_apart():
    parameter, loop, constant, dot = instructions_of(LINES.splitlines()).values()
    assert (parameter.name, parameter.opcode, parameter.operands, parameter.op_name) == ("p.1", "parameter", (), "")
    assert (loop.opcode, loop.operands, loop.attribute(r"body=%([\w.-]+)")) == ("while", ("tuple.5",), "body")
    assert size_in_bytes(loop.type_) == 4 + 8 + 3
    assert (constant.opcode, constant.root, constant.attribute("x=(.)")) == ("constant", False, "")
    assert (dot.name, dot.operands, dot.op_name, dot.root) == ("dot-b_c", ("p.1", "q"), "jit(f)/jvp(a)/dot", True)
    assert shape_of(dot.type_) == (4, 2) and shape_of("s32[]") == () and shape_of(loop.type_) == ()


def test_sizes_of_types():
    assert size_in_bytes("f32[9,16,7]{2,1,0}") == 9 * 16 * 7 * 4
    assert size_in_bytes("(f8e4m3fn[3], u64[], token[])") == 3 + 8 + 1
