"""DCP folders as they are planned, written with a few lines of Python: the plan is tested without the writer."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ema_cli.dtypes import BY_TORCH_NAME
from ema_cli.records.files import Placement
from ema_cli.records.plan import Action, PlannedTensor
from tests.helpers.makers import tensor_bytes


def planned(tensors: Mapping[str, torch.Tensor]) -> list[PlannedTensor]:
    """Return the plan of tensors, one after the other."""
    found: list[PlannedTensor] = []
    offset = 0
    for name, tensor in tensors.items():
        one = PlannedTensor(
            name=name,
            shape=tuple(tensor.shape),
            elements=tensor.numel(),
            dtype=BY_TORCH_NAME[str(tensor.dtype).removeprefix("torch.")],
            action=Action.AVERAGED,
            positions=(0,),
            copied_from=0,
            offset=offset,
            tied_to=None,
        )
        offset += one.nbytes
        found.append(one)
    return found


def write_by_hand(folder: Path, placement: Placement, tensors: Sequence[torch.Tensor]) -> Path:
    """Write the files of a placement with these tensors in it; every byte must be given or have a place."""
    folder.mkdir()
    contents = [bytearray(file.nbytes) for file in placement.files]
    filled = [0 for _ in placement.files]
    for number, file in enumerate(placement.files):
        for offset, data in file.given:
            contents[number][offset : offset + len(data)] = data
            filled[number] += len(data)
    for tensor, placed in zip(tensors, placement.tensors, strict=True):
        for place in placed.places:
            part = tensor[tuple(slice(o, o + size) for o, size in zip(place.origin, place.shape, strict=True))]
            data = tensor_bytes(part)
            contents[place.file][place.offset : place.offset + len(data)] = data
            filled[place.file] += len(data)
    assert filled == [len(content) for content in contents]
    for file, content in zip(placement.files, contents, strict=True):
        for one in file.checksums:
            crc32 = zlib.crc32(content[one.begin : one.begin + one.nbytes]).to_bytes(4, "little")
            for field in one.fields:
                content[field : field + 4] = crc32
        (folder / file.name).write_bytes(content)
    for side in placement.beside:
        assert side.content is not None
        (folder / side.name).write_bytes(side.content)
    return folder
