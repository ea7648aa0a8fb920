"""Links in a checkpoint folder: a file of the user is not copied into an output because a link leads to it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

import ema_cli
from ema_cli.report.model import Report
from tests.helpers.adapters import CONFIG as ADAPTER
from tests.helpers.adapters import factors, write_adapters
from tests.helpers.folders import model_folders, write_shards
from tests.helpers.outputs import listing
from tests.helpers.program import Run
from tests.helpers.series import State, random_states

SECRET = b"TOP SECRET\n"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A private file of the user."""
    path = tmp_path / "home" / ".ssh" / "id_rsa"
    path.parent.mkdir(parents=True)
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return path


def not_copied(report: Report) -> list[str]:
    """Return the warnings about side files that are not copied."""
    return [one.message for one in report.warnings if one.code == "companion-left-out"]


def holds_secret(folder: Path) -> bool:
    """Whether a file in a folder has the secret."""
    return any(b"SECRET" in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def direct(link: Path, secret: Path) -> None:
    """Link to the file."""
    link.symlink_to(secret)


def relative(link: Path, secret: Path) -> None:
    """Link to the file by a path that begins in the folder."""
    link.symlink_to(os.path.relpath(secret, link.parent))


def chain(link: Path, secret: Path) -> None:
    """Link to a link in the folder that leads out of it."""
    (link.parent / "notes.txt").symlink_to(secret)
    link.symlink_to("notes.txt")


def through_folder(link: Path, secret: Path) -> None:
    """Link to a file in a folder inside, which is a link itself."""
    (link.parent / "inner").symlink_to(secret.parent)
    link.symlink_to(f"inner/{secret.name}")


def through_lookalike(link: Path, secret: Path) -> None:
    """Link to a file beside the folder, whose path begins as that of the folder does."""
    other = link.parent.with_name(f"{link.parent.name}-more")
    other.mkdir()
    (other / "x").write_bytes(secret.read_bytes())
    link.symlink_to(other / "x")


LINKS = (direct, relative, chain, through_folder, through_lookalike)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "modeling_mine.py", "vocab.txt"])
@pytest.mark.parametrize("make", LINKS, ids=[make.__name__ for make in LINKS])
def test_a_link_out_of_the_folder_is_not_copied(
    make: Callable[[Path, Path], None], name: str, secret: Path, tmp_path: Path
) -> None:
    """A warning names link and file; the others are copied."""
    folders = model_folders(tmp_path / "run", random_states(2))
    (folders[-1] / name).unlink(missing_ok=True)
    make(folders[-1] / name, secret)
    report = ema_cli.average(folders, decay=0.5, output=f"{tmp_path}/out/", dtype="bfloat16")
    (message,) = not_copied(report)
    assert f'{name}" is a link to "' in message
    assert "outside the checkpoint folder" in message
    assert name not in listing(tmp_path / "out")
    assert not holds_secret(tmp_path / "out")
    assert {"model.safetensors", "config.json", "tokenizer.json"} - {name} <= listing(tmp_path / "out")
    assert not holds_secret(tmp_path / "out.report.json")


def test_the_configuration_of_an_adapter_is_not_taken_from_outside(secret: Path, tmp_path: Path) -> None:
    """Also where it is written anew, with other ranks: its other values would be in the output."""
    secret.write_text(json.dumps({**ADAPTER, "password": "SECRET"}))
    for folder in write_adapters(tmp_path / "run", [factors(1), factors(2)]):
        (folder / "adapter_config.json").unlink()
        (folder / "adapter_config.json").symlink_to(secret)
    report = ema_cli.average(tmp_path / "run", method="uniform", output=f"{tmp_path}/out/", lora="exact")
    assert len(not_copied(report)) == 1
    assert "lora-scale-not-stored" in {one.code for one in report.warnings}
    assert listing(tmp_path / "out") == {"adapter_model.safetensors"}


def hub_cache(root: Path, made: list[State]) -> list[Path]:
    """Write snapshots as the cache of the Hub has them; return their folders."""
    folders = []
    for number, state in enumerate(made):
        repository = root / f"models--me--step-{number}"
        snapshot = repository / "snapshots" / "0123abc"
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir()
        save_file(state, repository / "blobs" / "a1")
        (repository / "blobs" / "b2").write_text("{}")
        (snapshot / "model.safetensors").symlink_to("../../blobs/a1")
        (snapshot / "config.json").symlink_to("../../blobs/b2")
        folders.append(snapshot)
    return folders


