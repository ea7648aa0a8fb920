"""The plan: the data that will be read, written and copied, and every reason to refuse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ema_cli
from ema_cli.errors import EmaAvgError, InputRefused, UsageError
from ema_cli.options.average import make_options
from ema_cli.options.shell_command import shell_command
from ema_cli.records.plan import Action, Plan
from ema_cli.storage.source import FileSource
from tests.helpers.program import Run
from tests.helpers.series import State, open_files, random_states, write_series


def plan(folder: Path, states: list[State], **options: Any) -> Plan:
    """Write a series and plan it, with a decay of one half unless another is given."""
    if not {"decay", "half_life", "method"} & set(options):
        options["decay"] = 0.5
    return ema_cli.plan(write_series(folder, states), **options)


def codes_of(made: Plan) -> list[str]:
    """Return the codes of the warnings."""
    return [warning.code for warning in made.warnings]


MODEL = {
    "bn.running_mean": torch.zeros(3),
    "bn.num_batches_tracked": torch.tensor(7),
    "w": torch.ones(3, 2, dtype=torch.bfloat16),
    "c": torch.ones(2, dtype=torch.complex64),
    "mask": torch.tensor([True]),
}


def test_what_is_averaged_and_what_is_copied(tmp_path: Path) -> None:
    """Floating-point and complex tensors are averaged, integers and bools copied from the last checkpoint."""
    made = plan(tmp_path, [MODEL] * 3)
    actions = {tensor.name: tensor.action for tensor in made.tensors}
    assert {name for name, action in actions.items() if action is Action.COPIED} == {"bn.num_batches_tracked", "mask"}
    assert all(tensor.copied_from == 2 for tensor in made.tensors)
    assert made.data_bytes == sum(t.nbytes for t in made.tensors) == 12 + 8 + 12 + 16 + 1
    assert made.read_bytes == 3 * (12 + 12 + 16) + 8 + 1
    assert made.write_bytes == len(made.outputs[0].files[0].header) + made.data_bytes


def test_tensors_are_stored_in_a_row(tmp_path: Path) -> None:
    """The data section has no holes, and every tensor is aligned to its element size."""
    made = plan(tmp_path, random_states(2))
    position = 0
    for tensor in made.tensors:
        assert tensor.offset == position
        assert tensor.offset % tensor.dtype.itemsize == 0
        position += tensor.nbytes
    assert position == made.data_bytes


def test_planning_reads_the_structure_and_a_small_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far fewer bytes are read than the tensors have: the structure and, of each checkpoint, some pieces of 4 KiB."""
    read = []
    original = FileSource.read_into

    def counted(self: FileSource, offset: int, buffer: memoryview) -> None:
        read.append(len(buffer))
        original(self, offset, buffer)

    monkeypatch.setattr(FileSource, "read_into", counted)
    made = plan(tmp_path, [{"w": torch.zeros(1_000_000)}] * 2)
    assert made.read_bytes == 8_000_000
    archive = 70_000  # the end of an archive, with the longest comment that it may have
    assert 0 < sum(read) < 2 * (archive + 33 * 4096)


def test_include_and_exclude_choose_tensors(tmp_path: Path) -> None:
    """Regular expressions search the names; exclusion wins."""
    states = [{"enc.w": torch.ones(1), "enc.b": torch.ones(1), "dec.w": torch.ones(1)}] * 2
    names = [t.name for t in plan(tmp_path, states, include=("^enc", "dec"), exclude=(r"\.b$",)).tensors]
    assert names == ["dec.w", "enc.w"]
    with pytest.raises(UsageError, match="include and exclude select no tensor"):
        plan(tmp_path, states, include=("nothing",))


def test_a_pattern_that_finds_no_tensor_is_a_warning(tmp_path: Path) -> None:
    """Each such pattern is named; if it finds checkpoints, the hint says that it does not select them."""
    states = [{"enc.w": torch.ones(1), "enc.b": torch.ones(1)}] * 3
    made = plan(tmp_path, states, include=("enc", "^dec"), exclude=("b$", "ckpt_200"))
    unused = [(one.message, one.hint) for one in made.warnings if one.code == "pattern-unused"]
    assert unused == [
        ('no tensor has a name that --include "^dec" finds', 'did you mean "enc"?'),
        (
            'no tensor has a name that --exclude "ckpt_200" finds',
            'it selects tensors, not checkpoints: name those to average, without "ckpt_200.pt"',
        ),
    ]


