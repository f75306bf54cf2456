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
    """The folders of a data set, in which files are looked up.

    A file that is not where its path says is searched by name below the first folder, whatever its case, Unicode form,
    URL encoding or slashes. If the folder that the path states exists, the file must lie in it; otherwise the file must
    be the only one of its name, or the one that shares most folder names with the path.
    """

    def __init__(self, *roots: epath.Path) -> None:
        self.roots, self.lock, self.found = roots, threading.Lock(), set[str]()

    def holds(self, path: epath.Path) -> bool:
        """Whether a path leads to something below one of the folders, as written or with links resolved."""
        if any(path.resolve().is_relative_to(root) for root in self.roots):  # epath's `resolve` follows no link
            return True
        try:
            real = epath.Path(os.path.realpath(path))
        except ValueError:  # no file can have this name
            return False
        return any(real.is_relative_to(os.path.realpath(root)) for root in self.roots)

    def find(self, path: epath.Path) -> tuple[epath.Path, str | None]:
        """Return the file that a path means and what is odd about it: only None and `FOUND` let it be used."""
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
        """Every file below the first folder by its name; folders that links lead to again are skipped."""
        by_name, seen = defaultdict(list), set()
        for folder, folders, names in os.walk(self.roots[0], followlinks=True):
            if (real := os.path.realpath(folder)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                by_name[spelling(name)[0]].append(epath.Path(folder) / name)
        return by_name


def spelling(path: epath.PathLike) -> list[str]:
    """Split a path into its parts, last one first, in one spelling for all variants that systems and tools write."""
    text = unicodedata.normalize("NFC", unquote(os.fspath(path), errors="surrogateescape"))
    return text.replace("\\", "/").casefold().split("/")[::-1]
