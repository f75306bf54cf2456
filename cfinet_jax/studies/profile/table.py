"""Profile as numbers and as a page: a row per part of the step."""

from typing import Any, NamedTuple

from cfinet_jax.runtime.markdown import percent, with_head
from cfinet_jax.studies.profile.parts import ROWS, Instruction
from cfinet_jax.studies.profile.peaks import Peak
from cfinet_jax.studies.profile.trace import Measured


class Times(NamedTuple):
    """Times measured on the host, in seconds per step."""

    step: float
    input: float  # until the batch lies on the device


def summary(
    instructions: dict[str, Instruction],
    measured: Measured,
    model_flops: int,
    times: Times,
    peak: Peak,
    steps: int,
) -> dict[str, Any]:
    """Return all numbers, per step; `model_flops` are those of all devices together."""
    per_step = steps * measured.planes
    parts: dict[str, dict[str, float]] = {row: {"forward_seconds": 0.0, "backward_seconds": 0.0} for row in ROWS}
    for name, seconds in measured.seconds.items():
        instruction = instructions.get(name, Instruction("", ""))
        way = "backward_seconds" if instruction.is_backward else "forward_seconds"
        parts[instruction.part][way] += seconds / per_step
    for part in parts.values():
        part["share"] = sum(part.values()) / times.step
    idle = max(times.step - measured.seconds.total() / per_step, 0.0)
    return {
        "step_seconds": times.step,
        "input_seconds": times.input,
        "idle_seconds": idle,
        "unattributed_share": idle / times.step + parts["other"]["share"],
        "parts": parts,
        "model_flops": model_flops,
        "mfu": model_flops / (times.step * peak.flops * measured.planes),
        "peak": peak._asdict(),
        "steps": steps,
    }


def page(numbers: dict[str, Any], title: str) -> str:
    """Return the page in Markdown."""
    step, idle, peak = numbers["step_seconds"], numbers["idle_seconds"], numbers["peak"]
    rows = [
        [name, milliseconds(part["forward_seconds"]), milliseconds(part["backward_seconds"]), percent(part["share"])]
        for name, part in numbers["parts"].items()
    ]
    rows.append(["nothing runs", milliseconds(idle), "", percent(idle / step)])
    rows.append(["**step**", f"**{milliseconds(step)}**", "", "100.0"])
    return f"""# {title}

{with_head(("part", "forward, ms", "backward, ms", "share, %"), rows)}
- Waiting for input: {milliseconds(numbers["input_seconds"])} ms per step, on the host, until the next batch is placed.
- MFU: {percent(numbers["mfu"])} %, with {numbers["model_flops"] / 1e9:,.2f} GFLOP of the model per step and a peak of \
{peak["flops"] / 1e12:,.3f} TFLOP/s ({peak["source"]}).
- Not attributed: {percent(numbers["unattributed_share"])} % of the step (other, and nothing runs).

Where several instructions run at the same time, in threads or on virtual devices, they share that time equally, so
that the rows add up to the step. Loops get the time in which none of their instructions runs. Collectives wait for the
slowest device. Backward includes what is computed again for it. An instruction that XLA fused of several parts counts
to one of them. The FLOP of the model are those of the dots and convolutions of the detector and its gradient,
without what is computed again. The trace has every instruction: open it with XProf, TensorBoard or Perfetto.
"""


def milliseconds(seconds: float) -> str:
    """Return seconds as text, in milliseconds."""
    return f"{1000 * seconds:,.2f}"