def test_a_pattern_that_one_checkpoint_needs_is_used(tmp_path: Path) -> None:
    """A tensor of any checkpoint, or one that cannot be read, is enough."""
    states = [{"w": torch.ones(1), "old": torch.ones(1)}, {"w": torch.ones(1), "odd": torch.ones(1).to_sparse()}]
    made = plan(tmp_path, states, exclude=("old", "odd"))
    assert "pattern-unused" not in {one.code for one in made.warnings}


def test_all_differences_are_reported_at_once(tmp_path: Path) -> None:
    """Missing, additional, reshaped and retyped tensors are named with their files, in one error."""
    last = {"a": torch.ones(2), "b": torch.ones(3), "n": torch.tensor(1), "only_last": torch.ones(1)}
    first = {"a": torch.ones(5), "b": torch.arange(3), "n": torch.tensor(1), "only_first": torch.ones(1)}
    with pytest.raises(InputRefused) as refused:
        plan(tmp_path, [first, last])
    message = refused.value.message
    assert message.startswith("the checkpoints are not of one model:")
    assert '"ckpt_100.pt" lacks 1 tensor of "ckpt_200.pt": "only_last"' in message
    assert '"ckpt_200.pt" lacks 1 tensor of "ckpt_100.pt": "only_first"' in message
    assert '"a": shape (5,) in "ckpt_100.pt", (2,) in "ckpt_200.pt"' in message
    assert '"b": int64 in "ckpt_100.pt", float32 in "ckpt_200.pt"' in message


def test_many_differences_are_capped(tmp_path: Path) -> None:
    """A hundred reshaped tensors are a short message."""
    states = [{f"t{k}": torch.ones(size) for k in range(100)} for size in (1, 2)]
    with pytest.raises(InputRefused, match="and 88 more"):
        plan(tmp_path, states)


def test_copied_tensors_need_not_agree(tmp_path: Path) -> None:
    """Only the last is read for integers of another type or shape; floats in one checkpoint are a difference."""
    states = [{"w": torch.ones(1), "n": torch.tensor(1, dtype=dtype)} for dtype in (torch.int32, torch.int64)]
    assert {t.name: t.dtype.torch_name for t in plan(tmp_path, states).tensors} == {"w": "float32", "n": "int64"}
    states[0]["n"], states[1]["n"] = torch.arange(7), torch.ones(2, 3, dtype=torch.bool)
    assert {t.name: t.shape for t in plan(tmp_path, states).tensors} == {"w": (1,), "n": (2, 3)}
    states[0]["n"] = torch.ones(2, 3)
    with pytest.raises(InputRefused, match=r'"n": float32 in "ckpt_100\.pt", bool in "ckpt_200\.pt"'):
        plan(tmp_path, states)
    with pytest.raises(InputRefused, match=r'"n": bool in "ckpt_100\.pt", float32 in "ckpt_200\.pt"'):
        plan(tmp_path, states[::-1])


def test_floats_of_two_sizes_are_folded_with_a_warning(tmp_path: Path) -> None:
    """A change of precision during training is allowed; the output has the last type."""
    states = [{"w": torch.ones(2, dtype=dtype)} for dtype in (torch.float32, torch.bfloat16)]
    made = plan(tmp_path, states)
    assert codes_of(made) == ["dtypes-differ"]
    assert made.tensors[0].dtype.torch_name == "bfloat16"
    assert made.layout_numbers == (0, 1)
    assert made.read_bytes == 8 + 4


def test_tensors_are_matched_by_name(tmp_path: Path) -> None:
    """Another order in another file changes nothing."""
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    paths = write_series(tmp_path, [{"a": a, "b": b}, {"b": b, "a": a}])
    ema_cli.average(paths, decay=0.5, output=tmp_path / "ema.safetensors")
    (found,) = ema_cli.average(paths, decay=0.5, output=tmp_path / "ema.safetensors").averages
    assert [tensor.drift for tensor in found.tensors] == [0, 0]


