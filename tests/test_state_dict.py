"""The location of the weights and the step in the checkpoints that trainers write."""

from __future__ import annotations

import argparse
import collections
import enum
import functools
import pathlib
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ema_cli.errors import EmaAvgError, InputRefused, UsageError
from ema_cli.formats.inert_pickle.values import Global, Inert
from ema_cli.formats.state_dict.find_weights import find_state_dict
from ema_cli.formats.torch.objects import TensorRef
from ema_cli.formats.torch.storages import StorageRef
from ema_cli.records.series import FoundStep
from tests.helpers.makers import archive, expected, open_file, read_file, save
from tests.hostile.opcodes import mapping, stop, tensor

STORAGE = StorageRef(key="0", kind="FloatStorage", elements=4)
T = TensorRef(storage=STORAGE, dtype_name="float32", offset=0, shape=(4,), strides=(1,))
SCALAR = TensorRef(storage=STORAGE, dtype_name="float32", offset=0, shape=(), strides=())


class Phase(enum.Enum):
    """An enumeration in a trainer's state."""

    TRAIN = 1


class Block(nn.Module):
    """A block with a buffer that is not saved, and one that is."""

    kept: torch.Tensor
    lost: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scaler = nn.Linear(2, 2)
        self.register_buffer("kept", torch.randn(2))
        self.register_buffer("lost", torch.randn(2), persistent=False)
        self.register_buffer("none", None)
        self.register_parameter("absent", None)


class Net(nn.Module):
    """A model with every kind of part."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), Block()])
        self.choices = nn.ModuleDict({"gradient": nn.Linear(1, 1, bias=False)})
        self.parts = nn.ParameterList([torch.randn(2), torch.randn(3)])
        self.table = nn.ParameterDict({"x": torch.randn(1)})
        self.tied = self.layers[0]
        self.free = nn.Parameter(torch.randn(2, 3).t())


def keys_of(root: object, *keys: str) -> tuple[str, list[str]]:
    """Return where the weights were found, and their names."""
    found = find_state_dict(root, keys)
    return found.key, list(found.tensors)


def steps_of(path: Path) -> list[tuple[str, int]]:
    """Return the units and values of the steps inside a checkpoint."""
    checkpoint = open_file(path)
    checkpoint.index.close()
    return [(step.unit, step.value) for step in checkpoint.steps]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_training_checkpoint_gives_its_model(tmp_path: Path, protocol: int, *, legacy: bool) -> None:
    """Whatever a trainer stores with the weights, they equal ``torch.load`` and the step is found."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    torch.stack([parameter.sum() for parameter in model.parameters()]).sum().backward()
    optimizer.step()
    history: collections.defaultdict[str, list[float]] = collections.defaultdict(list)
    history["loss"].append(0.5)
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": np.int64(1200),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs")),
        "loss": np.float32(0.25),
        "rng": {"numpy": np.random.RandomState(0).get_state(), "torch": torch.get_rng_state(), "py": random.getstate()},
        "history": history,
        "phase": Phase.TRAIN,
        "collate": functools.partial(max, 1),
        "shape": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float32,
    }
    path = save(tmp_path / "train.pt", checkpoint, protocol=protocol, legacy=legacy)
    assert read_file(path) == expected(torch.load(path, weights_only=False)["model"])
    found = open_file(path)
    assert found.key == "model"
    assert set(found.ignored) == set(checkpoint) - {"model"}
    assert found.steps[0] == FoundStep(value=1200, unit="step", source="inside: step")
    assert found.ties == {"tied.weight": "layers.0.weight", "tied.bias": "layers.0.bias"}
    found.index.close()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickled_module_equals_its_state_dict(tmp_path: Path, protocol: int, *, legacy: bool, wrapped: bool) -> None:
    """Names, order, shapes and bytes of a pickled module are those of ``module.state_dict()``."""
    module = Net()
    path = save(tmp_path / "m.pt", {"net": module} if wrapped else module, protocol=protocol, legacy=legacy)
    checkpoint = open_file(path)
    assert [layout.name for layout in checkpoint.index.layouts] == list(module.state_dict())
    checkpoint.index.close()
    assert read_file(path) == expected(module.state_dict())


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickled_graph_module_equals_its_state_dict(tmp_path: Path, protocol: int) -> None:
    """A traced module is pickled as a call with the module's dictionary, and read as a module."""
    module = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    for value in (module, {"model": module, "step": 1}):
        assert read_file(save(tmp_path / "m.pt", value, protocol=protocol)) == expected(module.state_dict())


