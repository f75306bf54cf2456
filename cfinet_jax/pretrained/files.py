"""Weight files of every kind, here or elsewhere, as arrays by name."""

import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pooch
import requests
import safetensors
import safetensors.numpy
from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.pretrained import torch_pickle
from cfinet_jax.progress import Progress

DAMAGES = (*torch_pickle.DAMAGES, safetensors.SafetensorError)
HASH_IN_NAME = re.compile(r"[-_.]([0-9a-f]{8,64})\.\w+$")  # torch's and OpenMMLab's files end in the start of theirs


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
    path = epath.Path(download(source) if source.startswith(("http://", "https://")) else source)
    if not path.exists():
        raise UserError(f"No pretrained weights at {source}: give the path or URL of an existing file.")
    encoded = path.read_bytes()
    try:
        if encoded[:2] == b"PK" and not any(name.endswith("data.pkl") for name in names_in(encoded)):
            return WeightFile(dict(np.load(io.BytesIO(encoded), allow_pickle=False)), {})
        if encoded[:2] in (b"PK", b"\x80\x02"):
            return of_checkpoint(torch_pickle.load(encoded))
        if encoded[8:9] == b"{":
            header = json.loads(encoded[8 : 8 + int.from_bytes(encoded[:8], "little")])
            return WeightFile(safetensors.numpy.load(encoded), header.get("__metadata__", {}))
    except UserError as error:
        raise UserError(f"{source} is refused: {error}.") from error
    except DAMAGES as error:
        raise UserError(f"{source} is damaged or cut short: fetch it again.") from error
    raise UserError(f"{source} is no weight file: give an .npz, .safetensors or .pth.")


def names_in(encoded: bytes) -> list[str]:
    """The names of a zip archive's files."""
    with zipfile.ZipFile(io.BytesIO(encoded)) as archive:
        return archive.namelist()


def of_checkpoint(content: Any) -> WeightFile:
    """The state dict of a torch file, bare or beside what training left there.

    Averaged weights (EMA) are what a checkpoint of mmdetection calls its state dict; the raw ones beside it stay.
    """
    if not isinstance(content, dict):
        raise UserError("it holds no state dict")
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    facts = content.get("meta") if state is not content else None
    arrays = {str(name): array for name, array in state.items() if isinstance(array, np.ndarray)}
    return WeightFile(arrays, facts if isinstance(facts, dict) else {})


def download(url: str) -> str:
    """The local copy of a URL, fetched once; checked against `#sha256=...` behind it or the hash in the file's name."""
    address, _, digest = url.partition("#sha256=")
    name = address.rsplit("/", 1)[-1].partition("?")[0]
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cfinet_jax" / "weights"
    known = f"sha256:{digest}" if digest else None
    pooch.get_logger().setLevel("WARNING")  # what it tells besides is told here
    try:
        path = pooch.retrieve(
            address, known, fname=f"{digest[:8]}-{name}" if digest else name, path=folder,
            downloader=pooch.HTTPDownloader(progressbar=Bytes(name), timeout=30),
        )  # fmt: skip
    except requests.RequestException as error:
        if error.response is not None:
            error.response.close()  # which pooch leaves open
        raise UserError(
            f"{address} cannot be fetched ({type(error).__name__}): if you are offline, fetch it elsewhere and give "
            "its path."
        ) from error
    except ValueError as error:  # pooch's word for another hash
        raise UserError(f"{address} is not the file of SHA-256 {digest}: correct the hash or the address.") from error
    found = pooch.file_hash(path)
    if (part := HASH_IN_NAME.search(name)) and not digest and not found.startswith(part[1]):
        Path(path).unlink()
        raise UserError(f"{address} was not received whole (its SHA-256 is {found}): try again.")
    print(f"{name}: SHA-256 {found}, in {folder}", flush=True)
    return path


class Bytes:
    """What pooch wants of a progress bar, told by ours."""

    def __init__(self, name: str) -> None:
        self.name, self.total = name, 0
        self.progress: Progress | None = None

    def update(self, count: int) -> None:
        """`count` more bytes have come."""
        if self.progress is None:
            self.progress = Progress(f"Fetching {self.name}", max(self.total >> 10, 1), unit="KiB")
        self.progress.advance(count >> 10)

    def reset(self) -> None:
        """Begins to count anew: at the end pooch tells the whole once more."""
        if self.progress is not None:
            self.progress.done = 0

    def close(self) -> None:
        """Ends the line."""
        if self.progress is not None:
            self.progress.close()