def test_tied_tensors_are_reported(tmp_path: Path) -> None:
    """A tensor that shares its bytes with a previous one is written twice, and reported as tied."""
    shared = torch.ones(4)
    made = plan(tmp_path, [{"embed": shared, "head": shared, "w": torch.ones(4)}] * 2)
    assert {t.name: t.tied_to for t in made.tensors} == {"embed": None, "head": "embed", "w": None}
    made = plan(tmp_path, [{"embed": shared, "head": shared}] * 2, exclude=("embed",))
    assert [t.tied_to for t in made.tensors] == [None]


def test_a_tensor_called_like_the_metadata_is_refused(tmp_path: Path) -> None:
    """``__metadata__`` cannot be the name of a tensor in a safetensors file, so it is refused before the work."""
    with pytest.raises(InputRefused, match='tensor "__metadata__" has a name that cannot be written'):
        plan(tmp_path, [{"w": torch.ones(1), "__metadata__": torch.ones(1)}])


def test_scales_of_quantized_models_are_refused(tmp_path: Path) -> None:
    """A mean of exponents is not the exponent of a mean."""
    states = [{"w": torch.ones(4), "w_scale": torch.ones(4).to(torch.float8_e8m0fnu)}] * 2
    with pytest.raises(InputRefused, match='scales of a quantized model cannot be averaged: "w_scale"'):
        plan(tmp_path, states)


@pytest.mark.parametrize(
    ("states", "options", "codes"),
    [
        ([{"w": torch.ones(1)}] * 3, {"decay": 0.3}, []),
        ([{"w": torch.ones(1)}] * 3, {"decay": 0.99}, ["first-dominates"]),
        ([{"w": torch.ones(1)}], {"decay": [0.1, 0.2]}, ["one-checkpoint"]),
        ([{"bn.running_mean": torch.ones(1)}] * 3, {"decay": 0.3}, ["batchnorm-averaged"]),
        ([{"bn.running_mean": torch.ones(1), "w": torch.ones(1)}] * 3, {"decay": 0.3, "buffers": "last"}, []),
        ([{"n": torch.tensor(1)}] * 3, {"decay": 0.3}, ["nothing-averaged"]),
        ([{"w": torch.ones(1).to(torch.float8_e4m3fn)}] * 3, {"decay": 0.3}, ["float8-averaged"]),
        ([{"w": torch.ones(1).to(torch.float8_e5m2)}] * 3, {"decay": 0.3, "dtype": "bfloat16"}, []),
    ],
)
def test_caveats(states: list[State], options: dict[str, Any], codes: list[str], tmp_path: Path) -> None:
    """Each doubtful average is warned about once, each sound one is not."""
    made = plan(tmp_path, states, output=tmp_path / "ema_{decay}.safetensors", **options)
    assert codes_of(made) == codes
    assert all(warning.message for warning in made.warnings)


