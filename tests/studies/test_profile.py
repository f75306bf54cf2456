"""Where the time of a step goes: events, costs, parts, and the mode on the tiny experiment."""

import json
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from cfinet_jax.studies import profile
from cfinet_jax.studies.profile import hlo, parts, peaks, table, trace
from cfinet_jax.studies.profile.costs import Cost, costs
from tests import tiny

PROGRAM = """HloModule jit_step, is_scheduled=true

%fused (table: f32[100,8], place: s32[], rows: f32[100,8]) -> f32[100,8] {
  %table = f32[100,8]{1,0} parameter(0)
  %place = s32[] parameter(1)
  %rows = f32[100,8]{1,0} parameter(2)
  %slice = f32[2,8]{1,0} dynamic-slice(%table, %place, %place), dynamic_slice_sizes={2,8}
  ROOT %update = f32[100,8]{1,0} dynamic-update-slice(%rows, %slice, %place, %place)
}

%body (arguments: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %arguments = (s32[], f32[100,8]{1,0}) parameter(0)
  %place.1 = s32[] get-tuple-element(%arguments), index=0
  %rows.1 = f32[100,8]{1,0} get-tuple-element(%arguments), index=1
  %moved = f32[100,8]{1,0} fusion(%rows.1, %place.1, %rows.1), kind=kLoop, calls=%fused
  ROOT %both = (s32[], f32[100,8]{1,0}) tuple(%place.1, %moved)
}

ENTRY %main (x: f32[2,9,9,4], k: f32[3,3,4,6], g: f32[2,5,5,6]) -> f32[2,5,5,6] {
  %x = f32[2,9,9,4]{3,2,1,0} parameter(0), metadata={op_name="batch.images"}
  %k = f32[3,3,4,6]{3,2,1,0} parameter(1)
  %g = f32[2,5,5,6]{3,2,1,0} parameter(2)
  %copied = f32[3,3,4,6]{3,2,1,0} copy(%k)
  %forward = f32[2,5,5,6]{3,2,1,0} convolution(%x, %copied), window={size=3x3 stride=2x2 pad=1_1x1_1}, \
dim_labels=b01f_01io->b01f, metadata={op_name="jit(step)/jvp(Detector.losses)/backbone/conv"}
  %input = (f32[2,9,9,4]{3,2,1,0}, u8[64]{0}) custom-call(%g, %k), window={size=3x3 stride=2x2 pad=1_1x1_1}, \
dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convBackwardInput"
  %filter = (f32[3,3,4,6]{3,2,1,0}, u8[64]{0}) custom-call(%x, %g), window={size=3x3 stride=2x2 pad=1_1x1_1}, \
dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %product = (f32[10,6]{1,0}, s8[64]{0}) custom-call(%flat, %weight), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  %flat = f32[10,7]{1,0} bitcast(%forward)
  %start = (s32[], f32[100,8]{1,0}) tuple(%zero, %table.1)
  %loop = (s32[], f32[100,8]{1,0}) while(%start), condition=%until, body=%body, \
metadata={op_name="jit(step)/transpose(jvp(Detector.losses))/roi_head.pool/while"}
  ROOT %sum = f32[2,5,5,6]{3,2,1,0} all-reduce(%forward), to_apply=%add, metadata={op_name="jit(step)/psum"}
}
"""


@pytest.fixture(scope="module")
def found():
    return costs(PROGRAM)


def test_operations_of_convolutions_and_of_calls_of_libraries(found):
    once = 2 * 2 * 4 * 6
    assert found["forward"].flops == once * 13**2  # five outputs, three taps: two of fifteen are padding
    assert found["input"].flops == found["filter"].flops == once * 15**2
    assert found["product"].flops == 2 * 10 * 7 * 6
    assert found["copied"].flops == found["loop"].flops == 0


def test_bytes_are_those_that_are_touched(found):
    assert found["copied"].bytes == 2 * 9 * 24 * 4
    assert found["moved"].bytes == 2 * 2 * 8 * 4 + 4  # a slice read and written in place, and where
    assert found["loop"].bytes == found["x"].bytes == found["flat"].bytes == 0


def test_what_has_no_name_takes_that_of_its_neighbours(found):
    assert "backbone" in found["copied"].op_name  # of its user
    assert "roi_head.pool" in found["moved"].op_name  # of the loop around it
    assert found["x"].op_name == found["forward"].op_name  # not that of the argument


