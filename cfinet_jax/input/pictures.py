"""Find picture files, tell their sizes, and decode their pixels."""

import contextlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from etils import epath
from PIL import Image, ImageOps, UnidentifiedImageError

from cfinet_jax.errors import UserError
from cfinet_jax.runtime.files import length_and_time, read_bytes
from cfinet_jax.runtime.paths import in_bucket
from cfinet_jax.runtime.progress import print_once

# Formats that OpenCV reads; of an animation or a file of several pages only the first picture.
READ = """apng avif bmp dib gif hdr j2c j2k jfif jp2 jpe jpeg jpg jpx mpo pam pbm pfm pgm pic png pnm ppm pxm ras sr tif
tiff webp"""
# Formats of pictures that OpenCV cannot read: such files are reported, not silently skipped.
UNREAD = """arw cr2 cr3 cur dcm dcx dds dng exr fit fits heic heif hif icns ico jls jxl jxr nef orf pcx psd qoi raf rw2
sgi svg tga xbm xpm"""
ENDINGS, UNREADABLE = (tuple(f".{kind}" for kind in kinds.split()) for kinds in (READ, UNREAD))
ORIENTATION, ON_THEIR_SIDE = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap height and width
PLANAR = 0x011C  # the TIFF tag PlanarConfiguration
# First bytes of files that may have more than 8 bits per value: TIFF, PNM, AVIF and JPEG 2000, HDR.
DEEP = (b"II", b"MM", b"P", b"\0\0\0", b"\xff\x4f", b"#?")
UNKNOWN = 1e30  # values of this size or more stand for missing ones, such as GDAL's -3.4e38
Range = tuple[float, float]  # the values that become 0 and 255
# Formats whose header, as Pillow reads it, gives the size that OpenCV decodes. OpenCV ignores an AVIF's orientation.
AGREED = ("BMP", "DIB", "JPEG", "MPO", "PNG", "TIFF", "WEBP")


def find_pictures(path: epath.Path) -> list[epath.Path]:
    """Return the picture at a path, or all pictures in a folder and its subfolders, by name.

    Raises:
      UserError: there is no picture.
    """
    if is_regular(path):
        return [path]
    found = list(files_in(path)) if path.is_dir() else []
    files = [file for file in found if file.suffix.lower() in ENDINGS and is_regular(file)]
    others = [file for file in found if file not in set(files) and file.suffix.lower() in ENDINGS + UNREADABLE]
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(file.suffix.lower() for file in others).items())
        print(
            f"Left out of {path}: {kinds}, such as {others[0].name}. They are not regular files, or OpenCV cannot read "
            "their format: convert them to PNG.",
            flush=True,
        )
    if not files:
        raise UserError(f"No pictures at {path}: give a picture or a folder of them ({', '.join(ENDINGS)}).")
    return files


def files_in(folder: epath.Path, above: frozenset[Any] = frozenset()) -> Iterator[epath.Path]:
    """Yield every file in a folder and its subfolders, by name; skip hidden ones and links to a parent folder.

    Raises:
      UserError: a folder cannot be listed.
    """
    try:
        above = (above or frozenset(map(identity, folder.resolve().parents))) | {identity(folder)}
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(
            f"folder {folder} cannot be read ({error.strerror}): change its permissions or move it"
        ) from error
    for path in paths:
        if not path.is_dir():
            yield path
        elif identity(path) in above:
            print(f"{path} is a link back to a folder that contains it, skipped", flush=True)
        else:
            yield from files_in(path, above)


def identity(folder: epath.Path) -> Any:
    """Return a value that identifies a folder, whatever path or link leads to it."""
    if in_bucket(folder):
        return folder
    status = os.stat(folder)  # noqa: PTH116 (the result of epath's lacks these fields)
    return status.st_dev, status.st_ino


def is_regular(path: epath.Path) -> bool:
    """Whether a path is a regular file or a link to one. For epath, pipes and devices are files too."""
    try:
        length_and_time(path)
        return True
    except (OSError, ValueError):  # it does not exist, or no file can have this name
        return False


