"""From the events of a trace to the seconds of every instruction."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from cfinet_jax.runtime.paths import matching

NANO = 1e-9


class Event(NamedTuple):
    """One execution of an instruction, in nanoseconds since the trace began."""

    instruction: str
    start: float
    end: float


class Measured(NamedTuple):
    """Of all devices together; `seconds` of executions that overlap are divided among them."""

    seconds: Counter[str]
    executions: Counter[str]
    planes: int  # devices with a time of their own; those that the processor plays share its one


def recorded(folder: epath.Path) -> Any:
    """The newest trace that `jax.profiler` left in a folder."""
    newest = max(matching(folder, "plugins/profile/*/*.xplane.pb"), key=str)
    return jax.profiler.ProfileData.from_serialized_xspace(newest.read_bytes())


def measure(planes: Collection[Any], module: str, containers: Collection[str]) -> Measured:
    """What the instructions of the program `module` took.

    `containers` are those whose events span the events of others (loops): theirs is the time in which nothing else ran.
    """
    found = {plane.name: list(events_of(plane, module)) for plane in planes}
    devices = [events for name, events in found.items() if name.startswith("/device:") and events]
    devices = devices or [events for events in found.values() if events]  # the processor has but the host's plane
    seconds, executions = Counter(), Counter()
    for events in devices:
        for event, spent in zip(events, divided(events, containers), strict=True):
            seconds[event.instruction] += spent * NANO
            executions[event.instruction] += 1
    return Measured(seconds, executions, max(len(devices), 1))


def events_of(plane: Any, module: str) -> Iterator[Event]:
    """The executions of a program on one plane.

    An instruction may go on in other threads: on the processor its end is an event of its own, tied to it by a number.
    """
    started: dict[int, Event] = {}
    ends: dict[int, float] = defaultdict(float)
    for line in plane.lines:
        for number, event in enumerate(line.events):
            stats = dict(event.stats)
            if event.name.startswith("end: "):
                ends[stats.get("_c", 0)] = event.end_ns
                continue
            name = stats.get("hlo_op") or (
                line.name == "XLA Ops" and event.name.split()[0].lstrip("%")
            )  # the latter on TPUs
            if name and stats.get("hlo_module", module) == module:
                key = stats.get("_p", (line.name, number))
                started[key] = Event(name, event.start_ns, event.end_ns)
    for key, event in started.items():
        yield event._replace(end=max(event.end, ends.get(key, 0.0)))


def divided(events: list[Event], containers: Collection[str]) -> np.ndarray:
    """The time of each event, where several run at once in equal parts; of containers while nothing else runs."""
    start, end = np.array([[event.start, event.end] for event in events]).reshape(-1, 2).T
    outer = np.array([event.instruction in containers for event in events], bool)
    times, place = np.unique(np.concatenate([start, end]), return_inverse=True)
    first, last = place[: len(events)], place[len(events) :]

    def running(which: np.ndarray) -> np.ndarray:
        change = np.bincount(first[which], minlength=len(times)) - np.bincount(last[which], minlength=len(times))
        return change.cumsum()[:-1]

    inner, around = running(~outer), running(outer)
    width = np.diff(times)
    shares = (
        np.where(inner, width / np.maximum(inner, 1), 0.0),
        np.where((inner == 0) & (around > 0), width / np.maximum(around, 1), 0.0),
    )
    of_inner, of_outer = (np.concatenate([[0.0], share.cumsum()]) for share in shares)
    return np.where(outer, of_outer[last] - of_outer[first], of_inner[last] - of_inner[first])
