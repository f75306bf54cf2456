"""A journal of checked pictures, from which an interrupted preparation resumes.

It lies in `DATA_DIR/NAME.unfinished`, beside other work in progress; the folder is deleted when the data set is whole.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.runtime.files import length_and_time

JOURNAL = "checked.jsonl"
State = tuple[str, int, int]  # state of a picture file: path, bytes, time of the last change
Trait = tuple[str, int]  # hash of the file, EXIF orientation
Size = tuple[int, int] | None  # height and width; None: it cannot be decoded


class Journal:
    """Sizes of pictures and results of work on them, by file state; one JSON line each in a file in `folder`.

    A half-written line is skipped, and a picture that has changed since is unknown.

    Raises:
      UserError: the file cannot be written.
    """

    def __init__(self, folder: epath.Path) -> None:
        self.folder, self.file, self.lock = folder, folder / JOURNAL, threading.Lock()
        try:
            known = dict(read_lines(self.file)) if self.file.exists() else {}
            self.sizes = {state: size for state, (size, _, _) in known.items()}
            self.made = {state: made for state, (_, _, made) in known.items()}
            self.seen = {path: trait for (path, *_), (_, trait, _) in known.items()}  # the newest state of a path wins
            folder.mkdir(parents=True, exist_ok=True)
            self.lines = self.file.open("a")
        except OSError as error:
            raise self.unwritable(error) from error
        if self.sizes:
            print(f"{len(self.sizes):,} images were checked already, as {self.file} says")

    def note(self, state: State, size: Size, made: Any, trait: Trait) -> None:
        """Record a picture's size, its trait and what was made of it (JSON), in memory and on disk."""
        with self.lock:
            self.sizes[state], self.made[state], self.seen[state[0]] = size, made, trait
            try:
                # The line break comes first: it ends a line that a kill left half-written.
                self.lines.write(f"\n{json.dumps([state, size, trait, made])}")
                self.lines.flush()
            except OSError as error:
                raise self.unwritable(error) from error

    def unwritable(self, error: OSError) -> UserError:
        """Return the error to raise when the file cannot be written."""
        return UserError(f"{self.file} cannot be written ({error.strerror}): choose another --data_dir")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.lines.close()
        except OSError as error:  # closing tries again to write what a full disk did not take
            raise self.unwritable(error) from error
        if not self.sizes:
            self.folder.rmtree()


def read_lines(file: epath.Path) -> Iterator[tuple[State, tuple[Size, Trait, Any]]]:
    """Yield the complete lines of a journal file."""
    for line in file.read_bytes().splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            match json.loads(line):
                case [
                    [str(path), int(length), int(time)],
                    None | [int(), int()] as size,
                    [str(digest), int(orientation)],
                    None | [*_] | {"greys": [float(), float()]} as made,
                ]:
                    yield (path, length, time), ((size[0], size[1]) if size else None, (digest, orientation), made)


def state_of(picture: epath.Path) -> State:
    """Return the present state of a picture file."""
    return str(picture), *length_and_time(picture)
