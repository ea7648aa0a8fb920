"""The options of the weights, checked for contradictions, and the methods that they choose."""

from collections.abc import Iterator, Sequence

from ema_cli.errors import UsageError
from ema_cli.options.declaration import TextForm, declared, option
from ema_cli.record import record
from ema_cli.text import quoted
from ema_cli.weights.methods import (
    DECAYS,
    DEFAULT_POWER,
    IMPLIED,
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
    chosen_methods,
    takes,
)

_LEAST_WEIGHT, _LARGEST_WEIGHT = 1e-100, 1e100
"""Limits of a weight given by hand: its square can still be represented."""


def _parse_numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


@record
class WeightOptions:
    """Which averages to make: one per method, or one per method and decay."""

    method: tuple[MethodName, ...] = option(
        (),
        help="One of the methods that `ema-avg help methods` explains. Repeatable.",
        brief="ema, uniform (SWA), or one of seven more.",
        unset="ema, or the one whose options are given",
        metavar="METHOD",
        aliases={"swa": "uniform", "mean": "uniform"},
        panel="Weights",
    )
    decay: tuple[float, ...] = option(
        (),
        help="d of E_n = d E_(n-1) + (1-d) theta_n; 0 <= d < 1. Repeat it for several averages.",
        brief="d of E_n = d E_(n-1) + (1-d) theta_n.",
        metavar="D",
        panel="Weights",
    )
    one_minus_decay: tuple[float, ...] = option(
        (), help="Instead of --decay: 1-d, such as 1e-9. Repeatable.", metavar="X", panel="Weights"
    )
    half_life: tuple[float, ...] = option(
        (),
        help="Instead of --decay: the number of checkpoints (or steps, with --per step) after which a share has "
        "halved. Repeatable.",
        brief="Instead of a decay: a share halves in H.",
        metavar="H",
        panel="Weights",
    )
    per: Per | None = option(
        None,
        help="Whether ema decays per checkpoint or per training step.",
        brief="What decay and half-life count.",
        unset="checkpoint",
        panel="Weights",
    )
    init: Init | None = option(
        None,
        help="first: E_1 = theta_1. debias: start from zero, and divide by the sum of the weights.",
        unset="first",
        panel="Weights",
    )
    warmup: Warmup | None = option(None, help="How the decay of ema-warmup grows.", unset="tf", panel="Weights")
    inv_gamma: float | None = option(
        None, help="Parameter of --warmup inv-gamma.", unset="1", metavar="G", panel="Weights"
    )
    power: float | None = option(
        None, help="Parameter of --warmup inv-gamma.", unset=f"{DEFAULT_POWER:.4f}", metavar="P", panel="Weights"
    )
    sigma_rel: tuple[float, ...] = option(
        (), help="Width of a power profile, relative to the training time. Repeatable.", metavar="S", panel="Weights"
    )
    shape: Shape | None = option(
        None, help="Learning-rate decay that lr-decay imitates.", unset="1-sqrt", panel="Weights"
    )
    weights: tuple[float, ...] | None = option(
        None,
        help="Weights by hand, in the order of the arguments; or --method manual and CKPT:WEIGHT.",
        metavar="W,W,...",
        form=TextForm(parse=_parse_numbers, noun="a list of numbers", example="1,2,3"),
        panel="Weights",
    )
    normalize: bool = option(True, help="Do not divide weights by hand by their sum.", panel="Weights")

    @property
    def chooses_weights(self) -> bool:
        """Whether any option of the weights was given."""
        return any(getattr(self, one.name) != one.default for one in declared(WeightOptions))

    @property
    def method_names(self) -> tuple[MethodName, ...]:
        """The methods that were named; else the one that has the parameters given, and ``ema`` if none were."""
        return chosen_methods(self.method, [name for name in IMPLIED if getattr(self, name)])

    @property
    def lacks_decay(self) -> bool:
        """Whether a method needs a decay and none was given."""
        return not any(getattr(self, name) for name in DECAYS) and takes(self.method_names, "decay")

    def expand(self) -> list[Method]:
        """Return the methods, one per average, in the order of the options; none for a method that lacks its decay."""
        return [method for name in self.method_names for method in self._variants(name)]

    def _variants(self, name: MethodName) -> Iterator[Method]:
        match name:
            case "ema" | "ema-hold":
                per: Per = "step" if name == "ema-hold" else self.per or "checkpoint"
                init = self.init or "first"
                yield from (Method(name=name, decay=decay, per=per, init=init) for decay in self._decays())
            case "ema-warmup" if self.warmup == "tf" or (self.warmup, self.inv_gamma, self.power) == (None, None, None):
                yield from (Method(name=name, decay=d, per="checkpoint", warmup="tf") for d in self._decays())
            case "ema-warmup":
                inv_gamma = 1.0 if self.inv_gamma is None else self.inv_gamma
                power = DEFAULT_POWER if self.power is None else self.power
                yield from (
                    Method(name=name, decay=d, per="checkpoint", warmup="inv-gamma", inv_gamma=inv_gamma, power=power)
                    for d in self._decays()
                )
            case "power":
                yield from (Method(name=name, sigma_rel=sigma_rel) for sigma_rel in self.sigma_rel)
            case "lr-decay":
                yield Method(name=name, shape=self.shape or "1-sqrt")
            case "manual":
                yield Method(name=name, normalize=self.normalize)
            case _:
                yield Method(name=name)

    def _decays(self) -> list[Decay]:
        return [
            *map(Decay.of, self.decay),
            *map(Decay.of_complement, self.one_minus_decay),
            *map(Decay.of_half_life, self.half_life),
        ]

    def check_weights(self) -> None:
        """Raise if the options of the weights contradict each other.

        Raises:
            UsageError: naming the options, and what to do.

        """
        self._check_values()
        self._refuse_unused()
        if "power" in self.method_names and not self.sigma_rel:
            raise UsageError("--method power needs a width", hint="--sigma-rel 0.1")

    def _check_values(self) -> None:
        options = [one for one in declared(WeightOptions) if one.many]
        given = [one.flag for one in options if one.name in DECAYS and getattr(self, one.name)]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} say the same thing", hint="give one of them")
        for one in options:
            values = getattr(self, one.name)
            if len(set(values)) != len(values):
                raise UsageError(f"{one.flag} has the same value twice")
        self._decays()
        for sigma_rel in self.sigma_rel:
            if not NARROWEST_SIGMA_REL <= sigma_rel <= WIDEST_SIGMA_REL:
                raise UsageError(
                    f"--sigma-rel {sigma_rel:g} is not in (0, {WIDEST_SIGMA_REL:.4f}]",
                    hint="0.05 to 0.25 are usual; the largest is that of a plain mean over time",
                )
        for flag, value in (("--inv-gamma", self.inv_gamma), ("--power", self.power)):
            if value is not None and not _LEAST_WEIGHT <= value <= _LARGEST_WEIGHT:
                raise UsageError(f"{flag} {value:g} must be positive")
            if value is not None and self.warmup == "tf":
                raise UsageError(f"--warmup tf has no {flag}", hint="--warmup inv-gamma")
        if self.weights is not None:
            _check_manual(self.weights)

    def _refuse_unused(self) -> None:
        """Raise if an option was given that none of the methods has."""
        names = self.method_names
        for one in declared(WeightOptions):
            if one.name == "method" or getattr(self, one.name) in (one.default, ()) or takes(names, one.name):
                continue
            takers = [name for name in SPECS if takes([name], one.name)]
            raise UsageError(
                f"--method {' and '.join(names)} has no {one.flag}",
                hint=f"leave it out, or choose --method {' or '.join(takers)}",
            )


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
            raise UsageError(f"the weight {weight:g} must be 0, or from 1e-100 to 1e100", hint="--weights 1,1,2")
    if not any(weights):
        raise UsageError("all weights are zero, so there is nothing to average", hint="--weights 1,1,2")
