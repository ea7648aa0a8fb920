"""The safetensors format: headers equal the official ones, and everything the format forbids is refused."""

from __future__ import annotations

import json
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file

from ema_cli.dtypes import BY_TORCH_NAME
from ema_cli.errors import InputRefused
from ema_cli.formats import safetensors
from ema_cli.formats.open import open_checkpoint
from ema_cli.formats.safetensors import LARGEST_HEADER, build_header, looks_like_safetensors
from ema_cli.storage.extents import LayoutPool, TensorLayout
from tests.helpers.makers import (
    DTYPES,
    expected,
    open_file,
    overwrite,
    random_tensor,
    read_all,
    read_file,
    safetensors_file,
)

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def layout_of(name: str, tensor: torch.Tensor) -> TensorLayout:
    """Return the layout with which a tensor is written."""
    dtype = BY_TORCH_NAME[str(tensor.dtype).removeprefix("torch.")]
    return TensorLayout(name=name, dtype=dtype, shape=tuple(tensor.shape), strides=None)


def header_of(raw: bytes) -> bytes:
    """Return the bytes before the data section of a file."""
    return raw[: 8 + int.from_bytes(raw[:8], "little")]


@pytest.fixture
def every(tmp_path: Path) -> Path:
    """A file with every element type, scalars, empty tensors and odd names."""
    torch.manual_seed(0)
    tensors = {f"kind.{dtype}": random_tensor(dtype, 3, 2) for dtype in DTYPES}
    tensors |= {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "": torch.ones(1),
        'ü "quoted" \\ \n\t': torch.ones(3),
    }
    save_file(tensors, tmp_path / "every.safetensors", metadata={"format": "pt", "step": "12"})
    return tmp_path / "every.safetensors"


def test_every_tensor_equals_the_library(every: Path) -> None:
    """Every name, type, shape and byte equals what ``safe_open`` gives."""
    with safe_open(every, framework="pt") as file:
        loaded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    found = read_file(every)
    assert found == expected(loaded) == expected(load_file(every))
    assert len(found) == len(DTYPES) + 4


def test_metadata_and_steps_are_read(every: Path) -> None:
    """The metadata is returned unchanged, and a step in it is found."""
    checkpoint = open_file(every)
    assert checkpoint.metadata == {"format": "pt", "step": "12"}
    assert [(step.value, step.unit, step.source) for step in checkpoint.steps] == [(12, "step", "inside: step")]
    checkpoint.index.close()


@pytest.mark.parametrize(
    ("metadata", "steps"),
    [
        ({"global_step": "5", "epoch": "2"}, [("step", 5), ("epoch", 2)]),
        ({"step": "-5", "epoch": "1.5", "iteration": ""}, []),
        ({"step": "9" * 30}, []),
        ({"note": "7"}, []),
    ],
)
def test_only_plain_numbers_are_steps(tmp_path: Path, metadata: dict[str, str], steps: list[tuple[str, int]]) -> None:
    """Negative, fractional and infinite numbers are no steps."""
    save_file({"w": torch.ones(1)}, tmp_path / "steps.safetensors", metadata=metadata)
    with closing(open_file(tmp_path / "steps.safetensors").index):
        found = open_file(tmp_path / "steps.safetensors")
    assert [(step.unit, step.value) for step in found.steps] == steps


def test_headers_need_not_be_in_order(tmp_path: Path) -> None:
    """The order of the entries may differ from that of the data, and the header need not be padded."""
    header = {"b": {"dtype": "I8", "shape": [1], "data_offsets": [8, 9]}, "a": ONE}
    path = safetensors_file(tmp_path / "order.safetensors", json.dumps(header).encode(), bytes(range(9)))
    assert read_file(path) == expected(load_file(path))


def test_an_unaligned_file_is_read(tmp_path: Path) -> None:
    """Data that begins at an odd byte is read like any other."""
    header = json.dumps(
        {"a": {"dtype": "I8", "shape": [3], "data_offsets": [0, 3]}, "b": ONE | {"data_offsets": [3, 11]}}
    )
    path = safetensors_file(tmp_path / "odd.safetensors", header.encode() + b" " * (len(header) % 2), bytes(range(11)))
    assert read_file(path) == expected(load_file(path))


def test_a_file_without_tensors_is_read(tmp_path: Path) -> None:
    """An empty model is a valid file."""
    assert read_file(safetensors_file(tmp_path / "none.safetensors", b"{}")) == {}


