"""Models of transformers: runs of its Trainer, shards as it and the hub write them, ties, tokenizers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.program import Run
from tests.helpers.series import State, data_section, load
from tests.interop.judge import DECAY, assert_fold, average, disturb, fold, names_in
from tests.interop.models import gpt2, llama, output_of

STEPS = (2, 4, 6)
MODEL_FILES = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


def bert() -> Any:
    """Return a tiny BERT for masked words, with two ties."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForMaskedLM(BertConfig(vocab_size=32, **sizes, max_position_embeddings=16))


def tokenizer() -> Any:
    """Return a tokenizer that knows seven words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(["a b c d e f g"], trainers.WordLevelTrainer(special_tokens=["[UNK]", "[PAD]"]))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the Trainer: six steps, saved every two with everything that it saves, and then the final model."""
    from transformers import Trainer, TrainingArguments

    folder = tmp_path_factory.mktemp("trainer") / "out"
    generator = torch.Generator().manual_seed(1)
    words = [torch.randint(0, 9, (8,), generator=generator) for _ in range(24)]
    settings: dict[str, Any] = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "learning_rate": 0.05}
    arguments = TrainingArguments(output_dir=str(folder), max_steps=6, save_steps=2, **settings)
    data: Any = [{"input_ids": line, "labels": line} for line in words]
    trainer = Trainer(model=gpt2(), args=arguments, train_dataset=data, processing_class=tokenizer())
    trainer.train()
    trainer.save_model()
    return folder


