"""Progress of long work: share done, rate and time left."""

import functools
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
print_once = functools.cache(functools.partial(print, flush=True))


class Progress:
    """Print progress: one updating line on a terminal, a plain line every 10 s elsewhere."""

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "images") -> None:
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self.terminal = sys.stdout.isatty()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure the rate from now on, which leaves out compilation and evaluation."""
        self.started, self.first, self.printed = time.perf_counter(), self.done, 0.0

    def advance(self, count: int, values: dict[str, float] | None = None) -> None:
        """Count `count` more units as done, and print if it is time to."""
        self.done += count
        now = time.perf_counter()
        if now - self.printed < (0.5 if self.terminal else 10) and self.done < self.total:
            return
        self.printed = now
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        parts = [
            f"{self.what} {self.done / self.total:4.0%}  {self.done:,}/{self.total:,} {self.unit}",
            *(f"{name} {value:.3f}" for name, value in (values or {}).items()),
            f"{rate:.1f} {self.unit}/s",
            f"{left // 60:.0f}:{left % 60:02.0f} left",
        ]
        print(("\r\033[K" if self.terminal else "") + "  ".join(parts), end="" if self.terminal else "\n", flush=True)

    def close(self) -> None:
        """End the updating line."""
        if self.terminal:
            print(flush=True)


def track(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yield the items, printing progress."""
    progress = Progress(what, len(items))
    for item in items:
        yield item
        progress.advance(1)
    progress.close()
