"""The universal checkpoint: ``zero/<parameter>/fp32.pt``, one file per parameter, which ``ds_to_universal`` writes.

A file holds ``{"param": tensor}`` or, of ZeRO stage 3, the flat tensor alone. The model states are copied beside
``zero``. Reference: ``deepspeed/checkpoint/ds_to_universal.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ema_cli.errors import InputRefused
from ema_cli.formats.deepspeed.joined_weights import Places, WholeTensor, in_one_piece
from ema_cli.formats.deepspeed.model_states import Shape, Shapes
from ema_cli.formats.deepspeed.rank_file import RankFile
from ema_cli.formats.deepspeed.rank_states import Parsed
from ema_cli.formats.folder import Folder
from ema_cli.formats.state_dict.tree import named
from ema_cli.formats.torch.objects import TensorRef
from ema_cli.text import quoted, shortlist

_ZERO = "zero"
_FLOAT32 = "fp32.pt"


def is_universal(folder: Folder) -> bool:
    """Whether a checkpoint folder of DeepSpeed is a universal one, judged by names alone."""
    return _ZERO in folder.folders


def open_parameters(folder: Folder, shapes: Shapes) -> Iterator[tuple[str, Shape, RankFile, TensorRef]]:
    """Yield the name, the shape, the file and the tensor of each trained parameter.

    Raises:
        InputRefused: a file is missing or damaged, or holds something else.

    """
    zero = folder.inside(_ZERO)
    missing = [quoted(name) for name, _ in shapes if name not in zero.folders]
    if missing:
        raise InputRefused(f"is incomplete: it has no folder in {quoted(_ZERO)} of {shortlist(missing)}")
    parsed = Parsed(_parameter)
    for name, shape in shapes:
        inner = zero.inside(name)
        if _FLOAT32 not in inner.files:
            raise InputRefused(f"is incomplete: {quoted(f'{_ZERO}/{name}')} has no {quoted(_FLOAT32)}")
        file = RankFile(inner, _FLOAT32, shown=f"{_ZERO}/{name}/{_FLOAT32}")
        yield name, shape, file, parsed.of(file)


def _parameter(root: object) -> TensorRef:
    tensor = named(root).get("param", root)
    if not isinstance(tensor, TensorRef):
        raise InputRefused('holds no tensor, alone or as "param"')
    return tensor


def locate_parameter(name: str, shape: Shape, file: RankFile, tensor: TensorRef, places: Places) -> WholeTensor:
    """Return a parameter.

    Args:
        name: of the parameter.
        shape: as the model states declare it.
        file: with the parameter alone.
        tensor: in the file, which may be flat.
        places: gets the place of the parameter.

    Raises:
        InputRefused: it cannot be read, or has another number of elements than its shape.

    """
    try:
        layout, begin = file.locate(name, tensor)
    except InputRefused as refused:
        raise file.refusal(f"tensor {quoted(name)} {refused.message}", refused.hint) from refused
    is_flat = layout.shape == (math.prod(shape),) and layout.strides is None
    if layout.shape != shape and not is_flat:
        raise file.refusal(f"holds a tensor of shape {list(layout.shape)}, but the model states declare {list(shape)}")
    return in_one_piece(layout, shape, places.add(file, begin))
