"""Folders of Hugging Face's layout, made with ``save_file`` and ``torch.save``, and read back with these libraries."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ema_cli.errors import InputChanged, InputRefused
from ema_cli.formats.file_names import is_numbered
from ema_cli.formats.huggingface.weight_names import find_weights, holds_weights
from ema_cli.formats.members import find_side_files
from ema_cli.formats.open import open_checkpoint
from ema_cli.storage.extents import LayoutPool
from tests.helpers.folders import write_shards
from tests.helpers.makers import every_kind, expected, fifo, open_file, read_all, read_file
from tests.helpers.program import Run
from tests.helpers.series import State, load, open_files, random_states, reference_average

TRAINER_FILES = ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state.pth", "training_args.bin", "scaler.pt")


def write_trainer(folder: Path, step: int) -> None:
    """Write the files that a trainer stores with the weights."""
    for name in TRAINER_FILES:
        torch.save({"state": {0: {"exp_avg": torch.randn(3)}}}, folder / name)
    log = [{"step": k, "loss": float("nan"), "epoch": k / 7} for k in range(step)]
    (folder / "trainer_state.json").write_text(json.dumps({"epoch": 1.5, "global_step": step, "log_history": log}))
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny"}))


def refusal(folder: Path, **options: Any) -> InputRefused:
    """Return the message that refuses a folder; no file stays open."""
    before = open_files()
    with pytest.raises(InputRefused) as refused:
        open_file(folder, **options)
    assert open_files() == before
    assert refused.value.message.startswith(f'"{folder}')
    return refused.value


# Folders that are read


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("index", [True, False])
def test_shards_are_read_bit_for_bit(suffix: str, index: bool, tmp_path: Path) -> None:
    """Every tensor of every shard is found, with an index and without, as the official libraries read the shards."""
    write_shards(tmp_path, random_states(1)[0], suffix=suffix, index=index)
    wanted: State = {}
    for path in sorted(tmp_path.glob(f"*.{suffix}")):
        wanted |= torch.load(path) if suffix == "bin" else load_file(path)
    assert read_file(tmp_path) == expected(wanted)
    assert len(wanted) == 4


def test_pickled_shards_hold_tensors_of_every_kind(tmp_path: Path) -> None:
    """Views, ties and every element type are read from the shards as from a single file."""
    state = every_kind()
    write_shards(tmp_path, state, suffix="bin")
    assert read_file(tmp_path) == expected(state)


def test_a_single_file_and_its_side_files(tmp_path: Path) -> None:
    """A folder with one model is that model; files for loading it are side files, the state of the training is not."""
    (state,) = random_states(1)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    write_trainer(tmp_path, 500)
    for name in ("tokenizer.json", "merges.txt", "generation_config.json", "modeling_tiny.py", "README.md", "LICENSE"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "runs").mkdir()
    found = open_file(tmp_path)
    assert found.side_files == (
        "config.json",
        "generation_config.json",
        "merges.txt",
        "modeling_tiny.py",
        "tokenizer.json",
    )
    assert set(found.ignored) == {*TRAINER_FILES, "README.md", "LICENSE", "runs/"}
    assert [(step.value, step.unit, step.source) for step in found.steps] == [
        (500, "step", "inside: trainer_state.json")
    ]
    assert (found.stem, found.format) == ("model", "safetensors")
    assert read_all(found) == expected(state)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("model.safetensors", "model"),
        ("pytorch_model.bin", "model"),
        ("pytorch_model_fsdp.bin", "model"),
        ("adapter_model.safetensors", "adapter_model"),
        ("adapter_model.bin", "adapter_model"),
        ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model"),
        ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model"),
        ("pytorch_lora_weights.safetensors", "pytorch_lora_weights"),
    ],
)
def test_models_adapters_and_parts_of_pipelines(name: str, stem: str, tmp_path: Path) -> None:
    """Whatever the name of the weights, the folder is the checkpoint, and the output is named after them."""
    (state,) = random_states(1)
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text("{}")
    found = open_file(tmp_path)
    assert found.stem == stem
    assert found.side_files == ("adapter_config.json",)
    assert read_all(found) == expected(state)


@pytest.mark.parametrize("index", ["model.safetensors.index.fp16.json", "my_net.safetensors.index.json"])
def test_indexes_of_other_names(index: str, tmp_path: Path) -> None:
    """An index with a variant, or of a model with another name, is accepted too."""
    (state,) = random_states(1)
    write_shards(tmp_path, state).rename(tmp_path / index)
    assert read_file(tmp_path) == expected(state)


def test_safetensors_come_before_pickles(tmp_path: Path) -> None:
    """Of two copies of one model the libraries load the safetensors; the other copy is listed as ignored."""
    old, new = random_states(2)
    write_shards(tmp_path, old, suffix="bin", count=2)
    save_file(new, tmp_path / "model.safetensors")
    found = open_file(tmp_path)
    assert "pytorch_model.bin.index.json" in found.ignored
    assert read_all(found) == expected(new)


def test_stale_shards_are_ignored(tmp_path: Path) -> None:
    """Files that the index does not name are ignored: shards of a previous save, and removed tensors."""
    (state,) = random_states(1)
    save_file({"old": torch.zeros(2)}, tmp_path / "model-00004-of-00004.safetensors")
    index = write_shards(tmp_path, state)
    document = json.loads(index.read_text())
    del document["weight_map"]["empty"]
    index.write_text(json.dumps(document))
    found = open_file(tmp_path)
    assert "model-00004-of-00004.safetensors" in found.ignored
    assert "empty" in found.ignored
    (note,) = found.warnings
    assert '1 tensor of the shards is not in "model.safetensors.index.json", and ignored: "empty"' in note
    assert read_all(found) == expected({name: value for name, value in state.items() if name != "empty"})


@pytest.mark.parametrize("kept", [True, False])
def test_an_index_that_names_too_few_shards_is_a_warning(kept: bool, tmp_path: Path) -> None:
    """The names of the shards count them: what the index does not name is missed, whether its file is there or not."""
    (state,) = random_states(1)
    index = write_shards(tmp_path, state)
    last = "model-00003-of-00003.safetensors"
    document = json.loads(index.read_text())
    document["weight_map"] = {name: file for name, file in document["weight_map"].items() if file != last}
    index.write_text(json.dumps(document))
    if not kept:
        (tmp_path / last).unlink()
    found = open_file(tmp_path)
    found.index.close()
    (warning,) = found.dropped
    rest = f'the tensors of "{last}"' if kept else "those of the other shards"
    assert warning.code == "weights-dropped"
    assert f'"model.safetensors.index.json" names 2 of 3 shards; {rest} are not in the output' in warning.message


def test_links_into_a_cache_are_followed(tmp_path: Path) -> None:
    """The cache of the Hugging Face hub keeps files under their hashes, and folders of links to them."""
    (state,) = random_states(1)
    snapshot, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
    blobs.mkdir()
    write_shards(snapshot, state)
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / f"{number}")
        path.symlink_to(f"../../blobs/{number}")
    assert read_file(snapshot) == expected(state)


def test_checkpoints_of_a_run_share_their_layouts(tmp_path: Path) -> None:
    """Structure that is equal in the checkpoints of a run is stored once, in either format."""
    for suffix in ("safetensors", "bin"):
        pool = LayoutPool()
        states = random_states(4)
        folders = [tmp_path / suffix / f"checkpoint-{k}" for k in range(4)]
        for folder, state in zip(folders, states, strict=True):
            write_shards(folder, state, suffix=suffix)
        found = [open_checkpoint(folder, pool=pool) for folder in folders]
        assert len({id(checkpoint.index.layouts) for checkpoint in found}) == 1
        for checkpoint, state in zip(found, states, strict=True):
            assert read_all(checkpoint) == expected(state)


def test_equal_shards_under_another_index_are_another_checkpoint(tmp_path: Path) -> None:
    """The cache for a run does not hide that one index names fewer tensors than the others."""
    (state,) = random_states(1)
    pool = LayoutPool()
    for number in range(3):
        index = write_shards(tmp_path / f"{number}", state)
        if number == 1:
            document = json.loads(index.read_text())
            del document["weight_map"]["empty"]
            index.write_text(json.dumps(document))
        found = read_all(open_checkpoint(tmp_path / f"{number}", pool=pool))
        assert found.keys() == {name for name in state if number != 1 or name != "empty"}


def test_the_fingerprint_depends_on_every_file(tmp_path: Path) -> None:
    """Other structure in any shard, in the index or in the trainer's state is another fingerprint."""
    (state,) = random_states(1)
    seen = set()
    for change in ("", "shard", "step"):
        folder = tmp_path / change
        write_shards(folder, state | ({"scale": torch.ones(2)} if change == "shard" else {}))
        (folder / "trainer_state.json").write_text(f'{{"global_step": {200 if change == "step" else 100}}}')
        found = open_file(folder)
        seen.add(found.fingerprint.rpartition("-")[2])
        found.index.close()
    assert len(seen) == 3


