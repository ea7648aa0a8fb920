"""The two ways to measure the geometry of a run, and the choice between them.

All elements: sums are kept, not elements, with twice the digits of what is told: so the order of the threads does not
show, but the last digits may depend on the size of the blocks.
"""

from __future__ import annotations

import threading

import numpy as np

from ema_cli.dtypes import DType
from ema_cli.fold.decode import Bytes, Float64, decode
from ema_cli.fold.geometry.observer import GeometryObserver, View, spread
from ema_cli.fold.geometry.sampled import SampledGeometry
from ema_cli.fold.schedule import Block
from ema_cli.options.average import GeometryMode
from ema_cli.records.plan import Plan


def make_geometry(mode: GeometryMode, plan: Plan) -> GeometryObserver | None:
    """Return what ``--geometry`` asks for; a single checkpoint has none."""
    if mode == "none" or len(plan.used) == 1:
        return None
    return FullGeometry(plan) if mode == "full" else SampledGeometry(plan)


class FullGeometry(GeometryObserver):
    """Adds up the inner products of all elements."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._gram = np.zeros((2, *(len(self.placed) + len(self.weights),) * 2))
        self._spreads = np.zeros((2, *self.spreads.shape))
        self._rows = len(plan.used)
        self._lock = threading.Lock()

    @property
    def sampled_fraction(self) -> float:
        """All of them."""
        return 1.0

    def view(self, block: Block, count: int) -> View | None:
        """Return what holds the block of every checkpoint."""
        if not self.looked_at[block.number] or not count:
            return None
        return _Whole(self, block.number, np.empty((self._rows, count)))

    def add(self, number: int, from_last: Float64) -> None:
        """Add one block of a tensor."""
        points, spreads = self.points(from_last), spread(from_last, self.weights)
        products = points @ points.T
        with self._lock:
            _add(self._gram, products)
            _add(self._spreads[:, :, number], spreads)

    def gram(self) -> Float64:
        """Return what was added up; the spreads of the tensors fall off on the way."""
        self.spreads[:] = self._spreads.sum(axis=0)
        return np.asarray(self._gram.sum(axis=0))


def _add(pair: Float64, values: Float64) -> None:
    """Add to sums that are kept as the nearest float64 and what that lacks (Knuth, TAOCP 2, 4.2.2, theorem B)."""
    total = pair[0] + values
    taken = total - pair[0]
    pair[1] += (pair[0] - (total - taken)) + (values - taken)
    pair[0] = total


class _Whole(View):
    """Holds a block of every checkpoint until all have passed."""

    def __init__(self, geometry: FullGeometry, number: int, rows: Float64) -> None:
        self._geometry = geometry
        self._number = number
        self._rows = rows

    def see(self, row: int, raw: Bytes, dtype: DType) -> None:
        """Decode all elements."""
        decode(raw, dtype, self._rows[row])

    def close(self) -> None:
        """Measure from the last, and add."""
        self._rows -= self._rows[-1].copy()
        self._geometry.add(self._number, self._rows)