def test_an_object_without_weights_is_named() -> None:
    """The refusal names the class, and says what to save."""
    with pytest.raises(InputRefused, match=r"an object of the class x\.Net") as refused:
        find_state_dict(Inert(Global("x", "Net"), state={"w": 1}))
    assert refused.value.hint == "save the weights: torch.save(model.state_dict(), path)"


def test_the_usual_names_win_in_order() -> None:
    """The usual names are looked for in order, whatever else the file contains."""
    others = {"generator": {"w": T}, "loss_ema": SCALAR, "mean": T, "optimizer": {"state": {"w": T}}}
    for name in ("state_dict", "model_state_dict", "model", "module", "net", "network", "params", "weights"):
        assert keys_of({**others, name: {"a": T}}) == (name, ["a"])
    assert keys_of({"weights": {"a": T}, "state_dict": {"b": T}})[0] == "state_dict"


def test_a_plain_state_dict_is_the_top_level() -> None:
    """Tensors at the top level are the weights, also when a part has a name that trainers use for other things."""
    names = ["scaler.weight", "degradation.0.bias", "weights", "model", "optim_head.w", "rng"]
    assert keys_of(dict.fromkeys(names, T)) == ("", names)


def test_stray_scalars_and_counters_are_ignored() -> None:
    """A model is preferred to a root with a few tensors."""
    root = {"net_g": {"w": T}, "loss_ema": SCALAR, "rng_state": T, "epoch": 3}
    found = find_state_dict(root)
    assert (found.key, list(found.tensors)) == ("net_g", ["w"])
    assert found.ignored == ("loss_ema", "rng_state", "epoch")
    assert found.warnings == ()


def test_two_models_are_refused_by_name() -> None:
    """Two children that could both be the model are refused with their names and a hint."""
    with pytest.raises(InputRefused, match='several models, or parts of one: "generator", "discriminator"') as raised:
        find_state_dict({"generator": {"w": T}, "discriminator": {"w": T}, "optimizer_g": {"w": T}})
    assert "--key" in raised.value.hint
    with pytest.raises(InputRefused, match='"encoder", "head"'):
        find_state_dict({"encoder": {"w": T}, "head": T})


@pytest.mark.parametrize("name", ["ema", "model_ema", "state_dict_ema", "ema_model", "swa", "averaged"])
def test_weights_win_over_the_trainers_average(name: str) -> None:
    """Weights are preferred to an average by its name, which is stated; an average alone is used with a warning."""
    found = find_state_dict({name: {"w": T}, "model": {"v": T}})
    assert (found.key, list(found.tensors)) == ("model", ["v"])
    assert f'not used: "{name}" (by its name an average); chosen by --key {name}' in found.choice[0]
    assert found.warnings == ()
    alone = find_state_dict({name: {"w": T}, "model": None, "epoch": 1})
    assert (alone.key, list(alone.tensors)) == (name, ["w"])
    assert "averages averages" in alone.warnings[0]


def test_nested_layers_are_joined_by_dots() -> None:
    """Megatron nests its layers several levels deep below ``model``."""
    layers = {"embedding": {"word": {"weight": T}, "position": {"weight": T}}, "encoder": {"layers.0.w": T}}
    root = {"model": {"language_model": layers}, "iteration": 5, "rng_state": [1], "opt_param_scheduler": {"x": 1}}
    key, names = keys_of(root)
    assert key == "model"
    prefix = "language_model."
    assert names == [
        f"{prefix}embedding.word.weight",
        f"{prefix}embedding.position.weight",
        f"{prefix}encoder.layers.0.w",
    ]