def test_nested_keys_do_not_apply(every: Path) -> None:
    """A safetensors file is flat, so a key into it is refused."""
    with pytest.raises(InputRefused, match="--key does not apply"):
        open_file(every, key="model")


@pytest.mark.slow
def test_every_truncation_is_refused(every: Path) -> None:
    """A file that ends anywhere before its end is refused, whatever offset it was cut at."""
    whole = every.read_bytes()
    for length in range(len(whole)):
        overwrite(every, whole[:length])
        with pytest.raises(InputRefused):
            open_file(every)


def entry(**changes: object) -> bytes:
    """Return a header with one tensor, changed."""
    return json.dumps({"w": ONE | changes}).encode()


FORBIDDEN = {
    "duplicate": (b'{"w":%s,"w":%s}' % ((json.dumps(ONE).encode(),) * 2), 'names "w" twice'),
    "duplicate escaped": (b'{"w":%s,"\\u0077":%s}' % ((json.dumps(ONE).encode(),) * 2), 'names "w" twice'),
    "duplicate inside": (b'{"w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', '"dtype" twice'),
    "duplicate metadata": (b'{"__metadata__":{"a":"1","a":"1"},"w":%s}' % json.dumps(ONE).encode(), '"a" twice'),
    "hole in front": (entry(data_offsets=[1, 9]), "a gap in its data at byte 0"),
    "hole": (json.dumps({"a": ONE, "b": ONE | {"data_offsets": [12, 20]}}).encode(), "a gap in its data at byte 8"),
    "overlap": (json.dumps({"a": ONE, "b": ONE | {"data_offsets": [4, 12]}}).encode(), "an overlap in its data"),
    "aliased": (json.dumps({"a": ONE, "b": ONE}).encode(), "an overlap in its data"),
    "length": (entry(data_offsets=[0, 4]), "declares 4 bytes, which do not match its shape"),
    "backwards": (entry(data_offsets=[8, 0]), "do not match its shape"),
    "negative": (entry(data_offsets=[-8, 0]), "has damaged data offsets"),
    "giant offsets": (entry(data_offsets=[-(10**4000), 9 * 10**4000]), "has damaged data offsets"),
    "boolean offsets": (entry(shape=[0], data_offsets=[False, False]), "has damaged data offsets"),
    "float offsets": (entry(data_offsets=[0.0, 8.0]), "has a damaged entry"),
    "boolean shape": (entry(shape=[True, 2]), "has a damaged shape"),
    "negative shape": (entry(shape=[-2]), "has a damaged shape"),
    "negative twice": (entry(shape=[-1, -2]), "has a damaged shape"),
    "giant shape": (entry(shape=[1 << 62, 0]), "has a damaged shape"),
    "float shape": (entry(shape=[2.0]), "has a damaged shape"),
    "many dimensions": (entry(shape=[2] + [1] * 64), "has a damaged shape"),
    "no type": (json.dumps({"w": {"shape": [2], "data_offsets": [0, 8]}}).encode(), "has a damaged entry"),
    "no entry": (b'{"w":[]}', "has a damaged entry"),
    "number metadata": (b'{"__metadata__":{"a":1}}', "its metadata must be strings"),
    "list metadata": (b'{"__metadata__":["a"]}', "its metadata must be strings"),
    "surrogate": (b'{"\\ud800":%s}' % json.dumps(ONE).encode(), "has a name that cannot be written"),
    "surrogate metadata": (b'{"__metadata__":{"a":"\\ud800"}}', "its metadata must be strings"),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{},"w":%s}' % json.dumps(ONE).encode(), "twice"),
    "metadata twice, escaped": (
        b'{"__metadata__":{},"\\u005f_metadata__":{},"w":%s}' % json.dumps(ONE).encode(),
        'names "__metadata__" twice',
    ),
    "metadata key twice": (b'{"__metadata__":{"a":"1","a":"2"},"w":%s}' % json.dumps(ONE).encode(), '"a" twice'),
    "metadata of two kinds": (b'{"__metadata__":{"a":"1","b":2},"w":%s}' % json.dumps(ONE).encode(), "must be strings"),
    "line break in metadata": (b'{"__metadata__":{"a":"\n"},"w":%s}' % json.dumps(ONE).encode(), "is not JSON"),
    "comma after metadata": (b'{"__metadata__":{},}', "is not JSON"),
    "comma in metadata": (b'{"__metadata__":{"a":"b",},"w":%s}' % json.dumps(ONE).encode(), "is not JSON"),
    "half a character apart": (
        b'{"__metadata__":{"a":"\\ud800"},"w":%s}' % json.dumps(ONE).encode(),
        "its metadata must be strings",
    ),
    "surrogate metadata key": (b'{"__metadata__":{"\\ud800":"a"}}', "its metadata must be strings"),
    "long name": (json.dumps({"n" * 70_000: ONE}).encode(), "has a name that cannot be written"),
    "an entry alone": (json.dumps(ONE).encode(), 'has a damaged entry for tensor "dtype"'),
    "an entry as metadata": (json.dumps({"__metadata__": ONE}).encode(), "its metadata must be strings"),
    "a shape that equals one": (
        json.dumps({"v": ONE, "w": ONE | {"shape": [2.0]}}).encode(),
        '"w" has a damaged shape',
    ),
    "NaN": (b'{"w":NaN}', "contains NaN"),
    "infinity": (b'{"w":-Infinity}', "contains -Infinity"),
    "list": (b"[]", "is not a checkpoint"),
    "space": (b" {}", "is not a checkpoint"),
    "not JSON": (b"{]", "is not JSON"),
    "not UTF-8": (b'{"\xff":1}', "is not JSON"),
    "two objects": (b"{}{}", "is not JSON"),
    "deep": (b'{"w":' + b"[" * 100_000, "is not JSON"),
    "long number": (b'{"w":' + b"9" * 10_000 + b"}", "is not JSON"),
}


