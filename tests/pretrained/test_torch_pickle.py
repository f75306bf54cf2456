"""Crafted torch files call nothing and cannot exhaust time or memory: each is refused in one line, or harmless."""

import zipfile

import ml_dtypes
import numpy as np
import pytest

from cfinet_jax.errors import UserError
from cfinet_jax.pretrained.names import translate
from cfinet_jax.pretrained.weight_files import read


def text(value: str) -> bytes:
    """The operation that pushes a text."""
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def tensor(count: int = 1, shape: bytes = b"K\x01\x85") -> bytes:
    """The operations that rebuild a tensor of storage 0."""
    storage = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"J" + count.to_bytes(4, "little")
    return b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQK\x00" + shape + b"K\x01\x85\x89NtR"


def twice(kind: str) -> bytes:
    """Forty lists or tuples, each of which holds the one before it twice: 2^40 elements in a few bytes."""
    first, both = {"list": (b"]", b"0](%b%be"), "tuple": (b")", b"0%b%b\x86")}[kind]
    recalled = [b"h" + bytes([k]) for k in range(40)]
    return first + b"".join(b"q" + bytes([k]) + both % (recalled[k], recalled[k]) for k in range(40))


STATE = b"}(" + text("backbone.conv1.weight") + tensor() + b"u"
# A state for `numpy.dtype.__setstate__` that would make every bfloat16 number three bytes wide.
CHANGED = b"ctorch\nBFloat16Storage\n(K\x03" + text("<") + b"NNNJ\x01\0\0\0J\x01\0\0\0K\x00tb0"


def beside(fact: str) -> bytes:
    """Weights with metadata that nest."""
    meta = text("meta") + b"}" + text(fact) + twice("list") + b"s"
    return b"}" + meta + b"s" + text("state_dict") + STATE + b"s"


HARMLESS = {
    "a global is given another state": CHANGED + STATE,
    "the config nests": beside("config"),
    "classes nest": beside("CLASSES"),
    "a dict is given other methods": STATE + b"}" + text("items") + b"K\x01sb",
    "marks are taken back": STATE + b"(((NN100",
    "a key nests": b"}" + twice("tuple") + b"K\x01s" + text("state_dict") + STATE + b"s",
}
REFUSED = {
    "arguments that nest": (twice("tuple") + b")R", "is damaged"),
    "calling a number": (b"K\x07)R", "is damaged"),
    "a memo of billions": (b"}r\xff\xff\xff\x7f", "has unknown names"),
    "an extension": (b"\x82\x01", "its pickle uses EXT1, but only weights are read"),
    "an instance": (b"(icollections\nOrderedDict\n", "its pickle uses INST, but only weights are read"),
    "a name of a megabyte": (b"c" + b"x" * 2**20 + b"\ny\n", "it asks to run x{80}, but only weights are read"),
    "deep lists": (b"]" * 10**5 + b"a" * (10**5 - 1), "it holds no state dict"),
    "deep tuples": (b")" + b"\x85" * 10**5, "it holds no state dict"),
    "a shape of lists": (b"}" + text("a") + tensor(shape=b"](NNNe\x85") + b"s", "is damaged"),
    "a storage that is shorter": (b"}" + text("a") + tensor(count=2**30) + b"s", "is damaged"),
    "more is taken than there is": (b"\x87\x87e", "is damaged"),
    "bytes beyond the file": (b"\x8e\xff\xff\xff\xff\xff\0\0\0", "is damaged"),
    "a storage again and again": (
        b"}" + text("a") + tensor() + b"q\x01s" + b"".join(text(str(k)) + b"h\x01s" for k in range(99)),
        "its tensors repeat their numbers",
    ),
}


def write(path, body: bytes) -> str:
    """Write a torch file of one number; `body` is its pickle without the first and last operation."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("archive/data/0", bytes(4))
    return str(path)


@pytest.mark.parametrize("name", HARMLESS)
def test_operations_that_weights_do_not_need_have_no_effect(tmp_path, name):
    published = translate(read(write(tmp_path / "model.pth", HARMLESS[name])), "model.pth")
    assert published.arrays["params/backbone/conv1/kernel"].tolist() == [0] and not published.classes
    assert np.dtype(ml_dtypes.bfloat16).itemsize == 2


@pytest.mark.parametrize("name", REFUSED)
def test_crafted_files_are_refused_in_one_line(tmp_path, name):
    body, line = REFUSED[name]
    with pytest.raises(UserError, match=line) as error:
        translate(read(write(tmp_path / "model.pth", body)), "model.pth")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
