"""The methods: definition, name in the literature, and the options that each takes.

The other modules of ``ema_cli.weights`` compute the weights. This one needs the standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, Self

from ema_cli.errors import UsageError
from ema_cli.record import record

MethodName = Literal["ema", "ema-hold", "ema-warmup", "uniform", "uniform-time", "ramp", "power", "lr-decay", "manual"]
Per = Literal["checkpoint", "step"]
Init = Literal["first", "debias"]
Warmup = Literal["tf", "inv-gamma"]
Shape = Literal["linear", "cosine", "1-sqrt"]
Clock = Literal["steps", "tokens", "samples", "epochs"]

LONGEST_HALF_LIFE = 1e15
"""With a longer one, 1 - d could not be distinguished from rounding errors."""
LEAST_COMPLEMENT = 1e-100
"""With a smaller 1 - d, squares in the closed forms underflow; no real EMA is that slow."""
NARROWEST_SIGMA_REL = 1e-6
WIDEST_SIGMA_REL = 1 / math.sqrt(12)
"""The relative width of a uniform profile, gamma = 0; a wider one would favor the beginning of training."""
DEFAULT_POWER = 2 / 3
_SAME = 1e-9
"""Two parameters whose relative difference is smaller are equal, written in different ways."""
_HALF = 0.5
_LEAST_PERCENTAGE = 50
"""From here on a decay that is too large is taken for a percentage: 99.9 for 0.999."""


@record
class Decay:
    """A decay d in [0, 1), together with 1 - d, because a float64 d near 1 has lost the digits of 1 - d."""

    value: float
    """d."""
    complement: float
    """1 - d."""
    half_life: float | None = None
    """H with d^H = 1/2, if the decay was given that way."""

    @classmethod
    def of(cls, value: float) -> Self:
        """Return the decay d.

        Raises:
            UsageError: it is not in [0, 1).

        """
        if not 0 <= value < 1:
            is_percentage = _LEAST_PERCENTAGE <= value < 100  # noqa: PLR2004
            hint = f"--decay {value / 100:g} (a decay is a share, not a percentage)" if is_percentage else "--decay 0.9"
            raise UsageError(f"--decay {value:g} is not in [0, 1)", hint=hint)
        return cls(value=value + 0.0, complement=1 - value)  # -0.0 is 0

    @classmethod
    def of_complement(cls, complement: float) -> Self:
        """Return the decay d for a given 1 - d.

        Raises:
            UsageError: it is not in (0, 1].

        """
        if not LEAST_COMPLEMENT <= complement <= 1:
            hint = "--one-minus-decay 1e-3, which is --decay 0.999"
            raise UsageError(f"--one-minus-decay {complement:g} is not in (0, 1]", hint=hint)
        return cls(value=1 - complement, complement=complement)

    @classmethod
    def of_half_life(cls, half_life: float) -> Self:
        """Return the decay with which a share halves every ``half_life`` H: d = 2^(-1/H).

        Raises:
            UsageError: it is not positive, or too long.

        """
        if not 0 < half_life <= LONGEST_HALF_LIFE:
            raise UsageError(f"--half-life {half_life:g} must be positive, and at most {LONGEST_HALF_LIFE:g}")
        rate = math.log(2) / half_life
        return cls(value=math.exp(-rate), complement=-math.expm1(-rate), half_life=half_life)

    @property
    def rate(self) -> float:
        """Lambda = -ln d, from whichever of d and 1 - d has more digits; infinite for d = 0."""
        if self.value == 0:
            return math.inf
        return -math.log(self.value) if self.value < _HALF else -math.log1p(-self.complement)


@record
class Spec:
    """A method as the help, the README and the checks of the options describe it."""

    definition: str
    steps: Literal["yes", "no", "with --per step"]
    """Whether the weights depend on the steps of the checkpoints."""
    literature: str
    """What papers and libraries call it."""
    takes: tuple[str, ...] = ()
    """The weighting options that it uses; ``decay`` means any of ``DECAYS``."""


SPECS: dict[MethodName, Spec] = {
    "ema": Spec(
        definition="E_1 = theta_1, E_n = d E_(n-1) + (1-d) theta_n; with --per step one decay is one training step, "
        "and the model moves on a straight line from one checkpoint to the next",
        steps="with --per step",
        literature="EMA (torch, TF); per step: this work",
        takes=("decay", "per", "init"),
    ),
    "ema-hold": Spec(
        definition="E_n = D E_(n-1) + (1-D) theta_n with D = d^(t_n - t_(n-1)): like ema --per step, but the model "
        "is constant between checkpoints, equal to the next one",
        steps="yes",
        literature="EDM half-life; How to Scale Your EMA",
        takes=("decay", "init"),
    ),
    "ema-warmup": Spec(
        definition="the decay of the n-th update is min(d, (1+n)/(10+n)); "
        "with --warmup inv-gamma min(d, 1 - (1 + n/inv_gamma)^-power)",
        steps="no",
        literature="TF num_updates; timm and diffusers EMA warm-up",
        takes=("decay", "warmup", "inv_gamma", "power"),
    ),
    "uniform": Spec(definition="1/N each", steps="no", literature="SWA; LAWA with --last K"),
    "uniform-time": Spec(
        definition="trapezoid rule over the steps: half the gaps on both sides",
        steps="yes",
        literature="SWA for uneven spacing",
    ),
    "ramp": Spec(definition="proportional to 1, 2, ..., N", steps="no", literature="WMA"),
    "power": Spec(
        definition="proportional to t^gamma from step 0, with the relative width --sigma-rel, "
        "on straight lines between checkpoints",
        steps="yes",
        literature="power-function EMA of EDM2",
        takes=("sigma_rel",),
    ),
    "lr-decay": Spec(
        definition="w_i = W_i - W_(i+1), where W is a learning rate that falls to 0 as 1-x, (1 + cos pi x)/2 or "
        "1 - sqrt(x) (--shape)",
        steps="yes",
        literature="WSM; minus-sqrt of Megatron",
        takes=("shape",),
    ),
    "manual": Spec(
        definition="--weights W,W,... or PATH:WEIGHT, divided by their sum unless --no-normalize",
        steps="no",
        literature="weighted soup",
        takes=("weights", "normalize"),
    ),
}


DECAYS = ("decay", "one_minus_decay", "half_life")
"""The options that set a decay; one of them is enough."""
IMPLIED: dict[str, MethodName] = {
    "sigma_rel": "power",
    "shape": "lr-decay",
    "weights": "manual",
    "warmup": "ema-warmup",
}
"""The method that an option implies where no method is named."""


@record
class Method:
    """A method with its parameters; ``None`` for parameters that it does not have."""

    name: MethodName
    decay: Decay | None = None
    """d of ``E_n = d E_(n-1) + (1 - d) theta_n``; the largest one for ``ema-warmup``."""
    per: Per | None = None
    """What one decay means."""
    init: Init | None = None
    """``first``: E_1 = theta_1; ``debias``: start from zero, and divide by the sum of the weights."""
    warmup: Warmup | None = None
    inv_gamma: float | None = None
    power: float | None = None
    sigma_rel: float | None = None
    """Standard deviation of the profile, relative to the training time."""
    shape: Shape | None = None
    normalize: bool | None = None
    """Whether the weights of the user are divided by their sum."""

    @property
    def uses_steps(self) -> bool:
        """Whether the weights depend on the steps of the checkpoints."""
        return SPECS[self.name].steps == "yes" or self.per == "step"

    @property
    def label(self) -> str:
        """A short name that differs from those of other methods: ``ema 0.999``, ``power 0.1``."""
        if self.decay is None:
            parts = (self.name, self.shape, self.sigma_rel)
            return " ".join(str(part) for part in parts if part is not None)
        if self.decay.half_life is not None:
            return f"{self.name} H={self.decay.half_life:.12g}"
        return f"{self.name} {decay_text(self.decay)}"

    def plain(self) -> dict[str, Any]:
        """Return name and parameters as plain values, the decay as d, 1 - d and half-life."""
        decay = self.decay
        return {
            "name": self.name,
            "decay": decay.value if decay else None,
            "one_minus_decay": decay.complement if decay else None,
            "half_life": decay.half_life if decay else None,
            **{field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("name", "decay")},
        }

    def name_fields(self) -> dict[str, object]:
        """Return the values of the fields in the name of an output; ``None`` for a parameter that it does not have."""
        decay = decay_text(self.decay) if self.decay else None
        return {**self.plain(), "decay": decay, "method": self.name, "label": self.label.replace(" ", "_")}

    def same_as(self, other: Method) -> bool:
        """Whether two methods are equal, however their decay was given."""
        a, b = self.decay, other.decay
        same_decay = math.isclose(a.complement, b.complement, rel_tol=_SAME) if a and b else a is b
        return same_decay and replace(self, decay=None) == replace(other, decay=None)


def chosen_methods(named: Sequence[MethodName], given: Container[str]) -> tuple[MethodName, ...]:
    """Return the methods to use: those ``named``, else the one that an option in ``given`` implies, else ``ema``."""
    return tuple(named) or tuple(method for name, method in IMPLIED.items() if name in given)[:1] or ("ema",)


def takes(methods: Iterable[MethodName], option: str) -> bool:
    """Whether any of the methods uses a weighting option."""
    return any(("decay" if option in DECAYS else option) in SPECS[name].takes for name in methods)


def decay_text(decay: Decay) -> str:
    """Return a decay as text that never reads as 1, and differs for different decays."""
    return decay_words(decay.value, decay.complement, digits=12)


def decay_words(value: float, complement: float, *, digits: int = 6) -> str:
    """Return d as text that never reads as 1: ``0.999``, or ``1-1e-12`` where d has too many nines."""
    written = f"{value:.{digits}g}"
    return written if float(written) < 1 else f"1-{complement:.6g}"


@record
class Weighting:
    """A method applied to a series."""

    method: Method
    weights: tuple[float, ...]
    """The factor of each member of the series, in fold order."""
    shares: tuple[float, ...]
    """The weight of each checkpoint of the average, float64, all >= 0, sum 1; the same unless it was continued."""
