"""The zip format of ``torch.save``: every tensor equals what ``torch.load`` gives, and incomplete files are refused."""

from __future__ import annotations

import io
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ema_cli.errors import InputRefused
from ema_cli.formats.torch.zip_archive import RESAVE, Archive
from ema_cli.storage.source import FileSource
from tests.helpers.makers import archive, every_kind, expected, open_file, overwrite, read_file, rezip, save, whole
from tests.hostile.opcodes import call, glob, mapping, num, numbers, stop, storage, tensor, text

SMALL = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small plain checkpoint."""
    return save(tmp_path / "small.pt", SMALL)


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_kind_equals_torch(tmp_path: Path, protocol: int) -> None:
    """Every type, layout, sharing and pickle protocol gives the names, types, shapes and bytes of ``torch.load``."""
    path = save(tmp_path / "every.pt", every_kind(), protocol=protocol)
    checkpoint = open_file(path)
    loaded = torch.load(path, weights_only=False)
    assert [layout.name for layout in checkpoint.index.layouts] == list(loaded)
    assert checkpoint.format == "torch zip"
    assert checkpoint.ties == {"tied": "base", "parameter.tied": "parameter"}
    checkpoint.index.close()
    assert read_file(path) == expected(loaded)


def test_plain_weights_equal_the_safe_loader(small: Path) -> None:
    """For weights alone the oracle is ``torch.load(weights_only=True)``."""
    assert read_file(small) == expected(torch.load(small, weights_only=True))


def test_repacked_archives_are_read_without_unpacking(tmp_path: Path) -> None:
    """An archive that was unpacked and zipped again has unaligned records; they are read from their own headers."""
    path = save(tmp_path / "every.pt", every_kind())
    again = rezip(path, tmp_path / "again.pt")
    offsets = [whole(extent).offset for extent in open_file(again).index]
    assert any(offset % 64 for offset in offsets)
    assert read_file(again) == expected(torch.load(path, weights_only=False))


class StoredSource(FileSource):
    """A file that is read as an object in a store, and counts the reads."""

    is_remote = True
    reads = 0

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Count, and fill the buffer."""
        self.reads += 1
        super().read_into(offset, buffer)


@pytest.mark.parametrize("form", ["torch", "repacked", "without checksums", "other padding"])
def test_offsets_in_a_store_are_those_of_the_headers(form: str, tmp_path: Path) -> None:
    """The headers of storages are read, unless the records fill the archive as torch writes them."""
    tensors = {f"w{n}": torch.arange(7 * n + 1.0) for n in range(20)}
    path = save(tmp_path / "plain.pt", tensors)
    if form == "without checksums":
        torch.serialization.set_crc32_options(False)
        try:
            save(path, tensors)
        finally:
            torch.serialization.set_crc32_options(True)
    elif form == "other padding":
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "padded.pt", "w") as new:
            for number, info in enumerate(old.infolist()):
                entry = zipfile.ZipInfo(info.filename)
                entry.extra = struct.pack("<2H", 0x4246, number) + bytes(number)
                new.writestr(entry, old.read(info))
        path = tmp_path / "padded.pt"
    elif form == "repacked":
        path = rezip(path, tmp_path / "again.pt")
    with StoredSource(path) as stored, FileSource(path) as file:
        far, near = Archive(stored), Archive(file)
        stored.reads = 0
        assert [far.storage(str(n)) for n in range(20)] == [near.storage(str(n)) for n in range(20)]
        assert (stored.reads == 0) == (form == "torch")


def test_an_archive_behind_other_bytes_is_not_taken_for_one(small: Path) -> None:
    """A file is recognized by its first bytes, so an archive after a prefix is no checkpoint."""
    overwrite(small, b"prefix--" + small.read_bytes())
    with pytest.raises(InputRefused, match="is not a checkpoint: it begins with"):
        open_file(small)


