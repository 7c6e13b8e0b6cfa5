"""Whether an Arrow stream is compressed: a few bytes on disk could be terabytes in memory.

pyarrow tells only after it has decompressed, so that the messages' own descriptions are read here: flatbuffers, in
which a table begins with the distance back to a list of where its fields are.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pyarrow as pa

HEADER, COMPRESSION = 2, 3  # fields of Message and of RecordBatch in the format's Message.fbs


def is_compressed(path: Path) -> bool:
    """Say whether any record batch of an Arrow stream is compressed.

    Raises:
        ArrowException: when it is no Arrow stream.
    """
    with pa.memory_map(str(path)) as source:
        messages = pa.ipc.MessageReader.open_stream(source)
        while True:
            try:
                message = messages.read_next_message()
            except StopIteration:
                return False
            if message.type == "record batch" and has_compression(message.metadata.to_pybytes()):
                return True


def has_compression(metadata: bytes) -> bool:
    """Say whether the description of a record batch names a compression.

    Raises:
        ArrowInvalid: when it is cut off.
    """
    try:
        (root,) = struct.unpack_from("<I", metadata, 0)
        header = field(metadata, root, HEADER)
        if header is None:
            return False
        (distance,) = struct.unpack_from("<I", metadata, header)
        return field(metadata, header + distance, COMPRESSION) is not None
    except struct.error as error:
        raise pa.ArrowInvalid(f"a message is cut off: {error}") from None


def field(data: bytes, table: int, number: int) -> int | None:
    """Return where a field of a flatbuffers table lies; None if it is not set."""
    (back,) = struct.unpack_from("<i", data, table)
    places = table - back
    (size,) = struct.unpack_from("<H", data, places)
    entry = 4 + 2 * number
    if entry >= size:
        return None
    (offset,) = struct.unpack_from("<H", data, places + entry)
    return table + offset if offset else None