def test_without_a_decay_the_choices_are_shown(tmp_path: Path) -> None:
    """There is no default decay: the error shows what a few would give for these checkpoints."""
    paths = write_series(tmp_path, random_states(4))
    with pytest.raises(UsageError, match="For these 4 checkpoints") as refused:
        ema_cli.plan(paths)
    assert 'method="uniform"' in refused.value.message
    assert refused.value.hint.startswith("decay=0.46 ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, r"--decay 1 is not in \[0, 1\)"),
        ({"decay": -0.1}, "--decay -0.1 is not"),
        ({"decay": math.nan}, "--decay nan is not"),
        ({"decay": [0.5, 0.5]}, "--decay has the same value twice"),
        ({"decay": 0.5, "half_life": 3}, "say the same thing"),
        ({"half_life": 0}, "--half-life 0 must be positive"),
        ({"half_life": math.inf}, "--half-life inf must be positive"),
        ({"half_life": 1e18}, "at most 1e"),
        ({"method": "uniform", "decay": 0.5}, "--method uniform has no --decay"),
        ({"method": "uniform", "init": "debias"}, "--method uniform has no --init"),
        ({"method": "unifrom", "decay": 0.5}, '--method "unifrom" is none of ema, ema-hold, ema-warmup, uniform'),
        ({"method": ["ema", "ema"], "decay": 0.5}, "--method has the same value twice"),
        ({"decay": 0.5, "one_minus_decay": 0.5}, "--decay and --one-minus-decay say the same thing"),
        ({"one_minus_decay": 0}, r"--one-minus-decay 0 is not in \(0, 1\]"),
        ({"one_minus_decay": math.nan}, "--one-minus-decay nan is not in"),
        ({"method": "uniform", "half_life": 3}, "--method uniform has no --half-life"),
        ({"method": "ema-hold", "decay": 0.5, "per": "checkpoint"}, "--method ema-hold has no --per"),
        ({"method": "uniform-time", "per": "step"}, "--method uniform-time has no --per"),
        ({"decay": 0.5, "per": "epoch"}, '--per "epoch" is none of checkpoint, step'),
        ({"decay": 0.5, "clock": "hours"}, '--clock "hours" is none of steps, tokens, samples, epochs'),
        ({"method": "power"}, "--method power needs a width"),
        ({"sigma_rel": 0}, r"--sigma-rel 0 is not in \(0, 0.2887\]"),
        ({"sigma_rel": 0.3}, "--sigma-rel 0.3 is not in"),
        ({"sigma_rel": 0.1, "decay": 0.5}, "--method power has no --decay"),
        ({"method": "ema", "decay": 0.5, "sigma_rel": 0.1}, "--method ema has no --sigma-rel"),
        ({"shape": "square"}, '--shape "square" is none of linear, cosine, 1-sqrt'),
        ({"method": "ramp", "shape": "linear"}, "--method ramp has no --shape"),
        ({"method": "ema-warmup", "decay": 0.5, "warmup": "tf", "power": 1}, "--warmup tf has no --power"),
        ({"method": "ema-warmup", "decay": 0.5, "inv_gamma": 0}, "--inv-gamma 0 must be positive"),
        ({"decay": 0.5, "warmup": "tf", "method": "ema"}, "--method ema has no --warmup"),
        ({"weights": (1, -1)}, "the weight -1 must be 0, or from"),
        ({"weights": (1, math.nan)}, "the weight nan must be"),
        ({"weights": (0, 0)}, "all weights are zero"),
        ({"weights": (1, 2), "method": "ramp"}, "--method ramp has no --weights"),
        ({"decay": 0.5, "normalize": False}, "--method ema has no --no-normalize"),
        ({"method": "manual"}, '"missing.pt" has no weight'),
        ({"decay": 0.5, "steps": (-1, 2)}, '--steps "-1,2" is not a list of whole numbers, 0 or more'),
        ({"decay": [0.5, 0.6], "continue_from": "e.safetensors"}, "--continue-from continues one average"),
        ({"continue_from": "e.safetensors", "last": 3}, "--last selects from all checkpoints"),
        ({"continue_from": "e.safetensors", "every": 2}, "--every selects from all checkpoints"),
        ({"continue_from": "e.safetensors", "weights": (1, 2)}, "weights by hand belong to the checkpoints"),
        ({"decay": 0.5, "init": "zero"}, '--init "zero" is none of first, debias'),
        ({"decay": 0.5, "buffers": "reset"}, '--buffers "reset" is none of average, last, first'),
        ({"decay": 0.5, "order": "size"}, '--order "size" is none of auto, step, name, mtime, given'),
        ({"decay": 0.5, "dtype": "int8"}, '--dtype "int8" is none of same, float32'),
        ({"decay": 0.5, "device": "tpu"}, '--device "tpu" is none of cpu'),
        ({"decay": 0.5, "threads": 0}, "--threads 0 must be from 1 to 256"),
        ({"decay": 0.5, "every": 0}, "--every 0 must be at least 1"),
        ({"decay": 0.5, "last": 0}, "--last 0 must be at least 1"),
        ({"decay": 0.5, "from_step": 2, "to_step": 1}, "--from 2 is after --to 1"),
        ({"decay": 0.5, "include": ("(",)}, r'--include "\(" is not a regular expression'),
        ({"decay": 0.5, "exclude": ("a{99999999999}",)}, "--exclude .* is not a regular expression"),
        ({"decay": 0.5, "report": (Path("r.txt"),)}, 'there is no report format ".txt"'),
        ({"decay": 0.5, "metadata": {"format": "pt"}}, '--metadata "format" is written by ema-avg itself'),
        ({"decay": 0.5, "metadata": {"ema_avg.x": "1"}}, "is written by ema-avg itself"),
        ({"decay": 0.5, "metadata": {"k": "\udcff"}}, '--metadata "k" is not text that can be written'),
        ({"decay": 0.5, "metadata": {"k": 3}}, '--metadata "k" is not text that can be written'),
        ({"decay": 0.5, "output": Path("ema.txt")}, '"ema.txt" must end in .safetensors'),
        ({"decay": 0.5, "output": Path("ema.pt"), "format": "safetensors"}, '"ema.pt" must end in .safetensors'),
        ({"decay": 0.5, "output": Path("ema.pt"), "dtype": "float32"}, "same .* keeps the types of the last"),
        ({"decay": 0.5, "output": Path("ema.pt"), "tied": "drop"}, "same .* keeps all names"),
        ({"decay": 0.5, "output": Path("ema.pt"), "metadata": {"a": "b"}}, "same .* has no room for --metadata"),
        ({"decay": 0.5, "output": Path("e.pt"), "lora": "exact"}, "--lora exact changes the shapes"),
        ({"decay": 0.5, "output": Path("e"), "format": "same", "max_shard_size": 9}, "does not take --max-shard-size"),
        ({"decay": 0.5, "output": Path(".."), "format": "same"}, '".." is a folder'),
        ({"decay": 0.5, "format": "same"}, "--format same needs the name of the output"),
        ({"decay": 0.5, "output": "s3://bucket/ema.pt"}, "is written to a disk, not to a store"),
        ({"decay": [0.5, 0.6], "output": Path("ema.safetensors")}, r"several averages need \{decay\}"),
        ({"decay": 0.5, "output": Path("e_{foo}.safetensors")}, r"there is no \{foo\}"),
        ({"method": ["ramp", "uniform"], "output": Path("e.safetensors")}, r"several averages need \{method\}"),
        (
            {"method": ["ema", "ema-hold"], "half_life": [1, 2], "output": Path("e.safetensors")},
            r"several averages need \{label\}",
        ),
    ],
)
def test_contradicting_options_are_refused_before_anything_is_read(options: dict[str, Any], message: str) -> None:
    """Each contradiction is a usage error that names the option and its value."""
    with pytest.raises(UsageError, match=message):
        make_options("missing.pt", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 0.5, "output": "h{half_life}.safetensors"}, r"ema 0.5 has no \{half_life\}"),
        ({"method": "uniform", "output": "ema_{decay}.safetensors"}, r"uniform has no \{decay\}"),
        ({"decay": 0.5, "output": "{run}.safetensors"}, r"\{run\} needs one run folder"),
        ({"decay": [0.5, 0.5 + 1e-15], "output": "ema_{decay}.safetensors"}, "several averages would be written to"),
    ],
)
def test_output_names_must_distinguish_the_averages(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A placeholder without a value, or one that gives one name twice, is refused."""
    options["output"] = tmp_path / options["output"]
    with pytest.raises(UsageError, match=message):
        plan(tmp_path, random_states(2), **options)


def test_an_input_is_never_the_output(tmp_path: Path) -> None:
    """An input is not overwritten, by its own name or by a link."""
    paths = write_series(tmp_path, random_states(2), form="safetensors")
    link = tmp_path / "link.safetensors"
    link.symlink_to(paths[1])
    for output in (paths[0], link):
        with pytest.raises(UsageError, match="is one of the inputs"):
            ema_cli.plan(paths, decay=0.5, output=output)


@given(
    max_memory=st.integers(1, 1 << 22),
    threads=st.none() | st.integers(1, 16),
    decays=st.integers(1, 5),
)
@example(max_memory=200_000, threads=16, decays=2)
@settings(max_examples=60, deadline=None)
def test_memory_stays_within_the_bound(
    series_of_two: list[Path], max_memory: int, threads: int | None, decays: int
) -> None:
    """The buffers fit in ``--max-memory`` with the requested threads, or the error states the minimum."""
    options: dict[str, Any] = {
        "decay": [k / 10 for k in range(decays)],
        "max_memory": max_memory,
        "threads": threads,
        "output": "ema_{decay}.safetensors",
    }
    try:
        buffers = ema_cli.plan(series_of_two, **options).buffers
    except UsageError as refused:
        assert "max_memory is too small" in refused.message  # noqa: PT017 - both outcomes are right
        assert max_memory < 1024 * 8 * (9 + decays)
    else:
        assert buffers.total_bytes <= max_memory
        assert 1 <= buffers.threads <= (threads or 4)
        assert buffers.block_elements >= 2


@pytest.fixture(scope="module")
def series_of_two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints with a tensor of 100,000 elements."""
    return write_series(tmp_path_factory.mktemp("two"), [{"w": torch.zeros(100_000)}] * 2)


def test_a_small_model_takes_small_buffers(tmp_path: Path) -> None:
    """Blocks are no larger than the largest tensor; ``auto`` without a GPU plans for the CPU."""
    made = plan(tmp_path, [{"w": torch.ones(10)}] * 2, device="auto")
    assert made.buffers.block_elements == 10
    made = plan(tmp_path, [{"w": torch.ones(1 << 18)}] * 2)
    assert made.buffers.block_elements == 3 << 16


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decay": 0.5, "include": ("nothing",)},
        {"decay": 0.5, "from_step": 10_000},
        {"decay": 0.5, "max_memory": 1},
        {"decay": 0.5, "steps": (1,)},
    ],
)
def test_no_file_stays_open_when_planning_fails(options: dict[str, Any], tmp_path: Path) -> None:
    """Files that were opened are closed after every refusal, and after a plan."""
    paths = write_series(tmp_path, random_states(3))
    before = open_files()
    with pytest.raises(EmaAvgError):
        ema_cli.plan(paths, **options)
    assert open_files() == before
    ema_cli.plan(paths, decay=0.5)
    assert open_files() == before


