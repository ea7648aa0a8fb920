"""What is among the weights and is not written, as it is not a tensor: numbers that may be weights, state of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ema_cli.errors import RunWarning
from ema_cli.formats.state_dict.leaf_kinds import EXTRA_STATE, is_list_of_numbers, is_number, is_numpy_array
from ema_cli.formats.state_dict.training_names import is_record
from ema_cli.text import plural, quoted, shortlist

Leaves = Sequence[tuple[str, object]]
"""Names and values."""
WEIGHTS_DROPPED = "weights-dropped"
_NUMBERS = (
    ("numpy array", "numpy arrays", is_numpy_array),
    ("number", "numbers", is_number),
    ("list of numbers", "lists of numbers", is_list_of_numbers),
)
"""What may be weights and is no tensor, in words."""


def warn_of_leaves(among: Leaves) -> Iterator[RunWarning]:
    """Yield the warnings about what is among the weights and is not written, as it is not a tensor."""
    for noun, nouns, is_kind in _NUMBERS:
        names = [quoted(name) for name, value in among if is_kind(value) and not _is_state(name)]
        if names:
            count = f"{len(names):,} {noun if len(names) == 1 else nouns}"
            verb = "is" if len(names) == 1 else "are"
            yield RunWarning(
                code=WEIGHTS_DROPPED,
                message=f"{count} among the weights {verb} not in the output: {shortlist(names)}",
                hint="save them as tensors (torch.as_tensor), or add them to the average by hand",
            )


def _is_state(name: str) -> bool:
    return is_record(name) or EXTRA_STATE in name.split(".")


def describe_state(among: Leaves) -> Iterator[str]:
    """Yield the state of layers that is stored as bytes or objects: not weights, but not written either."""
    names = dict.fromkeys(
        quoted(name[: name.index(EXTRA_STATE) + len(EXTRA_STATE)])
        for name, value in among
        if value is not None and EXTRA_STATE in name.split(".") and value not in ({}, [], b"", "")
    )
    if names:
        yield (
            f"not in the output, as it is no tensor: the extra state of {plural(len(names), 'layer')}, such as FP8 "
            f"scales of Transformer Engine: {shortlist(names)}"
        )