def loaded(folder: Path) -> Any:
    """Load a folder as transformers does."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    model = AutoModelForMaskedLM if AutoConfig.from_pretrained(folder).model_type == "bert" else AutoModelForCausalLM
    return model.from_pretrained(folder, local_files_only=True)


def assert_model(folder: Path, checkpoints: list[Path]) -> None:
    """Assert that a folder loads as the average of checkpoints, and that it computes what that average does."""
    model, expected = loaded(folder), loaded(checkpoints[-1])
    states: list[State] = [loaded(checkpoint).state_dict() for checkpoint in checkpoints]
    assert_fold(model.state_dict(), states)
    expected.load_state_dict(fold(states))
    assert output_of(model).equal(output_of(expected))


def test_a_run_of_the_trainer_becomes_a_model(run: Path, ema_avg: Run, tmp_path: Path) -> None:
    """The folder of a run is a series of checkpoint folders; the average is a folder that transformers loads.

    The final model is a copy of the last checkpoint, and is not counted twice.
    """
    assert "model.safetensors" in names_in(run)
    average(ema_avg, run, "-o", "averaged/")
    assert_model(tmp_path / "averaged", [run / f"checkpoint-{step}" for step in STEPS])


def test_the_steps_are_those_of_the_trainer(run: Path, ema_avg: Run, tmp_path: Path) -> None:
    """Each checkpoint has the step in its trainer_state.json, in whatever order the folders are given."""
    folders = [run / f"checkpoint-{step}" for step in (6, 2, 4)]
    report = json.loads(average(ema_avg, *folders, "-o", "ema.safetensors", "--json").stdout)
    inputs = [(entry["step"], Path(entry["path"]).name) for entry in report["inputs"]]
    assert inputs == [(step, f"checkpoint-{step}") for step in STEPS]
    assert load(tmp_path / "ema.safetensors").keys() == load(run / "checkpoint-2" / "model.safetensors").keys()


def test_what_belongs_to_the_model_goes_along(run: Path, ema_avg: Run, tmp_path: Path) -> None:
    """Configuration and tokenizer of the last checkpoint are in the output; the state of the trainer is not."""
    from transformers import AutoTokenizer

    average(ema_avg, run, "-o", "averaged/")
    averaged = tmp_path / "averaged"
    assert {name for name in names_in(averaged) if "report" not in name} == {*MODEL_FILES, "model.safetensors"}
    for name in MODEL_FILES:
        assert (averaged / name).read_bytes() == (run / "checkpoint-6" / name).read_bytes()
    words = "g a [PAD] unknown b"
    assert AutoTokenizer.from_pretrained(averaged)(words).input_ids == tokenizer()(words).input_ids


def test_file_and_folder_hold_the_same_tensors(run: Path, ema_avg: Run, tmp_path: Path) -> None:
    """The weights in an output folder have the bytes of an output file; the same holds for averages of single files."""
    average(ema_avg, run, "-o", "averaged/")
    average(ema_avg, run, "-o", "one.safetensors")
    average(ema_avg, *(run / f"checkpoint-{step}" / "model.safetensors" for step in STEPS), "-o", "files.safetensors")
    one = data_section(tmp_path / "one.safetensors")
    assert data_section(tmp_path / "averaged" / "model.safetensors") == one
    assert data_section(tmp_path / "files.safetensors") == one


def write_bin(model: Any, folder: Path, size: str) -> None:
    """Write ``pytorch_model.bin``, in shards if it is larger than ``size``."""
    from huggingface_hub import save_torch_state_dict

    pattern = "pytorch_model{suffix}.bin"
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    save_torch_state_dict(
        model.state_dict(), folder, max_shard_size=size, filename_pattern=pattern, safe_serialization=False
    )


def write_safetensors(model: Any, folder: Path, size: str) -> None:
    """Write ``model.safetensors``, in shards if it is larger than ``size``."""
    model.save_pretrained(folder, max_shard_size=size)


SAVED: dict[str, tuple[Callable[[Any, Path, str], None], str]] = {
    "model.safetensors.index.json": (write_safetensors, "4KB"),
    "model.safetensors": (write_safetensors, "1GB"),
    "pytorch_model.bin.index.json": (write_bin, "4KB"),
    "pytorch_model.bin": (write_bin, "1GB"),
}
"""How a folder is given such a file, with the size of its shards."""


@pytest.mark.parametrize("named", SAVED)
@pytest.mark.parametrize("make", [gpt2, llama, bert])
def test_models_as_they_are_saved(make: Any, named: str, ema_avg: Run, tmp_path: Path) -> None:
    """One file or shards, safetensors or pickles, ties or none, float32 or bfloat16: the average loads, to the bit."""
    model = make()
    write, size = SAVED[named]
    folders = [tmp_path / "saved" / f"step-{number}" for number in (9, 10, 11)]
    for number, folder in enumerate(folders):
        disturb(model, number)
        write(model, folder, size)
        assert named in names_in(folder)
    average(ema_avg, *reversed(folders), "-o", "averaged/")
    assert_model(tmp_path / "averaged", folders)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_shards_of_a_given_size_load(make: Any, ema_avg: Run, tmp_path: Path) -> None:
    """With --max-shard-size the output is in shards that transformers loads; only a single tensor may be larger."""
    model = make()
    folders = [tmp_path / "saved" / f"checkpoint-{number}" for number in range(3)]
    for number, folder in enumerate(folders):
        disturb(model, number)
        model.save_pretrained(folder)
    average(ema_avg, tmp_path / "saved", "-o", "averaged/", "--max-shard-size", "6KB")
    index = json.loads((tmp_path / "averaged" / "model.safetensors.index.json").read_text())
    shards = {name: load(tmp_path / "averaged" / name) for name in set(index["weight_map"].values())}
    assert len(shards) > 1
    assert {name: shard for shard, tensors in shards.items() for name in tensors} == index["weight_map"]
    sizes = {shard: sum(tensor.nbytes for tensor in tensors.values()) for shard, tensors in shards.items()}
    assert all(sizes[shard] <= 6000 or len(tensors) == 1 for shard, tensors in shards.items())
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert_model(tmp_path / "averaged", folders)


def test_an_average_of_a_model_is_a_checkpoint_again(run: Path, ema_avg: Run) -> None:
    """The output folder is verified, is up to date, equals the output file, and differs from the last checkpoint."""
    average(ema_avg, run, "-o", "averaged/")
    average(ema_avg, run, "-o", "one.safetensors")
    assert ema_avg("verify", "averaged/").returncode == 0
    assert "up to date" in average(ema_avg, run, "-o", "averaged/").stdout
    assert ema_avg("diff", "averaged", "one.safetensors").returncode == 0
    assert ema_avg("diff", "averaged", run / "checkpoint-6").returncode == 1


def test_runs_of_the_trainer_are_a_batch(run: Path, ema_avg: Run, tmp_path: Path) -> None:
    """Each run in a folder of runs gets its average, a folder that loads."""
    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / "runs" / name)
    done = ema_avg("batch", "runs", "--decay", DECAY, "-o", "{run}/averaged/")
    assert done.returncode == 0, done.stderr
    for name in ("a", "b"):
        assert_model(tmp_path / "runs" / name / "averaged", [run / f"checkpoint-{step}" for step in STEPS])


def test_a_folder_with_one_checkpoint_folder_named(run: Path, ema_avg: Run) -> None:
    """A single checkpoint folder is one checkpoint: its average equals it, and inspect shows its format."""
    done = ema_avg("inspect", run / "checkpoint-4", "--json")
    assert done.returncode == 0, done.stderr
    assert "safetensors" in done.stdout
    refused = ema_avg(run / "checkpoint-4", run / "nothing-there", "--decay", DECAY, "-o", "x.safetensors")
    assert refused.returncode == 7
