"""Verifying an output: every planted fault is found, and no fault is found where none was planted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import ema_cli
from ema_cli.dtypes import BY_NAME
from ema_cli.errors import InputRefused, NothingMatched, UsageError, VerificationFailed
from ema_cli.events import Event, Progress
from ema_cli.verification.checks import Verification, verify
from ema_cli.verification.recompute import find_mismatch
from ema_cli.verification.samples import PIECE_ELEMENTS, draw_pieces
from tests.helpers.makers import fifo
from tests.helpers.program import Run
from tests.helpers.series import FORMATS, data_section, load, open_files, random_states, write_series

CHECKS = ["report", "size", "sha256", "tensors", "method", "input 1", "input 2", "input 3", "samples"]


def states(count: int = 3, dtype: torch.dtype = torch.float32) -> list[dict[str, torch.Tensor]]:
    """Return states with averaged and copied tensors, a tensor of several pieces, and BatchNorm statistics."""
    made = random_states(count, dtype)
    for number, state in enumerate(made):
        torch.manual_seed(number)
        state["large"] = torch.randn(3, PIECE_ELEMENTS - 5).to(dtype)
        state["bn.running_mean"] = torch.randn(4).to(dtype)
        state["bn.num_batches_tracked"] = torch.tensor(10 * number)
    return made


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An average of three checkpoints, with its report."""
    paths = write_series(tmp_path / "run", states())
    ema_cli.average(paths, decay=0.7, output=tmp_path / "ema.safetensors")
    return tmp_path / "ema.safetensors"


def check(output: Path, **options: Any) -> Verification:
    """Verify, and leave no file open."""
    before = open_files()
    try:
        return verify(output, **options)
    finally:
        assert open_files() == before


def failed(output: Path, **options: Any) -> dict[str, str]:
    """Return the checks that fail, with their messages."""
    return {one.name: one.message for one in check(output, **options).failures}