def test_outputs_of_earlier_versions_stay_up_to_date(tmp_path: Path) -> None:
    """Without newer options, the fingerprint of the options is the one that version 0.5.0 wrote."""
    header = ema_cli.plan(write_series(tmp_path, [MODEL] * 3), method="uniform").outputs[0].files[0].header
    assert b'"ema_avg.options_fingerprint":"b7d18169cfdf50e47710430ff4a125ad"' in header


def test_the_fingerprint_of_the_options_distinguishes_averages(tmp_path: Path) -> None:
    """Every option that changes bytes changes the header; options that only split the work do not."""
    paths = write_series(tmp_path, [MODEL] * 3)
    base: dict[str, Any] = {"decay": 0.5}
    header = ema_cli.plan(paths, **base).outputs[0].files[0].header
    for same in ({"threads": 1}, {"max_memory": 1 << 20}, {"force": True}, {"sha256": True}, {"strict": False}):
        assert ema_cli.plan(paths, **base, **same).outputs[0].files[0].header == header
    changes: list[dict[str, Any]] = [
        {"init": "debias"},
        {"buffers": "last"},
        {"dtype": "float64"},
        {"exclude": ("^c$",)},
        {"allow_nonfinite": True},
        {"metadata": {"run": "7"}},
    ]
    headers = {header, ema_cli.plan(paths, decay=0.6).outputs[0].files[0].header}
    headers |= {ema_cli.plan(paths, **base, **change).outputs[0].files[0].header for change in changes}
    assert len(headers) == len(changes) + 2


