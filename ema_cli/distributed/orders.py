"""What rank 0 tells the other ranks to do, once it knows that the plan can be carried out."""

from __future__ import annotations

import json

from ema_cli.fold.schedule import Stretch
from ema_cli.record import record


@record
class Order:
    """The work of all ranks."""

    block_elements: int
    """Elements of a block, the same everywhere, whatever the number of cores."""
    stretches: tuple[Stretch, ...]
    """The blocks of each rank."""
    temps: tuple[str, ...]
    """The name of each output until it is published."""
    run: str = ""
    """With ``--resume``, what the journals of the run begin with."""
    done: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """The tensors that are complete, by position in the plan, and their CRC-32 in each output."""

    def encoded(self) -> bytes:
        """Return the order as JSON."""
        return json.dumps([self.block_elements, self.stretches, self.temps, self.run, self.done]).encode()

    @staticmethod
    def nothing() -> bytes:
        """Return the order to end: there is nothing to do."""
        return b"null"

    @classmethod
    def decoded(cls, data: bytes) -> Order | None:
        """Return the order that was encoded; ``None`` if there is nothing to do."""
        found = json.loads(data)
        if found is None:
            return None
        block_elements, stretches, temps, run, done = found
        return cls(
            block_elements=block_elements,
            stretches=tuple(Stretch(*one) for one in stretches),
            temps=tuple(temps),
            run=run,
            done=tuple((number, tuple(crcs)) for number, crcs in done),
        )
