"""The files of a prediction: pictures to detect in, what an interrupted run has done, results and overlays."""

import contextlib
import csv
import functools
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.errors import UserError
from cfinet_jax.input.pictures import find_pictures, identity
from cfinet_jax.restore import Trained
from cfinet_jax.runtime.files import read_text, replace_text, writing

LONGEST = 200  # bytes of an overlay's name; file systems allow 255
UNFINISHED = "unfinished.jsonl"  # results so far, in the output folder until all pictures are done
ENTRY = {"file_name", "height", "width", "checksum", "found"}  # of a line of that file
RESULTS = ("detections.json", "images.json", "counts.csv")


def input_files(images: epath.Path, output: epath.Path) -> dict[str, epath.Path]:
    """Return the pictures to detect in by their names in `images`, without the overlays of an earlier run.

    Raises:
      UserError: there is no picture, or `output` cannot be written or holds a run, whose detections would be replaced.
    """
    if (output / "settings.json").exists():
        raise UserError(
            f"{output} is the workdir of a run, which has files of the same names: choose another --output."
        )
    found, overlays = find_pictures(images), output / "overlays"
    with writing(output, "--output"):
        overlays.mkdir(parents=True, exist_ok=True)

    @functools.cache
    def drawn(folder: epath.Path) -> bool:
        earlier = folder.name == "overlays" and all((folder.parent / name).exists() for name in RESULTS)
        return identity(folder) == identity(overlays) or (earlier and folder not in (images, images.parent))

    files = [file for file in found if not drawn(file.parent)]
    if not files:
        raise UserError(f"{found[0].parent} holds only overlays of a prediction: choose another --output or --images.")
    if len(files) < len(found):
        print(f"Left out: {len(found) - len(files):,} overlays of earlier predictions in {images}.", flush=True)
    return {str(file.relative_to(images)) if file != images else file.name: file for file in files}


def resume(variables: Any, config: ConfigDict, output: epath.Path) -> dict[str, dict[str, Any]]:
    """Return what an interrupted run with the same detector and settings found, by picture.

    It is a line of JSON per picture in a file, whose first line identifies detector and settings. Damaged lines are
    dropped.
    """
    leaves = map(np.asarray, jax.tree.leaves(variables))
    checksum = functools.reduce(lambda sum_, leaf: zlib.crc32(leaf.tobytes(), sum_), leaves, 0)
    first = json.dumps([checksum, json.loads(config.to_json())], sort_keys=True)
    file = output / UNFINISHED
    lines = read_text(file, "replace").split("\n") if file.exists() else []
    entries = map(entry_of, lines[1:]) if lines[:1] == [first] else []
    done = {entry["file_name"]: entry for entry in entries if entry is not None}
    replace_text(file, "".join(f"{line}\n" for line in (first, *map(json.dumps, done.values()))))
    return done


def entry_of(line: str) -> dict[str, Any] | None:
    """Return the entry in a line of `UNFINISHED`, None if the line is damaged."""
    with contextlib.suppress(ValueError, RecursionError):
        entry = json.loads(line)
        if line.isascii() and isinstance(entry, dict) and entry.keys() == ENTRY:
            return entry
    return None


def overlay_names(names: Iterable[str]) -> dict[str, str]:
    """Return a file name for the overlay of each picture: its own name, with a checksum if it is too long or shared."""
    flat = {name: name.replace("/", "_") for name in names}
    shared = Counter(flat.values())
    for name, overlay in flat.items():
        if shared[overlay] > 1 or len(os.fsencode(overlay)) > LONGEST:
            start = os.fsencode(overlay)[:LONGEST].decode(errors="ignore")
            flat[name] = f"{start}_{zlib.crc32(os.fsencode(name)):08x}"
    return flat


def write_results(
    trained: Trained, min_score: float, done: dict[str, dict[str, Any]], names: Sequence[str], output: epath.Path
) -> int:
    """Write `detections.json`, `images.json` and `counts.csv` of the pictures that are done; return the total count."""
    categories = dict(zip(trained.category_ids, trained.classes, strict=True))
    images, results, text, total = [], [], io.StringIO(), 0
    counts = csv.writer(text, lineterminator="\n")
    counts.writerow(["picture", *trained.classes, "all"])
    for number, name in enumerate(names, start=1):
        if name not in done:
            continue
        entry = done[name]
        images.append({"id": number, **{key: entry[key] for key in ("file_name", "height", "width")}})
        results += [found | {"image_id": number} for found in entry["found"]]
        sure = [each for each in entry["found"] if each["score"] >= min_score]
        seen = Counter(each["category_id"] for each in sure)
        printable = name.encode(errors="backslashreplace").decode()  # names need not be valid UTF-8
        counts.writerow([printable, *(seen[category_id] for category_id in categories), len(sure)])
        total += len(sure)
    described = [{"id": number, "name": name} for number, name in categories.items()]
    replace_text(output / "detections.json", json.dumps(results))
    replace_text(output / "images.json", json.dumps({"images": images, "categories": described}))
    replace_text(output / "counts.csv", text.getvalue())
    return total