def test_older_archives_lack_records(small: Path, tmp_path: Path) -> None:
    """Archives without byte order and format version, as older torch wrote them, are read."""
    gone = {"byteorder": None, ".format_version": None, ".storage_alignment": None, ".data/serialization_id": None}
    assert read_file(rezip(small, tmp_path / "old.pt", replaced=gone)) == expected(SMALL)


def test_offsets_beyond_four_gigabytes(tmp_path: Path) -> None:
    """A tensor after 5 GB of others is found; the file is sparse, so nothing of that size is written."""
    path = tmp_path / "large.pt"
    large = torch.from_file(str(tmp_path / "storage"), shared=True, size=5 << 28)
    with torch.serialization.skip_data():
        torch.save({"large": large, "last": torch.zeros(3)}, path)
    extent = whole(open_file(path).index.extent(1))
    assert extent.offset > 5 << 30
    with path.open("r+b") as file:
        file.seek(extent.offset)
        file.write(struct.pack("<3f", 1, 2, 3))
    loaded = torch.load(path, weights_only=True, mmap=True)["last"]
    assert loaded.tolist() == [1, 2, 3]
    assert extent.source.read(extent.offset, 12) == struct.pack("<3f", 1, 2, 3)
    extent.source.close()


def test_names_of_files_do_not_matter(tmp_path: Path) -> None:
    """The folder in the archive is named after the file; any name works, and so does none."""
    for name in ("模型.pt", "a b.ckpt", "no-suffix", "x.safetensors"):
        assert read_file(save(tmp_path / name, SMALL)) == expected(SMALL)


def test_compressed_archives_are_refused_with_the_fix(small: Path, tmp_path: Path) -> None:
    """Compressed records cannot be read piece by piece: the message has the line that saves them again."""
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        with pytest.raises(InputRefused, match="is a compressed archive") as raised:
            open_file(rezip(small, tmp_path / "packed.pt", method=method))
        assert RESAVE in raised.value.hint


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_is_refused_with_the_fix(small: Path, tmp_path: Path) -> None:
    """A TorchScript archive is distinguished from a checkpoint by its constants."""
    with pytest.raises(InputRefused, match="is a TorchScript archive") as raised:
        open_file(rezip(small, tmp_path / "packed.pt", replaced={"constants.pkl": b"\x80\x02)."}))
    assert "torch.jit.load" in raised.value.hint
    script = torch.jit.script(torch.nn.Linear(2, 2))
    torch.jit.save(script, tmp_path / "script.pt")
    with pytest.raises(InputRefused, match="is a TorchScript archive"):
        open_file(tmp_path / "script.pt")


@pytest.mark.parametrize("order", [b"big", b"", b"little\n", b"\x1b[2J", b"x" * 10_000])
def test_other_byte_orders_are_refused(small: Path, tmp_path: Path, order: bytes) -> None:
    """Only little-endian data is read, and the byte order in the message is printable and short."""
    with pytest.raises(InputRefused, match=r"endian data|a record .byteorder. of 10,000 bytes") as raised:
        open_file(rezip(small, tmp_path / "big.pt", replaced={"byteorder": order}))
    assert raised.value.message.isprintable()
    assert len(raised.value.message) < 300


def test_other_archives_are_refused(tmp_path: Path) -> None:
    """A zip without exactly one ``data.pkl`` one folder deep is not a checkpoint."""
    for names in (["readme.txt"], ["data.pkl"], ["a/b/data.pkl"], ["a/data.pkl", "b/data.pkl"]):
        path = tmp_path / "other.pt"
        with zipfile.ZipFile(path, "w") as made:
            for name in names:
                made.writestr(name, b"\x80\x02}.")
        with pytest.raises(InputRefused, match=r"not written by torch\.save"):
            open_file(path)


def test_two_records_of_one_name_are_refused(tmp_path: Path) -> None:
    """Readers disagree on which of two records with one name counts."""
    path = archive(tmp_path / "twice.pt", stop(mapping(w=tensor())), {"0": bytes(16)})
    with zipfile.ZipFile(path, "a") as made, pytest.warns(UserWarning, match="Duplicate name"):
        made.writestr("archive/data/0", bytes(16))
    with pytest.raises(InputRefused, match="holds two records with the name"):
        open_file(path)


