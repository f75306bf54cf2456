"""Weight files are read whole or refused in one line; nothing in them runs; downloads are checked and kept."""

import contextlib
import hashlib
import io
import os
import pickle
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from cfinet_jax.errors import UserError
from cfinet_jax.pretrained import torch_pickle, weight_files
from cfinet_jax.pretrained.names import translate
from cfinet_jax.pretrained.weight_files import of_checkpoint, read

HERE = Path(__file__).parent
ARRAYS = {"conv1/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "half": np.float16([1, -2])}


def npz(arrays: dict) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


ENCODED = {
    "weights.npz": npz(ARRAYS),
    "weights.safetensors": safetensors.numpy.save(ARRAYS, {"stride_style": "caffe"}),
    "zip.pth": (HERE / "zip.pth").read_bytes(),
    "legacy.pth": (HERE / "legacy.pth").read_bytes(),
}


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])  # as torch 2.13 and 1.4 write them
def test_torch_files(name):
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    expected = {
        "weight": base,
        "transposed": base.transpose(2, 0, 1),
        "slice": base[1, 1:, ::2],
        "half": np.float16([0.5, -2]),
        "brain": np.array([1.5, -3], ml_dtypes.bfloat16),
        "double": np.float64([1, 2]),
        "count": np.array(7),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": np.float32([4, 5]),
    }
    arrays, facts = read(str(HERE / name))
    assert list(arrays) == [f"module.{key}" for key in expected]
    for key, value in expected.items():
        np.testing.assert_array_equal(arrays[f"module.{key}"], value)
        assert arrays[f"module.{key}"].dtype == value.dtype
    assert facts["epoch"] == 12 and facts["CLASSES"] == ("person", "car") and facts["size"] == (2, 3)


@pytest.mark.parametrize("name", ["weights.npz", "weights.safetensors"])
def test_other_files(tmp_path, name):
    (tmp_path / "any_name").write_bytes(ENCODED[name])
    arrays, facts = read(str(tmp_path / "any_name"))
    assert arrays.keys() == ARRAYS.keys()
    for key, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[key], value)
    assert facts == ({"stride_style": "caffe"} if name.endswith("safetensors") else {})


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 0.999])
def test_what_is_cut_short_is_refused(tmp_path, name, share):
    path = tmp_path / name
    path.write_bytes(ENCODED[name][: int(share * len(ENCODED[name]))])
    with pytest.raises(UserError, match="is damaged or cut short|it is no weight file") as error:
        read(str(path))
    assert name in str(error.value) and "\n" not in str(error.value)


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused_and_never_runs(tmp_path, legacy):
    path, left = tmp_path / "model.pth", tmp_path / "left"
    content = pickle.dumps({"state_dict": {}, "meta": Bomb(left)}, protocol=2)
    pickle.loads(content)
    left.rmdir()  # so it would have run
    if legacy:
        heads = (torch_pickle.LEGACY_MAGIC, 1001, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(head, protocol=2) for head in heads) + content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    with pytest.raises(UserError, match=r"model.pth is refused: it asks to run \w+\.mkdir, and only weights are read"):
        read(str(path))
    assert not left.exists()


def test_objects_of_mmengine_are_left_inert(tmp_path):
    """Its history pickles functions by name; nothing is fetched or built."""
    path = tmp_path / "model.pth"
    history = b"cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81}(X\x01\x00\x00\x00ac__builtin__\ngetattr\nub"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}X\x04\x00\x00\x00meta" + history + b"s.")
    assert read(str(path)) == ({}, {})


def test_another_byte_order_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("archive/byteorder", b"big")
    with pytest.raises(UserError, match="big-endian"):
        read(str(path))


def test_bfloat16_safetensors_are_refused_by_name(tmp_path):
    header = b'{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(UserError, match="numbers of type BF16"):
        read(str(tmp_path / "model.safetensors"))


def test_arrays_of_objects_are_refused(tmp_path):
    np.savez(tmp_path / "weights.npz", conv1=np.array([Bomb(tmp_path / "left")], object))
    with pytest.raises(UserError, match="is damaged"):
        read(str(tmp_path / "weights.npz"))
    assert not (tmp_path / "left").exists()


