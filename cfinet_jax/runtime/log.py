"""What a run writes beside its checkpoints: settings, versions, a line per event, TensorBoard, progress."""

import json
import time
from typing import Any

import jax
from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import directory_check
from tensorboardX.summary import scalar

from cfinet_jax.runtime.files import replace_text
from cfinet_jax.runtime.paths import in_bucket

BUCKET_PAUSE = 60  # seconds; a bucket takes one version of a file in a second, and all of it each time
PACKAGES = ("cfinet-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def logged_by(line: str, step: int) -> bool:
    """Whether a line of `metrics.jsonl` is whole and of no later step."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def append(path: epath.Path, lines: str) -> None:
    """A bucket cannot append to a file, which is written anew there."""
    if in_bucket(path):
        path.write_text(path.read_text() + lines)
    else:
        with path.open("a") as file:
            file.write(lines)


class RunLog:
    """Appends events to `metrics.jsonl` and TensorBoard, from `step` on: what an earlier try logged later is undone.

    In a bucket both are written once a minute and when `flush` is called, before a checkpoint at the latest. Of several
    processes only the first one writes.
    """

    def __init__(self, workdir: epath.Path, step: int) -> None:
        self.path = workdir / "metrics.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        lines = [line for line in lines if logged_by(line, step)]
        self.evaluated = {entry["step"] for entry in map(json.loads, lines) if entry.get("kind") == "eval"}
        self.writes = jax.process_index() == 0
        self.waiting, self.flushed, self.pause = "", time.monotonic(), BUCKET_PAUSE if in_bucket(workdir) else 0
        if self.writes:
            replace_text(self.path, "".join(f"{line}\n" for line in lines))
            # Not `SummaryWriter`: a full disk ends its thread, and then the training waits for it for ever.
            directory_check(str(workdir / "tensorboard"))
            self.events = EventsWriter(str(workdir / "tensorboard" / "events"))

    def write(self, kind: str, step: int, images: int, values: dict[str, Any]) -> None:
        """One event: `kind` is train or eval; what is not a number stays out of TensorBoard."""
        if not self.writes:
            return
        self.waiting += json.dumps({"kind": kind, "step": step, "images": images, **values}) + "\n"
        for name, value in values.items():
            if isinstance(value, int | float):
                summary = scalar(f"{kind}/{name}", value)
                self.events.write_event(Event(wall_time=time.time(), step=images, summary=summary))
        if time.monotonic() - self.flushed >= self.pause:
            self.flush()

    def flush(self) -> None:
        """Writes the events that wait: a run that goes on from a checkpoint misses none before it."""
        if self.waiting:
            lines, self.waiting = self.waiting, ""
            append(self.path, lines)
            self.events.flush()
            self.flushed = time.monotonic()

    def close(self) -> None:
        """Closes the files."""
        if self.writes:
            self.flush()
            self.events.close()