def test_a_checkpoint_in_a_checkpoint_is_looked_into() -> None:
    """The same rule applies to a single child without a usual name, so its optimizer stays out of the weights."""
    inner = {"model": {"w": T}, "optimizer": {"state": {"w": T}}, "ema": {"w": T}}
    found = find_state_dict({"checkpoint": inner, "version": 2})
    assert (found.key, list(found.tensors)) == ("checkpoint.model", ["w"])
    assert found.ignored == ("version", "optimizer", "ema")
    assert (len(found.choice), found.warnings, found.dropped) == (1, (), ())
    assert keys_of({"a": {"b": {"c": {"w": T}}}}) == ("a.b.c", ["w"])


def test_an_optimizer_is_never_the_model() -> None:
    """Subtrees of optimizers, schedulers, scalers and the like have no weights."""
    for name in (
        "optimizer",
        "optim_states",
        "lr_schedulers",
        "grad_scaler",
        "rng",
        "dataloader",
        "callbacks",
        "loops",
    ):
        with pytest.raises(InputRefused, match="no state dict found"):
            find_state_dict({name: {"state": {"w": T}}, "step": 1})


@pytest.mark.parametrize("root", [None, 3, [T, T], T, {}, {"model": {}}, {0: {"w": T}}, {"model": {0: T}}, ((),)])
def test_no_weights_are_refused(root: object) -> None:
    """A file without named tensors is refused, and the error lists its contents."""
    with pytest.raises(InputRefused, match="no state dict found"):
        find_state_dict(root)


def test_a_key_goes_anywhere() -> None:
    """``--key`` follows dotted names, names with dots in them, and modules; any name is allowed."""
    module = Inert(Global("x", "Net"), state={"_parameters": {"w": T}, "_buffers": {}, "_modules": {}})
    top = Inert(Global("x", "Net"), state={"_parameters": {}, "_buffers": {}, "_modules": {"backbone": module}})
    root = {"a": {"b.c": {"w": T}, "b": {"d": {"v": T}}}, "grad_model": {"u": T}, "ema": top, "lone": T}
    assert keys_of(root, "a.b.c") == ("a.b.c", ["w"])
    assert keys_of(root, "a.b.d") == ("a.b.d", ["v"])
    assert keys_of(root, "grad_model") == ("grad_model", ["u"])
    assert keys_of(root, "ema.backbone") == ("ema.backbone", ["w"])
    for key in ("missing", "a.missing", "lone", "a.b.c.w", ""):
        if key:
            with pytest.raises(UsageError, match=f'no tensors under --key "{key}"') as raised:
                find_state_dict(root, (key,))
            assert '"grad_model"' in raised.value.hint


def test_the_key_of_the_top_level_takes_all_but_the_trainer() -> None:
    """``--key .`` takes several models together, without the optimizer next to them."""
    root = {"g": {"w": T}, "d": {"w": T}, "optimizer": {"state": {"w": T}}, "epoch": 1}
    found = find_state_dict(root, (".",))
    assert (found.key, list(found.tensors)) == ("", ["g.w", "d.w"])
    assert set(found.ignored) == {"optimizer", "epoch"}


def test_several_keys_give_each_part_its_prefix() -> None:
    """Each part has its key in front of its names; a key may lead to one tensor; the order is that of the keys."""
    root = {"m": {"w": T, "b": T}, "h": {"0": {"w": T}}, "lone": T, "flat.a": T, "flat.b": T, "list": [{"w": T}]}
    assert keys_of(root, "h", "m") == ("h, m", ["h.0.w", "m.w", "m.b"])
    assert keys_of(root, "m", "lone", "flat") == ("m, lone, flat", ["m.w", "m.b", "lone", "flat.a", "flat.b"])
    assert keys_of(root, "list.0", "h.0") == ("list.0, h.0", ["list.0.w", "h.0.w"])
    with pytest.raises(UsageError, match='no tensors under --key "missing"'):
        find_state_dict(root, ("m", "missing"))


@pytest.mark.parametrize("keys", [("m", "m.w"), ("m.w", "m"), ("m", "m"), ("m", "."), ("", "m")])
def test_keys_that_overlap_are_refused(keys: tuple[str, ...]) -> None:
    """No tensor is written twice."""
    with pytest.raises(UsageError, match="name each part once"):
        find_state_dict({"m": {"w": {"x": T}}}, keys)


