"""A Megatron-LM checkpoint of the torch format: ``iter_0001000/mp_rank_00/model_optim_rng.pt``.

There is one folder per rank of model parallelism (``mp_rank_00``, with a pipeline ``mp_rank_00_000``); its file holds
the model as nested dictionaries, and ``iteration``.

Along which dimension a parameter is split (``partition_dim``) is an attribute of the parameter, which its state dict
does not keep: a file holds plain tensors, and the layers of a pipeline stage are numbered from 0 again. So the files
of several ranks do not define the whole tensors, and are refused. Megatron's own converters know the model.
References: ``megatron/training/checkpointing.py``, ``megatron/core/tensor_parallel/layers.py``,
``tools/checkpoint/convert.py``.
"""

from __future__ import annotations

import shlex
from dataclasses import replace

from ema_cli.errors import InputRefused
from ema_cli.formats.folder import Folder
from ema_cli.formats.members import read_only_member
from ema_cli.formats.structure import Keys, Structure, refusal_of
from ema_cli.storage.extents import LayoutPool
from ema_cli.text import plural, quoted, regex, shortlist

_RANK = regex(r"mp_rank_[0-9]{2}(?:_[0-9]{3})*")
_ITERATION = regex(r"iter_([0-9]{1,18})")
_FILES = ("model_optim_rng.pt", "model_rng.pt")
"""The second name is used with a distributed optimizer."""


def is_megatron_folder(folder: Folder) -> bool:
    """Whether a folder has the folders of ranks."""
    return any(_RANK.fullmatch(name) for name in folder.folders)


def read_megatron(folder: Folder, keys: Keys, pool: LayoutPool) -> Structure:
    """Read the weights of a checkpoint of a single rank.

    Raises:
        InputRefused: there are several ranks, or the model's file is missing or cannot be used.

    """
    ranks = sorted(name for name in folder.folders if _RANK.fullmatch(name))
    if len(ranks) > 1:
        raise _in_parts(folder, ranks)
    inner = folder.inside(ranks[0])
    name = next((name for name in _FILES if name in inner.files), None)
    if name is None:
        raise InputRefused(f"is incomplete: {quoted(ranks[0])} has no {quoted(_FILES[0])}")
    try:
        structure = read_only_member(inner, name, keys, pool)
    except InputRefused as refused:
        raise refusal_of(ranks[0], refused) from refused
    return replace(structure, ignored=(*structure.ignored, *inner.others([]), *folder.others(ranks)))


def _in_parts(folder: Folder, ranks: list[str]) -> InputRefused:
    """Return the refusal of a checkpoint of several ranks, with the commands that convert it."""
    run = folder.location.parent
    found = _ITERATION.fullmatch(folder.location.name)
    step = f" --ckpt-step {int(found[1])}" if found else ""
    load, dist, joined = (shlex.quote(str(path)) for path in (run, f"{run}_dist", f"{run}_joined"))
    return InputRefused(
        f"is split into {plural(len(ranks), 'part')} by model parallelism, whose tensors do not state how they fit "
        f"together: {shortlist(map(quoted, ranks))}",
        hint=f"convert it with Megatron-LM: the training command with --load {load}{step} --ckpt-convert-format "
        f"torch_dist --ckpt-convert-save {dist}; or python tools/checkpoint/convert.py --model-type GPT --loader core "
        f"--saver core --load-dir {load} --save-dir {joined} --target-tensor-parallel-size 1 "
        "--target-pipeline-parallel-size 1",
    )
