"""Reports of any content, and the check against their schema."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema
from hypothesis import strategies as st

from ema_cli.errors import RunWarning
from ema_cli.report import model
from ema_cli.weights.diagnostics import Diagnostics

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
UNDEFINED = st.none() | NUMBERS
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.just("\udcff"), max_size=20)
"""Any text, and the bytes of file names that cannot be decoded."""
SIZES = st.integers(0, 2**63)
SCHEMA = json.loads(resources.files("ema_cli.report").joinpath("report.schema.json").read_text(encoding="utf-8"))


def reports() -> st.SearchStrategy[model.Report]:
    """Return reports of any content: names from hostile files, undefined numbers, extreme sizes."""
    plain = st.none() | st.booleans() | SIZES | NUMBERS | TEXT
    numbers = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    pieces = st.builds(model.TensorPieces, axis=SIZES, inputs=numbers, factors=st.lists(NUMBERS, max_size=3).map(tuple))
    tensors = st.builds(
        model.Tensor,
        name=TEXT,
        dtype=TEXT,
        shape=st.lists(SIZES, max_size=3).map(tuple),
        action=st.sampled_from(["averaged", "copied", "concatenated", "scaled"]),
        norm=UNDEFINED,
        drift=UNDEFINED,
        cosine=UNDEFINED,
        tied_to=st.none() | TEXT,
        pieces=st.none() | pieces,
    )
    diagnostics = st.builds(
        Diagnostics,
        effective_checkpoints=NUMBERS,
        mean_age=NUMBERS,
        mean_age_unit=TEXT,
        first=NUMBERS,
        last=NUMBERS,
        largest=NUMBERS,
        implied_lr=st.lists(NUMBERS, max_size=3).map(tuple),
    )
    averages = st.builds(
        model.Average,
        method=st.builds(model.MethodUsed, decay=UNDEFINED, half_life=UNDEFINED),
        weights=st.lists(NUMBERS, max_size=3).map(tuple),
        diagnostics=diagnostics,
        tensors=st.lists(tensors, max_size=3).map(tuple),
    )
    return st.builds(
        model.Report,
        command=st.builds(
            model.Command,
            argv=st.lists(TEXT, max_size=3).map(tuple),
            options=st.dictionaries(TEXT, plain | st.lists(plain, max_size=2), max_size=3),
        ),
        averages=st.lists(averages, max_size=2).map(tuple),
        inputs=st.lists(st.builds(model.Input, path=TEXT, bytes=SIZES), max_size=2).map(tuple),
        warnings=st.lists(st.builds(RunWarning, message=TEXT), max_size=2).map(tuple),
        summary=st.builds(model.Summary, seconds=NUMBERS, fold_seconds=NUMBERS, throughput_bytes_per_second=NUMBERS),
    )


def check(document: dict[str, Any]) -> None:
    """Raise if a document violates the schema in the package."""
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
