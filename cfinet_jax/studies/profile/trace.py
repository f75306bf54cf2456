"""Seconds of every instruction, from the events of a profiler's trace."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from cfinet_jax.runtime.paths import matching


class Event(NamedTuple):
    """One execution of an instruction, in nanoseconds since the trace began."""

    instruction: str
    start: float
    end: float


class Measured(NamedTuple):
    """Time spent in each instruction, summed over devices; executions that overlap share it equally."""

    seconds: Counter[str]
    planes: int  # devices with a clock of their own; virtual devices of one processor share its only one


def recorded(folder: epath.Path) -> Any:
    """Open the newest trace that `jax.profiler` left in a folder."""
    newest = max(matching(folder, "plugins/profile/*/*.xplane.pb"), key=str)
    return jax.profiler.ProfileData.from_serialized_xspace(newest.read_bytes())


def measure(planes: Collection[Any], module: str, containers: Collection[str]) -> Measured:
    """Return the time of the instructions of the program `module`.

    `containers` are instructions, such as loops, whose events span those of others: they get only the time in which
    none of the others ran.
    """
    found = {plane.name: list(events_of(plane, module)) for plane in planes}
    devices = [events for name, events in found.items() if name.startswith("/device:") and events]
    devices = devices or [events for events in found.values() if events]  # a CPU records on the host's plane only
    seconds = Counter()
    for events in devices:
        for event, spent in zip(events, divided(events, containers), strict=True):
            seconds[event.instruction] += spent * 1e-9
    return Measured(seconds, max(len(devices), 1))


def events_of(plane: Any, module: str) -> Iterator[Event]:
    """Yield the executions of a program's instructions on one plane.

    On CPUs an instruction may continue in other threads; its end is then a separate event, tied to it by a number.
    """
    started: dict[int, Event] = {}
    ends: dict[int, float] = defaultdict(float)
    for line in plane.lines:
        for number, event in enumerate(line.events):
            stats = dict(event.stats)
            if event.name.startswith("end: "):
                ends[stats.get("_c", 0)] = event.end_ns
                continue
            # TPUs have no hlo_op, but a line of their own for instructions.
            name = stats.get("hlo_op") or (line.name == "XLA Ops" and event.name.split()[0].lstrip("%"))
            if name and stats.get("hlo_module", module) == module:
                started[stats.get("_p", (line.name, number))] = Event(name, event.start_ns, event.end_ns)
    for key, event in started.items():
        yield event._replace(end=max(event.end, ends.get(key, 0.0)))


def divided(events: list[Event], containers: Collection[str]) -> np.ndarray:
    """Return the time `[events]` of each event; events that overlap share it equally, so that times add up."""
    start, end = np.array([[event.start, event.end] for event in events]).reshape(-1, 2).T
    outer = np.array([event.instruction in containers for event in events], bool)
    # Between two neighbouring moments nothing starts or ends.
    moments, place = np.unique(np.concatenate([start, end]), return_inverse=True)
    first, last = place[: len(events)], place[len(events) :]

    def running(which: np.ndarray) -> np.ndarray:
        change = np.bincount(first[which], minlength=len(moments)) - np.bincount(last[which], minlength=len(moments))
        return change.cumsum()[:-1]

    inner, around = running(~outer), running(outer)
    width = np.diff(moments)
    of_inner = np.where(inner, width / np.maximum(inner, 1), 0.0)
    of_outer = np.where(inner == 0, width / np.maximum(around, 1), 0.0)
    inner_until, outer_until = (np.concatenate([[0.0], share.cumsum()]) for share in (of_inner, of_outer))
    return np.where(outer, outer_until[last] - outer_until[first], inner_until[last] - inner_until[first])
