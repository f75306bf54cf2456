"""Pictures as files: which there are, how large, and their pixels."""

import io
import os
import warnings
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from etils import epath
from PIL import Image, UnidentifiedImageError

from cfinet_jax.buckets import in_bucket
from cfinet_jax.errors import UserError

ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
ORIENTATION, ON_THEIR_SIDE = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap height and width


def find_pictures(path: epath.Path) -> list[epath.Path]:
    """The picture at a path, or those in a folder and its folders, by name.

    Raises:
      UserError: there is none.
    """
    if path.is_file():
        return [path]
    files = [file for file in files_in(path) if file.suffix.lower() in ENDINGS] if path.is_dir() else []
    if not files:
        raise UserError(f"No pictures at {path}: give a picture or a folder of them ({', '.join(ENDINGS)}).")
    return files


def files_in(folder: epath.Path, above: frozenset[Any] = frozenset()) -> Iterator[epath.Path]:
    """Every file in a folder and its folders, by name; links back to a folder that they lie in are passed over."""
    above = (above or frozenset(map(identity, folder.resolve().parents))) | {identity(folder)}
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            yield path
        elif identity(path) in above:
            print(f"{path} is a link back to a folder that it lies in, skipped")
        else:
            yield from files_in(path, above)


def identity(folder: epath.Path) -> Any:
    """A value that only this folder has, whatever path or link leads to it."""
    if in_bucket(folder):
        return folder
    status = os.stat(folder)  # noqa: PTH116 (epath's lacks these numbers)
    return status.st_dev, status.st_ino


def upright_size(file: epath.Path) -> tuple[int, int]:
    """Height and width of a picture as it is seen, read from the start of its file; 1 x 1 if it cannot be read."""
    try:
        # What Pillow warns of, a large size or damage, does no harm here: nothing is decoded.
        with warnings.catch_warnings(action="ignore"), file.open("rb") as encoded, Image.open(encoded) as picture:
            width, height = picture.size
            # Pillow tells the size of a TIFF, and only of a TIFF, as it is seen.
            turned = picture.format != "TIFF" and picture.getexif().get(ORIENTATION) in ON_THEIR_SIDE
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return 1, 1
    return (width, height) if turned else (height, width)


def orientation_of(encoded: bytes) -> int:
    """The EXIF orientation of an image file, 1 where it has none."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(encoded)) as picture:
            return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises much, and OpenCV turns nothing whose EXIF data are damaged
        return 1


def decode_image(encoded: bytes, name: str) -> np.ndarray:
    """Decode an image file to uint8 [height, width, 3], R G B, turned upright as its EXIF data say.

    Raises:
      UserError: it is no image, or not all of one.
    """
    return _decode(encoded, name, cv2.IMREAD_COLOR_RGB)


def decode_bgr(encoded: bytes, name: str) -> np.ndarray:
    """The same in the order that OpenCV writes: B G R."""
    return _decode(encoded, name, cv2.IMREAD_COLOR)


def _decode(encoded: bytes, name: str, order: int) -> np.ndarray:
    try:
        picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), order)
    except cv2.error:  # raised for an empty file
        picture = None
    if picture is None:
        raise UserError(f"image {name} cannot be decoded: replace the file or remove it from the annotations")
    return picture
