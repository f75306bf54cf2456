"""The profile as numbers and as a page: a row per part of the step."""

from collections import Counter
from typing import Any, NamedTuple

from cfinet_jax.runtime.markdown import percent, with_head
from cfinet_jax.studies.profile.costs import Cost
from cfinet_jax.studies.profile.parts import ROWS, is_backward, is_model, part_of
from cfinet_jax.studies.profile.peaks import Peak
from cfinet_jax.studies.profile.trace import Measured

HEAD = ("part", "forward, ms", "backward, ms", "share, %", "GFLOP", "MiB", "of its roofline, %")

SUMS = ("forward_seconds", "backward_seconds", "flops", "bytes")


class Times(NamedTuple):
    """Measured on the host, in seconds a step."""

    step: float
    input: float  # until the batch lies on the device


def summary(
    costs: dict[str, Cost], measured: Measured, model: Counter[str], times: Times, peak: Peak, steps: int, devices: int
) -> dict[str, Any]:
    """All numbers, of one step; `model` are the operations of one device's jaxpr by path.

    Time, operations and bytes of a part are those of one device, but of all where the processor plays several.
    """
    per_step = steps * measured.planes
    parts: dict[str, dict[str, Any]] = {row: dict.fromkeys(SUMS, 0.0) for row in ROWS}
    for name, seconds in measured.seconds.items():
        cost = costs.get(name, Cost("", "", 0, 0))
        part = parts[part_of(cost.op_name, cost.opcode)]
        part["backward_seconds" if is_backward(cost.op_name) else "forward_seconds"] += seconds / per_step
        part["flops"] += cost.flops * measured.executions[name] / per_step
        part["bytes"] += cost.bytes * measured.executions[name] / per_step
    for part in parts.values():
        seconds = part["forward_seconds"] + part["backward_seconds"]
        best = max(part["flops"] / peak.flops, part["bytes"] / peak.bytes)
        part |= {"share": seconds / times.step, "roofline": best / seconds if seconds else None}
    counted = Counter[str]()
    for path, flops in model.items():
        if is_model(path):
            counted[part_of(path)] += flops * devices
    idle = max(times.step - measured.seconds.total() / per_step, 0.0)
    return {
        "step_seconds": times.step,
        "input_seconds": times.input,
        "idle_seconds": idle,
        "unattributed_share": idle / times.step + parts["other"]["share"],
        "parts": parts,
        "model_flops": counted.total(),
        "model_flops_by_part": dict(counted),
        "mfu": counted.total() / (times.step * peak.flops * measured.planes),
        "peak": peak._asdict(),
        "steps": steps,
    }


def page(numbers: dict[str, Any], title: str) -> str:
    """The table in Markdown, with what stands beside and below it."""
    rows = [
        [
            name,
            milliseconds(part["forward_seconds"]),
            milliseconds(part["backward_seconds"]),
            percent(part["share"]),
            f"{part['flops'] / 1e9:,.2f}",
            f"{part['bytes'] / 2**20:,.1f}",
            percent(part["roofline"]),
        ]
        for name, part in numbers["parts"].items()
    ]
    step, idle = numbers["step_seconds"], numbers["idle_seconds"]
    sums = [sum(part[key] for part in numbers["parts"].values()) for key in ("flops", "bytes")]
    rows.append(["nothing runs", milliseconds(idle), "", percent(idle / step), "", "", ""])
    total = [f"**{milliseconds(step)}**", "", "100.0", f"{sums[0] / 1e9:,.2f}", f"{sums[1] / 2**20:,.1f}", ""]
    rows.append(["**step**", *total])
    peak = numbers["peak"]
    lines = [
        f"Input wait {milliseconds(numbers['input_seconds'])} ms a step, on the host: the next batch, and placing it.",
        f"MFU {percent(numbers['mfu'])} %: {numbers['model_flops'] / 1e9:,.2f} GFLOP of the model a step.",
        f"Not attributed: {percent(numbers['unattributed_share'])} % of the step (other, and nothing runs).",
        f"Peaks: {peak['flops'] / 1e12:,.3f} TFLOP/s, {peak['bytes'] / 1e9:,.1f} GB/s ({peak['source']}).",
    ]
    return f"# {title}\n\n{with_head(HEAD, rows)}\n" + "\n".join(f"- {line}" for line in lines) + f"\n\n{NOTE}\n"


NOTE = """Seconds are those of the clock: what runs at the same time, in threads or on devices that the processor plays,
shares them equally, so that the rows add up to the step. The time of a loop in which none of its instructions runs is
its part's; collectives wait for the slowest device. Backward holds what is computed again for it. FLOP are those of
dots and convolutions as executed, bytes those that instructions read and write, as if nothing stayed in a cache: a part
may pass its roofline. An instruction fused of several parts counts to one of them. The model's FLOP are those of the
detector and its gradient (forward, and twice that where both input and weights learn), padding of images included,
without what is computed again."""


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.2f}"