@pytest.mark.parametrize("kind", [list, tuple])
def test_the_parts_of_a_list_are_listed_and_chosen_by_number(kind: type) -> None:
    """A list is refused with what its parts hold; ``--key`` takes one by number, also further inside."""
    module = Inert(Global("x", "Net"), state={"_parameters": {"w": T}, "_buffers": {}, "_modules": {}})
    root = kind([module, 3, {"state": {}, "param_groups": []}, {"model": {"v": T}, "step": 1}, [{"u": T}]])
    with pytest.raises(InputRefused, match=f"holds a {kind.__name__} of 5 parts: 0: a module with 1 tensor") as refused:
        find_state_dict(root)
    assert "3: a dictionary with 1 tensor" in refused.value.message
    assert [proposal.changes for proposal in refused.value.proposals] == [{"key": ("0",)}, {"key": ("3",)}]
    assert keys_of(root, "0") == ("0", ["w"])
    assert keys_of(root, "3.model") == ("3.model", ["v"])
    assert keys_of(root, "4.0") == ("4.0", ["u"])
    assert keys_of(root, "0", "3.model")[1] == ["0.w", "3.model.v"]
    for key in ("1", "5", "-1", "00", "x"):
        with pytest.raises(UsageError, match="no tensors under --key") as wrong:
            find_state_dict(root, (key,))
        assert '"0", "1", "2", "3", "4"' in wrong.value.hint


def copied(name: str) -> dict[str, object]:
    """Return flat names around that of a weight."""
    return {f"ema_optimizer.state.{name}.ema_params": T, f"ema_optimizer.state.{name}.step": SCALAR}


FLAT = {"fc.weight": T, "fc.bias": T, **copied("fc.weight"), **copied("fc.bias")}


def test_flat_names_that_repeat_the_weights_are_a_copy() -> None:
    """They are not the model, are stated, and have the names of the weights under their key."""
    found = find_state_dict(FLAT)
    assert (found.key, list(found.tensors), found.dropped) == ("", ["fc.weight", "fc.bias"], ())
    assert 'not used: "ema_optimizer" (by its name an average); chosen by --key ema_optimizer' in found.choice[0]
    ema = find_state_dict(FLAT, ("ema_optimizer",))
    assert list(ema.tensors) == ["fc.weight", "fc.bias"]
    assert '"state.fc.weight.ema_params" is "fc.weight"' in ema.choice[0]
    assert list(find_state_dict({"model": {"w": T}, "e": {"shadow": {"w": T}}}, ("e",)).tensors) == ["shadow.w"]
    both = find_state_dict({"x": {"fc.weight": T}, "y": {"state": {"fc.weight.avg": T}}}, ("x", "y"))
    assert list(both.tensors) == ["x.fc.weight", "y.state.fc.weight.avg"]  # there is no model to compare with


@pytest.mark.parametrize(
    "names",
    [
        ["fc.weight", "head.fc.weight.original"],
        ["fc.weight", "lora.fc.weight.down", "other.b"],
        ["model.fc.weight", "ema.fc.weight"],
        ["fc.weight", "backbone.fc.weight"],
        ["fc.weight", "fc.weight.extra"],
    ],
)
def test_flat_names_of_a_model_are_no_copy(names: list[str]) -> None:
    """A group is a copy only if each of its tensors has the shape of the weight in its name; a prefix is not enough."""
    other = TensorRef(storage=STORAGE, dtype_name="float32", offset=0, shape=(2, 2), strides=(2, 1))
    root = {name: other if name.endswith(("original", "down")) else T for name in names}
    assert keys_of(root) == ("", names)


def test_two_tensors_of_one_dotted_name_are_refused() -> None:
    """Joined names of two tensors must not be equal."""
    with pytest.raises(InputRefused, match=r'two tensors with the name "a\.b"'):
        find_state_dict({"model": {"a.b": T, "a": {"b": T}}})


def itself() -> dict[str, object]:
    """Return a dictionary that contains itself."""
    made: dict[str, object] = {"w": T}
    made["self"] = made
    return made


