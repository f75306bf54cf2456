"""Write ArrayRecord files without compression: pictures are compressed already, and zstd would cost more than writing.

TFDS has no setting for this, so its table of file adapters gets ours in the place of its own. Reading is not affected:
the format of a record is stated in the file.
"""

import os
from collections.abc import Iterable

from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.core import file_adapters

FORMAT = file_adapters.FileFormat.ARRAY_RECORD


class Uncompressed(file_adapters.ArrayRecordFileAdapter):
    """TFDS's adapter, but for the compression."""

    @classmethod
    def write_examples(cls, path: epath.PathLike, iterator: Iterable[tuple[int | bytes, bytes]]) -> None:
        """Write examples to a file; the keys, which TFDS sorts by, are not stored."""
        writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed,max_parallelism:1")
        try:
            for _, example in iterator:
                writer.write(example)
            writer.close()
        except RuntimeError as error:  # ArrayRecord raises it when the disk is full, for example
            raise OSError(str(error)) from error


file_adapters.ADAPTER_FOR_FORMAT[FORMAT] = Uncompressed
