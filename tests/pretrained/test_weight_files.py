"""Weight files are read completely or refused in one line, nothing in them runs, downloads are checked and kept."""

import contextlib
import hashlib
import io
import os
import pickle
import threading
import time
import warnings
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
def test_npz_and_safetensors(tmp_path, name):
    (tmp_path / "any_name").write_bytes(ENCODED[name])
    (tmp_path / "link").symlink_to("any_name")
    arrays, facts = read(str(tmp_path / "link"))
    assert arrays.keys() == ARRAYS.keys()
    for key, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[key], value)
    assert facts == ({"stride_style": "caffe"} if name.endswith("safetensors") else {})


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, name, share):
    path = tmp_path / name
    path.write_bytes(ENCODED[name][: int(share * len(ENCODED[name]))])
    with pytest.raises(UserError, match=f"{name} is .*(damaged or cut short|not a weight file)") as error:
        read(str(path))
    assert "\n" not in str(error.value)


class Bomb:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused_and_never_runs(tmp_path, legacy):
    path, left = tmp_path / "model.pth", tmp_path / "left"
    content = pickle.dumps({"state_dict": {}, "meta": Bomb(left)}, protocol=2)
    pickle.loads(content)
    left.rmdir()  # so Python itself runs it
    if legacy:
        heads = (torch_pickle.LEGACY_MAGIC, 1001, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(head, protocol=2) for head in heads) + content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    with pytest.raises(UserError, match=r"model.pth is refused: it asks to run \w+\.mkdir"):
        read(str(path))
    assert not left.exists()


