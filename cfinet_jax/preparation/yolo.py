"""Read a YOLO folder as the content of COCO files, so that the same checks count and name what is broken."""

import math
import re
from collections import Counter
from typing import Any

import yaml
from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.input.pictures import find_pictures
from cfinet_jax.metrics.units import MIN_BOXES
from cfinet_jax.preparation.coco_annotations import Split, check_split, read_splits
from cfinet_jax.preparation.coco_layout import SPLITS
from cfinet_jax.preparation.journal import Journal
from cfinet_jax.preparation.label_files import Label, by_label_file, by_line, coco_of, number, whole
from cfinet_jax.preparation.places import OUTSIDE, Places
from cfinet_jax.runtime import files, json_values

LIKE_SPLITS = ("train", "val", "test", "dev", "eval", "<<")  # beginnings of keys


def read_yolo(source: epath.Path, journal: Journal) -> dict[str, Split]:
    """Read the splits that `data.yaml` in a folder names.

    Raises:
      UserError: the file is missing or not YOLO's, or a split has nothing that can be used.
    """
    path = source / "data.yaml"
    description = load_description(path)
    names = class_names(description.get("names"), path)
    if (count := description.get("nc")) and number(str(count)) not in (len(names), max(names) + 1):
        raise UserError(
            f"{path} names {len(names)} classes, but 'nc' is {json_values.shown(count)}: correct one of them"
        )
    places = Places(source)
    root = find_root(places, description.get("path", ""), path)
    found_in = find_splits(description, root, path, places)

    def read(split: str, found: list[epath.Path]) -> Split:
        by_label_file(found, label_file)
        labels = [label_file(image) for image in found]
        coco = coco_of(zip(found, labels, strict=True), names, root, by_line(read_label))
        if len(coco["annotations"]) >= MIN_BOXES and all(each["flagged"] for each in coco["annotations"]):
            raise UserError(f"every line of {labels[0]} and so on is a box and two more numbers: remove these")
        content = check_split(split, coco, path, root, journal, labels, places=places)
        lists = [place for place in found_in[split] if not place.is_dir()]
        return content._replace(files=(*content.files, *lists))

    # The pictures of all splits are listed before one is read: a mistake in `val` shows at once.
    images = read_splits(found_in, lambda _, found: images_in(found, places))
    return read_splits(images, read)


