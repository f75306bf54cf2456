"""Logs of a run: one JSON line per event in `metrics.jsonl`, and TensorBoard."""

import json
import time
from typing import Any

import jax
from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import directory_check
from tensorboardX.summary import scalar

from cfinet_jax.runtime.files import read_text, replace_text
from cfinet_jax.runtime.paths import in_bucket

BUCKET_PAUSE = 60  # seconds between writes: a bucket takes a file once a second, and only as a whole


def logged_by(line: str, step: int) -> bool:
    """Return whether a line of `metrics.jsonl` is complete and belongs to no later step than `step`."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def append(path: epath.Path, lines: str) -> None:
    """Append to a text file; in a bucket, which cannot append, rewrite it."""
    if in_bucket(path):
        path.write_text(path.read_text() + lines)
    else:
        with path.open("a") as file:
            file.write(lines)


class RunLog:
    """Append events to `metrics.jsonl` and TensorBoard, after removing what an interrupted run logged after `step`.

    In a bucket both are written once a minute and when `flush` is called, which has to happen before a checkpoint. In
    multi-process runs only process 0 writes.
    """

    def __init__(self, workdir: epath.Path, step: int) -> None:
        self.path = workdir / "metrics.jsonl"
        lines = read_text(self.path, "replace").splitlines() if self.path.exists() else []
        lines = [line for line in lines if logged_by(line, step)]
        self.evaluated = {entry["step"] for entry in map(json.loads, lines) if entry.get("kind") == "eval"}
        self.writes = jax.process_index() == 0
        self.waiting, self.flushed, self.pause = "", time.monotonic(), BUCKET_PAUSE if in_bucket(workdir) else 0
        if self.writes:
            replace_text(self.path, "".join(f"{line}\n" for line in lines))
            # tensorboardX's public `SummaryWriter` writes in a thread, which a full disk ends; the training would then
            # wait for it forever. `EventsWriter`, its inner part, writes here and raises the error.
            directory_check(str(workdir / "tensorboard"))
            self.events = EventsWriter(str(workdir / "tensorboard" / "events"))

    def write(self, kind: str, step: int, images: int, values: dict[str, Any]) -> None:
        """Log an event of `kind` train or eval; TensorBoard gets only the numbers among the values."""
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
        """Write pending events, so that a run resumed from the next checkpoint misses none before it."""
        if self.waiting:
            lines, self.waiting = self.waiting, ""
            append(self.path, lines)
            self.events.flush()
            self.flushed = time.monotonic()

    def close(self) -> None:
        """Write pending events and close the files."""
        if self.writes:
            self.flush()
            self.events.close()
