"""Weight files of every kind, here or elsewhere, as arrays by name."""

import io
import json
import math
import os
import re
import threading
import zipfile
from concurrent import futures
from functools import partial
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
from cfinet_jax.runtime.progress import Progress

HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # torch's and OpenMMLab's files end in the start of theirs
STALL, LEAST = 60.0, 2**15  # seconds in which so many bytes of a download have to come
STATES = ("state_dict_ema", "model_ema", "state_dict", "model")  # where a checkpoint keeps its weights, averaged first


class WeightFile(NamedTuple):
    """The arrays of a file, and what it says of itself."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


def read(source: str) -> WeightFile:
    """The `.npz`, `.safetensors` or `.pth` file at a path or URL; the content decides, not the name.

    A `.pth` is read without torch, and only for its weights: a file that asks to run anything is refused.

    Raises:
      UserError: there is no such file, it cannot be fetched, is damaged, is of another kind or holds code.
    """
    scheme = source.partition("://")[0].lower()
    fetched = scheme in ("http", "https")
    if "://" in source and not fetched and scheme != "gs":
        raise UserError(f"{source} is an address that is not read: give a path, or one of https:// or gs://.")
    path = epath.Path(download(source) if fetched else source).expanduser()
    try:
        encoded = read_bytes(path)
    except FileNotFoundError as error:
        raise UserError(f"No pretrained weights at {source}: give the path or URL of an existing file.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error  # a bucket gives no number
        raise UserError(f"{source} cannot be read ({reason}): give the path or URL of a file.") from error
    try:
        return decode(encoded)
    except UserError as error:
        reason = f"{source} is refused: {error}."
    except Exception:  # whatever readers make of damaged bytes
        reason = f"{source} is damaged or cut short: fetch it again."
    if fetched:
        path.unlink()  # so that it can be
    raise UserError(reason)


def decode(encoded: bytes) -> WeightFile:
    """The content of a file. Raises `UserError` for what is not read, anything else for damage."""
    if encoded[8:9] == b"{":
        header = json.loads(encoded[8 : 8 + int.from_bytes(encoded[:8], "little")])
        kinds = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
        if strange := sorted(kinds - {"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL"}):
            raise UserError(f"it holds numbers of type {', '.join(strange)}: save it anew as float32")
        return WeightFile(safetensors.numpy.load(encoded), header.get("__metadata__", {}))
    if encoded[:2] == b"PK" and not any(name.endswith("data.pkl") for name in names_in(encoded)):
        arrays = dict(np.load(io.BytesIO(encoded), allow_pickle=False))
        if any(not isinstance(x, np.ndarray) or x.dtype.kind not in "biuf" for x in arrays.values()):
            raise UserError("it holds more than arrays of numbers: save it anew without")
        return WeightFile(arrays, {})
    if encoded[:2] == b"PK" or encoded[:1] == b"\x80":
        return of_checkpoint(torch_pickle.load(encoded))
    raise UserError("it is no weight file; give an .npz, .safetensors or .pth")


def names_in(encoded: bytes) -> list[str]:
    """The names of a zip archive's files. Raises `UserError` where they unpack to more than numbers would."""
    with zipfile.ZipFile(io.BytesIO(encoded)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > 100 * len(encoded):
            raise UserError("it unpacks to more than 100 times its size: save it anew, uncompressed")
        return archive.namelist()


def of_checkpoint(content: Any) -> WeightFile:
    """The state dict of a torch file, bare or beside what training left there.

    mmdetection calls its averaged weights (EMA) the state dict; the raw ones beside it stay where they are.
    """
    if not isinstance(content, dict):
        raise UserError("it holds no state dict")
    state = next((content[key] for key in STATES if isinstance(content.get(key), dict)), content)
    facts = content.get("meta") if state is not content else None
    tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    stored = sum({id(tensor.storage): tensor.storage.count for tensor in tensors.values()}.values())
    if sum(math.prod(tensor.shape) for tensor in tensors.values()) > 16 * stored:  # layers may share their weights
        raise UserError("its tensors repeat their numbers: save its state dict anew")
    arrays = {name: tensor.array() for name, tensor in tensors.items()}
    return WeightFile(arrays, facts if isinstance(facts, dict) else {})


def download(url: str) -> epath.Path:
    """The local copy of a URL, fetched once; checked against `#sha256=...` behind it or the hash in the file's name."""
    address, _, digest = url.partition("#")
    try:
        name = urlsplit(address).path.rsplit("/", 1)[-1]
    except ValueError:  # a host that is none
        name = ""
    if digest and not re.fullmatch("sha256=[0-9a-f]{64}", digest):
        raise UserError(f"{url} ends in no hash: write #sha256= and its 64 digits, or nothing.")
    if not name:
        raise UserError(f"{url} names no file: give the URL of one.")
    folder = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cfinet_jax" / "weights"
    pooch.get_logger().setLevel("WARNING")  # what it tells besides is told here
    try:
        path = pooch.retrieve(
            address, digest.replace("=", ":") or None, path=folder, downloader=partial(fetch, name=name)
        )
    except requests.RequestException as error:
        if error.response is not None:
            error.response.close()  # which pooch leaves open
        raise UserError(
            f"{address} cannot be fetched ({type(error).__name__}): if you are offline, fetch it elsewhere and give "
            "its path."
        ) from error
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): set XDG_CACHE_HOME to another.") from error
    except ValueError as error:  # pooch's word for another hash
        raise UserError(f"{address} is not the file of {digest}: correct the hash or the address.") from error
    found = pooch.file_hash(path)
    if (part := HASH_IN_NAME.search(name)) and not digest and not found.startswith(part[1]):
        epath.Path(path).unlink()
        raise UserError(
            f"{address} was not received whole (its SHA-256 is {found}): try again, or put #sha256= and that behind it."
        )
    print(f"{name}: SHA-256 {found}, in {folder}", flush=True)
    return epath.Path(path)


