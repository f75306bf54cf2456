"""SIGTERM and SIGINT ask a run to stop: it finishes its step, saves a checkpoint and exits."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import jax

from cfinet_jax.errors import Interrupted, handling
from cfinet_jax.runtime.mesh import Mesh, any_process

RESUME = "Rerun the same command to resume."


class Request:
    """A request to stop, made by a signal. A second signal ends the process at once."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self.unsaved = False  # whether stopping at once would lose work
        self.alone = jax.process_count() == 1
        self.last_answer: bool | jax.Array = False

    def take(self, number: int, _: FrameType | None) -> None:
        """Signal handler: record the signal. In a single-process run with nothing unsaved, raise immediately."""
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = signal.Signals(number).name
        if self.alone and not self.unsaved:
            raise self.interrupted()

    def interrupted(self) -> Interrupted:
        """Return what to raise when nothing is unsaved."""
        return Interrupted(f"Stopped by {self.signal}, with everything saved. {RESUME}")

    def agreed(self, mesh: Mesh) -> bool:
        """Return whether to stop after this step: the same answer in every process, if each asks after every step.

        A process may be the only one to get the signal, and all have to stop after the same step, or the others would
        wait for it forever. Each step starts a sum of the flags over all devices and reads that of the step before,
        which has arrived by then: nobody waits. A single process knows without asking, and stops after this step.
        """
        answer = any_process(self.signal is not None, mesh)
        agreed, self.last_answer = answer if self.alone else self.last_answer, answer
        return bool(agreed)

    def raise_if_asked(self, mesh: Mesh, step: int) -> None:
        """Raise `Interrupted` if any process has got a signal; call it in all processes, with everything saved."""
        self.unsaved = False
        if any_process(self.signal is not None, mesh):
            who = self.signal or "another process"
            raise Interrupted(f"Stopped by {who} after step {step:,}, which is saved. {RESUME}")


@contextlib.contextmanager
def requests() -> Iterator[Request]:
    """Handle the signals of the process for the block; outside the main thread there are none to handle."""
    request = Request()
    with handling(request.take):
        yield request