def test_a_missing_record_is_named(small: Path, tmp_path: Path) -> None:
    """A tensor without its bytes in the archive is named, with the record that is missing."""
    with pytest.raises(InputRefused, match='has no record "small/data/0"'):
        open_file(rezip(small, tmp_path / "missing.pt", replaced={"data/0": None}))


def test_a_record_that_is_too_short_is_named(small: Path, tmp_path: Path) -> None:
    """A tensor that reaches beyond its record is named, even if the pickle declares a larger storage."""
    with pytest.raises(InputRefused, match='tensor "w" reaches beyond its storage of 23 bytes'):
        open_file(rezip(small, tmp_path / "short.pt", replaced={"data/0": bytes(23)}))


def test_a_wrong_checksum_of_the_pickle_is_refused(small: Path) -> None:
    """One flipped bit in a name inside the pickle does not become another model."""
    raw = bytearray(small.read_bytes())
    raw[raw.index(b"X\x01\x00\x00\x00w") + 5] ^= 1
    overwrite(small, raw)
    with pytest.raises(InputRefused, match="its checksum is wrong"):
        open_file(small)


def test_archives_without_checksums_are_read(tmp_path: Path) -> None:
    """Torch can be set to compute no checksums; it then writes zeros."""
    torch.serialization.set_crc32_options(compute_crc32=False)
    try:
        path = save(tmp_path / "unchecked.pt", SMALL)
    finally:
        torch.serialization.set_crc32_options(compute_crc32=True)
    assert read_file(path) == expected(SMALL)


def directory_entry(raw: bytes, name: bytes) -> int:
    """Return where the directory entry of a record begins."""
    return raw.rindex(name) - 46


def test_directory_and_records_must_agree(small: Path) -> None:
    """A directory that points at another record, at two overlapping ones or outside the file is refused."""
    raw = small.read_bytes()
    one, two = directory_entry(raw, b"small/data/0"), directory_entry(raw, b"small/data/1")
    second = raw[two + 42 : two + 46]
    for change in (second, struct.pack("<I", len(raw) - 3), struct.pack("<I", struct.unpack("<I", second)[0] - 8)):
        overwrite(small, raw[: one + 42] + change + raw[one + 46 :])
        with pytest.raises(InputRefused, match="damaged record"):
            open_file(small)


def test_a_record_inside_another_is_refused(tmp_path: Path) -> None:
    """A record that hides in the bytes of another, with a right header of its own, is refused."""
    whole = archive(
        tmp_path / "inner.pt", stop(mapping(w=tensor(), v=tensor(storage("1")))), {"1": bytes(16)}
    ).read_bytes()
    start = whole.index(b"archive/data/1") - 30
    inner = whole[start : start + 30 + len(b"archive/data/1") + 16]
    pickle = stop(mapping(w=tensor(), v=tensor(storage("1"))))
    path = archive(tmp_path / "outer.pt", pickle, {"0": inner, "1": bytes(16)})
    raw = path.read_bytes()
    entry = directory_entry(raw, b"archive/data/1")
    overwrite(path, raw[: entry + 42] + struct.pack("<I", raw.index(inner)) + raw[entry + 46 :])
    with pytest.raises(InputRefused, match="it overlaps another"):
        open_file(path)


def test_a_renamed_record_is_refused(small: Path) -> None:
    """The name before a record must be the name in the directory."""
    raw = small.read_bytes()
    overwrite(small, raw.replace(b"small/data/0", b"small/data/9", 1))
    with pytest.raises(InputRefused, match="damaged record"):
        open_file(small)


@pytest.mark.slow
def test_every_truncation_is_refused(small: Path) -> None:
    """A file that ends anywhere before its end is refused, whatever offset it was cut at."""
    whole = small.read_bytes()
    for length in range(len(whole)):
        overwrite(small, whole[:length])
        with pytest.raises(InputRefused):
            open_file(small)