def test_options_from_python_may_be_strings_and_lists(tmp_path: Path) -> None:
    """Paths may be strings, and one or several patterns, steps or reports need not be tuples."""
    paths = write_series(tmp_path, [MODEL] * 2)
    report = ema_cli.average(
        str(tmp_path / "ckpt_*.pt"),
        decay=0.5,
        output=str(tmp_path / "ema.safetensors"),
        include="^w$",
        exclude=["nothing"],
        steps=[3, 5],
        report=str(tmp_path / "more.json"),
    )
    assert [tensor.name for tensor in report.averages[0].tensors] == ["w"]
    assert [found.step for found in report.inputs] == [3, 5]
    assert (tmp_path / "more.json").exists()
    assert len(paths) == 2


def test_numbers_of_numpy_are_plain_numbers(tmp_path: Path) -> None:
    """A decay from numpy, or a whole number, gives the same file as a plain float."""
    paths = write_series(tmp_path, random_states(2))
    expected = ema_cli.plan(paths, decay=0.5).outputs[0].files[0].header
    decays: list[Any] = [np.float64(0.5), np.float32(0.5), np.array([0.5])]
    for decay in decays:
        assert ema_cli.plan(paths, decay=decay).outputs[0].files[0].header == expected
    whole, real = (ema_cli.plan(paths, decay=decay).outputs[0].files[0].header for decay in (0, 0.0))
    assert whole == real


