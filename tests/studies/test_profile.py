"""`--mode=profile`: parts, events, peaks, the table, and the whole mode on the tiny experiment."""

import json
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath

from cfinet_jax.studies import profile
from cfinet_jax.studies.profile import parts, peaks, table, trace
from tests import tiny

PROGRAM = """HloModule jit_step, is_scheduled=true

%fused (rows: f32[100,8]) -> f32[100,8] {
  %rows = f32[100,8]{1,0} parameter(0)
  ROOT %negated = f32[100,8]{1,0} negate(%rows)
}

%body (arguments: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %arguments = (s32[], f32[100,8]{1,0}) parameter(0)
  %rows.1 = f32[100,8]{1,0} get-tuple-element(%arguments), index=1
  %moved = f32[100,8]{1,0} fusion(%rows.1), kind=kLoop, calls=%fused
  ROOT %both = (s32[], f32[100,8]{1,0}) tuple(%place, %moved)
}

ENTRY %main (x: f32[2,9,9,4], k: f32[3,3,4,6]) -> f32[2,5,5,6] {
  %x = f32[2,9,9,4]{3,2,1,0:T(8,128)} parameter(0), metadata={op_name="batch.images"}
  %k = f32[3,3,4,6]{3,2,1,0} parameter(1)
  %copied-b_c = f32[3,3,4,6]{3,2,1,0} copy(%k)
  %forward = f32[2,5,5,6]{3,2,1,0} convolution(%x, %copied-b_c), \
metadata={op_name="jit(step)/jvp(Detector.losses)/backbone/conv" x=1}
  %loop = (s32[], /*index=1*/f32[100,8]{1,0}) while(%start), condition=%until, body=%body, \
metadata={op_name="jit(step)/transpose(jvp(Detector.losses))/roi_head.pool/while"}
  %unread = f32[] constant(0)
  ROOT %sum = f32[2,5,5,6]{3,2,1,0} all-reduce-start(%forward, %unread), metadata={op_name="jit(step)/psum"}
}
"""


def test_instructions_without_a_name_take_that_of_their_reader_or_their_loop():
    found = parts.instructions_of(PROGRAM)
    assert {name: each.part for name, each in found.items() if each.part != "other"} == {
        **dict.fromkeys(("x", "k", "copied-b_c", "forward"), "backbone"),  # `batch.images` is the name of an argument
        **dict.fromkeys(("loop", "arguments", "rows.1", "moved", "both", "rows", "negated"), "RoIAlign"),
        "sum": "collectives",
    }
    assert found["unread"].op_name == "" and found["loop"].opcode == "while"
    assert found["moved"].is_backward and not found["copied-b_c"].is_backward


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


def plane(name, *events, line="thread"):
    """A plane of a trace; events are (name, start, end, statistics)."""
    made = [SimpleNamespace(name=n, start_ns=start, end_ns=end, stats=list(s.items())) for n, start, end, s in events]
    return SimpleNamespace(name=name, lines=[SimpleNamespace(name=line, events=made)])


def test_overlapping_events_share_their_time_and_loops_get_the_rest():
    events = [
        trace.Event("loop", 0, 100),
        trace.Event("a", 10, 30),
        trace.Event("b", 20, 60),
        trace.Event("inner", 62, 90),
        trace.Event("a", 70, 80),
    ]
    spent = trace.divided(events, {"loop", "inner"})
    assert np.allclose(spent, [10 + 2 + 10 + 18 / 2, 15, 35, 18 / 2, 10]) and np.isclose(spent.sum(), 100)


