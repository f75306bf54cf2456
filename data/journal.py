"""What a preparation that broke off, even killed, leaves to go on from: what it knows of the pictures it decoded.

It lies in `DATA_DIR/NAME.unfinished` with whatever else is not to be made twice; the folder goes when the data set is
whole.
"""

import json
import threading
from types import TracebackType
from typing import Self

from etils import epath

from cfinet_jax.errors import UserError

State = tuple[str, int, int]  # a picture as a file: path, bytes, time of its last change
Size = tuple[int, int] | None  # height and width; None: it cannot be decoded


class Journal:
    """The sizes of pictures by their states: what a file in `folder` holds, a JSON line each, and what is noted there.

    A line that was half-written is passed over, and a picture that has changed since is not known.

    Raises:
      UserError: the file cannot be written.
    """

    def __init__(self, folder: epath.Path) -> None:
        self.folder, self.file, self.lock = folder, folder / "checked.jsonl", threading.Lock()
        try:
            self.sizes = read_sizes(self.file) if self.file.exists() else {}
            folder.mkdir(parents=True, exist_ok=True)
            self.lines = self.file.open("a")
        except OSError as error:
            raise self.unwritable(error) from error
        if self.sizes:
            print(f"{len(self.sizes):,} images were checked already, as {self.file} says")

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
            self.folder.rmtree()


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