def test_what_is_compiled_here_has_the_operations_of_the_formula():
    def function(x, weight, kernel):
        with jax.named_scope("backbone"):
            dimensions = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=dimensions)
        with jax.named_scope("neck"):
            return jnp.tanh(y) @ weight

    text = jax.jit(function).lower(jnp.ones((2, 8, 8, 3)), jnp.ones((5, 7)), jnp.ones((3, 3, 3, 5))).compile().as_text()
    entry = text[text.index("ENTRY") :]
    (lines,) = (lines for _, lines in hlo.computations_of(entry))
    found = costs(text)
    counted = Counter()
    for name in hlo.instructions_of(lines):
        counted[parts.part_of(found[name].op_name)] += found[name].flops
    assert +counted == {"backbone": 2 * 2 * 36 * 27 * 5, "FPN": 2 * 2 * 36 * 5 * 7}


@pytest.mark.parametrize(
    ("op_name", "part"),
    [
        ("jit(train_step)/jvp(preprocess)/vmap()/sub", "preprocessing"),
        ("jit(train_step)/transpose(jvp(Detector.losses))/Detector.pyramid/backbone/layer1_0/conv1/x", "backbone"),
        ("jit(train_step)/jvp(Detector.losses)/Detector.pyramid/neck/lateral2/dot_general", "FPN"),
        ("jit(train_step)/jvp(Detector.losses)/proposal_network/proposal_network.refine/coarse_conv/x", "proposals"),
        ("jit(train_step)/jvp(Detector.losses)/proposal_network/proposal_network.refine/fine_conv/while/body/dot",
         "adaptive convolution"),
        ("jit(train_step)/jvp(Detector.losses)/proposal_network.losses/vmap(proposal_network.fine_losses)/targets/gt",
         "targets"),
        ("jit(train_step)/jvp(Detector.losses)/proposal_network.losses/vmap(proposal_network.fine_losses)/log",
         "losses"),
        ("jit(train_step)/jvp(Detector.losses)/proposal_network.choose/vmap()/while/body/and", "NMS"),
        ("jit(train_step)/jvp(Detector.losses)/roi_head.sample/vmap(roi_head.sample_image)/eq", "targets"),
        ("jit(train_step)/jvp(Detector.losses)/Detector.regions/roi_head.pool/vmap()/gather", "RoIAlign"),
        ("jit(train_step)/jvp(Detector.losses)/Detector.regions/imitation.compress/dot", "feature imitation"),
        ("jit(train_step)/jvp(Detector.losses)/roi_head/hidden1/dot_general", "heads"),
        ("jit(train_step)/jvp(Detector.losses)/roi_head.losses/sub", "losses"),
        ("jit(train_step)/optimizer/mul", "optimiser"),
        ("jit(train_step)/memory/scatter", "memory"),
        ("jit(train_step)/is_finite", "rest"),
        ("", "other"),
    ],
)  # fmt: skip
def test_names_belong_to_parts(op_name, part):
    assert parts.part_of(op_name) == part and part in parts.ROWS
    assert parts.part_of(op_name, "all-reduce-start") == "collectives"


def plane(name, *events, line="thread"):
    """Events are (name, start, end, statistics)."""
    made = [SimpleNamespace(name=n, start_ns=start, end_ns=end, stats=list(s.items())) for n, start, end, s in events]
    return SimpleNamespace(name=name, lines=[SimpleNamespace(name=line, events=made)])


def of_program(number, **others):
    return {"hlo_op": f"op.{number}", "hlo_module": "jit_step", "_p": number} | others


def test_what_overlaps_is_divided_and_a_loop_has_the_rest():
    events = [
        trace.Event("loop", 0, 100),
        trace.Event("a", 10, 30),
        trace.Event("b", 20, 60),
        trace.Event("inner", 62, 90),
        trace.Event("a", 70, 80),
    ]
    spent = trace.divided(events, {"loop", "inner"})
    assert np.allclose(spent, [10 + 2 + 10 + 18 / 2, 15, 35, 18 / 2, 10]) and np.isclose(spent.sum(), 100)


def test_an_instruction_ends_where_its_last_thread_does():
    events = [
        ("op.1", 0, 2, of_program(1)),
        ("end: op.1", 10, 10, {"_c": 1}),
        ("op.2", 10, 14, of_program(2)),
        ("end: op.2", 13, 13, {"_c": 2}),
        ("op.9", 20, 30, of_program(3, hlo_module="jit_other")),
        ("python", 0, 50, {}),
    ]
    measured = trace.measure([plane("/host:CPU", *events)], "jit_step", ())
    assert measured.seconds == pytest.approx({"op.1": 10e-9, "op.2": 4e-9})
    assert measured.executions == {"op.1": 1, "op.2": 1} and measured.planes == 1


