"""How the inputs of an average are opened again: with the key and the prefix of its run."""

from __future__ import annotations

from contextlib import ExitStack

from ema_cli.formats.open import open_checkpoint
from ema_cli.records.plan import Action
from ema_cli.records.series import Checkpoint, Role
from ema_cli.report.model import Report
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import Location


class InputReader:
    """Opens inputs of a report.

    Args:
        report: of one average; checked.
        opened: closes the inputs.

    """

    def __init__(self, report: Report, opened: ExitStack) -> None:
        (average,) = report.averages
        self._opened, self._pool = opened, LayoutPool()
        options = report.command.options
        self._keys, self._strip_prefix = _texts(options.get("key")), _text(options.get("strip_prefix"))
        self._written = {name for tensor in average.tensors for name in (tensor.name, *tensor.stands_for)}
        self._averaged = frozenset(tensor.name for tensor in average.tensors if tensor.action == Action.AVERAGED)
        self._joined: dict[int, set[str]] = {}
        """By the number of the input: the tensors that are concatenated of it and others."""
        for tensor in average.tensors:
            pieces = tensor.pieces if tensor.action == Action.CONCATENATED else None
            for number in pieces.inputs if pieces is not None else ():
                self._joined.setdefault(number, set()).add(tensor.name)

    def averaged(self, number: int) -> frozenset[str]:
        """Return the tensors that an input contributes to: averaged, or concatenated of it and others."""
        joined = self._joined.get(number)
        return self._averaged | joined if joined else self._averaged

    def open(self, path: Location, *, flat: bool) -> Checkpoint:
        """Open an input. An output of this program is ``flat``, and its names are final.

        Raises:
            NothingMatched: the file does not exist.
            InputRefused: it cannot be used; the message may show what is in it.
            UsageError: the library for its store is not installed.
            InputChanged: the system cannot open it, for a reason that is not the file's.

        """
        checkpoint = open_checkpoint(
            path,
            pool=self._pool,
            keys=() if flat else self._keys,
            strip_prefix="" if flat else self._strip_prefix,
            wanted=self._written.__contains__,
        )
        self._opened.callback(checkpoint.index.close)
        return checkpoint


def is_flat(role: str) -> bool:
    """Whether inputs of this role are outputs of this program."""
    return role == Role.AVERAGE


def _text(option: object) -> str | None:
    return option if isinstance(option, str) else None


def _texts(option: object) -> tuple[str, ...]:
    """Return the values of an option in a report: one as text, several as a list, ``None`` for none."""
    listed = option if isinstance(option, list) else [option]
    return tuple(text for text in listed if isinstance(text, str))
