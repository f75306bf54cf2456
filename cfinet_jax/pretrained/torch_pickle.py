"""Read torch checkpoints without torch: arrays and plain values of a pickle, none of whose functions are called."""

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cfinet_jax.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of files by torch before 1.6, which mmdetection still publishes
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
METADATA = ("mmcv", "mmengine", "numpy", "_codecs")  # their objects in a checkpoint are not weights: not rebuilt


class Storage:
    """The numbers of one or more tensors. In a legacy file they follow the pickle that mentions them."""

    def __init__(self, dtype: np.dtype, count: int) -> None:
        self.dtype, self.count = dtype, count
        self.encoded = b""

    def fill(self, encoded: bytes) -> None:
        """Set the numbers, given as little-endian bytes."""
        if len(encoded) != self.count * self.dtype.itemsize:
            raise EOFError("cut short")
        self.encoded = encoded


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """Copy the numbers to an array. Raises `ValueError` if the view reaches beyond its storage."""
        dtype = self.storage.dtype
        if math.prod(self.shape) > self.storage.count:
            raise ValueError("a tensor repeats its numbers")
        steps = tuple(step * dtype.itemsize for step in self.strides)
        if 0 in self.shape:
            return np.zeros(self.shape, dtype)
        return np.ndarray(self.shape, dtype, self.storage.encoded, self.offset * dtype.itemsize, steps).copy()


def rebuild_tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    """Stand in for `torch._utils._rebuild_tensor_v2`."""
    if not isinstance(storage, Storage):
        raise UserError("it holds a tensor without numbers")
    if not all(isinstance(number, int) for number in (offset, *shape, *strides)):
        raise TypeError("a tensor without shape")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def as_dict(pairs: Iterable[tuple[Any, Any]] = ()) -> dict[Any, Any]:
    """Build a dict of the pairs with plain keys: hashing a deeply nested tuple could take for ever."""
    return {key: value for key, value in pairs if isinstance(key, str | int | float)}


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): as_dict,
    ("torch", "Size"): lambda numbers=(): tuple(numbers),
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("builtins", "getattr"): None,  # mmengine's history names functions by it; they stay None
    ("__builtin__", "getattr"): None,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
}


def named(module: str, name: str) -> Any:
    """Return our substitute for `module.name`, None for metadata. Nothing is ever imported."""
    if (module, name) not in ALLOWED and module.split(".")[0] not in METADATA:
        raise UserError(f"it asks to run {f'{module}.{name}'[:80]}, but only weights are read")
    return ALLOWED.get((module, name))


# operation: (how many values it takes from the stack, None for all above the last mark; what it pushes in return)
RESULTS: dict[str, tuple[int | None, Callable[[list[Any]], Any]]] = {
    "NONE": (0, lambda _: None), "NEWTRUE": (0, lambda _: True), "NEWFALSE": (0, lambda _: False),
    "EMPTY_TUPLE": (0, tuple), "TUPLE": (None, tuple), "TUPLE1": (1, tuple), "TUPLE2": (2, tuple), "TUPLE3": (3, tuple),
    "EMPTY_LIST": (0, list), "LIST": (None, list), "EMPTY_SET": (0, lambda _: None), "EMPTY_DICT": (0, dict),
    "DICT": (None, lambda values: as_dict(zip(values[::2], values[1::2], strict=True))),
    "STACK_GLOBAL": (2, lambda names: named(*names)), "BUILD": (2, lambda values: values[0]),
    "REDUCE": (2, lambda x: x[0] and x[0](*x[1])), "NEWOBJ": (2, lambda x: x[0] and x[0](*x[1])),  # None is not called
}  # fmt: skip
ADDED = {"APPEND": 1, "APPENDS": None, "SETITEM": 2, "SETITEMS": None, "ADDITEMS": None, "POP": 1, "POP_MARK": None}


def unpickle(file: Any, storages: dict[str, Storage]) -> Any:
    """Interpret the next pickle of a file. Python's own reader would call whatever the pickle names."""
    stack, marks, memo = [], [], {}

    def take(count: int | None) -> list[Any]:
        first = marks.pop() if count is None else len(stack) - count
        taken = stack[first:]
        del stack[first:]
        return taken

    for operation, argument, _ in pickletools.genops(file):
        name = operation.name
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            marks.append(len(stack))
        elif name in RESULTS:
            count, make = RESULTS[name]
            stack.append(make(take(count)))
        elif name in ADDED:
            values = take(None if name == "POP" and len(stack) in marks[-1:] else ADDED[name])
            if name.startswith("APPEND") and isinstance(stack[-1], list):
                stack[-1].extend(values)
            elif name.startswith("SETITEM") and isinstance(stack[-1], dict):
                stack[-1].update(RESULTS["DICT"][1](values))
        elif name == "GLOBAL":
            stack.append(named(*str(argument).split(" ", 1)))
        elif name == "BINPERSID":
            stack.append(storage_of(storages, *take(1)))
        elif name == "MEMOIZE" or name.endswith("PUT"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[argument])
        elif name not in ("PROTO", "FRAME"):
            if argument is None or operation.stack_before or operation.stack_after[0].name == "any":
                raise UserError(f"its pickle uses {name}, but only weights are read")
            stack.append(argument)  # a number or text


def storage_of(storages: dict[str, Storage], pid: Any) -> Storage:
    """Return the storage that a tensor refers to."""
    kind, dtype, key, _, count, *view = pid
    plain = isinstance(dtype, np.dtype) and isinstance(key, str) and isinstance(count, int)
    if kind != "storage" or not plain or any(part is not None for part in view):
        raise UserError("it holds tensors of an unsupported kind: save its state dict again")
    return storages.setdefault(key, Storage(dtype, count))


def load(encoded: bytes) -> Any:
    """Return the content of a torch file of either format, with a `Tensor` for every tensor.

    Raises:
      UserError: the file has something unsupported. A damaged file raises whatever Python's readers raise.
    """
    storages: dict[str, Storage] = {}
    if encoded[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(encoded)) as archive:
            pickled = min(name for name in archive.namelist() if name.endswith("data.pkl"))
            folder = pickled.removesuffix("data.pkl")
            if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
                raise UserError("its numbers are big-endian: save it on another machine")
            content = unpickle(io.BytesIO(archive.read(pickled)), storages)
            for key, storage in storages.items():
                storage.fill(archive.read(f"{folder}data/{key}"))
        return content
    file = io.BytesIO(encoded)
    magic, _, _ = (unpickle(file, {}) for _ in range(3))  # then protocol and byte order
    if magic != LEGACY_MAGIC:
        raise ValueError("not a torch file")
    content = unpickle(file, storages)
    for key in unpickle(file, {}):
        storage = storages[key]
        if struct.unpack("<q", file.read(8)) != (storage.count,):
            raise EOFError("cut short")
        storage.fill(file.read(storage.count * storage.dtype.itemsize))
    return content