# Folders that are refused


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (b"not json", "it is not JSON"),
        (b"[1]", "it is not a JSON object"),
        (b"\xff\xfe{}", "it is not JSON"),
        (b"{}", "it has no weight_map"),
        (b'{"weight_map": {}}', "it has no weight_map"),
        (b'{"weight_map": ["a"]}', "it has no weight_map"),
        (b'{"weight_map": {"w": 1}}', "it has no weight_map"),
        (b'{"weight_map": {"w": {"a": "b"}}}', "it has no weight_map"),
        (b'{"weight_map": {"w": "a", "w": "b"}}', 'it names "w" twice'),
        (b'{"weight_map": {"w": "a"}, "weight_map": {"w": "b"}}', 'it names "weight_map" twice'),
        (b'{"metadata": {"total_size": NaN}, "weight_map": {"w": "a"}}', "it contains NaN"),
        (b'{"metadata": ' + b"[" * 100_000, "it is not JSON"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "it is not JSON"),
        (b"{" + b'"a": 1,' * 500_001 + b"}", "it has more than 500,000 entries"),
        (b'{"weight_map": {"w": "../model.safetensors"}}', "shards must be in the folder of their index"),
        (b'{"weight_map": {"w": "/etc/passwd"}}', "shards must be in the folder of their index"),
        (b'{"weight_map": {"w": ".."}}', "shards must be in the folder of their index"),
        (b'{"weight_map": {"w": ""}}', "shards must be in the folder of their index"),
        (b'{"weight_map": {"w": "a\\\\b"}}', "shards must be in the folder of their index"),
        (b'{"weight_map": {"w": "deep/er"}}', "shards must be in the folder of their index"),
        (b'{"weight_map": {"w": "inner"}}', 'are missing: "inner"'),
        (b'{"weight_map": {"w": "a\\ud800"}}', "are missing"),
        (b'{"weight_map": {"w": "a\\u0000b"}}', "are missing"),
    ],
)
def test_a_damaged_index_is_refused_with_a_message(index: bytes, words: str, tmp_path: Path) -> None:
    """Whatever the index contains, nothing outside the folder is opened, and the reason is reported."""
    (tmp_path / "inner").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path.parent / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    message = refusal(tmp_path).message
    assert '"model.safetensors.index.json"' in message
    assert words.replace("are missing", "is missing") in message


