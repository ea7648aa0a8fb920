"""Compare two checkpoints of any formats, tensor by tensor, in bounded memory.

Input -> output: two files -> ``Comparison``. Tensors are matched by name. They are equal if shape, type and the bits of
all elements are equal: -0.0 is not 0.0, and NaN equals NaN with the same bits.

    >>> from ema_cli.compare import compare
    >>> comparison = compare(Options(paths=("a.pt", "b.safetensors")))
    >>> comparison.equal, comparison.total.relative_l2
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack

from ema_cli.discovery.changes import check_unchanged
from ema_cli.discovery.checkpoints import close_all
from ema_cli.errors import UsageError
from ema_cli.events import Counted, Listener, Opening, ignore
from ema_cli.fold.tensor_distance import Meter, Sums, comparable
from ema_cli.formats.file import is_flat
from ema_cli.formats.open import open_checkpoint
from ema_cli.formats.state_dict.prefixes import refuse_unused_prefix
from ema_cli.options.average import Options
from ema_cli.planning.matching import Chosen, choose_tensors, wanted
from ema_cli.planning.refusals import refuse_unreadable
from ema_cli.record import record
from ema_cli.records.series import Checkpoint
from ema_cli.report.model import SCHEMA_VERSION
from ema_cli.storage.extents import LayoutPool, TensorLayout
from ema_cli.storage.locations import Location, is_folder, locate, open_source
from ema_cli.text import plural, quoted


@record
class Distance:
    """How far a is from b. ``None`` if undefined or not compared."""

    differing: int | None = None
    """Number of elements that are not equal."""
    max_abs: float | None = None
    """``max |a - b|``; an exact integer for integers. Complex numbers count as pairs of real numbers."""
    relative_l2: float | None = None
    """``||a - b|| / ||b||``; floats and complex numbers only."""
    cosine: float | None = None
    """``<a, b> / (||a|| ||b||)``; floats and complex numbers only."""


@record
class TensorComparison:
    """A tensor in both checkpoints."""

    name: str
    a: TensorLayout
    b: TensorLayout
    distance: Distance

    @property
    def equal(self) -> bool:
        """Whether shape, type and all elements are equal."""
        return self.a.dtype is self.b.dtype and self.a.shape == self.b.shape and self.distance.differing == 0


@record
class Comparison:
    """The tensors of two checkpoints: common ones with their distances, and those of one alone."""

    a: Checkpoint
    b: Checkpoint
    tensors: tuple[TensorComparison, ...]
    """Common tensors, in the order of b."""
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    total: Distance
    """Over all compared tensors; maximum and norms over floats and complex numbers only."""

    def __repr__(self) -> str:
        names = f"{quoted(str(self.a.path))} and {quoted(str(self.b.path))}"
        counts = plural(len(self.tensors), "common tensor")
        if self.equal:
            return f"<Comparison: {names} are equal in {counts}>"
        only = ((self.only_in_a, "a"), (self.only_in_b, "b"))
        more = "".join(f", {len(tensors):,} only in {label}" for tensors, label in only if tensors)
        return f"<Comparison: {names} differ in {len(self.different):,} of {counts}{more}>"

    @property
    def equal(self) -> bool:
        """Whether both have the same tensors, with equal elements."""
        return not self.only_in_a and not self.only_in_b and all(tensor.equal for tensor in self.tensors)

    @property
    def different(self) -> tuple[TensorComparison, ...]:
        """The common tensors that are not equal."""
        return tuple(tensor for tensor in self.tensors if not tensor.equal)


def compare(options: Options, listener: Listener = ignore) -> Comparison:
    """Compare the two checkpoints in ``options.paths``.

    Only the options ``key``, ``include``, ``exclude`` and ``strip_prefix`` are used. The key applies to nested files,
    the prefix to files with such names; an option that applies to neither file is an error.

    Raises:
        UsageError: there are not two paths, or the options leave nothing to compare.
        NothingMatched: a file is missing.
        InputRefused: a file is not a readable checkpoint, or has tensors that cannot be compared.
        InputChanged: a file was changed while it was being read.

    """
    with ExitStack() as opened:
        a, b = _open_both(options, listener, opened)
        refuse_unreadable([a, b], options)
        chosen_a, chosen_b = _choose(a, b, options)
        names = [name for name in chosen_b if name in chosen_a]
        pairs = [(chosen_a[name], chosen_b[name]) for name in names]
        nbytes = sum(x.nbytes + y.nbytes for (_, x), (_, y) in pairs if _can_be_compared(x, y))
        meter = Meter(Counted("comparing", nbytes, listener).add)
        tensors, floats, differing = [], Sums(), 0
        for name, ((i, x), (j, y)) in zip(names, pairs, strict=True):
            sums = meter.measure(a.index.extent(i), b.index.extent(j)) if _can_be_compared(x, y) else None
            tensors.append(TensorComparison(name=name, a=x, b=y, distance=_distance(sums) if sums else Distance()))
            differing += sums.differing if sums else 0
            floats += sums if sums and x.dtype.averaged else Sums()
        check_unchanged((a, b), listener)
    return Comparison(
        a=a,
        b=b,
        tensors=tuple(tensors),
        only_in_a=tuple(name for name in chosen_a if name not in chosen_b),
        only_in_b=tuple(name for name in chosen_b if name not in chosen_a),
        total=dataclasses.replace(_distance(floats), differing=differing),
    )


def _open_both(options: Options, listener: Listener, opened: ExitStack) -> list[Checkpoint]:
    """Open the two files until ``opened`` is closed."""
    paths = [locate(path) for path in options.paths]
    if len(paths) != 2:  # noqa: PLR2004 - a and b
        raise UsageError(f"diff needs two checkpoints, got {len(paths)}", hint="ema-avg diff CKPT CKPT")
    flat = [bool(options.key) and _is_flat(path) for path in paths]
    pool = LayoutPool()
    checkpoints = []
    for done, path in enumerate(paths):
        listener(Opening(done=done, total=len(paths)))
        keys = () if flat[done] and not all(flat) else options.key
        checkpoint = open_checkpoint(
            path, pool=pool, keys=keys, strip_prefix=options.strip_prefix, wanted=wanted(options)
        )
        opened.callback(close_all, [checkpoint])
        checkpoints.append(checkpoint)
    refuse_unused_prefix(options.strip_prefix, [checkpoint.stripped for checkpoint in checkpoints])
    return checkpoints


def _is_flat(path: Location) -> bool:
    if is_folder(path):
        return False
    with open_source(path) as source:
        return is_flat(source)


def _choose(a: Checkpoint, b: Checkpoint, options: Options) -> tuple[Chosen, Chosen]:
    """Return the tensors to compare of each side; one side may have none."""
    chosen: list[Chosen] = []
    failures: list[UsageError] = []
    for checkpoint in (a, b):
        try:
            chosen.append(choose_tensors(checkpoint.index.layouts, options))
        except UsageError as failure:
            chosen.append({})
            failures.append(failure)
    if len(failures) == len(chosen):
        raise failures[0]
    return chosen[0], chosen[1]


def _can_be_compared(a: TensorLayout, b: TensorLayout) -> bool:
    return a.shape == b.shape and comparable(a.dtype, b.dtype)


def _distance(sums: Sums) -> Distance:
    return Distance(differing=sums.differing, max_abs=sums.max_abs, relative_l2=sums.relative_l2, cosine=sums.cosine)


def comparison_document(comparison: Comparison) -> dict[str, object]:
    """Return the document that ``ema-avg diff --json`` prints; undefined numbers are null."""
    tensors, different = comparison.tensors, comparison.different
    return {
        "schema_version": SCHEMA_VERSION,
        "equal": comparison.equal,
        "a": _checkpoint(comparison.a),
        "b": _checkpoint(comparison.b),
        "total": {"tensors": len(tensors), "different": len(different), **dataclasses.asdict(comparison.total)},
        "only_in_a": comparison.only_in_a,
        "only_in_b": comparison.only_in_b,
        "tensors": [
            {
                "name": tensor.name,
                "equal": tensor.equal,
                "dtype": [tensor.a.dtype.name, tensor.b.dtype.name],
                "shape": [tensor.a.shape, tensor.b.shape],
                **dataclasses.asdict(tensor.distance),
            }
            for tensor in tensors
        ],
    }


def _checkpoint(checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "key": checkpoint.key,
        "stripped_prefixes": checkpoint.stripped,
    }
