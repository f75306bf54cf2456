"""What is known of the pictures that were decoded, so that a preparation that broke off, even killed, goes on."""

import json
import threading
from types import TracebackType
from typing import Self

from etils import epath

from cfinet_jax.errors import UserError

State = tuple[str, int, int]  # a picture as a file: path, bytes, time of its last change
Size = tuple[int, int] | None  # height and width; None: it cannot be decoded


class Journal:
    """The sizes of pictures by their states: what a file holds, a JSON line each, and what is noted there.

    A line that was half-written is passed over, and a picture that has changed since is not known.

    Raises:
      UserError: the file cannot be written.
    """

    def __init__(self, file: epath.Path) -> None:
        self.file, self.lock = file, threading.Lock()
        try:
            self.sizes = read_sizes(file) if file.exists() else {}
            file.parent.mkdir(parents=True, exist_ok=True)
            self.lines = file.open("a")
        except OSError as error:
            raise self.unwritable(error) from error
        if self.sizes:
            print(f"{len(self.sizes):,} images were checked already, as {file} says")

    def note(self, state: State, size: Size) -> None:
        """Keeps the size of a picture: a line, and nothing less, outlives this process."""
        with self.lock:
            self.sizes[state] = size
            try:
                self.lines.write(f"\n{json.dumps([state, size])}")  # on a line of its own, whatever was there before
                self.lines.flush()
            except OSError as error:
                raise self.unwritable(error) from error

    def unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self.file} cannot be written ({error.strerror}): choose another --data_dir")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.lines.close()
        if not self.sizes:
            self.file.unlink()


def read_sizes(file: epath.Path) -> dict[State, Size]:
    """The whole lines of a journal's file."""
    sizes: dict[State, Size] = {}
    for line in file.read_bytes().splitlines():
        try:
            state, size = json.loads(line)
        except ValueError:
            continue
        sizes[tuple(state)] = size and tuple(size)
    return sizes


def state_of(picture: epath.Path) -> State:
    """The state that a picture is in."""
    stat = picture.stat()
    return str(picture), stat.length, stat.mtime
