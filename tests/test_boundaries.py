"""Edges of what is accepted, and branches that few inputs reach: each test fails if a comparison there is changed."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ema_cli.dtypes import BY_NAME
from ema_cli.errors import InputRefused, SystemExhausted
from ema_cli.fold import address_space
from ema_cli.fold.geometry.trajectory import _plane
from ema_cli.fold.value_errors import refuse_overflow
from ema_cli.formats.folder import Folder
from ema_cli.formats.huggingface.weight_names import find_weights
from ema_cli.formats.inert_pickle.values import Global, Inert
from ema_cli.formats.state_dict.tree import parts
from ema_cli.records.plan import Action, Buffers, PlannedTensor
from ema_cli.weights.methods import Decay, Method, Weighting
from ema_cli.weights.share_warnings import warn_of_shares
from ema_cli.weights.timeline import Timeline
from ema_cli.write.temp_names import is_nonempty_folder
from tests.helpers.makers import open_file, save
from tests.hostile.zips import Ending, Record, checkpoint


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (torch.tensor(200, dtype=torch.uint8), [200]),
        (torch.tensor(-56, dtype=torch.int8), []),
        (torch.tensor(3, dtype=torch.int16), [3]),
        (torch.tensor(1 << 40), [1 << 40]),
        (torch.arange(100)[70], [70]),
        (torch.tensor([3]), []),
        (torch.tensor(3.0), [3]),
        (torch.tensor(3.5), []),
    ],
)
def test_a_tensor_of_one_whole_number_is_a_step(step: torch.Tensor, expected: list[int], tmp_path: Path) -> None:
    """Signed or not, of any size, at any offset of its storage, a float too; not a list of one."""
    found = open_file(save(tmp_path / "x.pt", {"model": {"w": torch.zeros(2)}, "step": step}))
    assert [one.value for one in found.steps] == expected


def test_a_folder_is_nonempty_if_it_has_an_entry(tmp_path: Path) -> None:
    """Missing and empty folders make room for an output; a hidden file is an entry, and a file is no folder."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".hidden").touch()
    assert not is_nonempty_folder(tmp_path / "missing")
    assert not is_nonempty_folder(tmp_path / "empty")
    assert is_nonempty_folder(tmp_path / "full")
    with pytest.raises(NotADirectoryError):
        is_nonempty_folder(tmp_path / "full" / ".hidden")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_the_path_of_a_run_is_oriented(seed: int, scale: float) -> None:
    """The first axis points from the first checkpoint to the last; the second to the furthest along it."""
    points = scale * np.random.default_rng(seed).standard_normal((6, 40))
    centred = points - points.mean(axis=0)
    path, averages, explained = _plane(points @ points.T, 5)
    assert path[-1, 0] >= path[0, 0]
    assert path[np.abs(path[:, 1]).argmax(), 1] > 0
    assert averages.shape == (1, 2)
    own = centred[:5] - centred[:5].mean(axis=0)
    variances = np.linalg.svd(own, compute_uv=False)[:2] ** 2 / (own**2).sum()
    assert explained == pytest.approx(tuple(variances))


def test_the_end_of_an_archive_may_have_any_comment(tmp_path: Path) -> None:
    """The end record is found behind the longest comment, and in front of a comment with the signature of one."""
    for number, comment in enumerate((b"", b"x" * 65_535, b"PK\x05\x06" + b"\xff" * 18, b"PK\x05\x06" * 5)):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(checkpoint(ending=Ending(comment=comment)))
        assert open_file(path).index.layouts
    path.write_bytes(checkpoint(ending=Ending(comment=b"x" * 100, comment_size=99)))
    with pytest.raises(InputRefused, match="no valid zip directory"):
        open_file(path)


def test_a_record_may_end_where_the_directory_begins_and_not_one_byte_later(tmp_path: Path) -> None:
    """A record takes its header, its name and its bytes; any of them in the directory means damage."""
    data = b"0123456789"
    path = tmp_path / "x.pt"
    path.write_bytes(checkpoint(Record(name="archive/last", data=data)))
    assert open_file(path).index.layouts
    path.write_bytes(checkpoint(Record(name="archive/last", data=data, packed=len(data) + 1, size=len(data) + 1)))
    with pytest.raises(InputRefused, match="reaches into the directory"):
        open_file(path)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "..\\x"])
def test_a_path_is_no_name_in_a_folder(name: str, tmp_path: Path) -> None:
    """What leads out of the folder, in the notation of any system, is called so; other missing files are missing."""
    with pytest.raises(InputRefused, match="which is not a name in this folder"):
        Folder(tmp_path).open(name)
    with pytest.raises(InputRefused, match="which is missing"):
        Folder(tmp_path).open("model.safetensors")


