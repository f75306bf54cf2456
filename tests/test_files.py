"""Files are written whole or not at all, and damaged ones are named in one line."""

import contextlib
import errno
import io
import json

import numpy as np
import pytest
from etils import epath

from cfinet_jax.errors import Interrupted, UserError
from cfinet_jax.files import reading, replacing


@pytest.mark.parametrize("before", ["before", None])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), Interrupted("x"), ValueError()])
def test_a_file_that_is_not_finished_leaves_the_one_before(tmp_path, before, error):
    path = epath.Path(tmp_path) / "metrics.json"
    if before is not None:
        path.write_text(before)
    with contextlib.suppress(type(error)), replacing(path) as partial:
        partial.write_text("aft")
        raise error
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == ({"metrics.json": before} if before else {})
    with replacing(path) as partial:
        partial.write_bytes(b"after")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("metrics.json", "after")]


def test_the_reason_is_kept_where_the_folder_is_gone(tmp_path):
    with pytest.raises(OSError, match="No space"), replacing(epath.Path(tmp_path) / "gone" / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")


def arrays() -> bytes:
    """An .npz file."""
    content = io.BytesIO()
    np.savez_compressed(content, hits=np.arange(2000))
    return content.getvalue()


def flipped() -> bytes:
    """The file with its packed numbers destroyed."""
    return arrays()[:100] + b"\xff" * 60 + arrays()[160:]


@pytest.mark.parametrize(
    "content",
    [None, b"", b"[", b'{"AP": 0.', b"null", b"[]", b"7", b'"x"', b'{"a": 1}', b"\xff\xfe{", b"[" * 100_000, b"PK\3\4",
     arrays()[:300], arrays()[:-30], flipped(), arrays() + b"x" * 9, b"\0" * 500],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, content):
    path = epath.Path(tmp_path) / "results"
    if content is not None:
        path.write_bytes(content)

    def read_arrays() -> None:
        with path.open("rb") as file, np.load(file) as arrays:
            assert arrays["objects"].sum()

    for read in (lambda: json.loads(path.read_text())["AP"]["all"], read_arrays):
        with pytest.raises(UserError) as caught, reading(path, "score it again."):
            read()
        message = str(caught.value)
        assert message.startswith(f"{path} is missing or damaged (") and message.endswith("): score it again.")
        assert len(message.splitlines()) == 1 and len(message) < 400