def test_events_are_read_from_processors_and_accelerators():
    def of_program(number, **others):
        return {"hlo_op": f"op.{number}", "hlo_module": "jit_step", "_p": number} | others

    host = plane(
        "/host:CPU",
        ("op.1", 0, 2, of_program(1)),
        ("end: op.1", 10, 10, {"_c": 1}),  # in another thread
        ("op.2", 10, 14, of_program(2)),
        ("end: op.2", 13, 13, {"_c": 2}),
        ("op.9", 20, 30, of_program(3, hlo_module="jit_other")),
        ("python", 0, 50, {}),
    )
    kernel = {"hlo_op": "fusion.1", "hlo_module": "jit_step"}
    gpus = [plane(f"/device:GPU:{number}", ("gemm", 0, 4, kernel), ("gemm", 4, 6, kernel)) for number in range(2)]
    tpu = plane("/device:TPU:0", ("%fusion.1 = f32[2]{0} fusion(%p)", 0, 4, {}), line="XLA Ops")
    for planes, seconds, clocks in (
        ([host], {"op.1": 10e-9, "op.2": 4e-9}, 1),
        ([host, *gpus], {"fusion.1": 12e-9}, 2),
        ([tpu, host], {"fusion.1": 4e-9}, 1),
    ):
        measured = trace.measure(planes, "jit_step", ())
        assert measured.seconds == pytest.approx(seconds) and measured.planes == clocks


def test_the_table_adds_up():
    found = {
        "a": parts.Instruction("dot", "jit(s)/jvp(Detector.losses)/backbone/x"),
        "b": parts.Instruction("fusion", "jit(s)/transpose(jvp(Detector.losses))/backbone/x"),
    }
    measured = trace.Measured(Counter(a=2.0, b=1.0, unknown=0.5), 1)
    numbers = table.summary(found, measured, 240, table.Times(2.0, 0.25), peaks.Peak(1000, "sheet"), 2)
    assert numbers["parts"]["backbone"] == {"forward_seconds": 1.0, "backward_seconds": 0.5, "share": 0.75}
    assert numbers["parts"]["other"]["share"] == 0.125 and numbers["idle_seconds"] == 0.25
    assert numbers["unattributed_share"] == 0.25 and numbers["mfu"] == 240 / 2000
    page = table.page(numbers, "A step")
    assert "| backbone | 1,000.00 | 500.00 | 75.0 |" in page and "MFU: 12.0 %" in page


def test_the_mode_writes_trace_and_table(tiny_scenes, tmp_path, monkeypatch):
    changed = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)  # so that the program of other tests is found
    monkeypatch.setattr(profile, "WARM_UP", 1)
    monkeypatch.setattr(profile, "STEPS", 1)
    monkeypatch.setattr(peaks, "SIZE", 256)
    status, output, errors = tiny.call_main(*tiny.arguments(tiny_scenes, tmp_path), "--mode=profile")
    assert (status, errors) == (0, "") and changed["jax_compilation_cache_include_metadata_in_key"]
    assert [path.name for path in epath.Path(tmp_path).iterdir()] == ["profile"]
    folder = epath.Path(tmp_path) / "profile"
    assert len(list(folder.glob("plugins/profile/*/*.xplane.pb"))) == 1
    assert (folder / "profile.md").read_text() in output
    numbers = json.loads((folder / "profile.json").read_text())
    assert numbers["unattributed_share"] < 0.3  # eight devices share this machine with other tests
    assert numbers["peak"]["source"].startswith("measured") and 0 < numbers["mfu"] < 1
    assert peaks.peak_of("NVIDIA H200").flops == 989e12
    of = numbers["parts"]
    assert list(of) == list(parts.ROWS)
    for part in ("backbone", "FPN", "proposals", "adaptive convolution", "RoIAlign", "heads", "feature imitation"):
        assert min(of[part]["forward_seconds"], of[part]["backward_seconds"]) > 0
    assert min(of[part]["forward_seconds"] for part in ("NMS", "targets", "collectives")) > 0
    assert of["other"]["share"] < 0.02


def test_a_workdir_that_cannot_be_written_is_one_line(tiny_scenes, tmp_path):
    (tmp_path / "profile").write_text("")
    status, _, errors = tiny.call_main(*tiny.arguments(tiny_scenes, tmp_path), "--mode=profile")
    assert status == 2 and errors.count("\n") == 1 and f"{tmp_path}/profile" in errors
