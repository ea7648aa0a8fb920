"""What tells the metadata of one save from those of another: all but the names that each save gives itself.

The metadata of the checkpoints of a run mostly differ in the folder and the random identifier of the save alone,
which stand in one object of no use to a reader. Parsing hundreds of thousands of chunks takes seconds, comparing
them does not. Reference: ``StorageMeta`` in ``torch/distributed/checkpoint/metadata.py``.
"""

from __future__ import annotations

import hashlib
import re

_NAMES_OF_THE_SAVE = re.compile(rb"checkpoint_id.{1,4096}?save_id.{1,8}?[0-9a-f-]{36}", re.DOTALL)
_FRAME = b"\x95"
_HEADER_BYTES = 9
_FIRST_FRAME = 2
"""Behind the opcode of the protocol."""


def signature(raw: bytes) -> bytes:
    """Return a hash that is equal for pickles of metadata that declare the same, whatever the save is called.

    Frames are how a pickle is cut up for reading; the length of the last one depends on the length of the names.
    """
    content = b"".join(_unframed(raw))
    begin = content.rfind(b"checkpoint_id")
    found = _NAMES_OF_THE_SAVE.match(content, begin) if begin >= 0 else None
    if found is not None:
        content = content[: found.start()] + content[found.end() :]
    return hashlib.sha256(content).digest()


def _unframed(raw: bytes) -> list[bytes]:
    """Return the parts of a pickle between the headers of its frames."""
    parts, position = [raw[:_FIRST_FRAME]], _FIRST_FRAME
    while raw[position : position + 1] == _FRAME:
        begin = position + _HEADER_BYTES
        position = begin + int.from_bytes(raw[position + 1 : begin], "little")
        parts.append(raw[begin:position])
    return [*parts, raw[position:]]
