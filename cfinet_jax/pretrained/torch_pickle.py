"""Torch checkpoints without torch: the arrays and plain values of a pickle, and nothing that could run."""

import collections
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cfinet_jax.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # files of torch before 1.6, and those that mmdetection publishes
DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
METADATA = ("mmcv", "mmengine", "numpy", "_codecs")  # what they leave in a checkpoint is no weight: not rebuilt


class Storage:
    """The numbers of one or several tensors; a legacy file brings them behind the pickle that mentions them."""

    def __init__(self, dtype: np.dtype, count: int) -> None:
        self.dtype, self.count = dtype, count
        self.encoded = b""

    def fill(self, encoded: bytes) -> None:
        """Takes the numbers as little-endian bytes."""
        if len(encoded) != self.count * self.dtype.itemsize:
            raise EOFError("cut short")
        self.encoded = encoded


class Tensor(NamedTuple):
    """A view of a storage; offset and strides in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """The numbers themselves, in an array of their own. Raises ValueError where they reach beyond the storage."""
        dtype = self.storage.dtype
        if math.prod(self.shape) > self.storage.count:
            raise ValueError("a tensor repeats its numbers")
        steps = tuple(step * dtype.itemsize for step in self.strides)
        if 0 in self.shape:
            return np.zeros(self.shape, dtype)
        return np.ndarray(self.shape, dtype, self.storage.encoded, self.offset * dtype.itemsize, steps).copy()


class Inert:
    """Stands for an object that is not rebuilt, whatever is done to it."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None:
        """Nothing."""

    def extend(self, values: Any) -> None:
        """Nothing."""


def rebuild_tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    """What `torch._utils._rebuild_tensor_v2` makes of its first arguments."""
    if not isinstance(storage, Storage):
        raise UserError("it holds a tensor without numbers")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("builtins", "getattr"): Inert,  # mmengine's history names functions; none is fetched
    ("__builtin__", "getattr"): Inert,
}


class WeightsUnpickler(pickle.Unpickler):
    """Rebuilds tensors and plain containers; anything else that a pickle asks for is refused or left inert."""

    def __init__(self, file: Any, storages: dict[str, Storage]) -> None:
        super().__init__(file)
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        """What stands for `module.name`; nothing is ever imported."""
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module.split(".")[0] in METADATA:
            return Inert
        raise UserError(f"it asks to run {module}.{name}, and only weights are read")

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a tensor names."""
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(part is not None for part in view):
            raise UserError("it holds tensors of a kind that is not read: save its state dict anew")
        return self.storages.setdefault(key, Storage(dtype, count))


def load(encoded: bytes) -> Any:
    """The content of a torch file, old or new, with a `Tensor` for every tensor.

    Raises `UserError` for what is not read, and whatever Python's readers raise for a damaged file.
    """
    storages: dict[str, Storage] = {}
    if encoded[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(encoded)) as archive:
            pickled = min(name for name in archive.namelist() if name.endswith("data.pkl"))
            folder = pickled.removesuffix("data.pkl")
            if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
                raise UserError("its numbers are big-endian: save it anew on another machine")
            content = WeightsUnpickler(io.BytesIO(archive.read(pickled)), storages).load()
            for key, storage in storages.items():
                storage.fill(archive.read(f"{folder}data/{key}"))
        return content
    file = io.BytesIO(encoded)
    magic, _, _ = (WeightsUnpickler(file, {}).load() for _ in range(3))  # then protocol and byte order
    if magic != LEGACY_MAGIC:
        raise pickle.UnpicklingError("not a torch file")
    content = WeightsUnpickler(file, storages).load()
    for key in WeightsUnpickler(file, {}).load():
        storage = storages[key]
        if struct.unpack("<q", file.read(8)) != (storage.count,):
            raise EOFError("cut short")
        storage.fill(file.read(storage.count * storage.dtype.itemsize))
    return content
