"""SIGTERM and SIGINT ask a training to stop: it ends after the step it is at, and saves what it has learnt."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import jax

from cfinet_jax.errors import Interrupted, handling

GO_ON = "The same command goes on from there."


class Request:
    """Whether a signal has come. A second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self.unsaved = False  # whether leaving at once would lose something
        self.alone = jax.process_count() == 1

    def take(self, number: int, _: FrameType | None) -> None:
        """The handler. It ends the run itself where nothing is lost and no other process is left waiting."""
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = signal.Signals(number).name
        if self.alone and not self.unsaved:
            raise self.interrupted()

    def interrupted(self) -> Interrupted:
        """What to raise where nothing is lost."""
        return Interrupted(f"Stopped by {self.signal}, with everything saved. {GO_ON}")


@contextlib.contextmanager
def requests() -> Iterator[Request]:
    """Takes the signals of the process; in another thread than the main one there are none to take."""
    request = Request()
    with handling(request.take):
        yield request
