"""Files of pictures: any orientation is turned upright, and whatever is in a file, it is read or refused."""

import io

import cv2
import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cfinet_jax.errors import UserError
from cfinet_jax.pictures import ORIENTATION, decode_image, find_pictures, upright_size

ENCODINGS = ("bmp", "jpeg", "png", "tiff", "webp")


def encoded(encoding: str, size: tuple[int, int] = (40, 60), orientation: int | None = None) -> bytes:
    """A picture of `size` (height, width) before it is turned."""
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    file, tags = io.BytesIO(), Image.Exif()
    if orientation is not None:
        tags[ORIENTATION] = orientation
    Image.fromarray(pixels).save(file, encoding, exif=tags)
    return file.getvalue()


def read(folder, content: bytes, name: str = "own.jpg") -> tuple[int, int] | None:
    """The size of what is decoded, or None where it is refused; what the file says of itself does not crash."""
    path = epath.Path(folder) / name
    path.write_bytes(content)
    assert min(upright_size(path)) > 0
    try:
        picture = decode_image(content, name)
    except UserError as error:
        assert name in str(error) and "\n" not in str(error)
        return None
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    return picture.shape[:2]


@pytest.mark.parametrize("encoding", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_of_the_upright_picture(tmp_path, encoding, orientation):
    content = encoded(encoding, orientation=orientation)
    size = (60, 40) if orientation > 4 else (40, 60)
    assert read(tmp_path, content) == size == upright_size(epath.Path(tmp_path) / "own.jpg")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (10, 30000)])
def test_pictures_of_any_shape(tmp_path, encoding, size):
    if encoding == "webp" and max(size) > 16383:
        size = (10, 16383)  # WebP has no larger ones
    assert read(tmp_path, encoded(encoding, size)) == size == upright_size(epath.Path(tmp_path) / "own.jpg")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_wrong_ending_does_not_matter(tmp_path, encoding):
    for name in ("own.png", "own.jpg", "own.txt"):
        assert read(tmp_path, encoded(encoding), name) == (40, 60)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_pictures_cut_short(tmp_path, encoding):
    content = encoded(encoding)
    for length in (0, 1, 2, 8, 30, len(content) // 2, len(content) - 20):
        assert read(tmp_path, content[:length]) in (None, (40, 60))
    assert read(tmp_path, b"") is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@given(content=st.binary(max_size=200), start=st.sampled_from(ENCODINGS), kept=st.integers(0, 60))
def test_anything_is_read_or_refused(folder, content, start, kept):
    read(folder, encoded(start)[:kept] + content)


@given(place=st.integers(0, 10**4), value=st.integers(0, 255), encoding=st.sampled_from(ENCODINGS))
def test_a_changed_byte_is_read_or_refused(folder, place, value, encoding):
    content = bytearray(encoded(encoding))
    content[place % min(len(content), 200)] = value  # in its head, where sizes stand
    read(folder, bytes(content))


def test_folders_are_searched(tmp_path):
    with pytest.raises(UserError, match="No pictures at"):
        find_pictures(epath.Path(tmp_path))
    (tmp_path / "a").mkdir()
    cv2.imwrite(str(tmp_path / "a" / "b.PNG"), np.zeros((3, 4, 3), np.uint8))
    (tmp_path / "notes.txt").write_text("none")
    assert find_pictures(epath.Path(tmp_path)) == [epath.Path(tmp_path) / "a" / "b.PNG"]