@pytest.mark.parametrize("case", sorted(FORBIDDEN))
def test_forbidden_headers_are_refused(tmp_path: Path, case: str) -> None:
    """What the format forbids is refused in printable words, even where the library accepts it."""
    header, message = FORBIDDEN[case]
    path = safetensors_file(tmp_path / "forbidden.safetensors", header, bytes(20 if case == "hole" else 8))
    with pytest.raises(InputRefused) as raised:
        open_file(path)
    assert message in raised.value.message
    assert raised.value.message.isprintable()
    assert len(raised.value.message) < 1000


@pytest.mark.parametrize("notes", [["a", 'b "\\ c'], ["", "longer " * 20], [None, "x"]])
def test_entries_are_read_once_for_all_metadata(
    notes: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints that differ in their metadata share their tensors, wherever the data begin."""
    read = safetensors._read_entries
    calls: list[bytes] = []

    def counted(text: bytes, data_bytes: int) -> object:
        calls.append(text)
        return read(text, data_bytes)

    monkeypatch.setattr(safetensors, "_read_entries", counted)
    pool = LayoutPool()
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    for number, note in enumerate(notes):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path, metadata=None if note is None else {"note": note, "step": str(number)})
        checkpoint = open_checkpoint(path, pool=pool)
        assert checkpoint.metadata.get("note") == note
        assert read_all(checkpoint) == expected(tensors)
    assert len(calls) == 1


def test_equal_shapes_are_one_object(tmp_path: Path) -> None:
    """A checkpoint of 100,000 tensors has few shapes."""
    header = {"a": ONE | {"shape": [1, 2]}, "b": ONE | {"shape": [1, 2], "data_offsets": [8, 16]}}
    raw = json.dumps(header).encode()
    a, b = open_file(safetensors_file(tmp_path / "two.safetensors", raw, bytes(16))).index.layouts
    assert a.shape == (1, 2)
    assert a.shape is b.shape


def test_the_data_must_be_exactly_what_the_header_declares(tmp_path: Path) -> None:
    """The error for bytes after the last tensor, or missing at the end, states their number."""
    for size, message in ((9, "has 1 bytes after its last tensor"), (7, "need 8 bytes of data, but it has 7")):
        path = safetensors_file(tmp_path / "size.safetensors", entry(), bytes(size))
        with pytest.raises(InputRefused, match=message):
            open_file(path)


def test_false_header_lengths_are_refused(tmp_path: Path) -> None:
    """A header longer than the file or than the limit is not read."""
    for length in (3, 1000, LARGEST_HEADER, LARGEST_HEADER + 1, (1 << 64) - 1):
        path = overwrite(tmp_path / "length.safetensors", length.to_bytes(8, "little") + b'{"w":1}')
        with pytest.raises(InputRefused):
            open_file(path)


def test_other_beginnings_are_not_safetensors() -> None:
    """A file is recognized as safetensors by a plausible length and an opening brace."""
    assert looks_like_safetensors(bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"{}")
    for head in (b"", b"\x02" + bytes(7), b"\x02" + bytes(7) + b"[]", b"PK\x03\x04" + b"\xff" * 4 + b"{"):
        assert not looks_like_safetensors(head)


names = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__")
tensors = st.dictionaries(
    names, st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)), min_size=1, max_size=8
)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(tensors, st.booleans())
def test_headers_equal_the_library(drawn: dict[str, tuple[torch.dtype, list[int]]], described: bool) -> None:
    """The bytes before the data equal those of ``safetensors.torch.save``, for any types, shapes and names."""
    made = {name: random_tensor(dtype, *shape) for name, (dtype, shape) in drawn.items()}
    metadata = {"format": "pt"} if described else {}
    raw = save(made, metadata or None)
    header, ordered = build_header([layout_of(name, tensor) for name, tensor in made.items()], metadata)
    assert header == header_of(raw)
    assert len(header) + sum(layout.nbytes for layout in ordered) == len(raw)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4), tensors)
def test_written_headers_are_read_again(
    metadata: dict[str, str], drawn: dict[str, tuple[torch.dtype, list[int]]]
) -> None:
    """What we write, we read: tensors in order, and the metadata with its keys sorted."""
    layouts = [layout_of(name, random_tensor(dtype, *shape)) for name, (dtype, shape) in drawn.items()]
    header, ordered = build_header(layouts, metadata)
    with tempfile.TemporaryDirectory() as folder:
        path = overwrite(Path(folder) / "written.safetensors", header + bytes(sum(layout.nbytes for layout in ordered)))
        checkpoint = open_file(path)
        checkpoint.index.close()
    assert list(checkpoint.index.layouts) == ordered
    assert checkpoint.metadata == metadata
    assert list(checkpoint.metadata) == sorted(metadata)


SEED = save({"w": torch.arange(3.0), "v": torch.zeros(2, 2, dtype=torch.bfloat16)}, {"step": "3"})


@pytest.mark.slow
@settings(deadline=None, max_examples=800)
@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_files_are_judged_as_the_library_does(changes: list[tuple[int, int]]) -> None:
    """Random bytes give a result or ``InputRefused``; a result equals the library's, if it knows the types."""
    raw = bytearray(SEED)
    for place, value in changes:
        raw[place] = value
    with tempfile.TemporaryDirectory() as folder:
        path = overwrite(Path(folder) / "mutated.safetensors", raw)
        try:
            checkpoint = open_file(path)
        except InputRefused:
            return
        found = read_all(checkpoint)
        assert checkpoint.unreadable or found == expected(load_file(path))


def test_unknown_types_are_reported(tmp_path: Path) -> None:
    """A tensor of a type from the future, or of half a byte, is reported by name; its bytes are counted anyway."""
    entries = {
        "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "four": {"dtype": "F4", "shape": [8], "data_offsets": [4, 8]},
        "new": {"dtype": "F7\x1b[2J", "shape": [2], "data_offsets": [8, 10]},
    }
    path = safetensors_file(tmp_path / "new.safetensors", json.dumps(entries).encode(), bytes(10))
    checkpoint = open_file(path)
    assert read_all(checkpoint) == expected({"w": torch.zeros(1)})
    assert dict(checkpoint.unreadable).keys() == {"four", "new"}
    assert all(reason.isprintable() for _, reason in checkpoint.unreadable)
    safetensors_file(path, json.dumps(entries).encode(), bytes(9))
    with pytest.raises(InputRefused, match="is truncated: its tensors need 10 bytes"):
        open_file(path)


def test_the_library_refuses_too(tmp_path: Path) -> None:
    """Of the files that we refuse, the library accepts only those with duplicate keys or extreme sizes."""
    ours_alone = {"duplicate", "duplicate escaped", "duplicate metadata", "many dimensions", "long name"}
    ours_alone |= {"metadata key twice"}
    for case, (header, _) in FORBIDDEN.items():
        path = safetensors_file(tmp_path / "forbidden.safetensors", header, bytes(20 if case == "hole" else 8))
        try:
            with safe_open(path, framework="pt"):
                assert case in ours_alone
        except SafetensorError:
            continue
