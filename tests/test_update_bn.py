"""BatchNorm statistics recomputed in Python: equal to ``torch.optim.swa_utils.update_bn``, bit for bit, on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_module
from torch.optim import swa_utils

import ema_cli
from ema_cli.errors import InputRefused, NothingNew, UsageError

Build = Callable[[], nn.Module]


class Images(nn.Module):
    """A CNN with a custom momentum, a layer without running statistics, a shared one, dropout, and GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.BatchNorm2d(6, momentum=0.3)
        self.body = nn.Sequential(
            nn.Conv2d(2, 6, 3),
            self.shared,
            nn.ReLU(),
            nn.Conv2d(6, 6, 3),
            self.shared,
            nn.BatchNorm2d(6, track_running_stats=False),
            nn.GroupNorm(2, 6),
            nn.Conv2d(6, 4, 1),
            nn.BatchNorm2d(4, affine=False, momentum=None),
            nn.Flatten(),
            nn.Linear(4 * 4 * 4, 3),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return three numbers per image."""
        result: torch.Tensor = self.body(images)
        return result


def mlp() -> nn.Module:
    """Return an MLP with BatchNorm1d and statistics far from those of the data."""
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 7), nn.BatchNorm1d(7, eps=0.1))


def volumes() -> nn.Module:
    """Return a 3D network whose BatchNorm layer is initialized by its first batch."""
    model = nn.Sequential(nn.Conv3d(1, 3, 2), nn.LazyBatchNorm3d(), nn.ReLU())
    model(torch.randn(2, 1, 3, 3, 3))
    return model


def synchronized() -> nn.Module:
    """Return a network with SyncBatchNorm, without a process group."""
    model: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(Images())
    return model


ARCHITECTURES: dict[str, tuple[Build, tuple[int, ...]]] = {
    "cnn": (Images, (4, 2, 8, 8)),
    "mlp": (mlp, (16, 5)),
    "3d": (volumes, (3, 1, 4, 4, 4)),
    "sync": (synchronized, (4, 2, 8, 8)),
    "batchnorm alone": (lambda: nn.BatchNorm1d(5), (6, 5)),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def trained(build: Build, shape: tuple[int, ...], seed: int = 1) -> nn.Module:
    """Return a model with statistics of other data."""
    torch.manual_seed(seed)
    model = build()
    with torch.no_grad():
        for _ in range(3):
            model(5 * torch.randn(shape) + 1)
    return model.eval()


def batches(shape: tuple[int, ...], count: int = 4) -> list[torch.Tensor]:
    """Return batches, the last one smaller."""
    generator = torch.Generator().manual_seed(7)
    found = [torch.randn(shape, generator=generator) for _ in range(count)]
    return [*found[:-1], found[-1][: shape[0] - 1]]


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether all tensors of two models are equal, bit for bit."""
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_statistics_are_those_of_torch(name: str, tmp_path: Path) -> None:
    """The model has what torch's function gives it; weights, modes and momenta are unchanged."""
    build, shape = ARCHITECTURES[name]
    average = trained(build, shape)
    expected = copy.deepcopy(average)
    swa_utils.update_bn([(batch, "label") for batch in batches(shape)], expected)
    path = tmp_path / "ema.safetensors"
    save_file({key: value.clone() for key, value in average.state_dict().items()}, path)
    model = trained(build, shape, seed=2)
    modes = [(module, module.training, getattr(module, "momentum", None)) for module in model.modules()]
    update = ema_cli.update_bn(path, model, batches(shape))
    assert equal(model, expected)
    assert not equal(model, average)
    assert modes == [(module, module.training, getattr(module, "momentum", None)) for module in model.modules()]
    assert (update.batches, update.samples) == (4, 4 * shape[0] - 1)
    from_state = trained(build, shape, seed=3)
    parallel = swa_utils.AveragedModel(nn.DataParallel(from_state))
    wrapped = swa_utils.AveragedModel(average).state_dict()
    assert ema_cli.update_bn(wrapped, parallel, iter(batches(shape))).layers == update.layers
    held = dict(parallel.named_modules())["module.module"]
    assert equal(held, expected)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)),
        nn.Linear(3, 2),
        nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)),
        nn.InstanceNorm2d(2, track_running_stats=True),
    ],
    ids=["GroupNorm", "none", "track_running_stats=False", "InstanceNorm"],
)
def test_a_model_without_running_statistics(model: nn.Module, tmp_path: Path) -> None:
    """There is nothing to do, the message says that the average can be used, and no data are read, nothing written."""
    path = tmp_path / "ema.safetensors"
    save_file(model.state_dict(), path)

    def data() -> Iterator[torch.Tensor]:
        raise AssertionError
        yield torch.zeros(1)

    with pytest.raises(NothingNew, match=r"no BatchNorm layers.*ema\.safetensors.* can be used unchanged"):
        ema_cli.update_bn(path, model, data(), output=tmp_path / "new.safetensors")
    assert [found.name for found in tmp_path.iterdir()] == ["ema.safetensors"]