def test_empty_files_are_refused(tmp_path: Path) -> None:
    """The error for an empty file says so."""
    with pytest.raises(InputRefused, match=r'empty\.pt" is empty'):
        open_file(overwrite(tmp_path / "empty.pt", b""))


ODD: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.empty(2, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8),
    "complex128": lambda: torch.ones(2, dtype=torch.complex128),
    "conjugate": lambda: torch.ones(2, dtype=torch.complex64).conj(),
    "negative": lambda: torch.ones(2, dtype=torch.complex64).conj().imag,
    "lazy": torch.nn.UninitializedParameter,
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.filterwarnings("ignore:.*[qQ]uantiz")
@pytest.mark.parametrize("kind", sorted(ODD))
@pytest.mark.parametrize("legacy", [False, True])
def test_odd_tensors_are_refused_by_name_in_the_weights_only(tmp_path: Path, kind: str, *, legacy: bool) -> None:
    """A tensor without plain data is reported by its name inside the weights, and ignored elsewhere."""
    inside = save(tmp_path / "inside.pt", {"good": torch.ones(2), f"bad.{kind}": ODD[kind]()}, legacy=legacy)
    ((name, reason),) = unreadable_in(inside)
    assert name == f"bad.{kind}"
    assert reason.startswith(("is ", "has "))
    assert read_file(inside) == expected({"good": torch.ones(2)})
    ignored = save(tmp_path / "beside.pt", {"model": {"good": torch.ones(2)}, "aux": [ODD[kind]()]}, legacy=legacy)
    assert read_file(ignored) == expected({"good": torch.ones(2)})


def unreadable_in(path: Path) -> tuple[tuple[str, str], ...]:
    """Return the tensors of a checkpoint that have no plain numbers, with the reasons."""
    checkpoint = open_file(path)
    checkpoint.index.close()
    return checkpoint.unreadable


def test_all_damaged_tensors_are_reported_at_once(tmp_path: Path) -> None:
    """A message names several tensors that are not inside their records, and counts the rest."""
    root = b"}(" + b"".join(text(f"layer.{i}") + tensor(shape=(5,)) for i in range(8)) + b"u"
    path = archive(tmp_path / "odd.pt", stop(root), {"0": bytes(16)})
    with pytest.raises(InputRefused, match=r'"layer\.0" .*"layer\.4" .* and 3 more'):
        open_file(path)


def distributed(local: int, whole: int) -> bytes:
    """Return the pickle of a distributed tensor, as ``torch.save`` writes it."""
    kind = glob("torch.distributed.tensor", "DTensor")
    args = b"(" + kind + glob("torch", "float32") + numbers([whole]) + numbers([1]) + num(0) + b"t"
    state = mapping(_local_tensor=tensor(storage(elements=4), shape=(local,)))
    rebuild = glob("torch._utils", "_rebuild_wrapper_subclass")
    return call(glob("torch._tensor", "_rebuild_from_type_v2"), rebuild, kind, args, b"N" + state + b"\x86")


def test_a_distributed_tensor_is_read_when_it_is_whole(tmp_path: Path) -> None:
    """A replicated distributed tensor is its local part; one rank's shard of a larger one is reported."""
    data = {"0": struct.pack("<4f", 1, 2, 3, 4)}
    whole = archive(tmp_path / "whole.pt", stop(mapping(w=distributed(4, 4))), data)
    assert read_file(whole) == expected({"w": torch.tensor([1.0, 2, 3, 4])})
    shard = archive(tmp_path / "shard.pt", stop(mapping(w=distributed(4, 8))), data)
    ((name, reason),) = unreadable_in(shard)
    assert name == "w"
    assert "is a distributed tensor, and this file has one rank's shard of it" in reason