def upright_size(file: epath.Path) -> tuple[int, int] | None:
    """Return height and width of a picture as `decode_image` returns it, None if it cannot be read.

    For most formats the header is enough; files of other formats are decoded.
    """
    try:
        if not is_regular(file):
            return None
        # Pillow warns of large sizes and damage, which are harmless here, since nothing is decoded.
        with warnings.catch_warnings(action="ignore"), file.open("rb") as encoded, Image.open(encoded) as picture:
            width, height = picture.size
            if picture.format in AGREED:
                # Pillow has already applied the orientation to the size of a TIFF, and of no other format.
                turned = picture.format != "TIFF" and orientation(picture) in ON_THEIR_SIDE
                return (width, height) if turned else (height, width)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        pass  # Pillow refuses huge pictures and does not know every format
    try:
        return open_picture(file, (0, 1)).shape[:2]
    except (OSError, ValueError, UserError):
        return None


def orientation_of(encoded: bytes) -> int:
    """Return the EXIF orientation of an image file, 1 if it has none."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(encoded)) as picture:
            return orientation(picture)
    except Exception:  # Pillow raises many kinds; OpenCV does not turn a picture with damaged EXIF data
        return 1


def orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation of a picture, 1 if it has none. Pillow also knows XMP's, which OpenCV ignores."""
    exif = picture.getexif() if picture.format == "TIFF" else Image.Exif()
    if picture.format != "TIFF":
        exif.load(picture.info.get("exif", b""))
    return int(exif.get(ORIENTATION, 1))


def decode_image(encoded: bytes, name: str, grey_range: Range | None = None) -> np.ndarray:
    """Decode an image file to uint8 [height, width, 3], R G B, turned upright by its EXIF orientation.

    Values of more than 8 bits are scaled so that `grey_range` becomes 0 to 255; without it their high byte is used.

    Raises:
      UserError: the file is not a complete image.
    """
    if grey_range is not None and (values := deep_values(encoded, name)) is not None:
        return scaled(values, grey_range)
    return _decode(encoded, name, cv2.IMREAD_COLOR_RGB)


def decode_bgr(encoded: bytes, name: str) -> np.ndarray:
    """Decode an image file to uint8 [height, width, 3], B G R, the order that OpenCV writes."""
    return _decode(encoded, name, cv2.IMREAD_COLOR)


def _decode(encoded: bytes, name: str, order: int) -> np.ndarray:
    try:
        picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), order)
    except cv2.error:  # raised for an empty file
        picture = None
    if picture is None:
        raise UserError(f"image {name} cannot be decoded: replace the file or remove it from the annotations")
    return picture


def deep_values(encoded: bytes, name: str) -> np.ndarray | None:
    """Decode a picture of more than 8 bits per value without scaling, grey or R G B; return None for any other file.

    NaN, infinite and enormous values (1e30 or more) become the smallest value.

    Raises:
      UserError: OpenCV would decode wrong values.
    """
    if not encoded.startswith(DEEP) and not (encoded.startswith(b"\x89PNG") and encoded[24:25] == b"\x10"):
        return None
    try:
        values = _decode(encoded, name, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    except UserError:
        return None
    if values.dtype == np.uint8:
        return None
    if is_planar(encoded):
        raise UserError(f"image {name} is a TIFF with separate colour planes and more than 8 bits: save it as PNG")
    values = values[..., ::-1] if values.ndim == 3 else values
    if values.dtype == np.uint16:
        return values
    known = np.isfinite(values) & (np.abs(values) < UNKNOWN)
    return np.where(known, values, values[known].min() if known.any() else 0).astype(np.float32)


def open_picture(file: epath.Path, grey_range: Range | None) -> np.ndarray:
    """Read a picture file of any depth as uint8 [height, width, 3] R G B. Raises `UserError` if it cannot be read."""
    try:
        encoded = read_bytes(file)
    except OSError as error:
        raise UserError(f"image {file} cannot be read ({error}): make it readable or remove it") from error
    values = deep_values(encoded, str(file))
    if values is None:
        return decode_image(encoded, str(file))
    return as_picture(values, None, f"image {file}") if grey_range is None else scaled(values, grey_range)


def as_picture(given: Any, grey_range: Range | None, name: str = "picture") -> np.ndarray:
    """Convert a PIL picture or an array to uint8 [height, width, 3] R G B.

    Args:
      given: a PIL picture, or an array [height, width] or [height, width, 1, 3 or 4] of uint8, uint16 or float; a
        fourth channel is dropped. Floats in 0..1 are shares of white unless `grey_range` lies in 0..1 too.
      grey_range: the values that become 0 and 255 if the picture has more than 8 bits.
      name: what a message calls the picture.

    Raises:
      UserError: it is anything else.
    """
    values = np.asarray(from_pil(given) if isinstance(given, Image.Image) else given)
    shaped = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (1, 3, 4))
    real = values.dtype.kind == "f" and bool(np.isfinite(values).all())
    shares = real and values.size > 0 and values.min() >= 0 and values.max() <= 1
    known = values.dtype in (np.uint8, np.uint16) or shares or (real and grey_range is not None)
    if not (shaped and values.size and known):
        raise UserError(
            f"{name} is {values.dtype} of shape {values.shape}: give [height, width] or [height, width, 1, 3 or 4] of "
            "uint8, uint16 or float in 0..1, or set dataset.grey_range"
        )
    values = values[..., 0] if values.shape[2:] == (1,) else values[..., :3] if values.ndim == 3 else values
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values if values.ndim == 3 else np.repeat(values[..., None], 3, 2))
    if values.dtype == np.uint16 and grey_range is None:
        print_once("A picture has 16 bits and dataset.grey_range is unknown: 0 becomes black and 65535 white.")
        return as_picture((values >> 8).astype(np.uint8), None)
    within = grey_range is not None and grey_range[0] >= 0 and grey_range[1] <= 1
    return scaled(values, (0, 1) if grey_range is None or (shares and not within) else grey_range)