class Labelled(nn.Module):
    """A model that takes its inputs and labels by name."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor, note: str = "") -> torch.Tensor:
        """Return the normalized inputs."""
        assert (labels.shape, note) == ((4,), "kept")
        result: torch.Tensor = self.norm(pixel_values)
        return result


class Graph:
    """A batch that is no tensor, and moves itself."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def to(self, _: torch.device) -> Graph:
        """Return the batch."""
        return self


class OfGraphs(nn.BatchNorm1d):
    """A model that takes such batches."""

    def forward(self, graph: Any) -> torch.Tensor:
        """Return the normalized values."""
        return super().forward(graph.values)


def test_batches_of_every_kind() -> None:
    """A tensor, what begins with one, a dict of arguments, an object that moves itself: the same statistics."""
    values = [torch.randn(4, 3) for _ in range(3)]
    expected = nn.BatchNorm1d(3)
    swa_utils.update_bn(values, expected)
    labels = torch.zeros(4)
    for given in (values, [(v, labels) for v in values], [[v] for v in values], (v for v in values)):
        model = nn.BatchNorm1d(3)
        ema_cli.update_bn(nn.BatchNorm1d(3).state_dict(), model, given, device="cpu")
        assert equal(model, expected)
    named = [{"pixel_values": v, "labels": labels, "note": "kept"} for v in values]
    for batch in (named, [(one, 0) for one in named]):
        whole = Labelled()
        update = ema_cli.update_bn(Labelled().state_dict(), whole, batch, device="cpu")
        assert equal(whole.norm, expected)
        assert update.samples == 12
    graphs = OfGraphs(3)
    assert ema_cli.update_bn(OfGraphs(3).state_dict(), graphs, map(Graph, values), device="cpu").samples is None
    assert equal(graphs, expected)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ("text", "batch 2 of the data is a str"),
        ([[torch.ones(2, 3)]], "is a list that begins with a list"),
        ((), "is an empty tuple"),
        ({1: torch.ones(2, 3)}, "is a dict with a key of type int"),
        (None, "is a NoneType"),
        (torch.ones(0, 3), "batch 2 of the data has no elements"),
        (torch.ones(2, 3).numpy(), "is a ndarray"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_batches_are_refused_by_their_type(batch: object, words: str) -> None:
    """The message has the number and the type of the batch; statistics, modes and momenta are restored."""
    norm, dropout = nn.BatchNorm1d(3, momentum=0.4), nn.Dropout()
    model = nn.Sequential(norm, dropout)
    dropout.eval()
    average = copy.deepcopy(model)
    with pytest.raises(UsageError, match=words):
        ema_cli.update_bn(average.state_dict(), model, [torch.randn(4, 3), batch])
    assert equal(model, average)
    assert (norm.momentum, norm.training, dropout.training) == (0.4, True, False)


def test_all_differences_are_reported_at_once() -> None:
    """Missing, unexpected and differently shaped tensors; nothing is loaded."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = copy.deepcopy(model)
    state = {**nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(4)).state_dict(), "head.weight": torch.ones(1)}
    del state["1.running_mean"]
    with pytest.raises(InputRefused) as refused:
        ema_cli.update_bn(state, model, [torch.ones(2, 3)])
    message = refused.value.message
    assert '1 tensor missing: "1.running_mean"' in message
    assert '1 tensor not in the model: "head.weight"' in message
    assert '2 tensors of another shape: "0.weight" (5, 3) instead of (4, 3), "0.bias" (5,) instead of (4,)' in message
    assert equal(model, before)
    prefixed = {f"net.{name}": tensor for name, tensor in before.state_dict().items()}
    with pytest.raises(InputRefused) as refused:
        ema_cli.update_bn(prefixed, model, [torch.ones(2, 3)])
    assert refused.value.hint == 'strip_prefix="net."'
    ema_cli.update_bn(prefixed, model, [torch.ones(2, 3)], strip_prefix="net.")


def test_layers_without_shapes_are_refused() -> None:
    """A lazy layer needs a batch before weights can be loaded."""
    with pytest.raises(UsageError, match=r"get their shapes from the first batch .*\"weight\""):
        ema_cli.update_bn(nn.BatchNorm1d(3).state_dict(), nn.LazyBatchNorm1d(), [torch.ones(2, 3)])


def test_other_buffers_keep_their_values() -> None:
    """What a pass changes besides BatchNorm statistics is put back: running statistics of InstanceNorm, counters."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Unflatten(1, (3, 1)), nn.InstanceNorm1d(3, track_running_stats=True))
    average = copy.deepcopy(model)
    data = [torch.arange(6.0).view(2, 3)]
    with pytest.raises(ValueError, match="more than 1 spatial element"):  # of the model, as it is
        ema_cli.update_bn(average.state_dict(), model, data)
    model[1] = nn.Unflatten(1, (1, 3))
    model[2] = nn.InstanceNorm1d(1, track_running_stats=True)
    average = copy.deepcopy(model)
    ema_cli.update_bn(average.state_dict(), model, data)
    assert equal(model[2], average[2])
    assert not equal(model[0], average[0])


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_statistics_that_no_layer_of_torch_has() -> None:
    """A TorchScript model is not taken for one without statistics, nor a model that does not fit the average."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with pytest.raises(InputRefused, match=r'running statistics of 1 layer are not .*"1" \(RecursiveScriptModule\)'):
        ema_cli.update_bn(model.state_dict(), torch.jit.script(copy.deepcopy(model)), [torch.ones(2, 3)])
    with pytest.raises(InputRefused, match="7 tensors not in the model"):
        ema_cli.update_bn(model.state_dict(), nn.Identity(), [torch.ones(2, 3)])


def test_a_layer_kept_in_evaluation_mode_applies_its_statistics() -> None:
    """The layers after it get statistics of what they will see; its own are those of the average."""

    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self[0].eval()
            return self

    average = trained(lambda: Frozen(nn.BatchNorm1d(5), nn.ReLU(), nn.BatchNorm1d(5)), (16, 5))
    data = batches((16, 5))
    with torch.no_grad():
        expected = nn.BatchNorm1d(5, momentum=None)
        for batch in data:
            expected(average[:2](batch))  # type: ignore[index]
    model = copy.deepcopy(average)
    update = ema_cli.update_bn(average.state_dict(), model, data)
    assert equal(model[0], average[0])  # type: ignore[index]
    assert equal(model[2], expected)  # type: ignore[index]
    assert [layer.batches for layer in update.layers] == [0, 4]


def test_a_sharded_model_is_refused(tmp_path: Path) -> None:
    """A process holds parts of its tensors alone."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    average = copy.deepcopy(model.state_dict())
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        distribute_module(model[0], init_device_mesh("cpu", (1,)))
        with pytest.raises(UsageError, match="is sharded over processes"):
            ema_cli.update_bn(average, model, [torch.ones(2, 3)])
    finally:
        dist.destroy_process_group()


def test_arguments_of_other_types() -> None:
    """A list of averages, a model as average, arguments in another order."""
    model = nn.BatchNorm1d(3)
    for average, other in ((["a", "b"], model), (model, model), (model.state_dict(), [torch.ones(2, 3)]), ("a", None)):
        with pytest.raises(UsageError, match="update_bn was given a"):
            ema_cli.update_bn(average, other, [torch.ones(2, 3)])  # type: ignore[arg-type]


@pytest.mark.parametrize("momentum", [0, None, float("nan"), torch.tensor(0.1)])
def test_any_momentum_can_be_reported(momentum: Any, tmp_path: Path) -> None:
    """It is not used, and put back."""
    model = nn.BatchNorm1d(3)
    model.momentum = momentum
    save_file(model.state_dict(), tmp_path / "ema.safetensors")
    data = [torch.ones(2, 3)]
    ema_cli.update_bn(tmp_path / "ema.safetensors", model, data, output=tmp_path / "new.safetensors")
    assert model.momentum is momentum
    assert model.running_mean is not None
    assert model.running_mean.tolist() == [1, 1, 1]


def test_statistics_that_are_not_finite_are_refused() -> None:
    """The message names the layer; NaN and infinity never reach a file."""
    model = nn.Sequential(nn.Identity(), nn.BatchNorm1d(3))
    average = copy.deepcopy(model)
    with pytest.raises(InputRefused, match='running_mean of layer "1" has NaN or infinity in 1 of 3 channels'):
        ema_cli.update_bn(average.state_dict(), model, [torch.tensor([[1.0, 2.0, float("nan")]] * 2)])
