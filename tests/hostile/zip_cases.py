"""Zip archives that lie: two records with one name or the same bytes, false sizes, missing parts."""

from __future__ import annotations

import struct
import zlib

from tests.hostile.cases import OK, Case, of_bytes
from tests.hostile.opcodes import mapping, stop, storage, tensor
from tests.hostile.zips import FOUR, GOOD, Ending, Record, checkpoint, pack

_FULL = 0xFFFFFFFF
_PICKLE = Record(name="archive/data.pkl", data=GOOD)
_WHOLE = checkpoint()


def _with(**changes: object) -> bytes:
    """Return a checkpoint with these fields in its storage record."""
    return pack(_PICKLE, Record(name="archive/data/0", data=FOUR, **changes))  # type: ignore[arg-type]


def _pickle_with(**changes: object) -> bytes:
    """Return a checkpoint with these fields in its pickle record."""
    first = Record(name="archive/data.pkl", data=GOOD, **changes)  # type: ignore[arg-type]
    return pack(first, Record(name="archive/data/0", data=FOUR))


def _deflated(data: bytes) -> bytes:
    squeezed = zlib.compressobj(9, zlib.DEFLATED, -15)
    return squeezed.compress(data) + squeezed.flush()


def _long(size: int, packed: int, header: int | None = None) -> bytes:
    """Return the extra field of sizes of more than 32 bits."""
    values = (size, packed) if header is None else (size, packed, header)
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)


def _long_end(*, count: int = 2, size: int | None = None, begin: int | None = None, at: int | None = None) -> bytes:
    """Return a checkpoint with the end record of large archives before the usual one."""
    plain = _WHOLE
    *_, real_size, real_begin, _ = struct.unpack("<4s4H2LH", plain[-22:])
    size = real_size if size is None else size
    begin = real_begin if begin is None else begin
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, begin)
    at = len(plain) - 22 if at is None else at
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    return plain[:-22] + end64 + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, _FULL, _FULL, 0)