def test_a_tensor_may_not_reach_beyond_its_numbers():
    storage = torch_pickle.Storage(np.dtype(np.float32), 6)
    storage.fill(np.arange(6, dtype=np.float32).tobytes())
    assert torch_pickle.Tensor(storage, 2, (2, 2), (2, 1)).array().tolist() == [[2, 3], [4, 5]]
    for offset, shape, strides in (
        (3, (2, 2), (2, 1)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (6, (), ()),
        (0, (9,), (0,)),
    ):
        with pytest.raises((ValueError, TypeError)):
            torch_pickle.Tensor(storage, offset, shape, strides).array()
    with pytest.raises(UserError, match="without numbers"):
        torch_pickle.rebuild_tensor({"values": [1]}, 0, (1,), (1,))


@pytest.mark.parametrize("key", ["state_dict", "model", "model_ema", None])
def test_a_state_dict_lies_bare_or_among_other_things(key):
    storage = torch_pickle.Storage(np.dtype(np.float32), 4)
    storage.fill(np.float32([0, 0, 1, 1]).tobytes())
    state = {"a": torch_pickle.Tensor(storage, 0, (2,), (1,)), "counter": 3}
    ema = {"a": torch_pickle.Tensor(storage, 2, (2,), (1,))}
    found = of_checkpoint({key: state, "ema_state_dict": ema, "meta": {"epoch": 1}} if key else state)
    assert found.arrays.keys() == {"a"} and not found.arrays["a"].any()
    assert found.facts == ({"epoch": 1} if key else {})


def test_what_is_no_weight_file_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("the weights are elsewhere")
    with pytest.raises(UserError, match=r"it is no weight file; give an .npz, .safetensors or .pth"):
        read(str(tmp_path / "notes.txt"))
    with pytest.raises(UserError, match="No pretrained weights at /nowhere.npz"):
        read("/nowhere.npz")


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link", "/dev/zero", "/dev/null"):
        with pytest.raises(UserError, match="it is a folder, a pipe or a device.: give the path or URL of a file"):
            read(str(path))
    (tmp_path / "good").symlink_to(HERE / "zip.pth")
    assert read(str(tmp_path / "good")).arrays


# Crafted files


def promising(*shape: int) -> bytes:
    """An .npz with a header for more numbers than follow."""
    header, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("conv1.npy", header.getvalue() + bytes(8))
    return file.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    """A compressed archive of one file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def safetensors_of(header: str) -> bytes:
    """Four bytes that a header describes."""
    return len(header).to_bytes(8, "little") + header.encode() + bytes(4)


def own(key: str, value: str) -> bytes:
    """A file of this project that says something of itself."""
    array = '"params/x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    return safetensors_of(f'{{"__metadata__":{{"{key}":"{value}"}},{array}}}')


def shaped(count: int, end: int) -> bytes:
    """An array of `count` numbers that ends at byte `end` of four."""
    return safetensors_of(f'{{"a":{{"dtype":"F32","shape":[{count}],"data_offsets":[0,{end}]}}}}')


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (promising(10**13), "is damaged"),
        (promising(2**40, 2**40), "is damaged"),
        (promising(4), "is damaged"),
        (zipped("conv1.npy", npz({"a": np.zeros(10**6)})), "unpacks to more than 100 times its size"),
        (zipped("archive/data.pkl", b"\x80\x02" + b"N0" * 10**6 + b"N."), "unpacks to more than 100 times its size"),
        (zipped("conv1/kernel", b"text" + bytes(range(200))), "holds more than arrays of numbers"),
        (npz({"conv1/kernel": np.array(["a", "b"])}), "holds more than arrays of numbers"),
        (shaped(10**12, 4 * 10**12), "is damaged"),
        (shaped(10**8, 4), "is damaged"),
        (shaped(-1, 4), "is damaged"),
        ((2**60).to_bytes(8, "little") + b"{", "is damaged"),
        (safetensors_of("{" + '"a":{' * 10**5), "is damaged"),
        (own("classes", "[" * 10**5), "says of itself what is not understood"),
        (own("classes", "[[[1]]]"), "says of itself what is not understood"),
        (own("classes", "[1]"), "says of itself what is not understood"),
        (own("mean", '[\\"a\\"]'), "says of itself what is not understood"),
    ],
)
def test_files_that_promise_more_than_they_hold_are_one_line(tmp_path, content, line):
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(UserError, match=line) as error:
        translate(read(str(tmp_path / "weights")), "weights")
    assert "\n" not in str(error.value)


class Handler(SimpleHTTPRequestHandler):
    """Counts what it serves; under some names it serves as no server should."""

    broken = {
        "negative": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + ENCODED["weights.npz"],
        "wordy": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n" + ENCODED["weights.npz"],
        "twice": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        "promising": b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n" + ENCODED["weights.npz"],
        "elsewhere": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/hostname\r\n\r\n",
        "circle": b"HTTP/1.1 302 Found\r\nLocation: /circle.npz\r\n\r\n",
        "nonsense": b"what?\r\n\r\n",
    }

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.strip("/").removesuffix(".npz")
        if name.startswith("dripping"):  # its body, or already its headers
            self.wfile.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n" + (b"" if name.endswith("head") else b"\r\n")
            )
            with contextlib.suppress(OSError):
                for _ in range(50):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
        elif name in self.broken:
            self.wfile.write(self.broken[name])
        else:
            super().do_GET()

    def log_message(self, format: str, *args) -> None: ...


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[str]:
    """The address of a folder with a weight file under several names; downloads go elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "served").mkdir()
    content = ENCODED["weights.npz"]
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / "served" / "other").mkdir()
    for name in ("weights.npz", f"resnet-{digest[:8]}.npz", "resnet-01234567.npz", "model_20230801.npz"):
        (tmp_path / "served" / name).write_bytes(content)
    (tmp_path / "served" / "other" / "weights.npz").write_bytes(npz({"other": np.ones(2)}))
    (tmp_path / "served" / "page.npz").write_text("<html>please log in</html>")
    Handler.asked.clear()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "served")))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_a_url_is_fetched_once_and_checked(server, capsys):
    digest = hashlib.sha256(ENCODED["weights.npz"]).hexdigest()
    for address in (f"{server}/weights.npz#sha256={digest}", f"{server}/resnet-{digest[:8]}.npz"):
        for _ in range(2):
            np.testing.assert_array_equal(read(address).arrays["half"], ARRAYS["half"])
    assert len(Handler.asked) == 2
    assert read(f"{server}/other/weights.npz").arrays.keys() == {"other"}  # another file of the same name
    assert read(f"{server}/model_20230801.npz").arrays  # a date is no hash
    output = capsys.readouterr().out
    assert "Fetching weights.npz 100%" in output and f"SHA-256 {digest}" in output