def test_what_contains_itself_is_a_leaf() -> None:
    """Cycles of dictionaries and of modules end where they begin."""
    assert keys_of({"model": itself()}) == ("model", ["w"])
    module = Inert(Global("x", "Net"))
    module.state = {"_parameters": {"w": T}, "_buffers": {}, "_modules": {"inner": module}}
    found = find_state_dict(module)
    assert (list(found.tensors), found.ignored) == (["w"], ("inner",))
    chain: dict[str, object] = {"loss": SCALAR}
    chain["next"] = chain
    assert "loss" in keys_of(chain)[1]


def shared(levels: int, width: int, leaf: object) -> object:
    """Return dictionaries with ``width`` names each for the next level."""
    for _ in range(levels):
        leaf = {f"k{number}": leaf for number in range(width)}
    return leaf


def laughing_list() -> list[object]:
    """Return a list with an endless text."""
    made: list[object] = []
    for _ in range(99):
        made = [made, made]
    return made


def everything_in_itself(width: int) -> dict[str, object]:
    """Return a dictionary that is its own value under many names."""
    made: dict[str, object] = {}
    made.update({f"k{number}": made for number in range(width)})
    return made


BUSHEL = {f"k{number}": {"w": T} for number in range(5000)}
LAUGHS = {
    "below the model": {"model": {"w": T, "x": shared(60, 2, {})}},
    "empty": {"model": {"w": T}, "x": shared(60, 2, {})},
    "wide": shared(4, 600, {}),
    "itself": everything_in_itself(600),
    "tensors": {"model": shared(40, 2, {"w": T})},
    "long names": {"model": {"n" * 50_000: shared(16, 2, {"w": T})}},
    "step": {"model": {"w": T}, "step": Inert(Inert(laughing_list()))},
    "key": {"model": {"w": T}, Inert(laughing_list()): 1},
    "beside": {"model": {"w": T}, **{f"b{number}": BUSHEL for number in range(5000)}},
    "list": [shared(60, 2, {"w": T})] * 900,
    "flat": {"w": T, **{f"{'p.' * 20}{number}.x.w": T for number in range(3000)}},
}


@pytest.mark.parametrize("keys", [(), (".",), (".x", "model.w")])
@pytest.mark.parametrize("case", sorted(LAUGHS))
def test_shared_values_cost_no_more_than_their_bytes(
    case: str, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small pickle that shares its values many times over is read or refused at once."""
    monkeypatch.setattr("ema_cli.formats.state_dict.tree.MOST_TENSORS", 100_000)
    monkeypatch.setattr("ema_cli.formats.state_dict.tree._MOST_TEXT", 1 << 24)
    began = time.process_time()
    try:
        found = find_state_dict(LAUGHS[case], keys)
    except EmaAvgError:
        pass
    else:
        assert {name.rpartition(".")[2] for name in found.tensors} == {"w"}
    assert time.process_time() - began < 5


def test_long_names_are_not_repeated_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long name of a parent is not written out for each of its many children."""
    monkeypatch.setattr("ema_cli.formats.state_dict.tree._MOST_TEXT", 1 << 20)
    with pytest.raises(InputRefused, match="names of excessive length"):
        find_state_dict({"model": {"n" * 60_000: shared(6, 2, {"w": T})}})


def test_laughing_files_are_read_or_refused(tmp_path: Path) -> None:
    """The same, in a file: a shared value as key, flag and step, outside or inside the weights."""
    laugh = b"]" + b"".join(b"q%c0](h%ch%ce" % (level, level, level) for level in range(90))
    record = b"cx\ny\n" + laugh + b"\x85R"
    flags = b"}" + record + b"\x88s"
    view = tensor()
    flagged = view[: -len(b"tR")] + flags + b"tR"
    for root in (
        mapping(model=mapping(w=tensor()), step=laugh + b")R"),
        b"}(" + record + b"K\x01" + b"X\x05\x00\x00\x00model" + mapping(w=tensor()) + b"u",
        mapping(model=mapping(w=flagged)),
    ):
        began = time.monotonic()
        path = archive(tmp_path / "laugh.pt", stop(root), {"0": bytes(16)})
        assert read_file(path) == expected({"w": torch.zeros(4)})
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("value", "steps"),
    [
        (7, [7]),
        (np.int32(7), [7]),
        (np.uint8(200), [200]),
        (np.int64(1 << 40), [1 << 40]),
        (np.dtype(">i4").type(5), [5]),
        (np.array([300], dtype=">i2")[0], [300]),
        (torch.tensor(9), [9]),
        (torch.tensor(200, dtype=torch.uint8), [200]),
        (torch.tensor(-1), []),
        (-1, []),
        (True, []),
        (7.0, [7]),
        (7.5, []),
        (float("inf"), []),
        (float("nan"), []),
        (np.float32(1000.0), [1000]),
        (np.float16(0.5), []),
        (np.dtype(">f8").type(6), [6]),
        (np.float64(1e-310), []),
        (np.bool_(1), []),
        (torch.tensor(7.0), [7]),
        (torch.tensor(7.5), []),
        (torch.tensor(8.0, dtype=torch.float64), [8]),
        (torch.tensor([7]), []),
        (torch.empty((), dtype=torch.int64, device="meta"), []),
        ("7", [7]),
        ("7.0", []),
        ("9" * 30, []),
        (None, []),
        (1 << 70, []),
    ],
)
def test_whole_numbers_are_steps(tmp_path: Path, protocol: int, value: object, steps: list[int]) -> None:
    """Whole numbers of Python and numpy, in digits, and in zero-dimensional tensors are steps; nothing else is."""
    path = save(tmp_path / "step.pt", {"model": {"w": torch.ones(1)}, "step": value}, protocol=protocol)
    assert steps_of(path) == [("step", step) for step in steps]