def test_the_cache_of_the_hub_consists_of_links(secret: Path, tmp_path: Path) -> None:
    """Blobs of the same repository are copied, those of another are not."""
    folders = hub_cache(tmp_path / "hub", random_states(2))
    (folders[-1] / "tokenizer.json").symlink_to("../../../models--me--step-0/blobs/b2")
    (folders[-1] / "vocab.txt").symlink_to(secret)
    report = ema_cli.average(folders, decay=0.5, output=f"{tmp_path}/out/")
    assert listing(tmp_path / "out") == {"model.safetensors", "config.json"}
    assert [message.split('"')[1].split("/")[-1] for message in not_copied(report)] == ["tokenizer.json", "vocab.txt"]


def test_a_part_of_a_pipeline_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    """Its folder is inside the snapshot, and its links go up one more step."""
    folders = []
    for folder in hub_cache(tmp_path / "hub", random_states(2)):
        (folder / "unet").mkdir()
        for name in ("model.safetensors", "config.json"):
            (folder / "unet" / name).symlink_to(f"../{(folder / name).readlink()}")
        folders.append(folder / "unet")
    assert not not_copied(ema_cli.average(folders, decay=0.5, output=f"{tmp_path}/out/"))
    assert listing(tmp_path / "out") == {"model.safetensors", "config.json"}


def test_blobs_that_are_a_link_themselves_are_no_blobs(secret: Path, tmp_path: Path) -> None:
    """A folder that only looks like the cache does not lead elsewhere."""
    folders = hub_cache(tmp_path / "hub", random_states(2))
    blobs = folders[-1].parent.parent / "blobs"
    (folders[-1] / "model.safetensors").unlink()
    (blobs / "a1").rename(folders[-1] / "model.safetensors")
    (blobs / "b2").unlink()
    blobs.rmdir()
    blobs.symlink_to(secret.parent)
    (folders[-1] / "config.json").unlink()
    (folders[-1] / "config.json").symlink_to("../../blobs/id_rsa")
    assert len(not_copied(ema_cli.average(folders, decay=0.5, output=f"{tmp_path}/out/"))) == 1
    assert listing(tmp_path / "out") == {"model.safetensors"}


def test_a_folder_that_is_a_link_is_a_checkpoint(tmp_path: Path) -> None:
    """As ``latest -> checkpoint-200``, or a link in the path to it; links inside the folder are copied, too."""
    folders = model_folders(tmp_path / "real" / "run", random_states(2))
    (folders[-1] / "tokenizer.json").rename(folders[-1] / "tokenizer-v2.json")
    (folders[-1] / "tokenizer.json").symlink_to("tokenizer-v2.json")
    (tmp_path / "run").symlink_to("real/run")
    (tmp_path / "latest").symlink_to("run/checkpoint-200")
    report = ema_cli.average(
        [tmp_path / "run" / "checkpoint-100", tmp_path / "latest"],
        decay=0.5,
        output=f"{tmp_path}/out/",
        order="given",
    )
    assert not not_copied(report)
    assert listing(tmp_path / "out") == {"model.safetensors", "config.json", "tokenizer.json"}
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()


def test_the_index_of_shards_may_be_named(secret: Path, tmp_path: Path) -> None:
    """Then the side files are those beside it."""
    indexes = []
    for number, state in enumerate(random_states(2)):
        folder = tmp_path / f"checkpoint-{number}"
        indexes.append(write_shards(folder, state))
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer.json").symlink_to(secret)
    assert len(not_copied(ema_cli.average(indexes, decay=0.5, output=f"{tmp_path}/out/"))) == 1
    assert listing(tmp_path / "out") == {"model.safetensors", "config.json"}


@pytest.mark.parametrize("command", ["average", "plan", "batch", "batch --dry-run"])
def test_copied_side_files_are_shown(command: str, tmp_path: Path, ema_avg: Run) -> None:
    """On the screen of every command that copies them, or would; a second run shows them again."""
    model_folders(tmp_path / "run", random_states(2))
    for _ in range(2):
        done = ema_avg(*command.split(), "run", "--decay", "0.5", "-o", "out/")
        assert done.returncode == 0, done.stderr
        printed = f"{done.stdout}{done.stderr}".splitlines()
        shown = [line for line in printed if "config.json" in line and "tokenizer.json" in line]
        assert shown, done.stderr