_BAD: dict[str, tuple[bytes, str]] = {
    "duplicate pickle": (checkpoint(_PICKLE), "two records with the name"),
    "duplicate storage": (checkpoint(Record(name="archive/data/0", data=FOUR)), "two records with the name"),
    "two roots": (checkpoint(Record(name="other/data.pkl", data=GOOD)), "not written by torch.save"),
    "no pickle": (pack(Record(name="archive/data/0", data=FOUR)), "not written by torch.save"),
    "no root": (pack(Record(name="data.pkl", data=GOOD)), "not written by torch.save"),
    "deep root": (checkpoint(root="a/b"), "not written by torch.save"),
    "parent as root": (checkpoint(root="../x"), "not written by torch.save"),
    "absolute root": (checkpoint(root="/etc"), "not written by torch.save"),
    "no records": (pack(), "not a checkpoint"),
    "numpy": (pack(Record(name="w.npy", data=b"x"), Record(name="\x1b[31m.npy", data=b"")), "a numpy archive"),
    "Keras": (
        pack(*(Record(name=name, data=b"x") for name in ("metadata.json", "config.json", "model.weights.h5"))),
        "a Keras model",
    ),
    "policy": (
        pack(Record(name="data", data=b"{}"), *(Record(name=f"{n}.pth", data=b"") for n in ("a", "policy"))),
        'contains "policy.pth", "a.pth"',
    ),
    "checkpoints of bad names": (
        pack(*(Record(name=f"../\x1b[31m{number}" + "n" * 9000 + ".ckpt", data=b"") for number in range(50))),
        "and 48 more",
    ),
    "export": (pack(Record(name="m/archive_format", data=b"pt2")), "torch.export"),
    "package": (pack(Record(name="m/.data/extern_modules", data=b"torch")), "torch.package"),
    "documents": (pack(Record(name="word/document.xml", data=b"x")), 'it contains "word/document.xml"'),
    "missing storage": (pack(_PICKLE), "incomplete"),
    "storage of traversal": (
        checkpoint(pickle=stop(mapping(w=tensor(storage("../../etc/passwd"))))),
        "has no record",
    ),
    "storage of nothing": (checkpoint(pickle=stop(mapping(w=tensor(storage(""))))), "has no record"),
    "storage is the pickle": (checkpoint(pickle=stop(mapping(w=tensor(storage("../data.pkl"))))), "has no record"),
    "short storage": (checkpoint(data=bytes(15)), "beyond its storage"),
    "empty storage": (checkpoint(data=b""), "beyond its storage"),
    "wrong checksum of the pickle": (_pickle_with(crc32=1), "checksum"),
    "encrypted": (_with(flags=1), "compressed archive"),
    "encrypted pickle": (_pickle_with(flags=1), "compressed archive"),
    "deflated": (_with(method=8), "compressed archive"),
    "deflated pickle": (
        pack(
            Record(name="archive/data.pkl", data=_deflated(GOOD), method=8, size=len(GOOD)),
            Record(name="archive/data/0", data=FOUR),
        ),
        "compressed archive",
    ),
    "bzip2": (_with(method=12), "compressed archive"),
    "lzma": (_with(method=14), "compressed archive"),
    "zstd": (_with(method=93), "compressed archive"),
    "method of nobody": (_with(method=0xFFFF), "compressed archive"),
    "size and packed size": (_with(size=32), "contradicts itself"),
    "packed more than size": (_with(size=8), "contradicts itself"),
    "both sizes large": (_with(size=1 << 20, packed=1 << 20), "reaches into the directory"),
    "sizes of 4 GiB": (_with(size=_FULL - 1, packed=_FULL - 1), "reaches into the directory"),
    "full sizes without their field": (_with(size=_FULL, packed=_FULL), "directory"),
    "long sizes": (_with(size=_FULL, packed=_FULL, extra=_long(1 << 62, 1 << 62)), "reaches into the directory"),
    "longest sizes": (_with(size=_FULL, packed=_FULL, extra=_long((1 << 64) - 1, (1 << 64) - 1)), "directory"),
    "long sizes cut": (_with(size=_FULL, packed=_FULL, extra=_long(16, 16)[:-1]), "directory"),
    "long header": (_with(header=_FULL, extra=struct.pack("<2HQ", 1, 8, 1 << 63)), "directory"),
    "overlap": (_with(header=0), "overlaps another"),
    "overlap by a byte": (_with(header=len(GOOD) + 30 + 16 - 1), "overlaps another"),
    "header behind the end": (_with(header=1 << 30), "reaches into the directory"),
    "header in the directory": (_with(header=len(_WHOLE) - 60), "reaches into the directory"),
    "header in the middle": (_with(header=len(GOOD) + 30 + 16 + 1), "directory"),
    "other local name": (_with(local_name="archive/data/1"), "damaged record"),
    "longer local name": (_with(local_name="archive/data/00"), "damaged record"),
    "other local method": (_with(local_method=8), "damaged record"),
    "other disk": (_with(disk=1), "directory"),
    "bad utf-8 name": (_with(raw_name=b"archive/data/\xff", flags=0x800), "directory"),
    "count too small": (checkpoint(ending=Ending(count=1)), "directory"),
    "count too large": (checkpoint(ending=Ending(count=3)), "directory"),
    "count of nothing": (checkpoint(ending=Ending(count=0)), "directory"),
    "count most": (checkpoint(ending=Ending(count=0xFFFF)), "directory"),
    "counts differ": (checkpoint(ending=Ending(count_here=1)), "multi-part"),
    "second disk": (checkpoint(ending=Ending(disk=1)), "multi-part"),
    "first disk": (checkpoint(ending=Ending(first_disk=1)), "multi-part"),
    "directory size small": (checkpoint(ending=Ending(size=1)), "directory"),
    "directory size large": (checkpoint(ending=Ending(size=1 << 30)), "directory"),
    "directory begin": (checkpoint(ending=Ending(begin=0)), "directory"),
    "directory begin far": (checkpoint(ending=Ending(begin=_FULL - 1)), "directory"),
    "bytes before the end record": (checkpoint(ending=Ending(between=b"x")), "directory"),
    "bytes behind the end record": (checkpoint(ending=Ending(tail=b"x")), "directory"),
    "comment too short": (checkpoint(ending=Ending(comment=b"abc", comment_size=2)), "directory"),
    "comment too long": (checkpoint(ending=Ending(comment=b"abc", comment_size=4)), "directory"),
    "comment is an archive": (_WHOLE + _WHOLE, "directory"),
    "end record in the comment": (
        checkpoint(ending=Ending(comment=struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0))),
        "directory",
    ),
    "many end records": (_WHOLE[:-22] + b"PK\x05\x06" * 16_000, "directory"),
    "prefix": (b"PK\x03\x04" + b"x" * 100 + _WHOLE, "directory"),
    "long end of 2**63": (_long_end(count=1 << 63), "records"),
    "long end size": (_long_end(size=1 << 63), "directory"),
    "long end begin": (_long_end(begin=1 << 63), "directory"),
    "long end elsewhere": (_long_end(at=0), "directory"),
    "long end far": (_long_end(at=(1 << 64) - 1), "directory"),
    "locator alone": (_WHOLE[:-22] + b"PK\x06\x07" + bytes(16) + _WHOLE[-22:], "directory"),
    "end record alone": (b"PK\x03\x04" + bytes(40) + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0), "d"),
    "local header alone": (b"PK\x03\x04", "directory"),
    "TorchScript": (checkpoint(Record(name="archive/constants.pkl", data=b"N.")), "TorchScript"),
    "big endian": (checkpoint(Record(name="archive/byteorder", data=b"big")), "only little-endian"),
    "byte order of nobody": (checkpoint(Record(name="archive/byteorder", data=b"\x1b[2J\x07")), "only little-endian"),
    "long byte order": (checkpoint(Record(name="archive/byteorder", data=b"little" * 99)), "more than the limit"),
    "no bytes of pickle": (checkpoint(pickle=b""), "damaged pickle"),
}
_GOOD: dict[str, tuple[bytes, str]] = {
    "plain": (_WHOLE, ""),
    "no checksums": (_with(crc32=0), ""),
    "comment": (checkpoint(ending=Ending(comment=b"\x1b[31mhello")), ""),
    "longest comment": (checkpoint(ending=Ending(comment=b"x" * 65_535)), ""),
    "comment with a signature": (checkpoint(ending=Ending(comment=b"PK\x05\x06 is a signature")), ""),
    "large archive": (_long_end(), ""),
    "long sizes that fit": (_with(size=_FULL, packed=_FULL, extra=_long(16, 16)), ""),
    "other extra fields": (_with(extra=struct.pack("<2H4s", 0x7075, 4, b"abcd")), ""),
    "local extra": (_with(local_extra=bytes(64)), ""),
    "long local extra": (_with(local_extra=bytes(65_000)), ""),
    "unknown records": (checkpoint(Record(name="archive/../../evil", data=b"x")), ""),
    "record of a folder": (checkpoint(Record(name="archive/", data=b"")), ""),
    "root of marks": (checkpoint(root="a\x1b[31m"), ""),
    "unused record compressed": (checkpoint(Record(name="archive/data/1", data=b"xx", method=8)), ""),
    "directory with a gap": (pack(_PICKLE, Record(name="archive/data/0", data=FOUR), prefix=b"PK\x03\x04gap"), ""),
    "little endian": (checkpoint(Record(name="archive/byteorder", data=b"little")), ""),
}


def zip_cases() -> list[Case]:
    """Return the archives, and a good one cut at every tenth of its length."""
    cut = {f"cut at {share} of 20": (_WHOLE[: len(_WHOLE) * share // 20], "") for share in range(1, 20)}
    return [
        *of_bytes("zip", ".pt", _BAD),
        *of_bytes("zip", ".pt", cut),
        *of_bytes("good_zip", ".pt", _GOOD, code=OK),
    ]
