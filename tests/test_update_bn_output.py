"""The files that ``update-bn`` writes: the average with other statistics, its report, and what is made of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import swa_utils

import ema_cli
from ema_cli.errors import InputRefused, OutputError, OutputLocked, UsageError
from ema_cli.verification.checks import verify
from ema_cli.write.lock import output_lock
from tests.helpers.reports import check

STATISTICS = ("1.running_mean", "1.running_var", "1.num_batches_tracked")


def build() -> nn.Module:
    """Return the model of the checkpoints in ``run_folder``."""
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def data() -> list[torch.Tensor]:
    """Return batches with other statistics than those of the training."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(8, 6, generator=generator) * 2 + 1 for _ in range(7)]


def expected(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of an average after torch's function."""
    model = build()
    model.load_state_dict(load_file(path))
    swa_utils.update_bn(data(), model)
    return model.state_dict()


def header(path: Path) -> dict[str, Any]:
    """Return the entries of a header, in their order."""
    raw = path.read_bytes()
    found: dict[str, Any] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return found


def data_section(path: Path) -> bytes:
    """Return the bytes after the header."""
    raw = path.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


@pytest.fixture
def average(run_folder: Path, tmp_path: Path) -> Path:
    """An average of real checkpoints."""
    path = tmp_path / "ema.safetensors"
    ema_cli.average(run_folder, decay=0.5, output=path)
    return path


def test_only_the_statistics_have_other_bytes(average: Path, tmp_path: Path) -> None:
    """Entries, their order and offsets, metadata and other bytes are those of the input; a second run repeats them."""
    output = tmp_path / "ema-bn.safetensors"
    ema_cli.update_bn(average, build(), data(), output=output)
    old, new = header(average), header(output)
    metadata = [entries.pop("__metadata__") for entries in (old, new)]
    assert list(old.items()) == list(new.items())
    assert metadata[1] == metadata[0] | {"ema_avg.update_bn_batches": "7"}
    before, after = data_section(average), data_section(output)
    ranges = [old[name]["data_offsets"] for name in STATISTICS]
    changed = {at for begin, end in ranges for at in range(begin, end)}
    assert len(before) == len(after)
    assert {at for at in range(len(before)) if before[at] != after[at]} <= changed
    wanted = expected(average)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in load_file(output).items())
    ema_cli.update_bn(average, build(), data(), output=tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == output.read_bytes()


def test_the_report(average: Path, tmp_path: Path) -> None:
    """It keeps to the schema; it lists the digest of the input, the model, the data, each layer before and after."""
    output = tmp_path / "ema-bn.safetensors"
    ema_cli.update_bn(average, build(), data(), output=output, batches=5)
    report = json.loads((tmp_path / "ema-bn.report.json").read_text())
    check(report)
    update, (layer,) = report["batch_norm"], report["batch_norm"]["layers"]
    assert (update["model"], update["data"], update["batches"], update["samples"]) == ("Sequential", "list", 5, 40)
    assert (layer["name"], layer["kind"], layer["channels"], layer["momentum"]) == ("1", "BatchNorm1d", 5, 0.1)
    old, new = load_file(average)["1.running_var"].double(), load_file(output)["1.running_var"].double()
    assert layer["variance"]["norm_before"] == pytest.approx(float(old.norm()), rel=1e-12)
    assert layer["variance"]["norm_after"] == pytest.approx(float(new.norm()), rel=1e-12)
    assert layer["variance"]["largest_change"] == pytest.approx(float((new - old).abs().max()), rel=1e-12)
    assert (
        report["inputs"][0]["sha256"]
        == json.loads((tmp_path / "ema.report.json").read_text())["averages"][0]["output"]["sha256"]
    )
    actions = {tensor["name"]: tensor["action"] for tensor in report["averages"][0]["tensors"]}
    assert {name for name, action in actions.items() if action == "recomputed"} == set(STATISTICS)


def test_an_output_in_the_place_of_its_average_is_verified_in_part(average: Path) -> None:
    """The average that was updated is gone: nothing is copied from it that could be compared, and nothing is wrong."""
    ema_cli.update_bn(average, build(), data(), output=average, force=True)
    found = verify(average)
    assert found.ok, found.failures
    assert found.unchecked[0] == f'the input "{average}" (overwritten by this output)'


def test_the_output_is_verified(average: Path, tmp_path: Path) -> None:
    """All copied tensors are compared with the input; a change of either is found, also of the statistics."""
    output = tmp_path / "ema-bn.safetensors"
    ema_cli.update_bn(average, build(), data(), output=output)
    found = verify(output)
    assert found.ok
    assert "not checked: 3 BatchNorm statistics (they need the model and the data)" in found.checks[-1].message
    raw = bytearray(output.read_bytes())
    raw[-1] ^= 1
    output.write_bytes(raw)
    assert [check.name for check in verify(output).failures] == ["sha256", "samples"]
    ema_cli.update_bn(average, build(), data(), output=output, force=True)
    average.write_bytes(average.read_bytes()[:-1] + b"?")
    assert [check.name for check in verify(output).failures] == ["input 1", "samples"]


def test_a_folder_stays_a_folder(run_folder: Path, tmp_path: Path) -> None:
    """Shards, their index and side files are copied; the same statistics are in a single file, if that is wanted."""
    (run_folder / "config.json").write_text("{}")
    folder, output, single = tmp_path / "ema", tmp_path / "ema-bn", tmp_path / "single.safetensors"
    ema_cli.average(run_folder, decay=0.5, output=f"{folder}/", max_shard_size=100)
    ema_cli.update_bn(folder, build(), data(), output=f"{output}/")
    ema_cli.update_bn(folder, build(), data(), output=single)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in output.iterdir())
    index = "model.safetensors.index.json"
    assert (output / index).read_bytes() == (folder / index).read_bytes()
    ema_cli.average(run_folder, decay=0.5, output=tmp_path / "whole.safetensors")
    tensors = {name: t for shard in output.glob("*.safetensors") for name, t in load_file(shard).items()}
    for found in (tensors, load_file(single)):
        wanted = expected(tmp_path / "whole.safetensors")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    assert verify(output).ok
    with pytest.raises(OutputError, match="already exists"):
        ema_cli.update_bn(folder, build(), data(), output=f"{output}/")
    ema_cli.update_bn(folder / index, build(), data(), output=f"{output}/", force=True)
    assert verify(output).ok
    with pytest.raises(UsageError, match="is inside the input"):
        ema_cli.update_bn(folder, build(), data(), output=f"{folder}/new/")


