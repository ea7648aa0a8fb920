"""What the user says of the weights, checked for contradictions, and the methods that it means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import get_args

from ema_cli.errors import UsageError
from ema_cli.text import quoted
from ema_cli.weights.methods import (
    DEFAULT_POWER,
    NARROWEST_SIGMA_REL,
    SPECS,
    WIDEST_SIGMA_REL,
    Decay,
    Init,
    Method,
    MethodName,
    Per,
    Shape,
    Warmup,
    refuse_unused,
)

_LEAST_WEIGHT, _LARGEST_WEIGHT = 1e-100, 1e100
"""Of weights by hand: their squares are numbers still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOptions:
    """Which averages to make. ``None`` and empty mean that nothing was said."""

    methods: tuple[MethodName, ...] = ()
    """Each gives one average, or one for each of its decays. If none is named, the one whose parameters are given."""
    decays: tuple[float, ...] = ()
    """d in [0, 1)."""
    one_minus_decays: tuple[float, ...] = ()
    """1 - d in (0, 1], for decays that a float64 cannot tell from 1."""
    half_lives: tuple[float, ...] = ()
    """Checkpoints or steps after which a share has halved."""
    per: Per | None = None
    """What one decay of ``ema`` means: ``checkpoint``, the default, or ``step``."""
    init: Init | None = None
    """``first``, the default: E_1 = theta_1; ``debias``: start at zero and divide by the weight gathered."""
    warmup: Warmup | None = None
    """How the decay of ``ema-warmup`` grows; ``tf`` unless a parameter of ``inv-gamma`` is given."""
    inv_gamma: float | None = None
    power: float | None = None
    sigma_rels: tuple[float, ...] = ()
    """Widths of power-function profiles, as parts of the training time."""
    shape: Shape | None = None
    """Of the learning rate that ``lr-decay`` imitates; ``1-sqrt`` by default."""
    weights: tuple[float, ...] | None = None
    """Weights by hand, in the order of the paths."""
    normalize: bool = True
    """Divide weights by hand by their sum."""

    @property
    def says_weights(self) -> bool:
        """Whether anything was said of the weights."""
        return any(getattr(self, field.name) != field.default for field in fields(WeightOptions))

    @property
    def method_names(self) -> tuple[MethodName, ...]:
        """The methods that were named; else the one that has the parameters given, and ``ema`` if none were."""
        implied: dict[MethodName, object] = {
            "power": self.sigma_rels,
            "lr-decay": self.shape,
            "manual": self.weights,
            "ema-warmup": self.warmup,
        }
        return self.methods or tuple(name for name, given in implied.items() if given)[:1] or ("ema",)

    @property
    def lacks_decay(self) -> bool:
        """Whether a method needs a decay and none was given."""
        return not self._given_decays() and any("--decay" in SPECS[name].takes for name in self.method_names)

    def expand(self) -> list[Method]:
        """Return the methods, one per average, in the order of the options.

        Raises:
            UsageError: one of them lacks a parameter that has no default, named in the message.

        """
        return [method for name in self.method_names for method in self._variants(name)]

    def _variants(self, name: MethodName) -> Iterator[Method]:
        if name == "power":
            if not self.sigma_rels:
                raise UsageError("--method power has no width", hint="--sigma-rel 0.1")
            yield from (Method(name=name, sigma_rel=sigma_rel) for sigma_rel in self.sigma_rels)
        elif name == "lr-decay":
            yield Method(name=name, shape=self.shape or "1-sqrt")
        elif name == "manual":
            yield Method(name=name, normalize=self.normalize)
        elif "--decay" in SPECS[name].takes:
            yield from (self._with_decay(name, decay) for decay in self._given_decays())
        else:
            yield Method(name=name)

    def _with_decay(self, name: MethodName, decay: Decay) -> Method:
        init = self.init or "first"
        if name == "ema":
            return Method(name=name, decay=decay, per=self.per or "checkpoint", init=init)
        if name == "ema-hold":
            return Method(name=name, decay=decay, per="step", init=init)
        if self._warmup() == "tf":
            return Method(name=name, decay=decay, per="checkpoint", warmup="tf")
        inv_gamma = 1.0 if self.inv_gamma is None else self.inv_gamma
        power = DEFAULT_POWER if self.power is None else self.power
        return Method(name=name, decay=decay, per="checkpoint", warmup="inv-gamma", inv_gamma=inv_gamma, power=power)

    def _warmup(self) -> Warmup:
        return self.warmup or ("tf" if self.inv_gamma is None and self.power is None else "inv-gamma")

    def _given_decays(self) -> list[Decay]:
        return [
            *map(Decay.of, self.decays),
            *map(Decay.of_complement, self.one_minus_decays),
            *map(Decay.of_half_life, self.half_lives),
        ]

    def check_weights(self) -> None:
        """Raise if what was said contradicts itself.

        Raises:
            UsageError: with the sentence that the user needs.

        """
        self._check_words()
        self._check_decays()
        self._check_parameters()
        refuse_unused(
            self.method_names,
            {
                "--decay": self.decays,
                "--one-minus-decay": self.one_minus_decays,
                "--half-life": self.half_lives,
                "--per": self.per,
                "--init": self.init,
                "--warmup": self.warmup,
                "--inv-gamma": self.inv_gamma is not None,
                "--power": self.power is not None,
                "--sigma-rel": self.sigma_rels,
                "--shape": self.shape,
                "--weights": self.weights,
                "--no-normalize": not self.normalize,
            },
        )
        if not self.lacks_decay:
            self.expand()

    def _check_words(self) -> None:
        refuse_other_words(
            *(("--method", name, get_args(MethodName)) for name in self.methods),
            ("--per", self.per, get_args(Per)),
            ("--init", self.init, get_args(Init)),
            ("--warmup", self.warmup, get_args(Warmup)),
            ("--shape", self.shape, get_args(Shape)),
        )

    def _check_decays(self) -> None:
        ways = {"--decay": self.decays, "--one-minus-decay": self.one_minus_decays, "--half-life": self.half_lives}
        given = [flag for flag, values in ways.items() if values]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} say the same thing", hint="give one of them")
        for flag, values in {**ways, "--sigma-rel": self.sigma_rels, "--method": self.methods}.items():
            if len(set(values)) != len(values):
                raise UsageError(f"{flag} has the same value twice")
        self._given_decays()

    def _check_parameters(self) -> None:
        for sigma_rel in self.sigma_rels:
            if not NARROWEST_SIGMA_REL <= sigma_rel <= WIDEST_SIGMA_REL:
                raise UsageError(
                    f"--sigma-rel {sigma_rel:g} is not in (0, {WIDEST_SIGMA_REL:.4f}]",
                    hint="0.05 to 0.25 are usual; the largest is that of a plain mean over time",
                )
        for flag, value in (("--inv-gamma", self.inv_gamma), ("--power", self.power)):
            if value is not None and not _LEAST_WEIGHT <= value <= _LARGEST_WEIGHT:
                raise UsageError(f"{flag} {value:g} must be positive")
        if self.warmup == "tf" and self._warmup_parameters():
            raise UsageError(f"--warmup tf has no {self._warmup_parameters()[0]}", hint="--warmup inv-gamma")
        if self.weights is not None:
            _check_manual(self.weights)

    def _warmup_parameters(self) -> list[str]:
        return [flag for flag, v in (("--inv-gamma", self.inv_gamma), ("--power", self.power)) if v is not None]


