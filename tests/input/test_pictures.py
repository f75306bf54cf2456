"""Picture files of any orientation are turned upright, and any content is either read or refused."""

import io
import os
import struct

import cv2
import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from cfinet_jax.errors import UserError
from cfinet_jax.input.pictures import (
    ENDINGS,
    ORIENTATION,
    as_picture,
    check_range,
    common_range,
    decode_image,
    deep_values,
    extremes,
    files_in,
    find_pictures,
    orientation_of,
    read_bytes,
    upright_size,
)

ENCODINGS = ("bmp", "jpeg", "png", "tiff", "webp")


def encoded(encoding: str, size: tuple[int, int] = (40, 60), orientation: int | None = None) -> bytes:
    """Encode a picture of `size` (height, width) before it is turned."""
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    file, tags = io.BytesIO(), Image.Exif()
    if orientation is not None:
        tags[ORIENTATION] = orientation
    Image.fromarray(pixels).save(file, encoding, exif=tags)
    return file.getvalue()


def read(folder, content: bytes, name: str = "own.jpg") -> tuple[int, int] | None:
    """Write and decode a file; return the size, or None if it is refused. Reading its header must not crash."""
    path = epath.Path(folder) / name
    path.write_bytes(content)
    size = upright_size(path)
    assert size is None or min(size) > 0
    try:
        picture = decode_image(content, name)
    except UserError as error:
        assert name in str(error) and "\n" not in str(error)
        return None
    assert size is not None  # what can be decoded has a size
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
def test_pictures_of_any_shape_are_read(tmp_path, encoding, size):
    if encoding == "webp" and max(size) > 16383:
        size = (10, 16383)  # WebP has no larger ones
    assert read(tmp_path, encoded(encoding, size)) == size == upright_size(epath.Path(tmp_path) / "own.jpg")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_neither_a_wrong_ending_nor_a_cut_file_crashes(tmp_path, encoding):
    content = encoded(encoding)
    for name in ("own.png", "own.jpg", "own.txt"):
        assert read(tmp_path, content, name) == (40, 60)
    for length in (1, 2, 8, 30, len(content) // 2, len(content) - 20):
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
    content[place % min(len(content), 200)] = value  # in the header, which has the size
    read(folder, bytes(content))


@pytest.mark.parametrize("hidden", ["._b.png", ".ipynb_checkpoints/b.png", "a/.trash/deep/b.png"])
def test_hidden_files_and_folders_are_passed_over(tmp_path, hidden):
    for name in ("a/b.png", hidden):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((3, 4, 3), np.uint8))
    assert find_pictures(epath.Path(tmp_path)) == [epath.Path(tmp_path) / "a" / "b.png"]
    assert find_pictures(epath.Path(tmp_path) / hidden) == [epath.Path(tmp_path) / hidden]  # it was asked for


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (9, 2)])
def test_sizes_of_pictures_of_64_bits(tmp_path, shape):
    values = np.linspace(-1, 1e3, int(np.prod(shape))).reshape(shape)
    values.flat[:2] = np.nan, -1.7e308
    cv2.imwrite(str(tmp_path / "a.tiff"), values)
    assert upright_size(epath.Path(tmp_path) / "a.tiff") == shape[:2]


# File extensions with the format by which Pillow (upper case) or OpenCV (lower case) writes them.
WRITTEN = {
    **{f".{ending}": "JPEG" for ending in ("jfif", "jpe", "jpeg", "jpg")},
    **{".jp2": "JPEG2000", ".jpx": "JPEG2000", ".gif": "GIF", ".avif": "AVIF", ".apng": "PNG", ".mpo": "MPO"},
    **{
        f".{ending}": f".{ending}"
        for ending in ["dib", "ppm", "pgm", "pbm", "pnm", "pam", "pfm", "sr", "ras", "hdr", "pic"]
    },
}