def test_unknown_rebuild_functions_are_not_ignored(tmp_path: Path) -> None:
    """A kind of tensor that a newer torch may invent is reported by name; the model never silently lacks it."""
    strange = call(glob("torch._utils", "_rebuild_tensor_v9"), num(1))
    path = archive(tmp_path / "new.pt", stop(mapping(w=tensor(), v=strange)), {"0": bytes(16)})
    assert unreadable_in(path) == (("v", "is a _rebuild_tensor_v9 tensor, which has no plain data"),)
    made = call(glob("torch._tensor", "_rebuild_from_type_v2"), glob("new.kind", "_rebuild"), glob("x", "T"), b")")
    path = archive(tmp_path / "subclass.pt", stop(mapping(w=tensor(), v=made)), {"0": bytes(16)})
    assert unreadable_in(path) == (("v", "is a wrapped tensor, which has no plain data"),)


HUGE = 1 << 60
LIES = {
    "too many elements": tensor(shape=(5,)),
    "more than the record": tensor(storage(elements=1 << 40), shape=(1 << 40,)),
    "giant": tensor(storage(elements=HUGE), shape=(HUGE,)),
    "product overflow": tensor(storage(elements=HUGE), shape=(1 << 32, 1 << 32), strides=(1 << 32, 1)),
    "offset past the end": tensor(offset=4, shape=(1,)),
    "giant offset": tensor(offset=1 << 70, shape=(1,)),
    "negative offset": tensor(offset=-1),
    "negative shape": tensor(shape=(-1,)),
    "negative stride": tensor(offset=3, strides=(-1,)),
    "huge stride": tensor(shape=(2,), strides=(HUGE,)),
    "too few strides": tensor(shape=(2, 2)),
    "too many dimensions": tensor(shape=[1] * 65, strides=[1] * 65),
    "negative storage": tensor(storage(elements=-4)),
    "declared smaller": tensor(storage(elements=3)),
    "missing record": tensor(storage("1")),
    "path as record": tensor(storage("../data.pkl")),
}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_false_declarations_are_refused(tmp_path: Path, lie: str) -> None:
    """A tensor that is not inside its record, or a storage unlike its record, is refused in printable words."""
    path = archive(tmp_path / "lie.pt", stop(mapping(w=LIES[lie])), {"0": bytes(16)})
    words = r"tensor .w. |has no record|a tensor has a damaged shape|contradicts itself|a storage has a damaged size"
    with pytest.raises(InputRefused, match=words) as raised:
        open_file(path)
    assert raised.value.message.isprintable()


STRANGE = {
    "stride zero": tensor(shape=(1 << 40,), strides=(0,)),
    "stride zero twice": tensor(shape=(1 << 20, 1 << 20), strides=(0, 0)),
    "unknown storage": tensor(storage(kind="\x1b[2JStorage")),
}


@pytest.mark.parametrize("strange", sorted(STRANGE))
def test_strange_tensors_are_not_read(tmp_path: Path, strange: str) -> None:
    """A tensor that is much larger than its bytes, or of an unknown type, is reported by name, in printable words."""
    path = archive(tmp_path / "strange.pt", stop(mapping(w=STRANGE[strange])), {"0": bytes(16)})
    ((name, reason),) = unreadable_in(path)
    assert name == "w"
    assert reason.isprintable()


def test_a_small_expanded_tensor_is_read(tmp_path: Path) -> None:
    """An expanded tensor of moderate size is accepted."""
    path = archive(tmp_path / "small.pt", stop(mapping(w=tensor(shape=(1000, 4), strides=(0, 1)))), {"0": bytes(16)})
    assert read_file(path) == expected({"w": torch.zeros(1000, 4)})


@pytest.mark.parametrize("name", ["__metadata__", "x" * 70_000, "\ud800"])
def test_names_that_cannot_be_written_are_refused(tmp_path: Path, name: str) -> None:
    """A reserved, endless or unencodable name is refused while reading, not when the output is written."""
    # Protocol 0 text can contain a lone surrogate.
    written = text(name) if name.isascii() else b"V\\ud800\n"
    pickle = stop(b"}(" + written + tensor() + b"u")
    with pytest.raises(InputRefused, match="has a name that cannot be written"):
        open_file(archive(tmp_path / "name.pt", pickle, {"0": bytes(16)}))


