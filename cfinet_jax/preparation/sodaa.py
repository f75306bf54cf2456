"""Read SODA-A as it is downloaded: a JSON file per image, with the corners of every object."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.input.pictures import ENDINGS, files_in
from cfinet_jax.preparation.coco_annotations import Split, check_split, read_splits
from cfinet_jax.preparation.coco_files import convert, load_json
from cfinet_jax.preparation.coco_layout import SPLITS
from cfinet_jax.preparation.journal import Journal
from cfinet_jax.preparation.label_files import Label, by_label_file, coco_of
from cfinet_jax.preparation.soda_account import report
from cfinet_jax.runtime.paths import matching

PLACES = ("", "rawData")  # folders below the source, as the authors' tools name them
IMAGES = ("Images/{split}", "Images")  # the first that exists counts
PUBLISHED = {"images": 2_513, "objects": 872_069}  # from the paper
NEEDED = {"annotations": {}, "categories": {"id": int, "name": str}}  # required keys of the entries, and their types


def read_sodaa(source: epath.Path, journal: Journal) -> dict[str, Split]:
    """Read the splits of a folder; print what was read and how it compares with the published data set.

    Raises:
      UserError: there is no split, or a file is not SODA-A's, or nothing can be used.
    """
    found: dict[str, tuple[epath.Path, epath.Path, list[epath.Path]]] = {}
    for place in PLACES:
        for split in SPLITS:
            annotations = source / place / "Annotations" / split
            if labels := sorted(matching(annotations, "*.json")):
                if split in found:
                    raise UserError(f"both {found[split][1]} and {annotations} describe '{split}': move one of them")
                found[split] = source / place, annotations, labels
    if not found:
        raise UserError(
            f"{source} holds no Annotations/SPLIT/NAME.json (SPLIT is {', '.join(SPLITS)}): "
            "give --source the folder that contains Annotations"
        )
    listed: dict[epath.Path, set[str]] = defaultdict(set)

    def read(split: str, where: tuple[epath.Path, epath.Path, list[epath.Path]]) -> Split:
        place, annotations, labels = where
        folders = [place / images.format(split=split) for images in IMAGES]
        folder = next((each for each in folders if each.is_dir()), folders[-1])
        pictures = (path for path in files_in(folder) if path.suffix.lower() in ENDINGS)
        by_label = by_label_file(pictures, lambda path: annotations / f"{path.stem}.json")
        pairs = [(by_label.get(file, folder / f"{file.stem}.jpg"), file) for file in labels]
        names: dict[int, str] = {}

        def read_labels(path: epath.Path, height: int, width: int) -> Iterator[Label]:
            content = read_file(path)
            for category in content["categories"]:
                if names.setdefault(category["id"], category["name"]) != category["name"]:
                    raise UserError(
                        f"{path} and another file give the category {category['id']} different names: make them agree"
                    )
            for number, entry in enumerate(content["annotations"], start=1):
                yield entry | {"label_place": f"annotation {number}"}

        coco = coco_of(pairs, names, folder, read_labels)
        listed[folder] |= {str(folder / image["file_name"]) for image in coco["images"]}
        return check_split(split, coco, annotations, folder, journal, labels, boxes="oriented")

    splits = read_splits(found, read)
    print(report("SODA-A", splits, PUBLISHED, listed))
    return splits


def read_file(path: epath.Path) -> dict[str, Any]:
    """Parse the annotation file of an image and check its structure."""
    content = load_json(path)
    for key, kinds in NEEDED.items():
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"annotation file {path} is not SODA-A's: it has no list '{key}' of objects")
        for entry in entries:
            convert(path, entry)
            if not all(isinstance(entry.get(name), kind) for name, kind in kinds.items()):
                raise UserError(f"annotation file {path} is not SODA-A's: every one of '{key}' needs {sorted(kinds)}")
    return content
