"""Find the files that the description of a data set names: below its folders, and nowhere else."""

import functools
import os
import threading
import unicodedata
from collections import defaultdict
from urllib.parse import unquote

from etils import epath

from cfinet_jax.runtime import files

FOUND = "image found by its name in another place, kept"
SEVERAL = "image missing, several files have its name, skipped"
MISSING = "image missing, skipped"
OUTSIDE = "image outside the folder of the data set, skipped"


class Places:
    """The folders of a data set. A file that is missing from its place is looked for by its name in the first of them.

    Its case, Unicode form, URL encoding and backslashes do not matter then. Where the folder that the name states is
    there, the file must lie in it; elsewhere the file must be the only one, or share most of the folders' names.
    """

    def __init__(self, *roots: epath.Path) -> None:
        self.roots, self.lock, self.found = roots, threading.Lock(), set[str]()

    def holds(self, path: epath.Path) -> bool:
        """Whether a path leads to something below one of the folders, here or where links to folders lead."""
        if any(path.resolve().is_relative_to(root) for root in self.roots):  # which for epath follows no link
            return True
        try:
            real = epath.Path(os.path.realpath(path))
        except ValueError:  # no file can have this name
            return False
        return any(real.is_relative_to(os.path.realpath(root)) for root in self.roots)

    def find(self, path: epath.Path) -> tuple[epath.Path, str | None]:
        """Return the file that a path means, and what is odd about it; only `FOUND` lets the file be used."""
        if str(path) in self.found:
            return path, FOUND
        inside = self.holds(path)
        if inside and files.exists(path):
            return path, None
        wanted = spelling(path)
        with self.lock:
            named = [file for file in self.by_name.get(wanted[0], ()) if files.exists(file)]
        if inside and path.parent != self.roots[0] and path.parent.is_dir():
            named = [file for file in named if file.parent == path.parent]
        shared = [len(os.path.commonprefix([wanted, spelling(file)])) for file in named]
        best = [file for file, parts in zip(named, shared, strict=True) if parts == max(shared)]
        if len(best) == 1:
            self.found.add(str(best[0]))
            return best[0], FOUND
        return path, SEVERAL if best else MISSING if inside else OUTSIDE

    @functools.cached_property
    def by_name(self) -> dict[str, list[epath.Path]]:
        """Every file below the first folder; one that links lead to again is passed over."""
        files, seen = defaultdict(list), set()
        for folder, folders, names in os.walk(self.roots[0], followlinks=True):
            if (real := os.path.realpath(folder)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                files[spelling(name)[0]].append(epath.Path(folder) / name)
        return files


def spelling(path: epath.PathLike) -> list[str]:
    """Return the parts of a path, the last one first, in one spelling of all that systems and tools make of it."""
    text = unicodedata.normalize("NFC", unquote(os.fspath(path), errors="surrogateescape"))
    return text.replace("\\", "/").casefold().split("/")[::-1]