def test_pickles_in_archives_are_refused_when_damaged(tmp_path: Path) -> None:
    """A pickle that ends early or is meaningless is refused as damaged."""
    for pickle in (b"", b"\x80\x02}", b"\x80\x09}.", b"\x80\x02(.", b"\x80\x02\x95."):
        with pytest.raises(InputRefused, match="has a damaged pickle"):
            open_file(archive(tmp_path / "damaged.pt", pickle))


def test_a_giant_pickle_is_not_read(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle larger than the limit is refused by its declared size."""
    monkeypatch.setattr("ema_cli.formats.torch.zip_format.LARGEST_PICKLE", 100)
    with pytest.raises(InputRefused, match="more than the limit of 100"):
        open_file(rezip(small, small.with_name("again.pt"), replaced={"byteorder": None}))


def a_small_archive() -> bytes:
    """Return the bytes of a small archive without alignment, so that most of its bytes have a meaning."""
    kept = {"w": torch.arange(6.0).reshape(2, 3).t(), "step": torch.tensor(3)}
    buffer = io.BytesIO()
    torch.save({"model": kept, "step": 3}, buffer)
    target = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            if "." not in entry.filename or entry.filename.endswith(".pkl"):
                new.writestr(entry.filename, old.read(entry))
    return target.getvalue()


SEED = a_small_archive()
mutations = st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), min_size=1, max_size=6)


@pytest.mark.slow
@settings(deadline=None, max_examples=600)
@given(mutations)
def test_mutated_archives_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    """Random bytes in an archive give a result or ``InputRefused``, never another exception."""
    raw = bytearray(SEED)
    for place, value in changes:
        raw[place] = value
    with tempfile.TemporaryDirectory() as folder:
        try:
            read_file(overwrite(Path(folder) / "mutated.pt", raw))
        except InputRefused:
            return


@pytest.mark.slow
@settings(deadline=None, max_examples=600)
@given(st.data())
def test_mutated_pickles_in_archives_are_read_or_refused(data: st.DataObject) -> None:
    """Random bytes in the pickle, under a right checksum, give a result or ``InputRefused``."""
    with zipfile.ZipFile(io.BytesIO(SEED)) as whole:
        raw = bytearray(whole.read("archive/data.pkl"))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=6)):
        raw[place] = value
    with tempfile.TemporaryDirectory() as folder:
        try:
            read_file(archive(Path(folder) / "mutated.pt", bytes(raw), {"0": bytes(24), "1": bytes(8)}))
        except InputRefused:
            return


@pytest.mark.slow
def test_every_single_bit_of_the_directory_counts(tmp_path: Path) -> None:
    """Flipping any one bit outside the data gives the same tensors or a refusal."""
    path = tmp_path / "flipped.pt"
    right = {name: (dtype, shape) for name, (dtype, shape, _) in read_file(overwrite(path, SEED)).items()}
    for place in range(len(SEED)):
        raw = bytearray(SEED)
        raw[place] ^= 1 << (place % 8)
        try:
            found = read_file(overwrite(path, raw))
        except InputRefused:
            continue
        assert {name: (dtype, shape) for name, (dtype, shape, _) in found.items()} == right


@pytest.mark.parametrize(("elements", "announced"), [(1 << 20, 3), (100, 0)])
def test_the_headers_of_large_records_are_announced_together(
    elements: int, announced: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that answers slowly answers all of them at the same time; those of small records are read together."""
    found: list[int] = []
    monkeypatch.setattr(FileSource, "will_need", lambda _, offset, __: found.append(offset))
    path = tmp_path / "large.pt"
    torch.save({f"w{k}": torch.zeros(elements) for k in range(3)}, path)
    open_file(path).index.close()
    with zipfile.ZipFile(path) as stored:
        headers = [record.header_offset for record in stored.infolist() if "/data/" in record.filename]
    assert found == headers[:announced]