def test_devices_speak_for_themselves():
    kernel = {"hlo_op": "fusion.1", "hlo_module": "jit_step"}
    gpus = [plane(f"/device:GPU:{number}", ("gemm", 0, 4, kernel), ("gemm", 4, 6, kernel)) for number in range(2)]
    host = plane("/host:CPU", ("fusion.1", 0, 90, kernel))
    measured = trace.measure([host, *gpus], "jit_step", ())
    assert measured.seconds == pytest.approx({"fusion.1": 12e-9}) and measured.executions == {"fusion.1": 4}
    assert measured.planes == 2
    tpu = plane("/device:TPU:0", ("%fusion.1 = f32[2]{0} fusion(%p)", 0, 4, {}), line="XLA Ops")
    assert trace.measure([tpu, host], "jit_step", ()).seconds == pytest.approx({"fusion.1": 4e-9})


def test_the_table_adds_up():
    found = {
        "a": Cost("dot", "jit(s)/jvp(Detector.losses)/backbone/x", 100, 10),
        "b": Cost("fusion", "jit(s)/transpose(jvp(Detector.losses))/backbone/x", 50, 1000),
    }
    measured = trace.Measured(Counter(a=2.0, b=1.0, unknown=0.5), Counter(a=4, b=2, unknown=2), 1)
    model = Counter({"jvp(Detector.losses)/backbone": 30, "jvp(Detector.losses)/rematted_computation/neck": 9, "x": 7})
    numbers = table.summary(found, measured, model, table.Times(2.0, 0.25), peaks.Peak(1000, 10000, "sheet"), 2, 8)
    backbone = numbers["parts"]["backbone"]
    assert backbone == {
        "forward_seconds": 1.0,
        "backward_seconds": 0.5,
        "flops": 250.0,
        "bytes": 1020.0,
        "share": 0.75,
        "roofline": pytest.approx(0.25 / 1.5),
    }
    assert numbers["parts"]["other"]["share"] == 0.125 and numbers["idle_seconds"] == 0.25
    assert numbers["unattributed_share"] == 0.25
    assert numbers["model_flops_by_part"] == {"backbone": 240} and numbers["mfu"] == 240 / 2000
    page = table.page(numbers, "A step")
    assert "| backbone | 1,000.00 | 500.00 | 75.0 | 0.00 | 0.0 | 16.7 |" in page and "MFU 12.0 %" in page


def test_known_devices_are_not_measured(monkeypatch):
    monkeypatch.setattr(peaks, "measured", lambda: peaks.Peak(1.0, 2.0, "measured"))
    assert peaks.peak_of("NVIDIA H200").flops == 989e12 and peaks.peak_of("cpu").bytes == 2.0


def test_the_mode_leaves_trace_and_table(tiny_scenes, tmp_path, monkeypatch):
    changed = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)  # so that the program of other tests is found
    monkeypatch.setattr(profile, "WARM_UP", 1)
    monkeypatch.setattr(profile, "STEPS", 1)
    monkeypatch.setattr(peaks, "SIZE", 256)
    monkeypatch.setattr(peaks, "COPIED", 2**20)
    status, output, errors = tiny.call_main(*tiny.arguments(tiny_scenes, tmp_path), "--mode=profile")
    assert (status, errors) == (0, "") and changed["jax_compilation_cache_include_metadata_in_key"]
    assert [path.name for path in epath.Path(tmp_path).iterdir()] == ["profile"]
    folder = epath.Path(tmp_path) / "profile"
    assert len(list(folder.glob("plugins/profile/*/*.xplane.pb"))) == 1
    assert (folder / "profile.md").read_text() in output
    numbers = json.loads((folder / "profile.json").read_text())
    assert numbers["unattributed_share"] < 0.3  # eight devices share this machine with other tests
    assert numbers["peak"]["source"].startswith("measured") and 0 < numbers["mfu"] < 1
    of = numbers["parts"]
    assert list(of) == list(parts.ROWS)
    for part in ("backbone", "FPN", "proposals", "adaptive convolution", "RoIAlign", "heads", "feature imitation"):
        assert min(of[part]["forward_seconds"], of[part]["backward_seconds"], of[part]["bytes"]) > 0
    assert min(of[part]["forward_seconds"] for part in ("NMS", "targets", "collectives")) > 0
    model = numbers["model_flops_by_part"]
    executed = sum(of[name]["flops"] for name in model)
    assert executed == pytest.approx(sum(model.values()), rel=0.1)  # no product is computed twice, a few become sums
    assert model["backbone"] == pytest.approx(of["backbone"]["flops"], rel=0.02)


def test_a_workdir_that_cannot_be_written_is_one_line(tiny_scenes, tmp_path):
    (tmp_path / "profile").write_text("")
    status, _, errors = tiny.call_main(*tiny.arguments(tiny_scenes, tmp_path), "--mode=profile")
    assert status == 2 and errors.count("\n") == 1 and f"{tmp_path}/profile cannot be used" in errors