def test_a_large_index_is_refused_by_its_size(tmp_path: Path) -> None:
    """An index larger than any model has is not read."""
    with (tmp_path / "model.safetensors.index.json").open("wb") as file:
        file.truncate(1 << 40)
    assert "more than the limit of 33,554,432" in refusal(tmp_path).message


@pytest.mark.slow
@pytest.mark.parametrize(
    "entries",
    [
        ",".join(f'"{k:06}.{chr(0x1F600) * 4}":"{k:06}.{chr(0x1F600) * 5}"' for k in range(480_000)),
        ",".join(f'"{k}":[]' for k in range(240_000)),
        ",".join(f'"{k}":[{{}}]' for k in range(160_000)),
    ],
    ids=["names", "lists", "objects"],
)
def test_the_memory_of_an_index_is_bounded(entries: str, tmp_path: Path) -> None:
    """A hostile index takes less than 512 MB to refuse."""
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map":{{{entries}}}}}')
    code = (
        "import sys; from pathlib import Path\n"
        "from ema_cli.errors import InputRefused; from ema_cli.formats.open import open_checkpoint\n"
        "from ema_cli.storage.extents import LayoutPool\n"
        "try: open_checkpoint(Path(sys.argv[1]), pool=LayoutPool())\n"
        "except InputRefused: print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 512_000_000


@pytest.mark.slow
@given(index=st.binary(max_size=60) | st.from_regex(rb'\{"weight_map":\{("[ab]":"[ab/.]{1,3}",?){0,3}\}\}'))
@settings(max_examples=150, deadline=None)
def test_no_index_breaks_the_reader(index: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any bytes as an index are a refusal or a checkpoint of the tensors that it names."""
    folder = tmp_path_factory.mktemp("any")
    save_file({"a": torch.ones(2), "b": torch.zeros(1)}, folder / "a")
    (folder / "model.safetensors.index.json").write_bytes(index)
    try:
        found = open_file(folder)
    except InputRefused:
        return
    assert {layout.name for layout in found.index.layouts} == set(json.loads(index)["weight_map"])
    found.index.close()


def test_missing_shards_are_named_together(tmp_path: Path) -> None:
    """All missing shards are reported at once: an incomplete copy lacks many."""
    write_shards(tmp_path, random_states(1)[0])
    for number in (1, 3):
        (tmp_path / f"model-0000{number}-of-00003.safetensors").unlink()
    message = refusal(tmp_path).message
    assert '2 of 3 files in "model.safetensors.index.json" are missing' in message
    assert '"model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"' in message


def test_a_tensor_that_is_not_in_its_shard_is_named(tmp_path: Path) -> None:
    """An index and shards of two saves do not fit together."""
    index = write_shards(tmp_path, random_states(1)[0])
    document = json.loads(index.read_text())
    document["weight_map"] |= {"gone": "model-00001-of-00003.safetensors", "scale": "model-00001-of-00003.safetensors"}
    index.write_text(json.dumps(document))
    refused = refusal(tmp_path)
    assert "2 tensors of" in refused.message
    assert '"gone" in "model-00001-of-00003.safetensors"' in refused.message
    assert "files of several saves" in refused.hint


@pytest.mark.parametrize(("kept", "words"), [((1, 2), "it has 2 of 3 shards"), ((3,), "it has 1 of 3 shards")])
def test_an_incomplete_set_without_an_index_is_refused(kept: tuple[int, ...], words: str, tmp_path: Path) -> None:
    """Only the count in the names shows that shards are missing."""
    write_shards(tmp_path, random_states(1)[0], index=False)
    for number in {1, 2, 3} - set(kept):
        (tmp_path / f"model-0000{number}-of-00003.safetensors").unlink()
    message = refusal(tmp_path).message
    assert "is incomplete" in message
    assert words in message


def test_a_tensor_in_two_shards_without_an_index_is_refused(tmp_path: Path) -> None:
    """A tensor that two files have is refused, because nothing shows which copy counts."""
    for number in (1, 2):
        save_file({"w": torch.ones(number)}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    assert '"w" in "model-00001-of-00002.safetensors"' in refusal(tmp_path).message


@pytest.mark.parametrize(
    "names",
    [
        ("model.safetensors", "adapter_model.safetensors"),
        ("model.safetensors", "diffusion_pytorch_model.safetensors"),
        ("model.safetensors", "model_1.safetensors", "random_states_0.pkl"),
        ("model-00001-of-00001.safetensors", "other-00001-of-00001.safetensors"),
        ("model.safetensors", "model.safetensors.index.json"),
        ("one.safetensors.index.json", "two.safetensors.index.json"),
        ("model.fp16.safetensors", "model.ema.safetensors"),
    ],
)
def test_several_models_are_refused_with_their_names(names: tuple[str, ...], tmp_path: Path) -> None:
    """If there are several candidates, none is chosen, and all are named."""
    for name in names:
        save_file({"w": torch.ones(2)}, tmp_path / name)
    refused = refusal(tmp_path)
    assert "holds several models, or two copies of one" in refused.message
    assert all(f'"{name}"' in refused.message for name in names[:2])
    assert "name one of the files" in refused.hint


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    """A truncated shard is refused with its name and that of the folder."""
    write_shards(tmp_path, random_states(1)[0])
    path = tmp_path / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert '"model-00002-of-00003.safetensors" is truncated' in refusal(tmp_path).message


def test_a_fifo_as_a_shard_is_not_waited_for(tmp_path: Path) -> None:
    """Only regular files are opened."""
    write_shards(tmp_path, random_states(1)[0])
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    fifo(tmp_path / "model-00002-of-00003.safetensors")
    assert "is not a regular file" in refusal(tmp_path).message


def test_a_shard_behind_a_dangling_link_is_missing(tmp_path: Path) -> None:
    """A link to nothing is reported as a link to nothing, without a traceback."""
    write_shards(tmp_path, random_states(1)[0])
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    (tmp_path / "model-00002-of-00003.safetensors").symlink_to("gone")
    assert 'has lost its file "model-00002-of-00003.safetensors"' in refusal(tmp_path).message


@pytest.mark.parametrize("state", [b"", b'{"global_step": 5', b"[]", b'{"global_step": 1, "global_step": 2}'])
def test_a_damaged_state_of_the_trainer_is_refused(state: bytes, tmp_path: Path) -> None:
    """A trainer that was stopped while saving leaves truncated files."""
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "trainer_state.json").write_bytes(state)
    assert '"trainer_state.json" is damaged' in refusal(tmp_path).message


def test_the_log_of_a_long_training_is_not_parsed(tmp_path: Path) -> None:
    """The trainer's state may have millions of entries; the step is before them."""
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    log = [{"loss": 1.0, "learning_rate": 1e-5, "global_step": 1, "step": step} for step in range(20_000)]
    state = {"log_history": log, "global_step": 20_000, "epoch": float("nan"), "max_steps": 30_000}
    text = json.dumps(state, indent=2, sort_keys=True) + "\n"
    (tmp_path / "trainer_state.json").write_text(text)
    found = open_file(tmp_path)
    assert [step.value for step in found.steps] == [20_000]
    assert len(found.index.sources) == 2
    found.index.close()
    (tmp_path / "trainer_state.json").write_text(text[:-40])
    assert '"trainer_state.json" is truncated' in refusal(tmp_path).message
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    found = open_file(tmp_path)
    assert found.steps == ()
    found.index.close()


@pytest.mark.parametrize("step", ['"5"', "-1", "1.5", "true", "null", str(1 << 63), "[5]"])
def test_a_step_that_is_none_is_no_step(step: str, tmp_path: Path) -> None:
    """Only a natural number is a step."""
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    found = open_file(tmp_path)
    assert found.steps == ()
    found.index.close()


# Names alone


@pytest.mark.parametrize(
    ("names", "answer"),
    [
        (["model.safetensors"], True),
        (["model.safetensors", "config.json", "extra.safetensors"], True),
        (["model.safetensors", "best.safetensors"], False),
        (["model.safetensors", "config.json", "ckpt_100.pt", "ckpt_200.pt"], False),
        (["model_1.safetensors", "model_2.safetensors"], False),
        (["pytorch_model.bin.index.json"], True),
        (["w-00001-of-00002.pt"], True),
        (["optimizer-00001-of-00002.pt"], False),
        (["model.pt"], False),
        (["config.json"], False),
        ([], False),
    ],
)
def test_what_is_a_model_folder(names: list[str], answer: bool) -> None:
    """A folder is one model if its names say so, and a series of files is none."""
    assert holds_weights(names) is answer


@pytest.mark.parametrize("answer", [True, False])
def test_what_is_numbered(answer: bool) -> None:
    """A number makes a name part of a series only after a word for a step, or after nothing."""
    names = {
        True: ["checkpoint-500", "ckpt_1", "iter_0001000", "ep1-ba100", "epoch=1-step=5.ckpt", "global_step7", "7"],
        False: ["gemma-2b-it-4bit", "text_encoder_2", "vae", "seed1", "optimizer_0", "a7", "final", "mp_rank_00"],
    }
    assert [name for name in names[answer] if is_numbered(name) is not answer] == []


@given(
    names=st.sets(
        st.from_regex(
            r"(model|a)(-00001-of-0000[12])?(_1)?(\.fp16)?\.(safetensors|bin)(\.index\.json)?", fullmatch=True
        )
    )
)
def test_the_choice_of_weights_does_not_depend_on_the_listing(names: set[str]) -> None:
    """Whatever the folder contains, the same files are chosen, or none."""

    def choice(listed: list[str]) -> object:
        if not holds_weights(listed):
            return None
        try:
            return find_weights(listed)
        except InputRefused as refused:
            return refused.message

    assert choice(sorted(names)) == choice(sorted(names, reverse=True))


def test_scripts_that_convert_are_no_side_files() -> None:
    """The model's own code is copied; the training's is not, nor is the description of the original."""
    names = ["zero_to_fp32.py", "modeling_x.py", "README.md", "config.json", "..py", "x.json", "tokenizer.model"]
    assert find_side_files(names) == ("config.json", "modeling_x.py", "tokenizer.model")


# The command line


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_run_of_the_trainer_is_averaged(suffix: str, tmp_path: Path, ema_avg: Run) -> None:
    """Checkpoints are ordered by the step inside; the final model in the run, a copy of the last, is skipped."""
    states = random_states(3)
    for state, step in zip(states, (500, 1000, 1500), strict=True):
        write_shards(tmp_path / "run" / f"checkpoint-{step}", state, suffix=suffix)
        write_trainer(tmp_path / "run" / f"checkpoint-{step}", step)
    save_file(states[-1], tmp_path / "run" / "model.safetensors")
    write_trainer(tmp_path / "run", 1500)
    done = ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors")
    assert done.returncode == 0, done.stderr
    assert "trainer_state.json" in done.stderr
    assert "its name suggests a copy" in done.stderr
    assert "skipped" in done.stderr
    output = load(tmp_path / "ema.safetensors")
    for name, value in output.items():
        reference = reference_average([state[name] for state in states], [0.25, 0.25, 0.5])
        assert torch.equal(value, torch.from_numpy(reference).float().reshape(value.shape)), name
    assert set(output) == set(states[0])
    assert ema_avg("verify", "ema.safetensors").returncode == 0
    again = ema_avg("run", "--decay", "0.5", "-o", "ema.safetensors")
    assert "up to date" in again.stdout + again.stderr


def test_adapters_are_averaged_from_a_pattern(tmp_path: Path, ema_avg: Run) -> None:
    """``run/checkpoint-*/``, expanded by the shell or by the program, is the same average as that of the files."""
    states = random_states(2)
    for state, step in zip(states, (5, 10), strict=True):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
        (folder / "adapter_config.json").write_text("{}")
        write_trainer(folder, step)
    outputs = []
    shell = [f"run/checkpoint-{step}/" for step in (10, 5)]
    files = [f"run/checkpoint-{step}/adapter_model.safetensors" for step in (5, 10)]
    for number, names in enumerate(([*shell], ["run/checkpoint-*/"], ["run/checkpoint-*"], ["run"], files)):
        done = ema_avg(*names, "--decay", "0.5", "-o", f"{number}.safetensors")
        assert done.returncode == 0, done.stderr
        outputs.append(load(tmp_path / f"{number}.safetensors"))
    assert all(torch.equal(output[name], outputs[0][name]) for output in outputs for name in states[0])
    reference = reference_average([state["layer.weight"] for state in states], [0.5, 0.5])
    assert torch.equal(outputs[0]["layer.weight"], torch.from_numpy(reference).float())


def test_formats_may_be_mixed(tmp_path: Path, ema_avg: Run) -> None:
    """A sharded folder, a folder with one file and a file are one series, by their names."""
    states = random_states(3)
    write_shards(tmp_path / "run" / "step-1", states[0])
    (tmp_path / "run" / "step-2").mkdir()
    torch.save(states[1], tmp_path / "run" / "step-2" / "pytorch_model.bin")
    torch.save({"model": states[2], "step": 3}, tmp_path / "run" / "step-3.pt")
    done = ema_avg("run", "--method", "uniform", "-o", "mean.safetensors")
    assert done.returncode == 0, done.stderr
    output = load(tmp_path / "mean.safetensors")
    reference = reference_average([state["layer.bias"] for state in states], [1 / 3] * 3)
    assert torch.equal(output["layer.bias"], torch.from_numpy(reference).float())
    assert json.loads((tmp_path / "mean.report.json").read_text())["inputs"][0]["path"].endswith("step-1")


def test_a_folder_can_be_inspected_and_compared(tmp_path: Path, ema_avg: Run) -> None:
    """The other commands take checkpoint folders, too."""
    (state,) = random_states(1)
    write_shards(tmp_path / "a", state)
    save_file(state, tmp_path / "b.safetensors")
    assert ema_avg("diff", "a", "b.safetensors").returncode == 0
    done = ema_avg("inspect", "a")
    assert done.returncode == 0, done.stderr
    assert "3 shards" in done.stdout + done.stderr


def test_one_file_in_several_folders_is_opened_once_each(tmp_path: Path) -> None:
    """Two links to one shard are two names of one file, and not a repeated checkpoint."""
    first, second = random_states(2)
    write_shards(tmp_path / "checkpoint-1", first)
    write_shards(tmp_path / "checkpoint-2", second)
    shared = "model-00001-of-00003.safetensors"
    (tmp_path / "checkpoint-2" / shared).unlink()
    os.link(tmp_path / "checkpoint-1" / shared, tmp_path / "checkpoint-2" / shared)
    found = [open_file(tmp_path / f"checkpoint-{k}") for k in (1, 2)]
    assert found[0].index.identity != found[1].index.identity
    for checkpoint in found:
        checkpoint.index.close()


def test_a_configuration_truncated_during_the_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A truncated configuration is an error, because it may say that the weights are quantized."""
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    original = os.preadv

    def cut(descriptor: int, *arguments: Any) -> int:
        opened = Path(f"/proc/self/fd/{descriptor}").readlink()
        return 0 if opened.name == "config.json" else original(descriptor, *arguments)

    monkeypatch.setattr(os, "preadv", cut)
    with pytest.raises(InputChanged, match=r"config\.json.* ends at byte 0"):
        open_file(tmp_path)


# Weights in other files


def model_folder(folder: Path, state: State) -> Path:
    """Write a model of one file with its configuration."""
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def warnings_of(folder: Path) -> list[str]:
    """Return the warnings about what is not written; no file stays open."""
    before = open_files()
    checkpoint = open_file(folder)
    checkpoint.index.close()
    assert open_files() == before
    return [warning.message for warning in checkpoint.dropped]


def test_weights_in_other_files_are_a_warning(tmp_path: Path) -> None:
    """A projector beside a model, a dense layer in a folder inside, an adapter of another name: each is named."""
    folder = model_folder(tmp_path / "checkpoint-5", {"w": torch.ones(3, 3)})
    write_trainer(folder, 5)
    assert warnings_of(folder) == []
    torch.save({"proj.weight": torch.ones(2, 2), "proj.bias": torch.ones(2)}, folder / "mm_projector.bin")
    save_file({"linear.weight": torch.ones(2, 2)}, model_folder(folder / "2_Dense", {}) / "model.safetensors")
    (folder / "judge").mkdir()
    save_file({"lora_A.weight": torch.ones(2, 2)}, folder / "judge" / "adapter_model.safetensors")
    (message,) = warnings_of(folder)
    assert message.startswith("beside the weights there are files with tensors that are not in the output: ")
    for part in (
        '"mm_projector.bin" (2 tensors)',
        '"2_Dense/model.safetensors" (1 tensor)',
        '"judge/adapter_model.safetensors" (1 tensor)',
    ):
        assert part in message


def test_files_of_other_kinds_and_folders_behind_others_are_named(tmp_path: Path) -> None:
    """Pickles and archives of numpy that hold layers; a folder behind many without weights."""
    folder = model_folder(tmp_path / "checkpoint-5", {"w": torch.ones(3, 3)})
    for number in range(6):
        (folder / f"assets_{number}").mkdir()
    save_file({"x": torch.ones(2, 2)}, model_folder(folder / "value_head", {}) / "model.safetensors")
    np.savez(folder / "evaluations.npz", results=np.ones(3))
    (folder / "vocabulary.pkl").write_bytes(pickle.dumps({"a": [0.5]}))
    np.savez(folder / "head.npz", weight=np.ones((3, 3)), bias=np.ones(3))
    torch.save({"v.weight": torch.ones(2, 2)}, folder / "critic.pkl")
    (message,) = warnings_of(folder)
    named = message.partition("output: ")[2]
    assert named == '"critic.pkl" (1 tensor), "head.npz" (1 tensor), "value_head/model.safetensors" (1 tensor)'


def test_other_files_of_the_same_model_are_none(tmp_path: Path) -> None:
    """Copies, averages, other forms, numbered checkpoints, states of the trainer and damaged files are no warning."""
    state, other = {"w": torch.ones(3, 3)}, {"x": torch.ones(3, 3)}
    folder = model_folder(tmp_path / "run", state)
    torch.save(state, folder / "pytorch_model.bin")
    save_file(other, folder / "consolidated.safetensors")
    save_file(other, folder / "model_ema.safetensors")
    (folder / "broken.bin").write_bytes(b"no checkpoint")
    torch.save({"position": 5, "shuffle": torch.ones(4, dtype=torch.int64)}, folder / "sampler.bin")
    for name in ("best", "ema", "checkpoint-100", "optimizer_0", "global_step5", "original"):
        (folder / name).mkdir()
    save_file(state, folder / "best" / "model.safetensors")
    save_file(other, folder / "ema" / "model.safetensors")
    save_file(other, folder / "checkpoint-100" / "model.safetensors")
    torch.save(other, folder / "optimizer_0" / "x.pt")
    torch.save({"module": other}, folder / "global_step5" / "mp_rank_00_model_states.pt")
    torch.save(other, folder / "original" / "consolidated.00.pth")
    assert warnings_of(folder) == []
