"""``update_bn``, the function that needs torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ema_cli.api.listening import Progress, listening
from ema_cli.options.keyword_messages import keywords_in_errors
from ema_cli.options.keywords import StrPath
from ema_cli.report.model import BatchNormUpdate
from ema_cli.training.batch_norm.update_bn import update_given


def update_bn(
    average: StrPath | Mapping[str, object],
    model: torch.nn.Module,
    loader: Iterable[Any],
    *,
    output: StrPath | None = None,
    device: torch.device | str | None = None,
    batches: int | None = None,
    key: str | Iterable[str] = (),
    strip_prefix: str | None = None,
    force: bool = False,
    progress: Progress = False,
) -> BatchNormUpdate:
    """Load an average into a model and recompute its BatchNorm statistics on data, as ``torch.optim.swa_utils`` does.

    Afterwards the model has the average with the new statistics; the modes and momenta of its modules are unchanged.

    Args:
        average: a checkpoint of any format, such as the output of ``ema_cli.average``, or a state dict.
        model: has exactly the tensors of the average.
        loader: yields batches: tensors, tuples or lists that begin with one, or dicts of what the model takes.
        output: the file to write: the average with the new statistics, and its report; only of an average in a file.
        device: where the model and each batch are moved to; by default they stay where they are.
        batches: the number of batches to use; by default all.
        key: dotted path to the weights in a nested checkpoint, or several; by default they are found.
        strip_prefix: prefix to remove from tensor names; ``None`` for those of known wrappers, ``""`` for none.
        force: overwrite an existing ``output``.
        progress: as for ``ema_cli.average``.

    Warns:
        ema_cli.EmaAvgWarning: a layer saw no batch, and the like; issued before the output is written.

    Raises:
        ema_cli.errors.UsageError: there is no batch, or a batch is nothing that a model can be called with.
        ema_cli.errors.InputRefused: the average does not fit the model; a new statistic is not finite.
        ema_cli.errors.NothingNew: the model has no BatchNorm statistics.
        ema_cli.errors.OutputError: the output exists, or cannot be written.

    """
    with keywords_in_errors(), listening(progress) as listener:
        return update_given(
            average,
            model,
            loader,
            output=output,
            device=device,
            batches=batches,
            listener=listener,
            key=key,
            strip_prefix=strip_prefix,
            force=force,
        )
