"""What the live EMA is made with: values that make no sense are refused at once, in the words of the call."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ema_cli import EMA
from ema_cli.errors import UsageError


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        ({}, "EMA needs a decay", "decay=0.999, half_life=1000 or sigma_rel=0.1"),
        ({"decay": 1}, "decay=1 is not in [0, 1)", "decay=0.9"),
        ({"decay": -0.1}, "decay=-0.1 is not in [0, 1)", ""),
        ({"decay": math.nan}, "decay", ""),
        ({"decay": "many"}, 'decay="many" is not a number', ""),
        ({"decay": (0.9, 0.9)}, "decay has the same value twice", ""),
        ({"decay": 0.9, "half_life": 7}, "decay and half_life say the same thing", ""),
        ({"one_minus_decay": 0}, "one_minus_decay=0 is not in (0, 1]", "one_minus_decay=1e-3"),
        ({"half_life": 0}, "half_life=0 must be positive", ""),
        ({"sigma_rel": 0.5}, "sigma_rel=0.5 is not in (0, 0.2887]", ""),
        ({"sigma_rel": 0.1, "decay": 0.9}, 'method="power" has no decay', ""),
        ({"method": "power"}, 'method="power" needs a width', "sigma_rel=0.1"),
        ({"method": "ema-hold", "decay": 0.9}, 'method="ema-hold" cannot be computed during training', "ema-warmup"),
        ({"method": "lr-decay"}, "cannot be computed during training", "save checkpoints"),
        ({"method": "unifrom"}, 'method="unifrom" is none of ema, ', "did you mean uniform?"),
        ({"method": ["uniform", "foo"]}, 'method="foo" is none of', ""),
        ({"method": 3}, 'method="3" is none of', ""),
        ({"method": "uniform", "init": "debias"}, 'method="uniform" has no init', "method="),
        ({"decay": 0.9, "init": "zero"}, 'init="zero" is none of first, debias', ""),
        ({"decay": 0.9, "warmup": "cosine"}, 'warmup="cosine" is none of tf, inv-gamma', ""),
        ({"decay": 0.9, "warmup": "tf", "power": 2}, 'warmup="tf" has no power', 'warmup="inv-gamma"'),
        ({"decay": 0.9, "warmup": "inv-gamma", "power": 0}, "power=0 must be positive", ""),
        ({"decay": 0.9, "every": 0}, "every=0 must be at least 1", ""),
        ({"decay": 0.9, "every": 2.5}, 'every="2.5" is not a whole number', ""),
        ({"decay": 0.9, "buffers": "last"}, 'buffers="last" is none of copy, average', ""),
        ({"decay": 0.9, "batchnorm": True}, 'batchnorm="True" is none of copy, average', ""),
        ({"decay": 0.9, "dtype": torch.bfloat16}, 'dtype="torch.bfloat16": averages are kept in torch.float32', ""),
        ({"decay": 0.9, "dtype": "float64"}, 'dtype="float64": averages are kept in', "leave it out"),
        ({"decay": 0.9, "device": "meta"}, 'device="meta" cannot be used', ""),
        ({"decay": 0.9, "device": "gpu"}, 'device="gpu" cannot be used: Expected one of cpu, cuda', ""),
        ({"decay": 0.9, "model": {}}, 'EMA needs a torch.nn.Module, not "dict"', "EMA(model, 0.999)"),
    ],
    ids=str,
)
def test_values_that_make_no_sense(options: dict[str, Any], words: str, hint: str) -> None:
    """Each is refused when the EMA is made, with the names of the keywords, not of flags."""
    with pytest.raises(UsageError) as caught:
        EMA(**{"model": nn.Linear(2, 2), **options})
    assert words in str(caught.value)
    assert hint in caught.value.hint
    assert "--" not in str(caught.value) + caught.value.hint


def test_other_words_for_a_method() -> None:
    """As on the command line; the state has the name of the method."""
    assert [method.name for method in EMA(nn.Linear(2, 2), method="swa").methods] == ["uniform"]  # type: ignore[arg-type]


@pytest.mark.parametrize("average", [2, -1, 1.5, "ema", None])
def test_an_average_that_there_is_not(average: Any) -> None:
    """Averages have the numbers 0 and 1; everything else is refused wherever a number is taken."""
    ema = EMA(nn.Linear(2, 2), (0.5, 0.9))
    ema.register()
    for call in (ema.average_of, ema.apply_shadow, ema.average_model, lambda one: ema.applied(one).__enter__()):
        with pytest.raises(UsageError, match="average="):
            call(average)


@pytest.mark.parametrize("number", [np.array(0.5), np.float32(0.5), torch.tensor(0.5), "0.5"], ids=repr)
def test_numbers_of_other_libraries(number: Any) -> None:
    """A number in an array without dimensions is a number."""
    assert EMA(nn.Linear(2, 2), number).decay == 0.5


def test_an_average_that_is_still_to_come_says_when() -> None:
    """With ``every=4``, the message after three updates names the step of the first average."""
    ema = EMA(nn.Linear(2, 1), 0.9, every=4)
    for _ in range(3):
        ema.update()
    with pytest.raises(UsageError, match="there is no average yet") as refused:
        ema.apply_shadow()
    assert refused.value.hint == "the first is made at step 4"