def from_pil(picture: Image.Image) -> Any:
    """Turn a PIL picture upright and convert it to R G B, or to grey of 16 or 32 bits."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture.convert("RGB")
    values = np.asarray(picture)  # PIL opens some 16-bit pictures as 32 bits
    fits = values.dtype.kind != "f" and values.min() >= 0 and values.max() < 2**16
    return values.astype(np.uint16) if fits else values


def is_planar(encoded: bytes) -> bool:
    """Whether a file is a TIFF with separate colour planes (PlanarConfiguration 2)."""
    with contextlib.suppress(OSError, ValueError, SyntaxError), Image.open(io.BytesIO(encoded)) as picture:
        return picture.format == "TIFF" and picture.getexif().get(PLANAR) == 2
    return False


def scaled(values: np.ndarray, grey_range: Range) -> np.ndarray:
    """Scale grey or R G B values to uint8 [height, width, 3]: `grey_range` becomes 0 to 255, the rest is clipped."""
    if values.dtype == np.uint16:  # a table of all values is faster
        bytes_of = scaled(np.arange(2**16, dtype=np.float32)[None], grey_range)[0, :, 0]
        values = bytes_of[values]
    else:
        low, high = grey_range
        values = ((values - np.float32(low)) * np.float32(255 / (high - low))).clip(0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(values if values.ndim == 3 else np.repeat(values[..., None], 3, 2))


def extremes(values: np.ndarray) -> Range:
    """Return the darkest and brightest value of a picture, except for one pixel in 10,000 at either end."""
    low, high = np.quantile(values, (0.0001, 0.9999)).tolist()
    return low, high


def common_range(found: Sequence[Range], pictures: int) -> Range | None:
    """Choose the range of grey values of a data set of `pictures` and print it; None if all of them have 8 bits.

    `found` are the `extremes` of the deeper pictures. One in a hundred may be darker, and one brighter.
    """
    if not found:
        return None
    low, high = np.quantile([low for low, _ in found], 0.01), np.quantile([high for _, high in found], 0.99)
    high = high if high > low else low + 1
    faint = sum(darkest + (high - low) / 10 > brightest for darkest, brightest in found)
    print(
        f"Grey values of the {len(found)} of {pictures} pictures with more than 8 bits: {low:g} becomes black and "
        f"{high:g} white (dataset.grey_range)."
        + (
            f" {faint} of {len(found)} such pictures use less than a tenth of it: prepare them separately."
            if faint
            else ""
        ),
        flush=True,
    )
    return float(low), float(high)


def check_range(given: Any) -> Range | None:
    """Check and return a range of grey values from settings or metadata."""
    if given is None:
        return None
    with contextlib.suppress(TypeError, ValueError):  # it has another type
        low, high = given
        if -np.inf < low < high < np.inf:
            return low, high
    hint = 'give the values of black and white, such as --config.dataset.grey_range="(0, 4095)".'
    raise UserError(f"dataset.grey_range is {given}: {hint}")