@pytest.mark.parametrize("ending", WRITTEN)
def test_every_format_that_opencv_reads_is_found_and_has_the_decoded_size(tmp_path, ending):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    kind, path = WRITTEN[ending], epath.Path(tmp_path) / f"own{ending}"
    if kind.startswith("."):
        ok, content = cv2.imencode(kind, pixels[..., 0] if kind in (".pgm", ".pbm") else pixels)
        assert ok
        path.write_bytes(content.tobytes())
    else:
        tags = Image.Exif()
        tags[ORIENTATION] = 6
        Image.fromarray(pixels).save(path, kind, exif=tags, save_all=kind in ("GIF", "MPO", "PNG"))
    assert find_pictures(epath.Path(tmp_path)) == [path]
    assert upright_size(path) == decode_image(path.read_bytes(), path.name).shape[:2]
    assert ending in ENDINGS


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (60, 40), (grey, grey, grey)) for grey in (40, 200)]
    frames[0].save(tmp_path / "own.gif", save_all=True, append_images=frames[1:])
    assert (decode_image((tmp_path / "own.gif").read_bytes(), "own.gif") == 40).all()


def test_sizes_unknown_to_pillow_are_decoded(tmp_path, monkeypatch):
    path = epath.Path(tmp_path) / "own.png"
    path.write_bytes(encoded("png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # a "huge" picture raises DecompressionBombError
    assert upright_size(path) == (40, 60)
    for name, content in {"text.png": b"no picture", "empty.jpg": b"", "cut.hdr": b"#?RADIANCE\n"}.items():
        (tmp_path / name).write_bytes(content)
        assert upright_size(epath.Path(tmp_path) / name) is None
    assert upright_size(epath.Path(tmp_path) / "absent.png") is None


def test_only_regular_files_are_opened_and_the_rest_is_reported(tmp_path, capsys):
    folder = epath.Path(tmp_path)
    with pytest.raises(UserError, match="No pictures at"):
        find_pictures(folder)
    (folder / "deeper").mkdir()
    for name in ("own.png", "deeper/b.JPG"):
        (folder / name).write_bytes(encoded("png"))
    os.mkfifo(folder / "pipe.jpg")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "gone.tif").symlink_to("absent.tif")
    (tmp_path / "round").symlink_to(tmp_path)
    for name in ("a.heic", "b.HEIC", "c.jxl", "d.dng", "notes.txt"):
        (folder / name).write_bytes(b"")
    assert find_pictures(folder) == [folder / "deeper" / "b.JPG", folder / "own.png"]
    assert find_pictures(folder / "notes.txt") == [folder / "notes.txt"]
    said = capsys.readouterr().out
    assert "2 .heic" in said and "convert them to PNG" in said and len(said.splitlines()) == 2
    assert "round is a link back" in said
    assert all(kind in said for kind in (".jpg", ".png", ".tif", ".jxl", ".dng")) and ".txt" not in said
    assert len(list(files_in(folder))) == 10  # the link back is not followed
    for name in ("pipe.jpg", "zero.png"):
        assert upright_size(folder / name) is None
        with pytest.raises(OSError, match="it is a folder, a pipe or a device"):
            read_bytes(folder / name)


def deep_pictures() -> dict[str, np.ndarray]:
    """Pictures of more than 8 bits by name, all of the same scene."""
    scene = np.random.default_rng(0).random((40, 60))
    colour = np.random.default_rng(1).random((40, 60, 3))
    return {
        "twelve.png": (scene * 4095).astype(np.uint16),
        "thermal.tiff": (7000 + scene * 1500).astype(np.uint16),
        "full.png": (scene * 65535).astype(np.uint16),
        "unit.tiff": scene.astype(np.float32),
        "kelvin.tiff": (280 + scene * 30).astype(np.float32),
        "colour.png": (colour * 3000).astype(np.uint16),
        "signed.tiff": (colour * 200 - 100).astype(np.float32),
        "double.tiff": scene * 9,
    }


@pytest.mark.parametrize("name", deep_pictures())
def test_values_of_more_than_8_bits_are_scaled_by_the_common_range(name):
    pixels = deep_pictures()[name]
    content = cv2.imencode(name[-5:], pixels)[1].tobytes()
    values = deep_values(content, name)
    found = common_range([extremes(values)], 1)
    picture = decode_image(content, name, found)
    assert picture.dtype == np.uint8 and picture.shape == (40, 60, 3) and len(np.unique(picture)) > 200
    expected = np.interp(pixels, found, (0, 255))
    expected = expected[..., ::-1] if expected.ndim == 3 else np.repeat(expected[..., None], 3, 2)
    assert np.abs(picture - expected).max() <= 0.51
    assert (decode_image(content, name, (-1e6, -1e5)) == 255).all()  # clipped beyond the range
    if pixels.dtype == np.uint16:  # without a range: the high byte
        high = decode_image(content, name)
        np.testing.assert_array_equal(high[..., ::-1] if pixels.ndim == 3 else high[..., 0], pixels >> 8)


@pytest.mark.parametrize("encoding", [*ENCODINGS, "gif", "ppm", "avif", "jpeg2000"])
def test_pictures_of_8_bits_are_not_scaled(encoding):
    content = encoded(encoding)
    plain = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    for grey_range in (None, (7000.0, 8000.0)):
        np.testing.assert_array_equal(decode_image(content, encoding, grey_range), plain)


def test_missing_values_are_dark_and_an_outlier_does_not_change_the_range(capsys):
    values = np.linspace(280, 310, 10_000, dtype=np.float32).reshape(100, 100)
    values[0, :6] = np.nan, np.inf, -3.4e38, 3.4e38, -1e31, 1e30
    read = deep_values(cv2.imencode(".tiff", values)[1].tobytes(), "kelvin.tiff")
    assert read.max() <= 310 and (read[0, :6] == read.min()).all() and read.min() > 279
    whole = [(280.0, 310.0)] * 200
    assert common_range([*whole, (0.0, 65535.0)], 201) == (280.0, 310.0)  # the outlier uses all of it
    assert "prepare them separately" not in capsys.readouterr().out
    common_range([(0.0, 1.0), (7000.0, 8500.0), (0.0, 65535.0)], 7)
    said = capsys.readouterr().out
    assert "3 of 7 pictures" in said and "becomes black" in said
    assert "2 of 3 such pictures use less than a tenth of it" in said
    assert common_range([], 3) is None and common_range([(5.0, 5.0)], 1) == (5.0, 6.0)


@pytest.mark.parametrize(
    "given", [(1,), (5, 5), (9, 1), (0, np.nan), (0, np.inf), ["0", "4095"], 7, {}, {"a": 0, "b": 1}, [[0], [1]], "09"]
)
def test_an_invalid_range_is_refused(given):
    with pytest.raises(UserError, match=r"dataset.grey_range is .*give the values"):
        check_range(given)


def planar(values: np.ndarray) -> bytes:
    """Encode uint16 [3, height, width] as a TIFF with separate colour planes."""
    _, height, width = values.shape
    start, size = 8 + 2 + 12 * 10 + 4, 2 * height * width
    tags = [(256, 1, width), (257, 1, height), (258, 3, start), (259, 1, 1), (262, 1, 2), (273, 3, start + 6)]
    tags += [(277, 1, 3), (278, 1, height), (279, 3, start + 18), (284, 1, 2)]
    entries = b"".join(struct.pack("<HHLL", tag, 4 if tag in (273, 279) else 3, *rest) for tag, *rest in tags)
    places = struct.pack("<3H3L3L", 16, 16, 16, *(start + 30 + size * k for k in range(3)), *[size] * 3)
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4) + places + values.tobytes()