class Loader(yaml.BaseLoader):
    """Loader of text, lists and dictionaries only: a class called `no` does not become False. Refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        repeated = [key for key, count in Counter(str(key.value) for key, _ in node.value).items() if count > 1]
        if repeated:
            raise yaml.YAMLError(f"the key {repeated[0]} is given twice")
        return super().construct_mapping(node, deep)


def load_description(path: epath.Path) -> dict[str, Any]:
    """Parse `data.yaml`, keeping every number and word as text."""
    try:
        description = yaml.load(files.read_text(path), Loader)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give --source its folder") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML ({' '.join(str(error).split())}): correct it") from error
    if not isinstance(description, dict):
        raise UserError(f"{path} is not YOLO's: it needs the keys 'train', 'val' and 'names'")
    if "kpt_shape" in description:
        raise UserError(f"{path} describes key points (kpt_shape): only boxes and polygons can be learnt")
    return description


def class_names(names: Any, path: epath.Path) -> dict[int, str]:
    """Return the classes by index, given as a list or as a dictionary."""
    if isinstance(names, list):
        names = {str(index): name for index, name in enumerate(names)}
    if not isinstance(names, dict) or not names:
        raise UserError(f"{path} names no classes: 'names' must be a list, or a dictionary of index and name")
    for index, name in names.items():
        if not (isinstance(index, str) and re.fullmatch(r"[0-9]{1,6}", index) and isinstance(name, str)):
            named = f"{json_values.shown(index)}: {json_values.shown(name)}"
            raise UserError(f"{path} names the class {named}, which must be an index and a name")
    return {int(index): name for index, name in names.items()}


def find_root(places: Places, entry: Any, path: epath.Path) -> epath.Path:
    """Return the folder that the entry `path` means, or the source: Ultralytics writes a path of its own machine."""
    if not isinstance(entry, str):
        raise UserError(f"{path} is not YOLO's: 'path' must be text")
    (source,) = places.roots
    root = find_place(places, source, entry)
    if root is None:
        print(f"'path' of data.yaml, {' '.join(entry.split())}, is not a folder in {source}: using {source} instead")
    return root or source


def find_splits(
    description: dict[str, Any], root: epath.Path, path: epath.Path, within: Places
) -> dict[str, list[epath.Path]]:
    """Return the folders and lists of every split; `test` may be missing beside others: Roboflow always names it."""
    strange = [key for key in description if key not in SPLITS and str(key).startswith(LIKE_SPLITS)]
    if strange:
        print(f"{path}: skipped {json_values.shown(strange)}, since the only splits are {', '.join(SPLITS)}")
    named = {split: entries for split in SPLITS if (entries := description.get(split))}
    if not named:
        raise UserError(f"{path} names no images: add 'train' and 'val', each a folder, a list of folders or a .txt")
    return read_splits(named, lambda split, entries: find_places(entries, root, f"'{split}' of {path}", within))


def find_places(entries: Any, root: epath.Path, where: str, within: Places) -> list[epath.Path]:
    """Return the folders and `.txt` files that the entry of a split, `where`, names."""
    places = []
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, str):
            raise UserError(f"{where} must be a folder, a list of folders or a .txt")
        place = find_place(within, root, entry)
        if place is None:
            name = " ".join(str(root / entry).split())
            raise UserError(
                f"{where}: {name} is no folder and no .txt in {within.roots[0]}; correct it, or 'path' before it"
            )
        places.append(place)
    return places


def find_place(places: Places, root: epath.Path, entry: str) -> epath.Path | None:
    """Return the folder or `.txt` below the source that an entry means, or None."""
    slashed = entry.replace("\\", "/").removeprefix("../")  # Roboflow writes ../train/images for train/images
    for name in (entry, slashed):
        place = root / epath.Path(name).expanduser()
        try:
            if places.holds(place) and (place.is_dir() or (place.suffix == ".txt" and place.is_file())):
                return place
        except (OSError, ValueError):  # no file can have this name
            continue
    return None


def images_in(found: list[epath.Path], places: Places) -> list[epath.Path]:
    """Return the images of a split, each once: all in its folders, and all that its `.txt` files list."""
    images = (image for place in found for image in (find_pictures(place) if place.is_dir() else listed(place, places)))
    return list(dict.fromkeys(images))


def listed(path: epath.Path, places: Places) -> list[epath.Path]:
    """Return the images that a `.txt` lists, one a line, relative to its folder; images outside are counted."""
    lines = [line.strip() for line in files.read_text(path, "replace").splitlines() if line.strip()]
    images = [places.find(path.parent / epath.Path(line).expanduser()) for line in lines]
    outside = [line for line, (_, odd) in zip(lines, images, strict=True) if odd == OUTSIDE]
    if outside:
        print(f"{path}: skipped {len(outside)} lines that lead out of {places.roots[0]}, such as {outside[0]}")
    return [image for image, odd in images if odd != OUTSIDE]


def label_file(image: epath.Path) -> epath.Path:
    """Return the label file of an image: the last folder `images` of its path becomes `labels`."""
    before, found, after = str(image.parent / f"{image.stem}.txt").rpartition("/images/")
    return epath.Path(f"{before}/labels/{after}" if found else after)


def read_label(line: str, height: int, width: int) -> Label:
    """Parse a line into category and box `x y w h` in pixels, None for what cannot be read.

    The class is followed by `cx cy w h` or by the corners `x y` of a polygon, as shares of the image.
    """
    category, *values = map(number, line.split())
    box = None
    if all(map(math.isfinite, values)):
        if len(values) == 4:
            cx, cy, w, h = values
            box = (cx - w / 2, cy - h / 2, w, h)
        elif len(values) >= 6 and len(values) % 2 == 0:
            x, y = values[0::2], values[1::2]
            box = (min(x), min(y), max(x) - min(x), max(y) - min(y))
    return {
        "category_id": whole(category),
        "flagged": len(values) == 6 and values[4].is_integer() and values[5].is_integer(),
        "bbox": box and [share * side for share, side in zip(box, (width, height, width, height), strict=True)],
    }
