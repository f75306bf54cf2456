"""ArrayRecord files without compression: pictures are compressed already, and zstd takes longer than writing them."""

import os
from collections.abc import Iterable

from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.core import file_adapters

FORMAT = file_adapters.FileFormat.ARRAY_RECORD


class Uncompressed(file_adapters.ArrayRecordFileAdapter):
    """As TFDS writes them, but for the compression."""

    @classmethod
    def write_examples(cls, path: epath.PathLike, iterator: Iterable[tuple[int | bytes, bytes]]) -> None:
        writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed,max_parallelism:1")
        try:
            for _, example in iterator:
                writer.write(example)
            writer.close()
        except RuntimeError as error:  # of ArrayRecord: the disk is full, say
            raise OSError(str(error)) from error


file_adapters.ADAPTER_FOR_FORMAT[FORMAT] = Uncompressed
