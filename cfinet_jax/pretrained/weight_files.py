"""Read a weight file of any supported kind, local or remote, as arrays by name."""

import contextlib
import io
import json
import math
import os
import re
import sys
import threading
import zipfile
from concurrent import futures
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pooch
import requests
import safetensors.numpy
from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.pretrained import torch_pickle
from cfinet_jax.pretrained.torch_pickle import Tensor
from cfinet_jax.runtime.files import read_bytes

HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # torch and OpenMMLab end a file's name in the start of its hash
STALL, LEAST = 60.0, 2**15  # a download has stalled if fewer than LEAST bytes arrive in STALL seconds
MOST = 2**33  # bytes of a download
STATES = ("state_dict_ema", "model_ema", "state_dict", "model")  # where a checkpoint keeps its weights, averaged first


class WeightFile(NamedTuple):
    """The arrays of a file by name, and its metadata."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


def read(source: str) -> WeightFile:
    """Read the `.npz`, `.safetensors` or `.pth` file at a path or URL; its content decides the kind, not its name.

    A `.pth` is read without torch, and only for its weights: a file that asks to run code is refused.

    Raises:
      UserError: there is no such file, it cannot be downloaded, is damaged, is of another kind or holds code.
    """
    scheme = source.partition("://")[0].lower()
    remote = scheme in ("http", "https")
    if "://" in source and not remote and scheme != "gs":
        raise UserError(f"{source} is an unsupported address: give a path, or an https:// or gs:// address.")
    path = epath.Path(download(source) if remote else source).expanduser()
    try:
        encoded = read_bytes(path)
    except FileNotFoundError as error:
        raise UserError(f"No pretrained weights at {source}: give the path or URL of an existing file.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error  # errors of a bucket have no `strerror`
        raise UserError(f"{source} cannot be read ({reason}): give the path or URL of a file.") from error
    try:
        return decode(encoded)
    except UserError as error:
        reason = f"{source} is refused: {error}."
    except Exception:  # the readers raise all kinds of exceptions for damaged bytes
        reason = f"{source} is damaged or cut short: download or export it again."
    if remote:
        path.unlink()  # so that the next call downloads it again
    raise UserError(reason)


def decode(encoded: bytes) -> WeightFile:
    """Decode a weight file. Raises `UserError` for an unsupported file, any other exception for a damaged one."""
    if encoded[8:9] == b"{":
        header = json.loads(encoded[8 : 8 + int.from_bytes(encoded[:8], "little")])
        kinds = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
        if unsupported := sorted(kinds - {"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL"}):
            raise UserError(f"it holds numbers of type {', '.join(unsupported)}: save it as float32")
        return WeightFile(safetensors.numpy.load(encoded), header.get("__metadata__", {}))
    if encoded[:2] == b"PK" and not any(name.endswith("data.pkl") for name in names_in(encoded)):
        arrays = dict(np.load(io.BytesIO(encoded), allow_pickle=False))
        if any(not isinstance(x, np.ndarray) or x.dtype.kind not in "biuf" for x in arrays.values()):
            raise UserError("it holds more than arrays of numbers: save only those")
        return WeightFile(arrays, {})
    if encoded[:2] == b"PK" or encoded[:1] == b"\x80":
        return of_checkpoint(torch_pickle.load(encoded))
    raise UserError("it is not a weight file; give an .npz, .safetensors or .pth")


def names_in(encoded: bytes) -> list[str]:
    """List the files in a zip archive. Raises `UserError` for a zip bomb, or if several have one name."""
    with zipfile.ZipFile(io.BytesIO(encoded)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > 100 * len(encoded):
            raise UserError("it unpacks to more than 100 times its size: save it uncompressed")
        names = archive.namelist()
    if len(set(names)) < len(names):
        raise UserError("it holds several arrays of one name: save it again")
    return names


def of_checkpoint(content: Any) -> WeightFile:
    """Return the state dict of a torch file, whether stored alone or with the rest of a training's state.

    mmdetection stores averaged weights (EMA) as the state dict; the raw weights stored with them are not used.
    """
    if not isinstance(content, dict):
        raise UserError("it holds no state dict")
    state = next((content[key] for key in STATES if isinstance(content.get(key), dict)), content)
    facts = content.get("meta") if state is not content else None
    tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    stored = sum({id(tensor.storage): tensor.storage.count for tensor in tensors.values()}.values())
    # Layers may share weights, but a small file must not expand into an enormous number of views of one storage.
    if sum(math.prod(tensor.shape) for tensor in tensors.values()) > 16 * stored:
        raise UserError("its tensors repeat their numbers: save its state dict again")
    arrays = {name: tensor.array() for name, tensor in tensors.items()}
    return WeightFile(arrays, facts if isinstance(facts, dict) else {})


def download(url: str) -> epath.Path:
    """Return the local copy of a URL, downloading it on first use.

    The file is checked against `#sha256=...` at the end of the URL or else against the hash in its name.
    """
    address, _, digest = url.partition("#")
    try:
        name = urlsplit(address).path.rsplit("/", 1)[-1]
    except ValueError:  # an invalid host
        name = ""
    if digest and not re.fullmatch("sha256=[0-9a-f]{64}", digest):
        raise UserError(f"{url} ends in an invalid hash: write #sha256= and 64 hexadecimal digits, or nothing.")
    if not name:
        raise UserError(f"{url} names no file: give the URL of a file.")
    folder = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cfinet_jax" / "weights"
    pooch.get_logger().setLevel("WARNING")  # what it would log is printed below
    try:
        path = pooch.retrieve(address, digest.replace("=", ":") or None, path=folder, downloader=fetch)
    except requests.RequestException as error:
        raise UserError(
            f"{address} cannot be downloaded ({type(error).__name__}): if this machine is offline, download it "
            "elsewhere and give its path."
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder} cannot be written ({reason}): set XDG_CACHE_HOME to another folder.") from error
    except ValueError as error:  # raised by pooch when the hash differs
        raise UserError(f"{address} is not the file of {digest}: correct the hash or the address.") from error
    found = pooch.file_hash(path)
    if (part := HASH_IN_NAME.search(name)) and not digest and not found.startswith(part[1]):
        epath.Path(path).unlink()
        raise UserError(
            f"{address} was not downloaded completely or has changed (its SHA-256 is {found}): try again, or append "
            "#sha256= and that hash to accept it."
        )
    print(f"{name}: SHA-256 {found}, in {folder}", flush=True)
    return epath.Path(path)


class Partial(io.FileIO):
    """The file of an unfinished download, of at most `MOST` bytes: a server may send without end."""

    def __init__(self, path: str, url: str) -> None:
        super().__init__(path, "w")
        self.url = url

    def write(self, content: Any, /) -> int:
        if self.tell() + len(content) > MOST:
            raise UserError(f"{self.url} sends more than {MOST:,} bytes, which no weight file has: check the address.")
        return super().write(content)


def fetch(url: str, path: str, _: Any) -> None:
    """Download in a thread, which is abandoned when too little arrives: a server may send a byte at a time for ever."""
    responses, done = contextlib.ExitStack(), futures.Future()

    def check_length(response: requests.Response, **_: Any) -> None:
        responses.callback(response.close)  # pooch leaves it open after an error
        if not response.headers.get("Content-Length", "0").isdecimal():  # any part would count as the whole
            raise requests.exceptions.InvalidHeader(response=response)

    def work() -> None:
        downloader = pooch.HTTPDownloader(progressbar=sys.stdout.isatty(), timeout=30, hooks={"response": check_length})
        try:
            with responses:
                downloader(url, file, None)
            done.set_result(None)
        except Exception as error:  # raised again by the thread that waits
            done.set_exception(error if isinstance(error, OSError | UserError) else requests.exceptions.InvalidURL())

    with Partial(path, url) as file:  # an abandoned thread ends at its next write, since the file is closed
        threading.Thread(target=work, daemon=True).start()
        before, received = -LEAST, 0
        while not done.done() and received - before >= LEAST:
            futures.wait([done], STALL)
            before, received = received, file.tell()
        if not done.done():
            raise requests.Timeout
        done.result()