def fetch(url: str, path: str, _: Any, name: str) -> None:
    """Downloads in a thread, which is given up where too little comes: a server may send a byte at a time for ever."""
    progress, done = DownloadProgress(name), futures.Future()
    options = {"progressbar": progress, "timeout": 30, "hooks": {"response": check_length}}

    def work() -> None:
        try:
            done.set_result(pooch.HTTPDownloader(**options)(url, path, None))
        except Exception as error:  # raised by who waits
            done.set_exception(error if isinstance(error, OSError) else requests.exceptions.InvalidURL())

    threading.Thread(target=work, daemon=True).start()
    before, received = -LEAST, 0
    while not done.done() and received - before >= LEAST:
        futures.wait([done], STALL)
        before, received = received, progress.received
    if not done.done():
        raise requests.Timeout
    done.result()


def check_length(response: requests.Response, **_: Any) -> None:
    """The header that says how much will come is a number: else whatever comes would count as the whole."""
    if not response.headers.get("Content-Length", "0").isdecimal():
        raise requests.exceptions.InvalidHeader(response=response)


class DownloadProgress:
    """What pooch wants of a progress bar, told by ours; silent where the server does not say how much will come."""

    def __init__(self, name: str) -> None:
        self.name, self.total, self.received = name, 0, 0
        self.progress: Progress | None = None

    def update(self, count: int) -> None:
        """`count` more bytes have come."""
        self.received += count
        if self.progress is None and self.total:
            self.progress = Progress(f"Fetching {self.name}", -(-self.total // 1024), unit="KiB")
        if self.progress is not None and self.progress.done < self.progress.total:
            self.progress.advance(min(-(-count // 1024), self.progress.total - self.progress.done))

    def reset(self) -> None:
        """Nothing: at the end pooch tells the whole once more."""

    def close(self) -> None:
        """Ends the line."""
        if self.progress is not None:
            self.progress.close()
