"""The flat parameters of FSDP1: all parameters of a wrapped module in one vector, padded, and split over the ranks.

``StateDictType.LOCAL_STATE_DICT`` saves them so. The names and shapes of the parameters in a vector are only in the
running model. Source: ``torch/distributed/fsdp/_flat_param.py``.
"""

from __future__ import annotations

from collections.abc import Iterable

from ema_cli.text import plural, quoted, regex, shortlist

_FLAT = regex(r"(?:^|\.)_?flat_param(?:_\d+)?$")
AS_SHARDS = "save with StateDictType.SHARDED_STATE_DICT or FULL_STATE_DICT (accelerate: --fsdp_state_dict_type)"


def flat_parameters(names: Iterable[str]) -> list[str]:
    """Return the names of flat parameters."""
    return [name for name in names if _FLAT.search(name)]


def warn_of_flat(names: Iterable[str]) -> tuple[str, ...]:
    """Return the warning about flat parameters among the weights; nothing if there are none."""
    flat = flat_parameters(names)
    if not flat:
        return ()
    kind = "is a flat parameter" if len(flat) == 1 else "are flat parameters"
    message = (
        f"{plural(len(flat), 'tensor')} {kind} of FSDP ({shortlist(map(quoted, flat), most=3)}): an average of them "
        f"loads only into the same model, wrapped in the same way, on as many ranks; {AS_SHARDS}"
    )
    return (message,)