def test_steps_come_best_first(tmp_path: Path) -> None:
    """The order of the keys decides, however a step is stored; epochs come last."""
    others = {"epoch": 2, "updates": 6, "step": 5, "global_step": torch.tensor(3), "num_updates": np.int64(4)}
    path = save(tmp_path / "steps.pt", {"state_dict": {"w": torch.ones(1)}, **others})
    assert steps_of(path) == [("step", 3), ("step", 5), ("step", 4), ("step", 6), ("epoch", 2)]


@pytest.mark.parametrize(
    ("others", "steps"),
    [
        ({"train_state": {"step": torch.tensor(8)}}, [("step", 8)]),
        ({"iteration": 4, "args": 1}, [("step", 4)]),
        ({"global_steps": 4, "epoch": -1}, [("step", 4)]),
        (
            {
                "optimizer_history": [{"num_updates": 10}, {"num_updates": 20}],
                "extra_state": {"train_iterator": {"epoch": 3}},
            },
            [("step", 20), ("epoch", 3)],
        ),
        ({"optimizer_history": []}, []),
    ],
)
def test_trainers_keep_steps_in_other_places(
    tmp_path: Path, others: dict[str, object], steps: list[tuple[str, int]]
) -> None:
    """The steps of torchtitan, Megatron, DeepSpeed and fairseq are found at their usual keys."""
    assert steps_of(save(tmp_path / "steps.pt", {"model": {"w": torch.ones(1)}, **others})) == steps


def test_a_step_outside_the_file_is_refused(tmp_path: Path) -> None:
    """A step tensor that is not inside its record shows that the file is damaged."""
    step = tensor(
        b"(X\x07\x00\x00\x00storage" + b"ctorch\nLongStorage\nX\x01\x00\x00\x001X\x03\x00\x00\x00cpuK\x01tQ", shape=()
    )
    root = mapping(model=mapping(w=tensor()), step=step.replace(b"(\x8a\x01\x01t", b")"))
    path = archive(tmp_path / "step.pt", stop(root), {"0": bytes(16), "1": bytes(7)})
    with pytest.raises(InputRefused, match=r'about storage "1": declared with 1 element .* stored with 7 bytes'):
        open_file(path)
    archive(path, stop(root), {"0": bytes(16), "1": (77).to_bytes(8, "little")})
    assert steps_of(path) == [("step", 77)]
