"""How every benchmark measures time: again and again, and the median counts."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def medians(programs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Seconds of each, called in turn, so that what else the machine does falls on all; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(1 + repeats):
        for name, program in programs.items():
            started = time.perf_counter()
            program()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def median(program: Callable[[], Any], repeats: int) -> float:
    """Seconds of one program alone."""
    return medians({"": program}, repeats)[""]