@pytest.mark.parametrize(
    ("states", "by_default", "codes", "by_hand"),
    [
        ([{"bn.running_mean": torch.ones(1)}] * 3, {}, ["batchnorm-averaged"], {"buffers": "average"}),
        ([{"w": torch.ones(2)}, {"w": torch.ones(2).half()}], {}, ["dtypes-differ"], {"dtype": "same"}),
        ([{"w": torch.ones(2)}, {"w": torch.ones(2).half()}], {}, ["dtypes-differ"], {"dtype": "float32"}),
        ([{"w": torch.ones(1).to(torch.float8_e4m3fn)}] * 3, {}, ["float8-averaged"], {"dtype": "same"}),
        ([{"w": torch.ones(1)}] * 4, {"half_life": 150, "per": "step"}, ["unobserved-mass"], {"init": "first"}),
    ],
)
def test_an_option_by_hand_silences_the_warning_about_its_default(
    states: list[State], by_default: dict[str, Any], codes: list[str], by_hand: dict[str, Any], tmp_path: Path
) -> None:
    """From Python; another option that is given does not silence it."""
    options = by_default or {"decay": 0.3}
    assert codes_of(plan(tmp_path, states, **options)) == codes
    assert codes_of(plan(tmp_path, states, **options, threads=1, geometry="sample")) == codes
    assert codes_of(plan(tmp_path, states, **options, **by_hand)) == []


def test_types_of_copied_tensors_may_differ(tmp_path: Path) -> None:
    """The output has the type of the one that is copied, so there is nothing to warn of."""
    states = [{"w": torch.ones(1), "bn.running_mean": torch.ones(2).to(dtype)} for dtype in (torch.float32, torch.half)]
    made = plan(tmp_path, states, buffers="first")
    assert codes_of(made) == []
    assert {t.name: t.dtype.torch_name for t in made.tensors}["bn.running_mean"] == "float32"
    states[0]["bn.running_mean"] = torch.ones(3)
    made = plan(tmp_path, states, buffers="first")
    assert {t.name: t.shape for t in made.tensors}["bn.running_mean"] == (3,)
    with pytest.raises(InputRefused, match=r"bn\.running_mean"):
        plan(tmp_path, states)


@pytest.mark.parametrize("where", ["flag", "file", "environment"])
def test_a_default_is_confirmed_from_anywhere(tmp_path: Path, ema_avg: Run, where: str) -> None:
    """On the command line, in the configuration, in the environment; ``--strict`` passes then, and only then."""
    states = [{"bn.running_mean": torch.full((2,), float(n)), "w": torch.full((2,), float(n))} for n in range(3)]
    write_series(tmp_path / "run", states)
    command = ("run", "--method", "uniform", "-o", "ema.safetensors", "--strict")
    assert ema_avg(*command).returncode == 8
    environment = {"EMA_AVG_BUFFERS": "average"} if where == "environment" else {}
    if where == "file":
        (tmp_path / "ema-avg.toml").write_text('buffers = "average"\n')
    flags = ("--buffers", "average") if where == "flag" else ()
    done = ema_avg(*command, *flags, **environment)
    assert done.returncode == 0, done.stderr
    assert "batchnorm-averaged" not in done.stderr


def test_a_confirmed_default_changes_no_byte(tmp_path: Path) -> None:
    """Outputs of both are the same, so that one is up to date for the other; commands that are proposed repeat it."""
    paths = write_series(tmp_path, [{"bn.running_mean": torch.ones(2), "w": torch.ones(2)}] * 2)
    output = tmp_path / "ema.safetensors"
    ema_cli.average(paths, decay=0.3, output=output)
    before = output.read_bytes()
    report = ema_cli.average(paths, decay=0.3, output=output, buffers="average", dtype="same", force=True)
    assert output.read_bytes() == before
    assert report.command.options["buffers"] == "average"
    options = make_options("run", buffers="average", decay=0.5)
    assert "--buffers average" in shell_command(options)
    assert "--buffers" not in shell_command(make_options("run", decay=0.5))