def change_report(output: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the report of an output."""
    path = output.with_name("ema.report.json")
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def change_number(output: Path, name: str, index: int, bit: int = 0) -> None:
    """Flip one bit of one number of a tensor; the rest of the file is unchanged."""
    raw = bytearray(output.read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8:header])[name]
    begin, end = entry["data_offsets"]
    size = (end - begin) // int(np.prod(entry["shape"]))
    raw[header + begin + index * size + bit // 8] ^= 1 << bit % 8
    output.write_bytes(raw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64])
@pytest.mark.parametrize("form", FORMATS)
def test_a_fresh_output_passes(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Of every format and type: all checks are made, and every piece is recomputed."""
    write_series(tmp_path / "run", states(dtype=dtype), form=form)
    ema_cli.average(tmp_path / "run", decay=0.7, output=tmp_path / "ema.safetensors")
    found = check(tmp_path / "ema.safetensors")
    assert found.ok, found.failures
    assert [one.name for one in found.checks] == CHECKS
    assert found.samples == 3 + 5  # the large tensor has three pieces, the empty one none
    found.raise_if_failed()


@pytest.mark.parametrize(
    "options",
    [
        {"method": "uniform", "sha256": True},
        {"decay": 0.5, "dtype": "bfloat16"},
        {"decay": 0.5, "dtype": "float64", "geometry": "none"},
        {"decay": 0.5, "buffers": "first"},
        {"decay": 0.5, "buffers": "last"},
        {"decay": 0, "exclude": "bias"},
        {"weights": (1.0, 0.0, 2.5), "normalize": False},
    ],
    ids=str,
)
def test_the_options_of_the_run_are_those_of_the_check(options: dict[str, Any], tmp_path: Path) -> None:
    """Weights, types, copied statistics and the choice of tensors come from the report."""
    paths = write_series(tmp_path / "run", states())
    ema_cli.average(paths, output=tmp_path / "ema.safetensors", **options)
    found = check(tmp_path / "ema.safetensors")
    assert found.ok, found.failures
    assert found.samples > 0


def test_nested_weights_are_found_where_the_run_found_them(tmp_path: Path) -> None:
    """The key and the prefix that were given to the run are used again."""
    paths = [tmp_path / f"c_{number}.pt" for number in (1, 2)]
    for path, state in zip(paths, states(2), strict=True):
        named = {f"net.{name}": value for name, value in state.items()}
        torch.save({"a": named, "b": {name: value + 1 for name, value in named.items()}}, path)
    ema_cli.average(paths, output=tmp_path / "ema.safetensors", decay=0.5, key="b", strip_prefix="net.")
    assert check(tmp_path / "ema.safetensors").ok
    change_report(tmp_path / "ema.safetensors", lambda document: document["command"]["options"].update(key="a"))
    assert list(failed(tmp_path / "ema.safetensors")) == ["input 1", "input 2", "samples"]
    assert list(failed(tmp_path / "ema.safetensors", quick=True)) == ["samples"]


def test_names_with_a_wrapper_in_the_output(tmp_path: Path) -> None:
    """Prefixes that were kept on purpose are not removed when the output is read again."""
    paths = write_series(tmp_path / "run", [{f"module.{n}": v for n, v in state.items()} for state in states()])
    ema_cli.average(paths, output=tmp_path / "ema.safetensors", decay=0.5, strip_prefix="")
    assert check(tmp_path / "ema.safetensors").ok


def test_an_input_without_a_weight_takes_no_part(tmp_path: Path) -> None:
    """It is not multiplied by zero: its non-finite numbers do not matter, and no other check fails without it."""
    made = states()
    made[1]["scale"] = torch.tensor(float("inf"))
    paths = write_series(tmp_path / "run", made)
    ema_cli.average(paths, output=tmp_path / "ema.safetensors", weights=(1.0, 0.0, 2.5))
    assert check(tmp_path / "ema.safetensors").ok
    paths[1].unlink()
    assert list(failed(tmp_path / "ema.safetensors")) == ["input 2"]


def test_not_finite_numbers_pass(tmp_path: Path) -> None:
    """NaN and infinity that were allowed are recomputed as any number."""
    made = states()
    made[0]["scale"], made[1]["scale"] = torch.tensor(float("nan")), torch.tensor(float("inf"))
    paths = write_series(tmp_path / "run", made)
    ema_cli.average(paths, output=tmp_path / "ema.safetensors", decay=0.5, allow_nonfinite=True)
    assert check(tmp_path / "ema.safetensors").ok


@pytest.mark.parametrize("name", ["layer.weight", "scale", "large", "bn.running_mean", "bn.num_batches_tracked"])
def test_a_flipped_bit_is_found_twice(name: str, output: Path) -> None:
    """By the digest, and by the recomputed piece, which names the index and both numbers."""
    index = 2 * PIECE_ELEMENTS + 3 if name == "large" else 0
    change_number(output, name, index)
    wrong = failed(output)
    assert set(wrong) == {"sha256", "samples"}
    place = np.unravel_index(index, load(output)[name].shape)
    assert f'"{name}" at ({", ".join(str(i) for i in place)}' in wrong["samples"]
    assert "1 of 8 pieces differ" in wrong["samples"]
    assert f" is {load(output)[name].flatten()[index].item()!r}, recomputed " in wrong["samples"]


def test_the_sample_alone_finds_what_the_digest_forgives(output: Path) -> None:
    """With the digest in the report adjusted, the recomputed pieces still differ."""
    change_number(output, "layer.bias", 3, bit=31)
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    change_report(output, lambda document: document["averages"][0]["output"].update(sha256=digest))
    wrong = failed(output)
    value = load(output)["layer.bias"][3].double().item()
    assert list(wrong) == ["samples"]
    assert f'"layer.bias" at (3,) is {value!r}, recomputed {-value!r}' in wrong["samples"]
    assert failed(output, output_only=True) == {}


def test_other_weights_are_found(output: Path) -> None:
    """Other weights in the report give other numbers."""
    change_report(output, lambda document: document["averages"][0].update(weights=[0.2, 0.3, 0.5]))
    assert list(failed(output)) == ["samples"]


def test_a_truncated_output_fails_every_check(output: Path) -> None:
    """Size, digest and structure are wrong at once, and the inputs are still checked."""
    output.write_bytes(output.read_bytes()[:-8])
    wrong = failed(output)
    assert list(wrong) == ["size", "sha256", "tensors", "samples"]
    assert wrong["size"] == f"{output.stat().st_size:,} bytes, but {output.stat().st_size + 8:,} were written"
    assert "is truncated" in wrong["tensors"]


def test_different_tensors_are_reported(output: Path) -> None:
    """Names, types and shapes that differ from the report."""
    state = load(output)
    state["scale"] = state["scale"].half()
    state["other"] = state.pop("layer.bias")
    save_file(state, output)
    wrong = failed(output)
    assert set(wrong) >= {"sha256", "tensors"}
    assert '"layer.bias" is missing' in wrong["tensors"]
    assert '"other" is not in the report' in wrong["tensors"]
    assert '"scale" is F16 (), not F32 ()' in wrong["tensors"]
    assert "samples" not in wrong


def test_a_missing_input_is_reported(output: Path) -> None:
    """It is named; pieces that do not need it are recomputed."""
    (output.parent / "run" / "ckpt_100.pt").unlink()
    found = check(output)
    (wrong,) = found.failures
    assert (wrong.name, wrong.missing) == ("input 1", str(output.parent / "run" / "ckpt_100.pt"))
    assert "ckpt_100.pt" in wrong.message
    assert found.unchecked == ("7 of 8 pieces (they need input 1)",)
    assert found.samples == 1
    assert failed(output, output_only=True) == {}


def test_a_changed_input_is_reported(output: Path) -> None:
    """Other numbers in a file of the same size show in its weights and in the sample; another file in its structure."""
    path = output.parent / "run" / "ckpt_200.pt"
    made = states()
    made[1]["scale"] += 1
    FORMATS["zip"][1](made[1], path)
    wrong = failed(output)
    assert set(wrong) == {"input 2", "samples"}
    assert "has different weights" in wrong["input 2"]
    assert '"scale" at ()' in wrong["samples"]
    assert "was changed or touched" in failed(output, quick=True)["input 2"]
    torch.save({"scale": made[1]["scale"]}, path)
    wrong = failed(output)
    assert f"has {path.stat().st_size:,} bytes, not " in wrong["input 2"]
    assert "structure" in wrong["input 2"]
    assert 'ckpt_200.pt" has no "' in wrong["samples"]


def test_a_digest_decides_over_the_time(output: Path) -> None:
    """A touched input is reported as changed, unless the digest of its weights or of its file is the same."""
    path = output.parent / "run" / "ckpt_200.pt"
    os.utime(path, (1, 1))
    assert list(failed(output, quick=True)) == ["input 2"]
    found = {one.name: one.message for one in check(output).checks}
    assert "was touched, but has the same weights" in found["input 2"]
    paths = sorted((output.parent / "run").iterdir())
    ema_cli.average(paths, decay=0.7, output=output, sha256=True, force=True)
    os.utime(path, (2, 2))
    assert failed(output) == {}
    raw = bytearray(path.read_bytes())
    where = raw.index(states()[1]["large"].numpy().tobytes()[:64])
    raw[where] ^= 1
    path.write_bytes(raw)
    assert "SHA-256" in failed(output)["input 2"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_single_bit_is_found_behind_an_untouched_face(form: str, tmp_path: Path) -> None:
    """A flipped bit of a weight, with the old size, time and structure, is found without drawing its piece."""
    paths = write_series(tmp_path / "run", states(), form=form)
    output = tmp_path / "ema.safetensors"
    ema_cli.average(paths, decay=0.7, output=output)
    raw, before = bytearray(paths[1].read_bytes()), paths[1].stat()
    number = states()[1]["large"].numpy()[2, 77].tobytes()
    assert raw.count(number) == 1
    raw[raw.index(number)] ^= 1
    paths[1].write_bytes(raw)
    os.utime(paths[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert list(failed(output, samples=0)) == ["input 2"]
    assert failed(output, samples=0, quick=True) == {}


def test_inputs_are_found_from_here_and_from_the_report(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are relative to the working directory of the run; of two files, the averaged one is taken."""
    monkeypatch.chdir(tmp_path)
    ema_cli.average("run", decay=0.7, output=output.name, force=True)
    assert json.loads((tmp_path / "ema.report.json").read_text())["inputs"][0]["path"] == "run/ckpt_100.pt"
    assert check(Path(output.name)).ok
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    assert check(output).ok
    shutil.copytree(tmp_path / "run", other / "run")
    for path in (other / "run").iterdir():
        os.utime(path, (1, 1))
    assert check(output).ok


def test_a_long_list_of_failures_is_cut(tmp_path: Path) -> None:
    """The error has room for 24 lines; the records have all of them."""
    paths = write_series(tmp_path / "run", [{"w": torch.ones(1)} for _ in range(40)])
    ema_cli.average(paths, decay=0.9, output=tmp_path / "ema.safetensors")
    for path in paths:
        path.write_text("junk")
    found = check(tmp_path / "ema.safetensors")
    assert len(found.failures) == 40
    with pytest.raises(VerificationFailed, match="and 16 more") as refused:
        found.raise_if_failed()
    assert refused.value.message.count("\n") == 25


def test_a_continued_average_is_checked(tmp_path: Path) -> None:
    """The previous average is an input like the others, as long as it exists."""
    paths = write_series(tmp_path / "run", states(4))
    part, both = tmp_path / "part.safetensors", tmp_path / "ema.safetensors"
    ema_cli.average(paths[:2], per="step", half_life=100, output=part)
    ema_cli.average(paths[2:], continue_from=part, output=both)
    assert check(both).ok
    os.utime(part, (1, 1))
    found = check(both)
    assert (found.ok, found.complete) == (True, True)
    assert "was touched, but has the same weights" in found.checks[5].message


def test_a_renamed_output_is_the_same_output(output: Path) -> None:
    """Renamed together with its report it passes, and the check names the original file."""
    moved = output.with_name("best.safetensors")
    output.rename(moved)
    assert "there is no" in failed(moved)["report"]
    output.with_name("ema.report.json").rename(output.with_name("best.report.json"))
    found = check(moved)
    assert found.ok
    assert 'written as "ema.safetensors"' in found.checks[0].message


def test_other_paths_are_refused(tmp_path: Path) -> None:
    """A missing file, a folder, and invalid numbers of samples."""
    with pytest.raises(NothingMatched):
        check(tmp_path / "missing.safetensors")
    with pytest.raises(InputRefused):
        check(tmp_path)
    with pytest.raises(InputRefused):
        check(fifo(tmp_path / "ema.safetensors"))
    with pytest.raises(UsageError, match="is a report, not an output"):
        check(tmp_path / "ema.report.json")
    (tmp_path / "step_1.pt").touch()
    assert check(tmp_path / "step_1.pt").checks[0].hint == "name an output of ema-avg, not a checkpoint"
    for samples in (-1, 10**9):
        with pytest.raises(UsageError, match="--samples"):
            check(tmp_path, samples=samples)


Document = dict[str, Any]
HOSTILE: dict[str, Callable[[Document], object]] = {
    "no inputs": lambda d: d.update(inputs=[]),
    "inputs of text": lambda d: d.update(inputs="abc"),
    "inputs of numbers": lambda d: d.update(inputs=[1, 2, 3]),
    "no averages": lambda d: d.update(averages=[]),
    "two averages": lambda d: d.update(averages=d["averages"] * 2),
    "averages of nothing": lambda d: d.update(averages=None),
    "options of text": lambda d: d["command"].update(options="key"),
    "a key that is not text": lambda d: d["command"]["options"].update(key=["a", 1]),
    "a prefix that is not text": lambda d: d["command"]["options"].update(strip_prefix=7),
    "a path that is not text": lambda d: d["inputs"][0].update(path=7),
    "an unknown role": lambda d: d["inputs"][0].update(role="\x1b[31m"),
    "a role that is not text": lambda d: d["inputs"][0].update(role=["average"]),
    "a negative input": lambda d: d["inputs"][0].update(bytes=-1),
    "a huge input": lambda d: d["inputs"][0].update(bytes=10**400),
    "a fingerprint that is not text": lambda d: d["inputs"][0].update(fingerprint=None),
    "a digest that is not text": lambda d: d["inputs"][0].update(sha256=12),
    "a digest of contents that is not text": lambda d: d["inputs"][0].update(content=12),
    "a negative output": lambda d: d["averages"][0]["output"].update(bytes=-5),
    "an output in floats": lambda d: d["averages"][0]["output"].update(bytes=1.5),
    "too few weights": lambda d: d["averages"][0].update(weights=[0.5, 0.5]),
    "too many weights": lambda d: d["averages"][0].update(weights=[0.25] * 4),
    "weights of text": lambda d: d["averages"][0].update(weights="abc"),
    "weights of bools": lambda d: d["averages"][0].update(weights=[True, False, True]),
    "weights that are not finite": lambda d: d["averages"][0].update(weights=[float("nan"), 0.5, float("inf")]),
    "huge weights": lambda d: d["averages"][0].update(weights=[10**400, 1, 1]),
    "no weight": lambda d: d["averages"][0].update(weights=[0, 0, 0.0]),
    "an unknown type": lambda d: d["averages"][0]["tensors"][0].update(dtype="F13"),
    "an unknown action": lambda d: d["averages"][0]["tensors"][0].update(action="melted"),
    "a negative shape": lambda d: d["averages"][0]["tensors"][1].update(shape=[-3, 5]),
    "a shape of text": lambda d: d["averages"][0]["tensors"][1].update(shape=["3", 5]),
    "a huge shape": lambda d: d["averages"][0]["tensors"][1].update(shape=[10**30]),
    "integers that were averaged": lambda d: [
        t.update(action="averaged") for t in d["averages"][0]["tensors"] if t["dtype"] == "I64"
    ],
    "deep nesting": lambda d: d["command"].update(argv=json.loads("[" * 400 + "]" * 400)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_reports_are_refused(name: str, output: Path) -> None:
    """An impossible report is one failed check with a message of one line, whatever its content."""
    change_report(output, HOSTILE[name])
    found = check(output)
    (one,) = found.checks
    assert (one.name, one.ok) == ("report", False)
    assert one.message.isprintable()
    assert len(one.message) < 1000


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"averages": 1}', b"9" * 10_000], ids=repr
)
def test_other_files_are_not_reports(raw: bytes, output: Path) -> None:
    """The file may contain neither JSON nor text."""
    output.with_name("ema.report.json").write_bytes(raw)
    assert "is not a report" in failed(output)["report"]


@pytest.mark.parametrize("place", ["missing", "folder", "fifo", "device"])
def test_a_report_is_a_regular_file(place: str, output: Path) -> None:
    """Verifying does not wait for a FIFO, and reads no device."""
    path = output.with_name("ema.report.json")
    path.unlink()
    match place:
        case "folder":
            path.mkdir()
        case "fifo":
            fifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case _:
            pass
    assert list(failed(output)) == ["report"]


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/stdin", "", ".", "x" * 5000, "nul\0byte", "\ud800", "/proc/self/mem", "\x1b[31m.pt"]
)
def test_paths_in_a_report_are_opened_with_care(path: str, output: Path) -> None:
    """Devices, folders and impossible names are inputs that cannot be used."""
    change_report(output, lambda document: document["inputs"][1].update(path=path, path_from_output=path))
    wrong = failed(output)
    assert set(wrong) == {"input 2"}
    assert "\x1b" not in wrong["input 2"]


def test_inputs_that_do_not_fit_are_reported(output: Path) -> None:
    """A report with another type for copied tensors, or complex averaged ones, is not used for computing."""
    narrow = torch.ones(2, dtype=torch.int32)
    made = [{"w": torch.ones(2, dtype=dtype), "n": narrow} for dtype in (torch.complex64, torch.float64)]
    for path, state in zip(sorted((output.parent / "run").iterdir()), [*made, made[1]], strict=True):
        torch.save(state, path)
    save_file({"w": torch.ones(2), "n": torch.ones(2, dtype=torch.int64)}, output)

    def rewrite(document: Document) -> None:
        tensor = document["averages"][0]["tensors"][0]
        averaged = {**tensor, "name": "w", "dtype": "F32", "shape": [2], "action": "averaged"}
        document["averages"][0]["tensors"] = [averaged, {**averaged, "name": "n", "dtype": "I64", "action": "copied"}]

    change_report(output, rewrite)
    wrong = failed(output)
    assert "tensors" not in wrong
    assert "2 of 2 pieces cannot be recomputed" in wrong["samples"]
    assert 'has no "w" of that shape and type' in wrong["samples"]
    assert '"n" has a different type' in wrong["samples"]


@given(
    st.lists(st.integers(0, 5 * PIECE_ELEMENTS), max_size=12),
    st.integers(0, 60),
    st.integers(),
)
def test_pieces_are_drawn_without_repetition(elements: list[int], samples: int, seed: int) -> None:
    """They are inside their tensors, in order, without overlap, as many as requested, and determined by the seed."""
    pieces = draw_pieces(elements, samples, seed)
    assert pieces == draw_pieces(elements, samples, seed)
    for piece in pieces:
        assert 0 < piece.count <= PIECE_ELEMENTS
        assert piece.start + piece.count <= elements[piece.number]
    for one, other in pairwise(pieces):
        assert (one.number, one.start + one.count) <= (other.number, other.start) or one.number < other.number
    possible = sum(-(-count // PIECE_ELEMENTS) for count in elements)
    assert len(pieces) == min(samples, possible)
    if samples >= possible:
        assert sum(piece.count for piece in pieces) == sum(elements)


def test_another_seed_draws_other_pieces() -> None:
    """Every piece can be drawn."""
    seen = {piece for seed in range(100) for piece in draw_pieces([PIECE_ELEMENTS * 5, 1], 1, seed)}
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("dtype", "expected", "found", "index"),
    [
        ("F32", [1.0, 2.0], [1.0, 2.0], None),
        ("F32", [1.0, 0.0], [1.0, -0.0], 1),
        ("F32", [float("nan"), 1.0], [-float("nan"), 1.0], None),
        ("F64", [float("nan"), 1.0], [1.0, 1.0], 0),
        ("C64", [float("nan"), 1.0], [-float("nan"), 1.0], None),
        ("C64", [float("nan"), 1.0], [-float("nan"), 2.0], 0),
    ],
)
def test_bits_are_compared_but_those_of_nan(
    dtype: str, expected: list[float], found: list[float], index: int | None
) -> None:
    """-0.0 is not 0.0; NaN is NaN; a complex number is right if both its parts are."""
    kind = np.float64 if dtype == "F64" else np.float32
    pair = [np.array(values, dtype=kind).view(np.uint8) for values in (expected, found)]
    mismatch = find_mismatch(pair[0], pair[1], BY_NAME[dtype])
    assert (mismatch.index if mismatch else None) == index


def test_progress_comes_to_the_announced_end(output: Path) -> None:
    """Hashing and recomputing announce their bytes and reach them."""
    events: list[Event] = []
    verify(output, listener=events.append)
    last = {event.activity: event for event in events if isinstance(event, Progress)}
    assert list(last) == ["hashing", "recomputing"]
    assert all(event.done_bytes == event.total_bytes for event in last.values())
    averaged = sum(t.nbytes for t in load(output).values() if t.is_floating_point())
    assert last["hashing"].total_bytes == output.stat().st_size + 3 * averaged
    assert last["recomputing"].total_bytes == 3 * len(data_section(output))


def test_the_command_line(run_folder: Path, ema_avg: Run) -> None:
    """Verified is exit 0; the last line of stdout states it. A failure is exit 10, one error with a line per check."""
    assert ema_avg(run_folder, "--decay", "0.5", "-o", "ema.safetensors").returncode == 0
    done = ema_avg("verify", "ema.safetensors", "--seed", "7", "--samples", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "verified ema.safetensors  5 inputs  3 pieces recomputed"
    assert "3 pieces recomputed, identical bit for bit (seed 7)" in done.stdout
    assert "ok  inputs: 5 of 5 unchanged" in done.stdout
    assert "ckpt_300.pt" in ema_avg("verify", "ema.safetensors", "-v").stdout
    quiet = ema_avg("verify", "ema.safetensors", "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    (run_folder / "ckpt_200.pt").unlink()
    change_number(run_folder.parent / "ema.safetensors", "0.weight", 0)
    bad = ema_avg("verify", "ema.safetensors", "-q")
    assert (bad.returncode, bad.stdout) == (10, "")
    assert [line.split(":")[0].strip() for line in bad.stderr.splitlines()] == [
        *("error", "1 of 5 inputs is missing", "sha256", "try")
    ]
    assert ema_avg("verify", "ema.safetensors", "--output-only").returncode == 10


def test_the_json_document(run_folder: Path, ema_avg: Run) -> None:
    """One document with every check, whether they pass or not; what cannot be verified at all is an error."""
    assert ema_avg(run_folder, "--decay", "0.5", "-o", "ema.safetensors").returncode == 0
    done = ema_avg("verify", "ema.safetensors", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert {key: document[key] for key in ("schema_version", "output", "ok", "complete", "seed")} == {
        "schema_version": "1.6",
        "output": "ema.safetensors",
        "ok": True,
        "complete": True,
        "seed": 0,
    }
    assert all(set(one) == {"name", "ok", "message", "hint", "missing", "unchecked"} for one in document["checks"])
    (run_folder / "ckpt_200.pt").unlink()
    bad = ema_avg("verify", "ema.safetensors", "--json")
    assert bad.returncode == 10
    wrong = [one["name"] for one in json.loads(bad.stdout)["checks"] if not one["ok"]]
    assert wrong == ["input 2"]
    assert json.loads(ema_avg("verify", "ema.safetensors", "--output-only", "--json").stdout)["ok"] is True
    missing = ema_avg("verify", "missing.safetensors", "--json")
    assert missing.returncode == 7
    assert json.loads(missing.stdout)["error"]["exit_code"] == 7


def test_a_hostile_report_is_no_bug(run_folder: Path, ema_avg: Run) -> None:
    """As a process too: exit 10, one error, no traceback, no commands to the terminal."""
    output = run_folder.parent / "ema.safetensors"
    assert ema_avg(run_folder, "--decay", "0.5", "-o", output.name).returncode == 0
    change_report(
        output, lambda document: document["inputs"][0].update(path="\x1b[31m\n::error::x", path_from_output="::error::")
    )
    done = ema_avg("verify", output.name)
    assert done.returncode == 10
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    assert "\n::error::" not in done.stderr


@pytest.mark.parametrize("change", [{"decay": 0.9}, {"name": "uniform"}, {"per": "step"}, {"init": "debias"}])
def test_a_report_of_another_method_fails(change: dict[str, object], tmp_path: Path) -> None:
    """The method is also stored in the metadata of the file."""
    paths = write_series(tmp_path / "run", states())
    output = tmp_path / "ema.safetensors"
    ema_cli.average(paths, decay=0.5, output=output)
    report_file = tmp_path / "ema.report.json"
    document = json.loads(report_file.read_text())
    document["averages"][0]["method"] |= change
    report_file.write_text(json.dumps(document))
    failed = verify(output).failures
    assert [check.name for check in failed] == ["method"]
    assert "in the metadata of the file" in failed[0].message