@pytest.mark.parametrize(
    ("file", "line"),
    [
        (f"weights.npz#sha256={'0' * 64}", "is not the file of sha256=000"),
        ("resnet-01234567.npz", "was not received whole"),
        ("absent.npz", "cannot be fetched (HTTPError)"),
        ("page.npz", "it is no weight file"),
    ],
)
def test_a_wrong_download_is_refused_and_not_kept(server, tmp_path, file, line):
    for _ in range(2):
        with pytest.raises(UserError) as error:
            read(f"{server}/{file}")
        assert line in str(error.value) and "\n" not in str(error.value)
    assert len(Handler.asked) == 2
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("negative", "cannot be fetched (InvalidHeader)"),
        ("wordy", "cannot be fetched (InvalidHeader)"),
        ("twice", "cannot be fetched (InvalidHeader)"),
        ("promising", "cannot be fetched (ChunkedEncodingError)"),
        ("elsewhere", "cannot be fetched (InvalidSchema)"),
        ("circle", "cannot be fetched (TooManyRedirects)"),
        ("nonsense", "cannot be fetched (ConnectionError)"),
        ("dripping", "cannot be fetched (Timeout)"),
        ("dripping_head", "cannot be fetched (Timeout)"),
    ],
)
def test_a_server_that_misbehaves_is_given_up(server, tmp_path, monkeypatch, name, line):
    monkeypatch.setattr(weight_files, "STALL", 0.3)
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        read(f"{server}/{name}.npz")
    assert line in str(error.value) and "\n" not in str(error.value)
    assert time.monotonic() - start < 2
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_download_that_comes_on_is_waited_for(server, monkeypatch):
    """However often it is looked at."""
    monkeypatch.setattr(weight_files, "STALL", 0.02)
    monkeypatch.setattr(weight_files, "LEAST", 0)
    with pytest.raises(UserError, match="Chunked"):  # a thousand bytes were promised, fifty came
        read(f"{server}/dripping.npz")


@pytest.mark.parametrize(
    "address",
    ["ftp://127.0.0.1/a.npz", "file:///etc/hostname", "s3://bucket/a.npz", "git+ssh://host/a.npz", "://a.npz"],
)
def test_addresses_of_other_kinds_are_refused(address):
    with pytest.raises(UserError, match="is an address that is not read: give a path, or one of https:// or gs://"):
        read(address)


@pytest.mark.parametrize(
    "address",
    ["http://[::1/a.npz", "http://host:99999/a.npz", "http:///a.npz", "http://a..b/a.npz", "http://a b/a.npz",
     f"http://{'a' * 70}.com/a.npz", "HTTPS://127.0.0.1:9/a.npz", "http://user:pass@[oops]/a.npz"],
)  # fmt: skip
def test_malformed_addresses_are_one_line(tmp_path, monkeypatch, address):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="cannot be fetched|names no file") as error:
        read(address)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("url", "line"), [("a.npz#md5=1", "ends in no hash"), ("folder/", "names no file")])
def test_a_url_that_cannot_be_meant_is_refused(url, line):
    with pytest.raises(UserError, match=line):
        read(f"http://127.0.0.1:9/{url}")


def test_offline_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        UserError, match=r"cannot be fetched \(ConnectionError\): if you are offline, fetch it elsewhere"
    ):
        read("http://127.0.0.1:9/weights.npz")
