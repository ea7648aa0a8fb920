"""``--lora exact``: the average of LoRA updates, as one update whose factors are those of the checkpoints side by side.

With the factors A_i and B_i, the scales s_i and the weights w_i of the checkpoints, the output has

    A = concat_i(sqrt(|c_i|) A_i),  B = concat_i(sign(c_i) sqrt(|c_i|) B_i),  c_i = w_i s_i / s

along the axis of the rank, so that ``s B A = sum_i w_i s_i B_i A_i`` with the scale s of the output. Its rank is the
sum of the ranks; s is the scale of the last checkpoint, as far as an alpha that grows with the rank can be stored.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from functools import cached_property

from ema_cli.dtypes import DType
from ema_cli.errors import InputRefused, UsageError
from ema_cli.formats.huggingface.adapter_config import AdapterConfig
from ema_cli.planning.lora_pairs import FactorPair, find_pairs
from ema_cli.planning.lora_refusals import OTHERWISE, refuse_inexact, refuse_settings
from ema_cli.planning.lora_scales import STRUCT_CODES, UpdateScales
from ema_cli.planning.matching import Chosen
from ema_cli.record import record
from ema_cli.records.plan import Action, Concatenation
from ema_cli.records.series import Checkpoint
from ema_cli.text import quoted
from ema_cli.weights.methods import Weighting

_ROUNDING = 1e-9
_BF16_BITS = 8
"""Of the significand."""


@record
class JoinedTensor:
    """How a factor or its alpha is written."""

    action: Action
    shape: tuple[int, ...]
    pieces: Concatenation


@record
class JoinedUpdate:
    """One update of the output."""

    pair: FactorPair
    """As the last checkpoint has it."""
    rank: int
    alpha: float | None
    """``None`` if no alpha is stored with the factors."""
    tensors: Mapping[str, JoinedTensor]


@record
class _Scale:
    """The scale of an update of the output, and how its alpha is written."""

    value: float | None
    alpha: float | None
    tensors: Mapping[str, JoinedTensor]


class ExactUpdates:
    """The joined updates of a series.

    Args:
        checkpoints: in fold order.
        chosen: the selected tensors of each checkpoint.
        weightings: of the averages.

    Raises:
        UsageError: there is no update.
        InputRefused: the updates cannot be joined exactly; the message says why.

    """

    def __init__(
        self, checkpoints: Sequence[Checkpoint], chosen: Sequence[Chosen], weightings: Sequence[Weighting]
    ) -> None:
        self._checkpoints = checkpoints
        self._weightings = weightings
        self._last = len(checkpoints) - 1
        self._inputs = tuple(i for i in range(len(checkpoints)) if any(w.weights[i] for w in weightings))
        self._scales = UpdateScales(checkpoints)
        self._shapes = {name: layout.shape for name, (_, layout) in chosen[-1].items()}
        self._types = {name: layout.dtype for name, (_, layout) in chosen[-1].items()}
        found = {id(tensors): _pairs_of(tensors) for tensors in chosen}
        self._pairs = {i: found[id(chosen[i])] for i in (*self._inputs, self._last)}
        if not self._pairs[self._last]:
            raise UsageError("--lora exact: the checkpoints have no pairs of LoRA factors", hint="leave out --lora")
        for i in self._pairs:
            refuse_inexact(chosen[i], self._pairs[i].values(), self._name(i))
            self._refuse_other_updates(i)

    @property
    def axes(self) -> dict[str, int]:
        """The axis of the rank of each factor, which may have another length in each checkpoint."""
        pairs = self._pairs[self._last].values()
        return {name: pair.rank_axis(name) for pair in pairs for name in (pair.down, pair.up)}

    @property
    def config(self) -> AdapterConfig | None:
        """The configuration of the last checkpoint.

        Raises:
            InputRefused: it cannot be used.

        """
        return self._scales.configs[self._last]

    @cached_property
    def updates(self) -> tuple[JoinedUpdate, ...]:
        """The updates of the output.

        Raises:
            InputRefused: a scale is not known, or the updates have another form.

        """
        self.refuse_settings()
        return tuple(self._join(stem) for stem in self._pairs[self._last])

    @cached_property
    def tensors(self) -> dict[str, JoinedTensor]:
        """The factors and alphas of the output, by name."""
        return {name: tensor for update in self.updates for name, tensor in update.tensors.items()}

    def refuse_settings(self) -> None:
        """Raise if the configuration of a checkpoint gives its factors another meaning.

        Raises:
            InputRefused: naming the setting, or a configuration that cannot be used.

        """
        for i, pairs in self._pairs.items():
            config = self._scales.configs[i]
            if config is not None:
                refuse_settings(config, pairs.values(), self._name(i))

    def _name(self, i: int) -> str:
        return quoted(str(self._checkpoints[i].path))

    def _refuse_other_updates(self, i: int) -> None:
        different = self._pairs[i].keys() ^ self._pairs[self._last].keys()
        if different:
            raise InputRefused(
                f"{self._name(i)} and {self._name(self._last)} have different LoRA updates, such as "
                f"{quoted(min(different))}, which cannot be joined",
                hint="name only checkpoints that agree, or --exclude the update",
            )

    def _join(self, stem: str) -> JoinedUpdate:
        pair = self._pairs[self._last][stem]
        rank = sum(self._pairs[i][stem].rank for i in self._inputs)
        scale = self._output_scale(pair, rank)
        ratios = self._ratios(stem, scale.value)
        bias = f"{pair.up.removesuffix('weight')}bias"
        if bias in self._shapes and any(abs(ratio - 1) > _ROUNDING for ratio in ratios):
            message = f"{quoted(bias)} is scaled like its update, and the checkpoints have different scales"
            raise InputRefused(message, hint=OTHERWISE)
        products = [
            [w.weights[i] * ratio for i, ratio in zip(self._inputs, ratios, strict=True)] for w in self._weightings
        ]
        roots = tuple(tuple(math.sqrt(abs(c)) for c in of_average) for of_average in products)
        signed = tuple(tuple(math.copysign(math.sqrt(abs(c)), c) for c in of_average) for of_average in products)
        factors = {
            pair.down: self._factor(pair, pair.down, rank, roots),
            pair.up: self._factor(pair, pair.up, rank, signed),
        }
        return JoinedUpdate(pair=pair, rank=rank, alpha=scale.alpha, tensors={**factors, **scale.tensors})

    def _factor(self, pair: FactorPair, name: str, rank: int, numbers: tuple[tuple[float, ...], ...]) -> JoinedTensor:
        axis, shape = pair.rank_axis(name), self._shapes[name]
        return JoinedTensor(
            action=Action.CONCATENATED,
            shape=(*shape[:axis], rank, *shape[axis + 1 :]),
            pieces=Concatenation(axis=axis, inputs=self._inputs, factors=numbers),
        )

    def _output_scale(self, pair: FactorPair, rank: int) -> _Scale:
        """Return the scale that an update has in the output, close to that of the last checkpoint."""
        name = self._scales.alpha_name(self._last, pair)
        if name is not None:
            return self._scale_in_tensor(pair, name, rank)
        config = self.config
        if config is None:
            return _Scale(value=None, alpha=None, tensors={})
        alpha = config.alpha_of(pair.module)
        alpha = alpha * math.sqrt(rank / pair.rank) if config.rank_stabilized else alpha * rank / pair.rank
        return _Scale(value=config.scale(alpha, rank), alpha=alpha, tensors={})

    def _scale_in_tensor(self, pair: FactorPair, name: str, rank: int) -> _Scale:
        """Multiply the alpha in a tensor, if its type can hold the product; otherwise the factors get it."""
        before, dtype = self._scales.alpha(self._last, name), self._types.get(name)
        if dtype is None or not dtype.averaged:
            return _Scale(value=before / rank, alpha=before, tensors={})
        number = rank / pair.rank
        alpha = _rounded(before * number, dtype)
        if alpha is None:
            number, alpha = 1.0, before
        pieces = Concatenation(axis=0, inputs=(self._last,), factors=((number,),) * len(self._weightings))
        scaled = JoinedTensor(action=Action.SCALED, shape=self._shapes[name], pieces=pieces)
        return _Scale(value=alpha / rank, alpha=alpha, tensors={name: scaled})

    def _ratios(self, stem: str, scale: float | None) -> list[float]:
        """Return the scale of an update in each input, relative to that of the output."""
        own = {i: self._scales.of(i, self._pairs[i][stem]) for i in self._inputs}
        unknown = [i for i, value in own.items() if value is None]
        ranks = {self._pairs[i][stem].rank for i in self._inputs}
        if scale is None and len(unknown) == len(own) and len(ranks) == 1:
            return [1.0] * len(own)
        if scale is None or unknown:
            where = self._name(unknown[0] if unknown else self._last)
            raise InputRefused(
                f"{where} has no alpha for the update {quoted(stem)}, which has other ranks or scales in the others",
                hint=f"name folders with adapter_config.json; {OTHERWISE}",
            )
        ratios = [value / scale if scale and value is not None else math.nan for value in own.values()]
        if not all(map(math.isfinite, ratios)):
            raise InputRefused(f"the alpha of the update {quoted(stem)} is zero or not finite", hint=OTHERWISE)
        return ratios


def _pairs_of(tensors: Chosen) -> dict[str, FactorPair]:
    """Return the pairs among the selected tensors, by a name that they have in every checkpoint."""
    return {
        pair.down: pair for pair in find_pairs({n: (layout.dtype, layout.shape) for n, (_, layout) in tensors.items()})
    }


def _rounded(value: float, dtype: DType) -> float | None:
    """Return a number as a type of floats holds it, ``None`` if it cannot."""
    try:
        if dtype.name in STRUCT_CODES:
            code = f"<{STRUCT_CODES[dtype.name]}"
            return float(struct.unpack(code, struct.pack(code, value))[0])
        if dtype.name == "BF16":
            mantissa, exponent = math.frexp(value)
            return math.ldexp(round(math.ldexp(mantissa, _BF16_BITS)), exponent - _BF16_BITS)
    except OverflowError:
        pass
    return None
