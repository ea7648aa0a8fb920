"""Read the step that stands in a DCP folder: a pickled object, or a tensor of one number, both as torch.save writes."""

from __future__ import annotations

from collections.abc import Mapping

from ema_cli.formats.dcp.chunks import open_archive
from ema_cli.formats.dcp.data_files import Files
from ema_cli.formats.dcp.saved_items import Stored
from ema_cli.formats.inert_pickle.values import Inert
from ema_cli.formats.state_dict.steps import KEYS, read_steps
from ema_cli.records.series import FoundStep


def read_dcp_steps(counters: Mapping[str, Stored], files: Files) -> tuple[FoundStep, ...]:
    """Return the steps in the items that may hold one, best first.

    Args:
        counters: the items, by the key that they lie under.
        files: that they lie in.

    Raises:
        InputRefused: one of them is damaged.

    """
    found: list[FoundStep] = []
    for path, stored in counters.items():
        window = files.window(stored)
        archive, value = open_archive(window)
        if isinstance(value, Inert) and isinstance(value.state, dict):
            value = value.state  # the attributes of an object such as a dataclass of the trainer
        found.extend(read_steps({path: value}, window, archive.storage))
    return tuple(sorted(found, key=lambda step: KEYS.index(step.source.removeprefix("inside: "))))