def refuse_other_words(*choices: tuple[str, str | None, Sequence[str]]) -> None:
    """Raise if an option has a value that is none of its words.

    Args:
        choices: flag, value (``None`` if not given) and words of each option.

    Raises:
        UsageError: naming the words.

    """
    for flag, value, words in choices:
        if value is not None and value not in words:
            close = get_close_matches(str(value), words, n=1)
            hint = f"{flag} {close[0]}" if close else ""
            raise UsageError(f"{flag} {quoted(str(value))} is none of {', '.join(words)}", hint=hint)


def split_weights(arguments: Sequence[str]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return the paths and the weights of arguments of the form ``PATH:WEIGHT``.

    Raises:
        UsageError: an argument has no weight.

    """
    paths, weights = [], []
    for argument in arguments:
        path, _, weight = argument.rpartition(":")
        try:
            weights.append(float(weight))
        except ValueError:
            path = ""
        if not path:
            raise UsageError(
                f"{quoted(argument)} has no weight", hint="--method manual takes CKPT:WEIGHT, or --weights 1,2,3"
            )
        paths.append(path)
    return tuple(paths), tuple(weights)


def _check_manual(weights: Sequence[float]) -> None:
    for weight in weights:
        if weight != 0 and not _LEAST_WEIGHT <= weight <= _LARGEST_WEIGHT:
            raise UsageError(
                f"the weight {weight:g} is not a number from 0 on, of a usual size", hint="--weights 1,1,2"
            )
    if not any(weights):
        raise UsageError("all weights are zero, so there is nothing to average", hint="--weights 1,1,2")
