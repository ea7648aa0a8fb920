"""Recompute the BatchNorm statistics of an average on data, and write a copy of it with the new ones.

The statistics in an average belong to the activations of the checkpoints, not to those of the average (Izmailov et al.
2018, arXiv 1803.05407, section 3.2).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ema_cli.errors import UsageError
from ema_cli.events import Listener, WarningIssued, ignore
from ema_cli.fold.cuda import find_device
from ema_cli.fold.devices import resolve_device
from ema_cli.formats.open import open_checkpoint
from ema_cli.formats.own_outputs import marked
from ema_cli.formats.state_dict.prefixes import refuse_unused_prefix
from ema_cli.naming import safetensors_name
from ema_cli.options.average import Options, make_options
from ema_cli.planning.warnings import warn_of_chosen_weights
from ema_cli.preflight.check_plan import fail_if_strict, mark_allowed
from ema_cli.report.model import BatchNormUpdate, Report
from ema_cli.storage.extents import LayoutPool
from ema_cli.storage.locations import locate
from ema_cli.text import quoted
from ema_cli.training.batch_norm.data_pass import UserCode, recompute
from ema_cli.training.batch_norm.recomputed_copy import RecomputedCopy
from ema_cli.training.batch_norm.stored_weights import CheckpointWeights, StateDictWeights
from ema_cli.training.live.model_tensors import unwrapped


def update_given(
    average: str | os.PathLike[str] | Mapping[str, object],
    model: nn.Module,
    loader: Iterable[Any],
    *,
    output: str | os.PathLike[str] | None,
    device: torch.device | str | None,
    batches: int | None,
    listener: Listener,
    **given: Any,  # noqa: ANN401 - of options
) -> BatchNormUpdate:
    """Recompute statistics in a model and, of an average in a file, write an output if there is one.

    Raises:
        EmaAvgError: see ``ema_cli.update_bn``.

    """
    _check_kinds(average, model, loader)
    _check_batches(batches)
    code = UserCode(
        make_model=lambda: model,
        make_data=lambda: loader,
        model=type(unwrapped(model)).__name__,
        data=type(loader).__name__,
    )
    place = _find(device)
    if not isinstance(average, Mapping):
        options = update_options(average, output=output, **given)
        return update_file(options, code, batches=batches, device=place, listener=listener)[0]
    if output is not None:
        raise UsageError("output= needs an average in a file", hint="save model.state_dict() yourself")
    weights = StateDictWeights(average, given["strip_prefix"])
    found = recompute(code, weights, batches=batches, device=place, listener=listener)
    for warning in found.warnings:
        listener(WarningIssued(warning=warning))
    return found.update


def update_options(average: str | os.PathLike[str], *, output: str | os.PathLike[str] | None, **given: Any) -> Options:  # noqa: ANN401
    """Return the options of ``ema_cli.options``, with the average as the only path; ``given`` are further ones.

    Raises:
        UsageError: there can be no such output, or an option has a wrong value.

    """
    name = "" if output is None else os.fspath(output)
    if name and not name.endswith((".safetensors", os.sep)):
        hint = f"-o {safetensors_name(name)}; or -o {name}{os.sep} for a folder"
        raise UsageError(f"the output {quoted(name)} must end in .safetensors", hint=hint)
    return make_options(average, output=output, **given)


def update_with(
    options: Options, code: UserCode, *, batches: int | None, listener: Listener, argv: Sequence[str]
) -> Report:
    """Recompute the statistics of the average ``options.paths[0]`` on the device of the options, and write the output.

    Raises:
        EmaAvgError: see ``ema_cli.update_bn``; then nothing was written, unless the message lists what is new.

    """
    if options.output is None:
        raise UsageError("no output was named", hint="-o ema-bn.safetensors")
    _check_batches(batches)
    device = _find(options.device)
    _, report = update_file(options, code, batches=batches, device=device, listener=listener, argv=argv)
    assert report is not None, "there is an output"  # noqa: S101 - for the type checker
    return report


def update_file(
    options: Options,
    code: UserCode,
    *,
    batches: int | None,
    device: torch.device | None,
    listener: Listener = ignore,
    argv: Sequence[str] = (),
) -> tuple[BatchNormUpdate, Report | None]:
    """Recompute the statistics of the average in a file, and write the output if the options name one."""
    started = time.monotonic()
    with ExitStack() as opened:
        path = locate(options.paths[0])
        checkpoint = open_checkpoint(path, pool=LayoutPool(), keys=options.key, strip_prefix=options.strip_prefix)
        opened.callback(checkpoint.index.close)
        refuse_unused_prefix(options.strip_prefix, [checkpoint.stripped])
        checkpoint = marked(checkpoint, listener)
        copy = None if options.output is None else RecomputedCopy(checkpoint, options, opened)
        found = recompute(code, CheckpointWeights(checkpoint), batches=batches, device=device, listener=listener)
        of_input = (*warn_of_chosen_weights([checkpoint]), *(copy.warnings if copy else ()))
        warnings = mark_allowed((*of_input, *found.warnings), options)
        for warning in warnings:
            listener(WarningIssued(warning=warning))
        fail_if_strict(warnings, options)
        if copy is None:
            return found.update, None
        settings = _settings(options, code, batches, device)
        report = copy.write(found.update, found.layers, warnings, argv=argv, settings=settings, started=started)
        return found.update, report


def _settings(options: Options, code: UserCode, batches: int | None, device: torch.device | None) -> dict[str, object]:
    """Return the options of the command that a report has."""
    chosen = {"batches": batches, "device": str(device or ""), "key": list(options.key)}
    return {"model": code.model, "data": code.data, **chosen, "strip_prefix": options.strip_prefix}


def _check_kinds(average: object, model: object, loader: object) -> None:
    """Raise if an argument is something else, such as the function that makes the model or the data."""
    iterable = hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")
    for name, given, fits, wanted in (
        ("average", average, isinstance(average, str | os.PathLike | Mapping), "a path or a state dict"),
        ("model", model, isinstance(model, nn.Module), "a torch.nn.Module"),
        ("loader", loader, iterable, "an iterable of batches"),
    ):
        if not fits:
            message = f"{name} is a {type(given).__name__}, not {wanted}"
            raise UsageError(message, hint="update_bn(path_or_state_dict, model, loader)")


def _check_batches(batches: int | None) -> None:
    if batches is not None and batches < 1:
        raise UsageError(f"--batches {batches} must be at least 1")


def _find(device: torch.device | str | None) -> torch.device | None:
    """Return a device that this machine has.

    Raises:
        UsageError: it has none of this name.

    """
    if device is None or isinstance(device, torch.device):
        return device
    name = resolve_device(device)
    if name.startswith("cuda"):
        return find_device(name)
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: torch knows no such device") from error