def test_any_checkpoint_can_be_updated(run_folder: Path, tmp_path: Path) -> None:
    """A torch file becomes a safetensors file that is an output of ema-avg; its prefixes are removed."""
    source = run_folder / "ckpt_300.pt"
    state = torch.load(source, weights_only=False)["model"]
    wrapped = tmp_path / "ddp.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, wrapped)
    save_file(state, tmp_path / "plain.safetensors")
    for path in (source, wrapped):
        output = tmp_path / f"{path.stem}-bn.safetensors"
        ema_cli.update_bn(path, build(), data(), output=output)
        wanted = expected(tmp_path / "plain.safetensors")
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in load_file(output).items())
        assert ema_cli.inspect(output).made_by_us
        assert verify(output).ok
    with pytest.raises(UsageError, match="is no folder of safetensors files"):
        ema_cli.update_bn(source, build(), data(), output=f"{tmp_path}/folder/")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_are_kept(average: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """A model of another type runs in its own; the file keeps its types, whichever of the two is narrower."""
    output = tmp_path / "new.safetensors"
    ema_cli.update_bn(average, build().to(dtype), [batch.to(dtype) for batch in data()], output=output)
    model = build().to(dtype)
    model.load_state_dict(load_file(average))
    swa_utils.update_bn([batch.to(dtype) for batch in data()], model)
    new, wanted = load_file(output), model.state_dict()
    for name in STATISTICS[:2]:
        assert new[name].dtype is torch.float32
        assert torch.equal(new[name], wanted[name].float())
    assert torch.equal(new["0.weight"], load_file(average)["0.weight"])


def test_a_statistic_too_large_for_its_type(run_folder: Path, tmp_path: Path) -> None:
    """It would be infinite in the file, which is refused."""
    average = tmp_path / "half.safetensors"
    ema_cli.average(run_folder, decay=0.5, output=average, dtype="float16")
    with pytest.raises(InputRefused, match='running_var of layer "1" has NaN or infinity'):
        ema_cli.update_bn(average, build(), [1e4 * batch for batch in data()], output=tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_tied_names_that_were_dropped(tmp_path: Path) -> None:
    """A model may have more names than a file with ``--tied drop``, and lack the counters of old versions of torch."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in ("2.weight", STATISTICS[2])}
    path, output = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    save_file(state, path, {"2.weight": "0.weight"})
    ema_cli.update_bn(path, model, [torch.randn(4, 3)], output=output)
    assert load_file(output).keys() == state.keys()
    assert torch.equal(load_file(output)["1.running_mean"], model.state_dict()["1.running_mean"])


def test_layers_that_see_no_batch_keep_their_statistics(tmp_path: Path) -> None:
    """An auxiliary head that is not called is reported; if no layer is called, nothing is written."""

    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.head = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> Any:
            return self.used(x)

    model = Headed()
    model.state_dict()["head.running_mean"].fill_(5)
    path, output = tmp_path / "ema.safetensors", tmp_path / "new.safetensors"
    save_file(model.state_dict(), path)
    ema_cli.update_bn(path, Headed(), [torch.ones(2, 3)], output=output)
    assert load_file(output)["head.running_mean"].tolist() == [5, 5, 5]
    report = json.loads((tmp_path / "new.report.json").read_text())
    assert [warning["code"] for warning in report["warnings"]] == ["layers-unreached"]
    assert [layer["batches"] for layer in report["batch_norm"]["layers"]] == [1, 0]
    model.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="no BatchNorm layer of the model"):
        ema_cli.update_bn(path, model, [torch.ones(2, 3)], output=tmp_path / "never.safetensors")
    assert not (tmp_path / "never.safetensors").exists()


def test_what_exists_is_replaced_with_force_alone(average: Path, tmp_path: Path) -> None:
    """Also the input itself, atomically; never a checkpoint that ema-avg did not write, or a locked output."""
    wanted = expected(average)
    with pytest.raises(OutputError, match="already exists"):
        ema_cli.update_bn(average, build(), data(), output=average)
    ema_cli.update_bn(average, build(), data(), output=average, force=True)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in load_file(average).items())
    assert verify(average, output_only=True).ok
    foreign = tmp_path / "best.safetensors"
    save_file(load_file(average), foreign)
    os.link(foreign, tmp_path / "link.safetensors")
    for output in (foreign, tmp_path / "link.safetensors"):
        with pytest.raises(UsageError, match="is the input, which is no output of ema-avg"):
            ema_cli.update_bn(foreign, build(), data(), output=output, force=True)
    with output_lock(tmp_path / "new.safetensors"), pytest.raises(OutputLocked):
        ema_cli.update_bn(average, build(), data(), output=tmp_path / "new.safetensors")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_appears_during_the_pass_is_not_replaced(average: Path, tmp_path: Path) -> None:
    """The user's code has time to write there itself."""
    output = tmp_path / "new.safetensors"

    def writing() -> Iterator[torch.Tensor]:
        output.write_text("precious")
        yield from data()

    with pytest.raises(OutputError, match="already exists"):
        ema_cli.update_bn(average, build(), writing(), output=output)
    assert output.read_text() == "precious"
    assert not (tmp_path / "new.report.json").exists()


def test_a_snapshot_with_new_statistics_is_not_continued(run_folder: Path, tmp_path: Path) -> None:
    """The average of the checkpoints would contain them."""
    live, output = tmp_path / "live.safetensors", tmp_path / "new.safetensors"
    ema = ema_cli.EMA(build(), 0.9)
    ema.update()
    ema.save(live)
    ema_cli.update_bn(live, build(), data(), output=output)
    with pytest.raises(InputRefused, match="were recomputed"):
        ema_cli.average(run_folder, continue_from=output, output=tmp_path / "more.safetensors")
    ema_cli.average(run_folder, continue_from=live, output=tmp_path / "more.safetensors")


def test_it_is_an_output_for_the_other_commands(average: Path, run_folder: Path, tmp_path: Path) -> None:
    """A series skips it, an average says what is in its way, and it is not continued unless statistics are copied."""
    output = run_folder / "ema-bn.safetensors"
    ema_cli.update_bn(average, build(), data(), output=output)
    plan = ema_cli.plan(run_folder, decay=0.5)
    assert [skipped.path.name for skipped in plan.series.skipped if skipped.made_by_us] == ["ema-bn.safetensors"]
    with pytest.raises(OutputError, match="made by ema-avg update-bn"):
        ema_cli.average(run_folder, decay=0.5, output=output)
    with pytest.raises(InputRefused, match="were recomputed"):
        ema_cli.average(run_folder, continue_from=output, output=tmp_path / "more.safetensors")
    ema_cli.average(run_folder, decay=0.5, output=output, force=True)
    assert verify(output).ok
    early = {"decay": 0.5, "buffers": "last"}
    ema_cli.average(run_folder, output=output, to_step=300, force=True, **early)  # type: ignore[arg-type]
    ema_cli.update_bn(output, build(), data(), output=output, force=True)
    ema_cli.average(run_folder, continue_from=output, output=tmp_path / "continued.safetensors", buffers="last")
    ema_cli.average(run_folder, output=tmp_path / "whole.safetensors", **early)  # type: ignore[arg-type]
    with safe_open(tmp_path / "continued.safetensors", "pt") as file:
        assert "ema_avg.update_bn_batches" not in file.metadata()
    a, b = (load_file(tmp_path / f"{name}.safetensors") for name in ("continued", "whole"))
    for name in a:
        torch.testing.assert_close(a[name], b[name])