@pytest.mark.parametrize(("shape", "refused"), [((2, 3), True), ((0, 3), False), ((2, True), False), ("x", False)])
def test_an_empty_tensor_is_a_placeholder_if_its_declared_shape_has_elements(
    shape: Any, tmp_path: Path, *, refused: bool
) -> None:
    """DeepSpeed declares the true shapes; an empty shape, or what is no shape, makes no placeholder."""
    value = {"module": {"w": torch.empty(0)}, "param_shapes": [{"w": shape}], "optimizer": None}
    path = save(tmp_path / "x.pt", value)
    if not refused:
        assert open_file(path).index.layouts
        return
    with pytest.raises(InputRefused, match="1 empty placeholder instead of weights"):
        open_file(path)


def test_the_address_space_counts_what_is_used_and_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of exactly the sum is enough, one byte less is not, and the hint names a limit that is."""
    buffers = Buffers(threads=1, block_elements=1 << 20, bytes_per_element=8)
    used = 1 << 30
    needed = used + address_space._work_bytes(buffers, 1)
    monkeypatch.setattr(address_space, "_used_bytes", lambda: used)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (needed, needed))
    address_space.check_address_space(buffers, 1)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (needed - 1, needed))
    with pytest.raises(SystemExhausted, match="is needed") as refused:
        address_space.check_address_space(buffers, 1)
    assert refused.value.hint == f"ulimit -v {needed >> 10}"


def test_a_dominating_first_checkpoint_is_told_how_many_it_takes() -> None:
    """1/(1-d) checkpoints fill the window of a decay."""
    method = Method(name="ema", decay=Decay.of(0.999), per="checkpoint", init="first")
    weights = (0.999**12, *(0.001 * 0.999 ** (12 - i) for i in range(1, 13)))
    (warning,) = warn_of_shares(Weighting(method=method, weights=weights, shares=weights), Timeline(count=13))
    assert warning.code == "first-dominates"
    assert "there are 13 checkpoints; decay 0.999 per checkpoint needs about 1,000" in warning.message


@pytest.mark.parametrize(("value", "wider"), [(1e300, "float64"), (3e38, "float32"), (1e5, "float32")])
def test_a_wider_type_is_one_that_holds_the_number(value: float, wider: str) -> None:
    """The hint of an overflow names types whose largest number is not below the value."""
    tensor = PlannedTensor(
        name="w",
        shape=(1,),
        elements=1,
        dtype=BY_NAME["F16"],
        action=Action.AVERAGED,
        positions=(0,),
        copied_from=0,
        offset=0,
        tied_to=None,
    )
    with pytest.raises(InputRefused, match="too large for float16") as refused:
        refuse_overflow(tensor, np.array([value]), np.array([np.inf], np.float16).view(np.uint8))
    assert wider in refused.value.hint


def test_a_checkpoint_inside_a_checkpoint_is_opened_and_what_is_beside_it_is_listed(tmp_path: Path) -> None:
    """The weights are two levels down; an average beside the inner checkpoint is stated."""
    inner = {"model": {"w": torch.ones(2)}, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}
    path = save(tmp_path / "x.pt", {"model": inner, "ema": {"w": torch.zeros(2)}, "step": 3})
    found = open_file(path)
    assert found.key == "model.model"
    assert "ema" in found.ignored
    assert any('"ema"' in text for text in found.choice)


def test_an_archive_on_several_disks_is_damaged(tmp_path: Path) -> None:
    """An entry that names another disk is refused, although all of it fits into the directory."""
    path = tmp_path / "x.pt"
    path.write_bytes(checkpoint(Record(name="archive/last", data=b"0", disk=1)))
    with pytest.raises(InputRefused, match="no valid zip directory"):
        open_file(path)


def test_an_index_of_a_known_name_goes_before_others() -> None:
    """An index of an unknown name counts only if there is no other."""
    unknown, known = "mine.safetensors.index.json", "model.safetensors.index.json"
    assert find_weights([unknown]).index == unknown
    assert find_weights([unknown, known]).index == known


def test_an_object_with_attributes_is_no_module() -> None:
    """Its parts are its items; only a module has its parameters among the attributes."""
    kind = Global(module="collections", name="OrderedDict")
    made = Inert(kind=kind, state={"_metadata": 1}, items={"w": 2})
    assert dict(parts(made)) == {"w": 2}