def pth(**files: bytes) -> bytes:
    """A torch file of a zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"archive/{name.replace('_', '.')}", content)
    return file.getvalue()


def test_objects_of_mmengine_are_not_built(tmp_path):
    """Its history pickles functions by name."""
    history = b"cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81}(X\x01\x00\x00\x00ac__builtin__\ngetattr\nub"
    pickled = b"\x80\x02}X\x04\x00\x00\x00meta" + history + b"s."
    (tmp_path / "model.pth").write_bytes(pth(data_pkl=pickled))
    assert read(str(tmp_path / "model.pth")) == ({}, {})


def test_a_tensor_may_not_reach_beyond_its_storage():
    storage = torch_pickle.Storage(np.dtype(np.float32), 6)
    storage.fill(np.arange(6, dtype=np.float32).tobytes())
    assert torch_pickle.Tensor(storage, 2, (2, 2), (2, 1)).array().tolist() == [[2, 3], [4, 5]]
    views = [(3, (2, 2), (2, 1)), (-1, (2,), (1,)), (0, (2,), (-1,)), (6, (), ()), (0, (9,), (0,))]
    for view in views:
        with pytest.raises((ValueError, TypeError)):
            torch_pickle.Tensor(storage, *view).array()
    with pytest.raises(UserError, match="without numbers"):
        torch_pickle.rebuild_tensor({"values": [1]}, 0, (1,), (1,))


@pytest.mark.parametrize("key", ["state_dict", "model", "model_ema", None])
def test_a_state_dict_is_found_alone_or_inside_a_checkpoint(key):
    storage = torch_pickle.Storage(np.dtype(np.float32), 4)
    storage.fill(np.float32([0, 0, 1, 1]).tobytes())
    state = {"a": torch_pickle.Tensor(storage, 0, (2,), (1,)), "counter": 3}
    ema = {"a": torch_pickle.Tensor(storage, 2, (2,), (1,))}
    found = of_checkpoint({key: state, "ema_state_dict": ema, "meta": {"epoch": 1}} if key else state)
    assert found.arrays.keys() == {"a"} and not found.arrays["a"].any()
    assert found.facts == ({"epoch": 1} if key else {})


def test_only_existing_regular_files_are_read(tmp_path):
    with pytest.raises(UserError, match="No pretrained weights at /nowhere.npz"):
        read("/nowhere.npz")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link", "/dev/zero", "/dev/null"):
        with pytest.raises(UserError, match="it is a folder, a pipe or a device.: give the path or URL"):
            read(str(path))


def promising(*shape: int) -> bytes:
    """An .npz whose header announces more numbers than follow."""
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
    """A safetensors file of four bytes."""
    return len(header).to_bytes(8, "little") + header.encode() + bytes(4)


def own(key: str, value: str) -> bytes:
    """A file of this project with one entry of metadata."""
    array = '"params/x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    return safetensors_of(f'{{"__metadata__":{{"{key}":"{value}"}},{array}}}')


def shaped(count: int, end: int) -> bytes:
    """A safetensors file whose array of `count` numbers ends at byte `end` of four."""
    return safetensors_of(f'{{"a":{{"dtype":"F32","shape":[{count}],"data_offsets":[0,{end}]}}}}')


def named_twice() -> bytes:
    """Return an .npz, with two arrays of one name, of which NumPy would take the last."""
    file = io.BytesIO(npz({"a": np.zeros(3)}))
    with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr("a.npy", archive.read("a.npy"))
    return file.getvalue()


UNUSABLE = {
    "a text": (b"the weights are elsewhere", "not a weight file; give an .npz, .safetensors or .pth"),
    "another byte order": (pth(data_pkl=pickle.dumps({}, protocol=2), byteorder=b"big"), "big-endian"),
    "bfloat16": (safetensors_of('{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'), "numbers of type BF16"),
    "objects in an .npz": (npz({"conv1": np.array([Bomb(Path("left"))], object)}), "is damaged"),
    "an .npz of 10^13 numbers": (promising(10**13), "is damaged"),
    "an .npz of 2^80 numbers": (promising(2**40, 2**40), "is damaged"),
    "an .npz with half of its numbers": (promising(4), "is damaged"),
    "an .npz that is a zip bomb": (zipped("conv1.npy", npz({"a": np.zeros(10**6)})), "unpacks to more than 100 times"),
    "a .pth that is a zip bomb": (zipped("archive/data.pkl", b"\x80\x02" + b"N0" * 10**6 + b"N."), "unpacks to more"),
    "a file in an .npz that is not an array": (zipped("conv1/kernel", b"text" + bytes(range(200))), "more than arrays"),
    "two arrays of one name": (named_twice(), "several arrays of one name"),
    "an .npz of texts": (npz({"conv1/kernel": np.array(["a", "b"])}), "more than arrays"),
    "a header of 10^12 numbers": (shaped(10**12, 4 * 10**12), "is damaged"),
    "a header of 10^8 numbers": (shaped(10**8, 4), "is damaged"),
    "a header of -1 numbers": (shaped(-1, 4), "is damaged"),
    "a header of 2^60 bytes": ((2**60).to_bytes(8, "little") + b"{", "is damaged"),
    "a header of many levels": (safetensors_of("{" + '"a":{' * 10**5), "is damaged"),
    "metadata of many levels": (own("classes", "[" * 10**5), "damaged metadata"),
    "classes of many levels": (own("classes", "[[[1]]]"), "damaged metadata"),
    "classes that are numbers": (own("classes", "[1]"), "damaged metadata"),
    "a mean of texts": (own("mean", '[\\"a\\"]'), "damaged metadata"),
}


@pytest.mark.parametrize("row", UNUSABLE)
def test_unusable_files_are_refused_in_one_line(tmp_path, row):
    content, line = UNUSABLE[row]
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(UserError, match=line) as error:
        translate(read(str(tmp_path / "weights")), "weights")
    assert "\n" not in str(error.value) and not Path("left").exists()


class Handler(SimpleHTTPRequestHandler):
    """Records what is asked for; under some names it answers as no server should."""

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
        elif name == "endless":  # without a length
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            with contextlib.suppress(OSError):
                for _ in range(10_000):
                    self.wfile.write(bytes(2**16))
        elif name in self.broken:
            self.wfile.write(self.broken[name])
        else:
            super().do_GET()

    def log_message(self, format: str, *args) -> None: ...


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[str]:
    """Serve a weight file under several names; return the address. Downloads go to another folder."""
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


def test_a_url_is_downloaded_once_and_checked(server, capsys):
    digest = hashlib.sha256(ENCODED["weights.npz"]).hexdigest()
    for address in (f"{server}/weights.npz#sha256={digest}", f"{server}/resnet-{digest[:8]}.npz"):
        for _ in range(2):
            np.testing.assert_array_equal(read(address).arrays["half"], ARRAYS["half"])
    assert len(Handler.asked) == 2
    assert read(f"{server}/other/weights.npz").arrays.keys() == {"other"}  # another file of the same name
    assert read(f"{server}/model_20230801.npz").arrays  # a date is not a hash
    assert f"SHA-256 {digest}" in capsys.readouterr().out


BAD_DOWNLOADS = {  # what to read -> parts of the message
    f"weights.npz#sha256={'0' * 64}": "is not the file of sha256=000",
    "resnet-01234567.npz": "was not downloaded completely or has changed",
    "absent.npz": "cannot be downloaded (HTTPError)",
    "page.npz": "it is not a weight file",
    "negative.npz": "cannot be downloaded (InvalidHeader)",
    "wordy.npz": "cannot be downloaded (InvalidHeader)",
    "twice.npz": "cannot be downloaded (InvalidHeader)",
    "promising.npz": "cannot be downloaded (ChunkedEncodingError)",
    "elsewhere.npz": "cannot be downloaded (InvalidSchema)",
    "circle.npz": "cannot be downloaded (TooManyRedirects)",
    "nonsense.npz": "cannot be downloaded (ConnectionError)",
    "dripping.npz": "cannot be downloaded (Timeout)",
    "dripping_head.npz": "cannot be downloaded (Timeout)",
    "endless.npz": "endless.npz sends more than 10,000,000 bytes",
}


@pytest.mark.parametrize("name", BAD_DOWNLOADS)
def test_a_bad_download_is_refused_and_not_kept(server, tmp_path, monkeypatch, name):
    monkeypatch.setattr(weight_files, "STALL", 0.3)
    monkeypatch.setattr(weight_files, "MOST", 10**7)
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        read(f"{server}/{name}")
    assert BAD_DOWNLOADS[name] in str(error.value) and "\n" not in str(error.value)
    assert time.monotonic() - start < 2
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert threading.active_count() < 20


def test_a_slow_download_is_waited_for(server, monkeypatch):
    monkeypatch.setattr(weight_files, "STALL", 0.02)
    monkeypatch.setattr(weight_files, "LEAST", 0)
    with pytest.raises(UserError, match="Chunked"):  # a thousand bytes were promised, fifty came
        read(f"{server}/dripping.npz")


ADDRESSES = {
    **dict.fromkeys(
        ["ftp://127.0.0.1/a.npz", "file:///etc/hostname", "s3://bucket/a.npz", "git+ssh://host/a.npz", "://a.npz"],
        "is an unsupported address: give a path, or an https:// or gs:// address",
    ),
    **dict.fromkeys(
        ["http://[::1/a.npz", "http://host:99999/a.npz", "http:///a.npz", "http://a..b/a.npz", "http://a b/a.npz",
         f"http://{'a' * 70}.com/a.npz", "HTTPS://127.0.0.1:9/a.npz", "http://user:pass@[oops]/a.npz"],
        "cannot be downloaded|names no file",
    ),
    "http://127.0.0.1:9/weights.npz": r"\(ConnectionError\): if this machine is offline",
    "http://127.0.0.1:9/a.npz#md5=1": "ends in an invalid hash",
    "http://127.0.0.1:9/folder/": "names no file",
}  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_bad_addresses_are_refused_in_one_line(tmp_path, monkeypatch, address):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=ADDRESSES[address]) as error:
        read(address)
    assert "\n" not in str(error.value)
