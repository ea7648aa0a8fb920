"""The storages of torch files: contradictions are refused, and what torch itself saves and loads is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ema_cli.errors import InputRefused
from tests.helpers.makers import expected, open_file, read_file
from tests.hostile.storage_cases import STORAGES


def torch_loads(path: Path) -> bool:
    """Whether torch reads a file without running code from it."""
    try:
        torch.load(path, weights_only=True, mmap=False)
    except Exception:  # noqa: BLE001 - torch raises many types
        return False
    return True


@pytest.mark.parametrize("name", sorted(STORAGES))
def test_torch_is_the_judge(tmp_path: Path, name: str) -> None:
    """What torch refuses is refused; what it loads is read, with the same values, or the case has a reason."""
    case, path = STORAGES[name], tmp_path / "c.pt"
    path.write_bytes(case.archive())
    assert torch_loads(path) == (not case.word or bool(case.stricter))
    if case.word:
        with pytest.raises(InputRefused, match=r"."):
            open_file(path)
    else:
        loaded = torch.load(path, weights_only=True, mmap=False)
        weights = loaded.get("model", loaded)
        assert read_file(path) == expected(weights)


BYTES = torch.arange(16, dtype=torch.uint8)
SAVED = {
    "tied": {"a": BYTES, "b": BYTES, "c": BYTES[4:]},
    "tied floats of eight bits": {"a": BYTES.view(torch.float8_e4m3fn), "b": BYTES.view(torch.float8_e4m3fn)[3:]},
    "types side by side": {"a": BYTES[:8].view(torch.float8_e4m3fn), "b": BYTES[8:].view(torch.uint16)},
    "bytes beside": {"a": BYTES[:8], "b": BYTES[8:].view(torch.float8_e5m2)},
    "one tensor of many": {"a": torch.zeros(100)[7:9]},
    "no elements": {"a": torch.zeros(0), "b": torch.zeros(0, dtype=torch.int32), "c": torch.zeros(3)},
    "complex": {"a": torch.zeros(3, dtype=torch.complex64)},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", sorted(SAVED))
def test_what_torch_saves_is_read(tmp_path: Path, name: str, *, legacy: bool) -> None:
    """Views of one storage with one type, or side by side with several, are read from both formats."""
    path = tmp_path / "c.pt"
    torch.save(SAVED[name], path, _use_new_zipfile_serialization=not legacy)
    assert read_file(path) == expected(SAVED[name])


@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_saves_with_two_types_in_the_same_bytes_is_refused(tmp_path: Path, *, legacy: bool) -> None:
    """The refusal names both tensors and says what to save instead; the copies it asks for are read."""
    path, codes = tmp_path / "c.pt", BYTES.view(torch.float8_e4m3fn)
    torch.save({"codes": BYTES, "w": codes}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputRefused, match=r'"codes" \(uint8\) and "w" \(float8_e4m3fn\)') as refused:
        open_file(path)
    assert "tensor.clone()" in refused.value.hint
    torch.save({"codes": BYTES, "w": codes.clone()}, path, _use_new_zipfile_serialization=not legacy)
    assert read_file(path) == expected({"codes": BYTES, "w": codes})