def test_separate_planes_of_16_bits_are_refused():
    content = planar(np.random.default_rng(0).integers(0, 4096, (3, 40, 60)).astype(np.uint16))
    assert decode_image(content, "own.tif").shape == (40, 60, 3)
    with pytest.raises(UserError, match="own.tif .* separate colour planes .*: save it as PNG"):
        decode_image(content, "own.tif", (0, 4095))


COLOUR = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
GREY = np.repeat(COLOUR[..., :1], 3, 2)
GIVEN = {
    "H W 3": (COLOUR, COLOUR),
    "H W": (GREY[..., 0], GREY),
    "H W 1": (GREY[..., :1], GREY),
    "H W 4": (np.dstack([COLOUR, GREY[..., 0]]), COLOUR),
    "a view": (COLOUR[:, ::-1], COLOUR[:, ::-1]),
    "uint16": (COLOUR.astype(np.uint16) * 257, COLOUR),
    "float32": (COLOUR.astype(np.float32) / 255, COLOUR),
    "float16 of one channel": ((GREY[..., :1] / 255).astype(np.float16), GREY),
    "float64 with alpha": (np.dstack([COLOUR, GREY[..., 0]]) / 255, COLOUR),
    "PIL RGB": (Image.fromarray(COLOUR), COLOUR),
    "PIL RGBA": (Image.fromarray(COLOUR).convert("RGBA"), COLOUR),
    "PIL L": (Image.fromarray(GREY[..., 0]), GREY),
    "PIL LA": (Image.fromarray(GREY[..., 0]).convert("LA"), GREY),
    "PIL I;16": (Image.fromarray(GREY[..., 0].astype(np.uint16) * 257), GREY),
    "PIL I": (Image.fromarray(GREY[..., 0].astype(np.int32) * 257), GREY),
    "PIL F": (Image.fromarray((GREY[..., 0] / 255).astype(np.float32)), GREY),
    "PIL 1": (Image.fromarray(GREY[..., 0] > 99), (GREY > 99) * np.uint8(255)),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_arrays_and_pil_pictures_of_any_kind_are_converted(kind):
    given, expected = GIVEN[kind]
    picture = as_picture(given, None)
    assert picture.dtype == np.uint8 and picture.flags.c_contiguous
    np.testing.assert_array_equal(picture, expected)


def test_a_pil_picture_is_turned_upright():
    content = encoded("png", orientation=6)
    with Image.open(io.BytesIO(content)) as picture:
        np.testing.assert_array_equal(as_picture(picture, None), decode_image(content, "own.png"))


NOT_PICTURES = [
    *(COLOUR.astype(kind) for kind in (np.int64, np.int8, bool, complex, object)),
    *(COLOUR / 127, COLOUR / 255 - 0.1, np.where(COLOUR > 9, np.nan, 0.5), np.where(COLOUR > 9, np.inf, 0.5)),
    *(COLOUR.transpose(2, 0, 1), COLOUR[None], COLOUR[0, 0], COLOUR[..., :2], COLOUR[:0]),
    *(np.array("text"), None, 7, Image.fromarray(GREY[..., 0].astype(np.int32) * 1000)),
]


@pytest.mark.parametrize("given", NOT_PICTURES)
def test_anything_else_is_refused_in_one_line(given):
    with pytest.raises(UserError, match=r"picture is .* of shape .*: give \[height, width\]") as error:
        as_picture(given, None)
    assert "\n" not in str(error.value)


def test_arrays_are_scaled_as_files_are():
    values = np.linspace(7000, 8500, 600).reshape(20, 30)
    expected = np.interp(values.round(), (7000, 8500), (0, 255))
    for array in (values.round().astype(np.uint16), values.round().astype(np.float32)):
        assert np.abs(as_picture(array, (7000, 8500))[..., 0] - expected).max() <= 0.51
    shares = np.linspace(0, 1, 600).reshape(20, 30)  # of white, unless the range lies in 0..1 too
    assert np.abs(as_picture(shares, (7000, 8500))[..., 0] - shares * 255).max() <= 0.51
    assert as_picture(shares, (0.25, 0.5))[..., 0].mean() > 150


@pytest.mark.parametrize("encoding", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_in_xmp_alone_does_not_count(tmp_path, encoding):
    """Pillow knows it, OpenCV does not."""
    file = io.BytesIO()
    about = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d xmlns:tiff="t" tiff:Orientation="6"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", about.decode())
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(file, encoding, xmp=about, pnginfo=text)
    path = epath.Path(tmp_path / "a")
    path.write_bytes(file.getvalue())
    assert upright_size(path) == decode_image(file.getvalue(), "").shape[:2] == (40, 60)
    assert orientation_of(file.getvalue()) == 1
