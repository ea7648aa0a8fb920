"""Runs of many trainers and libraries, as they name and fill their files: right order and files, no false warning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ema_cli.api import plan
from ema_cli.errors import EmaAvgError
from ema_cli.records.plan import Plan
from ema_cli.storage.locations import absolute
from tests.trainers.files import Trainer
from tests.trainers.generative import GENERATIVE
from tests.trainers.language import LANGUAGE
from tests.trainers.libraries import LIBRARIES
from tests.trainers.speech import SPEECH
from tests.trainers.unlisted import UNLISTED
from tests.trainers.vision import VISION

TRAINERS = {**VISION, **LANGUAGE, **SPEECH, **GENERATIVE, **LIBRARIES, **UNLISTED}
METHODS: tuple[dict[str, Any], ...] = ({"method": "uniform"}, {"decay": 0.5})
ABOUT_SHARES = {"first-dominates", "unobserved-mass", "window-not-filled", "window-too-short", "plain-mean"}
"""Warnings about the weights of the method; nothing about the files."""


@pytest.mark.parametrize("name", [name for name, trainer in TRAINERS.items() if not trainer.refused])
def test_the_files_of_a_trainer_are_one_series(tmp_path: Path, name: str) -> None:
    """The plan has the checkpoints in the order of training, skips copies and averages, and warns of nothing else."""
    trainer = TRAINERS[name]
    trainer.write(tmp_path)
    for method in METHODS:
        planned = _plan(tmp_path, trainer, method)
        found = [str(Path(absolute(one.path)).relative_to(tmp_path)) for one in planned.checkpoints]
        assert len(found) == len(trainer.series), found
        assert all(map(_is_at, found, trainer.series)), found
        skipped = {str(Path(absolute(one.path)).relative_to(tmp_path)) for one in planned.series.skipped}
        assert skipped.issuperset(trainer.skipped), skipped
        assert trainer.key is None or {one.key for one in planned.checkpoints} == {trainer.key}
        assert {tensor.name for tensor in planned.tensors} == trainer.names
        _check_warnings(planned, trainer)


@pytest.mark.parametrize("name", [name for name, trainer in TRAINERS.items() if trainer.refused])
def test_a_folder_without_one_series_is_refused(tmp_path: Path, name: str) -> None:
    """Two models, parts of one checkpoint and formats of other libraries are refused by name."""
    trainer = TRAINERS[name]
    trainer.write(tmp_path)
    for method in METHODS:
        with pytest.raises(EmaAvgError) as refused:
            _plan(tmp_path, trainer, method)
        told = f"{refused.value.message} {refused.value.hint}"
        for words in trainer.refused:
            assert re.search(words, told, re.IGNORECASE), told


def _plan(run: Path, trainer: Trainer, method: dict[str, Any]) -> Plan:
    return plan([run / path for path in trainer.paths], **method, **trainer.options)


def _is_at(found: str, expected: str) -> bool:
    """Whether a checkpoint is the expected one: a file, its folder, or a folder inside."""
    return found == expected or expected.startswith(f"{found}/") or found.startswith(f"{expected}/")


def _check_warnings(planned: Plan, trainer: Trainer) -> None:
    told = [f"{one.code}: {one.message}" for one in planned.warnings if one.code not in ABOUT_SHARES]
    unexpected = [text for text in told if not any(words in text for words in (*trainer.warned, *trainer.allowed))]
    assert not unexpected
    assert all(any(words in text for text in told) for words in trainer.warned), told
